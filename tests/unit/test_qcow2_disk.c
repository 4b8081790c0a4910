/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2 on disk: table entries, refcounts, snapshot entries. test_qcow2_header.c has the rest. */
#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/format/qcow2_disk.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ALL QCOW2_ALL_SUBCLUSTERS
#define COPIED QCOW2_COPIED
#define COMPRESSED QCOW2_COMPRESSED
#define BROKEN                                                                                     \
    {                                                                                              \
        .kind = QCOW2_KIND_BROKEN                                                                  \
    }
#define EXTENDED QCOW2_INCOMPAT_EXTENDED_L2
#define EXTERNAL QCOW2_INCOMPAT_DATA_FILE

struct l2_case {
    uint64_t value, bitmaps;
    unsigned bits, version;
    uint64_t incompatible;
    struct qcow2_entry entry;
};

static const struct qcow2_entry absent = {.kind = QCOW2_KIND_NORMAL};

static struct qcow2_header header_of(const struct l2_case *c)
{
    return (struct qcow2_header){
        .cluster_bits = c->bits, .version = c->version, .incompatible = c->incompatible};
}

static void check_l2_case(const struct l2_case *c, size_t number)
{
    struct qcow2_header header = header_of(c);
    uint8_t bytes[16] = {0}, again[16] = {0};
    struct qcow2_entry e;

    put_be64(bytes, c->value);
    put_be64(bytes + 8, c->bitmaps);
    e = qcow2_l2_decode(&header, bytes);
    if (e.kind != c->entry.kind)
        fail_msg("case %zu: kind %d, not %d", number, e.kind, c->entry.kind);
    if (e.kind == QCOW2_KIND_BROKEN)
        return;
    assert_int_equal(e.stored, c->entry.stored);
    assert_int_equal(e.copied, c->entry.copied);
    assert_int_equal(e.data, c->entry.data);
    assert_int_equal(e.zero, c->entry.zero);
    assert_int_equal(e.host, c->entry.host);
    assert_int_equal(e.length, c->entry.length);
    if (e.kind != QCOW2_KIND_NORMAL)
        return;
    qcow2_l2_encode(&header, &e, again);
    assert_memory_equal(again, bytes, c->incompatible & EXTENDED ? 16 : 8);
}

#define CHECK_CASES(cases)                                                                         \
    do {                                                                                           \
        for (size_t i_ = 0; i_ < ARRAY_SIZE(cases); i_++)                                          \
            check_l2_case(&(cases)[i_], i_);                                                       \
    } while (0)

static struct qcow2_entry normal(bool copied, uint64_t host, uint32_t data, uint32_t zero)
{
    return (struct qcow2_entry){.kind = QCOW2_KIND_NORMAL,
                                .stored = true,
                                .copied = copied,
                                .host = host,
                                .data = data,
                                .zero = zero};
}

static struct qcow2_entry compressed(uint64_t host, uint64_t length)
{
    return (struct qcow2_entry){.kind = QCOW2_KIND_COMPRESSED, .host = host, .length = length};
}

static struct qcow2_entry unstored(uint32_t zero)
{
    return (struct qcow2_entry){.kind = QCOW2_KIND_NORMAL, .zero = zero};
}

static void decodes_l2_entries(void **state)
{
    const struct l2_case cases[] = {
        {0, 0, 16, 3, 0, absent},
        {1, 0, 16, 3, 0, unstored(ALL)},
        {1, 0, 16, 2, 0, BROKEN},
        {0x50000, 0, 16, 3, 0, normal(false, 0x50000, ALL, 0)},
        {COPIED | 0x50000, 0, 16, 2, 0, normal(true, 0x50000, ALL, 0)},
        {COPIED | 0x50001, 0, 16, 3, 0, normal(true, 0x50000, 0, ALL)},
        {COPIED | 0x50001, 0, 16, 2, 0, BROKEN},
        {0x50200, 0, 16, 3, 0, BROKEN},
        {0x50200, 0, 9, 3, 0, normal(false, 0x50200, ALL, 0)},
        {COPIED, 0, 16, 3, 0, BROKEN},
        {COPIED | 1, 0, 16, 3, 0, BROKEN},
        {0x50002, 0, 16, 3, 0, BROKEN},
        {0x50100, 0, 16, 3, 0, BROKEN},
        {UINT64_C(1) << 56 | 0x50000, 0, 16, 3, 0, BROKEN},
        {UINT64_C(1) << 61 | 0x50000, 0, 16, 3, 0, BROKEN},
        {UINT64_C(0xffffffff0000), 0, 16, 3, 0, normal(false, UINT64_C(0xffffffff0000), ALL, 0)},
        /* 54 bits of offset with 64 KiB, 61 with 512 bytes, 49 with 2 MiB. */
        {COMPRESSED | UINT64_C(2) << 54 | 1000, 0, 16, 3, 0, compressed(1000, 3 * 512 - 488)},
        {COMPRESSED | 1000, 0, 9, 3, 0, compressed(1000, 24)},
        {COMPRESSED | UINT64_C(1) << 61 | 1000, 0, 9, 3, 0, compressed(1000, 536)},
        {COMPRESSED | UINT64_C(1) << 56 | 1000, 0, 9, 3, 0, BROKEN},
        {COMPRESSED | UINT64_C(0x1fff) << 49 | 512, 0, 21, 3, 0, compressed(512, 8192 * 512)},
    };

    CHECK_CASES(cases);
}

static void decodes_extended_l2_entries(void **state)
{
    const uint64_t zero_first = UINT64_C(1) << 32, all = ALL;
    const struct l2_case cases[] = {
        {0, 0, 16, 3, EXTENDED, absent},
        {0, all << 32, 16, 3, EXTENDED, unstored(ALL)},
        {0, zero_first, 16, 3, EXTENDED, unstored(1)},
        {0x50000, 0, 16, 3, EXTENDED, normal(false, 0x50000, 0, 0)},
        {COPIED | 0x50000, all, 16, 3, EXTENDED, normal(true, 0x50000, ALL, 0)},
        {COPIED | 0x50000, zero_first | 2, 16, 3, EXTENDED, normal(true, 0x50000, 2, 1)},
        {COPIED | 0x50000, all << 32, 16, 3, EXTENDED, normal(true, 0x50000, 0, ALL)},
        {COPIED | 0x50000, zero_first | 1, 16, 3, EXTENDED, BROKEN},
        {COPIED | 0x50000, UINT64_C(1) << 63 | UINT64_C(1) << 31, 16, 3, EXTENDED, BROKEN},
        {0, 1, 16, 3, EXTENDED, BROKEN},
        {COPIED, 0, 16, 3, EXTENDED, BROKEN},
        {COPIED | 0x50001, 1, 16, 3, EXTENDED, BROKEN},
        {1, 0, 16, 3, EXTENDED, BROKEN},
        {0x50200, 1, 16, 3, EXTENDED, BROKEN},
        {COMPRESSED | 1000, 0, 14, 3, EXTENDED, compressed(1000, 24)},
        {COMPRESSED | 1000, 1, 14, 3, EXTENDED, BROKEN},
        {COMPRESSED | 1000, zero_first, 14, 3, EXTENDED, BROKEN},
    };

    CHECK_CASES(cases);
}

static void decodes_l2_entries_of_data_files(void **state)
{
    const struct l2_case cases[] = {
        {0, 0, 16, 3, EXTERNAL, absent},
        {1, 0, 16, 3, EXTERNAL, unstored(ALL)},
        {COPIED, 0, 16, 3, EXTERNAL, normal(true, 0, ALL, 0)},
        {COPIED | 1, 0, 16, 3, EXTERNAL, normal(true, 0, 0, ALL)},
        {COPIED | 0x50000, 0, 16, 3, EXTERNAL, normal(true, 0x50000, ALL, 0)},
        {COMPRESSED | 1000, 0, 16, 3, EXTERNAL, BROKEN},
        {COPIED, 4, 16, 3, EXTERNAL | EXTENDED, normal(true, 0, 4, 0)},
        {0, 4, 16, 3, EXTERNAL | EXTENDED, BROKEN},
    };

    CHECK_CASES(cases);
}

static void judges_l1_entries(void **state)
{
    assert_true(qcow2_l1_entry_valid(0x50000, 16));
    assert_true(qcow2_l1_entry_valid(QCOW2_COPIED | 0x50000, 16));
    assert_false(qcow2_l1_entry_valid(QCOW2_COPIED, 16));
    assert_false(qcow2_l1_entry_valid(0x50200, 16));
    assert_true(qcow2_l1_entry_valid(0x50200, 9));
    assert_false(qcow2_l1_entry_valid(0x50001, 16));
    assert_false(qcow2_l1_entry_valid(UINT64_C(1) << 62 | 0x50000, 16));
    assert_false(qcow2_l1_entry_valid(UINT64_C(1) << 56 | 0x50000, 16));
}

static void counts_l1_entries(void **state)
{
    assert_int_equal(qcow2_l1_entries_needed(0, 16, 3), 0);
    assert_int_equal(qcow2_l1_entries_needed(1, 16, 3), 1);
    assert_int_equal(qcow2_l1_entries_needed(512 * MIB, 16, 3), 1);
    assert_int_equal(qcow2_l1_entries_needed(512 * MIB + 1, 16, 3), 2);
    assert_int_equal(qcow2_l1_entries_needed(128 * GIB, 9, 3), 4194304);
    assert_int_equal(qcow2_l1_entries_needed(256 * MIB, 16, 4), 1);
    assert_int_equal(qcow2_l1_entries_needed(256 * MIB + 1, 16, 4), 2);
    assert_int_equal(qcow2_l1_entries_needed(UINT64_MAX, 21, 3), UINT64_C(1) << 25);
}

/* Every width against an array of numbers, and neighbours stay what they were. */
static void refcounts_of_every_width(void **state)
{
    enum { ENTRIES = 64 };
    struct prng prng = prng_of(test_seed());

    for (unsigned order = 0; order <= 6; order++) {
        uint64_t mask = UINT64_MAX >> (64 - (1u << order)), model[ENTRIES] = {0};
        uint8_t *block = calloc(1, (ENTRIES << order) / 8);

        for (unsigned i = 0; i < 2000; i++) {
            uint64_t at = prng_below(&prng, ENTRIES);

            model[at] = prng_next(&prng) & mask;
            qcow2_refcount_set(block, at, order, model[at]);
            for (uint64_t k = 0; k < ENTRIES; k++)
                assert_int_equal(qcow2_refcount_get(block, k, order), model[k]);
        }
        free(block);
    }
}

static void refcount_bit_order(void **state)
{
    uint8_t block[16] = {0};

    qcow2_refcount_set(block, 0, 0, 1);
    assert_int_equal(block[0], 0x01);
    qcow2_refcount_set(block, 1, 1, 3);
    assert_int_equal(block[0], 0x0d);
    qcow2_refcount_set(block, 1, 2, 0xa);
    assert_int_equal(block[0], 0xad);
    qcow2_refcount_set(block, 1, 4, 0x1234);
    assert_int_equal(block[2], 0x12);
    assert_int_equal(block[3], 0x34);
    qcow2_refcount_set(block, 1, 6, UINT64_C(0x0102030405060708));
    assert_int_equal(block[8], 1);
    assert_int_equal(block[15], 8);
}

static void finds_free_and_used(void **state)
{
    for (unsigned order = 0; order <= 6; order++) {
        uint8_t block[64] = {0};

        qcow2_refcount_set(block, 0, order, 1);
        qcow2_refcount_set(block, 1, order, 1);
        qcow2_refcount_set(block, 5, order, 1);
        assert_int_equal(qcow2_refcount_find(block, order, 0, 8, false), 2);
        assert_int_equal(qcow2_refcount_find(block, order, 2, 8, true), 5);
        assert_int_equal(qcow2_refcount_find(block, order, 6, 8, true), 8);
        assert_int_equal(qcow2_refcount_find(block, order, 8, 8, false), 8);
        assert_int_equal(qcow2_refcount_find(block, order, 0, 2, false), 2);
    }
}

static size_t make_snapshot(uint8_t *data, uint16_t id, uint16_t name, uint32_t extra)
{
    memset(data, 0, QCOW2_SNAPSHOT_FIXED);
    put_be64(data, 7 * 65536);
    put_be32(data + 8, 5);
    put_be16(data + 12, id);
    put_be16(data + 14, name);
    put_be32(data + 36, extra);
    return QCOW2_SNAPSHOT_FIXED + id + name + extra;
}

static void parses_snapshots(void **state)
{
    static const struct {
        uint16_t id, name;
        uint32_t extra;
    } cases[] = {{1, 3, 16}, {0, 0, 0}, {65535, 65535, 1024}, {8, 8, 24}};
    uint8_t *data = calloc(1, QCOW2_SNAPSHOT_ENTRY_MAX);
    struct qcow2_snapshot s;
    struct error error = {.text = ""};

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        size_t n = make_snapshot(data, cases[i].id, cases[i].name, cases[i].extra);

        assert_true(n <= QCOW2_SNAPSHOT_ENTRY_MAX);
        assert_int_equal(qcow2_snapshot_parse(data, n, 16, 0, &s, &error), 0);
        assert_int_equal(s.l1_offset, 7 * 65536);
        assert_int_equal(s.l1_size, 5);
        assert_int_equal(s.entry_length, align_up(n, 8));
        assert_int_equal(qcow2_snapshot_parse(data, n - 1, 16, 0, &s, &error), -EINVAL);
        assert_non_null(strstr(error.text, "ends within snapshot 0"));
    }
    make_snapshot(data, 1, 1, 1025);
    assert_int_equal(qcow2_snapshot_parse(data, 4096, 16, 3, &s, &error), -EINVAL);
    assert_non_null(strstr(error.text, "snapshot 3 has 1025 bytes of extra data"));
    make_snapshot(data, 1, 1, 16);
    put_be32(data + 8, 4194305);
    assert_int_equal(qcow2_snapshot_parse(data, 4096, 16, 0, &s, &error), -EINVAL);
    assert_non_null(strstr(error.text, "4194305 entries"));
    make_snapshot(data, 1, 1, 16);
    put_be64(data, 65537);
    assert_int_equal(qcow2_snapshot_parse(data, 4096, 16, 0, &s, &error), -EINVAL);
    assert_non_null(strstr(error.text, "offset 65537"));
    free(data);
}

/* Each field, from and to bytes; what old images lack, and what is not known, in the extra data. */
static void reads_and_writes_snapshots(void **state)
{
    static const struct qcow2_snapshot all = {
        .l1_offset = 9 * 65536,
        .l1_size = 77,
        .id = (const uint8_t *)"12",
        .name = (const uint8_t *)"a name",
        .id_length = 2,
        .name_length = 6,
        .date_seconds = 0xfedcba98,
        .date_nanoseconds = 999999999,
        .vm_clock = UINT64_C(0x123456789abcdef0),
        .vm_state_size = 5000000000,
        .disk_size = UINT64_C(1) << 41,
        .icount = 42,
    };
    uint8_t *data = malloc(QCOW2_SNAPSHOT_ENTRY_MAX);
    size_t length = qcow2_snapshot_write(data, &all);
    struct qcow2_snapshot s;

    assert_int_equal(length, 40 + 24 + 8);
    assert_int_equal(get_be32(data + 32), 0); /* the size of the VM state does not fit there */
    assert_int_equal(qcow2_snapshot_parse(data, length, 16, 0, &s, NULL), 0);
    assert_int_equal(s.entry_length, length);
    assert_int_equal(s.l1_offset, all.l1_offset);
    assert_int_equal(s.l1_size, 77);
    assert_int_equal(s.id_length, 2);
    assert_memory_equal(s.id, "12", 2);
    assert_int_equal(s.name_length, 6);
    assert_memory_equal(s.name, "a name", 6);
    assert_int_equal(s.date_seconds, all.date_seconds);
    assert_int_equal(s.date_nanoseconds, all.date_nanoseconds);
    assert_int_equal(s.vm_clock, all.vm_clock);
    assert_int_equal(s.vm_state_size, all.vm_state_size);
    assert_true(s.has_disk_size);
    assert_int_equal(s.disk_size, all.disk_size);
    assert_int_equal(s.icount, 42);
    assert_int_equal(s.extra_length, 24);

    put_be32(data + 32, 1234);
    put_be32(data + 36, 16); /* what follows is the id then */
    assert_int_equal(qcow2_snapshot_parse(data, length, 16, 0, &s, NULL), 0);
    assert_int_equal(s.vm_state_size, all.vm_state_size);
    assert_true(s.has_disk_size && s.disk_size == all.disk_size);
    assert_true(s.icount == QCOW2_ICOUNT_NONE);
    assert_ptr_equal(s.id, data + 56);
    put_be32(data + 36, 0);
    assert_int_equal(qcow2_snapshot_parse(data, length, 16, 0, &s, NULL), 0);
    assert_int_equal(s.vm_state_size, 1234);
    assert_false(s.has_disk_size);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes_l2_entries),
        cmocka_unit_test(decodes_extended_l2_entries),
        cmocka_unit_test(decodes_l2_entries_of_data_files),
        cmocka_unit_test(judges_l1_entries),
        cmocka_unit_test(counts_l1_entries),
        cmocka_unit_test(refcounts_of_every_width),
        cmocka_unit_test(refcount_bit_order),
        cmocka_unit_test(finds_free_and_used),
        cmocka_unit_test(parses_snapshots),
        cmocka_unit_test(reads_and_writes_snapshots),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
