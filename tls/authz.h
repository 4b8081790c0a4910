/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who is allowed: a decision about the name that a TLS handshake has proved (struct tls_identity):
 * a distinguished name, or the user name of a pre-shared key.
 *
 * Of the four kinds, a list is in authz_list.c and PAM in authz_pam.c; the rest is in authz.c. Each
 * constructor copies what it is given; *ret is freed by authz_free().  They return 0, or negative
 * errno with a sentence.
 */
#ifndef EVNBD_TLS_AUTHZ_H
#define EVNBD_TLS_AUTHZ_H

#include "base/error.h"
#include "base/options.h"

#include <stdbool.h>

struct authz;
struct authz_question;

/* Allows this one name. */
int authz_simple_new(const char *identity, struct authz **ret, struct error *error);

/*
 * Decides by the first rule that matches, else by the policy.  `tree` (what it takes is taken out):
 * "policy" (allow, deny; default deny) and "rules", an array of objects of "match", "policy" and
 * "format" (exact, the default, or glob, where * stands for any text and ? for one byte).
 */
int authz_list_new(json_t *tree, struct authz **ret, struct error *error);

/*
 * The same from a file of JSON.  Only a regular file of at most TLS_FILE_BYTES_MAX (tls/files.h) is
 * taken.  With `refresh` each decision looks whether it has changed; a new state of it that is bad
 * is logged once, and the old one stays; it also stays while a long one is parsed, which needs the
 * loop.
 */
int authz_list_file_new(const char *filename, bool refresh, struct authz **ret,
                        struct error *error);

/*
 * Asks PAM whether there is an account of that name for this service; that may take its time.
 * -ENOTSUP: built without PAM.
 */
int authz_pam_new(const char *service, struct authz **ret, struct error *error);

/* Waits for the decision. `identity` NULL or "": nothing was proved, which is never allowed. */
bool authz_allows(const struct authz *authz, const char *identity);

/*
 * The same without waiting: 1 (yes), 0 (no), or -EINPROGRESS, and answered(arg, yes) is called
 * later, from the loop; until then authz_forget(*ret_question) can be.  Then authz may be freed
 * before.  -ENOMEM.
 */
int authz_ask(const struct authz *authz, const char *identity,
              void (*answered)(void *arg, bool yes), void *arg,
              struct authz_question **ret_question);
/* Its answer is not wanted any more. */
void authz_forget(struct authz_question *question);
void authz_free(struct authz *authz); /* NULL is fine */

#endif
