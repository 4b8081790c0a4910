/* SPDX-License-Identifier: BSD-3-Clause */
#include "tls/revocation.h"

#include "tls/dates.h"

#include <errno.h>
#include <gnutls/abstract.h>

/* Of RSA with a key of 16384 bits. */
#define SIGNATURE_BYTES_MAX 2048

int tls_revocation_read(struct tls_revocation *revocation, const struct tls_file *file,
                        struct error *error)
{
    const gnutls_datum_t pem = {file->data, (unsigned)file->length};
    int r;

    *revocation = (struct tls_revocation){.file = file};
    if (!file->data)
        return 0;
    r = gnutls_x509_crl_list_import2(&revocation->lists, &revocation->count, &pem,
                                     GNUTLS_X509_FMT_PEM, 0);
    if (r >= 0 && revocation->count > 0)
        return 0;
    tls_revocation_free(revocation);
    return error_set(error, EINVAL, "Unable to use %s '%s': %s", file->label, file->path,
                     gnutls_strerror(r < 0 ? r : GNUTLS_E_NO_CERTIFICATE_FOUND));
}

void tls_revocation_free(struct tls_revocation *revocation)
{
    for (unsigned i = 0; i < revocation->count; i++)
        gnutls_x509_crl_deinit(revocation->lists[i]);
    gnutls_free(revocation->lists);
    *revocation = (struct tls_revocation){0};
}

static const char *name_of_issuer(gnutls_x509_crl_t list, char *out, size_t size)
{
    if (gnutls_x509_crl_get_issuer_dn(list, out, &size) < 0)
        return "nobody";
    return out;
}

/*
 * Splits off the header of the DER element that `der` begins with (X.690 section 8.1), and what is
 * behind it; returns the length of the header, 0 if it is not all there.
 */
static unsigned split_element(gnutls_datum_t *der)
{
    unsigned length, header = 2;

    if (der->size < header)
        return 0;
    length = der->data[1];
    if (length >= 0x80) {
        unsigned bytes = length & 0x7f;

        header += bytes;
        if (bytes == 0 || bytes > 3 || der->size < header)
            return 0;
        length = 0;
        for (unsigned i = 0; i < bytes; i++)
            length = length << 8 | der->data[2 + i];
    }
    if (length > der->size - header)
        return 0;
    der->data += header;
    der->size = length;
    return header;
}

/* Finds the tbsCertList of a CertificateList (RFC 5280 section 5.1), with its header. */
static bool find_signed_part(const gnutls_datum_t *list, gnutls_datum_t *ret)
{
    unsigned header;

    *ret = *list;
    if (split_element(ret) == 0)
        return false;
    header = split_element(ret);
    ret->data -= header;
    ret->size += header;
    return header > 0;
}

/*
 * gnutls_x509_crl_verify() tells no difference between a list that is out of date and one with a
 * signature of an unknown kind, so only the signature is looked at.
 */
static bool has_signed(gnutls_x509_crt_t ca, gnutls_x509_crl_t list, const gnutls_datum_t *part)
{
    const int algorithm = gnutls_x509_crl_get_signature_algorithm(list);
    uint8_t bytes[SIGNATURE_BYTES_MAX];
    size_t size = 0;
    gnutls_pubkey_t key;
    bool good = false;

    /* GnuTLS 3.7 tells the size only when there is no room. */
    gnutls_x509_crl_get_signature(list, NULL, &size);
    if (size > sizeof(bytes))
        return false;
    if (algorithm <= 0 || gnutls_x509_crl_get_signature(list, (char *)bytes, &size) < 0 ||
        gnutls_pubkey_init(&key) < 0)
        return false;
    if (gnutls_pubkey_import_x509(key, ca, 0) >= 0) {
        const gnutls_datum_t signature = {bytes, (unsigned)size};

        good = gnutls_pubkey_verify_data2(key, (gnutls_sign_algorithm_t)algorithm, 0, part,
                                          &signature) >= 0;
    }
    gnutls_pubkey_deinit(key);
    return good;
}

/* Each CA is tried, since those that have got a new key have the same name. */
static bool is_signed(gnutls_x509_crl_t list, const struct tls_chain *ca)
{
    gnutls_datum_t der, part;
    bool good = false;

    if (gnutls_x509_crl_export2(list, GNUTLS_X509_FMT_DER, &der) < 0)
        return false;
    for (unsigned i = 0; !good && i < ca->count && find_signed_part(&der, &part); i++)
        good = gnutls_x509_crl_check_issuer(list, ca->certificates[i]) == 1 &&
               has_signed(ca->certificates[i], list, &part);
    gnutls_free(der.data);
    return good;
}

static int check_list(gnutls_x509_crl_t list, const struct tls_file *file,
                      const struct tls_chain *ca, struct error *error)
{
    const time_t issued = gnutls_x509_crl_get_this_update(list);
    char name[256], moment[TLS_DATE_MAX];

    if (!is_signed(list, ca))
        return error_set(
            error, EINVAL, "Unable to use %s '%s': its list of '%s' is not signed by a CA in '%s'",
            file->label, file->path, name_of_issuer(list, name, sizeof(name)), ca->file->path);
    if (issued == (time_t)-1 || issued <= tls_now(NULL))
        return 0;
    return error_set(error, EINVAL,
                     "Unable to use %s '%s': its list of '%s' is not valid before %s", file->label,
                     file->path, name_of_issuer(list, name, sizeof(name)),
                     tls_moment(issued, moment));
}

void tls_revocation_check(const struct tls_revocation *revocation, const struct tls_chain *ca,
                          struct tls_problems *problems)
{
    struct error error;

    for (unsigned i = 0; ca->count > 0 && i < revocation->count; i++) {
        if (check_list(revocation->lists[i], revocation->file, ca, &error) < 0)
            problems->found(problems, error.text);
    }
}

time_t tls_revocation_overdue(const struct tls_revocation *revocation)
{
    for (unsigned i = 0; i < revocation->count; i++) {
        const time_t next = gnutls_x509_crl_get_next_update(revocation->lists[i]);

        if (next != (time_t)-1 && next < tls_now(NULL))
            return next;
    }
    return 0;
}
