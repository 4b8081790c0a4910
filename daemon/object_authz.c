/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects that decide about the name that a TLS client has proved. */
#include "daemon/object_type.h"
#include "tls/authz.h"

struct settings {
    char *identity, *filename, *service;
    bool refresh;
};

const struct option_row object_authz_simple_rows[] = {
    {"identity", OPTION_STRING, offsetof(struct settings, identity), NULL,
     "the name that is allowed"},
    {NULL},
};

/* Only described here: authz_list_new() takes them. */
const struct option_row object_authz_list_rows[] = {
    {"policy", OPTION_STRING, 0, NULL, "allow or deny (default), if no rule matches"},
    {"rules", OPTION_LIST, 0, NULL, "rules.N.match, rules.N.policy, .format"},
    {NULL},
};

const struct option_row object_authz_list_file_rows[] = {
    {"filename", OPTION_STRING, offsetof(struct settings, filename), NULL,
     "file with policy and rules in JSON"},
    {"refresh", OPTION_BOOL, offsetof(struct settings, refresh), NULL,
     "read it again when it changes (default on)"},
    {NULL},
};

const struct option_row object_authz_pam_rows[] = {
    {"service", OPTION_STRING, offsetof(struct settings, service), NULL,
     "PAM service whose accounts are allowed"},
    {NULL},
};

int object_make_authz_simple(struct objects *objects, struct object *object, struct error *error)
{
    struct settings settings = {0};
    int r = object_take(object, &settings, error);

    if (r == 0 && !settings.identity)
        r = object_missing("identity", error);
    if (r == 0)
        r = authz_simple_new(settings.identity, &object->authz, error);
    options_release(object->type->rows, &settings);
    return r;
}

int object_make_authz_list(struct objects *objects, struct object *object, struct error *error)
{
    return authz_list_new(object->tree, &object->authz, error);
}

int object_make_authz_list_file(struct objects *objects, struct object *object, struct error *error)
{
    struct settings settings = {.refresh = true};
    int r = object_take(object, &settings, error);

    if (r == 0 && !settings.filename)
        r = object_missing("filename", error);
    if (r == 0)
        r = authz_list_file_new(settings.filename, settings.refresh, &object->authz, error);
    options_release(object->type->rows, &settings);
    return r;
}

int object_make_authz_pam(struct objects *objects, struct object *object, struct error *error)
{
    struct settings settings = {0};
    int r = object_take(object, &settings, error);

    if (r == 0 && !settings.service)
        r = object_missing("service", error);
    if (r == 0)
        r = authz_pam_new(settings.service, &object->authz, error);
    options_release(object->type->rows, &settings);
    return r;
}
