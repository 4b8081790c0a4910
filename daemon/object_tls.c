/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects that are TLS credentials. */
#include "daemon/object_type.h"
#include "tls/credentials.h"

#include <errno.h>
#include <stdlib.h>

struct object_tls {
    char *dir, *priority, *passwordid, *username;
    int endpoint;
    bool verify_peer, sanity_check;
    struct tls_credentials_config config; /* its strings are those above */
};

static const char *const endpoint_words[] = {
    [TLS_SERVER] = "server", [TLS_CLIENT] = "client", NULL};

#define ENDPOINT_ROWS                                                                              \
    {"endpoint", OPTION_ENUM, offsetof(struct object_tls, endpoint), endpoint_words,               \
     "whose credentials (default client)"},                                                        \
        {"priority", OPTION_STRING, offsetof(struct object_tls, priority), NULL,                   \
         "GnuTLS priority string"},

const struct option_row object_tls_x509_rows[] = {
    {"dir", OPTION_STRING, offsetof(struct object_tls, dir), NULL, "directory of the *.pem files"},
    ENDPOINT_ROWS{"verify-peer", OPTION_BOOL, offsetof(struct object_tls, verify_peer), NULL,
                  "want a certificate from the peer (default on)"},
    {"sanity-check", OPTION_BOOL, offsetof(struct object_tls, sanity_check), NULL,
     "refuse what peers would (default on)"},
    {"passwordid", OPTION_STRING, offsetof(struct object_tls, passwordid), NULL,
     "secret that decrypts the private key"},
    {NULL},
};

const struct option_row object_tls_psk_rows[] = {
    {"dir", OPTION_STRING, offsetof(struct object_tls, dir), NULL, "directory of keys.psk"},
    ENDPOINT_ROWS{"username", OPTION_STRING, offsetof(struct object_tls, username), NULL,
                  "of a client (default " TLS_PSK_USERNAME ")"},
    {"verify-peer", OPTION_BOOL, offsetof(struct object_tls, verify_peer), NULL, "of no effect"},
    {NULL},
};

const struct option_row object_tls_anon_rows[] = {
    {"dir", OPTION_STRING, offsetof(struct object_tls, dir), NULL, "of no effect"},
    ENDPOINT_ROWS{"verify-peer", OPTION_BOOL, offsetof(struct object_tls, verify_peer), NULL,
                  "of no effect"},
    {NULL},
};

static int find_password(const struct objects *objects, const char *id, const struct secret **ret,
                         struct error *error)
{
    *ret = id ? secret_store_find(&objects->secrets, id) : NULL;
    if (!id || *ret)
        return 0;
    return error_set(error, ENOENT, "No secret with id '%s'", id);
}

static int set_config(const struct objects *objects, struct object_tls *tls, enum tls_kind kind,
                      struct error *error)
{
    if (!tls->dir && kind != TLS_ANON)
        return error_set(error, EINVAL, "Missing 'dir' property value");
    tls->config = (struct tls_credentials_config){
        .kind = kind,
        .endpoint = (enum tls_endpoint)tls->endpoint,
        .dir = kind == TLS_ANON ? NULL : tls->dir,
        .verify_peer = tls->verify_peer,
        .priority = tls->priority,
        .sanity_check = tls->sanity_check,
        .username = tls->username,
    };
    return find_password(objects, tls->passwordid, &tls->config.key_password, error);
}

static int make_tls(struct objects *objects, struct object *object, enum tls_kind kind,
                    struct error *error)
{
    struct object_tls *tls = calloc(1, sizeof(*tls));
    int r;

    if (!tls)
        return error_set(error, ENOMEM, "out of memory");
    *tls = (struct object_tls){.endpoint = TLS_CLIENT, .verify_peer = true, .sanity_check = true};
    object->tls = tls;
    r = object_take(object, tls, error);
    if (r == 0)
        r = set_config(objects, tls, kind, error);
    if (r < 0 || objects->tls_described_only)
        return r;
    return tls_credentials_new(&tls->config, &object->credentials, error);
}

const struct tls_credentials_config *object_tls_config(const struct object *object)
{
    return &object->tls->config;
}

void object_tls_free(struct object *object)
{
    tls_credentials_unref(object->credentials);
    if (object->tls)
        options_release(object->type->rows, object->tls);
    free(object->tls);
}

int object_make_tls_x509(struct objects *objects, struct object *object, struct error *error)
{
    return make_tls(objects, object, TLS_X509, error);
}

int object_make_tls_psk(struct objects *objects, struct object *object, struct error *error)
{
    return make_tls(objects, object, TLS_PSK, error);
}

int object_make_tls_anon(struct objects *objects, struct object *object, struct error *error)
{
    return make_tls(objects, object, TLS_ANON, error);
}
