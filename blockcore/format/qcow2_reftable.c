/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The refcount table: which refcount block describes which range of clusters.
 *
 * The table in memory is what is on disk: an entry is written, after the block it points to is
 * durable, before anything in the block's range is taken.  A range without a block is free
 * altogether, so that a new block can always lie in, and describe, its own range.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * A larger table, its blocks before it, at the start of the first range that the old one lacks. Or
 * a region of clusters that are not the table's, in the same way.
 */
struct growth {
    uint64_t first;          /* cluster */
    uint64_t blocks;         /* that describe all of this */
    uint64_t table_clusters; /* of the new table, or the region */
};

int qcow2_reftable_load(struct qcow2 *q, struct error *error)
{
    size_t bytes = (size_t)q->header.reftable_clusters << q->cluster_bits;
    int err;

    q->reftable = malloc(bytes);
    if (!q->reftable)
        return error_set(error, ENOMEM, "out of memory for the refcount table (%zu bytes)", bytes);
    err = block_read(q->file, q->reftable, bytes, q->header.reftable_offset);
    if (err < 0)
        return error_set_errno(error, -err, "cannot read the refcount table");
    q->reftable_entries = bytes / 8;
    for (uint64_t i = 0; i < q->reftable_entries; i++)
        q->reftable[i] = be64toh(q->reftable[i]);
    return 0;
}

int qcow2_refblock_get(struct qcow2 *q, uint64_t index, struct table **ret)
{
    uint64_t offset = index < q->reftable_entries ? q->reftable[index] : 0;
    int err;

    *ret = NULL;
    if (offset == 0)
        return 0;
    if (offset >> QCOW2_HOST_BITS || !is_aligned(offset, q->cluster_size))
        return qcow2_set_corrupt(q, "refcount table entry %" PRIu64 " is 0x%016" PRIx64, index,
                                 offset);
    if (qcow2_guard_find(q, offset) != GUARD_REFBLOCK)
        return qcow2_set_corrupt(
            q, "the refcount block at offset %" PRIu64 " overlaps other metadata", offset);
    err = table_cache_get_for_change(q->refcount_cache, offset, ret);
    if (err != -EIO)
        return err;
    if (!range_within(offset, q->cluster_size, q->file->size))
        return qcow2_set_corrupt(
            q, "the refcount block at offset %" PRIu64 " is beyond the end of the file", offset);
    return qcow2_log_once(q, "the refcount block at offset %" PRIu64 " cannot be read", offset);
}

/* Puts a block that counts itself on disk, durably. */
static int write_block(struct qcow2 *q, uint64_t cluster)
{
    uint64_t mask = (UINT64_C(1) << q->refblock_bits) - 1;
    struct table *block;
    int err = table_cache_get_new(q->refcount_cache, cluster << q->cluster_bits, &block);

    if (err < 0)
        return err;
    qcow2_refcount_set(block->data, cluster & mask, q->header.refcount_order, 1);
    table_cache_put(q->refcount_cache, block);
    err = table_cache_writeback(q->refcount_cache);
    return err < 0 ? err : block_flush(q->file);
}

static int write_entry(struct qcow2 *q, uint64_t index, uint64_t value)
{
    uint8_t data[8];

    put_be64(data, value);
    return block_write(q->file, data, sizeof(data), q->header.reftable_offset + index * 8, 0);
}

int qcow2_refblock_drop(struct qcow2 *q, uint64_t index)
{
    uint64_t offset = q->reftable[index], cluster = offset >> q->cluster_bits;
    int err = qcow2_pending_reserve(q, 1);

    if (err == 0)
        err = write_entry(q, index, 0);
    if (err < 0)
        return err;
    q->reftable[index] = 0;
    table_cache_drop(q->refcount_cache, offset);
    qcow2_guard_remove(q, offset);
    if (cluster >> q->refblock_bits != index)
        qcow2_pending_add(q, cluster, 1);
    q->hint = min_u64(q->hint, index << q->refblock_bits);
    return block_flush(q->file);
}

/* At q->hint. */
static int make_block(struct qcow2 *q, uint64_t index)
{
    uint64_t cluster = q->hint, offset = cluster << q->cluster_bits;
    int err;

    if (qcow2_guard_search(q, cluster, 1) == cluster)
        return qcow2_set_corrupt(q, "metadata at offset %" PRIu64 " has no refcount", offset);
    err = qcow2_guard_reserve(q, 1);
    if (err == 0)
        err = write_block(q, cluster);
    if (err == 0) {
        /*
         * Should this fail, the entry may be on disk nevertheless: then it points to a block that
         * is sound, and that stays so, because the cluster is passed over.
         */
        q->hint = cluster + 1;
        err = write_entry(q, index, offset);
    }
    if (err < 0) {
        table_cache_drop(q->refcount_cache, offset);
        return err;
    }
    q->reftable[index] = offset;
    qcow2_guard_add(q, offset, GUARD_REFBLOCK);
    return 0;
}

/* How many clusters are used up by blocks that describe `clusters` more and themselves. */
static uint64_t blocks_for(const struct qcow2 *q, uint64_t clusters)
{
    uint64_t per_block = UINT64_C(1) << q->refblock_bits, blocks = 0, total;

    do {
        total = clusters + blocks;
        blocks = div_round_up(total, per_block);
    } while (clusters + blocks != total);
    return blocks;
}

/* False: the table cannot grow, or there is no room for it. */
static bool plan_growth(const struct qcow2 *q, struct growth *ret)
{
    uint64_t old = q->header.reftable_clusters;
    uint64_t entries;

    ret->first = q->reftable_entries << q->refblock_bits;
    ret->table_clusters =
        min_u64(old + max_u64(old / 2, 1), QCOW2_REFTABLE_BYTES_MAX >> q->cluster_bits);
    ret->blocks = blocks_for(q, ret->table_clusters);
    entries = ret->table_clusters << (q->cluster_bits - 3);
    return ret->table_clusters > old && q->reftable_entries + ret->blocks <= entries &&
           range_within(ret->first, ret->table_clusters + ret->blocks, q->cluster_limit);
}

static int write_growth_block(struct qcow2 *q, const struct growth *g, uint64_t k, uint8_t *buffer)
{
    uint64_t per_block = UINT64_C(1) << q->refblock_bits;
    uint64_t total = g->blocks + g->table_clusters, done = k * per_block;

    memset(buffer, 0, q->cluster_size);
    for (uint64_t i = 0; i < per_block && done + i < total; i++)
        qcow2_refcount_set(buffer, i, q->header.refcount_order, 1);
    return block_write(q->file, buffer, q->cluster_size, (g->first + k) << q->cluster_bits, 0);
}

/* Blocks and table, of which nothing on disk knows yet. */
static int write_growth(struct qcow2 *q, const struct growth *g, const uint64_t *table)
{
    uint64_t per_cluster = q->cluster_size / 8;
    uint8_t *buffer = buffer_get(q->cluster_size);
    int err = buffer ? 0 : -ENOMEM;

    for (uint64_t k = 0; k < g->blocks && err == 0; k++)
        err = write_growth_block(q, g, k, buffer);
    for (uint64_t k = 0; k < g->table_clusters && err == 0; k++) {
        for (uint64_t i = 0; i < per_cluster; i++)
            put_be64(buffer + i * 8, table[k * per_cluster + i]);
        err = block_write(q->file, buffer, q->cluster_size,
                          (g->first + g->blocks + k) << q->cluster_bits, 0);
    }
    buffer_put(buffer, q->cluster_size);
    return err < 0 ? err : block_flush(q->file);
}

/* Points the header to the new table: offset and length in one write. */
static int switch_header(struct qcow2 *q, const struct growth *g)
{
    uint8_t data[12];

    put_be64(data, (g->first + g->blocks) << q->cluster_bits);
    put_be32(data + 8, (uint32_t)g->table_clusters);
    return qcow2_switch(q, QCOW2_AT_REFTABLE, data, sizeof(data));
}

/* The new table is in force: takes it over. */
static void install_growth(struct qcow2 *q, const struct growth *g, uint64_t *table)
{
    qcow2_pending_add(q, q->header.reftable_offset >> q->cluster_bits, q->header.reftable_clusters);
    q->header.reftable_offset = (g->first + g->blocks) << q->cluster_bits;
    q->header.reftable_clusters = (uint32_t)g->table_clusters;
    for (uint64_t k = 0; k < g->blocks; k++)
        qcow2_guard_add(q, (g->first + k) << q->cluster_bits, GUARD_REFBLOCK);
    free(q->reftable);
    q->reftable = table;
    q->reftable_entries = g->table_clusters << (q->cluster_bits - 3);
    q->hint = g->first + g->blocks + g->table_clusters;
}

static int grow(struct qcow2 *q)
{
    struct growth g;
    uint64_t *table;
    int err;

    if (!plan_growth(q, &g))
        return -ENOSPC;
    if (qcow2_guard_search(q, g.first, g.blocks + g.table_clusters) <
        g.first + g.blocks + g.table_clusters)
        return qcow2_set_corrupt(q, "metadata at offset %" PRIu64 " or behind has no refcount",
                                 g.first << q->cluster_bits);
    table = calloc(g.table_clusters, q->cluster_size);
    if (!table || qcow2_guard_reserve(q, g.blocks) < 0 || qcow2_pending_reserve(q, 1) < 0) {
        free(table);
        return -ENOMEM;
    }
    memcpy(table, q->reftable, q->reftable_entries * 8);
    for (uint64_t k = 0; k < g.blocks; k++)
        table[q->reftable_entries + k] = (g.first + k) << q->cluster_bits;
    err = write_growth(q, &g, table);
    if (err == 0)
        err = switch_header(q, &g);
    if (err < 0) {
        free(table);
        return err;
    }
    install_growth(q, &g, table);
    return block_flush(q->file);
}

int qcow2_refblock_make(struct qcow2 *q)
{
    uint64_t index = q->hint >> q->refblock_bits;

    return index < q->reftable_entries ? make_block(q, index) : grow(q);
}

/* Where a region can lie: behind the last range that has a block. The table may grow. */
static int plan_region(struct qcow2 *q, uint64_t clusters, struct growth *ret)
{
    uint64_t index = q->reftable_entries;

    *ret = (struct growth){.blocks = blocks_for(q, clusters), .table_clusters = clusters};
    while (index > 0 && q->reftable[index - 1] == 0)
        index--;
    while (q->reftable_entries - index < ret->blocks) {
        int err = grow(q);

        if (err < 0)
            return err;
        /* What the new table and its blocks take lies behind the old one's ranges. */
        index = q->reftable_entries;
        while (q->reftable[index - 1] == 0)
            index--;
    }
    ret->first = index << q->refblock_bits;
    return range_within(ret->first, clusters + ret->blocks, q->cluster_limit) ? 0 : -ENOSPC;
}

/* Enters the blocks of a region, which are durable, into the table. */
static int enter_blocks(struct qcow2 *q, const struct growth *g)
{
    uint64_t index = g->first >> q->refblock_bits;
    int err = 0;

    for (uint64_t k = 0; k < g->blocks && err == 0; k++) {
        uint64_t offset = (g->first + k) << q->cluster_bits;
        uint8_t data[8];

        put_be64(data, offset);
        err = qcow2_switch(q, q->header.reftable_offset + (index + k) * 8, data, sizeof(data));
        q->reftable[index + k] = offset;
        qcow2_guard_add(q, offset, GUARD_REFBLOCK);
    }
    return err;
}

int qcow2_reftable_take_region(struct qcow2 *q, uint64_t clusters, uint64_t *ret_first)
{
    uint8_t *buffer;
    struct growth g;
    int err = plan_region(q, clusters, &g);

    if (err < 0)
        return err;
    if (qcow2_guard_search(q, g.first, g.blocks + clusters) < g.first + g.blocks + clusters)
        return qcow2_set_corrupt(q, "metadata at offset %" PRIu64 " or behind has no refcount",
                                 g.first << q->cluster_bits);
    buffer = buffer_get(q->cluster_size);
    if (!buffer || qcow2_guard_reserve(q, g.blocks) < 0)
        err = -ENOMEM;
    for (uint64_t k = 0; k < g.blocks && err == 0; k++)
        err = write_growth_block(q, &g, k, buffer);
    buffer_put(buffer, q->cluster_size);
    if (err == 0)
        err = block_flush(q->file);
    if (err == 0)
        err = enter_blocks(q, &g);
    *ret_first = g.first + g.blocks;
    return err;
}
