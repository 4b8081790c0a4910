/* SPDX-License-Identifier: BSD-3-Clause */
/* Asking any kind of authorization, and the kind that knows one name. */
#include "tls/authz.h"

#include "base/checked.h"
#include "tls/authz_kind.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct simple {
    struct authz authz;
    char *identity;
};

static bool simple_allows(const struct authz *authz, const char *identity)
{
    return strcmp(container_of(authz, struct simple, authz)->identity, identity) == 0;
}

static void simple_free(struct authz *authz)
{
    struct simple *simple = container_of(authz, struct simple, authz);

    free(simple->identity);
    free(simple);
}

int authz_simple_new(const char *identity, struct authz **ret, struct error *error)
{
    struct simple *simple = calloc(1, sizeof(*simple));

    if (!simple)
        return error_set(error, ENOMEM, "out of memory");
    simple->authz = (struct authz){.allows = simple_allows, .free = simple_free};
    simple->identity = strdup(identity);
    if (!simple->identity) {
        free(simple);
        return error_set(error, ENOMEM, "out of memory");
    }
    *ret = &simple->authz;
    return 0;
}

bool authz_allows(const struct authz *authz, const char *identity)
{
    return identity && *identity && authz->allows(authz, identity);
}

void authz_free(struct authz *authz)
{
    if (authz)
        authz->free(authz);
}
