/* SPDX-License-Identifier: BSD-3-Clause */
/* The LUKS header field by field, and the anti-forensic splitter. */
#include "blockcore/luks_disk.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define AREA (4040 * CIPHER_SECTOR) /* header and key material with keys of 64 bytes */
#define SLOT(i) (208 + 48 * (i))

static struct luks_header sound_header(void)
{
    struct luks_header h = {.kind = {CIPHER_AES, CIPHER_XTS, CIPHER_IV_PLAIN64, 0},
                            .digest = DIGEST_SHA256,
                            .key_bytes = 64,
                            .digest_iterations = 1000,
                            .uuid = "0f1e2d3c-0000-4000-8000-000000000000"};

    luks_header_place(&h);
    memset(h.key_digest, 0xd1, sizeof(h.key_digest));
    memset(h.digest_salt, 0xd2, sizeof(h.digest_salt));
    h.slots[0].active = true;
    h.slots[0].iterations = 2000;
    memset(h.slots[0].salt, 0xd3, LUKS_SALT_BYTES);
    return h;
}

static void need_ciphers(void)
{
    if (!cipher_available())
        test_skip("this build is without ciphers (nettle)");
}

static void test_layout(void **state)
{
    struct luks_header h = sound_header();

    need_ciphers();
    assert_int_equal(h.slots[0].sector, 8);
    assert_int_equal(h.slots[1].sector, 512);
    assert_int_equal(h.slots[7].sector, 3536);
    assert_int_equal(h.payload_sector, 4040);
    h.key_bytes = 16;
    luks_header_place(&h);
    assert_int_equal(h.slots[1].sector, 136);
    assert_int_equal(h.payload_sector, 1032);
    assert_int_equal(luks_material_sectors(24, LUKS_STRIPES), 188); /* 96000 bytes and a rest */
}

static void test_written_and_read(void **state)
{
    struct luks_header h = sound_header(), back;
    uint8_t data[LUKS_HEADER_BYTES];

    need_ciphers();
    luks_header_write(&h, data);
    assert_memory_equal(data, "LUKS\xba\xbe\0\1aes\0", 12);
    assert_string_equal((char *)data + 40, "xts-plain64");
    assert_string_equal((char *)data + 72, "sha256");
    assert_int_equal(get_be32(data + 104), 4040);
    assert_int_equal(get_be32(data + SLOT(0)), 0x00ac71f3);
    assert_int_equal(get_be32(data + SLOT(1)), 0x0000dead);
    assert_int_equal(get_be32(data + SLOT(1) + 44), 4000);
    assert_int_equal(luks_header_parse(data, sizeof(data), &back, NULL), 0);
    assert_int_equal(back.kind.mode, CIPHER_XTS);
    assert_int_equal(back.kind.iv, CIPHER_IV_PLAIN64);
    assert_int_equal(back.digest, DIGEST_SHA256);
    assert_int_equal(back.key_bytes, 64);
    assert_string_equal(back.uuid, h.uuid);
    assert_memory_equal(back.slots[0].salt, h.slots[0].salt, LUKS_SALT_BYTES);
    assert_true(back.slots[0].active && !back.slots[1].active);
    assert_int_equal(luks_header_check_area(&back, AREA, NULL), 0);
    assert_int_equal(luks_header_check_area(&back, 508 * CIPHER_SECTOR, NULL), 0);
    assert_int_equal(luks_header_check_area(&back, 508 * CIPHER_SECTOR - 1, NULL), -EINVAL);
}

static void test_essiv(void **state)
{
    struct luks_header h = sound_header(), back;
    uint8_t data[LUKS_HEADER_BYTES];

    need_ciphers();
    h.kind = (struct cipher_kind){CIPHER_AES, CIPHER_CBC, CIPHER_IV_ESSIV, DIGEST_SHA256};
    h.key_bytes = 32;
    luks_header_write(&h, data);
    assert_string_equal((char *)data + 40, "cbc-essiv:sha256");
    assert_int_equal(luks_header_parse(data, sizeof(data), &back, NULL), 0);
    assert_int_equal(back.kind.iv, CIPHER_IV_ESSIV);
    assert_int_equal(back.kind.iv_digest, DIGEST_SHA256);
    strcpy((char *)data + 40, "ecb");
    assert_int_equal(luks_header_parse(data, sizeof(data), &back, NULL), 0);
    assert_int_equal(back.kind.mode, CIPHER_ECB);
    assert_int_equal(back.kind.iv, CIPHER_IV_NONE);
}

struct spoil {
    unsigned at, length; /* 4: a number; else text */
    uint32_t number;
    const char *text;
    int err;
    const char *says;
};

static const struct spoil spoils[] = {
    {0, 1, 0, "X", -EINVAL, "first six bytes"},
    {6, 2, 0, "\0\2", -ENOTSUP, "version is 2"},
    {8, 8, 0, "aes-lrw\0", -ENOTSUP, "cipher 'aes-lrw'"},
    {8, 1, 0, "\0", -ENOTSUP, "cipher ''"},
    {40, 5, 0, "xts-\0", -ENOTSUP, "cipher mode 'xts-'"},
    {40, 9, 0, "xts-none\0", -ENOTSUP, "cipher mode 'xts-none'"},
    {40, 5, 0, "-xts\0", -ENOTSUP, "cipher mode '-xts'"},
    {40, 19, 0, "xts-plain64:sha256\0", -ENOTSUP, "cipher mode 'xts-plain64:sha256'"},
    {40, 11, 0, "xts-essiv:\0", -ENOTSUP, "cipher mode 'xts-essiv:'"},
    {40, 4, 0, "xts\0", -EINVAL, "initialization vectors"},
    {72, 4, 0, NULL, -ENOTSUP, "hash ''"},
    {104, 4, 100, NULL, -EINVAL, "reaches into the payload, which begins at sector 100"},
    {108, 4, 0, NULL, -EINVAL, "has 0 bytes"},
    {108, 4, 65, NULL, -EINVAL, "has 65 bytes"},
    {108, 4, 1u << 31, NULL, -EINVAL, "has 2147483648 bytes"},
    {108, 4, 40, NULL, -EINVAL, "key of 40 bytes"},
    {164, 4, 0, NULL, -EINVAL, "digest of the LUKS header has no iterations"},
    {SLOT(3), 4, 1, NULL, -EINVAL, "key slot 3"},
    {SLOT(0) + 4, 4, 0, NULL, -EINVAL, "key slot 0 of the LUKS header has no iterations"},
    {SLOT(0) + 40, 4, 1, NULL, -EINVAL, "within the LUKS header"},
    {SLOT(0) + 40, 4, UINT32_MAX, NULL, -EINVAL, "reaches into the payload"},
    {SLOT(0) + 44, 4, 0, NULL, -EINVAL, "0 stripes"},
    {SLOT(0) + 44, 4, UINT32_MAX, NULL, -EINVAL, "4294967295 stripes"},
    {SLOT(0) + 44, 4, 32769, NULL, -EINVAL, "32769 stripes"},
};

static void test_spoiled(void **state)
{
    need_ciphers();
    for (size_t i = 0; i < ARRAY_SIZE(spoils); i++) {
        const struct spoil *s = &spoils[i];
        struct luks_header h = sound_header(), back = {.key_bytes = 77};
        struct error error = {.text = ""};
        uint8_t data[LUKS_HEADER_BYTES];

        luks_header_write(&h, data);
        if (s->text)
            memcpy(data + s->at, s->text, s->length);
        else
            put_be32(data + s->at, s->number);
        assert_int_equal(luks_header_parse(data, sizeof(data), &back, &error), s->err);
        if (!strstr(error.text, s->says))
            fail_msg("row %zu: '%s' does not say '%s'", i, error.text, s->says);
        assert_int_equal(back.key_bytes, 77); /* nothing is given */
    }
}

/* Slots in use must not overlap; what free ones say does not matter until they are taken. */
static void test_overlap(void **state)
{
    struct luks_header h = sound_header(), back;
    struct error error = {.text = ""};
    uint8_t data[LUKS_HEADER_BYTES];

    need_ciphers();
    h.slots[4].sector = 400;
    luks_header_write(&h, data);
    assert_int_equal(luks_header_parse(data, sizeof(data), &back, NULL), 0);
    assert_int_equal(luks_slot_check(&back, 4, &error), -EINVAL);
    assert_non_null(strstr(error.text, "overlaps"));
    assert_int_equal(luks_slot_check(&back, 5, NULL), 0);
    h.slots[4].active = true;
    h.slots[4].iterations = 1;
    luks_header_write(&h, data);
    assert_int_equal(luks_header_parse(data, sizeof(data), &back, &error), -EINVAL);
}

static void test_short(void **state)
{
    struct luks_header h = sound_header(), back;
    uint8_t data[LUKS_HEADER_BYTES];

    need_ciphers();
    luks_header_write(&h, data);
    for (size_t length = 0; length < sizeof(data); length++)
        assert_int_equal(luks_header_parse(data, length, &back, NULL), -EINVAL);
}

static void test_split(void **state)
{
    static const enum digest digests[] = {DIGEST_SHA1, DIGEST_SHA256, DIGEST_SHA512};
    static const uint32_t lengths[] = {16, 24, 32, 64};
    uint8_t material[64 * 9], key[64], back[64];

    need_ciphers();
    for (unsigned i = 0; i < ARRAY_SIZE(digests) * ARRAY_SIZE(lengths); i++) {
        enum digest digest = digests[i % 3];
        uint32_t length = lengths[i / 3];

        for (size_t k = 0; k < sizeof(material); k++)
            material[k] = (uint8_t)(k * 37 + i);
        memset(key, 0x5a, sizeof(key));
        assert_int_equal(luks_split(digest, length, 9, key, material), 0);
        assert_int_equal(luks_merge(digest, length, 9, material, back), 0);
        assert_memory_equal(back, key, length);
        material[0] ^= 1; /* each bit of the material changes the key */
        assert_int_equal(luks_merge(digest, length, 9, material, back), 0);
        assert_memory_not_equal(back, key, length);
        assert_int_equal(luks_split(digest, length, 1, key, material), 0);
        assert_memory_equal(material, key, length);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),  cmocka_unit_test(test_written_and_read),
        cmocka_unit_test(test_essiv),   cmocka_unit_test(test_spoiled),
        cmocka_unit_test(test_overlap), cmocka_unit_test(test_short),
        cmocka_unit_test(test_split),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
