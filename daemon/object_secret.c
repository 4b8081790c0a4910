/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects that are secrets. */
#include "daemon/object_type.h"
#include "tls/secret_object.h"

static const char *const format_words[] = {"raw", "base64", NULL};

#define WRITTEN_ROWS                                                                               \
    {"format", OPTION_ENUM, offsetof(struct secret_object, format), format_words,                  \
     "how it is written (default raw)"},                                                           \
        {"keyid", OPTION_STRING, offsetof(struct secret_object, keyid), NULL,                      \
         "secret of 32 bytes it is encrypted with"},                                               \
        {"iv", OPTION_STRING, offsetof(struct secret_object, iv), NULL,                            \
         "initialization vector of that, in base64"},

const struct option_row object_secret_rows[] = {
    {"data", OPTION_STRING, offsetof(struct secret_object, data), NULL, "the secret itself"},
    {"file", OPTION_STRING, offsetof(struct secret_object, file), NULL,
     "file that holds it, as a whole"},
    WRITTEN_ROWS{NULL},
};

const struct option_row object_secret_keyring_rows[] = {
    {"serial", OPTION_NUMBER, offsetof(struct secret_object, serial), NULL,
     "number of the key in the kernel's keyring"},
    WRITTEN_ROWS{NULL},
};

static int make_secret(struct objects *objects, struct object *object,
                       struct secret_object *settings, struct error *error)
{
    int r = object_take(object, settings, error);

    if (r == 0)
        r = secret_object_load(settings, object->id, &objects->secrets, error);
    secret_object_fini(settings);
    return r;
}

int object_make_secret(struct objects *objects, struct object *object, struct error *error)
{
    struct secret_object settings = {.format = SECRET_RAW};

    return make_secret(objects, object, &settings, error);
}

int object_make_secret_keyring(struct objects *objects, struct object *object, struct error *error)
{
    struct secret_object settings = {.in_keyring = true};

    if (!json_object_get(object->tree, "serial"))
        return object_missing("serial", error);
    return make_secret(objects, object, &settings, error);
}
