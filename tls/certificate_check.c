/* SPDX-License-Identifier: BSD-3-Clause */
/* Each check looks at one thing and says what is wrong with it; they do not need each other. */
#include "tls/certificate_check.h"

#include "base/checked.h"
#include "tls/dates.h"
#include "tls/material.h"

#include <errno.h>
#include <string.h>

int tls_chain_read(struct tls_chain *chain, const struct tls_file *file, struct error *error)
{
    const gnutls_datum_t pem = {file->data, (unsigned)file->length};
    int r;

    *chain = (struct tls_chain){.file = file};
    if (!file->data)
        return 0;
    r = gnutls_x509_crt_list_import2(&chain->certificates, &chain->count, &pem, GNUTLS_X509_FMT_PEM,
                                     0);
    if (r >= 0)
        return 0;
    return error_set(error, EINVAL, "Unable to use %s '%s': %s", file->label, file->path,
                     gnutls_strerror(r));
}

void tls_chain_free(struct tls_chain *chain)
{
    for (unsigned i = 0; i < chain->count; i++)
        gnutls_x509_crt_deinit(chain->certificates[i]);
    gnutls_free(chain->certificates);
}

static int check_dates(gnutls_x509_crt_t certificate, const struct tls_file *file,
                       struct error *error)
{
    const time_t now = tls_now(NULL);
    const time_t begin = gnutls_x509_crt_get_activation_time(certificate);
    const time_t end = gnutls_x509_crt_get_expiration_time(certificate);
    char moment[TLS_DATE_MAX];

    if (begin != (time_t)-1 && now < begin)
        return error_set(error, EINVAL, "Unable to use %s '%s': it is not valid before %s",
                         file->label, file->path, tls_moment(begin, moment));
    if (end != (time_t)-1 && now > end)
        return error_set(error, EINVAL, "Unable to use %s '%s': it has expired on %s", file->label,
                         file->path, tls_moment(end, moment));
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

/* Dates are checked one by one. */
static int check_issued_by(const struct tls_chain *own, const struct tls_chain *ca,
                           struct error *error)
{
    const unsigned flags =
        GNUTLS_VERIFY_DISABLE_TIME_CHECKS | GNUTLS_VERIFY_DISABLE_TRUSTED_TIME_CHECKS;
    gnutls_datum_t text = {0};
    unsigned status = 0;
    int err;

    if (ca->count == 0 ||
        (gnutls_x509_crt_list_verify(own->certificates, (int)own->count, ca->certificates,
                                     (int)ca->count, NULL, 0, flags, &status) >= 0 &&
         status == 0))
        return 0;
    gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0);
    err = error_set(error, EINVAL, "Unable to use %s '%s' with %s '%s': %s", own->file->label,
                    own->file->path, ca->file->label, ca->file->path,
                    text.data ? (const char *)text.data : "it cannot be verified");
    gnutls_free(text.data);
    return err;
}

static void note(struct tls_problems *problems, int err, const struct error *error)
{
    if (err < 0)
        problems->found(problems, error->text);
}

static void check_own(const struct tls_chain *own, enum tls_endpoint endpoint,
                      struct tls_problems *problems)
{
    gnutls_x509_crt_t first = own->certificates[0];
    struct error e;

    for (unsigned i = 0; i < own->count; i++)
        note(problems, check_dates(own->certificates[i], own->file, &e), &e);
    note(problems, check_is_ca(first, own->file, false, &e), &e);
    note(problems,
         check_usage(first, own->file, GNUTLS_KEY_DIGITAL_SIGNATURE, "digital signatures", &e), &e);
    note(problems, check_purpose(first, own->file, endpoint, &e), &e);
}

static void check_ca(const struct tls_chain *ca, struct tls_problems *problems)
{
    struct error e;

    for (unsigned i = 0; i < ca->count; i++) {
        gnutls_x509_crt_t one = ca->certificates[i];

        note(problems, check_dates(one, ca->file, &e), &e);
        note(problems, check_is_ca(one, ca->file, true, &e), &e);
        note(
            problems,
            check_usage(one, ca->file, GNUTLS_KEY_KEY_CERT_SIGN, "the signing of certificates", &e),
            &e);
    }
}

void tls_chains_check(const struct tls_chain *own, const struct tls_chain *ca,
                      enum tls_endpoint endpoint, struct tls_problems *problems)
{
    struct error e;

    if (own->count > 0)
        check_own(own, endpoint, problems);
    check_ca(ca, problems);
    if (own->count > 0)
        note(problems, check_issued_by(own, ca, &e), &e);
}

/* ---- The first problem as an error ---- */

static void keep_first(struct tls_problems *problems, const char *sentence)
{
    struct tls_first_problem *first = container_of(problems, struct tls_first_problem, problems);

    if (!first->any)
        error_set(first->error, EINVAL, "%s", sentence);
    first->any = true;
}

struct tls_first_problem tls_first_problem(struct error *error)
{
    return (struct tls_first_problem){.problems = {.found = keep_first}, .error = error};
}

int tls_certificates_check(enum tls_endpoint endpoint, const struct tls_file *certificate,
                           const struct tls_file *ca, struct error *error)
{
    struct tls_first_problem first = tls_first_problem(error);
    struct tls_chain own, cas = {0};
    int err = tls_chain_read(&own, certificate, error);

    if (err == 0)
        err = tls_chain_read(&cas, ca, error);
    if (err == 0)
        tls_chains_check(&own, &cas, endpoint, &first.problems);
    tls_chain_free(&own);
    tls_chain_free(&cas);
    return first.any ? -EINVAL : err;
}
