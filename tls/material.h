/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Credentials as GnuTLS has them: one state of the files, shared by the sessions that began with
 * it.  Inside of tls/.
 */
#ifndef EVNBD_TLS_MATERIAL_H
#define EVNBD_TLS_MATERIAL_H

#include "tls/credentials.h"
#include "tls/files.h"
#include "tls/psk_table.h"

#include <gnutls/gnutls.h>
#include <time.h>

enum { TLS_FILE_CA, TLS_FILE_CRL, TLS_FILE_CERTIFICATE, TLS_FILE_KEY, TLS_FILE_PSK, TLS_FILES };

struct tls_material {
    unsigned references;
    gnutls_credentials_type_t type;
    void *gnutls; /* the credentials of that type */
    enum tls_endpoint endpoint;
    struct psk_table keys; /* PSK server */
    time_t crl_overdue;    /* when a list of revoked certificates should have been replaced, or 0 */
};

/*
 * credentials.c: says which files there are, in an array of TLS_FILES zeroed ones, whose paths are
 * freed by the caller.  False: out of memory.
 */
bool tls_files_name(struct tls_file *files, const struct tls_credentials_config *config);

/* Reads the files that are used. On failure they have no data. */
int tls_files_read(struct tls_file *files, struct error *error);
void tls_files_drop(struct tls_file *files);
/*
 * Makes it of what was read, with one reference.  Looks at nothing else, so that it can be done in
 * a worker: a bundle of certificates takes longer than clients should wait.
 */
int tls_material_new(const struct tls_credentials_config *config, const struct tls_file *files,
                     struct tls_material **ret, struct error *error);
struct tls_material *tls_material_ref(struct tls_material *material);
void tls_material_unref(struct tls_material *material); /* NULL is fine */

/*
 * credentials.c: the newest good state of the files, with a reference for the caller.  NULL: it is
 * being made, ask again a little later.
 */
struct tls_material *tls_credentials_material(struct tls_credentials *credentials);
const struct tls_credentials_config *
tls_credentials_config(const struct tls_credentials *credentials);
gnutls_priority_t tls_credentials_priority(const struct tls_credentials *credentials);

/* certificate_check.c: what peers would refuse in these certificates (PEM; `ca` may be empty). */
int tls_certificates_check(enum tls_endpoint endpoint, const struct tls_file *certificate,
                           const struct tls_file *ca, struct error *error);

#endif
