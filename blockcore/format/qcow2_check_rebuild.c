/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A new refcount structure, when blocks of the old one are missing or broken: table and blocks
 * behind everything that the file holds, in force with one write to the header.  See qcow2_check.h.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct plan {
    uint64_t first;          /* cluster: the table, then the blocks */
    uint64_t table_clusters; /* of the table */
    uint64_t *blocks;        /* numbers of the blocks, ascending */
    uint64_t count;
};

/* The old structure is not in use any more. */
static void forget_old(struct qcow2_check *c)
{
    uint64_t first = c->header->reftable_offset >> c->cluster_bits;

    if (c->reftable_entries == 0) /* where it should be, there may be other things */
        return;
    for (uint64_t i = 0; i < c->header->reftable_clusters; i++) {
        if (qcow2_counts_marks(&c->counts, first + i) & COUNT_FIXED)
            qcow2_counts_clear(&c->counts, first + i);
    }
    for (uint64_t i = 0; i < c->reftable_entries; i++) {
        if (c->block_states[i] == CHECK_BLOCK_GOOD)
            qcow2_counts_clear(&c->counts, c->reftable[i] >> c->cluster_bits);
    }
}

static uint64_t chunk_block(const struct qcow2_check *c, const struct counts_chunk *chunk)
{
    return chunk->index * COUNTS_PER_CHUNK >> c->refblock_bits;
}

/* The blocks that describe all that was counted, and what is needed for clusters [first, end). */
static void list_blocks(const struct qcow2_check *c, struct plan *plan, uint64_t end)
{
    plan->count = 0;
    for (size_t i = 0; i < c->counts.used; i++) {
        const struct counts_chunk *chunk = &c->counts.chunks[i];
        uint64_t block = chunk_block(c, chunk);

        if (!bytes_are_zero(chunk->cells, sizeof(chunk->cells)) &&
            (plan->count == 0 || plan->blocks[plan->count - 1] != block))
            plan->blocks[plan->count++] = block;
    }
    for (uint64_t i = plan->first >> c->refblock_bits; i <= (end - 1) >> c->refblock_bits; i++) {
        if (plan->count == 0 || plan->blocks[plan->count - 1] < i)
            plan->blocks[plan->count++] = i;
    }
}

static uint64_t table_clusters(const struct qcow2_check *c, const struct plan *plan)
{
    return div_round_up((plan->blocks[plan->count - 1] + 1) * 8, c->cluster_size);
}

/* 0, or -EFBIG or -ENOSPC when there is no place for it. */
static int make_plan(struct qcow2_check *c, struct plan *plan)
{
    bool grows = c->file->identity.inode != 0; /* only a regular file does */
    uint64_t size = div_round_up(c->file->size, c->cluster_size), end, old_end;

    plan->first = grows ? size : c->used_end;
    end = plan->first + 1;
    do {
        old_end = end;
        list_blocks(c, plan, end);
        plan->table_clusters = table_clusters(c, plan);
        if (plan->table_clusters > QCOW2_REFTABLE_BYTES_MAX >> c->cluster_bits)
            return -EFBIG;
        end = plan->first + plan->table_clusters + plan->count;
    } while (end > old_end);
    return !grows && end > c->file->size >> c->cluster_bits ? -ENOSPC : 0;
}

/* A block may be described by itself: the structure is counted before it is written. */
static int count_new(struct qcow2_check *c, const struct plan *plan)
{
    uint64_t clusters = plan->table_clusters + plan->count;
    int err = 0;

    for (uint64_t i = 0; i < clusters && err == 0; i++)
        err = qcow2_counts_add(&c->counts, plan->first + i, 1, COUNT_FIXED);
    qcow2_counts_sort(&c->counts);
    return err;
}

static uint64_t block_offset(const struct qcow2_check *c, const struct plan *plan, uint64_t k)
{
    return (plan->first + plan->table_clusters + k) << c->cluster_bits;
}

static void fill_block(struct qcow2_check *c, uint64_t block, size_t *next_chunk)
{
    unsigned order = c->header->refcount_order;
    uint64_t base = block << c->refblock_bits;
    uint64_t max = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;

    memset(c->table, 0, c->cluster_size);
    for (; *next_chunk < c->counts.used; (*next_chunk)++) {
        uint64_t first = c->counts.chunks[*next_chunk].index * COUNTS_PER_CHUNK;

        if (first >> c->refblock_bits > block)
            return;
        if (first >> c->refblock_bits < block)
            continue; /* nothing is counted there any more */
        for (unsigned i = 0; i < COUNTS_PER_CHUNK; i++)
            qcow2_refcount_set(c->table, first + i - base, order,
                               min_u64(qcow2_counts_get(&c->counts, first + i), max));
    }
}

static int write_structure(struct qcow2_check *c, const struct plan *plan)
{
    uint64_t per_cluster = c->cluster_size / 8;
    uint64_t next = 0;
    size_t chunk = 0;
    int err = 0;

    for (uint64_t k = 0; k < plan->count && err == 0; k++) {
        fill_block(c, plan->blocks[k], &chunk);
        err = block_write(c->file, c->table, c->cluster_size, block_offset(c, plan, k), 0);
        coroutine_yield();
    }
    for (uint64_t k = 0; k < plan->table_clusters && err == 0; k++) {
        memset(c->table, 0, c->cluster_size);
        for (; next < plan->count && plan->blocks[next] / per_cluster == k; next++)
            put_be64(c->table + plan->blocks[next] % per_cluster * 8, block_offset(c, plan, next));
        err = block_write(c->file, c->table, c->cluster_size, (plan->first + k) << c->cluster_bits,
                          0);
    }
    return err == 0 ? block_flush(c->file) : err;
}

static int switch_header(struct qcow2_check *c, const struct plan *plan)
{
    uint8_t data[12];
    int err;

    put_be64(data, plan->first << c->cluster_bits);
    put_be32(data + 8, (uint32_t)plan->table_clusters);
    err = block_write(c->file, data, sizeof(data), QCOW2_AT_REFTABLE, 0);
    if (err == 0)
        err = block_flush(c->file);
    if (err == 0) {
        c->header->reftable_offset = plan->first << c->cluster_bits;
        c->header->reftable_clusters = (uint32_t)plan->table_clusters;
    }
    return err;
}

/* The new table, as copied bits are checked by it; and the findings that are gone. */
static int install(struct qcow2_check *c, const struct plan *plan)
{
    struct block_check_result *result = &c->check->result;
    uint64_t entries = plan->table_clusters << (c->cluster_bits - 3);

    free(c->reftable);
    free(c->block_states);
    c->reftable = calloc(entries, sizeof(*c->reftable));
    c->block_states = calloc(entries, 1);
    if (!c->reftable || !c->block_states)
        return -ENOMEM;
    c->reftable_entries = entries;
    for (uint64_t k = 0; k < plan->count; k++) {
        c->reftable[plan->blocks[k]] = block_offset(c, plan, k);
        c->block_states[plan->blocks[k]] = CHECK_BLOCK_GOOD;
    }
    result->corruptions -= c->rebuild_corruptions;
    result->corruptions_fixed += c->rebuild_corruptions;
    result->leaks -= c->rebuild_leaks;
    result->leaks_fixed += c->rebuild_leaks;
    result->image_end_offset = block_offset(c, plan, plan->count);
    qcow2_check_say(c, "repaired: the refcounts were built anew, with a table at offset %" PRIu64,
                    c->header->reftable_offset);
    return 0;
}

int qcow2_check_rebuild(struct qcow2_check *c)
{
    /* Blocks of all chunks, and as many as the structure itself can need. */
    size_t room = c->counts.used + (QCOW2_REFTABLE_BYTES_MAX / 8);
    struct plan plan = {.blocks = reallocarray(NULL, room, sizeof(*plan.blocks))};
    int err = plan.blocks ? 0 : -ENOMEM;

    if (err == 0) {
        forget_old(c);
        err = make_plan(c, &plan);
    }
    if (err == 0)
        err = count_new(c, &plan);
    if (err == 0)
        err = write_structure(c, &plan);
    if (err == 0)
        err = switch_header(c, &plan);
    if (err == 0)
        err = install(c, &plan);
    free(plan.blocks);
    return err;
}
