/* SPDX-License-Identifier: BSD-3-Clause */
/* What the command line says about secrets and about who is let in, ready to be used. */
#ifndef EVNBD_DAEMON_SECURITY_H
#define EVNBD_DAEMON_SECURITY_H

#include "daemon/arguments.h"
#include "daemon/objects.h"
#include "daemon/tls.h"
#include "nbd/access.h"

struct security {
    struct objects *objects;
    struct nbd_access access; /* of the export */
    struct nbd_authorizer authorizer;
    struct daemon_tls tls;
};

/* For serving: makes the objects, reads the rules and the credentials; security_close() in any
 * case. */
int security_open(struct security *security, const struct arguments *arguments,
                  struct error *error);
/* When no export uses the rules, and no image the secrets, any more. */
void security_close(struct security *security);

#endif
