/* SPDX-License-Identifier: BSD-3-Clause */
/* Where the server's table of TLS functions meets tls/. */
#include "daemon/tls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct stream *start(void *arg, struct stream *inner)
{
    struct daemon_tls *tls = arg;

    return tls_stream_new(tls->credentials, NULL, inner);
}

static int handshake(void *arg, struct stream *stream, unsigned *ret_wait, struct error *error)
{
    struct daemon_tls *tls = arg;
    char name[200];
    const char *who;
    int err = tls_stream_handshake(stream, ret_wait, error);

    if (err < 0 || !tls->allows || tls->allows(tls->allows_arg, tls_stream_identity(stream)))
        return err;
    who = tls_stream_identity(stream)->name;
    return error_set(error, EACCES, "'%s' is not authorized",
                     error_escape(name, sizeof(name), who, strlen(who)));
}

static const char *describe(void *arg, const struct stream *stream, char *out, size_t out_size)
{
    const struct tls_identity *identity = tls_stream_identity(stream);
    char name[120];

    if (identity->name[0])
        snprintf(out, out_size, "TLS %s, as '%s'", identity->session,
                 error_escape(name, sizeof(name), identity->name, strlen(identity->name)));
    else
        snprintf(out, out_size, "TLS %s", identity->session);
    return out;
}

int daemon_tls_init(struct daemon_tls *tls, const struct arguments *arguments, struct error *error)
{
    const struct arguments *a = arguments;
    const struct tls_credentials_config config = {
        .kind = a->tls_psk ? TLS_PSK : TLS_X509,
        .endpoint = TLS_SERVER,
        .dir = a->tls_certificates,
        .psk_file = a->tls_psk,
        .verify_peer = a->tls_verify_peer,
        .sanity_check = true,
    };

    tls->table = (struct nbd_tls){
        .required = a->tls != TLS_USE_ON,
        .arg = tls,
        .start = start,
        .handshake = handshake,
        .describe = describe,
    };
    if (a->tls == TLS_USE_OFF || (!a->tls_certificates && !a->tls_psk))
        return 0;
    return tls_credentials_new(&config, &tls->credentials, error);
}

void daemon_tls_fini(struct daemon_tls *tls)
{
    tls_credentials_unref(tls->credentials);
    tls->credentials = NULL;
}

const struct nbd_tls *daemon_tls_table(const struct daemon_tls *tls)
{
    return tls->credentials ? &tls->table : NULL;
}
