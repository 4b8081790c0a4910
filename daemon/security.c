/* SPDX-License-Identifier: BSD-3-Clause */
/* From options to objects, and from objects to what the server is told. */
#include "daemon/security.h"

#include "tls/authz.h"

#include <errno.h>
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

static int ask(void *arg, const char *name, nbd_answered *answered, void *answered_arg,
               void **ret_question)
{
    struct authz_question *question = NULL;
    int r = authz_ask(arg, name, answered, answered_arg, &question);

    *ret_question = question;
    return r;
}

static void forget(void *question)
{
    authz_forget(question);
}

static int set_authorization(const struct security *security, const char *id,
                             struct export_access *access, struct error *error)
{
    if (!id)
        return 0;
    access->authorizer = (struct nbd_authorizer){
        .arg = objects_authz(security->objects, id, error), .ask = ask, .forget = forget};
    if (!access->authorizer.arg)
        return -EINVAL;
    access->rules.authorizer = &access->authorizer;
    return 0;
}

int security_access(const struct security *security, const struct arguments *arguments,
                    struct export_access *ret, struct error *error)
{
    int err;

    nbd_access_init(&ret->rules);
    err = read_rules(&ret->rules, &arguments->allowed, error);
    if (err == 0)
        err = set_authorization(security, arguments->tls_authz, ret, error);
    return err;
}

int security_open(struct security *security, const struct arguments *arguments, struct error *error)
{
    int err;

    *security = (struct security){0};
    err = objects_new(&arguments->objects, &security->objects, error);
    if (err == 0)
        err = daemon_tls_init(&security->tls, arguments, security->objects, error);
    return err;
}

void security_close(struct security *security)
{
    daemon_tls_fini(&security->tls);
    objects_free(security->objects);
    security->objects = NULL;
}
