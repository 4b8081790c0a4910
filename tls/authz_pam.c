/* SPDX-License-Identifier: BSD-3-Clause */
/* Authorization by PAM: the account stack of a service is asked about the name; no password is. */
#include "tls/authz.h"

#include "base/checked.h"
#include "config.h"
#include "tls/authz_kind.h"

#include <errno.h>

#ifdef HAVE_PAM

#include <security/pam_appl.h>
#include <stdlib.h>
#include <string.h>

struct pam {
    struct authz authz;
    char *service;
};

/* There is nobody to ask: a module that wants to know more fails. */
static int converse(int count, const struct pam_message **messages, struct pam_response **responses,
                    void *arg)
{
    return PAM_CONV_ERR;
}

static bool look_up(const char *service, const char *identity)
{
    const struct pam_conv conversation = {.conv = converse};
    pam_handle_t *handle;
    int r = pam_start(service, identity, &conversation, &handle);

    if (r != PAM_SUCCESS)
        return false;
    r = pam_acct_mgmt(handle, PAM_SILENT);
    pam_end(handle, r);
    return r == PAM_SUCCESS;
}

static void pam_free(struct authz *authz)
{
    struct pam *pam = container_of(authz, struct pam, authz);

    free(pam->service);
    free(pam);
}

int authz_pam_new(const char *service, struct authz **ret, struct error *error)
{
    struct pam *pam = calloc(1, sizeof(*pam));

    if (!pam)
        return error_set(error, ENOMEM, "out of memory");
    pam->service = strdup(service);
    pam->authz = (struct authz){.look_up = look_up, .service = pam->service, .free = pam_free};
    if (!pam->service) {
        free(pam);
        return error_set(error, ENOMEM, "out of memory");
    }
    *ret = &pam->authz;
    return 0;
}

#else

int authz_pam_new(const char *service, struct authz **ret, struct error *error)
{
    return error_set(error, ENOTSUP,
                     "authorization by PAM is not in this build, which was made without libpam");
}

#endif
