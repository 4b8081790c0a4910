/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References by bitmaps: directory, tables, data.  See qcow2_check.h.
 *
 * A bitmap that cannot be one is dropped by a repair, and so is what follows an entry that does not
 * end: the rest of the directory moves up in place.  Meanwhile the header says that the bitmaps are
 * not consistent, so that a crash drops all of them.  An entry of a table that is wrong is made to
 * say that all is dirty.  Types and flags that are not known are nobody's error.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "blockcore/format/qcow2_bitmap_disk.h"
#include "blockcore/format/qcow2_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The directory, and what of it stays. */
struct directory {
    uint8_t *data;
    uint64_t size, kept_size;
    uint32_t count, kept_count;
};

static const char *dropped(const struct qcow2_check *c)
{
    return qcow2_check_fixes(c) ? ": dropped" : "";
}

/* Why so many bytes of metadata cannot be there, or NULL. `length` is not 0. */
static const char *wrong_place(const struct qcow2_check *c, uint64_t offset, uint64_t length)
{
    if (offset == 0 || !is_aligned(offset, c->cluster_size))
        return "is not at the start of a cluster";
    if (offset >> QCOW2_HOST_BITS || qcow2_check_beyond(c, offset, length))
        return "is beyond the end of the file";
    if (qcow2_check_is_metadata(c, offset, length))
        return "overlaps other metadata";
    return NULL;
}

static int count_clusters(struct qcow2_check *c, uint64_t offset, uint64_t length)
{
    uint64_t count, first = qcow2_check_span(c, offset, length, &count);
    int err = 0;

    for (uint64_t i = 0; i < count && err == 0; i++)
        err = qcow2_counts_add(&c->counts, first + i, 1, COUNT_FIXED);
    return err;
}

static int count_data(struct qcow2_check *c, const struct check_l1 *table, uint64_t index,
                      uint64_t *value)
{
    uint64_t offset = *value & QCOW2_OFFSET_MASK;

    if (*value == QCOW2_BITMAP_ALL_ONES)
        return 0;
    if (!(*value & ~QCOW2_OFFSET_MASK) && !wrong_place(c, offset, c->cluster_size))
        return qcow2_counts_add(&c->counts, offset >> c->cluster_bits, 1, COUNT_FIXED);
    qcow2_check_corruption(
        c, qcow2_check_fixes(c),
        "entry %" PRIu64 " of the bitmap table at offset %" PRIu64 " is 0x%016" PRIx64 "%s", index,
        table->offset, *value, qcow2_check_fixes(c) ? ": what it told of is dirty now" : "");
    if (qcow2_check_fixes(c))
        *value = QCOW2_BITMAP_ALL_ONES;
    return 0;
}

/* Why the entry cannot be of a bitmap, or NULL. */
static const char *wrong_entry(const struct qcow2_check *c, const struct qcow2_bitmap_entry *entry)
{
    const struct qcow2_bitmap_disk disk = {.size = align_down(c->header->size, 512),
                                           .cluster_bits = c->cluster_bits};

    if (entry->name_length == 0 || entry->name_length > BLOCK_BITMAP_NAME_MAX)
        return "has a name that is not of 1 to 1023 bytes";
    if (entry->granularity_bits < QCOW2_BITMAP_GRANULARITY_MIN ||
        entry->granularity_bits > QCOW2_BITMAP_GRANULARITY_MAX)
        return "has a granularity that is not between 512 bytes and 2 GiB";
    if (entry->table_size > QCOW2_BITMAP_TABLE_MAX ||
        (uint64_t)entry->table_size << c->cluster_bits > QCOW2_BITMAP_DATA_MAX)
        return "is larger than 512 MiB";
    /* That of one that is in use may be outdated. */
    if (entry->table_size != qcow2_bitmap_table_needed(&disk, entry->granularity_bits) &&
        (!(entry->flags & QCOW2_BITMAP_IN_USE) || entry->table_size == 0))
        return "has a table that does not fit the size of the disk";
    if (entry->table_size > 0 &&
        wrong_place(c, entry->table_offset, (uint64_t)entry->table_size * 8))
        return "has a table that cannot be where it is";
    return NULL;
}

/* 1: it is dropped, or would be. */
static int count_bitmap(struct qcow2_check *c, uint32_t index,
                        const struct qcow2_bitmap_entry *entry)
{
    const struct check_l1 table = {.offset = entry->table_offset, .entries = entry->table_size};
    const char *wrong = wrong_entry(c, entry);
    int err;

    if (wrong) {
        qcow2_check_corruption(c, qcow2_check_fixes(c), "bitmap %" PRIu32 " %s%s", index, wrong,
                               dropped(c));
        return 1;
    }
    if (table.entries == 0)
        return 0;
    err = count_clusters(c, table.offset, table.entries * 8);
    return err < 0 ? err : qcow2_check_walk_l1(c, &table, count_data);
}

/* Counts all, and moves what is kept to the front. */
static int count_entries(struct qcow2_check *c, struct directory *d)
{
    uint64_t at = 0;

    for (uint32_t i = 0; i < d->count; i++) {
        struct qcow2_bitmap_entry entry;
        struct error error;
        uint64_t size;
        int err = qcow2_bitmap_entry_parse(d->data + at, d->size - at, i, &entry, &error);

        if (err < 0) {
            qcow2_check_corruption(c, qcow2_check_fixes(c), "%s%s", error.text, dropped(c));
            return 0;
        }
        size = qcow2_bitmap_entry_size(&entry);
        err = count_bitmap(c, i, &entry);
        if (err < 0)
            return err;
        if (err == 0) {
            memmove(d->data + d->kept_size, d->data + at, size);
            d->kept_size += size;
            d->kept_count++;
        }
        at += size;
    }
    if (at < d->size)
        qcow2_check_corruption(c, qcow2_check_fixes(c),
                               "the bitmap directory has %" PRIu64 " bytes behind its last entry%s",
                               d->size - at, dropped(c));
    return 0;
}

static int set_autoclear(struct qcow2_check *c, uint64_t value)
{
    uint8_t data[8];
    int err = block_flush(c->file);

    put_be64(data, value);
    if (err == 0)
        err = block_write(c->file, data, sizeof(data), QCOW2_AT_AUTOCLEAR, 0);
    if (err == 0)
        err = block_flush(c->file);
    if (err == 0)
        c->header->autoclear = value;
    return err;
}

static int drop_all(struct qcow2_check *c)
{
    c->header->has_bitmaps = false;
    return set_autoclear(c, c->header->autoclear & ~QCOW2_AUTOCLEAR_BITMAPS);
}

/* Number of bitmaps and size of the directory, in the header's extension. */
static int write_extension(struct qcow2_check *c, const struct directory *d)
{
    struct qcow2_extension_place place;
    size_t length = min_u64(c->cluster_size, c->file->size);
    uint8_t data[16] = {0};
    int err = block_read(c->file, c->table, length, 0);

    if (err < 0 ||
        !qcow2_header_find_extension(c->table, length, c->header, QCOW2_EXT_BITMAPS, &place))
        return err < 0 ? err : -EIO;
    put_be32(data, d->kept_count);
    put_be64(data + 8, d->kept_size);
    return block_write(c->file, data, sizeof(data), place.at + 8, 0);
}

/* What the directory does not need any more is not counted. */
static void forget_tail(struct qcow2_check *c, const struct directory *d)
{
    uint64_t offset = c->header->bitmap_directory_offset;
    uint64_t from = div_round_up(offset + d->kept_size, c->cluster_size);
    uint64_t end = div_round_up(offset + d->size, c->cluster_size);

    for (; from < end; from++)
        qcow2_counts_clear(&c->counts, from);
}

static int rewrite(struct qcow2_check *c, const struct directory *d)
{
    uint64_t autoclear = c->header->autoclear;
    int err = drop_all(c);

    forget_tail(c, d);
    if (err < 0 || d->kept_count == 0)
        return err;
    err = block_write(c->file, d->data, d->kept_size, c->header->bitmap_directory_offset, 0);
    if (err == 0)
        err = write_extension(c, d);
    if (err == 0)
        err = set_autoclear(c, autoclear);
    if (err < 0)
        return err;
    c->header->has_bitmaps = true;
    c->header->bitmap_count = d->kept_count;
    c->header->bitmap_directory_size = d->kept_size;
    return 0;
}

static int check_entries(struct qcow2_check *c, struct directory *d)
{
    uint64_t offset = c->header->bitmap_directory_offset;
    int err;

    if (block_read(c->file, d->data, d->size, offset) < 0) {
        qcow2_check_unknown(c, "the bitmap directory at offset %" PRIu64 " cannot be read", offset);
        return 0;
    }
    err = count_entries(c, d);
    if (err < 0 || (d->kept_count == d->count && d->kept_size == d->size))
        return err;
    if (qcow2_check_fixes(c))
        return rewrite(c, d);
    c->incomplete |= d->kept_count < d->count;
    return 0;
}

int qcow2_check_bitmaps(struct qcow2_check *c)
{
    struct directory d = {.size = c->header->bitmap_directory_size,
                          .count = c->header->bitmap_count};
    const char *wrong = wrong_place(c, c->header->bitmap_directory_offset, d.size);
    int err;

    if (wrong) {
        qcow2_check_corruption(c, qcow2_check_fixes(c),
                               "the bitmap directory at offset %" PRIu64 " %s%s",
                               c->header->bitmap_directory_offset, wrong, dropped(c));
        c->incomplete |= !qcow2_check_fixes(c);
        return qcow2_check_fixes(c) ? drop_all(c) : 0;
    }
    d.data = malloc(d.size);
    err = d.data ? count_clusters(c, c->header->bitmap_directory_offset, d.size) : -ENOMEM;
    if (err == 0)
        err = check_entries(c, &d);
    free(d.data);
    return err;
}
