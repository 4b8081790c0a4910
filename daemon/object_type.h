/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Types of objects, a row each, inside of daemon/.
 *
 *   objects.c         texts to objects, their order, looking them up
 *   object_secret.c   secret, secret_keyring
 *   object_authz.c    authz-*
 *   object_tls.c      tls-creds-*
 */
#ifndef EVNBD_DAEMON_OBJECT_TYPE_H
#define EVNBD_DAEMON_OBJECT_TYPE_H

#include "base/options.h"
#include "daemon/objects.h"

struct object;

enum object_family { OBJECT_SECRET, OBJECT_AUTHZ, OBJECT_TLS };

struct object_type {
    const char *name;
    enum object_family family; /* also their order */
    const struct option_row *rows;
    /* Makes the object out of its tree. */
    int (*make)(struct objects *objects, struct object *object, struct error *error);
};

struct object {
    struct list link;
    const struct object_type *type;
    char *id;
    json_t *tree; /* what was not taken yet */
    bool made;
    struct authz *authz;                 /* of OBJECT_AUTHZ */
    struct object_tls *tls;              /* of OBJECT_TLS: how they are described */
    struct tls_credentials *credentials; /* ... and they themselves, unless only that is wanted */
};

struct objects {
    struct list list; /* of struct object, as given */
    struct secret_store secrets;
    bool tls_described_only; /* no credentials are read */
};

extern const struct object_type object_types[]; /* ends with a row without a name */

extern const struct option_row object_secret_rows[], object_secret_keyring_rows[];
int object_make_secret(struct objects *objects, struct object *object, struct error *error);
int object_make_secret_keyring(struct objects *objects, struct object *object, struct error *error);

extern const struct option_row object_authz_simple_rows[], object_authz_list_rows[],
    object_authz_list_file_rows[], object_authz_pam_rows[];
int object_make_authz_simple(struct objects *objects, struct object *object, struct error *error);
int object_make_authz_list(struct objects *objects, struct object *object, struct error *error);
int object_make_authz_list_file(struct objects *objects, struct object *object,
                                struct error *error);
int object_make_authz_pam(struct objects *objects, struct object *object, struct error *error);

extern const struct option_row object_tls_x509_rows[], object_tls_psk_rows[],
    object_tls_anon_rows[];
const struct tls_credentials_config *object_tls_config(const struct object *object);
void object_tls_free(struct object *object);
int object_make_tls_x509(struct objects *objects, struct object *object, struct error *error);
int object_make_tls_psk(struct objects *objects, struct object *object, struct error *error);
int object_make_tls_anon(struct objects *objects, struct object *object, struct error *error);

/* Takes the properties of the object by its rows, and refuses what is left over. */
int object_take(struct object *object, void *target, struct error *error);
/* The same message for every property that cannot be left out. */
int object_missing(const char *property, struct error *error);

#endif
