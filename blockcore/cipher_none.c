/* SPDX-License-Identifier: BSD-3-Clause */
/* What stands for cipher.c in a build without nettle: nothing can be encrypted. See cipher.h. */
#include "blockcore/cipher.h"

#include <errno.h>

bool cipher_available(void)
{
    return false;
}

int cipher_kind_check(const struct cipher_kind *kind, size_t key_length, const char **ret_why)
{
    *ret_why = "this build has no ciphers: it was made without nettle";
    return -ENOTSUP;
}

int cipher_new(const struct cipher_kind *kind, const void *key, size_t key_length,
               struct cipher **ret)
{
    return -ENOTSUP;
}

void cipher_free(struct cipher *cipher)
{
}

void cipher_encrypt(const struct cipher *cipher, void *data, size_t length, uint64_t sector)
{
}

void cipher_decrypt(const struct cipher *cipher, void *data, size_t length, uint64_t sector)
{
}

size_t digest_length(enum digest digest)
{
    return DIGEST_BYTES_MAX;
}

int digest_with_prefix(enum digest digest, uint32_t prefix, const void *data, size_t length,
                       uint8_t *out)
{
    return -ENOTSUP;
}

int pbkdf2_derive(const struct pbkdf2 *job, void *out, size_t length)
{
    return -ENOTSUP;
}

int pbkdf2_measure(enum digest digest, size_t length, uint64_t target_ns, uint32_t *ret)
{
    return -ENOTSUP;
}
