/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * LUKS version 1 on disk: the header, and where the key material is ("LUKS1 On-Disk Format
 * Specification" 1.2.3).
 *
 * Pure functions over bytes: nothing here does I/O or keeps state.  All input is untrusted.  The
 * format stands by itself (blockcore/format/luks.c) and inside of qcow2, where the area that holds
 * header and key material is a run of clusters.
 */
#ifndef EVNBD_BLOCKCORE_LUKS_DISK_H
#define EVNBD_BLOCKCORE_LUKS_DISK_H

#include "base/error.h"
#include "blockcore/cipher.h"

enum {
    LUKS_HEADER_BYTES = 592,
    LUKS_SLOTS = 8,
    LUKS_DIGEST_BYTES = 20,
    LUKS_SALT_BYTES = 32,
    LUKS_UUID_BYTES = 40,
    LUKS_STRIPES = 4000,    /* of new slots */
    LUKS_FIRST_SECTOR = 2,  /* where key material may begin: behind the header */
    LUKS_NAME_BYTES = 32,   /* fields with names of ciphers and digests */
    LUKS_ALIGN_SECTORS = 8, /* of new key material, and the payload behind it */
};

#define LUKS_MAGIC "LUKS\xba\xbe"
#define LUKS_MAGIC_BYTES 6
/* Key material of one slot is at most so long. */
#define LUKS_MATERIAL_MAX (UINT64_C(2) << 20)

struct luks_slot {
    bool active;
    uint32_t iterations;
    uint8_t salt[LUKS_SALT_BYTES];
    uint32_t sector; /* where the key material begins, from the start of the header */
    uint32_t stripes;
};

struct luks_header {
    struct cipher_kind kind;
    enum digest digest;
    uint32_t payload_sector; /* 0: the header is detached */
    uint32_t key_bytes;
    uint8_t key_digest[LUKS_DIGEST_BYTES];
    uint8_t digest_salt[LUKS_SALT_BYTES];
    uint32_t digest_iterations;
    char uuid[LUKS_UUID_BYTES + 1];
    struct luks_slot slots[LUKS_SLOTS];
};

/* Words for the enums of cipher.h, as the format writes them; NULL-terminated. */
extern const char *const luks_cipher_words[];
extern const char *const luks_mode_words[];
extern const char *const luks_iv_words[];
extern const char *const luks_digest_words[];

/*
 * Reads the header from the first bytes of its area, and checks all that can be judged without the
 * rest: ciphers and digests that are known, and the key slots in use, which lie behind the header,
 * do not overlap and are of bounded length.  0, -EINVAL (broken) or -ENOTSUP (version 2, a cipher
 * that is not known).
 */
int luks_header_parse(const void *data, size_t length, struct luks_header *ret,
                      struct error *error);
/* Whether a slot is as those in use must be, and overlaps none of them. 0 or -EINVAL. */
int luks_slot_check(const struct luks_header *header, unsigned index, struct error *error);
/* Checks that all key material in use lies within an area of so many bytes. 0 or -EINVAL. */
int luks_header_check_area(const struct luks_header *header, uint64_t area_bytes,
                           struct error *error);
/* Writes LUKS_HEADER_BYTES. */
void luks_header_write(const struct luks_header *header, void *out);

/* Sectors of a slot's key material. */
uint64_t luks_material_sectors(uint64_t key_bytes, uint64_t stripes);
/* Places slots and payload of a new header, whose key_bytes are set; all slots become free. */
void luks_header_place(struct luks_header *header);

/*
 * The anti-forensic splitter: merge gives the `key_bytes` that were split into `stripes` times as
 * many.  split fills all but the last stripe of `material` from what stands there, which is to be
 * random.  0 or -ENOTSUP.
 */
int luks_merge(enum digest digest, uint32_t key_bytes, uint32_t stripes, const uint8_t *material,
               uint8_t *ret_key);
int luks_split(enum digest digest, uint32_t key_bytes, uint32_t stripes, const uint8_t *key,
               uint8_t *material);

#endif
