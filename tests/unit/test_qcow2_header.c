/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of qcow2, field by field, and its extensions. */
#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/format/qcow2_disk.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FILE_SIZE (1024 * 1024)

/* A sound header, of 64 KiB clusters; the tests spoil it. */
static void make_header(uint8_t *data, unsigned version)
{
    memset(data, 0, 1024);
    put_be32(data, QCOW2_MAGIC);
    put_be32(data + 4, version);
    put_be32(data + 20, 16);
    put_be64(data + 24, 10 * MIB);
    put_be32(data + 36, 1);
    put_be64(data + 40, 3 * 65536);
    put_be64(data + 48, 65536);
    put_be32(data + 56, 1);
    if (version == 3) {
        put_be32(data + 96, 4);
        put_be32(data + 100, 112);
    }
}

/* All that opening would check; 0 or the first error. */
static int judge(const uint8_t *data, size_t length, bool writable, struct error *error)
{
    struct qcow2_header h;
    int err = qcow2_header_parse(data, length, &h, error);

    if (err == 0)
        err = qcow2_header_check_features(&h, data, length, false, error);
    if (err == 0)
        err = qcow2_header_parse_extensions(data, length, &h, error);
    if (err == 0)
        err = qcow2_header_check_features(&h, data, length, writable, error);
    if (err == 0)
        err = qcow2_header_check_layout(&h, FILE_SIZE, false, error);
    return err;
}

static void reads_a_header(void **state)
{
    uint8_t data[1024];
    struct qcow2_header h;

    make_header(data, 3);
    put_be64(data + 80, 1);
    put_be32(data + 60, 2);
    put_be64(data + 64, 4 * 65536);
    assert_int_equal(qcow2_header_parse(data, sizeof(data), &h, NULL), 0);
    assert_int_equal(h.version, 3);
    assert_int_equal(h.cluster_bits, 16);
    assert_int_equal(h.size, 10 * MIB);
    assert_int_equal(h.l1_size, 1);
    assert_int_equal(h.l1_offset, 3 * 65536);
    assert_int_equal(h.reftable_offset, 65536);
    assert_int_equal(h.reftable_clusters, 1);
    assert_int_equal(h.snapshots, 2);
    assert_int_equal(h.snapshots_offset, 4 * 65536);
    assert_int_equal(h.compatible, 1);
    assert_int_equal(h.refcount_order, 4);
    assert_int_equal(h.header_length, 112);
    assert_int_equal(h.backing_name.offset, 0);
}

/* Bytes that version 3 gives a meaning have none in version 2. */
static void version_2_has_no_features(void **state)
{
    struct error error = {.text = ""};
    uint8_t data[1024];
    struct qcow2_header h;

    make_header(data, 2);
    memset(data + 72, 0xff, 64);
    assert_int_equal(qcow2_header_parse(data, sizeof(data), &h, &error), 0);
    assert_int_equal(h.incompatible | h.compatible | h.autoclear, 0);
    assert_int_equal(h.refcount_order, 4);
    assert_int_equal(h.header_length, 72);
    assert_int_equal(h.compression_type, 0);
}

static void header_of_104_bytes(void **state)
{
    uint8_t data[1024];

    make_header(data, 3);
    put_be32(data + 100, 104);
    assert_int_equal(judge(data, sizeof(data), true, NULL), 0);
}

struct bad_field {
    unsigned at, bytes;
    uint64_t value;
    int err;
    const char *text; /* part of the message */
};

static const struct bad_field bad_fields[] = {
    {0, 4, 0x514649fa, -EINVAL, "not a qcow2 image"},
    {4, 4, 0, -ENOTSUP, "version is 0"},
    {4, 4, 1, -ENOTSUP, "version is 1"},
    {4, 4, 4, -ENOTSUP, "version is 4"},
    {4, 4, UINT32_MAX, -ENOTSUP, "version is 4294967295"},
    {8, 8, 111, -EINVAL, "backing file name length is 0"},
    {20, 4, 8, -EINVAL, "cluster_bits is 8, it must be 9 to 21"},
    {20, 4, 22, -EINVAL, "cluster_bits is 22"},
    {20, 4, 32, -EINVAL, "cluster_bits is 32"},
    {20, 4, UINT32_MAX, -EINVAL, "cluster_bits is 4294967295"},
    {24, 8, 512 * MIB + 1, -EINVAL, "needs 2"},
    {24, 8, INT64_MAX, -EINVAL, "virtual size is 9223372036854775807"},
    {24, 8, UINT64_MAX, -EINVAL, "virtual size is 18446744073709551615"},
    {32, 4, 2, -EINVAL, "crypt_method 2), but has no extension"},
    {32, 4, 3, -ENOTSUP, "crypt_method 3, only 1 and 2"},
    {32, 4, 7, -ENOTSUP, "crypt_method 7"},
    {36, 4, 0, -EINVAL, "L1 size is 0"},
    {36, 4, 4194305, -EINVAL, "L1 size is 4194305"},
    {36, 4, UINT32_MAX, -EINVAL, "L1 size is 4294967295"},
    {36, 4, 4194304, -EINVAL, "L1 table is 33554432 bytes"},
    {40, 8, 0, -EINVAL, "L1 table offset is 0"},
    {40, 8, 3 * 65536 + 512, -EINVAL, "L1 table offset is 197120"},
    {40, 8, FILE_SIZE, -EINVAL, "beyond the end of the file"},
    {40, 8, UINT64_C(1) << 56, -EINVAL, "below 2^56"},
    {40, 8, UINT64_MAX << 16, -EINVAL, "below 2^56"},
    {48, 8, 0, -EINVAL, "refcount table offset is 0"},
    {48, 8, 65536 + 8, -EINVAL, "refcount table offset is 65544"},
    {48, 8, FILE_SIZE, -EINVAL, "refcount table is 65536 bytes at offset 1048576"},
    {56, 4, 0, -EINVAL, "refcount table length is 0"},
    {56, 4, 129, -EINVAL, "refcount table length is 129"},
    {56, 4, UINT32_MAX, -EINVAL, "refcount table length is 4294967295"},
    {60, 4, 65537, -EINVAL, "number of snapshots is 65537"},
    {60, 4, UINT32_MAX, -EINVAL, "number of snapshots is 4294967295"},
    {60, 4, 1, -EINVAL, "snapshot table offset is 0"},
    {72, 8, 1 << 3, -EINVAL, "contradicts incompatible bit 3 (set)"},
    {72, 8, 1 << 5, -ENOTSUP, "incompatible bit 5"},
    {72, 8, UINT64_C(1) << 63, -ENOTSUP, "incompatible bit 63"},
    {72, 8, UINT64_MAX, -ENOTSUP, "incompatible bit 5, incompatible bit 6"},
    {88, 8, 1, -EINVAL, "no bitmaps extension"},
    {96, 4, 7, -EINVAL, "refcount order is 7, it must be 0 to 6"},
    {96, 4, 31, -EINVAL, "refcount order is 31"},
    {100, 4, 0, -EINVAL, "header length is 0"},
    {100, 4, 96, -EINVAL, "header length is 96"},
    {100, 4, 105, -EINVAL, "header length is 105"},
    {100, 4, 65544, -EINVAL, "header length is 65544"},
    {104, 1, 1, -EINVAL, "contradicts incompatible bit 3 (clear)"},
    {104, 1, 2, -ENOTSUP, "compression type is 2"},
    {104, 1, 255, -ENOTSUP, "compression type is 255"},
};

static void put_field(uint8_t *data, const struct bad_field *f)
{
    if (f->bytes == 8)
        put_be64(data + f->at, f->value);
    else if (f->bytes == 4)
        put_be32(data + f->at, (uint32_t)f->value);
    else
        data[f->at] = (uint8_t)f->value;
}

static void names_bad_fields(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(bad_fields); i++) {
        const struct bad_field *f = &bad_fields[i];
        struct error error = {.text = ""};
        uint8_t data[1024];

        make_header(data, 3);
        put_field(data, f);
        if (judge(data, sizeof(data), true, &error) != f->err || !strstr(error.text, f->text))
            fail_msg("field at %u = %lu: said \"%s\", not \"%s\"", f->at, f->value, error.text,
                     f->text);
    }
}

/* Extended L2 entries and data files do not go with everything. */
static void features_that_exclude_each_other(void **state)
{
    static const struct {
        uint64_t incompatible, autoclear, size, backing, snapshots;
        unsigned cluster_bits;
        const char *text; /* NULL: fine */
    } cases[] = {
        {1 << 4, 0, 256 * MIB, 0, 0, 16, NULL},
        {1 << 4, 0, 256 * MIB + 1, 0, 0, 16, "needs 2"},
        {1 << 4, 0, 4096, 0, 0, 14, NULL},
        {1 << 4, 0, 4096, 0, 0, 13, "clusters of 8192 bytes; they must have 16 KiB"},
        {1 << 4, 0, 4096, 512, 1, 16, NULL},
        {1 << 2, 0, 4096, 512, 0, 16, NULL},
        {1 << 2, 2, 4096, 0, 0, 16, NULL},
        {1 << 2, 2, 4096, 512, 0, 16, "backing file, which exclude"},
        {0, 2, 4096, 512, 0, 16, NULL}, /* of no meaning without a data file */
        {1 << 2, 0, 4096, 0, 1, 16, "snapshots, which exclude"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct error error = {.text = ""};
        uint8_t data[1024];
        int err;

        make_header(data, 3);
        put_be64(data + 8, cases[i].backing);
        put_be32(data + 16, cases[i].backing ? 1 : 0);
        put_be32(data + 20, cases[i].cluster_bits);
        put_be64(data + 24, cases[i].size);
        put_be32(data + 60, (uint32_t)cases[i].snapshots);
        put_be64(data + 64, cases[i].snapshots ? 4 * 65536 : 0);
        put_be64(data + 72, cases[i].incompatible);
        put_be64(data + 88, cases[i].autoclear);
        err = judge(data, sizeof(data), true, &error);
        if (err != (cases[i].text ? -EINVAL : 0) ||
            (cases[i].text && !strstr(error.text, cases[i].text)))
            fail_msg("case %zu: %d, \"%s\"", i, err, error.text);
    }
}

static void refuses_every_cut(void **state)
{
    struct error error = {.text = ""};
    uint8_t data[1024];

    make_header(data, 3);
    for (size_t n = 0; n < 105; n++) {
        struct qcow2_header h;
        uint8_t *exact = malloc(n + 1);

        memcpy(exact, data, n);
        assert_int_equal(qcow2_header_parse(exact, n, &h, &error), -EINVAL);
        free(exact);
    }
}

/* Every field with every extreme: an answer, and a message when it is no. */
static void survives_extremes(void **state)
{
    static const uint64_t values[] = {0,          1,         INT32_MAX,         UINT32_C(1) << 31,
                                      UINT32_MAX, INT64_MAX, UINT64_C(1) << 63, UINT64_MAX};

    for (unsigned a = 4; a < 112; a += 4) {
        for (unsigned b = a; b < 112; b += 4) {
            for (size_t v = 0; v < ARRAY_SIZE(values) * ARRAY_SIZE(values); v++) {
                struct error error = {.text = ""};
                uint8_t data[1024];

                make_header(data, 3);
                put_be64(data + a, values[v / ARRAY_SIZE(values)]);
                put_be64(data + b, values[v % ARRAY_SIZE(values)]);
                if (judge(data, sizeof(data), true, &error) < 0)
                    assert_true(error.text[0] != 0);
            }
        }
    }
}

static void dirty_and_corrupt_can_be_read(void **state)
{
    for (unsigned bit = 0; bit < 2; bit++) {
        struct error error = {.text = ""};
        uint8_t data[1024];

        make_header(data, 3);
        put_be64(data + 72, UINT64_C(1) << bit);
        assert_int_equal(judge(data, sizeof(data), false, &error), 0);
        /* What is dirty is repaired when it is opened. */
        assert_int_equal(judge(data, sizeof(data), true, &error), bit ? -EROFS : 0);
        assert_true(bit == 0 || strstr(error.text, "corrupt"));
        assert_true(bit == 0 || strstr(error.text, "qemu-img check -r all"));
    }
}

static size_t put_extension(uint8_t *at, uint32_t type, uint32_t length, const void *data)
{
    put_be32(at, type);
    put_be32(at + 4, length);
    if (data)
        memcpy(at + 8, data, length);
    return 8 + align_up(length, 8);
}

static void reads_extensions(void **state)
{
    struct error error = {.text = ""};
    uint8_t data[1024], bitmaps[24] = {0};
    struct qcow2_header h;
    size_t at = 112;

    make_header(data, 3);
    put_be64(data + 88, QCOW2_AUTOCLEAR_BITMAPS);
    put_be32(bitmaps, 3);
    put_be64(bitmaps + 8, 96);
    put_be64(bitmaps + 16, 5 * 65536);
    at += put_extension(data + at, 0x12345678, 5, "hello");
    at += put_extension(data + at, 0xe2792aca, 5, "qcow2");
    at += put_extension(data + at, 0x23852875, 24, bitmaps);
    put_be64(data + 8, at + 8);
    put_be32(data + 16, 4);
    memcpy(data + at + 8, "base", 4);
    assert_int_equal(qcow2_header_parse(data, sizeof(data), &h, &error), 0);
    assert_int_equal(qcow2_header_parse_extensions(data, sizeof(data), &h, &error), 0);
    assert_int_equal(h.backing_format.length, 5);
    assert_memory_equal(data + h.backing_format.offset, "qcow2", 5);
    assert_int_equal(h.backing_name.length, 4);
    assert_memory_equal(data + h.backing_name.offset, "base", 4);
    assert_true(h.has_bitmaps);
    assert_int_equal(h.bitmap_directory_offset, 5 * 65536);
    assert_int_equal(h.bitmap_directory_size, 96);
}

/* Old producers put the name right behind the header, without an end of the list. */
static void extensions_end_at_the_name(void **state)
{
    uint8_t data[1024];
    struct qcow2_header h;

    make_header(data, 2);
    put_be64(data + 8, 72);
    put_be32(data + 16, 300);
    memset(data + 72, 'x', 300);
    assert_int_equal(qcow2_header_parse(data, sizeof(data), &h, NULL), 0);
    assert_int_equal(qcow2_header_parse_extensions(data, sizeof(data), &h, NULL), 0);
}

struct bad_extension {
    uint32_t type, length;
    uint8_t bytes[24];
    const char *text;
};

static void refuses_bad_extensions(void **state)
{
    static const struct bad_extension bad[] = {
        {0x99999999, UINT32_MAX, {0}, "type 0x99999999 has 4294967295 bytes"},
        {0x99999999, 1024 - 119, {0}, "do not fit"},
        {0xe2792aca, 16, {0}, "backing format name length is 16"},
        {0x23852875, 23, {0}, "bitmaps extension length is 23"},
        {0x23852875, 24, {0}, "number of bitmaps is 0"},
        {0x23852875, 24, {0, 1}, "number of bitmaps is 65536"},
        {0x23852875, 24, {0, 0, 0, 1, 9}, "reserved field is 150994944"},
        {0x23852875, 24, {0, 0, 0, 1}, "bitmap directory size is 0"},
        {0x23852875, 24, {[3] = 1, [12] = 4, [15] = 1}, "bitmap directory size is 67108865"},
        {0x23852875, 24, {[3] = 1, [15] = 1}, "bitmap directory offset is 0"},
        {0x23852875, 24, {[3] = 1, [15] = 1, [23] = 1}, "bitmap directory offset is 1"},
        {0x0537be77, 8, {0}, "crypto extension length is 8"},
        {0x0537be77, 16, {0}, "LUKS header length is 0"},
        {0x0537be77, 16, {[14] = 2, [15] = 0x4f}, "LUKS header length is 591"},
        {0x0537be77, 16, {[12] = 1, [15] = 1}, "LUKS header length is 16777217"},
        {0x0537be77, 16, {[14] = 2, [15] = 0x50}, "LUKS header offset is 0"},
        {0x0537be77, 16, {[6] = 1, [14] = 2, [15] = 0x50}, "LUKS header offset is 256"},
        {0x0537be77, 16, {[0] = 1, [14] = 2, [15] = 0x50}, "below 2^56"},
        {0x0537be77, 16, {[5] = 1, [14] = 2, [15] = 0x50}, "not encrypted with LUKS"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct error error = {.text = ""};
        uint8_t data[1024];

        make_header(data, 3);
        put_extension(data + 112, bad[i].type, bad[i].length, NULL);
        memcpy(data + 120, bad[i].bytes, sizeof(bad[i].bytes));
        if (bad[i].type == 0x23852875)
            put_be64(data + 88, QCOW2_AUTOCLEAR_BITMAPS);
        assert_true(judge(data, sizeof(data), false, &error) < 0);
        if (!strstr(error.text, bad[i].text))
            fail_msg("said \"%s\", not \"%s\"", error.text, bad[i].text);
    }
}

static void refuses_extensions_twice(void **state)
{
    static const uint32_t types[] = {0xe2792aca, 0x6803f857, 0x44415441};

    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        struct error error = {.text = ""};
        uint8_t data[1024];

        make_header(data, 3);
        put_extension(data + 112, types[i], 3, "raw");
        put_extension(data + 128, types[i], 3, "raw");
        assert_int_equal(judge(data, sizeof(data), false, &error), -EINVAL);
        assert_non_null(strstr(error.text, "two extensions"));
    }
}

/* Names come from the image: they need no end, and may try to play tricks. */
static void names_unknown_features(void **state)
{
    struct error error = {.text = ""};
    uint8_t data[1024], table[3 * 48 + 7] = {0};
    size_t at = 112;

    make_header(data, 3);
    table[0] = 1; /* a compatible feature: another list */
    table[1] = 9;
    strcpy((char *)table + 2, "wrong list");
    table[48 + 1] = 9;
    memset(table + 48 + 2, 'n', 46);
    table[96 + 1] = 17;
    strcpy((char *)table + 96 + 2, "esc\x1b[2J\n'");
    at += put_extension(data + at, 0x6803f857, sizeof(table), table);
    put_extension(data + at, 0x99999999, UINT32_MAX, NULL); /* broken: no matter */
    put_be64(data + 72, 1 << 9 | 1 << 17 | 1 << 20);
    assert_int_equal(judge(data, sizeof(data), false, &error), -ENOTSUP);
    assert_non_null(strstr(
        error.text, "'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' = incompatible bit 9"));
    assert_non_null(strstr(error.text, "\\x1b[2J\\x0a"));
    assert_non_null(strstr(error.text, "= incompatible bit 17, incompatible bit 20"));
    assert_null(strstr(error.text, "wrong list"));
    assert_null(strchr(error.text, 0x1b));
}

static void backing_names(void **state)
{
    static const struct {
        uint64_t offset;
        uint32_t length;
        const char *text; /* NULL: fine */
    } cases[] = {
        {112, 1, NULL},
        {112, 912, NULL},
        {65536 - 1023, 1023, NULL},
        {112, 0, "length is 0"},
        {112, 1024, "length is 1024"},
        {104, 4, "offset is 104"},
        {65535, 2, "offset is 65535"},
        {UINT64_MAX, 2, "offset is 4294967295"},
        {UINT64_C(1) << 32 | 112, 2, "offset is 4294967295"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct error error = {.text = ""};
        struct qcow2_header h;
        uint8_t data[1024];
        int err;

        make_header(data, 3);
        put_be64(data + 8, cases[i].offset);
        put_be32(data + 16, cases[i].length);
        err = qcow2_header_parse(data, sizeof(data), &h, &error);
        assert_int_equal(err, cases[i].text ? -EINVAL : 0);
        assert_true(!cases[i].text || strstr(error.text, cases[i].text));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_a_header),
        cmocka_unit_test(version_2_has_no_features),
        cmocka_unit_test(header_of_104_bytes),
        cmocka_unit_test(names_bad_fields),
        cmocka_unit_test(features_that_exclude_each_other),
        cmocka_unit_test(refuses_every_cut),
        cmocka_unit_test(survives_extremes),
        cmocka_unit_test(dirty_and_corrupt_can_be_read),
        cmocka_unit_test(reads_extensions),
        cmocka_unit_test(extensions_end_at_the_name),
        cmocka_unit_test(refuses_bad_extensions),
        cmocka_unit_test(refuses_extensions_twice),
        cmocka_unit_test(names_unknown_features),
        cmocka_unit_test(backing_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
