/* SPDX-License-Identifier: BSD-3-Clause */
/* The load generator's way into transmission, in plain text or over TLS. */
#ifndef EVNBD_BENCH_SESSION_H
#define EVNBD_BENCH_SESSION_H

#include "base/stream.h"
#include "bench/client.h"
#include "tls/credentials.h"

struct export_info {
    uint64_t size;
    uint16_t flags; /* NBD_FLAG_* */
};

/*
 * Of a client, from a directory of certificates or a file of keys; NULL for both: NULL.  Never
 * fails: it ends the program.
 */
struct tls_credentials *session_credentials(const char *certificates, const char *psk,
                                            bool verify_peer);

/*
 * Connects and brings NBD_OPT_GO behind it, inside of TLS if there are credentials (NULL: none),
 * with a server whose certificate is for "localhost".  Never fails: it ends the program.
 */
struct stream *session_open(const struct address *address, const char *export_name,
                            struct tls_credentials *credentials, struct export_info *ret_info);

#endif
