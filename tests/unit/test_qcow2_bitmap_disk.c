/* SPDX-License-Identifier: BSD-3-Clause */
/* Directory entries and table entries of bitmaps, one rule a row. */
#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/format/qcow2_bitmap_disk.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* 10 MiB, clusters of 4 KiB: at 512 bytes a bit 2560 bytes of bits, one table entry. */
static const struct qcow2_bitmap_disk disk = {
    .size = 10 << 20, .cluster_bits = 12, .file_size = 1 << 20};

static struct qcow2_bitmap_entry sound(void)
{
    return (struct qcow2_bitmap_entry){
        .table_offset = 8192,
        .table_size = 1,
        .flags = QCOW2_BITMAP_AUTO,
        .type = 1,
        .granularity_bits = 9,
        .name = "today",
        .name_length = 5,
        .extra = (const uint8_t *)"",
    };
}

static void is_read_as_written(void **state)
{
    struct qcow2_bitmap_entry entry = sound(), read;
    struct error error = {.text = ""};
    uint8_t data[64];

    memset(data, 0xee, sizeof(data));
    entry.extra = (const uint8_t *)"abc";
    entry.extra_length = 3;
    assert_int_equal(qcow2_bitmap_entry_size(&entry), 32);
    qcow2_bitmap_entry_write(data, &entry);
    assert_int_equal(data[32], 0xee);
    assert_int_equal(get_be32(data + QCOW2_BITMAP_AT_FLAGS), QCOW2_BITMAP_AUTO);
    assert_int_equal(qcow2_bitmap_entry_parse(data, 32, 0, &read, &error), 0);
    assert_int_equal(read.table_offset, 8192);
    assert_int_equal(read.table_size, 1);
    assert_int_equal(read.flags, QCOW2_BITMAP_AUTO);
    assert_int_equal(read.granularity_bits, 9);
    assert_memory_equal(read.extra, "abc", read.extra_length);
    assert_memory_equal(read.name, "today", read.name_length);
}

/* Cut off anywhere, in memory that ends there. */
static void refuses_what_does_not_fit(void **state)
{
    struct qcow2_bitmap_entry entry = sound(), read;
    uint8_t data[32];

    qcow2_bitmap_entry_write(data, &entry);
    for (size_t length = 0; length < sizeof(data); length++) {
        struct error error = {.text = ""};
        uint8_t *cut = malloc(length + 1);

        memcpy(cut, data, length);
        assert_int_equal(qcow2_bitmap_entry_parse(cut, length, 7, &read, &error), -EINVAL);
        assert_non_null(strstr(error.text, "bitmap 7"));
        free(cut);
    }
    put_be32(data + 20, UINT32_MAX);
    assert_int_equal(qcow2_bitmap_entry_parse(data, sizeof(data), 0, &read, NULL), -EINVAL);
    put_be32(data + 20, 0);
    put_be16(data + 18, UINT16_MAX);
    assert_int_equal(qcow2_bitmap_entry_parse(data, sizeof(data), 0, &read, NULL), -EINVAL);
}

struct row {
    const char *name;
    size_t at;
    unsigned bytes;
    uint64_t value;
    const char *problem; /* NULL: none */
};

/* Changes to a sound entry: type, granularity, sizes, offsets, flags. */
static const struct row rows[] = {
    {"sound", 16, 1, 1, NULL},
    {"disabled", 12, 4, 0, NULL},
    {"in use", 12, 4, 1, "inconsistent"},
    {"in use, enabled", 12, 4, 3, "inconsistent"},
    {"reserved flag 3", 12, 4, 8, "flags that are not known"},
    {"reserved flag 31", 12, 4, UINT64_C(1) << 31, "flags that are not known"},
    {"type 0", 16, 1, 0, "not a dirty tracking bitmap"},
    {"type 2", 16, 1, 2, "not a dirty tracking bitmap"},
    {"granularity 0", 17, 1, 0, "granularity"},
    {"granularity 8", 17, 1, 8, "granularity"},
    {"granularity 32", 17, 1, 32, "granularity"},
    {"granularity 63", 17, 1, 63, "granularity"},
    {"granularity 255", 17, 1, 255, "granularity"},
    {"granularity 31", 17, 1, 31, NULL},
    {"no name", 18, 2, 0, "its name"},
    {"table too small", 8, 4, 0, "does not fit the size"},
    {"table too large", 8, 4, 2, "does not fit the size"},
    {"table size wraps", 8, 4, UINT32_MAX, "does not fit the size"},
    {"table size times 8 wraps 32 bits", 8, 4, UINT64_C(1) << 29, "does not fit the size"},
    {"no table", 0, 8, 0, "not within the file"},
    {"table not aligned", 0, 8, 8192 + 512, "not within the file"},
    {"table beyond the end", 0, 8, 1 << 20, "not within the file"},
    {"table offset wraps", 0, 8, UINT64_MAX - 4095, "not within the file"},
    {"last cluster", 0, 8, (1 << 20) - 4096, NULL},
};

static void put(uint8_t *data, const struct row *row)
{
    for (unsigned i = 0; i < row->bytes; i++)
        data[row->at + i] = (uint8_t)(row->value >> 8 * (row->bytes - 1 - i));
}

static void judges_entries(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct qcow2_bitmap_entry entry = sound();
        const char *problem;
        uint8_t data[32];

        qcow2_bitmap_entry_write(data, &entry);
        put(data, &rows[i]);
        assert_int_equal(qcow2_bitmap_entry_parse(data, sizeof(data), 0, &entry, NULL), 0);
        problem = qcow2_bitmap_entry_problem(&entry, &disk);
        if (!problem != !rows[i].problem || (problem && !strstr(problem, rows[i].problem)))
            test_die("%s: '%s' instead of '%s'", rows[i].name, problem ? problem : "none",
                     rows[i].problem ? rows[i].problem : "none");
    }
}

static const char *problem_of_name(const char *name, uint16_t length)
{
    struct qcow2_bitmap_entry entry = sound();

    entry.name = name;
    entry.name_length = length;
    return qcow2_bitmap_entry_problem(&entry, &disk);
}

static void judges_names(void **state)
{
    char name[1024];

    memset(name, 'n', sizeof(name));
    assert_null(problem_of_name(name, 1023));
    assert_non_null(problem_of_name(name, 1024));
    assert_non_null(problem_of_name("a\0b", 3));
    assert_non_null(problem_of_name("\xff", 1));
    assert_null(problem_of_name("d\xc3\xa9j\xc3\xa0", 6));
}

static void judges_extra_data(void **state)
{
    struct qcow2_bitmap_entry entry = sound();

    entry.extra_length = 8;
    entry.extra = (const uint8_t *)"12345678";
    assert_non_null(strstr(qcow2_bitmap_entry_problem(&entry, &disk), "extra data"));
    entry.flags |= QCOW2_BITMAP_EXTRA_COMPATIBLE;
    assert_null(qcow2_bitmap_entry_problem(&entry, &disk));
}

/* 2^31 bits at most of stored data, however large the table. */
static void bounds_the_data(void **state)
{
    const struct qcow2_bitmap_disk large = {
        .size = UINT64_C(1) << 50, .cluster_bits = 16, .file_size = UINT64_C(1) << 40};
    struct qcow2_bitmap_entry entry = sound();

    entry.table_offset = 1 << 16;
    entry.granularity_bits = 18;
    entry.table_size = 8192;
    assert_int_equal(qcow2_bitmap_table_needed(&large, 18), 8192);
    assert_null(qcow2_bitmap_entry_problem(&entry, &large));
    entry.granularity_bits = 17;
    entry.table_size = 16384;
    assert_int_equal(qcow2_bitmap_table_needed(&large, 17), 16384);
    assert_non_null(strstr(qcow2_bitmap_entry_problem(&entry, &large), "too large"));
    assert_false(qcow2_bitmap_table_sane(&entry, &large));
}

static void judges_table_entries(void **state)
{
    static const struct {
        uint64_t value;
        bool valid;
    } values[] = {
        {0, true},
        {1, true},
        {2, false},
        {4096, true},
        {4097, false}, /* bit 0 with an offset */
        {4096 + 512, false},
        {4096 | UINT64_C(1) << 56, false},
        {4096 | UINT64_C(1) << 63, false},
        {1 << 20, false}, /* beyond the end */
        {(1 << 20) - 4096, true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(values); i++)
        assert_int_equal(qcow2_bitmap_value_valid(values[i].value, &disk), values[i].valid);
}

static void chooses_a_granularity(void **state)
{
    assert_int_equal(qcow2_bitmap_granularity_default(9), 12);
    assert_int_equal(qcow2_bitmap_granularity_default(13), 13);
    assert_int_equal(qcow2_bitmap_granularity_default(16), 16);
    assert_int_equal(qcow2_bitmap_granularity_default(21), 16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(is_read_as_written),   cmocka_unit_test(refuses_what_does_not_fit),
        cmocka_unit_test(judges_entries),       cmocka_unit_test(judges_names),
        cmocka_unit_test(judges_extra_data),    cmocka_unit_test(bounds_the_data),
        cmocka_unit_test(judges_table_entries), cmocka_unit_test(chooses_a_granularity),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
