/* SPDX-License-Identifier: BSD-3-Clause */
/* The action --tls-check. */
#include "daemon/tls_check.h"

#include "base/checked.h"
#include "daemon/objects.h"
#include "daemon/tls.h"
#include "tls/check.h"

#include <errno.h>

struct printer {
    struct tls_check check;
    FILE *out;
};

static void print(struct tls_check *check, bool good, const char *sentence)
{
    fprintf(container_of(check, struct printer, check)->out, "%s: %s\n", good ? "ok" : "problem",
            sentence);
}

/* The credentials that would be used; those of an object live as long as it. */
static int find_config(const struct arguments *arguments, const struct objects *objects,
                       struct tls_credentials_config *ret, struct error *error)
{
    const struct tls_credentials_config *described;
    int err;

    *ret = daemon_tls_config(arguments);
    if (!arguments->tls_creds)
        return 0;
    err = objects_tls_config(objects, arguments->tls_creds, &described, error);
    if (err == 0)
        *ret = *described;
    return err;
}

static int check(const struct arguments *arguments, const struct objects *objects, FILE *out,
                 struct error *error)
{
    struct printer printer = {.check = {.tell = print}, .out = out};
    struct tls_credentials_config config;
    int err = find_config(arguments, objects, &config, error);

    if (err == 0 && arguments->tls_authz && !objects_authz(objects, arguments->tls_authz, error))
        err = -EINVAL;
    if (err < 0)
        return err;
    tls_check(&printer.check, &config, arguments->tls_hostname);
    if (printer.check.problems == 0)
        return 0;
    return error_set(error, EINVAL, "TLS is not set up right; problems found: %u",
                     printer.check.problems);
}

int tls_check_run(const struct arguments *arguments, FILE *out, struct error *error)
{
    struct objects *objects;
    int err = objects_new_described(&arguments->objects, &objects, error);

    if (err < 0)
        return err;
    err = check(arguments, objects, out, error);
    objects_free(objects);
    return err;
}
