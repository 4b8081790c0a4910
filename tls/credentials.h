/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What one side of a TLS session shows and accepts: certificates, pre-shared keys, or nothing.
 *
 * Credentials are read from files, and read again when those have changed: each new session looks
 * first.  What is bad then is logged and the credentials stay what they were, also when a file that
 * may be missing has vanished; sessions that run keep what they began with.
 *
 *   X509  DIR/ca-cert.pem (of the CAs that peers are verified by), DIR/ca-crl.pem (optional),
 *         DIR/server-cert.pem and server-key.pem, or client-cert.pem and client-key.pem
 *   PSK   DIR/keys.psk: lines of NAME:KEY, the key in hexadecimal
 *   ANON  none: encrypted, but anyone can be at the other end; TLS 1.2
 */
#ifndef EVNBD_TLS_CREDENTIALS_H
#define EVNBD_TLS_CREDENTIALS_H

#include "base/error.h"
#include "base/secret.h"

#include <stdbool.h>

enum tls_kind { TLS_X509, TLS_PSK, TLS_ANON };
enum tls_endpoint { TLS_SERVER, TLS_CLIENT };

/* The user name that a PSK client has by default. */
#define TLS_PSK_USERNAME "qemu"

struct tls_credentials_config {
    enum tls_kind kind;
    enum tls_endpoint endpoint;
    const char *dir;      /* where the files are; NULL for ANON, and for PSK with psk_file */
    const char *psk_file; /* PSK: this file instead of DIR/keys.psk */
    /*
     * X509.  A server asks clients for a certificate and lets nobody in without a good one; then
     * ca-cert.pem is needed.  A client verifies the server's; without, anyone can answer.
     */
    bool verify_peer;
    const char *priority; /* a GnuTLS priority string instead of the built-in order; NULL: none */
    bool sanity_check;    /* X509: refuse certificates that peers would refuse (dates, usage, CA) */
    /* PSK client: its name; NULL: the only one in psk_file, else TLS_PSK_USERNAME. */
    const char *username;
    const struct secret *key_password; /* X509: of an encrypted private key; NULL: none */
};

struct tls_credentials;

/*
 * Reads the files.  Copies what it needs of `config`.  *ret has one reference.  Negative errno with
 * a sentence: a file is missing (-ENOENT), cannot be read, or what is in it will not do (-EINVAL).
 */
int tls_credentials_new(const struct tls_credentials_config *config, struct tls_credentials **ret,
                        struct error *error);
struct tls_credentials *tls_credentials_ref(struct tls_credentials *credentials);
void tls_credentials_unref(struct tls_credentials *credentials); /* NULL is fine */

enum tls_kind tls_credentials_kind(const struct tls_credentials *credentials);
enum tls_endpoint tls_credentials_endpoint(const struct tls_credentials *credentials);

#endif
