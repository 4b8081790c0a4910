/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: a LUKS header.  What is accepted is within all limits, and is the same when it is
 * written and read again.
 */
#include "base/checked.h"
#include "blockcore/luks_disk.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void check_header(const struct luks_header *h, size_t size)
{
    bool inside = luks_header_check_area(h, size, NULL) == 0;

    require(h->key_bytes >= 1 && h->key_bytes <= CIPHER_KEY_MAX && h->digest_iterations > 0);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *s = &h->slots[i];
        uint64_t end =
            (s->sector + luks_material_sectors(h->key_bytes, s->stripes)) * CIPHER_SECTOR;

        if (!s->active)
            continue;
        require(s->iterations > 0 && s->stripes > 0 && s->sector >= LUKS_FIRST_SECTOR);
        require((uint64_t)s->stripes * h->key_bytes <= LUKS_MATERIAL_MAX);
        require(!inside || end <= size);
    }
}

static void check_cipher(const struct luks_header *h)
{
    uint8_t key[CIPHER_KEY_MAX] = {1}, data[CIPHER_SECTOR] = {2}, plain[CIPHER_SECTOR] = {2};
    struct cipher *cipher;

    require(cipher_new(&h->kind, key, h->key_bytes, &cipher) == 0);
    cipher_encrypt(cipher, data, sizeof(data), h->payload_sector);
    cipher_decrypt(cipher, data, sizeof(data), h->payload_sector);
    require(memcmp(data, plain, sizeof(data)) == 0);
    cipher_free(cipher);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct luks_header h, again;
    uint8_t out[LUKS_HEADER_BYTES], out_again[LUKS_HEADER_BYTES];
    struct error error = {.text = ""};

    if (luks_header_parse(data, size, &h, &error) < 0) {
        require(error.text[0] != '\0');
        return 0;
    }
    check_header(&h, size);
    check_cipher(&h);
    luks_header_write(&h, out);
    require(luks_header_parse(out, sizeof(out), &again, NULL) == 0);
    luks_header_write(&again, out_again);
    require(memcmp(out, out_again, sizeof(out)) == 0);
    return 0;
}
