/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disk encryption and key derivation, the one home of nettle in the block core.
 *
 * Pure functions over buffers, fit for worker threads: a cipher does not change once it is made, so
 * that any number of threads may use it.  The data unit is a sector of 512 bytes; its number makes
 * the initialization vector.  Keys and key schedules are wiped before their memory is freed.
 */
#ifndef EVNBD_BLOCKCORE_CIPHER_H
#define EVNBD_BLOCKCORE_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CIPHER_SECTOR 512
/* XTS takes two keys, each as long as the block cipher's. */
#define CIPHER_KEY_MAX 64
#define DIGEST_BYTES_MAX 64

enum cipher_algorithm { CIPHER_AES, CIPHER_CAST5, CIPHER_SERPENT, CIPHER_TWOFISH };
enum cipher_mode { CIPHER_ECB, CIPHER_CBC, CIPHER_XTS, CIPHER_CTR };
/*
 * The vector of sector n: 0; n modulo 2^32 or n modulo 2^64, little-endian, zero-padded; or the
 * latter encrypted with the same block cipher and the digest of the key as its key.
 */
enum cipher_iv { CIPHER_IV_NONE, CIPHER_IV_PLAIN, CIPHER_IV_PLAIN64, CIPHER_IV_ESSIV };
enum digest {
    DIGEST_SHA1,
    DIGEST_SHA224,
    DIGEST_SHA256,
    DIGEST_SHA384,
    DIGEST_SHA512,
    DIGEST_RIPEMD160,
};

struct cipher_kind {
    enum cipher_algorithm algorithm;
    enum cipher_mode mode;
    enum cipher_iv iv;
    enum digest iv_digest; /* ESSIV */
};

struct cipher;

/* Whether this build has nettle; without it everything below fails with -ENOTSUP. */
bool cipher_available(void);

/*
 * Whether there is such a cipher with keys of that many bytes: 0, or -EINVAL and *ret_why says why
 * not, in a clause.
 */
int cipher_kind_check(const struct cipher_kind *kind, size_t key_length, const char **ret_why);

/* `key` is copied. 0, -EINVAL (see cipher_kind_check), -ENOMEM or -ENOTSUP. */
int cipher_new(const struct cipher_kind *kind, const void *key, size_t key_length,
               struct cipher **ret);
/* Wipes it. NULL is fine. */
void cipher_free(struct cipher *cipher);

/* Encrypts or decrypts whole sectors in place; `length` is a multiple of CIPHER_SECTOR. */
void cipher_encrypt(const struct cipher *cipher, void *data, size_t length, uint64_t sector);
void cipher_decrypt(const struct cipher *cipher, void *data, size_t length, uint64_t sector);

/* Bytes of a digest. */
size_t digest_length(enum digest digest);
/* The digest of `prefix` (a big-endian u32) and `length` bytes. 0 or -ENOTSUP. */
int digest_with_prefix(enum digest digest, uint32_t prefix, const void *data, size_t length,
                       uint8_t *out);

/* PBKDF2 (RFC 8018) with HMAC. */
struct pbkdf2 {
    enum digest digest;
    const void *password;
    size_t password_length;
    const void *salt;
    size_t salt_length;
    uint32_t iterations;
    uint64_t limit_ns; /* 0: no limit */
};

/*
 * Derives `length` bytes.  0, -ENOTSUP, -EINVAL (no iterations), or -ETIME as soon as it shows that
 * it would last longer than the limit.
 */
int pbkdf2_derive(const struct pbkdf2 *job, void *out, size_t length);
/* How many iterations last `target_ns` here for keys of `length` bytes; at least 1. */
int pbkdf2_measure(enum digest digest, size_t length, uint64_t target_ns, uint32_t *ret);

#endif
