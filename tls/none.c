/* SPDX-License-Identifier: BSD-3-Clause */
/* In place of the rest of tls/ in a build without GnuTLS: there are no credentials to be had. */
#include "tls/check.h"
#include "tls/credentials.h"
#include "tls/tls_stream.h"

#include <errno.h>

int tls_credentials_new(const struct tls_credentials_config *config, struct tls_credentials **ret,
                        struct error *error)
{
    return error_set(error, ENOTSUP, "TLS is not supported: this program was built without GnuTLS");
}

struct tls_credentials *tls_credentials_ref(struct tls_credentials *credentials)
{
    return credentials;
}

enum tls_kind tls_credentials_kind(const struct tls_credentials *credentials)
{
    return TLS_ANON;
}

void tls_credentials_unref(struct tls_credentials *credentials)
{
}

enum tls_endpoint tls_credentials_endpoint(const struct tls_credentials *credentials)
{
    return TLS_SERVER;
}

struct stream *tls_stream_new(struct tls_credentials *credentials, const char *hostname,
                              struct stream *inner)
{
    return NULL;
}

int tls_stream_handshake(struct stream *stream, unsigned *ret_wait, struct error *error)
{
    return error_set(error, ENOTSUP, "TLS is not supported");
}

const struct tls_identity *tls_stream_identity(const struct stream *stream)
{
    static const struct tls_identity nobody = {.name = "", .session = ""};

    return &nobody;
}

const char *tls_stream_alert(const struct stream *stream)
{
    return NULL;
}

void tls_check(struct tls_check *check, const struct tls_credentials_config *config,
               const char *hostname)
{
    check->problems++;
    check->tell(check, false, "TLS is not supported: this program was built without GnuTLS");
}
