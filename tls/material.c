/* SPDX-License-Identifier: BSD-3-Clause */
/* From files to what GnuTLS wants to be given. */
#include "tls/material.h"

#include "base/log.h"
#include "base/sys.h"
#include "tls/certificate_check.h"
#include "tls/revocation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

/* Chains that peers may send: a server that is shown more would verify for others' amusement. */
#define PEER_KEY_BITS_MAX 8192
#define PEER_CHAIN_MAX 8

static gnutls_datum_t datum_of(const struct tls_file *file)
{
    return (gnutls_datum_t){.data = file->data, .size = (unsigned)file->length};
}

static int no_memory(struct error *error)
{
    return error_set_errno(error, ENOMEM, "Could not make TLS credentials");
}

static int bad_file(const struct tls_file *file, int r, struct error *error)
{
    return error_set(error, EINVAL, "Unable to use %s '%s': %s", file->label, file->path,
                     gnutls_strerror(r));
}

/* ---- X.509 ---- */

static int check_crl(struct tls_material *m, const struct tls_file *files, struct error *error)
{
    struct tls_first_problem first = tls_first_problem(error);
    struct tls_revocation revocation;
    struct tls_chain cas = {0};
    int err = tls_revocation_read(&revocation, &files[TLS_FILE_CRL], error);

    if (err == 0)
        err = tls_chain_read(&cas, &files[TLS_FILE_CA], error);
    if (err == 0) {
        tls_revocation_check(&revocation, &cas, &first.problems);
        m->crl_overdue = tls_revocation_overdue(&revocation);
    }
    tls_chain_free(&cas);
    tls_revocation_free(&revocation);
    return first.any ? -EINVAL : err;
}

static int load_trust(struct tls_material *m, const struct tls_file *files, struct error *error)
{
    const struct tls_file *ca = &files[TLS_FILE_CA], *crl = &files[TLS_FILE_CRL];
    const gnutls_datum_t cas = datum_of(ca), revoked = datum_of(crl);
    int r;

    if (ca->data) {
        r = gnutls_certificate_set_x509_trust_mem(m->gnutls, &cas, GNUTLS_X509_FMT_PEM);
        if (r <= 0)
            return bad_file(ca, r < 0 ? r : GNUTLS_E_NO_CERTIFICATE_FOUND, error);
    }
    if (!crl->data)
        return 0;
    r = check_crl(m, files, error);
    if (r < 0)
        return r;
    r = gnutls_certificate_set_x509_crl_mem(m->gnutls, &revoked, GNUTLS_X509_FMT_PEM);
    return r > 0 ? 0 : bad_file(crl, r < 0 ? r : GNUTLS_E_NO_CERTIFICATE_FOUND, error);
}

/* First, since GnuTLS 3.7 loses memory when it is given a certificate with a key and cannot read
 * it. */
static int check_readable(const struct tls_file *certificate, struct error *error)
{
    const gnutls_datum_t pem = datum_of(certificate);
    gnutls_x509_crt_t *chain;
    unsigned count;
    int r = gnutls_x509_crt_list_import2(&chain, &count, &pem, GNUTLS_X509_FMT_PEM, 0);

    if (r < 0)
        return bad_file(certificate, r, error);
    for (unsigned i = 0; i < count; i++)
        gnutls_x509_crt_deinit(chain[i]);
    gnutls_free(chain);
    return 0;
}

static int load_key(gnutls_certificate_credentials_t x509, const struct tls_file *files,
                    const struct secret *password, struct error *error)
{
    const struct tls_file *certificate = &files[TLS_FILE_CERTIFICATE], *key = &files[TLS_FILE_KEY];
    const gnutls_datum_t chain = datum_of(certificate), secret = datum_of(key);
    int r = gnutls_certificate_set_x509_key_mem2(x509, &chain, &secret, GNUTLS_X509_FMT_PEM,
                                                 password ? (const char *)password->data : NULL, 0);

    if (r >= 0)
        return 0;
    if (r == GNUTLS_E_CERTIFICATE_KEY_MISMATCH)
        return error_set(error, EINVAL,
                         "The private key '%s' does not belong to the certificate '%s'", key->path,
                         certificate->path);
    if (r == GNUTLS_E_DECRYPTION_FAILED && !password)
        return error_set(error, EINVAL, "The private key '%s' is encrypted: give its password",
                         key->path);
    if (r == GNUTLS_E_DECRYPTION_FAILED)
        return error_set(error, EINVAL, "The password does not decrypt the private key '%s'",
                         key->path);
    return error_set(error, EINVAL, "Unable to use the certificate '%s' with the key '%s': %s",
                     certificate->path, key->path, gnutls_strerror(r));
}

static int load_x509(struct tls_material *m, const struct tls_credentials_config *config,
                     const struct tls_file *files, struct error *error)
{
    gnutls_certificate_credentials_t x509;
    int err;

    if (gnutls_certificate_allocate_credentials(&x509) < 0)
        return no_memory(error);
    m->type = GNUTLS_CRD_CERTIFICATE;
    m->gnutls = x509;
    gnutls_certificate_set_verify_limits(x509, PEER_KEY_BITS_MAX, PEER_CHAIN_MAX);
    err = load_trust(m, files, error);
    if (err < 0 || !files[TLS_FILE_CERTIFICATE].data)
        return err;
    if (!files[TLS_FILE_KEY].data)
        return error_set(error, ENOENT, "There is a certificate '%s', but no private key '%s'",
                         files[TLS_FILE_CERTIFICATE].path, files[TLS_FILE_KEY].path);
    err = check_readable(&files[TLS_FILE_CERTIFICATE], error);
    if (err == 0)
        err = load_key(x509, files, config->key_password, error);
    if (err < 0 || !config->sanity_check)
        return err;
    return tls_certificates_check(config->endpoint, &files[TLS_FILE_CERTIFICATE],
                                  &files[TLS_FILE_CA], error);
}

/* ---- Pre-shared keys ---- */

/*
 * Asked by GnuTLS for the key of a user.  One that is not known gets a key that nobody has, so that
 * the handshake fails in the same place as with a wrong key, and names cannot be tried out.
 */
static int key_of_user(gnutls_session_t session, const gnutls_datum_t *username,
                       gnutls_datum_t *ret)
{
    const struct tls_material *m = gnutls_session_get_ptr(session);
    const struct psk_key *key = psk_table_find(&m->keys, username->data, username->size);
    size_t length = key ? key->length : 32;

    ret->data = gnutls_malloc(length);
    if (!ret->data)
        return -1;
    ret->size = (unsigned)length;
    if (key)
        memcpy(ret->data, key->key, length);
    else if (sys->random(ret->data, length) < 0)
        return -1;
    return 0;
}

static int load_psk_server(struct tls_material *m, struct error *error)
{
    gnutls_psk_server_credentials_t psk;

    if (gnutls_psk_allocate_server_credentials(&psk) < 0)
        return no_memory(error);
    m->type = GNUTLS_CRD_PSK;
    m->gnutls = psk;
    gnutls_psk_set_server_credentials_function2(psk, key_of_user);
    return 0;
}

/* A file of a client's own has one key, whose name need not be told. */
static const char *psk_client_name(const struct tls_material *m,
                                   const struct tls_credentials_config *config)
{
    if (config->username)
        return config->username;
    return config->psk_file && m->keys.count == 1 ? m->keys.keys[0].name : TLS_PSK_USERNAME;
}

static int load_psk_client(struct tls_material *m, const struct tls_credentials_config *config,
                           const struct tls_file *file, struct error *error)
{
    const char *name = psk_client_name(m, config);
    const struct psk_key *key = psk_table_find(&m->keys, name, strlen(name));
    gnutls_psk_client_credentials_t psk;
    gnutls_datum_t datum;

    if (!key)
        return error_set(error, ENOENT, "There is no key of the user '%s' in '%s'", name,
                         file->path);
    if (gnutls_psk_allocate_client_credentials(&psk) < 0)
        return no_memory(error);
    m->type = GNUTLS_CRD_PSK;
    m->gnutls = psk;
    datum = (gnutls_datum_t){(uint8_t *)(uintptr_t)key->key, (unsigned)key->length};
    if (gnutls_psk_set_client_credentials(psk, name, &datum, GNUTLS_PSK_KEY_RAW) < 0)
        return no_memory(error);
    return 0;
}

static int load_psk(struct tls_material *m, const struct tls_credentials_config *config,
                    const struct tls_file *file, struct error *error)
{
    int err = psk_table_parse(&m->keys, file->path, file->data, file->length, error);

    if (err < 0)
        return err;
    if (config->endpoint == TLS_SERVER)
        return load_psk_server(m, error);
    return load_psk_client(m, config, file, error);
}

/* ---- Anonymous ---- */

static int load_anon_server(struct tls_material *m, struct error *error)
{
    gnutls_anon_server_credentials_t anon;

    if (gnutls_anon_allocate_server_credentials(&anon) < 0)
        return no_memory(error);
    m->type = GNUTLS_CRD_ANON;
    m->gnutls = anon;
    if (gnutls_anon_set_server_known_dh_params(anon, GNUTLS_SEC_PARAM_MEDIUM) < 0)
        return no_memory(error);
    return 0;
}

static int load_anon(struct tls_material *m, struct error *error)
{
    gnutls_anon_client_credentials_t anon;

    if (m->endpoint == TLS_SERVER)
        return load_anon_server(m, error);
    if (gnutls_anon_allocate_client_credentials(&anon) < 0)
        return no_memory(error);
    m->type = GNUTLS_CRD_ANON;
    m->gnutls = anon;
    return 0;
}

/* ---- All of them ---- */

void tls_files_drop(struct tls_file *files)
{
    for (int i = 0; i < TLS_FILES; i++)
        tls_file_drop(&files[i]);
}

int tls_files_read(struct tls_file *files, struct error *error)
{
    for (int i = 0; i < TLS_FILES; i++) {
        struct error warning;
        int err = files[i].path ? tls_file_read(&files[i], error) : 0;

        if (err < 0) {
            tls_files_drop(files);
            return err;
        }
        if (!tls_file_is_secret(&files[i], &warning))
            log_warning("%s", warning.text);
    }
    return 0;
}

static int load(struct tls_material *m, const struct tls_credentials_config *config,
                const struct tls_file *files, struct error *error)
{
    switch (config->kind) {
    case TLS_X509:
        return load_x509(m, config, files, error);
    case TLS_PSK:
        return load_psk(m, config, &files[TLS_FILE_PSK], error);
    default:
        return load_anon(m, error);
    }
}

int tls_material_new(const struct tls_credentials_config *config, const struct tls_file *files,
                     struct tls_material **ret, struct error *error)
{
    struct tls_material *m = calloc(1, sizeof(*m));
    int err;

    if (!m)
        return no_memory(error);
    m->references = 1;
    m->endpoint = config->endpoint;
    err = load(m, config, files, error);
    if (err < 0) {
        tls_material_unref(m);
        return err;
    }
    *ret = m;
    return 0;
}

struct tls_material *tls_material_ref(struct tls_material *material)
{
    material->references++;
    return material;
}

static void free_gnutls(struct tls_material *m)
{
    bool server = m->endpoint == TLS_SERVER;

    if (!m->gnutls)
        return;
    if (m->type == GNUTLS_CRD_CERTIFICATE)
        gnutls_certificate_free_credentials(m->gnutls);
    else if (m->type == GNUTLS_CRD_PSK && server)
        gnutls_psk_free_server_credentials(m->gnutls);
    else if (m->type == GNUTLS_CRD_PSK)
        gnutls_psk_free_client_credentials(m->gnutls);
    else if (server)
        gnutls_anon_free_server_credentials(m->gnutls);
    else
        gnutls_anon_free_client_credentials(m->gnutls);
}

void tls_material_unref(struct tls_material *material)
{
    if (!material || --material->references > 0)
        return;
    free_gnutls(material);
    psk_table_fini(&material->keys);
    free(material);
}
