/* SPDX-License-Identifier: BSD-3-Clause */
/* Decrypting a secret with another one. */
#include "tls/secret_object.h"

#include "config.h"

#include <errno.h>

#ifdef HAVE_GNUTLS

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>

#define BLOCK_BYTES 16

/* The last byte says how many bytes of its value were put behind the text. */
static int strip_padding(const uint8_t *data, size_t length, size_t *ret_length,
                         struct error *error)
{
    unsigned padding = data[length - 1];
    bool good = padding >= 1 && padding <= BLOCK_BYTES;

    for (unsigned i = 1; good && i <= padding; i++)
        good = data[length - i] == padding;
    if (!good)
        return error_set(error, EINVAL,
                         "Incorrect padding found on decrypted data: the key or the iv is not the "
                         "one that it was encrypted with");
    *ret_length = length - padding;
    return 0;
}

static int decrypt(const uint8_t *key, const uint8_t *iv, uint8_t *data, size_t length)
{
    const gnutls_datum_t key_datum = {(uint8_t *)(uintptr_t)key, SECRET_KEY_BYTES};
    const gnutls_datum_t iv_datum = {(uint8_t *)(uintptr_t)iv, SECRET_IV_BYTES};
    gnutls_cipher_hd_t cipher;
    int r = gnutls_cipher_init(&cipher, GNUTLS_CIPHER_AES_256_CBC, &key_datum, &iv_datum);

    if (r < 0)
        return r;
    r = gnutls_cipher_decrypt(cipher, data, length);
    gnutls_cipher_deinit(cipher);
    return r;
}

int secret_unwrap(const uint8_t key[SECRET_KEY_BYTES], const uint8_t iv[SECRET_IV_BYTES],
                  uint8_t *data, size_t length, size_t *ret_length, struct error *error)
{
    int r;

    if (length == 0 || length % BLOCK_BYTES != 0)
        return error_set(error, EINVAL,
                         "Length %zu of the encrypted data must be a multiple of block size %d",
                         length, BLOCK_BYTES);
    r = decrypt(key, iv, data, length);
    if (r < 0)
        return error_set(error, EIO, "Could not decrypt it: %s", gnutls_strerror(r));
    return strip_padding(data, length, ret_length, error);
}

#else

int secret_unwrap(const uint8_t key[SECRET_KEY_BYTES], const uint8_t iv[SECRET_IV_BYTES],
                  uint8_t *data, size_t length, size_t *ret_length, struct error *error)
{
    return error_set(error, ENOTSUP,
                     "encrypted secrets are not in this build, which was made without GnuTLS");
}

#endif
