/* SPDX-License-Identifier: BSD-3-Clause */
/* The bitmaps of an open qcow2 image: reading and recording. The picture is in qcow2_bitmap.h. */
#include "blockcore/format/qcow2_bitmap.h"

#include "base/bytes.h"
#include "base/log.h"

#include <errno.h>
#include <string.h>

struct block_bitmap *qcow2_bitmap_get(struct node *node, size_t index)
{
    struct qcow2 *q = node->state;

    return q->bitmaps && index < q->bitmaps->count ? &q->bitmaps->list[index]->bitmap : NULL;
}

/* An entry of the table, by way of the window. */
static int read_value(struct qcow2_bitmap *b, uint64_t index, uint64_t *ret)
{
    struct qcow2_bitmap_window *w = &b->q->bitmaps->window;
    struct qcow2_bitmap_disk disk = qcow2_bitmap_disk(b->q);
    uint64_t first = align_down(index, BITMAP_WINDOW_ENTRIES);
    uint64_t count = min_u64(BITMAP_WINDOW_ENTRIES, b->entry.table_size - first);

    if (w->entries_of != b || w->first_entry != first) {
        int err;

        w->entries_of = NULL;
        err = block_read(b->q->file, w->entries, count * 8, b->entry.table_offset + first * 8);
        if (err < 0)
            return err;
        for (uint64_t i = 0; i < count; i++)
            w->entries[i] = be64toh(w->entries[i]);
        w->entries_of = b;
        w->first_entry = first;
    }
    *ret = w->entries[index - first];
    return qcow2_bitmap_value_valid(*ret, &disk) ? 0 : -EIO;
}

/* Bytes of the bitmap from `first` on, which lie in the cluster that `value` tells of. */
static int read_bytes(struct qcow2_bitmap *b, uint64_t value, uint64_t first, uint64_t length)
{
    struct qcow2_bitmap_window *w = &b->q->bitmaps->window;
    int err;

    if (w->bytes_of == b && w->first_byte == first)
        return 0;
    w->bytes_of = NULL;
    if (value == QCOW2_BITMAP_ALL_ZEROES || value == QCOW2_BITMAP_ALL_ONES) {
        memset(w->bytes, value == QCOW2_BITMAP_ALL_ONES ? 0xff : 0, length);
        return 0;
    }
    err = block_read(b->q->file, w->bytes, length, value + first % b->q->cluster_size);
    if (err < 0)
        return err;
    w->bytes_of = b;
    w->first_byte = first;
    return 0;
}

/* What is in the file and in memory for [first, first + length) bytes of the bitmap: in w->now. */
static int read_now(struct qcow2_bitmap *b, uint64_t value, uint64_t first, uint64_t length)
{
    struct qcow2_bitmap_window *w = &b->q->bitmaps->window;
    int err = read_bytes(b, value, first, length);

    if (err < 0)
        return err;
    memcpy(w->now, w->bytes, length);
    dirty_set_or(&b->dirty, first * 8, w->now, length);
    return 0;
}

int qcow2_bitmap_next_bits(struct qcow2_bitmap *b, uint64_t bit, uint64_t *ret_end, bool *ret_dirty)
{
    const struct qcow2_bitmap_window *w = &b->q->bitmaps->window;
    uint64_t cluster_bits = b->q->cluster_size * 8, bits = qcow2_bitmap_bits(b);
    uint64_t window = min_u64(BITMAP_WINDOW_BYTES, b->q->cluster_size);
    uint64_t index = bit / cluster_bits, first = align_down(bit / 8, window), value, limit;
    int err = read_value(b, index, &value);

    if (err < 0)
        return err;
    if (value == QCOW2_BITMAP_ALL_ONES ||
        (value == QCOW2_BITMAP_ALL_ZEROES &&
         !dirty_set_any(&b->dirty, index * cluster_bits, cluster_bits))) {
        *ret_dirty = value == QCOW2_BITMAP_ALL_ONES;
        *ret_end = min_u64((index + 1) * cluster_bits, bits);
        return 0;
    }
    err = read_now(b, value, first, window);
    if (err < 0)
        return err;
    limit = min_u64(window * 8, bits - first * 8);
    bit -= first * 8;
    *ret_dirty = w->now[bit / 8] >> bit % 8 & 1;
    *ret_end = first * 8 + dirty_bits_find(w->now, bit, limit, !*ret_dirty);
    return 0;
}

static int next(struct block_bitmap *bitmap, uint64_t offset, uint64_t length,
                struct block_bitmap_extent *ret)
{
    struct qcow2_bitmap *b = qcow2_bitmap_of(bitmap);
    uint64_t end;
    int err;

    co_mutex_lock(&b->q->lock);
    err = qcow2_bitmap_next_bits(b, offset / bitmap->granularity, &end, &ret->dirty);
    co_mutex_unlock(&b->q->lock);
    if (err == 0)
        ret->length = end * bitmap->granularity - offset;
    return err;
}

const struct block_bitmap_ops qcow2_bitmap_ops = {
    .next = next,
    .remove = qcow2_bitmap_remove,
    .clear = qcow2_bitmap_clear,
    .set_enabled = qcow2_bitmap_set_enabled,
    .merge = qcow2_bitmap_merge,
};

/* Writes the flags of the entry in the directory. They do not lie across two sectors. */
static int write_flags(struct qcow2_bitmap *b, uint32_t flags)
{
    uint64_t offset = b->q->header.bitmap_directory_offset + b->at + QCOW2_BITMAP_AT_FLAGS;
    uint8_t data[4];
    int err;

    put_be32(data, flags);
    err = block_write(b->q->file, data, sizeof(data), offset, 0);
    if (err == 0)
        b->entry.flags = flags;
    return err;
}

/* Should the flag be in the file although this fails, it is taken back when the image is closed. */
static int mark_in_use(struct qcow2_bitmap *b)
{
    b->claimed = !b->bitmap.unusable;
    return write_flags(b, b->entry.flags | QCOW2_BITMAP_IN_USE);
}

int qcow2_bitmap_claim(struct qcow2_bitmap *b)
{
    int err = 0;

    if (!(b->entry.flags & QCOW2_BITMAP_IN_USE))
        err = mark_in_use(b);
    return err < 0 ? err : block_flush(b->q->file);
}

int qcow2_bitmap_enable_in_use(struct qcow2_bitmap *b)
{
    int err;

    b->claimed = true;
    err = write_flags(b, b->entry.flags | QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    return err < 0 ? err : block_flush(b->q->file);
}

int qcow2_bitmap_release(struct qcow2_bitmap *b, uint32_t flags)
{
    int err = block_flush(b->q->file);

    if (err == 0)
        err = write_flags(b, flags & ~QCOW2_BITMAP_IN_USE);
    if (err == 0)
        err = block_flush(b->q->file);
    if (err == 0)
        b->claimed = b->tracked = false;
    return err;
}

static bool records(const struct qcow2_bitmap *b)
{
    return b->entry.type == QCOW2_BITMAP_DIRTY_TRACKING && (b->entry.flags & QCOW2_BITMAP_AUTO);
}

int qcow2_bitmaps_begin(struct qcow2 *q)
{
    size_t count = q->bitmaps ? q->bitmaps->count : 0;
    bool any = false;
    int err = 0;

    for (size_t i = 0; i < count && err == 0; i++) {
        struct qcow2_bitmap *b = q->bitmaps->list[i];

        if (!records(b) || (b->entry.flags & QCOW2_BITMAP_IN_USE))
            continue;
        any = true;
        err = mark_in_use(b);
    }
    if (err == 0 && any)
        err = block_flush(q->file);
    for (size_t i = 0; i < count && err == 0; i++)
        q->bitmaps->list[i]->tracked = q->bitmaps->list[i]->claimed;
    return err;
}

void qcow2_bitmaps_update_tracking(struct qcow2 *q)
{
    bool any = false;

    for (size_t i = 0; q->bitmaps && i < q->bitmaps->count && !any; i++)
        any = q->bitmaps->list[i]->tracked;
    q->node->tracks_changes = any;
}

void qcow2_bitmaps_mark(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    for (size_t i = 0; q->bitmaps && i < q->bitmaps->count; i++) {
        struct qcow2_bitmap *b = q->bitmaps->list[i];
        uint64_t first = offset / b->bitmap.granularity;
        uint64_t end = div_round_up(offset + length, b->bitmap.granularity);

        if (b->tracked && length > 0)
            dirty_set_add(&b->dirty, first, end - first);
    }
}

void qcow2_bitmaps_disown(struct qcow2 *q)
{
    for (size_t i = 0; q->bitmaps && i < q->bitmaps->count; i++)
        q->bitmaps->list[i]->bitmap.unusable = "it is about the disk, not about its snapshots";
}

int qcow2_track(struct node *node, uint64_t offset, uint64_t length)
{
    struct qcow2 *q = node->state;
    int err = 0;

    if (!q->write_ready) {
        err = qcow2_lock_to_change(q);
        co_mutex_unlock(&q->lock);
    }
    if (err == 0)
        qcow2_bitmaps_mark(q, offset, length);
    return err;
}

static bool any_claimed(const struct qcow2 *q)
{
    for (size_t i = 0; i < q->bitmaps->count; i++) {
        if (q->bitmaps->list[i]->claimed)
            return true;
    }
    return false;
}

/* Clears the flags of those that are in the file; what failed stays in_use. */
static int release_all(struct qcow2 *q)
{
    int err = qcow2_write_back(q);

    if (err == 0)
        err = block_flush(q->file);
    for (size_t i = 0; i < q->bitmaps->count && err == 0; i++) {
        struct qcow2_bitmap *b = q->bitmaps->list[i];

        if (b->claimed)
            err = write_flags(b, b->entry.flags & ~QCOW2_BITMAP_IN_USE);
    }
    return err < 0 ? err : block_flush(q->file);
}

static void log_lost(const struct qcow2_bitmap *b, int err)
{
    char shown[80];

    error_escape(shown, sizeof(shown), b->bitmap.name, strlen(b->bitmap.name));
    log_error("%s: bitmap '%s' could not be saved and is inconsistent from now on: %s",
              node_name(b->q->node), shown, strerror(-err));
}

static void save_all(struct qcow2 *q)
{
    int err;

    for (size_t i = 0; i < q->bitmaps->count; i++) {
        struct qcow2_bitmap *b = q->bitmaps->list[i];

        err = b->claimed ? qcow2_bitmap_store(b, &b->dirty) : 0;
        if (err < 0)
            log_lost(b, err);
        b->claimed &= err == 0;
    }
    err = release_all(q);
    for (size_t i = 0; i < q->bitmaps->count && err < 0; i++) {
        if (q->bitmaps->list[i]->claimed)
            log_lost(q->bitmaps->list[i], err);
    }
}

void qcow2_bitmaps_save(struct qcow2 *q)
{
    if (!any_claimed(q))
        return;
    qcow2_lock_all(q);
    if (q->corrupt)
        log_error("%s is broken: the bitmaps that were in use are inconsistent from now on",
                  node_name(q->node));
    else
        save_all(q);
    qcow2_unlock_all(q);
}
