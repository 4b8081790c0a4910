/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects: what --object describes and other options refer to by id: secrets, authorizations, TLS
 * credentials.  They are made in the order of need, whatever the order on the command line: secrets
 * first, and of these first the ones that others are encrypted with.
 */
#ifndef EVNBD_DAEMON_OBJECTS_H
#define EVNBD_DAEMON_OBJECTS_H

#include "base/secret.h"
#include "daemon/cli.h"
#include "tls/credentials.h"

struct authz;
struct objects;

/*
 * Makes the objects that the values of --object describe ("TYPE,id=ID,..." or JSON); their files
 * are read here.  Negative errno with a sentence.
 */
int objects_new(const struct cli_list *values, struct objects **ret, struct error *error);
/* The same, but TLS credentials are not read: for those who look at them before they are used. */
int objects_new_described(const struct cli_list *values, struct objects **ret, struct error *error);
void objects_free(struct objects *objects); /* NULL is fine */

/* The secrets; valid while the objects live. */
const struct secret_store *objects_secrets(const struct objects *objects);
/* The authorization of this id; NULL: there is none, with a sentence. */
struct authz *objects_authz(const struct objects *objects, const char *id, struct error *error);
/* The TLS credentials of this id, with a reference for the caller, if they are for that side. */
int objects_tls(const struct objects *objects, const char *id, enum tls_endpoint endpoint,
                struct tls_credentials **ret, struct error *error);
/* How the TLS credentials of this id are described; valid while the objects live. */
int objects_tls_config(const struct objects *objects, const char *id,
                       const struct tls_credentials_config **ret, struct error *error);

/* Whether the value of --object asks for help: "help", or "TYPE,help". */
bool objects_help_wanted(const char *value);
/* The types that there are, separated by commas. */
void objects_print_types(FILE *out);
/* Prints the types, or the properties of one type. */
void objects_print_help(const char *value, FILE *out);

#endif
