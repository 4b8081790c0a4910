/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disk encryption on nettle's block ciphers and hashes.  See cipher.h.
 *
 * XTS (IEEE 1619) is done here and not by nettle, which has it for AES alone and works on one block
 * at a time: the tweaks of a sector are made first, so that its 32 blocks go through the block
 * cipher in one call.
 */
#include "blockcore/cipher.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/secret.h"
#include "base/sys.h"

#include <errno.h>
#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/hmac.h>
#include <nettle/nettle-meta.h>
#include <nettle/ripemd160.h>
#include <nettle/sha2.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_MAX 16
#define NS_PER_S UINT64_C(1000000000)
/* Derivation looks at the clock so often, and judges by no less than so much of it. */
#define ITERATIONS_PER_LOOK 4096
#define LOOK_NS (NS_PER_S / 10)

struct cipher {
    const struct nettle_cipher *block;
    const struct nettle_cipher *iv_block; /* makes vectors from sector numbers: ESSIV */
    enum cipher_mode mode;
    enum cipher_iv iv;
    /* Key schedules. */
    void *encrypt, *decrypt;
    void *tweak;  /* XTS: the second key */
    void *iv_key; /* ESSIV */
};

/* The hash functions that are used here have no larger state. */
union digest_context {
    struct sha512_ctx sha512;
    struct sha256_ctx sha256;
    struct ripemd160_ctx ripemd160;
};

static const struct nettle_cipher *const blocks[][3] = {
    [CIPHER_AES] = {&nettle_aes128, &nettle_aes192, &nettle_aes256},
    [CIPHER_CAST5] = {&nettle_cast128},
    [CIPHER_SERPENT] = {&nettle_serpent128, &nettle_serpent192, &nettle_serpent256},
    [CIPHER_TWOFISH] = {&nettle_twofish128, &nettle_twofish192, &nettle_twofish256},
};

static const struct nettle_hash *const hashes[] = {
    [DIGEST_SHA1] = &nettle_sha1,     [DIGEST_SHA224] = &nettle_sha224,
    [DIGEST_SHA256] = &nettle_sha256, [DIGEST_SHA384] = &nettle_sha384,
    [DIGEST_SHA512] = &nettle_sha512, [DIGEST_RIPEMD160] = &nettle_ripemd160,
};

bool cipher_available(void)
{
    return true;
}

static const struct nettle_cipher *find_block(enum cipher_algorithm algorithm, size_t key_length)
{
    for (size_t i = 0; i < ARRAY_SIZE(blocks[algorithm]); i++) {
        const struct nettle_cipher *block = blocks[algorithm][i];

        if (block && block->key_size == key_length)
            return block;
    }
    return NULL;
}

/* Bytes of the key that the block cipher itself takes. */
static size_t block_key_length(const struct cipher_kind *kind, size_t key_length)
{
    return kind->mode == CIPHER_XTS ? key_length / 2 : key_length;
}

int cipher_kind_check(const struct cipher_kind *kind, size_t key_length, const char **ret_why)
{
    const struct nettle_cipher *block =
        find_block(kind->algorithm, block_key_length(kind, key_length));

    if (!block || (kind->mode == CIPHER_XTS && key_length % 2 != 0)) {
        *ret_why = "the cipher has no keys of that length";
        return -EINVAL;
    }
    if (kind->mode == CIPHER_XTS && block->block_size != BLOCK_MAX) {
        *ret_why = "the mode xts needs a cipher with blocks of 16 bytes";
        return -EINVAL;
    }
    if (kind->mode != CIPHER_ECB && kind->iv == CIPHER_IV_NONE) {
        *ret_why = "only the mode ecb goes without a method to make initialization vectors";
        return -EINVAL;
    }
    if (kind->iv == CIPHER_IV_ESSIV &&
        !find_block(kind->algorithm, hashes[kind->iv_digest]->digest_size)) {
        *ret_why = "the cipher has no keys as long as the digest that essiv is to use";
        return -EINVAL;
    }
    return 0;
}

/* A key schedule, or NULL. */
static void *new_schedule(const struct nettle_cipher *block, const uint8_t *key, bool encrypt)
{
    void *schedule = calloc(1, block->context_size);

    if (schedule && encrypt)
        block->set_encrypt_key(schedule, key);
    else if (schedule)
        block->set_decrypt_key(schedule, key);
    return schedule;
}

static void free_schedule(const struct nettle_cipher *block, void *schedule)
{
    if (schedule)
        secret_wipe(schedule, block->context_size);
    free(schedule);
}

void cipher_free(struct cipher *cipher)
{
    if (!cipher)
        return;
    free_schedule(cipher->block, cipher->encrypt);
    free_schedule(cipher->block, cipher->decrypt);
    free_schedule(cipher->block, cipher->tweak);
    free_schedule(cipher->iv_block, cipher->iv_key);
    free(cipher);
}

static void digest_parts(const struct nettle_hash *hash, const void *first, size_t first_length,
                         const void *second, size_t second_length, uint8_t *out)
{
    union digest_context context;

    hash->init(&context);
    hash->update(&context, first_length, first);
    hash->update(&context, second_length, second);
    hash->digest(&context, hash->digest_size, out);
    secret_wipe(&context, sizeof(context));
}

/* The key of ESSIV is the digest of the whole key. */
static void *new_iv_key(const struct cipher *c, const struct cipher_kind *kind, const uint8_t *key,
                        size_t key_length)
{
    uint8_t digest[DIGEST_BYTES_MAX];
    void *schedule;

    digest_parts(hashes[kind->iv_digest], key, key_length, key, 0, digest);
    schedule = new_schedule(c->iv_block, digest, true);
    secret_wipe(digest, sizeof(digest));
    return schedule;
}

static bool set_keys(struct cipher *c, const struct cipher_kind *kind, const uint8_t *key,
                     size_t key_length)
{
    c->encrypt = new_schedule(c->block, key, true);
    c->decrypt = new_schedule(c->block, key, false);
    if (c->mode == CIPHER_XTS)
        c->tweak = new_schedule(c->block, key + key_length / 2, true);
    if (c->iv == CIPHER_IV_ESSIV)
        c->iv_key = new_iv_key(c, kind, key, key_length);
    return c->encrypt && c->decrypt && (c->mode != CIPHER_XTS || c->tweak) &&
           (c->iv != CIPHER_IV_ESSIV || c->iv_key);
}

int cipher_new(const struct cipher_kind *kind, const void *key, size_t key_length,
               struct cipher **ret)
{
    struct cipher *c;
    const char *why;
    int err = cipher_kind_check(kind, key_length, &why);

    if (err < 0)
        return err;
    c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->mode = kind->mode;
    c->iv = kind->iv;
    c->block = find_block(kind->algorithm, block_key_length(kind, key_length));
    if (c->iv == CIPHER_IV_ESSIV)
        c->iv_block = find_block(kind->algorithm, hashes[kind->iv_digest]->digest_size);
    if (!set_keys(c, kind, key, key_length)) {
        cipher_free(c);
        return -ENOMEM;
    }
    *ret = c;
    return 0;
}

/* `iv` has BLOCK_MAX bytes; a cipher with smaller blocks takes the first of them. */
static void make_iv(const struct cipher *c, uint64_t sector, uint8_t *iv)
{
    memset(iv, 0, BLOCK_MAX);
    put_le64(iv, c->iv == CIPHER_IV_PLAIN ? (uint32_t)sector : sector);
    if (c->iv == CIPHER_IV_ESSIV)
        c->iv_block->encrypt(c->iv_key, c->iv_block->block_size, iv, iv);
}

/* The tweaks of a sector's blocks: each is the one before times x in GF(2^128). */
static void make_tweaks(const struct cipher *c, const uint8_t *iv, uint64_t *tweaks)
{
    uint64_t low, high;

    c->block->encrypt(c->tweak, BLOCK_MAX, (uint8_t *)tweaks, iv);
    low = le64toh(tweaks[0]);
    high = le64toh(tweaks[1]);
    for (size_t i = 2; i < CIPHER_SECTOR / 8; i += 2) {
        uint64_t carry = high >> 63;

        high = high << 1 | low >> 63;
        low = low << 1 ^ carry * 0x87;
        tweaks[i] = htole64(low);
        tweaks[i + 1] = htole64(high);
    }
}

static void xor_sector(uint8_t *data, const uint64_t *tweaks)
{
    for (size_t i = 0; i < CIPHER_SECTOR / 8; i++) {
        uint64_t v;

        memcpy(&v, data + i * 8, 8);
        v ^= tweaks[i];
        memcpy(data + i * 8, &v, 8);
    }
}

static void xts_sector(const struct cipher *c, bool encrypt, uint8_t *data, const uint8_t *iv)
{
    uint64_t tweaks[CIPHER_SECTOR / 8];

    make_tweaks(c, iv, tweaks);
    xor_sector(data, tweaks);
    if (encrypt)
        c->block->encrypt(c->encrypt, CIPHER_SECTOR, data, data);
    else
        c->block->decrypt(c->decrypt, CIPHER_SECTOR, data, data);
    xor_sector(data, tweaks);
}

static void crypt_sector(const struct cipher *c, bool encrypt, uint8_t *data, uint64_t sector)
{
    uint8_t iv[BLOCK_MAX];

    make_iv(c, sector, iv);
    switch (c->mode) {
    case CIPHER_ECB:
        if (encrypt)
            c->block->encrypt(c->encrypt, CIPHER_SECTOR, data, data);
        else
            c->block->decrypt(c->decrypt, CIPHER_SECTOR, data, data);
        break;
    case CIPHER_CBC:
        if (encrypt)
            cbc_encrypt(c->encrypt, c->block->encrypt, c->block->block_size, iv, CIPHER_SECTOR,
                        data, data);
        else
            cbc_decrypt(c->decrypt, c->block->decrypt, c->block->block_size, iv, CIPHER_SECTOR,
                        data, data);
        break;
    case CIPHER_XTS:
        xts_sector(c, encrypt, data, iv);
        break;
    case CIPHER_CTR:
        ctr_crypt(c->encrypt, c->block->encrypt, c->block->block_size, iv, CIPHER_SECTOR, data,
                  data);
        break;
    }
}

static void crypt_sectors(const struct cipher *c, bool encrypt, uint8_t *data, size_t length,
                          uint64_t sector)
{
    for (size_t done = 0; done < length; done += CIPHER_SECTOR)
        crypt_sector(c, encrypt, data + done, sector++);
}

void cipher_encrypt(const struct cipher *cipher, void *data, size_t length, uint64_t sector)
{
    crypt_sectors(cipher, true, data, length, sector);
}

void cipher_decrypt(const struct cipher *cipher, void *data, size_t length, uint64_t sector)
{
    crypt_sectors(cipher, false, data, length, sector);
}

size_t digest_length(enum digest digest)
{
    return hashes[digest]->digest_size;
}

int digest_with_prefix(enum digest digest, uint32_t prefix, const void *data, size_t length,
                       uint8_t *out)
{
    uint8_t number[4];

    put_be32(number, prefix);
    digest_parts(hashes[digest], number, sizeof(number), data, length, out);
    return 0;
}

/* HMAC with one key, again and again. */
struct hmac {
    const struct nettle_hash *hash;
    union digest_context outer, inner, state;
};

static void hmac_of(struct hmac *h, const void *data, size_t length, uint8_t *out)
{
    hmac_update(&h->state, h->hash, length, data);
    hmac_digest(&h->outer, &h->inner, &h->state, h->hash, h->hash->digest_size, out);
}

/* How far a derivation is, and how long it may last. */
struct pace {
    uint64_t start_ns, limit_ns;
    uint64_t done, total; /* iterations */
};

static bool too_slow(const struct pace *pace)
{
    uint64_t elapsed = (uint64_t)sys->monotonic_ns() - pace->start_ns;

    return pace->limit_ns > 0 && elapsed >= LOOK_NS &&
           (double)elapsed / (double)pace->done * (double)pace->total > (double)pace->limit_ns;
}

/* Block number `index` of the derived key, counted from 1, into `sum`. */
static int derive_block(struct hmac *h, const struct pbkdf2 *job, uint32_t index, struct pace *pace,
                        uint8_t *sum)
{
    size_t length = h->hash->digest_size;
    uint8_t u[DIGEST_BYTES_MAX], number[4];
    int err = 0;

    put_be32(number, index);
    hmac_update(&h->state, h->hash, job->salt_length, job->salt);
    hmac_of(h, number, sizeof(number), u);
    memcpy(sum, u, length);
    for (uint32_t i = 1; i < job->iterations && err == 0; i++) {
        hmac_of(h, u, length, u);
        for (size_t k = 0; k < length; k++)
            sum[k] ^= u[k];
        if (++pace->done % ITERATIONS_PER_LOOK == 0 && too_slow(pace))
            err = -ETIME;
    }
    secret_wipe(u, sizeof(u));
    return err;
}

int pbkdf2_derive(const struct pbkdf2 *job, void *out, size_t length)
{
    struct hmac h = {.hash = hashes[job->digest]};
    size_t piece = h.hash->digest_size;
    struct pace pace = {.start_ns = (uint64_t)sys->monotonic_ns(),
                        .limit_ns = job->limit_ns,
                        .total = div_round_up(length, piece) * job->iterations};
    uint8_t sum[DIGEST_BYTES_MAX];
    int err = 0;

    if (job->iterations == 0)
        return -EINVAL;
    hmac_set_key(&h.outer, &h.inner, &h.state, h.hash, job->password_length, job->password);
    for (size_t done = 0; done < length && err == 0; done += piece) {
        err = derive_block(&h, job, (uint32_t)(done / piece + 1), &pace, sum);
        memcpy((uint8_t *)out + done, sum, min_u64(piece, length - done));
    }
    secret_wipe(sum, sizeof(sum));
    secret_wipe(&h, sizeof(h));
    return err;
}

int pbkdf2_measure(enum digest digest, size_t length, uint64_t target_ns, uint32_t *ret)
{
    uint8_t key[CIPHER_KEY_MAX], salt[32] = {0};
    struct pbkdf2 job = {.digest = digest,
                         .password = key,
                         .password_length = sizeof(key),
                         .salt = salt,
                         .salt_length = sizeof(salt),
                         .iterations = 1 << 9};
    /* What lasts no longer than that need not be known better. */
    uint64_t enough = min_u64(LOOK_NS, max_u64(target_ns, NS_PER_S / 1000)), elapsed = 0;
    double iterations;

    memset(key, 0, sizeof(key));
    while (elapsed < enough && job.iterations < 1u << 22) {
        uint64_t start = (uint64_t)sys->monotonic_ns();
        int err;

        job.iterations *= 2;
        err = pbkdf2_derive(&job, key, min_u64(length, sizeof(key)));
        if (err < 0)
            return err;
        elapsed = (uint64_t)sys->monotonic_ns() - start;
    }
    /* A clock that stands still measures nothing. */
    iterations = elapsed > 0 ? (double)job.iterations * (double)target_ns / (double)elapsed : 1;
    *ret = (uint32_t)(iterations < (double)UINT32_MAX ? iterations : (double)UINT32_MAX);
    *ret = *ret > 0 ? *ret : 1;
    return 0;
}
