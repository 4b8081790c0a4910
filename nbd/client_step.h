/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Between the files of the client: client.c takes messages, client_step.c knows what the answers to
 * options mean and what to ask next.  Inside of nbd/.
 */
#ifndef EVNBD_NBD_CLIENT_STEP_H
#define EVNBD_NBD_CLIENT_STEP_H

#include "base/bytes.h"
#include "nbd/client.h"

/* An option that is asked, and what its replies mean. */
struct nbd_client_step {
    uint32_t option;
    uint32_t item;     /* the reply type of its items, 0: it has none */
    const char *about; /* for messages: what is asked, "its list of exports" */
    bool per_export;   /* asked about the export remote->next */
    void (*take_item)(struct nbd_client *c, struct byte_reader *data);
    void (*acknowledged)(struct nbd_client *c);
    /* `said` is the end of a sentence: "", or ": " and the server's words. */
    void (*refused)(struct nbd_client *c, uint32_t type, const char *said);
};

/* Asks the first option; the answers lead to the others. */
void nbd_client_ask_first(struct nbd_client *c);
/* Whether that is still to be answered, inside of TLS. */
bool nbd_client_is_fresh_in_tls(const struct nbd_client *c);
/* Appends an option without data to the output. */
void nbd_client_send_option(struct nbd_client *c, uint32_t option);

/* Ends the session; the text is made printable. */
__attribute__((format(printf, 2, 3))) void nbd_client_fail(struct nbd_client *c, const char *format,
                                                           ...);
/* These return false when they have ended the session. */
bool nbd_client_check_size(struct nbd_client *c, uint64_t size);
bool nbd_client_check_kept(struct nbd_client *c, int err);

#endif
