/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * URIs of servers, as the NBD project describes them (doc/uri.md):
 *
 *   nbd://[USER@]HOST[:PORT]/[EXPORT]            nbds: the same over TLS
 *   nbd+unix://[USER@]/[EXPORT]?socket=PATH      nbds+unix: the same over TLS
 *
 * with tls-certificates=DIR, tls-psk-file=FILE and tls-hostname=NAME behind the question mark.
 * Pure: nothing is looked up.  For the client in nbd/ and for the block driver of remote disks.
 */
#ifndef EVNBD_BASE_NBD_URI_H
#define EVNBD_BASE_NBD_URI_H

#include "base/error.h"

#include <stdbool.h>

struct nbd_address {
    const char *socket; /* path of a Unix socket; NULL: TCP */
    const char *host;   /* name or address; NULL: this machine */
    const char *port;   /* number or service name */
};

/* The strings are in `storage`, decoded; what the URI does not say is NULL. */
struct nbd_uri {
    bool tls;
    struct nbd_address address;
    const char *user;
    const char *export_name;
    const char *tls_certificates, *tls_psk_file, *tls_hostname;
    char *storage;
};

/* Whether the text begins as such a URI. */
bool nbd_uri_is(const char *text);

/* -EINVAL with a sentence that names the text and what is wrong in it, or -ENOMEM. */
int nbd_uri_parse(struct nbd_uri *ret, const char *text, struct error *error);
void nbd_uri_fini(struct nbd_uri *uri); /* a zeroed one is fine */

#endif
