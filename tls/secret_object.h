/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Secrets of the command line: where they come from, how they are written, and with which other
 * secret they are encrypted.
 */
#ifndef EVNBD_TLS_SECRET_OBJECT_H
#define EVNBD_TLS_SECRET_OBJECT_H

#include "base/secret.h"

#include <stdbool.h>

enum secret_format { SECRET_RAW, SECRET_BASE64 };

/* A secret as the user describes it. The strings are allocated, and its own. */
struct secret_object {
    char *data, *file; /* one of them, unless it is in the keyring */
    bool in_keyring;   /* of the kernel */
    uint64_t serial;   /* ... with this number */
    int format;        /* enum secret_format, of what is there */
    char *keyid;       /* the secret (32 bytes) it is encrypted with, by AES-256-CBC; or NULL */
    char *iv;          /* ... and the initialization vector (16 bytes) in base64 */
};

/*
 * Reads, decodes and decrypts, and adds the result to the store, where `keyid` is looked for.
 * Negative errno with a sentence.
 */
int secret_object_load(const struct secret_object *object, const char *id,
                       struct secret_store *store, struct error *error);

/* Wipes and frees the strings. */
void secret_object_fini(struct secret_object *object);

/*
 * Decrypts `length` bytes in place, by AES-256-CBC with the padding of PKCS #7 (RFC 5652, section
 * 6.3), which *ret_length is without.  -EINVAL (a length or padding that encryption does not make:
 * most likely the key or vector is wrong) or -ENOTSUP (built without GnuTLS) with a sentence.
 */
#define SECRET_KEY_BYTES 32
#define SECRET_IV_BYTES 16
int secret_unwrap(const uint8_t key[SECRET_KEY_BYTES], const uint8_t iv[SECRET_IV_BYTES],
                  uint8_t *data, size_t length, size_t *ret_length, struct error *error);

#endif
