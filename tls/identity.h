/* SPDX-License-Identifier: BSD-3-Clause */
/* What a handshake has proved about the peer. Inside of tls/. */
#ifndef EVNBD_TLS_IDENTITY_H
#define EVNBD_TLS_IDENTITY_H

#include "tls/tls_stream.h"

#include <gnutls/gnutls.h>

struct tls_peer {
    struct tls_identity identity; /* its strings are this one's */
};

/* Fills it after a handshake. Negative errno with a sentence. */
int tls_peer_init(struct tls_peer *peer, gnutls_session_t session, enum tls_kind kind,
                  enum tls_endpoint endpoint, struct error *error);
void tls_peer_fini(struct tls_peer *peer); /* a zeroed one is fine */

#endif
