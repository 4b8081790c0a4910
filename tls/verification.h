/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a session wants of the peer's certificate, as a part of the handshake, so that nobody is let
 * in before it: a chain to a CA, dates, the purpose, and for a server its name.  Inside of tls/.
 */
#ifndef EVNBD_TLS_VERIFICATION_H
#define EVNBD_TLS_VERIFICATION_H

#include "tls/credentials.h"

#include <gnutls/x509.h>

struct tls_verification {
    const char *hostname;            /* of the server, or NULL; the caller's, as long as this */
    gnutls_typed_vdata_st wanted[2]; /* GnuTLS keeps the address: do not move it */
};

/* Sets it up for a session with certificates. Returns false when out of memory. */
bool tls_verification_init(struct tls_verification *v, gnutls_session_t session,
                           const struct tls_credentials_config *config, const char *hostname);

/* The sentence about a certificate that was not accepted. Returns -EACCES. */
int tls_verification_failed(const struct tls_verification *v, gnutls_session_t session,
                            struct error *error);

#endif
