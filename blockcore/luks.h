/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * LUKS volumes: opening one with a passphrase, making one, and changing its key slots, wherever in
 * a file header and key material are.
 *
 * Keys are derived in the worker pool: that lasts as long as whoever made the volume wished.  All
 * functions that do I/O run in a coroutine.  Keys are wiped before their memory is given back.
 */
#ifndef EVNBD_BLOCKCORE_LUKS_H
#define EVNBD_BLOCKCORE_LUKS_H

#include "base/options.h"
#include "base/secret.h"
#include "blockcore/luks_disk.h"

struct node;

/* Where header and key material are. */
struct luks_area {
    struct node *file;
    uint64_t offset, length; /* bytes */
};

/* How to make a volume. */
struct luks_options {
    char *key_secret;
    int cipher_alg, cipher_mode, ivgen_alg, ivgen_hash_alg, hash_alg; /* -1: the usual */
    uint64_t iter_time;                                               /* milliseconds */
};

extern const char *const luks_cipher_alg_words[];
extern const char *const luks_ivgen_alg_words[];

/* Rows for `member`, a struct luks_options of `type`; the names begin with `prefix`. */
#define LUKS_OPTION_ROWS(prefix, type, member)                                                     \
    {prefix "key-secret", OPTION_STRING, offsetof(type, member.key_secret), NULL,                  \
     "id of the secret that unlocks the key"},                                                     \
        {prefix "cipher-alg", OPTION_ENUM, offsetof(type, member.cipher_alg),                      \
         luks_cipher_alg_words, "cipher, aes-256 when not given"},                                 \
        {prefix "cipher-mode", OPTION_ENUM, offsetof(type, member.cipher_mode), luks_mode_words,   \
         "mode of the cipher, xts when not given"},                                                \
        {prefix "ivgen-alg", OPTION_ENUM, offsetof(type, member.ivgen_alg), luks_ivgen_alg_words,  \
         "how initialization vectors are made, plain64 when not given"},                           \
        {prefix "ivgen-hash-alg", OPTION_ENUM, offsetof(type, member.ivgen_hash_alg),              \
         luks_digest_words, "hash for ivgen-alg=essiv, sha256 when not given"},                    \
        {prefix "hash-alg", OPTION_ENUM, offsetof(type, member.hash_alg), luks_digest_words,       \
         "hash for the derivation of keys, sha256 when not given"},                                \
    {                                                                                              \
        prefix "iter-time", OPTION_NUMBER, offsetof(type, member.iter_time), NULL,                 \
            "milliseconds that the derivation of a key is to last, 2000 when not given"            \
    }

#define LUKS_ITER_TIME_DEFAULT 2000 /* milliseconds */
/* 0, or -EINVAL when nobody would wait so long. */
int luks_check_iter_time(uint64_t ms, struct error *error);

/* Sets what luks_options_* know as "not given". */
void luks_options_init(struct luks_options *options);
/*
 * Judges the options, and gives the header of a volume that is made with them, with key slots and
 * payload in place but without keys.  0, -EINVAL or -ENOTSUP.
 */
int luks_options_judge(const struct luks_options *options, struct luks_header *ret,
                       struct error *error);

/*
 * The secret that option `option` names by `id`.  0, -ENOKEY (NULL: it was not given), or -EINVAL
 * (there is none of that id).
 */
int luks_find_secret(const struct secret_store *store, const char *option, const char *id,
                     const struct secret **ret, struct error *error);

/* Reads and checks the header; all key material in use is within the area. */
int luks_read_header(const struct luks_area *area, struct luks_header *ret, struct error *error);

/*
 * Unlocks the volume whose header was read.  *ret_cipher is the caller's (cipher_free).  0, -EACCES
 * (no key slot opens with this secret), -EINVAL, -ENOTSUP, -EIO...
 */
int luks_open(const struct luks_area *area, const struct luks_header *header,
              const struct secret *secret, struct cipher **ret_cipher, struct error *error);

/*
 * Makes a volume with a new key in slot 0: key material first, then, when that is durable, the
 * header.  `header` is from luks_options_judge.  The file reaches to the end of the area
 * afterwards.
 */
int luks_create(const struct luks_area *area, const struct luks_options *options,
                struct luks_header *header, const struct secret *secret, struct error *error);

/*
 * Changes key slots of an image that is open for writing, in place, as `options` say: "state"
 * (active: add a key; inactive: erase), "new-secret", "old-secret", "keyslot", "iter-time"; not
 * stolen.  To add needs the secret with which the node was opened.  Without `force` the last slot
 * is not erased, and none in use replaced.  A crash leaves the slots as they were, or one that is
 * being erased or replaced broken.  0, -EACCES (no slot opens), -EPERM (needs force), -EINVAL,
 * -ENOSPC (no slot is free), -ENOTSUP (not LUKS), -EROFS, -EIO...
 */
int luks_amend(struct node *node, const struct secret_store *secrets, json_t *options, bool force,
               struct error *error);

#endif
