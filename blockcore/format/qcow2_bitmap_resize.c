/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps when the disk gets another size: what is added is clean, what is cut off is
 * forgotten.
 *
 * All bitmaps are in use, durably, before the size changes, so that a crash leaves them
 * inconsistent.  Afterwards the bits are taken into memory; new tables, which are empty, and a
 * directory that names them are put into force; and what the old tables named is given back.
 * Bitmaps that record save their bits when the image is closed, the others at once.
 */
#include "blockcore/format/qcow2_bitmap.h"

#include "base/checked.h"
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* What becomes of one bitmap. */
struct change {
    struct qcow2_bitmap_entry old;
    uint64_t *table; /* the old one */
    struct dirty_set bits;
    bool on;
};

static struct qcow2_bitmap_disk disk_of_size(const struct qcow2 *q, uint64_t size)
{
    struct qcow2_bitmap_disk disk = qcow2_bitmap_disk(q);

    disk.size = align_down(size, 512);
    return disk;
}

static int judge(const struct qcow2 *q, const struct qcow2_bitmap *b, uint64_t size,
                 struct error *error)
{
    struct qcow2_bitmap_disk disk = disk_of_size(q, size);
    char shown[80];

    error_escape(shown, sizeof(shown), b->entry.name, b->entry.name_length);
    if (b->bitmap.unusable)
        return b->entry.flags & QCOW2_BITMAP_IN_USE
                   ? 0
                   : error_set(error, ENOTSUP,
                               "%s has the bitmap '%s', which cannot be resized, since %s: remove "
                               "it first",
                               node_name(q->node), shown, b->bitmap.unusable);
    if (qcow2_bitmap_table_needed(&disk, b->entry.granularity_bits) <= QCOW2_BITMAP_DATA_MAX >>
        q->cluster_bits)
        return 0;
    return error_set(error, ENOTSUP,
                     "the bitmap '%s' of %s has a granularity of %" PRIu64
                     " bytes, which is too fine for a disk of %" PRIu64 " bytes: remove it first",
                     shown, node_name(q->node), b->bitmap.granularity, size);
}

int qcow2_bitmaps_judge_size(const struct qcow2 *q, uint64_t size, struct error *error)
{
    int err = 0;

    for (size_t i = 0; q->bitmaps && i < q->bitmaps->count && err == 0; i++)
        err = judge(q, q->bitmaps->list[i], size, error);
    return err;
}

int qcow2_bitmaps_claim(struct qcow2 *q)
{
    int err = 0;

    for (size_t i = 0; q->bitmaps && i < q->bitmaps->count && err == 0; i++) {
        if (!q->bitmaps->list[i]->bitmap.unusable)
            err = qcow2_bitmap_claim(q->bitmaps->list[i]);
    }
    return err;
}

/* All that is dirty below the new end. */
static int gather(struct qcow2_bitmap *b, uint64_t bits, struct dirty_set *ret)
{
    uint64_t end, limit = min_u64(qcow2_bitmap_bits(b), bits);

    dirty_set_init(ret, bits, &b->q->bitmaps->budget);
    for (uint64_t at = 0; at < limit; at = end) {
        bool dirty;
        int err = qcow2_bitmap_next_bits(b, at, &end, &dirty);

        if (err < 0)
            return err;
        if (dirty)
            dirty_set_add(ret, at, min_u64(end, limit) - at);
        coroutine_yield();
    }
    return 0;
}

static int prepare(struct qcow2_bitmap *b, struct change *c)
{
    struct qcow2 *q = b->q;
    struct qcow2_bitmap_disk disk = qcow2_bitmap_disk(q);
    struct qcow2_bitmap_entry entry = b->entry;
    int err = qcow2_bitmap_read_table(b, &c->table);

    c->old = b->entry;
    if (err == 0)
        err = gather(b, div_round_up(disk.size, b->bitmap.granularity), &c->bits);
    entry.table_size = (uint32_t)qcow2_bitmap_table_needed(&disk, entry.granularity_bits);
    entry.table_offset = 0;
    if (err == 0)
        err = qcow2_bitmap_make_table(q, &entry);
    c->on = err == 0;
    if (c->on)
        b->entry = entry;
    return err;
}

/* It is marked in_use in the file, and stays so. */
static void give_up(struct qcow2_bitmap *b)
{
    char shown[80];

    error_escape(shown, sizeof(shown), b->bitmap.name, strlen(b->bitmap.name));
    log_error("%s: bitmap '%s' could not be resized and is inconsistent from now on",
              node_name(b->q->node), shown);
    b->bitmap.unusable = "it could not be resized with the disk; it can only be removed";
    b->claimed = b->tracked = false;
}

/* The new tables are not in force. */
static void undo(struct qcow2_bitmap *b, struct change *c)
{
    struct qcow2 *q = b->q;

    if (!q->corrupt && b->entry.table_size > 0)
        qcow2_bitmap_clusters_undo(
            q, b->entry.table_offset,
            div_round_up((uint64_t)b->entry.table_size * 8, q->cluster_size));
    b->entry = c->old;
    c->on = false;
    give_up(b);
}

/* The new tables are in force. What cannot be given back leaks. */
static void take_over(struct qcow2_bitmap *b, struct change *c)
{
    struct qcow2_bitmap_entry entry = b->entry;

    b->entry = c->old;
    if (b->owns_clusters)
        qcow2_bitmap_free_clusters(b, c->table, true);
    b->entry = entry;
    b->owns_clusters = true;
    b->bitmap.size = qcow2_bitmap_disk(b->q).size;
    dirty_set_clear(&b->dirty);
    b->dirty = c->bits;
    c->bits = (struct dirty_set){0};
}

/* A bitmap that does not record is as it is to stay. */
static int settle(struct qcow2_bitmap *b)
{
    int err = qcow2_bitmap_store(b, &b->dirty);

    if (err == 0)
        err = qcow2_write_back(b->q);
    if (err == 0)
        err = qcow2_bitmap_release(b, b->entry.flags);
    if (err == 0)
        dirty_set_clear(&b->dirty);
    return err;
}

static void resize_all(struct qcow2_bitmaps *bitmaps, struct qcow2 *q, struct change *changes)
{
    struct error error = {.text = ""};
    int err;

    for (size_t i = 0; i < bitmaps->count; i++) {
        struct qcow2_bitmap *b = bitmaps->list[i];

        if (!b->bitmap.unusable && prepare(b, &changes[i]) < 0)
            give_up(b);
    }
    err = qcow2_bitmap_directory_write(q, bitmaps->list, bitmaps->count, &error);
    for (size_t i = 0; i < bitmaps->count; i++) {
        if (changes[i].on && err < 0)
            undo(bitmaps->list[i], &changes[i]);
        else if (changes[i].on)
            take_over(bitmaps->list[i], &changes[i]);
    }
    bitmaps->window.entries_of = bitmaps->window.bytes_of = NULL;
    for (size_t i = 0; i < bitmaps->count; i++) {
        if (changes[i].on && !bitmaps->list[i]->tracked && settle(bitmaps->list[i]) < 0)
            give_up(bitmaps->list[i]);
    }
}

void qcow2_bitmaps_resize(struct qcow2 *q)
{
    struct qcow2_bitmaps *bitmaps = q->bitmaps;
    struct change *changes;

    if (!bitmaps || bitmaps->count == 0)
        return;
    changes = calloc(bitmaps->count, sizeof(*changes));
    for (size_t i = 0; !changes && i < bitmaps->count; i++) {
        if (!bitmaps->list[i]->bitmap.unusable)
            give_up(bitmaps->list[i]);
    }
    if (changes)
        resize_all(bitmaps, q, changes);
    for (size_t i = 0; changes && i < bitmaps->count; i++) {
        free(changes[i].table);
        if (changes[i].bits.budget)
            dirty_set_clear(&changes[i].bits);
    }
    free(changes);
    qcow2_bitmaps_update_tracking(q);
}
