/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Another size of the disk.
 *
 * Growing: a larger L1 table is written to a new place, the header is switched to it, and the old
 * one is freed; the core zeroes what the new part must not show; then the header gets the size.
 *
 * Shrinking: the header gets the size first, so that the disk is the old one or the new one,
 * whatever happens.  Then what lies behind is freed in the usual order, the L1 table is cut, and
 * the file as well.  What is left undone by a crash has its references, and is zeroed should the
 * disk grow again.
 *
 * An external data file gets the size of the disk: before, where it grows, and after, where it is
 * cut.
 */
#include "base/checked.h"
#include "base/log.h"
#include "blockcore/format/qcow2.h"
#include "blockcore/resize.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* An L1 table that takes the place of the one in use. */
struct new_l1 {
    uint64_t entries, clusters, first;
    uint64_t *l1;
    uint8_t *dirty;
    uint8_t *bytes; /* as on disk, whole clusters */
};

static int judge(const struct qcow2 *q, uint64_t size, struct error *error)
{
    uint64_t entries = qcow2_l1_entries_needed(size, q->cluster_bits, q->entry_bits);

    if (q->corrupt)
        return error_set(error, EIO, "%s is broken: repair it first", node_name(q->node));
    if (q->header.snapshots > 0 && q->header.version < 3)
        return error_set(error, ENOTSUP,
                         "%s has version 2 (compat=0.10) and internal snapshots, which cannot "
                         "record their own size: delete them, or amend it to compat=1.1",
                         node_name(q->node));
    if (size > q->node->size && q->header.backing_name.offset != 0 && !q->node->backing)
        return error_set(error, EINVAL,
                         "%s has a backing file, which must be open when the disk is to grow: what "
                         "it has behind the old end must not show",
                         node_name(q->node));
    if (entries > QCOW2_L1_BYTES_MAX / 8)
        return error_set(error, EFBIG,
                         "a disk of %" PRIu64 " bytes needs clusters larger than %" PRIu64
                         ": these allow %" PRIu64 " bytes",
                         size, q->cluster_size,
                         (QCOW2_L1_BYTES_MAX / 8) << (q->cluster_bits + q->l2_bits));
    return qcow2_bitmaps_judge_size(q, size, error);
}

static int new_l1_init(struct new_l1 *n, const struct qcow2 *q, uint64_t entries)
{
    *n = (struct new_l1){
        .entries = entries,
        .clusters = div_round_up(entries * 8, q->cluster_size),
        .l1 = calloc(entries, sizeof(*n->l1)),
        .dirty = calloc(entries / 64 + 1, 1),
        .bytes = calloc(div_round_up(entries * 8, q->cluster_size), q->cluster_size),
    };
    if (!n->l1 || !n->dirty || !n->bytes)
        return -ENOMEM;
    memcpy(n->l1, q->l1, q->header.l1_size * sizeof(*n->l1));
    for (uint64_t i = 0; i < q->header.l1_size; i++)
        put_be64(n->bytes + i * 8, n->l1[i]);
    return 0;
}

static void new_l1_fini(struct new_l1 *n)
{
    free(n->l1);
    free(n->dirty);
    free(n->bytes);
}

/* Everything that the new table needs is durable, and so is the table. */
static int write_new_l1(struct qcow2 *q, const struct new_l1 *n)
{
    uint64_t offset = n->first << q->cluster_bits, length = n->clusters << q->cluster_bits;
    int err = table_cache_writeback(q->refcount_cache);

    for (uint64_t done = 0; done < length && err == 0; done += BLOCK_PIECE_BYTES)
        err = block_write(q->file, n->bytes + done, min_u64(length - done, BLOCK_PIECE_BYTES),
                          offset + done, 0);
    if (err == 0)
        err = block_flush(q->file);
    if (err == 0)
        return 0;
    q->stale_end = max_u64(q->stale_end, offset + length);
    qcow2_clusters_unalloc(q, n->first, n->clusters);
    return err;
}

/* Offset and entries in one write. */
static int switch_to(struct qcow2 *q, uint64_t entries, uint64_t offset)
{
    uint8_t data[12];

    put_be32(data, (uint32_t)entries);
    put_be64(data + 4, offset);
    return qcow2_switch(q, QCOW2_AT_L1, data, sizeof(data));
}

static uint64_t l1_clusters(const struct qcow2 *q, uint64_t entries)
{
    return div_round_up(entries * 8, q->cluster_size);
}

static int install_new_l1(struct qcow2 *q, struct new_l1 *n)
{
    uint64_t offset = n->first << q->cluster_bits, old_entries = q->header.l1_size;
    int err = switch_to(q, n->entries, offset);

    if (err < 0)
        return err;
    if (old_entries > 0)
        qcow2_pending_add(q, q->header.l1_offset >> q->cluster_bits, l1_clusters(q, old_entries));
    free(q->l1);
    free(q->l1_dirty);
    q->l1 = n->l1;
    q->l1_dirty = n->dirty;
    n->l1 = NULL;
    n->dirty = NULL;
    q->header.l1_size = (uint32_t)n->entries;
    q->header.l1_offset = offset;
    return block_flush(q->file);
}

int qcow2_l1_grow(struct qcow2 *q, uint64_t entries)
{
    struct new_l1 n = {0};
    int err;

    if (entries <= q->header.l1_size)
        return 0;
    err = qcow2_write_back(q); /* the table in memory is the one on disk */
    if (err == 0)
        err = new_l1_init(&n, q, entries);
    if (err == 0)
        err = qcow2_pending_reserve(q, 1);
    if (err == 0)
        err = qcow2_clusters_alloc_run(q, n.clusters, &n.first);
    if (err == 0)
        err = write_new_l1(q, &n);
    if (err == 0)
        err = install_new_l1(q, &n);
    new_l1_fini(&n);
    return err;
}

/*
 * The data file is to have the new part of the disk.  A raw one must read as zeroes there, whatever
 * it has behind the old end.
 */
static int grow_data_file(struct qcow2 *q, uint64_t size, struct error *error)
{
    const struct block_resize resize = {.size = size};
    uint64_t old = q->node->size, held = min_u64(q->data->size, size);
    int err = 0;

    if (!qcow2_has_data_file(q))
        return 0;
    if (q->raw_data && held > old)
        err = block_zero(q->data, old, held - old, ZERO_MAY_UNMAP);
    if (err < 0)
        return error_set_errno(error, -err, "cannot zero the end of the data file of %s",
                               node_name(q->node));
    if (q->data->size >= size)
        return 0;
    err = block_resize(q->data, &resize, error);
    if (err < 0)
        error_prefix(error, "cannot enlarge the data file: ");
    return err;
}

int qcow2_resize_prepare(struct node *node, uint64_t size, struct error *error)
{
    struct qcow2 *q = node->state;
    int err = judge(q, size, error);

    if (err == 0)
        err = grow_data_file(q, size, error);
    if (err < 0)
        return err;
    qcow2_lock_all(q);
    err = qcow2_begin_change(q);
    if (err == 0)
        err = qcow2_l1_grow(q, qcow2_l1_entries_needed(size, q->cluster_bits, q->entry_bits));
    qcow2_unlock_all(q);
    return err < 0
               ? error_set_errno(error, -err, "cannot enlarge the L1 table of %s", node_name(node))
               : 0;
}

/*
 * The storage of a table's entries from number `from` on is to be freed.  An error after the first
 * of them means that the image is corrupt: then nothing is freed any more.
 */
static int drop_entries(struct qcow2 *q, uint64_t l1_index, struct table *table, uint64_t from)
{
    uint64_t entries = UINT64_C(1) << q->l2_bits;
    uint64_t guest = (l1_index << q->l2_bits) << q->cluster_bits;
    int err = qcow2_pending_reserve(q, entries + 1);

    for (uint64_t i = from; i < entries && err == 0; i++) {
        struct qcow2_entry e;

        err = qcow2_l2_decode_for_change(q, guest + (i << q->cluster_bits),
                                         table->data + (i << q->entry_bits), &e);
        if (err == 0)
            qcow2_pending_add_entry(q, &e);
    }
    return err;
}

/* The table in which the disk ends. */
static int cut_table(struct qcow2 *q, uint64_t l1_index, uint64_t from)
{
    struct table *table;
    int err;

    if (q->l1[l1_index] == 0)
        return 0;
    err = qcow2_pending_reserve(q, 1); /* for a copy */
    if (err == 0)
        err = qcow2_l2_get_private(q, l1_index, &table);
    if (err < 0)
        return err;
    err = drop_entries(q, l1_index, table, from);
    if (err == 0) {
        size_t at = from << q->entry_bits;

        memset(table->data + at, 0, q->cluster_size - at);
        table_cache_mark_dirty(q->l2_cache, table);
    }
    table_cache_put(q->l2_cache, table);
    return err;
}

/*
 * A table that lies behind the end altogether.  Should snapshots share it, each cluster loses one
 * of its references, as the table does.
 */
static int drop_table(struct qcow2 *q, uint64_t l1_index)
{
    uint64_t offset = q->l1[l1_index] & QCOW2_OFFSET_MASK;
    struct table *table;
    uint64_t refcount;
    int err = qcow2_l2_get(q, l1_index, &table);

    if (err < 0 || !table)
        return err;
    /* Nothing may fail any more when the entries are to be freed. */
    err = qcow2_refcount_read(q, offset >> q->cluster_bits, &refcount);
    if (err == 0)
        err = drop_entries(q, l1_index, table, 0);
    table_cache_put(q->l2_cache, table);
    if (err < 0)
        return err;
    qcow2_pending_add(q, offset >> q->cluster_bits, 1);
    qcow2_l1_set(q, l1_index, 0);
    table_cache_drop(q->l2_cache, offset);
    if (refcount <= 1) /* else snapshots still have it */
        qcow2_guard_remove(q, offset);
    return 0;
}

/* Frees all that lies behind guest cluster number `end`. */
static int drop_behind(struct qcow2 *q, uint64_t end)
{
    uint64_t in_table = end & ((UINT64_C(1) << q->l2_bits) - 1), l1_index = end >> q->l2_bits;
    int err = 0;

    if (in_table > 0 && l1_index < q->header.l1_size)
        err = cut_table(q, l1_index++, in_table);
    for (; l1_index < q->header.l1_size && err == 0; l1_index++) {
        if (q->l1[l1_index] != 0)
            err = drop_table(q, l1_index);
        if (err == 0 && q->pending.count >= QCOW2_PENDING_MAX)
            err = qcow2_write_back(q);
    }
    return err == 0 ? qcow2_write_back(q) : err;
}

/* The entries behind are 0, durably. */
static int cut_l1(struct qcow2 *q, uint64_t entries)
{
    uint64_t old = l1_clusters(q, q->header.l1_size), kept = l1_clusters(q, entries);
    uint64_t offset = q->header.l1_offset;
    int err;

    if (entries >= q->header.l1_size)
        return 0;
    err = qcow2_pending_reserve(q, 1);
    if (err == 0)
        err = switch_to(q, entries, kept > 0 ? offset : 0);
    if (err < 0)
        return err;
    q->header.l1_size = (uint32_t)entries;
    q->header.l1_offset = kept > 0 ? offset : 0;
    if (old > kept)
        qcow2_pending_add(q, (offset >> q->cluster_bits) + kept, old - kept);
    err = block_flush(q->file);
    return err == 0 ? qcow2_write_back(q) : err;
}

/* Whether a cluster is in use, whatever an image that is broken says of its metadata. */
static bool in_use(const struct qcow2 *q, const struct table *block, uint64_t cluster)
{
    uint64_t i = cluster & ((UINT64_C(1) << q->refblock_bits) - 1);

    return (block && qcow2_refcount_get(block->data, i, q->header.refcount_order) > 0) ||
           qcow2_guard_find(q, cluster << q->cluster_bits) != GUARD_NONE;
}

/*
 * The end of the last cluster in use of refcount block `index`, at most *end; the block does not
 * count.  1, 0 when there is none, or negative errno.
 */
static int last_in_range(struct qcow2 *q, uint64_t index, uint64_t *end)
{
    uint64_t base = index << q->refblock_bits, own = UINT64_MAX;
    struct table *block;
    int err = qcow2_refblock_get(q, index, &block);

    if (err < 0)
        return err;
    if (block)
        own = block->offset >> q->cluster_bits;
    while (*end > base && (*end - 1 == own || !in_use(q, block, *end - 1)))
        (*end)--;
    if (block)
        table_cache_put(q->refcount_cache, block);
    return *end > base;
}

/* Gives blocks back that describe nothing, from the end; *end: of the last cluster in use. */
static int find_end(struct qcow2 *q, uint64_t *end)
{
    int found = 0;

    while (*end > 1 && found == 0) {
        uint64_t index = (*end - 1) >> q->refblock_bits, old_end = *end;
        uint64_t own = index < q->reftable_entries ? q->reftable[index] >> q->cluster_bits : 0;

        found = last_in_range(q, index, end);
        if (found == 0 && own > 0)
            found = qcow2_refblock_drop(q, index);
        else if (found > 0 && own >= *end && own < old_end)
            *end = own + 1;
        coroutine_yield();
    }
    return found < 0 ? found : 0;
}

/* Cuts the file behind the last cluster in use. Only space is lost should this fail. */
static void cut_file(struct qcow2 *q)
{
    uint64_t end = div_round_up(q->file->size, q->cluster_size);

    if (!qcow2_file_grows(q))
        return;
    if (find_end(q, &end) == 0 && end << q->cluster_bits < q->file->size)
        filter_resize_file(q->file, end << q->cluster_bits);
}

static int shrink(struct qcow2 *q, uint64_t size)
{
    int err = drop_behind(q, div_round_up(size, q->cluster_size));

    if (err == 0)
        err = cut_l1(q, qcow2_l1_entries_needed(size, q->cluster_bits, q->entry_bits));
    if (err == 0)
        cut_file(q);
    return err;
}

/* All that the new size needs is durable; then it is. */
static int set_size(struct qcow2 *q, uint64_t size)
{
    int err = qcow2_begin_change(q);

    if (err == 0)
        err = qcow2_write_back(q);
    if (err == 0)
        err = block_flush(q->file);
    if (err == 0)
        err = qcow2_bitmaps_claim(q);
    if (err == 0)
        err = qcow2_patch_header(q, QCOW2_AT_SIZE, size);
    if (err < 0)
        return err;
    q->header.size = size;
    qcow2_bitmaps_resize(q);
    return 0;
}

int qcow2_resize(struct node *node, uint64_t size, struct error *error)
{
    struct qcow2 *q = node->state;
    uint64_t old = q->header.size;
    int err;

    qcow2_lock_all(q);
    err = set_size(q, size);
    if (err < 0)
        error_set_errno(error, -err, "cannot write the new size of %s", node_name(node));
    else if (size < old && shrink(q, size) < 0)
        log_warning("%s is smaller now, but not all of its storage could be given back",
                    node_name(node));
    qcow2_unlock_all(q);
    return err;
}

/* A data file that cannot be cut, such as a device, stays as it is. */
void qcow2_resize_finish(struct node *node)
{
    struct qcow2 *q = node->state;
    const struct block_resize resize = {.size = node->size, .shrink = true};

    if (qcow2_has_data_file(q) && q->data->size > node->size)
        block_resize(q->data, &resize, NULL);
}
