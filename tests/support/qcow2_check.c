/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking qcow2 images: counts references and compares. See qcow2_image.h. */
#include "base/bytes.h"
#include "base/checked.h"
#include "tests/support/qcow2_image.h"
#include "tests/support/support.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define COPIED (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)
#define OFFSET UINT64_C(0x00fffffffffffe00)

struct check {
    const uint8_t *data;
    size_t length;
    unsigned bits;
    uint64_t clusters;
    uint64_t *counts;
    struct qcow2_report *report;
};

__attribute__((format(printf, 2, 3))) static void complain(struct qcow2_report *report,
                                                           const char *format, ...)
{
    va_list ap;

    if (report->errors++ > 0)
        return;
    va_start(ap, format);
    vsnprintf(report->text, sizeof(report->text), format, ap);
    va_end(ap);
}

/* Counts a reference to each cluster of the range. */
static bool count(struct check *c, uint64_t offset, uint64_t length, const char *what)
{
    if (length == 0)
        return true;
    if (!range_within(offset, 1, c->length)) {
        complain(c->report, "%s at %" PRIu64 " is beyond the end", what, offset);
        return false;
    }
    for (uint64_t i = offset >> c->bits; i <= (offset + length - 1) >> c->bits; i++) {
        if (i < c->clusters)
            c->counts[i]++;
    }
    return true;
}

static uint64_t incompatible(const struct check *c)
{
    return get_be32(c->data + 4) == 2 ? 0 : get_be64(c->data + 72);
}

/* Bytes of an L2 entry. */
static uint64_t entry_size(const struct check *c)
{
    return incompatible(c) >> 4 & 1 ? 16 : 8;
}

static bool has_data_file(const struct check *c)
{
    return incompatible(c) >> 2 & 1;
}

/* The second word of an extended entry: data in the low half, zero in the high one. */
static void check_bitmaps(struct check *c, const uint8_t *entry)
{
    uint64_t value = get_be64(entry), bitmaps = get_be64(entry + 8);
    bool stored = (value & OFFSET) || (has_data_file(c) && (value & COPIED));

    if ((bitmaps >> 32) & bitmaps & UINT32_MAX)
        complain(c->report, "the bitmaps 0x%" PRIx64 " have data and zero at a time", bitmaps);
    if ((value & COMPRESSED) ? bitmaps != 0 : (bitmaps & UINT32_MAX) && !stored)
        complain(c->report, "the L2 entry 0x%" PRIx64 " has the bitmaps 0x%" PRIx64, value,
                 bitmaps);
    if (!(value & COMPRESSED) && (value & 1))
        complain(c->report, "the extended L2 entry 0x%" PRIx64 " has the zero bit", value);
}

static void count_l2(struct check *c, uint64_t table)
{
    for (uint64_t k = 0; k < UINT64_C(1) << c->bits; k += entry_size(c)) {
        uint64_t value = get_be64(c->data + table + k), offset = value & OFFSET;
        unsigned offset_bits = 62 - (c->bits - 8);

        if (entry_size(c) == 16)
            check_bitmaps(c, c->data + table + k);
        if (has_data_file(c)) {
            if (value & COMPRESSED)
                complain(c->report, "the entry 0x%" PRIx64 " is compressed", value);
            continue;
        }
        if (value & COMPRESSED) {
            offset = value & ((UINT64_C(1) << offset_bits) - 1);
            value &= COMPRESSED - 1;
            count(c, offset, ((value >> offset_bits) + 1) * 512 - offset % 512, "compressed data");
        } else if (!is_aligned(offset, UINT64_C(1) << c->bits)) {
            complain(c->report, "the L2 entry 0x%" PRIx64 " is not aligned", value);
        } else if (offset != 0) {
            count(c, offset, UINT64_C(1) << c->bits, "data");
        }
    }
}

static void count_l1(struct check *c, uint64_t l1, uint64_t entries)
{
    if (!range_within(l1, entries * 8, c->length)) {
        complain(c->report, "the L1 table at %" PRIu64 " is beyond the end", l1);
        return;
    }
    count(c, l1, entries * 8, "L1 table");
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t table = get_be64(c->data + l1 + i * 8) & OFFSET;

        if (table == 0)
            continue;
        if (!is_aligned(table, UINT64_C(1) << c->bits) ||
            !range_within(table, UINT64_C(1) << c->bits, c->length)) {
            complain(c->report, "the L2 table at %" PRIu64 " is not in the file", table);
            continue;
        }
        count(c, table, UINT64_C(1) << c->bits, "L2 table");
        count_l2(c, table);
    }
}

static void count_snapshots(struct check *c)
{
    uint64_t start = get_be64(c->data + 64), offset = start;

    for (uint32_t i = 0; i < get_be32(c->data + 60); i++) {
        const uint8_t *entry = c->data + offset;

        if (!range_within(offset, 40, c->length)) {
            complain(c->report, "the snapshot table is beyond the end");
            return;
        }
        count_l1(c, get_be64(entry), get_be32(entry + 8));
        offset +=
            align_up(40 + get_be32(entry + 36) + get_be16(entry + 12) + get_be16(entry + 14), 8);
    }
    count(c, start, offset - start, "snapshot table");
}

static void count_bitmap(struct check *c, const uint8_t *entry)
{
    uint64_t table = get_be64(entry), bytes = get_be32(entry + 8) * UINT64_C(8);

    if (!range_within(table, bytes, c->length)) {
        complain(c->report, "the bitmap table at %" PRIu64 " is beyond the end", table);
        return;
    }
    count(c, table, bytes, "bitmap table");
    for (uint64_t i = 0; i < bytes; i += 8) {
        uint64_t value = get_be64(c->data + table + i);

        if (value > 1)
            count(c, value, UINT64_C(1) << c->bits, "bitmap data");
    }
}

/* The bitmaps extension, if there is one in force: the 24 bytes of it, else NULL. */
static const uint8_t *find_bitmaps(const uint8_t *data)
{
    uint64_t at = get_be32(data + 100);

    if (get_be32(data + 4) < 3 || !(get_be64(data + 88) & 1))
        return NULL;
    while (get_be32(data + at) != 0x23852875) {
        if (get_be32(data + at) == 0)
            return NULL;
        at += 8 + align_up(get_be32(data + at + 4), 8);
    }
    return data + at + 8;
}

static void count_bitmaps(struct check *c)
{
    const uint8_t *extension = find_bitmaps(c->data);
    uint64_t at, size;

    if (!extension)
        return;
    size = get_be64(extension + 8);
    at = get_be64(extension + 16);
    if (!range_within(at, size, c->length)) {
        complain(c->report, "the bitmap directory is beyond the end");
        return;
    }
    count(c, at, size, "bitmap directory");
    for (uint32_t i = 0; i < get_be32(extension); i++) {
        const uint8_t *entry = c->data + at;

        count_bitmap(c, entry);
        at += align_up(24 + get_be32(entry + 20) + get_be16(entry + 18), 8);
    }
    if (at != get_be64(extension + 16) + size)
        complain(c->report,
                 "the bitmap directory has %" PRIu64 " bytes, and %" PRIu64 " in entries", size,
                 at - get_be64(extension + 16));
}

static void count_refcounts(struct check *c)
{
    uint64_t table = get_be64(c->data + 48);
    uint64_t bytes = (uint64_t)get_be32(c->data + 56) << c->bits;

    if (!range_within(table, bytes, c->length)) {
        complain(c->report, "the refcount table is beyond the end");
        return;
    }
    count(c, table, bytes, "refcount table");
    for (uint64_t i = 0; i < bytes; i += 8) {
        uint64_t block = get_be64(c->data + table + i);

        if (block != 0)
            count(c, block, UINT64_C(1) << c->bits, "refcount block");
    }
}

void qcow2_image_count(const uint8_t *data, size_t length, uint64_t *counts,
                       struct qcow2_report *report)
{
    struct check c = {.data = data,
                      .length = length,
                      .bits = get_be32(data + 20),
                      .counts = counts,
                      .report = report};

    c.clusters = div_round_up(length, UINT64_C(1) << c.bits);
    count(&c, 0, 1, "header");
    count_l1(&c, get_be64(data + 40), get_be32(data + 36));
    count_snapshots(&c);
    count_bitmaps(&c);
    count_refcounts(&c);
}

static uint64_t refcount(const struct check *c, uint64_t cluster)
{
    unsigned order = get_be32(c->data + 4) == 2 ? 4 : get_be32(c->data + 96);
    uint64_t bits = UINT64_C(1) << order, per_block = (UINT64_C(8) << c->bits) / bits;
    uint64_t table = get_be64(c->data + 48), value = 0;
    uint64_t bytes = (uint64_t)get_be32(c->data + 56) << c->bits;
    uint64_t block, bit = cluster % per_block * bits;

    if (cluster / per_block * 8 >= bytes)
        return 0;
    block = get_be64(c->data + table + cluster / per_block * 8);
    if (block == 0 || !range_within(block, UINT64_C(1) << c->bits, c->length))
        return 0;
    for (uint64_t i = 0; i < bits; i++) {
        uint64_t at = bits >= 8 ? bit / 8 + (bits - 1 - i) / 8 : (bit + i) / 8;
        unsigned shift = bits >= 8 ? i % 8 : (bit + i) % 8;

        value |= (uint64_t)(c->data[block + at] >> shift & 1) << i;
    }
    return value;
}

static void check_copied(struct check *c, uint64_t entry, const char *what, bool must)
{
    uint64_t offset = entry & OFFSET;
    uint64_t value;

    if ((entry & COMPRESSED) || offset == 0)
        return;
    value = refcount(c, offset >> c->bits);
    /* A crash may leave a refcount too large: then the bit is right by the references. */
    if ((entry & COPIED) && c->counts[offset >> c->bits] != 1)
        complain(c->report, "%s 0x%" PRIx64 " has the copied bit and %" PRIu64 " references", what,
                 entry, c->counts[offset >> c->bits]);
    if (must && !(entry & COPIED) && value == 1) {
        complain(c->report, "%s 0x%" PRIx64 " lacks the copied bit", what, entry);
        c->report->lacking++;
    }
}

static void check_active(struct check *c)
{
    uint64_t l1 = get_be64(c->data + 40);
    bool must = get_be32(c->data + 60) == 0; /* others come right when snapshots are deleted */

    for (uint64_t i = 0; i < get_be32(c->data + 36); i++) {
        uint64_t entry = get_be64(c->data + l1 + i * 8), table = entry & OFFSET;

        if (table == 0)
            continue;
        check_copied(c, entry, "L1 entry", must);
        for (uint64_t k = 0; k < UINT64_C(1) << c->bits && !has_data_file(c); k += entry_size(c))
            check_copied(c, get_be64(c->data + table + k), "L2 entry", must);
    }
}

static void compare(struct check *c)
{
    for (uint64_t i = 0; i < c->clusters; i++) {
        uint64_t value = refcount(c, i);

        if (value < c->counts[i]) {
            complain(c->report,
                     "the cluster at %" PRIu64 " has refcount %" PRIu64 " and %" PRIu64
                     " references",
                     i << c->bits, value, c->counts[i]);
        } else if (value > c->counts[i]) {
            if (c->report->leaks++ == 0 && c->report->errors == 0)
                snprintf(c->report->text, sizeof(c->report->text),
                         "the cluster at %" PRIu64 " leaks: refcount %" PRIu64 ", %" PRIu64
                         " references",
                         i << c->bits, value, c->counts[i]);
        }
    }
}

void qcow2_image_check(const uint8_t *data, size_t length, struct qcow2_report *ret)
{
    struct check c = {.data = data, .length = length, .bits = get_be32(data + 20), .report = ret};

    *ret = (struct qcow2_report){0};
    c.clusters = div_round_up(length, UINT64_C(1) << c.bits);
    c.counts = calloc(c.clusters, sizeof(*c.counts));
    if (!c.counts)
        test_die("out of memory");
    qcow2_image_count(data, length, c.counts, ret);
    if (ret->errors == 0) {
        compare(&c);
        check_active(&c);
    }
    free(c.counts);
}
