/* SPDX-License-Identifier: BSD-3-Clause */
/* From options to objects, and from objects to what the server is told. */
#include "daemon/security.h"

#include <string.h>

static int read_rules(struct nbd_access *access, const struct cli_list *rules, struct error *error)
{
    char shown[80];

    for (size_t i = 0; i < rules->count; i++) {
        const char *rule = rules->items[i];
        int err = nbd_access_add_text(access, rule, error);

        if (err < 0) {
            error_prefix(error, "Invalid access rule '%s': ",
                         error_escape(shown, sizeof(shown), rule, strlen(rule)));
            return err;
        }
    }
    return 0;
}

int security_open(struct security *security, const struct arguments *arguments, struct error *error)
{
    int err;

    *security = (struct security){0};
    nbd_access_init(&security->access);
    err = objects_new(&arguments->objects, &security->objects, error);
    return err < 0 ? err : read_rules(&security->access, &arguments->allowed, error);
}

void security_close(struct security *security)
{
    nbd_access_fini(&security->access);
    objects_free(security->objects);
    security->objects = NULL;
}
