/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS for the server and for --list: credentials as the command line tells, and the table that nbd/
 * calls. */
#ifndef EVNBD_DAEMON_TLS_H
#define EVNBD_DAEMON_TLS_H

#include "daemon/arguments.h"
#include "daemon/objects.h"
#include "nbd/tls.h"
#include "tls/credentials.h"
#include "tls/tls_stream.h"

struct daemon_tls {
    struct nbd_tls table;
    struct tls_credentials *credentials; /* NULL: TLS is off */
    const char *hostname; /* --list: that the server's certificate has to be for, or NULL */
};

/* The credentials that the short options describe, if they do; its strings are theirs. */
struct tls_credentials_config daemon_tls_config(const struct arguments *arguments);

/*
 * Reads the credentials, or takes those of the object, if there are any: a server's, or for --list
 * a client's.  The arguments outlive it.  Negative errno with a sentence.
 */
int daemon_tls_init(struct daemon_tls *tls, const struct arguments *arguments,
                    const struct objects *objects, struct error *error);
void daemon_tls_fini(struct daemon_tls *tls); /* a zeroed one is fine */

/* For struct nbd_server_config and nbd_inquire(); NULL: off. */
const struct nbd_tls *daemon_tls_table(const struct daemon_tls *tls);

#endif
