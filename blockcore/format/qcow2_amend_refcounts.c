/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Refcounts of another width: a new table with new blocks, behind all that is in use, in force with
 * one write to the header.  The new one does not count the old one, which is free from then on; the
 * old one knows nothing of the new one, so that nothing leaks, wherever it is cut off.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512
#define AT_ORDER 96 /* u32 */

struct rewidth {
    struct qcow2 *q;
    const struct block_progress *progress;
    unsigned order, block_bits; /* log2 of the bits of a refcount, and of a block's entries */
    uint64_t used_end;          /* behind the last cluster that is counted */
    uint64_t *blocks;           /* numbers of the new blocks, ascending */
    uint64_t count, max;
    uint64_t first, table_clusters; /* the table is at cluster `first`, the blocks follow */
    uint8_t *buffer;                /* a cluster */
};

static uint64_t structure_clusters(const struct rewidth *r)
{
    return r->table_clusters + r->count;
}

static bool in_old_structure(const struct qcow2 *q, uint64_t cluster)
{
    uint64_t offset = cluster << q->cluster_bits, start = q->header.reftable_offset;

    return qcow2_guard_find(q, offset) == GUARD_REFBLOCK ||
           (offset >= start && offset - start < (uint64_t)q->header.reftable_clusters
                                                    << q->cluster_bits);
}

/* The new refcount of a cluster that does not belong to the new structure. */
static uint64_t new_value(const struct qcow2 *q, const struct table *block, uint64_t cluster)
{
    uint64_t i = cluster & ((UINT64_C(1) << q->refblock_bits) - 1);
    uint64_t value = qcow2_refcount_get(block->data, i, q->header.refcount_order);

    return value > 0 && in_old_structure(q, cluster) ? value - 1 : value;
}

static int add_block(struct rewidth *r, uint64_t block)
{
    if (r->count > 0 && r->blocks[r->count - 1] >= block)
        return 0;
    if (r->count == r->max) {
        uint64_t max = r->max ? r->max * 2 : 64;
        uint64_t *grown = reallocarray(r->blocks, max, sizeof(*grown));

        if (!grown)
            return -ENOMEM;
        r->blocks = grown;
        r->max = max;
    }
    r->blocks[r->count++] = block;
    return 0;
}

/* Looks at the clusters that old block `index` describes. */
static int survey_block(struct rewidth *r, uint64_t index, struct error *error)
{
    struct qcow2 *q = r->q;
    uint64_t limit = r->order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << r->order)) - 1;
    uint64_t base = index << q->refblock_bits;
    struct table *block;
    int err = qcow2_refblock_get(q, index, &block);

    if (err < 0)
        return error_set_errno(error, -err, "cannot read the refcounts of %s", node_name(q->node));
    for (uint64_t i = 0; block && i < UINT64_C(1) << q->refblock_bits && err == 0; i++) {
        uint64_t value = new_value(q, block, base + i);

        if (value == 0)
            continue;
        r->used_end = base + i + 1;
        if (value > limit)
            err = error_set(error, ERANGE,
                            "refcounts of %u bits are too narrow: the cluster at offset %" PRIu64
                            " has a refcount of %" PRIu64,
                            1u << r->order, (base + i) << q->cluster_bits, value);
        else if (add_block(r, (base + i) >> r->block_bits) < 0)
            err = error_set(error, ENOMEM, "out of memory");
    }
    if (block)
        table_cache_put(q->refcount_cache, block);
    return err;
}

static int survey(struct rewidth *r, struct error *error)
{
    int err = 0;

    for (uint64_t i = 0; i < r->q->reftable_entries && err == 0; i++) {
        if (r->q->reftable[i] == 0)
            continue;
        err = survey_block(r, i, error);
        coroutine_yield();
    }
    return err;
}

/* Where the structure goes, and the blocks that it needs for itself. */
static int place(struct rewidth *r, struct error *error)
{
    struct qcow2 *q = r->q;
    uint64_t old_end, end, file_end = div_round_up(q->file->size, q->cluster_size);

    /* Not into the old structure, which need not be among what is counted. */
    for (uint64_t i = 0; i < q->header.reftable_clusters; i++)
        r->used_end = max_u64(r->used_end, (q->header.reftable_offset >> q->cluster_bits) + i + 1);
    for (uint64_t i = 0; i < q->reftable_entries; i++)
        r->used_end =
            max_u64(r->used_end, q->reftable[i] ? (q->reftable[i] >> q->cluster_bits) + 1 : 0);
    r->first = qcow2_file_grows(q) ? max_u64(file_end, r->used_end) : r->used_end;
    end = r->first + 1;
    do {
        old_end = end;
        for (uint64_t i = r->first >> r->block_bits; i <= (end - 1) >> r->block_bits; i++) {
            if (add_block(r, i) < 0)
                return error_set(error, ENOMEM, "out of memory");
        }
        r->table_clusters = div_round_up((r->blocks[r->count - 1] + 1) * 8, q->cluster_size);
        end = r->first + structure_clusters(r);
    } while (end > old_end);
    if (r->table_clusters > QCOW2_REFTABLE_BYTES_MAX >> q->cluster_bits)
        return error_set(error, EFBIG,
                         "refcounts of %u bits are too wide: their table would have more than 8 "
                         "MiB",
                         1u << r->order);
    if (end > q->cluster_limit)
        return error_set(error, ENOSPC, "there is no room for other refcounts in %s",
                         node_name(q->node));
    return 0;
}

static uint64_t block_offset(const struct rewidth *r, uint64_t k)
{
    return (r->first + r->table_clusters + k) << r->q->cluster_bits;
}

/* The old refcounts of a new block's range. */
static int copy_counts(struct rewidth *r, uint64_t block)
{
    struct qcow2 *q = r->q;
    uint64_t base = block << r->block_bits, end = base + (UINT64_C(1) << r->block_bits);
    int err = 0;

    for (uint64_t cluster = base; cluster < end && err == 0;) {
        uint64_t index = cluster >> q->refblock_bits;
        uint64_t stop = min_u64(end, (index + 1) << q->refblock_bits);
        struct table *old;

        err = qcow2_refblock_get(q, index, &old);
        for (; err == 0 && old && cluster < stop; cluster++)
            qcow2_refcount_set(r->buffer, cluster - base, r->order, new_value(q, old, cluster));
        if (old)
            table_cache_put(q->refcount_cache, old);
        cluster = stop;
    }
    return err;
}

static int write_block(struct rewidth *r, uint64_t k)
{
    uint64_t base = r->blocks[k] << r->block_bits, end = base + (UINT64_C(1) << r->block_bits);
    uint64_t structure_end = r->first + structure_clusters(r);
    int err;

    memset(r->buffer, 0, r->q->cluster_size);
    err = copy_counts(r, r->blocks[k]);
    for (uint64_t i = max_u64(base, r->first); i < min_u64(end, structure_end); i++)
        qcow2_refcount_set(r->buffer, i - base, r->order, 1);
    if (err == 0)
        err = block_write(r->q->file, r->buffer, r->q->cluster_size, block_offset(r, k), 0);
    if (r->progress->report)
        r->progress->report(r->progress->arg, k + 1, r->count);
    coroutine_yield();
    return err;
}

static int write_structure(struct rewidth *r)
{
    struct qcow2 *q = r->q;
    uint64_t per_cluster = q->cluster_size / 8, next = 0;
    int err = 0;

    for (uint64_t k = 0; k < r->count && err == 0; k++)
        err = write_block(r, k);
    for (uint64_t k = 0; k < r->table_clusters && err == 0; k++) {
        memset(r->buffer, 0, q->cluster_size);
        for (; next < r->count && r->blocks[next] / per_cluster == k; next++)
            put_be64(r->buffer + r->blocks[next] % per_cluster * 8, block_offset(r, next));
        err =
            block_write(q->file, r->buffer, q->cluster_size, (r->first + k) << q->cluster_bits, 0);
    }
    if (err == 0)
        err = block_flush(q->file);
    if (err < 0)
        q->stale_end = max_u64(q->stale_end, (r->first + structure_clusters(r)) << q->cluster_bits);
    return err;
}

/* Table and width in one write: all of the header's sector. */
static int switch_header(struct rewidth *r)
{
    struct qcow2 *q = r->q;
    uint8_t sector[SECTOR];
    int err = block_read(q->file, sector, sizeof(sector), 0);

    if (err < 0)
        return err;
    put_be64(sector + QCOW2_AT_REFTABLE, r->first << q->cluster_bits);
    put_be32(sector + QCOW2_AT_REFTABLE + 8, (uint32_t)r->table_clusters);
    put_be32(sector + AT_ORDER, r->order);
    return qcow2_switch(q, 0, sector, sizeof(sector));
}

/* The new structure is in force: takes it over. */
static void install(struct rewidth *r, uint64_t *table)
{
    struct qcow2 *q = r->q;

    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        if (q->reftable[i] == 0)
            continue;
        table_cache_drop(q->refcount_cache, q->reftable[i]);
        qcow2_guard_remove(q, q->reftable[i]);
    }
    for (uint64_t k = 0; k < r->count; k++) {
        table[r->blocks[k]] = block_offset(r, k);
        qcow2_guard_add(q, block_offset(r, k), GUARD_REFBLOCK);
    }
    free(q->reftable);
    q->reftable = table;
    q->reftable_entries = r->table_clusters << (q->cluster_bits - 3);
    q->header.reftable_offset = r->first << q->cluster_bits;
    q->header.reftable_clusters = (uint32_t)r->table_clusters;
    q->header.refcount_order = r->order;
    q->refblock_bits = r->block_bits;
    q->hint = 0;
}

static int replace(struct rewidth *r)
{
    struct qcow2 *q = r->q;
    uint64_t *table = calloc(r->table_clusters, q->cluster_size);
    int err = table ? qcow2_guard_reserve(q, r->count) : -ENOMEM;

    if (err == 0)
        err = write_structure(r);
    if (err == 0)
        err = switch_header(r);
    if (err < 0) {
        free(table);
        return err;
    }
    install(r, table);
    return block_flush(q->file);
}

int qcow2_set_refcount_order(struct qcow2 *q, unsigned order, const struct block_progress *progress,
                             struct error *error)
{
    struct rewidth r = {
        .q = q, .progress = progress, .order = order, .block_bits = q->cluster_bits + 3 - order};
    int err = qcow2_write_back(q);

    if (err == 0)
        err = block_flush(q->file);
    r.buffer = buffer_get(q->cluster_size);
    if (err < 0 || !r.buffer)
        err = error_set_errno(error, err < 0 ? -err : ENOMEM,
                              "cannot prepare %s for other "
                              "refcounts",
                              node_name(q->node));
    if (err == 0)
        err = survey(&r, error);
    if (err == 0)
        err = place(&r, error);
    if (err == 0) {
        err = replace(&r);
        if (err < 0)
            error_set_errno(error, -err, "cannot write other refcounts to %s", node_name(q->node));
    }
    buffer_put(r.buffer, q->cluster_size);
    free(r.blocks);
    return err;
}
