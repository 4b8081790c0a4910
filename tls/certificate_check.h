/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What peers would refuse in our certificates, found before they have to.  Inside of tls/.
 */
#ifndef EVNBD_TLS_CERTIFICATE_CHECK_H
#define EVNBD_TLS_CERTIFICATE_CHECK_H

#include "tls/credentials.h"
#include "tls/files.h"

#include <gnutls/x509.h>

/* The certificates of one file. */
struct tls_chain {
    const struct tls_file *file;
    gnutls_x509_crt_t *certificates;
    unsigned count; /* 0: the file is missing */
};

/* Whoever wants to know of problems; embedded. */
struct tls_problems {
    void (*found)(struct tls_problems *problems, const char *sentence);
};

/* Makes the first problem the error; after it `any` says whether there was one. */
struct tls_first_problem {
    struct tls_problems problems;
    struct error *error;
    bool any;
};
struct tls_first_problem tls_first_problem(struct error *error);

/* Reads PEM; needs no free on failure. */
int tls_chain_read(struct tls_chain *chain, const struct tls_file *file, struct error *error);
void tls_chain_free(struct tls_chain *chain); /* a zeroed one is fine */

/* Tells all problems of both (`ca` may be empty), and of both together. */
void tls_chains_check(const struct tls_chain *own, const struct tls_chain *ca,
                      enum tls_endpoint endpoint, struct tls_problems *problems);

#endif
