/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who may use an export: a list of rules, each of which lets some clients in.  No rule lets
 * everybody in; with rules, a client needs one of which it meets every condition.
 *
 * A rule is a tree of options: uid, gid (of the process behind a Unix socket; gid also counts
 * supplementary groups), address (ADDRESS or ADDRESS/PREFIX, IPv4 or IPv6), dn (distinguished name
 * of the certificate), san (one of its alternative names, "DNS:host"), psk (user name of its
 * pre-shared key).  Text is compared as a whole; only what follows "DNS:" regardless of case.
 */
#ifndef EVNBD_NBD_ACCESS_H
#define EVNBD_NBD_ACCESS_H

#include "base/error.h"
#include "base/list.h"
#include "base/options.h"
#include "nbd/identity.h"

#include <stdbool.h>

typedef void nbd_answered(void *arg, bool yes);

struct nbd_access {
    struct list rules;
    /* Beside the rules: who decides about the name that TLS has proved. NULL: nobody. */
    const struct nbd_authorizer *authorizer;
};

/*
 * Is asked once in a session, when TLS has proved a name that meets the rules.  Who has no name is
 * refused unasked.
 */
struct nbd_authorizer {
    void *arg; /* those of several exports that have the same one are one: it is asked once */
    /*
     * Answers at once (1: yes, 0: no), or begins to find out (-EINPROGRESS, with *ret_question)
     * and calls answered(answered_arg, yes) later, from the loop.  -ENOMEM.
     */
    int (*ask)(void *arg, const char *name, nbd_answered *answered, void *answered_arg,
               void **ret_question);
    /* The answer is not wanted any more. Not after it was given. */
    void (*forget)(void *question);
};

void nbd_access_init(struct nbd_access *access);
void nbd_access_fini(struct nbd_access *access);

/* Takes one rule out of a tree. -EINVAL or -ENOMEM with a sentence. */
int nbd_access_add(struct nbd_access *access, json_t *tree, struct error *error);
/* The same for the text "uid=1000" or "address=10.0.0.0/8,psk=alice" (see options_parse). */
int nbd_access_add_text(struct nbd_access *access, const char *text, struct error *error);

/* The authorizer that is to be asked about this client and has not been, or NULL. */
const struct nbd_authorizer *nbd_access_unasked(const struct nbd_access *access,
                                                const struct nbd_identity *identity);

/*
 * NULL for either: there are no rules, or nothing is known of the client.  What an authorizer has
 * not been asked, it has not allowed.
 */
bool nbd_access_allows(const struct nbd_access *access, const struct nbd_identity *identity);

/* Writes who the client is into `out`, for messages to the operator. Returns `out`. */
char *nbd_identity_describe(const struct nbd_identity *identity, char *out, size_t out_size);

#endif
