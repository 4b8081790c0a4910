/* SPDX-License-Identifier: BSD-3-Clause */
/* Lists of revoked certificates: whether they are what they claim to be.  Inside of tls/. */
#ifndef EVNBD_TLS_REVOCATION_H
#define EVNBD_TLS_REVOCATION_H

#include "tls/certificate_check.h"

#include <time.h>

/* The lists of one file. */
struct tls_revocation {
    const struct tls_file *file;
    gnutls_x509_crl_t *lists;
    unsigned count; /* 0: the file is missing */
};

/* Reads PEM; needs no free on failure. */
int tls_revocation_read(struct tls_revocation *revocation, const struct tls_file *file,
                        struct error *error);
void tls_revocation_free(struct tls_revocation *revocation); /* a zeroed one is fine */

/*
 * GnuTLS goes by any list that names the issuer of a certificate, whoever has signed it.  Tells
 * each list that no certificate of `ca` verifies (RFC 5280 section 6.3.3 (g)), and each that is
 * from the future.  CAs need no key usage for lists: many were made without, as long as nobody
 * looked.  With an empty `ca` nothing is verified by anything, and no list is a problem.
 */
void tls_revocation_check(const struct tls_revocation *revocation, const struct tls_chain *ca,
                          struct tls_problems *problems);

/* When the first list that is out of date should have been replaced; 0: none is. */
time_t tls_revocation_overdue(const struct tls_revocation *revocation);

#endif
