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

struct nbd_access {
    struct list rules;
    /*
     * Beside the rules: decides about the name that TLS has proved, and is not asked about clients
     * without one, who are refused.  NULL: no such condition.
     */
    bool (*authorize)(void *arg, const char *name);
    void *authorize_arg;
};

void nbd_access_init(struct nbd_access *access);
void nbd_access_fini(struct nbd_access *access);

/* Takes one rule out of a tree. -EINVAL or -ENOMEM with a sentence. */
int nbd_access_add(struct nbd_access *access, json_t *tree, struct error *error);
/* The same for the text "uid=1000" or "address=10.0.0.0/8,psk=alice" (see options_parse). */
int nbd_access_add_text(struct nbd_access *access, const char *text, struct error *error);

/* NULL for either: there are no rules, or nothing is known of the client. */
bool nbd_access_allows(const struct nbd_access *access, const struct nbd_identity *identity);

/* Writes who the client is into `out`, for messages to the operator. Returns `out`. */
char *nbd_identity_describe(const struct nbd_identity *identity, char *out, size_t out_size);

#endif
