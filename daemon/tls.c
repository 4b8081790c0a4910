/* SPDX-License-Identifier: BSD-3-Clause */
/* Where nbd/'s table of TLS functions meets tls/. */
#include "daemon/tls.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct stream *start(void *arg, struct stream *inner)
{
    struct daemon_tls *tls = arg;

    return tls_stream_new(tls->credentials, tls->hostname, inner);
}

static int handshake(void *arg, struct stream *stream, unsigned *ret_wait, struct error *error)
{
    const struct daemon_tls *tls = arg;
    int err = tls_stream_handshake(stream, ret_wait, error);
    struct error said;

    /* The protocol has no words for it. */
    if (err != -ECONNABORTED || tls_credentials_kind(tls->credentials) != TLS_PSK ||
        tls_credentials_endpoint(tls->credentials) != TLS_CLIENT)
        return err;
    said = *error;
    return error_set(error, ECONNABORTED,
                     "%s; perhaps the server does not know the name of this client, or has another "
                     "key for it",
                     said.text);
}

static const char *alert(void *arg, const struct stream *stream)
{
    return tls_stream_alert(stream);
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
        /* A name with its own backslashes, to be used in rules as it is shown. */
        snprintf(out, out_size, "TLS %s, as '%s'", identity->session,
                 error_printable(name, sizeof(name), identity->name, strlen(identity->name)));
    else
        snprintf(out, out_size, "TLS %s", identity->session);
    return out;
}

struct tls_credentials_config daemon_tls_config(const struct arguments *arguments)
{
    bool client = arguments->action == ACTION_LIST;

    return (struct tls_credentials_config){
        .kind = arguments->tls_psk ? TLS_PSK : TLS_X509,
        .endpoint = client ? TLS_CLIENT : TLS_SERVER,
        .dir = arguments->tls_certificates,
        .psk_file = arguments->tls_psk,
        .verify_peer = client || arguments->tls_verify_peer,
        .sanity_check = true,
        .username = arguments->tls_username,
    };
}

/* What a client knows of the name of a server, when it verifies its certificate. */
static int set_hostname(struct daemon_tls *tls, const struct arguments *a,
                        const struct objects *objects, struct error *error)
{
    const struct tls_credentials_config own = daemon_tls_config(a), *config = &own;
    int err = a->tls_creds ? objects_tls_config(objects, a->tls_creds, &config, error) : 0;

    if (err < 0 || config->kind != TLS_X509 || !config->verify_peer)
        return err;
    tls->hostname = a->tls_hostname ? a->tls_hostname : a->bind ? a->bind : "localhost";
    if (a->socket && !a->tls_hostname)
        return error_set(error, EINVAL,
                         "No hostname for certificate validation: give --tls-hostname, the name "
                         "that the certificate of the server behind '%s' is for",
                         a->socket);
    return 0;
}

static int take_credentials(struct daemon_tls *tls, const struct arguments *a,
                            const struct objects *objects, struct error *error)
{
    const struct tls_credentials_config config = daemon_tls_config(a);

    if (a->tls_creds)
        return objects_tls(objects, a->tls_creds, config.endpoint, &tls->credentials, error);
    return tls_credentials_new(&config, &tls->credentials, error);
}

int daemon_tls_init(struct daemon_tls *tls, const struct arguments *arguments,
                    const struct objects *objects, struct error *error)
{
    const struct arguments *a = arguments;
    int err;

    tls->table = (struct nbd_tls){
        .required = a->tls != TLS_USE_ON,
        .arg = tls,
        .start = start,
        .handshake = handshake,
        .describe = describe,
        .alert = alert,
        .identify = identify,
    };
    if (a->tls == TLS_USE_OFF || (!a->tls_creds && !a->tls_certificates && !a->tls_psk))
        return 0;
    err = take_credentials(tls, a, objects, error);
    if (err == 0 && a->action == ACTION_LIST)
        err = set_hostname(tls, a, objects, error);
    return err;
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
