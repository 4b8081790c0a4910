/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS volumes: options, opening and making. See luks.h; changes of key slots: luks_amend.c. */
#include "blockcore/luks.h"

#include "base/checked.h"
#include "base/sys.h"
#include "blockcore/create.h"
#include "blockcore/luks_key.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ITER_TIME_MAX 60000

const char *const luks_cipher_alg_words[] = {
    "aes-128",     "aes-192",     "aes-256",     "cast5-128",   "serpent-128", "serpent-192",
    "serpent-256", "twofish-128", "twofish-192", "twofish-256", NULL,
};

/* In the order of the words. */
static const struct {
    enum cipher_algorithm algorithm;
    uint32_t key_bytes;
} cipher_algs[] = {
    {CIPHER_AES, 16},     {CIPHER_AES, 24},     {CIPHER_AES, 32},     {CIPHER_CAST5, 16},
    {CIPHER_SERPENT, 16}, {CIPHER_SERPENT, 24}, {CIPHER_SERPENT, 32}, {CIPHER_TWOFISH, 16},
    {CIPHER_TWOFISH, 24}, {CIPHER_TWOFISH, 32},
};
enum { CIPHER_ALG_DEFAULT = 2 };

const char *const luks_ivgen_alg_words[] = {"plain", "plain64", "essiv", NULL};

static const enum cipher_iv ivgen_algs[] = {CIPHER_IV_PLAIN, CIPHER_IV_PLAIN64, CIPHER_IV_ESSIV};
enum { IVGEN_ALG_DEFAULT = 1 };

void luks_options_init(struct luks_options *options)
{
    *options = (struct luks_options){
        .cipher_alg = -1,
        .cipher_mode = -1,
        .ivgen_alg = -1,
        .ivgen_hash_alg = -1,
        .hash_alg = -1,
        .iter_time = LUKS_ITER_TIME_DEFAULT,
    };
}

static int given(int option, int otherwise)
{
    return option >= 0 ? option : otherwise;
}

int luks_check_iter_time(uint64_t ms, struct error *error)
{
    if (ms > 0 && ms <= ITER_TIME_MAX)
        return 0;
    return error_set(error, EINVAL, "iter-time is %" PRIu64 " ms, it must be 1 to %d", ms,
                     ITER_TIME_MAX);
}

int luks_options_judge(const struct luks_options *options, struct luks_header *ret,
                       struct error *error)
{
    int alg = given(options->cipher_alg, CIPHER_ALG_DEFAULT);
    struct luks_header h = {.key_bytes = cipher_algs[alg].key_bytes};
    const char *why;
    int err;

    h.kind = (struct cipher_kind){
        .algorithm = cipher_algs[alg].algorithm,
        .mode = (enum cipher_mode)given(options->cipher_mode, CIPHER_XTS),
        .iv = ivgen_algs[given(options->ivgen_alg, IVGEN_ALG_DEFAULT)],
        .iv_digest = (enum digest)given(options->ivgen_hash_alg, DIGEST_SHA256),
    };
    h.digest = (enum digest)given(options->hash_alg, DIGEST_SHA256);
    if (h.kind.mode == CIPHER_XTS)
        h.key_bytes *= 2;
    if (h.kind.mode == CIPHER_ECB)
        return error_set(error, EINVAL,
                         "cipher-mode=ecb shows which parts of a disk are alike, and is not used "
                         "for new images: xts is the right one");
    if (options->ivgen_hash_alg >= 0 && h.kind.iv != CIPHER_IV_ESSIV)
        return error_set(error, EINVAL, "ivgen-hash-alg is given, but ivgen-alg is not essiv");
    err = luks_check_iter_time(options->iter_time, error);
    if (err < 0)
        return err;
    err = cipher_kind_check(&h.kind, h.key_bytes, &why);
    if (err < 0)
        return error_set(error, -err, "cannot encrypt with %s and the mode %s: %s",
                         luks_cipher_alg_words[alg], luks_mode_words[h.kind.mode], why);
    luks_header_place(&h);
    *ret = h;
    return 0;
}

int luks_find_secret(const struct secret_store *store, const char *option, const char *id,
                     const struct secret **ret, struct error *error)
{
    char shown[128];

    if (!id)
        return error_set(error, ENOKEY,
                         "it is encrypted: the option '%s' must name the secret that unlocks it",
                         option);
    *ret = secret_store_find(store, id);
    if (!*ret)
        return error_set(error, EINVAL, "the option '%s' names the secret '%s', which is not there",
                         option, error_escape(shown, sizeof(shown), id, strlen(id)));
    return 0;
}

int luks_open(const struct luks_area *area, const struct luks_header *header,
              const struct secret *secret, struct cipher **ret_cipher, struct error *error)
{
    uint8_t key[CIPHER_KEY_MAX];
    int err = luks_unlock(area, header, secret, key, error);

    if (err < 0)
        return err;
    err = cipher_new(&header->kind, key, header->key_bytes, ret_cipher);
    secret_wipe(key, sizeof(key));
    return err < 0 ? error_set_errno(error, -err, "cannot set up the cipher") : 0;
}

/* A random UUID (RFC 4122, version 4) as text. */
static int make_uuid(char *ret)
{
    uint8_t b[16];
    int err = sys->random(b, sizeof(b));

    if (err < 0)
        return err;
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    snprintf(ret, LUKS_UUID_BYTES + 1,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
             b[15]);
    return 0;
}

/* A new key, and the digest by which it is known. */
static int make_key(struct luks_header *header, uint64_t iter_time, uint8_t *key,
                    struct error *error)
{
    int err = sys->random(key, header->key_bytes);

    if (err == 0)
        err = sys->random(header->digest_salt, LUKS_SALT_BYTES);
    if (err == 0)
        err = make_uuid(header->uuid);
    if (err < 0)
        return error_set_errno(error, -err, "cannot get random bytes for a key");
    return luks_make_digest(header, key, iter_time, error);
}

int luks_create(const struct luks_area *area, const struct luks_options *options,
                struct luks_header *header, const struct secret *secret, struct error *error)
{
    uint8_t key[CIPHER_KEY_MAX];
    int err = make_key(header, options->iter_time, key, error);

    if (err == 0)
        err = luks_write_slot(area, header, 0, key, secret, options->iter_time, error);
    secret_wipe(key, sizeof(key));
    if (err < 0)
        return err;
    err = block_preallocate(area->file, 0, area->offset + area->length, PREALLOCATION_OFF);
    if (err < 0)
        return error_set_errno(error, -err, "cannot make room for the LUKS header");
    return luks_write_header(area, header, error);
}
