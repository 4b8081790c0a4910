/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects that are TLS credentials. */
#include "daemon/object_type.h"
#include "tls/credentials.h"

#include <errno.h>

struct settings {
    char *dir, *priority, *passwordid, *username;
    int endpoint;
    bool verify_peer, sanity_check;
};

static const char *const endpoint_words[] = {
    [TLS_SERVER] = "server", [TLS_CLIENT] = "client", NULL};

#define ENDPOINT_ROWS                                                                              \
    {"endpoint", OPTION_ENUM, offsetof(struct settings, endpoint), endpoint_words,                 \
     "whose credentials (default client)"},                                                        \
        {"priority", OPTION_STRING, offsetof(struct settings, priority), NULL,                     \
         "GnuTLS priority string"},

const struct option_row object_tls_x509_rows[] = {
    {"dir", OPTION_STRING, offsetof(struct settings, dir), NULL, "directory of the *.pem files"},
    ENDPOINT_ROWS{"verify-peer", OPTION_BOOL, offsetof(struct settings, verify_peer), NULL,
                  "want a certificate from the peer (default on)"},
    {"sanity-check", OPTION_BOOL, offsetof(struct settings, sanity_check), NULL,
     "refuse what peers would (default on)"},
    {"passwordid", OPTION_STRING, offsetof(struct settings, passwordid), NULL,
     "secret that decrypts the private key"},
    {NULL},
};

const struct option_row object_tls_psk_rows[] = {
    {"dir", OPTION_STRING, offsetof(struct settings, dir), NULL, "directory of keys.psk"},
    ENDPOINT_ROWS{"username", OPTION_STRING, offsetof(struct settings, username), NULL,
                  "of a client (default " TLS_PSK_USERNAME ")"},
    {"verify-peer", OPTION_BOOL, offsetof(struct settings, verify_peer), NULL, "of no effect"},
    {NULL},
};

const struct option_row object_tls_anon_rows[] = {
    {"dir", OPTION_STRING, offsetof(struct settings, dir), NULL, "of no effect"},
    ENDPOINT_ROWS{"verify-peer", OPTION_BOOL, offsetof(struct settings, verify_peer), NULL,
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

static int make_tls(struct objects *objects, struct object *object, enum tls_kind kind,
                    struct error *error)
{
    struct settings settings = {.endpoint = TLS_CLIENT, .verify_peer = true, .sanity_check = true};
    const struct secret *password = NULL;
    int r = object_take(object, &settings, error);

    if (r == 0 && !settings.dir && kind != TLS_ANON)
        r = error_set(error, EINVAL, "Missing 'dir' property value");
    if (r == 0)
        r = find_password(objects, settings.passwordid, &password, error);
    if (r == 0) {
        const struct tls_credentials_config config = {
            .kind = kind,
            .endpoint = (enum tls_endpoint)settings.endpoint,
            .dir = kind == TLS_ANON ? NULL : settings.dir,
            .verify_peer = settings.verify_peer,
            .priority = settings.priority,
            .sanity_check = settings.sanity_check,
            .username = settings.username,
            .key_password = password,
        };

        r = tls_credentials_new(&config, &object->credentials, error);
    }
    options_release(object->type->rows, &settings);
    return r;
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
