/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What peers would refuse in our certificates, found at the start instead of by each of them.
 */
#include "tls/material.h"

#include "base/sys.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include <gnutls/x509.h>

/* Certificates of one file. */
struct chain {
    const struct tls_file *file;
    gnutls_x509_crt_t *certificates;
    unsigned count;
};

static int chain_read(struct chain *chain, const struct tls_file *file, struct error *error)
{
    const gnutls_datum_t pem = {file->data, (unsigned)file->length};
    int r;

    *chain = (struct chain){.file = file};
    if (!file->data)
        return 0;
    r = gnutls_x509_crt_list_import2(&chain->certificates, &chain->count, &pem, GNUTLS_X509_FMT_PEM,
                                     0);
    if (r >= 0)
        return 0;
    return error_set(error, EINVAL, "Unable to use %s '%s': %s", file->label, file->path,
                     gnutls_strerror(r));
}

static void chain_free(struct chain *chain)
{
    for (unsigned i = 0; i < chain->count; i++)
        gnutls_x509_crt_deinit(chain->certificates[i]);
    gnutls_free(chain->certificates);
}

static int check_dates(gnutls_x509_crt_t certificate, const struct tls_file *file,
                       struct error *error)
{
    const time_t now = (time_t)(sys->realtime_ns() / INT64_C(1000000000));
    const time_t begin = gnutls_x509_crt_get_activation_time(certificate);
    const time_t end = gnutls_x509_crt_get_expiration_time(certificate);
    struct tm tm;
    char day[32];

    if (begin != (time_t)-1 && now < begin) {
        strftime(day, sizeof(day), "%F %T UTC", gmtime_r(&begin, &tm));
        return error_set(error, EINVAL, "Unable to use %s '%s': it is not valid before %s",
                         file->label, file->path, day);
    }
    if (end != (time_t)-1 && now > end) {
        strftime(day, sizeof(day), "%F %T UTC", gmtime_r(&end, &tm));
        return error_set(error, EINVAL, "Unable to use %s '%s': it has expired on %s", file->label,
                         file->path, day);
    }
    return 0;
}

static int check_is_ca(gnutls_x509_crt_t certificate, const struct tls_file *file, bool wanted,
                       struct error *error)
{
    unsigned critical;
    bool is_ca = gnutls_x509_crt_get_ca_status(certificate, &critical) > 0;

    if (is_ca == wanted)
        return 0;
    if (wanted)
        return error_set(error, EINVAL,
                         "Unable to use %s '%s': its basic constraints do not make it one of a CA",
                         file->label, file->path);
    return error_set(error, EINVAL,
                     "Unable to use %s '%s': its basic constraints make it one of a CA, which must "
                     "not be used for connections",
                     file->label, file->path);
}

/* Without the extension everything is allowed. */
static int check_usage(gnutls_x509_crt_t certificate, const struct tls_file *file, unsigned wanted,
                       const char *name, struct error *error)
{
    unsigned usage, critical;

    if (gnutls_x509_crt_get_key_usage(certificate, &usage, &critical) < 0 || usage & wanted)
        return 0;
    return error_set(error, EINVAL, "Unable to use %s '%s': its key usage does not permit %s",
                     file->label, file->path, name);
}

static int check_purpose(gnutls_x509_crt_t certificate, const struct tls_file *file,
                         enum tls_endpoint endpoint, struct error *error)
{
    const char *wanted =
        endpoint == TLS_SERVER ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT;
    unsigned critical;

    for (unsigned i = 0;; i++) {
        char oid[128];
        size_t size = sizeof(oid);
        int r = gnutls_x509_crt_get_key_purpose_oid(certificate, i, oid, &size, &critical);

        if (r == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE && i == 0)
            return 0;
        if (r == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
            break;
        if (r >= 0 && (strcmp(oid, wanted) == 0 || strcmp(oid, GNUTLS_KP_ANY) == 0))
            return 0;
    }
    return error_set(error, EINVAL, "Unable to use %s '%s': its purpose does not allow a TLS %s",
                     file->label, file->path, endpoint == TLS_SERVER ? "server" : "client");
}

static int check_issued_by(const struct chain *own, const struct chain *ca, struct error *error)
{
    gnutls_datum_t text = {0};
    unsigned status = 0;
    int err;

    if (ca->count == 0 ||
        (gnutls_x509_crt_list_verify(own->certificates, (int)own->count, ca->certificates,
                                     (int)ca->count, NULL, 0, 0, &status) >= 0 &&
         status == 0))
        return 0;
    gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
    err = error_set(error, EINVAL, "Unable to use %s '%s' with %s '%s': %s", own->file->label,
                    own->file->path, ca->file->label, ca->file->path,
                    text.data ? (const char *)text.data : "it cannot be verified");
    gnutls_free(text.data);
    return err;
}

static int check_own(const struct chain *own, enum tls_endpoint endpoint, struct error *error)
{
    gnutls_x509_crt_t first = own->certificates[0];
    int err = 0;

    for (unsigned i = 0; i < own->count && err == 0; i++)
        err = check_dates(own->certificates[i], own->file, error);
    if (err == 0)
        err = check_is_ca(first, own->file, false, error);
    if (err == 0)
        err = check_usage(first, own->file, GNUTLS_KEY_DIGITAL_SIGNATURE, "digital signatures",
                          error);
    if (err == 0)
        err = check_purpose(first, own->file, endpoint, error);
    return err;
}

static int check_ca(const struct chain *ca, struct error *error)
{
    int err = 0;

    for (unsigned i = 0; i < ca->count && err == 0; i++) {
        err = check_dates(ca->certificates[i], ca->file, error);
        if (err == 0)
            err = check_is_ca(ca->certificates[i], ca->file, true, error);
        if (err == 0)
            err = check_usage(ca->certificates[i], ca->file, GNUTLS_KEY_KEY_CERT_SIGN,
                              "the signing of certificates", error);
    }
    return err;
}

int tls_certificates_check(enum tls_endpoint endpoint, const struct tls_file *certificate,
                           const struct tls_file *ca, struct error *error)
{
    struct chain own, cas = {0};
    int err = chain_read(&own, certificate, error);

    if (err == 0)
        err = chain_read(&cas, ca, error);
    if (err == 0)
        err = check_own(&own, endpoint, error);
    if (err == 0)
        err = check_ca(&cas, error);
    if (err == 0)
        err = check_issued_by(&own, &cas, error);
    chain_free(&own);
    chain_free(&cas);
    return err;
}
