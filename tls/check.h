/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Looking at credentials on behalf of somebody who sets up TLS: everything that is wrong, not only
 * what comes first, and what there is, in sentences.
 */
#ifndef EVNBD_TLS_CHECK_H
#define EVNBD_TLS_CHECK_H

#include "tls/credentials.h"

/* Embedded; who is told. */
struct tls_check {
    void (*tell)(struct tls_check *check, bool good, const char *sentence);
    unsigned problems; /* told so far */
};

/*
 * Opens what tls_credentials_new() would open, and tells what it finds.  Stricter than that: keys
 * that others can read, weak keys and signatures, and a `hostname` (NULL: any) that the certificate
 * is not for, are problems too.
 */
void tls_check(struct tls_check *check, const struct tls_credentials_config *config,
               const char *hostname);

#endif
