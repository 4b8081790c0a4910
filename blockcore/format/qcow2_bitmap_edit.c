/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing bitmaps: add, remove, clear, enable, disable, merge. See qcow2_bitmap.h. */
#include "blockcore/format/qcow2_bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int failed(struct error *error, int err, const char *what, const char *name)
{
    char shown[80];

    error_escape(shown, sizeof(shown), name, strlen(name));
    return error_set_errno(error, -err, "cannot %s bitmap '%s'", what, shown);
}

static uint64_t table_clusters(const struct qcow2 *q, const struct qcow2_bitmap_entry *entry)
{
    return div_round_up((uint64_t)entry->table_size * 8, q->cluster_size);
}

int qcow2_bitmap_make_table(struct qcow2 *q, struct qcow2_bitmap_entry *entry)
{
    uint64_t clusters = table_clusters(q, entry);
    int err;

    if (clusters == 0)
        return 0;
    err = qcow2_bitmap_clusters_alloc(q, clusters, &entry->table_offset);
    if (err < 0)
        return err;
    err = block_zero(q->file, entry->table_offset, clusters << q->cluster_bits, 0);
    if (err < 0)
        qcow2_bitmap_clusters_undo(q, entry->table_offset, clusters);
    return err;
}

/* Puts a new bitmap, whose table is made, into list and directory. */
static int append(struct qcow2 *q, const struct qcow2_bitmap_entry *entry, struct error *error)
{
    struct qcow2_bitmaps *bitmaps = q->bitmaps;
    struct qcow2_bitmap *b = qcow2_bitmap_new(q, entry);
    struct qcow2_bitmap **grown =
        reallocarray(bitmaps->list, bitmaps->count + 1, sizeof(struct qcow2_bitmap *));
    int err = 0;

    if (grown)
        bitmaps->list = grown;
    if (!b || !grown)
        err = error_set(error, ENOMEM, "out of memory for another bitmap");
    if (err == 0) {
        bitmaps->list[bitmaps->count] = b;
        err = qcow2_bitmap_directory_write(q, bitmaps->list, bitmaps->count + 1, error);
    }
    if (err < 0) {
        qcow2_bitmap_free(b);
        return err;
    }
    bitmaps->count++;
    /* In the directory it is in use already if it is enabled: for us it is not yet. */
    b->bitmap.unusable = NULL;
    b->owns_clusters = true;
    b->claimed = b->tracked = b->bitmap.enabled;
    return 0;
}

static int add(struct qcow2 *q, struct qcow2_bitmap_entry *entry, struct error *error)
{
    int err = qcow2_begin_change(q);

    if (err == 0)
        err = qcow2_bitmaps_prepare(q);
    if (err == 0)
        err = qcow2_bitmap_make_table(q, entry);
    if (err < 0)
        return failed(error, err, "add", entry->name);
    err = append(q, entry, error);
    if (err < 0 && !q->corrupt && entry->table_size > 0)
        qcow2_bitmap_clusters_undo(q, entry->table_offset, table_clusters(q, entry));
    if (err < 0)
        return err;
    qcow2_bitmaps_update_tracking(q);
    err = qcow2_write_back(q);
    return err < 0 ? failed(error, err, "add", entry->name) : 0;
}

static int check_new(struct qcow2 *q, const struct qcow2_bitmap_entry *entry, struct error *error)
{
    if (q->header.version < 3)
        return error_set(error, ENOTSUP,
                         "%s is a qcow2 image of version 2 (compat=0.10), which has no bitmaps",
                         node_name(q->node));
    if (q->bitmaps && q->bitmaps->count >= QCOW2_BITMAPS_MAX)
        return error_set(error, ENOSPC, "%s has %d bitmaps, and can have no more",
                         node_name(q->node), QCOW2_BITMAPS_MAX);
    if ((uint64_t)entry->table_size << q->cluster_bits > QCOW2_BITMAP_DATA_MAX)
        return error_set(error, EINVAL,
                         "a bitmap of granularity %" PRIu64
                         " is too large for this disk: choose a coarser one",
                         UINT64_C(1) << entry->granularity_bits);
    return 0;
}

int qcow2_bitmap_add(struct node *node, const char *name, uint64_t granularity, bool enabled,
                     struct error *error)
{
    struct qcow2 *q = node->state;
    struct qcow2_bitmap_disk disk = qcow2_bitmap_disk(q);
    struct qcow2_bitmap_entry entry = {
        .flags = enabled ? QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE : 0,
        .type = QCOW2_BITMAP_DIRTY_TRACKING,
        .name = name,
        .name_length = (uint16_t)strlen(name),
        .extra = (const uint8_t *)"",
    };
    int err;

    entry.granularity_bits =
        (uint8_t)(granularity ? (unsigned)__builtin_ctzll(granularity)
                              : qcow2_bitmap_granularity_default(q->cluster_bits));
    entry.table_size =
        (uint32_t)min_u64(qcow2_bitmap_table_needed(&disk, entry.granularity_bits), UINT32_MAX);
    err = check_new(q, &entry, error);
    if (err < 0)
        return err;
    qcow2_lock_all(q);
    err = add(q, &entry, error);
    qcow2_unlock_all(q);
    return err;
}

static size_t index_of(const struct qcow2_bitmaps *bitmaps, const struct qcow2_bitmap *b)
{
    size_t i = 0;

    while (bitmaps->list[i] != b)
        i++;
    return i;
}

static int drop_entry(struct qcow2_bitmap *b, struct error *error)
{
    struct qcow2_bitmaps *bitmaps = b->q->bitmaps;
    size_t i = index_of(bitmaps, b), behind = bitmaps->count - i - 1;
    int err;

    memmove(&bitmaps->list[i], &bitmaps->list[i + 1], behind * sizeof(struct qcow2_bitmap *));
    err = qcow2_bitmap_directory_write(b->q, bitmaps->list, bitmaps->count - 1, error);
    if (err == 0) {
        bitmaps->count--;
        return 0;
    }
    memmove(&bitmaps->list[i + 1], &bitmaps->list[i], behind * sizeof(struct qcow2_bitmap *));
    bitmaps->list[i] = b;
    return err;
}

static int remove_bitmap(struct qcow2_bitmap *b, struct error *error)
{
    struct qcow2 *q = b->q;
    uint64_t *table = NULL;
    int err = qcow2_begin_change(q);

    if (err < 0)
        return failed(error, err, "remove", b->bitmap.name);
    err = drop_entry(b, error);
    if (err < 0)
        return err;
    /* What is not known to be the bitmap's alone leaks. */
    if (b->owns_clusters && qcow2_bitmap_read_table(b, &table) == 0)
        qcow2_bitmap_free_clusters(b, table, true);
    free(table);
    q->bitmaps->window.entries_of = q->bitmaps->window.bytes_of = NULL;
    err = qcow2_write_back(q);
    if (err < 0)
        failed(error, err, "give back the storage of", b->bitmap.name);
    qcow2_bitmap_free(b);
    qcow2_bitmaps_update_tracking(q);
    return err;
}

int qcow2_bitmap_remove(struct block_bitmap *bitmap, struct error *error)
{
    struct qcow2_bitmap *b = qcow2_bitmap_of(bitmap);
    struct qcow2 *q = b->q;
    int err;

    qcow2_lock_all(q);
    err = remove_bitmap(b, error);
    qcow2_unlock_all(q);
    return err;
}

/* Marks it in_use if nothing else has done so. */
static int begin(struct qcow2_bitmap *b)
{
    int err = qcow2_begin_change(b->q);

    return err < 0 ? err : qcow2_bitmap_claim(b);
}

static int clear(struct qcow2_bitmap *b)
{
    int err = begin(b);

    if (err < 0)
        return err;
    err = qcow2_bitmap_wipe(b);
    if (err < 0) {
        /* Some of it may be gone: it stays in_use in the file. */
        b->claimed = b->tracked = false;
        b->bitmap.unusable = "it could not be cleared, and is inconsistent";
        return err;
    }
    dirty_set_clear(&b->dirty);
    return b->tracked ? 0 : qcow2_bitmap_release(b, b->entry.flags);
}

int qcow2_bitmap_clear(struct block_bitmap *bitmap, struct error *error)
{
    struct qcow2_bitmap *b = qcow2_bitmap_of(bitmap);
    int err;

    qcow2_lock_all(b->q);
    err = clear(b);
    qcow2_unlock_all(b->q);
    return err < 0 ? failed(error, err, "clear", bitmap->name) : 0;
}

/* What it recorded goes into the file. */
static int disable(struct qcow2_bitmap *b)
{
    int err = begin(b);

    if (err == 0)
        err = qcow2_bitmap_store(b, &b->dirty);
    if (err == 0)
        err = qcow2_bitmap_release(b, b->entry.flags & ~QCOW2_BITMAP_AUTO);
    if (err < 0)
        return err;
    dirty_set_clear(&b->dirty);
    b->bitmap.enabled = false;
    return 0;
}

static int enable(struct qcow2_bitmap *b)
{
    int err = qcow2_begin_change(b->q);

    if (err == 0)
        err = qcow2_bitmap_enable_in_use(b);
    if (err < 0)
        return err;
    b->tracked = b->bitmap.enabled = true;
    return 0;
}

int qcow2_bitmap_set_enabled(struct block_bitmap *bitmap, bool enabled, struct error *error)
{
    struct qcow2_bitmap *b = qcow2_bitmap_of(bitmap);
    int err;

    qcow2_lock_all(b->q);
    err = enabled ? enable(b) : disable(b);
    qcow2_bitmaps_update_tracking(b->q);
    qcow2_unlock_all(b->q);
    return err < 0 ? failed(error, err, enabled ? "enable" : "disable", bitmap->name) : 0;
}

static int merge(struct qcow2_bitmap *b, const struct dirty_set *bits)
{
    int err = begin(b);

    if (err < 0)
        return err;
    if (b->tracked) {
        dirty_set_add_set(&b->dirty, bits);
        return 0;
    }
    err = qcow2_bitmap_store(b, bits);
    return err < 0 ? err : qcow2_bitmap_release(b, b->entry.flags);
}

int qcow2_bitmap_merge(struct block_bitmap *bitmap, const struct dirty_set *bits,
                       struct error *error)
{
    struct qcow2_bitmap *b = qcow2_bitmap_of(bitmap);
    int err;

    qcow2_lock_all(b->q);
    err = merge(b, bits);
    qcow2_unlock_all(b->q);
    return err < 0 ? failed(error, err, "merge into", bitmap->name) : 0;
}
