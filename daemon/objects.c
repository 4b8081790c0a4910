/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table of types, and from the values of --object to objects.  All values are parsed and their
 * ids checked before the first object is made, so that a slip in the last of them is found before
 * files are read.
 */
#include "daemon/objects.h"

#include "daemon/object_type.h"
#include "tls/authz.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct object_type object_types[] = {
    {"authz-list", OBJECT_AUTHZ, object_authz_list_rows, object_make_authz_list},
    {"authz-list-file", OBJECT_AUTHZ, object_authz_list_file_rows, object_make_authz_list_file},
    {"authz-pam", OBJECT_AUTHZ, object_authz_pam_rows, object_make_authz_pam},
    {"authz-simple", OBJECT_AUTHZ, object_authz_simple_rows, object_make_authz_simple},
    {"secret", OBJECT_SECRET, object_secret_rows, object_make_secret},
    {"secret_keyring", OBJECT_SECRET, object_secret_keyring_rows, object_make_secret_keyring},
    {"tls-creds-anon", OBJECT_TLS, object_tls_anon_rows, object_make_tls_anon},
    {"tls-creds-psk", OBJECT_TLS, object_tls_psk_rows, object_make_tls_psk},
    {"tls-creds-x509", OBJECT_TLS, object_tls_x509_rows, object_make_tls_x509},
    {NULL},
};

static const struct object_type *find_type(const char *name, size_t length)
{
    for (const struct object_type *type = object_types; type->name; type++) {
        if (strlen(type->name) == length && memcmp(type->name, name, length) == 0)
            return type;
    }
    return NULL;
}

static struct object *find_object(const struct objects *objects, const char *id)
{
    list_for_each(it, &objects->list)
    {
        struct object *object = list_entry(it, struct object, link);

        if (strcmp(object->id, id) == 0)
            return object;
    }
    return NULL;
}

int object_take(struct object *object, void *target, struct error *error)
{
    int r = options_take(object->tree, object->type->rows, target, object->type->name, error);

    return r < 0 ? r : options_finish(object->tree, object->type->rows, object->type->name, error);
}

int object_missing(const char *property, struct error *error)
{
    return error_set(error, EINVAL, "Parameter '%s' is missing", property);
}

/* ---- Parsing ---- */

struct heading {
    char *type, *id;
};

static const struct option_row heading_rows[] = {
    {"qom-type", OPTION_STRING, offsetof(struct heading, type), NULL, "type"},
    {"id", OPTION_STRING, offsetof(struct heading, id), NULL, "name"},
    {NULL},
};

static bool is_identifier(const char *text)
{
    if (!isalpha((unsigned char)*text) || !isascii((unsigned char)*text))
        return false;
    while (isascii((unsigned char)*text) &&
           (isalnum((unsigned char)*text) || (*text && strchr("-._", *text))))
        text++;
    return *text == '\0';
}

static int unknown_type(const char *name, struct error *error)
{
    char types[256], shown[80];
    size_t used = 0;

    for (const struct object_type *type = object_types; type->name && used < sizeof(types); type++)
        used += (size_t)snprintf(types + used, sizeof(types) - used, "%s%s", used ? ", " : "",
                                 type->name);
    return error_set(error, EINVAL,
                     "Parameter 'qom-type' does not accept value '%s'; types of objects: %s",
                     error_escape(shown, sizeof(shown), name, strlen(name)), types);
}

static int check_heading(const struct objects *objects, const struct heading *heading,
                         struct error *error)
{
    if (!heading->type)
        return object_missing("qom-type", error);
    if (!find_type(heading->type, strlen(heading->type)))
        return unknown_type(heading->type, error);
    if (!heading->id)
        return object_missing("id", error);
    if (!is_identifier(heading->id))
        return error_set(error, EINVAL,
                         "Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', "
                         "starting with a letter");
    if (find_object(objects, heading->id))
        return error_set(error, EEXIST, "there are two objects with the id '%s'", heading->id);
    return 0;
}

/* Takes the id and, if it succeeds, the reference to the tree. */
static int add_object(struct objects *objects, struct heading *heading, json_t *tree,
                      struct error *error)
{
    struct object *object = calloc(1, sizeof(*object));

    if (!object)
        return error_set(error, ENOMEM, "out of memory");
    object->type = find_type(heading->type, strlen(heading->type));
    object->id = heading->id;
    heading->id = NULL;
    object->tree = json_incref(tree);
    list_append(&objects->list, &object->link);
    return 0;
}

static int parse_object(struct objects *objects, const char *value, struct error *error)
{
    struct heading heading = {0};
    json_t *tree;
    int r = *value == '{' ? options_parse_json(value, "The object's properties", &tree, error)
                          : options_parse(value, "qom-type", &tree, error);

    if (r < 0)
        return r;
    r = options_take(tree, heading_rows, &heading, "an object", error);
    if (r == 0)
        r = check_heading(objects, &heading, error);
    if (r == 0)
        r = add_object(objects, &heading, tree, error);
    options_release(heading_rows, &heading);
    json_decref(tree);
    return r;
}

/* ---- Making ---- */

static int make(struct objects *objects, struct object *object, struct error *error)
{
    int r = object->type->make(objects, object, error);

    object->made = true;
    if (r < 0)
        error_prefix(error, "Object '%s': ", object->id);
    return r;
}

/* Whether the object has to wait for the secret that it is encrypted with. */
static bool waits(const struct objects *objects, const struct object *object)
{
    const char *keyid = json_string_value(json_object_get(object->tree, "keyid"));
    const struct object *key = keyid ? find_object(objects, keyid) : NULL;

    return object->type->family == OBJECT_SECRET && key && !key->made &&
           key->type->family == OBJECT_SECRET;
}

/* Makes those of the family that can be made; *ret_made counts them. */
static int make_round(struct objects *objects, enum object_family family, unsigned *ret_made,
                      struct error *error)
{
    int r = 0;

    *ret_made = 0;
    list_for_each(it, &objects->list)
    {
        struct object *object = list_entry(it, struct object, link);

        if (object->type->family != family || object->made || waits(objects, object))
            continue;
        r = make(objects, object, error);
        if (r < 0)
            return r;
        ++*ret_made;
    }
    return 0;
}

static int refuse_circle(const struct objects *objects, struct error *error)
{
    list_for_each(it, &objects->list)
    {
        const struct object *object = list_entry(it, struct object, link);

        if (!object->made)
            return error_set(error, ELOOP,
                             "Object '%s': the secrets that it is encrypted with need each other",
                             object->id);
    }
    return 0;
}

static int make_all(struct objects *objects, struct error *error)
{
    unsigned made;
    int r;

    for (int family = OBJECT_SECRET; family <= OBJECT_TLS; family++) {
        do {
            r = make_round(objects, (enum object_family)family, &made, error);
        } while (r == 0 && made > 0);
        if (r < 0)
            return r;
    }
    return refuse_circle(objects, error);
}

static int new_objects(const struct cli_list *values, bool tls_described_only, struct objects **ret,
                       struct error *error)
{
    struct objects *objects = calloc(1, sizeof(*objects));
    int r = 0;

    if (!objects)
        return error_set(error, ENOMEM, "out of memory");
    list_init(&objects->list);
    secret_store_init(&objects->secrets);
    objects->tls_described_only = tls_described_only;
    for (size_t i = 0; i < values->count && r == 0; i++)
        r = parse_object(objects, values->items[i], error);
    if (r == 0)
        r = make_all(objects, error);
    if (r < 0)
        objects_free(objects);
    else
        *ret = objects;
    return r;
}

int objects_new(const struct cli_list *values, struct objects **ret, struct error *error)
{
    return new_objects(values, false, ret, error);
}

int objects_new_described(const struct cli_list *values, struct objects **ret, struct error *error)
{
    return new_objects(values, true, ret, error);
}

void objects_free(struct objects *objects)
{
    struct list *node;

    if (!objects)
        return;
    while ((node = list_pop(&objects->list))) {
        struct object *object = list_entry(node, struct object, link);

        authz_free(object->authz);
        object_tls_free(object);
        json_decref(object->tree);
        free(object->id);
        free(object);
    }
    secret_store_fini(&objects->secrets);
    free(objects);
}

/* ---- Looking up ---- */

const struct secret_store *objects_secrets(const struct objects *objects)
{
    return &objects->secrets;
}

struct authz *objects_authz(const struct objects *objects, const char *id, struct error *error)
{
    const struct object *object = find_object(objects, id);
    char shown[80];

    error_escape(shown, sizeof(shown), id, strlen(id));
    if (!object)
        error_set(error, ENOENT, "No authorization with id '%s'", shown);
    else if (!object->authz)
        error_set(error, EINVAL, "Object with id '%s' is not an authorization", shown);
    return object ? object->authz : NULL;
}

static int find_tls(const struct objects *objects, const char *id, const struct object **ret,
                    struct error *error)
{
    char shown[80];

    error_escape(shown, sizeof(shown), id, strlen(id));
    *ret = find_object(objects, id);
    if (!*ret)
        return error_set(error, ENOENT, "Failed to get TLS creds: No TLS credentials with id '%s'",
                         shown);
    if ((*ret)->type->family != OBJECT_TLS)
        return error_set(error, EINVAL,
                         "Failed to get TLS creds: Object with id '%s' is not TLS credentials",
                         shown);
    return 0;
}

int objects_tls(const struct objects *objects, const char *id, enum tls_endpoint endpoint,
                struct tls_credentials **ret, struct error *error)
{
    const struct object *object;
    int r = find_tls(objects, id, &object, error);

    if (r < 0)
        return r;
    if (tls_credentials_endpoint(object->credentials) != endpoint)
        return error_set(error, EINVAL,
                         "Failed to get TLS creds: Expected TLS credentials for a %s endpoint",
                         endpoint == TLS_SERVER ? "server" : "client");
    *ret = tls_credentials_ref(object->credentials);
    return 0;
}

int objects_tls_config(const struct objects *objects, const char *id,
                       const struct tls_credentials_config **ret, struct error *error)
{
    const struct object *object;
    int r = find_tls(objects, id, &object, error);

    if (r == 0)
        *ret = object_tls_config(object);
    return r;
}

/* ---- Help ---- */

bool objects_help_wanted(const char *value)
{
    const char *comma = strrchr(value, ',');
    const char *last = comma ? comma + 1 : value;

    return strcmp(last, "help") == 0 || strcmp(last, "?") == 0;
}

void objects_print_types(FILE *out)
{
    for (const struct object_type *type = object_types; type->name; type++)
        fprintf(out, "%s%s", type == object_types ? "" : ",", type->name);
}

void objects_print_help(const char *value, FILE *out)
{
    const struct object_type *type = find_type(value, strcspn(value, ","));

    if (type) {
        fprintf(out, "%s options:\n", type->name);
        options_print(out, type->rows);
        return;
    }
    fprintf(out, "List of user creatable objects:\n");
    for (type = object_types; type->name; type++)
        fprintf(out, "  %s\n", type->name);
}
