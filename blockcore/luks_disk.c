/* SPDX-License-Identifier: BSD-3-Clause */
/* LUKS version 1 on disk. See luks_disk.h. */
#include "blockcore/luks_disk.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/secret.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define SLOT_ACTIVE 0x00ac71f3u
#define SLOT_FREE 0x0000deadu

const char *const luks_cipher_words[] = {"aes", "cast5", "serpent", "twofish", NULL};
const char *const luks_mode_words[] = {"ecb", "cbc", "xts", "ctr", NULL};
const char *const luks_iv_words[] = {"none", "plain", "plain64", "essiv", NULL};
const char *const luks_digest_words[] = {"sha1",   "sha224",    "sha256", "sha384",
                                         "sha512", "ripemd160", NULL};

static int find_word(const char *const *words, const char *text, size_t length)
{
    for (int i = 0; words[i]; i++) {
        if (strlen(words[i]) == length && memcmp(words[i], text, length) == 0)
            return i;
    }
    return -1;
}

/* A name that is not known: `field` says what it was to name. */
static int unknown_name(const char *field, const char *text, struct error *error)
{
    char shown[4 * LUKS_NAME_BYTES + 1];

    return error_set(error, ENOTSUP, "the %s '%s' of the LUKS header is not supported", field,
                     error_escape(shown, sizeof(shown), text, strlen(text)));
}

/* Takes a field of text that must end within itself. */
static int take_name(struct byte_reader *r, const char *field, char *ret, struct error *error)
{
    const uint8_t *data = byte_reader_take(r, LUKS_NAME_BYTES);

    if (!memchr(data, 0, LUKS_NAME_BYTES))
        return error_set(error, EINVAL, "the %s of the LUKS header has no end", field);
    memcpy(ret, data, LUKS_NAME_BYTES);
    return 0;
}

/* "MODE", "MODE-IV" or "MODE-IV:DIGEST". */
static int parse_mode(const char *text, struct cipher_kind *kind, struct error *error)
{
    size_t mode_length = strcspn(text, "-");
    const char *iv = text[mode_length] ? text + mode_length + 1 : "none";
    size_t iv_length = strcspn(iv, ":");
    const char *digest = iv[iv_length] ? iv + iv_length + 1 : NULL;
    int found_mode = find_word(luks_mode_words, text, mode_length);
    int found_iv = find_word(luks_iv_words, iv, iv_length);
    int found_digest = digest ? find_word(luks_digest_words, digest, strlen(digest)) : 0;

    if (found_mode < 0 || found_iv < 0 || found_digest < 0 ||
        (digest != NULL) != (found_iv == CIPHER_IV_ESSIV) ||
        (found_iv == CIPHER_IV_NONE && text[mode_length]))
        return unknown_name("cipher mode", text, error);
    kind->mode = (enum cipher_mode)found_mode;
    kind->iv = (enum cipher_iv)found_iv;
    kind->iv_digest = (enum digest)found_digest;
    return 0;
}

static int read_names(struct byte_reader *r, struct luks_header *h, struct error *error)
{
    char cipher[LUKS_NAME_BYTES], mode[LUKS_NAME_BYTES], digest[LUKS_NAME_BYTES];
    int found, err = take_name(r, "cipher", cipher, error);

    if (err == 0)
        err = take_name(r, "cipher mode", mode, error);
    if (err == 0)
        err = take_name(r, "hash", digest, error);
    if (err < 0)
        return err;
    found = find_word(luks_cipher_words, cipher, strlen(cipher));
    if (found < 0)
        return unknown_name("cipher", cipher, error);
    h->kind.algorithm = (enum cipher_algorithm)found;
    found = find_word(luks_digest_words, digest, strlen(digest));
    if (found < 0)
        return unknown_name("hash", digest, error);
    h->digest = (enum digest)found;
    return parse_mode(mode, &h->kind, error);
}

static void read_numbers(struct byte_reader *r, struct luks_header *h)
{
    h->payload_sector = byte_reader_be32(r);
    h->key_bytes = byte_reader_be32(r);
    memcpy(h->key_digest, byte_reader_take(r, LUKS_DIGEST_BYTES), LUKS_DIGEST_BYTES);
    memcpy(h->digest_salt, byte_reader_take(r, LUKS_SALT_BYTES), LUKS_SALT_BYTES);
    h->digest_iterations = byte_reader_be32(r);
    memcpy(h->uuid, byte_reader_take(r, LUKS_UUID_BYTES), LUKS_UUID_BYTES);
    h->uuid[LUKS_UUID_BYTES] = 0;
}

static int read_slot(struct byte_reader *r, unsigned index, struct luks_slot *slot,
                     struct error *error)
{
    uint32_t state = byte_reader_be32(r);

    if (state != SLOT_ACTIVE && state != SLOT_FREE)
        return error_set(error, EINVAL,
                         "key slot %u of the LUKS header has the state 0x%08" PRIx32
                         ", which is neither active nor free",
                         index, state);
    slot->active = state == SLOT_ACTIVE;
    slot->iterations = byte_reader_be32(r);
    memcpy(slot->salt, byte_reader_take(r, LUKS_SALT_BYTES), LUKS_SALT_BYTES);
    slot->sector = byte_reader_be32(r);
    slot->stripes = byte_reader_be32(r);
    return 0;
}

uint64_t luks_material_sectors(uint64_t key_bytes, uint64_t stripes)
{
    return div_round_up(key_bytes * stripes, CIPHER_SECTOR);
}

static uint64_t slot_sectors(const struct luks_header *h, const struct luks_slot *slot)
{
    return luks_material_sectors(h->key_bytes, slot->stripes);
}

/* A slot by itself. */
static int check_slot(const struct luks_header *h, unsigned index, struct error *error)
{
    const struct luks_slot *slot = &h->slots[index];

    if (slot->stripes == 0 || (uint64_t)h->key_bytes * slot->stripes > LUKS_MATERIAL_MAX)
        return error_set(error, EINVAL,
                         "key slot %u of the LUKS header has %" PRIu32
                         " stripes: its key material must have 1 byte to 2 MiB",
                         index, slot->stripes);
    if (slot->active && slot->iterations == 0)
        return error_set(error, EINVAL, "key slot %u of the LUKS header has no iterations", index);
    if (slot->sector < LUKS_FIRST_SECTOR)
        return error_set(error, EINVAL,
                         "the key material of slot %u begins at sector %" PRIu32
                         ", within the LUKS header",
                         index, slot->sector);
    if (h->payload_sector > 0 && slot->sector + slot_sectors(h, slot) > h->payload_sector)
        return error_set(error, EINVAL,
                         "the key material of slot %u (%" PRIu64 " sectors from sector %" PRIu32
                         " on) reaches into the payload, which begins at sector %" PRIu32,
                         index, slot_sectors(h, slot), slot->sector, h->payload_sector);
    return 0;
}

int luks_slot_check(const struct luks_header *header, unsigned index, struct error *error)
{
    const struct luks_slot *slot = &header->slots[index];
    int err = check_slot(header, index, error);

    for (unsigned i = 0; i < LUKS_SLOTS && err == 0; i++) {
        const struct luks_slot *other = &header->slots[i];

        if (i != index && other->active &&
            ranges_overlap(slot->sector, slot_sectors(header, slot), other->sector,
                           slot_sectors(header, other)))
            err = error_set(error, EINVAL,
                            "the key material of the slots %u and %u of the LUKS header overlaps",
                            index, i);
    }
    return err;
}

/* Free slots do no harm, whatever they say. */
static int check_slots(const struct luks_header *h, struct error *error)
{
    int err = 0;

    for (unsigned i = 0; i < LUKS_SLOTS && err == 0; i++) {
        if (h->slots[i].active)
            err = luks_slot_check(h, i, error);
    }
    return err;
}

static int check_cipher(const struct luks_header *h, struct error *error)
{
    const char *why;
    int err;

    if (h->key_bytes == 0 || h->key_bytes > CIPHER_KEY_MAX)
        return error_set(error, EINVAL,
                         "the key of the LUKS header has %" PRIu32 " bytes, it must have 1 to %d",
                         h->key_bytes, CIPHER_KEY_MAX);
    if (h->digest_iterations == 0)
        return error_set(error, EINVAL, "the key digest of the LUKS header has no iterations");
    err = cipher_kind_check(&h->kind, h->key_bytes, &why);
    if (err < 0)
        return error_set(error, -err, "%s-%s with a key of %" PRIu32 " bytes is not supported: %s",
                         luks_cipher_words[h->kind.algorithm], luks_mode_words[h->kind.mode],
                         h->key_bytes, why);
    return 0;
}

int luks_header_parse(const void *data, size_t length, struct luks_header *ret, struct error *error)
{
    struct byte_reader r = byte_reader_of(data, length);
    struct luks_header h = {0};
    const uint8_t *magic;
    uint16_t version;
    int err;

    if (length < LUKS_HEADER_BYTES)
        return error_set(error, EINVAL, "there are only %zu bytes where a LUKS header has %d",
                         length, LUKS_HEADER_BYTES);
    magic = byte_reader_take(&r, LUKS_MAGIC_BYTES);
    if (memcmp(magic, LUKS_MAGIC, LUKS_MAGIC_BYTES) != 0)
        return error_set(error, EINVAL, "there is no LUKS header: its first six bytes differ");
    version = byte_reader_be16(&r);
    if (version != 1)
        return error_set(error, ENOTSUP, "the LUKS header's version is %u, only 1 is supported",
                         version);
    err = read_names(&r, &h, error);
    if (err < 0)
        return err;
    read_numbers(&r, &h);
    for (unsigned i = 0; i < LUKS_SLOTS && err == 0; i++)
        err = read_slot(&r, i, &h.slots[i], error);
    if (err == 0)
        err = check_cipher(&h, error);
    if (err == 0)
        err = check_slots(&h, error);
    if (err == 0)
        *ret = h;
    return err;
}

int luks_header_check_area(const struct luks_header *header, uint64_t area_bytes,
                           struct error *error)
{
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *slot = &header->slots[i];

        if (!slot->active)
            continue;
        if (!range_within(slot->sector, slot_sectors(header, slot), area_bytes / CIPHER_SECTOR))
            return error_set(error, EINVAL,
                             "the key material of slot %u (%" PRIu64 " sectors from sector %" PRIu32
                             " on) passes the end of the %" PRIu64 " bytes where it must be",
                             i, slot_sectors(header, slot), slot->sector, area_bytes);
    }
    return 0;
}

static void put_text(struct byte_writer *w, const char *text, size_t field)
{
    size_t length = strnlen(text, field);

    byte_writer_put(w, text, length);
    byte_writer_zero(w, field - length);
}

static void put_mode(struct byte_writer *w, const struct cipher_kind *kind)
{
    const char *mode = luks_mode_words[kind->mode], *iv = luks_iv_words[kind->iv];
    bool digest = kind->iv == CIPHER_IV_ESSIV;
    char text[LUKS_NAME_BYTES + 1];

    if (kind->iv == CIPHER_IV_NONE)
        snprintf(text, sizeof(text), "%s", mode);
    else
        snprintf(text, sizeof(text), "%s-%s%s%s", mode, iv, digest ? ":" : "",
                 digest ? luks_digest_words[kind->iv_digest] : "");
    put_text(w, text, LUKS_NAME_BYTES);
}

static void put_slot(struct byte_writer *w, const struct luks_slot *slot)
{
    byte_writer_be32(w, slot->active ? SLOT_ACTIVE : SLOT_FREE);
    byte_writer_be32(w, slot->iterations);
    byte_writer_put(w, slot->salt, LUKS_SALT_BYTES);
    byte_writer_be32(w, slot->sector);
    byte_writer_be32(w, slot->stripes);
}

void luks_header_write(const struct luks_header *header, void *out)
{
    struct byte_writer w = byte_writer_of(out, LUKS_HEADER_BYTES);

    byte_writer_put(&w, LUKS_MAGIC, LUKS_MAGIC_BYTES);
    byte_writer_be16(&w, 1);
    put_text(&w, luks_cipher_words[header->kind.algorithm], LUKS_NAME_BYTES);
    put_mode(&w, &header->kind);
    put_text(&w, luks_digest_words[header->digest], LUKS_NAME_BYTES);
    byte_writer_be32(&w, header->payload_sector);
    byte_writer_be32(&w, header->key_bytes);
    byte_writer_put(&w, header->key_digest, LUKS_DIGEST_BYTES);
    byte_writer_put(&w, header->digest_salt, LUKS_SALT_BYTES);
    byte_writer_be32(&w, header->digest_iterations);
    put_text(&w, header->uuid, LUKS_UUID_BYTES);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        put_slot(&w, &header->slots[i]);
}

void luks_header_place(struct luks_header *header)
{
    uint64_t step =
        align_up(luks_material_sectors(header->key_bytes, LUKS_STRIPES), LUKS_ALIGN_SECTORS);

    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        header->slots[i] = (struct luks_slot){.sector = (uint32_t)(LUKS_ALIGN_SECTORS + i * step),
                                              .stripes = LUKS_STRIPES};
    header->payload_sector = (uint32_t)(LUKS_ALIGN_SECTORS + LUKS_SLOTS * step);
}

/* Mixes a stripe: each piece as long as a digest becomes the digest of its number and itself. */
static int diffuse(enum digest digest, uint8_t *block, uint32_t length)
{
    uint32_t piece = (uint32_t)digest_length(digest);
    uint8_t out[DIGEST_BYTES_MAX];
    int err = 0;

    for (uint32_t j = 0; j * piece < length && err == 0; j++) {
        uint32_t here = (uint32_t)min_u64(piece, length - j * piece);

        err = digest_with_prefix(digest, j, block + j * piece, here, out);
        memcpy(block + j * piece, out, here);
    }
    secret_wipe(out, sizeof(out));
    return err;
}

static void xor_stripe(uint8_t *block, const uint8_t *stripe, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        block[i] ^= stripe[i];
}

/* What the last stripe is combined with: all others, mixed. */
static int mix(enum digest digest, uint32_t key_bytes, uint32_t stripes, const uint8_t *material,
               uint8_t *block)
{
    int err = 0;

    memset(block, 0, key_bytes);
    for (uint32_t i = 0; i + 1 < stripes && err == 0; i++) {
        xor_stripe(block, material + (size_t)i * key_bytes, key_bytes);
        err = diffuse(digest, block, key_bytes);
    }
    return err;
}

int luks_merge(enum digest digest, uint32_t key_bytes, uint32_t stripes, const uint8_t *material,
               uint8_t *ret_key)
{
    int err = mix(digest, key_bytes, stripes, material, ret_key);

    xor_stripe(ret_key, material + (size_t)(stripes - 1) * key_bytes, key_bytes);
    return err;
}

int luks_split(enum digest digest, uint32_t key_bytes, uint32_t stripes, const uint8_t *key,
               uint8_t *material)
{
    uint8_t *last = material + (size_t)(stripes - 1) * key_bytes;
    int err = mix(digest, key_bytes, stripes, material, last);

    xor_stripe(last, key, key_bytes);
    return err;
}
