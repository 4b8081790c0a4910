/* SPDX-License-Identifier: BSD-3-Clause */
/* What the command line says about secrets and about who is let in, ready to be used. */
#ifndef EVNBD_DAEMON_SECURITY_H
#define EVNBD_DAEMON_SECURITY_H

#include "daemon/arguments.h"
#include "daemon/objects.h"
#include "daemon/tls.h"
#include "nbd/access.h"

/* Who may use an export. Stays where it is. */
struct export_access {
    struct nbd_access rules;
    struct nbd_authorizer authorizer;
};

struct security {
    struct objects *objects;
    struct daemon_tls tls;
};

/* For serving: makes the objects and reads the credentials; security_close() in any case. */
int security_open(struct security *security, const struct arguments *arguments,
                  struct error *error);
/*
 * Who may use an export: the rules and the authorization that `arguments` name.  `security`
 * outlives *ret; nbd_access_fini() of its rules in any case.  Negative errno with a sentence.
 */
int security_access(const struct security *security, const struct arguments *arguments,
                    struct export_access *ret, struct error *error);
/* When no export uses the authorizations, and no image the secrets, any more. */
void security_close(struct security *security);

#endif
