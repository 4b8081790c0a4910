/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bits of a bitmap into the file.  Clusters that the bitmap has are overwritten in place, for it is
 * in_use; a part that had none gets one, or a table entry that stands for ones.  See
 * qcow2_bitmap.h.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "blockcore/format/qcow2_bitmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Marks on the entries of a table in memory, where the format has reserved bits. */
#define CHANGED (UINT64_C(1) << 1)
#define FRESH (UINT64_C(1) << 2) /* the cluster was taken for it just now */
#define MARKS (CHANGED | FRESH)

#define SECTOR_ENTRIES (512 / 8)

/* One store. */
struct store {
    struct qcow2_bitmap *b;
    const struct dirty_set *bits;
    uint64_t *table;
    uint8_t *data; /* a cluster */
};

static bool names_cluster(uint64_t value)
{
    return value != QCOW2_BITMAP_ALL_ZEROES && value != QCOW2_BITMAP_ALL_ONES;
}

int qcow2_bitmap_read_table(struct qcow2_bitmap *b, uint64_t **ret)
{
    size_t entries = b->entry.table_size;
    uint64_t *table = malloc(entries * 8 + 1);
    int err = table ? 0 : -ENOMEM;

    if (err == 0 && entries > 0)
        err = block_read(b->q->file, table, entries * 8, b->entry.table_offset);
    if (err < 0) {
        free(table);
        return err;
    }
    for (size_t i = 0; i < entries; i++)
        table[i] = be64toh(table[i]);
    *ret = table;
    return 0;
}

/* Whether the cluster is the bitmap's alone, by all that is known: only then it is overwritten. */
static int is_own(struct qcow2 *q, uint64_t offset)
{
    uint64_t refcount;
    int err = qcow2_refcount_read(q, offset >> q->cluster_bits, &refcount);

    if (err < 0)
        return err;
    return refcount == 1 && qcow2_guard_find(q, offset) == GUARD_FIXED;
}

/* A cluster in place of what the entry has; one that is not the bitmap's own is left alone. */
static int take_cluster(struct store *s, uint64_t index)
{
    uint64_t offset;
    int err = qcow2_bitmap_clusters_alloc(s->b->q, 1, &offset);

    if (err == 0)
        s->table[index] = offset | CHANGED | FRESH;
    return err;
}

/* The part of the bitmap that is one entry of its table. */
static int store_part(struct store *s, uint64_t index)
{
    struct qcow2 *q = s->b->q;
    uint64_t value = s->table[index];
    int err = 0;

    if (value == QCOW2_BITMAP_ALL_ONES)
        return 0;
    memset(s->data, 0, q->cluster_size);
    if (value != QCOW2_BITMAP_ALL_ZEROES)
        err = block_read(q->file, s->data, q->cluster_size, value);
    if (err < 0)
        return err;
    dirty_set_or(s->bits, index * q->cluster_size * 8, s->data, q->cluster_size);
    if (value == QCOW2_BITMAP_ALL_ZEROES &&
        dirty_bits_find(s->data, 0, q->cluster_size * 8, false) == q->cluster_size * 8) {
        s->table[index] = QCOW2_BITMAP_ALL_ONES | CHANGED;
        return 0;
    }
    err = names_cluster(value) ? is_own(q, value) : 0;
    if (err == 0)
        err = take_cluster(s, index);
    if (err < 0)
        return err;
    return block_write(q->file, s->data, q->cluster_size, s->table[index] & ~MARKS, 0);
}

static int store_data(struct store *s)
{
    uint64_t part_bits = s->b->q->cluster_size * 8;
    int err = 0;

    for (uint64_t i = 0; i < s->b->entry.table_size && err == 0; i++) {
        if (!dirty_set_any(s->bits, i * part_bits, part_bits))
            continue;
        err = store_part(s, i);
        coroutine_yield();
    }
    return err;
}

/* Writes the sectors of the table that have changed entries. */
static int write_table(const struct qcow2_bitmap *b, const uint64_t *table)
{
    int err = 0;

    for (uint64_t i = 0; i < b->entry.table_size && err == 0; i += SECTOR_ENTRIES) {
        uint64_t count = min_u64(SECTOR_ENTRIES, b->entry.table_size - i), marks = 0;
        uint8_t data[SECTOR_ENTRIES * 8];

        for (uint64_t k = 0; k < count; k++) {
            marks |= table[i + k] & CHANGED;
            put_be64(data + k * 8, table[i + k] & ~MARKS);
        }
        if (marks)
            err = block_write(b->q->file, data, count * 8, b->entry.table_offset + i * 8, 0);
    }
    return err;
}

/* Nothing on disk names the clusters that were taken: gives them back. */
static void undo(struct store *s)
{
    for (uint64_t i = 0; i < s->b->entry.table_size; i++) {
        uint64_t offset = s->table[i] & ~MARKS;

        if (!(s->table[i] & FRESH))
            continue;
        qcow2_guard_remove(s->b->q, offset);
        qcow2_clusters_unalloc(s->b->q, offset >> s->b->q->cluster_bits, 1);
    }
}

static int store(struct store *s)
{
    struct qcow2 *q = s->b->q;
    int err = store_data(s);

    if (err == 0)
        err = table_cache_writeback(q->refcount_cache);
    if (err == 0)
        err = block_flush(q->file);
    if (err < 0) {
        undo(s);
        return err;
    }
    return write_table(s->b, s->table);
}

int qcow2_bitmap_store(struct qcow2_bitmap *b, const struct dirty_set *bits)
{
    struct store s = {.b = b, .bits = bits};
    int err;

    if (!bits->any)
        return 0;
    err = qcow2_bitmap_read_table(b, &s.table);
    if (err < 0)
        return err;
    s.data = buffer_get(b->q->cluster_size);
    err = s.data ? store(&s) : -ENOMEM;
    buffer_put(s.data, b->q->cluster_size);
    free(s.table);
    b->q->bitmaps->window.entries_of = b->q->bitmaps->window.bytes_of = NULL;
    return err;
}

int qcow2_bitmap_free_clusters(struct qcow2_bitmap *b, const uint64_t *table, bool with_table)
{
    struct qcow2 *q = b->q;
    int err = 0;

    for (uint64_t i = 0; i < b->entry.table_size && err == 0; i++) {
        if (names_cluster(table[i]) && qcow2_guard_find(q, table[i]) == GUARD_FIXED)
            err = qcow2_bitmap_clusters_free(q, table[i], 1);
    }
    if (err == 0 && with_table && b->entry.table_size > 0)
        err = qcow2_bitmap_clusters_free(
            q, b->entry.table_offset,
            div_round_up((uint64_t)b->entry.table_size * 8, q->cluster_size));
    return err;
}

/* Zeroes in the file for what is not zero in `table`; then nothing names its clusters any more. */
static int write_zeroes(struct qcow2_bitmap *b, const uint64_t *table)
{
    uint64_t *zeroes = calloc(b->entry.table_size + 1, sizeof(*zeroes));
    int err;

    if (!zeroes)
        return -ENOMEM;
    for (uint64_t i = 0; i < b->entry.table_size; i++)
        zeroes[i] = table[i] ? CHANGED : 0;
    err = write_table(b, zeroes);
    free(zeroes);
    return err;
}

int qcow2_bitmap_wipe(struct qcow2_bitmap *b)
{
    uint64_t *table;
    int err = qcow2_bitmap_read_table(b, &table);

    if (err < 0)
        return err;
    err = write_zeroes(b, table);
    if (err == 0)
        err = qcow2_bitmap_free_clusters(b, table, false);
    if (err == 0)
        err = qcow2_write_back(b->q);
    free(table);
    b->q->bitmaps->window.entries_of = b->q->bitmaps->window.bytes_of = NULL;
    return err;
}
