/* SPDX-License-Identifier: BSD-3-Clause */
/* What a session wants of the peer's certificate. */
#include "tls/verification.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

static gnutls_typed_vdata_st wanted(gnutls_vdata_types_t type, const char *text)
{
    return (gnutls_typed_vdata_st){type, (uint8_t *)(uintptr_t)text, 0};
}

/* Addresses are not for the server name indication: RFC 6066, section 3. */
static bool is_address(const char *hostname)
{
    struct in6_addr room;

    return inet_pton(AF_INET, hostname, &room) == 1 || inet_pton(AF_INET6, hostname, &room) == 1;
}

bool tls_verification_init(struct tls_verification *v, gnutls_session_t session,
                           const struct tls_credentials_config *config, const char *hostname)
{
    bool server = config->endpoint == TLS_SERVER;

    v->hostname = hostname;
    v->wanted[0] = wanted(GNUTLS_DT_KEY_PURPOSE_OID,
                          server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER);
    v->wanted[1] = wanted(GNUTLS_DT_DNS_HOSTNAME, hostname);
    if (server)
        gnutls_certificate_server_set_request(session, config->verify_peer ? GNUTLS_CERT_REQUIRE
                                                                           : GNUTLS_CERT_IGNORE);
    else if (hostname && !is_address(hostname) &&
             gnutls_server_name_set(session, GNUTLS_NAME_DNS, hostname, strlen(hostname)) < 0)
        return false;
    if (config->verify_peer)
        gnutls_session_set_verify_cert2(session, v->wanted, hostname ? 2 : 1, 0);
    return true;
}

int tls_verification_failed(const struct tls_verification *v, gnutls_session_t session,
                            struct error *error)
{
    unsigned status = gnutls_session_get_verify_cert_status(session);
    gnutls_datum_t text = {0};
    char shown[300];
    int err;

    if (v->hostname && status & GNUTLS_CERT_UNEXPECTED_OWNER)
        return error_set(error, EACCES,
                         "the peer's certificate is not accepted: it is not for the name '%s'",
                         error_escape(shown, sizeof(shown), v->hostname, strlen(v->hostname)));
    gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
    err = error_set(error, EACCES, "the peer's certificate is not accepted: %s",
                    text.data ? (const char *)text.data : "it cannot be verified");
    gnutls_free(text.data);
    return err;
}
