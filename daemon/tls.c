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
    return tls_stream_handshake(stream, ret_wait, error);
}

static void identify(void *arg, const struct stream *stream, struct nbd_identity *identity)
{
    static const enum nbd_identity_proof proofs[] = {
        [TLS_X509] = NBD_PROOF_CERTIFICATE,
        [TLS_PSK] = NBD_PROOF_KEY,
        [TLS_ANON] = NBD_PROOF_NONE,
    };
    const struct tls_identity *proved = tls_stream_identity(stream);

    if (!proved->name[0] && proved->alt_name_count == 0)
        return;
    identity->proof = proofs[proved->kind];
    identity->name = proved->name[0] ? proved->name : NULL;
    identity->alt_names = proved->alt_names;
    identity->alt_name_count = proved->alt_name_count;
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

struct tls_credentials_config daemon_tls_config(const struct arguments *arguments)
{
    return (struct tls_credentials_config){
        .kind = arguments->tls_psk ? TLS_PSK : TLS_X509,
        .endpoint = TLS_SERVER,
        .dir = arguments->tls_certificates,
        .psk_file = arguments->tls_psk,
        .verify_peer = arguments->tls_verify_peer,
        .sanity_check = true,
    };
}

int daemon_tls_init(struct daemon_tls *tls, const struct arguments *arguments,
                    const struct objects *objects, struct error *error)
{
    const struct arguments *a = arguments;
    const struct tls_credentials_config config = daemon_tls_config(a);

    tls->table = (struct nbd_tls){
        .required = a->tls != TLS_USE_ON,
        .arg = tls,
        .start = start,
        .handshake = handshake,
        .describe = describe,
        .identify = identify,
    };
    if (a->tls == TLS_USE_OFF)
        return 0;
    if (a->tls_creds)
        return objects_tls(objects, a->tls_creds, TLS_SERVER, &tls->credentials, error);
    if (!a->tls_certificates && !a->tls_psk)
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
