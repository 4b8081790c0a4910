/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The checks of --tls-check.  What the daemon refuses itself is found by the functions that it
 * uses; here is what it lets pass, and the telling.
 */
#include "tls/check.h"

#include "base/checked.h"
#include "tls/certificate_check.h"
#include "tls/dates.h"
#include "tls/material.h"
#include "tls/psk_table.h"
#include "tls/revocation.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/abstract.h>

/* Below that, a key can be guessed by those who want it. */
#define PSK_BYTES_SAFE 16
#define DAY_SECONDS 86400
#define DAYS_SOON 14

/* One look at one set of credentials. */
struct look {
    struct tls_problems problems; /* what tls_chains_check() finds */
    struct tls_check *check;
    const struct tls_credentials_config *config;
    struct tls_file files[TLS_FILES];
    struct tls_chain own, ca;
};

static void tell(struct tls_check *check, bool good, const char *sentence)
{
    check->problems += !good;
    check->tell(check, good, sentence);
}

__attribute__((format(printf, 3, 4))) static void say(struct look *look, bool good,
                                                      const char *format, ...)
{
    char text[ERROR_TEXT_MAX], shown[ERROR_TEXT_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tell(look->check, good, error_printable(shown, sizeof(shown), text, strlen(text)));
}

static void on_problem(struct tls_problems *problems, const char *sentence)
{
    tell(container_of(problems, struct look, problems)->check, false, sentence);
}

/* ---- Files ---- */

static void read_file(struct look *look, struct tls_file *file)
{
    struct error error;

    if (!file->path)
        return;
    if (tls_file_read(file, &error) < 0 || !tls_file_is_secret(file, &error))
        tell(look->check, false, error.text);
}

static void read_chain(struct look *look, struct tls_chain *chain, const struct tls_file *file)
{
    struct error error;

    if (tls_chain_read(chain, file, &error) < 0)
        tell(look->check, false, error.text);
}

/* ---- Certificates ---- */

static const char *name_of(gnutls_x509_crt_t certificate, char *out, size_t size)
{
    if (gnutls_x509_crt_get_dn(certificate, out, &size) < 0)
        return "nobody";
    return out;
}

static const char *issuer_of(gnutls_x509_crt_t certificate, char *out, size_t size)
{
    if (gnutls_x509_crt_get_issuer_dn(certificate, out, &size) < 0)
        return "nobody";
    return out;
}

/* What it is, as far as it is of use for finding out what one has mixed up. */
static void describe(struct look *look, const struct tls_chain *chain)
{
    gnutls_x509_crt_t first = chain->certificates[0];
    const time_t end = gnutls_x509_crt_get_expiration_time(first);
    char name[256], issuer[256], day[TLS_DATE_MAX];
    unsigned bits = 0;
    int algorithm = gnutls_x509_crt_get_pk_algorithm(first, &bits);

    if (end < tls_now(NULL)) /* which tls_chains_check() tells as a problem */
        return;
    say(look, true, "%s '%s' is of '%s', issued by '%s', with a key %s of %u bits, good until %s",
        chain->file->label, chain->file->path, name_of(first, name, sizeof(name)),
        issuer_of(first, issuer, sizeof(issuer)),
        gnutls_pk_get_name((gnutls_pk_algorithm_t)algorithm), bits, tls_day(end, day));
}

static void check_soon(struct look *look, const struct tls_chain *chain)
{
    const time_t now = tls_now(NULL);
    const time_t end = gnutls_x509_crt_get_expiration_time(chain->certificates[0]);

    if (end > now && end - now < DAYS_SOON * DAY_SECONDS)
        say(look, true, "%s '%s' has to be renewed soon: it is good for %d more days",
            chain->file->label, chain->file->path, (int)((end - now) / DAY_SECONDS));
}

static void check_strength(struct look *look, const struct tls_chain *chain, unsigned index)
{
    gnutls_x509_crt_t one = chain->certificates[index];
    unsigned bits = 0;
    int algorithm = gnutls_x509_crt_get_pk_algorithm(one, &bits);
    int signature = gnutls_x509_crt_get_signature_algorithm(one);

    if (algorithm >= 0 && gnutls_pk_bits_to_sec_param((gnutls_pk_algorithm_t)algorithm, bits) <
                              GNUTLS_SEC_PARAM_MEDIUM)
        say(look, false,
            "the key of %s '%s' is weak: %s of %u bits; 2048 bits of RSA or 256 of an elliptic "
            "curve are the least",
            chain->file->label, chain->file->path,
            gnutls_pk_get_name((gnutls_pk_algorithm_t)algorithm), bits);
    /* Nobody relies on what a CA says about itself. */
    if (signature > 0 && gnutls_x509_crt_check_issuer(one, one) == 0 &&
        !gnutls_sign_is_secure2((gnutls_sign_algorithm_t)signature,
                                GNUTLS_SIGN_FLAG_SECURE_FOR_CERTS))
        say(look, false, "the signature of %s '%s' is weak: %s; clients are going to refuse it",
            chain->file->label, chain->file->path,
            gnutls_sign_get_name((gnutls_sign_algorithm_t)signature));
}

static void check_chain(struct look *look, const struct tls_chain *chain)
{
    if (chain->count == 0)
        return;
    describe(look, chain);
    check_soon(look, chain);
    for (unsigned i = 0; i < chain->count; i++)
        check_strength(look, chain, i);
}

/* RFC 5280 allows it when there are alternative names; not all programs do. */
static void check_subject(struct look *look)
{
    const struct tls_chain *own = &look->own;
    char name[256];
    size_t size = sizeof(name);

    if (own->count == 0)
        return;
    if (gnutls_x509_crt_get_dn(own->certificates[0], name, &size) ==
        GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
        say(look, false,
            "%s '%s' has an empty subject, which QEMU and its tools refuse: make it with a common "
            "name (cn = \"%s\" in the template of certtool)",
            own->file->label, own->file->path,
            look->config->endpoint == TLS_SERVER ? "HOST" : "NAME");
}

static void check_hostname(struct look *look, const char *hostname)
{
    const struct tls_chain *own = &look->own;

    if (!hostname || own->count == 0)
        return;
    if (gnutls_x509_crt_check_hostname(own->certificates[0], hostname))
        say(look, true, "%s '%s' is for '%s'", own->file->label, own->file->path, hostname);
    else
        say(look, false, "%s '%s' is not for '%s': clients that connect to that name refuse it",
            own->file->label, own->file->path, hostname);
}

/* ---- The private key ---- */

static const char *password_of(const struct look *look)
{
    const struct secret *password = look->config->key_password;

    return password ? (const char *)password->data : NULL;
}

static bool same_key(gnutls_x509_crt_t certificate, gnutls_privkey_t key)
{
    unsigned char of_certificate[64], of_key[64];
    size_t size = sizeof(of_certificate), key_size = sizeof(of_key);
    gnutls_pubkey_t public_key;
    bool same = false;

    if (gnutls_pubkey_init(&public_key) < 0)
        return false;
    if (gnutls_pubkey_import_privkey(public_key, key, 0, 0) >= 0 &&
        gnutls_pubkey_get_key_id(public_key, GNUTLS_KEYID_USE_SHA256, of_key, &key_size) >= 0 &&
        gnutls_x509_crt_get_key_id(certificate, GNUTLS_KEYID_USE_SHA256, of_certificate, &size) >=
            0)
        same = size == key_size && memcmp(of_certificate, of_key, size) == 0;
    gnutls_pubkey_deinit(public_key);
    return same;
}

static void tell_unreadable_key(struct look *look, int r)
{
    const char *path = look->files[TLS_FILE_KEY].path;

    if (r != GNUTLS_E_DECRYPTION_FAILED)
        say(look, false, "Unable to use the private key '%s': %s", path, gnutls_strerror(r));
    else if (password_of(look))
        say(look, false, "The password does not decrypt the private key '%s'", path);
    else
        say(look, false, "The private key '%s' is encrypted: give its password", path);
}

static void check_key(struct look *look)
{
    const struct tls_file *file = &look->files[TLS_FILE_KEY];
    const gnutls_datum_t pem = {file->data, (unsigned)file->length};
    gnutls_privkey_t key;
    int r;

    if (!file->data || gnutls_privkey_init(&key) < 0)
        return;
    r = gnutls_privkey_import_x509_raw(key, &pem, GNUTLS_X509_FMT_PEM, password_of(look), 0);
    if (r < 0)
        tell_unreadable_key(look, r);
    else if (look->own.count > 0 && same_key(look->own.certificates[0], key))
        say(look, true, "the private key '%s' belongs to the certificate", file->path);
    else if (look->own.count > 0)
        say(look, false, "The private key '%s' does not belong to the certificate '%s'", file->path,
            look->own.file->path);
    gnutls_privkey_deinit(key);
}

/* ---- Revocation ---- */

static void check_revoked(struct look *look, const struct tls_revocation *revocation)
{
    const time_t overdue = tls_revocation_overdue(revocation);
    const char *path = revocation->file->path;
    char day[TLS_DATE_MAX];

    if (overdue != 0)
        say(look, false, "the revocation list '%s' should have been replaced by a newer one on %s",
            path, tls_day(overdue, day));
    if (look->own.count > 0 &&
        gnutls_x509_crt_check_revocation(look->own.certificates[0],
                                         (const gnutls_x509_crl_t *)revocation->lists,
                                         revocation->count) == 1)
        say(look, false, "%s '%s' was revoked, says '%s'", look->own.file->label,
            look->own.file->path, path);
}

static void check_crl(struct look *look)
{
    struct tls_revocation revocation;
    struct error error;

    if (tls_revocation_read(&revocation, &look->files[TLS_FILE_CRL], &error) < 0) {
        tell(look->check, false, error.text);
        return;
    }
    tls_revocation_check(&revocation, &look->ca, &look->problems);
    if (revocation.count > 0)
        check_revoked(look, &revocation);
    tls_revocation_free(&revocation);
}

static void say_who_is_let_in(struct look *look)
{
    if (look->config->endpoint == TLS_SERVER && look->config->verify_peer)
        say(look, true, "only clients with a certificate of the CA are let in");
    else if (look->config->endpoint == TLS_SERVER)
        say(look, true,
            "clients need no certificate: everybody is let in whom nothing else keeps out");
}

static void check_x509(struct look *look, const char *hostname)
{
    read_chain(look, &look->own, &look->files[TLS_FILE_CERTIFICATE]);
    read_chain(look, &look->ca, &look->files[TLS_FILE_CA]);
    check_chain(look, &look->own);
    check_chain(look, &look->ca);
    tls_chains_check(&look->own, &look->ca, look->config->endpoint, &look->problems);
    check_key(look);
    check_crl(look);
    check_subject(look);
    check_hostname(look, hostname);
    say_who_is_let_in(look);
}

/* ---- Pre-shared keys ---- */

static void check_psk(struct look *look)
{
    const struct tls_file *file = &look->files[TLS_FILE_PSK];
    struct psk_table table;
    struct error error;

    if (!file->data)
        return;
    if (psk_table_parse(&table, file->path, file->data, file->length, &error) < 0) {
        tell(look->check, false, error.text);
        return;
    }
    say(look, true, "pre-shared keys in '%s': %zu", file->path, table.count);
    for (size_t i = 0; i < table.count; i++) {
        if (table.keys[i].length < PSK_BYTES_SAFE)
            say(look, false,
                "the pre-shared key of '%s' is weak: it has %zu bits; %d are the least",
                table.keys[i].name, 8 * table.keys[i].length, 8 * PSK_BYTES_SAFE);
    }
    psk_table_fini(&table);
}

/* ---- All of it ---- */

static void look_around(struct look *look, const char *hostname)
{
    if (!tls_files_name(look->files, look->config)) {
        say(look, false, "out of memory");
        return;
    }
    for (int i = 0; i < TLS_FILES; i++)
        read_file(look, &look->files[i]);
    if (look->config->kind == TLS_X509)
        check_x509(look, hostname);
    else if (look->config->kind == TLS_PSK)
        check_psk(look);
    else
        say(look, true,
            "anonymous credentials encrypt, but whoever can change what goes over the network can "
            "read it all the same");
}

/* What was not found by looking at parts. */
static void try_all(struct look *look)
{
    struct tls_credentials *credentials;
    struct error error;

    if (tls_credentials_new(look->config, &credentials, &error) < 0)
        tell(look->check, false, error.text);
    else
        tls_credentials_unref(credentials);
}

void tls_check(struct tls_check *check, const struct tls_credentials_config *config,
               const char *hostname)
{
    struct look look = {.problems = {.found = on_problem}, .check = check, .config = config};

    look_around(&look, hostname);
    if (check->problems == 0)
        try_all(&look);
    tls_chain_free(&look.own);
    tls_chain_free(&look.ca);
    for (int i = 0; i < TLS_FILES; i++) {
        tls_file_drop(&look.files[i]);
        free(look.files[i].path);
    }
}
