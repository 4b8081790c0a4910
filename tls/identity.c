/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names from certificates.  They were chosen by whoever asked the CA for the certificate: a name
 * with a 0 byte in it would look like another one, and is left out.
 */
#include "tls/identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

/* Bytes of one name. */
#define NAME_MAX_BYTES 2048

static const char *address_text(const uint8_t *name, size_t size, char *out)
{
    int family = size == 4 ? AF_INET : AF_INET6;

    if (size != 4 && size != 16)
        return NULL;
    return inet_ntop(family, name, out, INET6_ADDRSTRLEN);
}

/* NULL: not of a kind that is kept, or out of memory. */
static char *alt_name_text(int type, const char *name, size_t size)
{
    static const char *const prefixes[] = {
        [GNUTLS_SAN_DNSNAME] = "DNS", [GNUTLS_SAN_RFC822NAME] = "EMAIL", [GNUTLS_SAN_URI] = "URI"};
    char address[INET6_ADDRSTRLEN];
    char *text;

    if (type == GNUTLS_SAN_IPADDRESS) {
        if (!address_text((const uint8_t *)name, size, address) ||
            asprintf(&text, "IP:%s", address) < 0)
            return NULL;
        return text;
    }
    if (type != GNUTLS_SAN_DNSNAME && type != GNUTLS_SAN_RFC822NAME && type != GNUTLS_SAN_URI)
        return NULL;
    if (memchr(name, 0, size) || asprintf(&text, "%s:%.*s", prefixes[type], (int)size, name) < 0)
        return NULL;
    return text;
}

static void take_alt_names(struct tls_identity *identity, gnutls_x509_crt_t certificate)
{
    char name[NAME_MAX_BYTES];

    for (unsigned i = 0; identity->alt_name_count < TLS_ALT_NAMES_MAX; i++) {
        size_t size = sizeof(name);
        int type = gnutls_x509_crt_get_subject_alt_name(certificate, i, name, &size, NULL);
        char *text = type >= 0 ? alt_name_text(type, name, size) : NULL;

        if (text)
            identity->alt_names[identity->alt_name_count++] = text;
        if (type < 0 && type != GNUTLS_E_SHORT_MEMORY_BUFFER)
            break;
    }
}

static int take_certificate(struct tls_identity *identity, const gnutls_datum_t *der,
                            struct error *error)
{
    gnutls_x509_crt_t certificate;
    char name[NAME_MAX_BYTES];
    size_t size = sizeof(name);
    int r = gnutls_x509_crt_init(&certificate);

    if (r < 0)
        return error_set_errno(error, ENOMEM, "Could not read the peer's certificate");
    r = gnutls_x509_crt_import(certificate, der, GNUTLS_X509_FMT_DER);
    if (r >= 0)
        r = gnutls_x509_crt_get_dn(certificate, name, &size);
    if (r == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE) { /* it has an alternative name only */
        name[0] = 0;
        r = 0;
    }
    if (r >= 0) {
        identity->name = strdup(name);
        take_alt_names(identity, certificate);
    }
    gnutls_x509_crt_deinit(certificate);
    if (r < 0)
        return error_set(error, EINVAL, "the name in the peer's certificate cannot be read: %s",
                         gnutls_strerror(r));
    return 0;
}

static int take_name(struct tls_identity *identity, gnutls_session_t session,
                     enum tls_endpoint endpoint, struct error *error)
{
    unsigned count = 0;
    const gnutls_datum_t *chain;
    const char *user;

    if (identity->kind == TLS_X509) {
        chain = gnutls_certificate_get_peers(session, &count);
        if (chain && count > 0)
            return take_certificate(identity, &chain[0], error);
    } else if (identity->kind == TLS_PSK && endpoint == TLS_SERVER) {
        user = gnutls_psk_server_get_username(session);
        if (!user)
            return error_set(error, EINVAL, "the session has no user name");
        identity->name = strdup(user);
        return 0;
    }
    identity->name = strdup("");
    return 0;
}

int tls_peer_init(struct tls_peer *peer, gnutls_session_t session, enum tls_kind kind,
                  enum tls_endpoint endpoint, struct error *error)
{
    char *description = gnutls_session_get_desc(session);
    int err;

    *peer = (struct tls_peer){.identity = {.kind = kind}};
    peer->identity.session = strdup(description ? description : "TLS");
    gnutls_free(description);
    err = take_name(&peer->identity, session, endpoint, error);
    if (err == 0 && (!peer->identity.name || !peer->identity.session))
        err = error_set_errno(error, ENOMEM, "Could not keep the peer's name");
    return err;
}

void tls_peer_fini(struct tls_peer *peer)
{
    struct tls_identity *identity = &peer->identity;

    free((void *)(uintptr_t)identity->name);
    free((void *)(uintptr_t)identity->session);
    for (unsigned i = 0; i < identity->alt_name_count; i++)
        free((void *)(uintptr_t)identity->alt_names[i]);
    *peer = (struct tls_peer){0};
}
