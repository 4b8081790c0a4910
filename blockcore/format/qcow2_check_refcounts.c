/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Refcounts against what was counted, and copied bits against refcounts. See qcow2_check.h.
 *
 * The ranges of refcount blocks are gone through in order; of those that have no block only where
 * something was counted.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_check.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define REFBLOCK_CACHE_BYTES (8 * MIB)

/* The comparison at one refcount block. */
struct view {
    struct qcow2_check *c;
    uint64_t base; /* first cluster of the range */
    bool writable; /* there is a block, and it is to be repaired in place */
    bool changed;
    size_t chunk; /* next chunk of counts */
};

static uint64_t refcount_max(const struct qcow2_check *c)
{
    unsigned bits = 1u << c->header->refcount_order;

    return bits == 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

static void found_leak(struct view *v, uint64_t cluster, uint64_t refcount, uint64_t count)
{
    struct qcow2_check *c = v->c;
    bool rebuilt = c->rebuild && qcow2_check_fixes(c);
    bool fix = v->writable && (c->check->fix & CHECK_FIX_LEAKS) && !c->incomplete;

    qcow2_check_say(c,
                    "%s: the cluster at offset %" PRIu64 " has refcount %" PRIu64
                    " and is used %" PRIu64 " times",
                    fix ? "repaired leak" : "leak", cluster << c->cluster_bits, refcount, count);
    if (fix) {
        c->check->result.leaks_fixed++;
        qcow2_refcount_set(c->table, cluster - v->base, c->header->refcount_order, count);
        v->changed = true;
        return;
    }
    c->check->result.leaks++;
    c->rebuild_leaks += rebuilt;
}

static void found_low(struct view *v, uint64_t cluster, uint64_t refcount, uint64_t count)
{
    struct qcow2_check *c = v->c;
    bool fits = count <= refcount_max(c);
    bool fix = v->writable && qcow2_check_fixes(c) && fits;

    if (!fix && fits && c->rebuild) {
        qcow2_check_for_rebuild(c,
                                "the cluster at offset %" PRIu64 " has refcount %" PRIu64
                                " and is used %" PRIu64 " times",
                                cluster << c->cluster_bits, refcount, count);
        return;
    }
    qcow2_check_corruption(c, fix,
                           "the cluster at offset %" PRIu64 " has refcount %" PRIu64
                           " and is used %" PRIu64 " times%s",
                           cluster << c->cluster_bits, refcount, count,
                           fits ? "" : ", more than a refcount of this image can say");
    if (fix) {
        qcow2_refcount_set(c->table, cluster - v->base, c->header->refcount_order, count);
        v->changed = true;
    }
}

static void compare_cluster(struct view *v, uint64_t cluster)
{
    struct qcow2_check *c = v->c;
    uint64_t refcount = qcow2_refcount_get(c->table, cluster - v->base, c->header->refcount_order);
    uint64_t count = qcow2_counts_get(&c->counts, cluster);

    /* Refcounts of what is not in the file mean nothing. */
    if (count == 0 && (refcount == 0 || cluster << c->cluster_bits >= c->file_size))
        return;
    c->used_end = cluster + 1;
    if (qcow2_counts_marks(&c->counts, cluster) & COUNT_OVERLAP)
        qcow2_check_corruption(c, false,
                               "the cluster at offset %" PRIu64
                               " holds metadata and is used for something else, too",
                               cluster << c->cluster_bits);
    else if (refcount > count)
        found_leak(v, cluster, refcount, count);
    else if (refcount < count)
        found_low(v, cluster, refcount, count);
}

/* Compares 64 clusters, unless nothing is there. */
static void compare_chunk(struct view *v, uint64_t index)
{
    struct qcow2_check *c = v->c;
    uint64_t first = index * COUNTS_PER_CHUNK;
    size_t bytes = COUNTS_PER_CHUNK / 8 << c->header->refcount_order;
    bool counted = v->chunk < c->counts.used && c->counts.chunks[v->chunk].index == index;

    if (counted)
        v->chunk++;
    else if (bytes_are_zero(c->table + (first - v->base) / COUNTS_PER_CHUNK * bytes, bytes))
        return;
    for (unsigned i = 0; i < COUNTS_PER_CHUNK; i++)
        compare_cluster(v, first + i);
}

static uint64_t chunk_block(const struct qcow2_check *c, size_t chunk)
{
    return c->counts.chunks[chunk].index * COUNTS_PER_CHUNK >> c->refblock_bits;
}

static enum check_block block_state(const struct qcow2_check *c, uint64_t block)
{
    return block < c->reftable_entries ? c->block_states[block] : CHECK_BLOCK_ABSENT;
}

/* The refcounts are not known: only where the last cluster in use is matters. */
static void skip_block(struct view *v, uint64_t block)
{
    struct qcow2_check *c = v->c;

    for (; v->chunk < c->counts.used && chunk_block(c, v->chunk) == block; v->chunk++) {
        uint64_t first = c->counts.chunks[v->chunk].index * COUNTS_PER_CHUNK;

        for (unsigned i = 0; i < COUNTS_PER_CHUNK; i++) {
            if (c->counts.chunks[v->chunk].cells[i] != 0)
                c->used_end = first + i + 1;
        }
    }
}

static int compare_block(struct view *v, uint64_t block)
{
    struct qcow2_check *c = v->c;
    enum check_block state = block_state(c, block);
    enum check_table got = CHECK_TABLE_ZERO;
    uint64_t chunks = (UINT64_C(1) << c->refblock_bits) / COUNTS_PER_CHUNK;

    v->base = block << c->refblock_bits;
    v->writable = state == CHECK_BLOCK_GOOD && !(c->rebuild && qcow2_check_fixes(c));
    v->changed = false;
    if (state == CHECK_BLOCK_GOOD)
        got = qcow2_check_read(c, c->reftable[block]);
    if (got == CHECK_TABLE_FAILED)
        qcow2_check_unknown(c, "refcount block %" PRIu64 " at offset %" PRIu64 " cannot be read",
                            block, c->reftable[block]);
    if (state == CHECK_BLOCK_UNKNOWN || got == CHECK_TABLE_FAILED) {
        skip_block(v, block);
        return 0;
    }
    if (got == CHECK_TABLE_ZERO) {
        memset(c->table, 0, c->cluster_size);
        while (v->chunk < c->counts.used && chunk_block(c, v->chunk) == block)
            compare_chunk(v, c->counts.chunks[v->chunk].index);
    } else {
        for (uint64_t i = 0; i < chunks; i++)
            compare_chunk(v, v->base / COUNTS_PER_CHUNK + i);
    }
    return v->changed ? block_write(c->file, c->table, c->cluster_size, c->reftable[block], 0) : 0;
}

/* Whether something in use has a place in the table, but no refcount block. */
static bool lacks_blocks(const struct qcow2_check *c)
{
    for (size_t i = 0; i < c->counts.used; i++) {
        if (block_state(c, chunk_block(c, i)) == CHECK_BLOCK_ABSENT)
            return true;
    }
    return false;
}

int qcow2_check_refcounts(struct qcow2_check *c)
{
    struct view v = {.c = c};
    uint64_t block = 0;
    int err = 0;

    qcow2_counts_sort(&c->counts);
    c->rebuild |= lacks_blocks(c);
    while (err == 0) {
        while (block < c->reftable_entries && c->block_states[block] == CHECK_BLOCK_ABSENT &&
               (v.chunk == c->counts.used || chunk_block(c, v.chunk) > block))
            block++;
        if (block >= c->reftable_entries) {
            if (v.chunk == c->counts.used)
                break;
            block = chunk_block(c, v.chunk);
        }
        err = compare_block(&v, block++);
        coroutine_yield();
    }
    c->check->result.image_end_offset = c->used_end << c->cluster_bits;
    return err;
}

/* Whether the refcount on disk is 1. Negative: it is not known. */
static int is_single(struct qcow2_check *c, uint64_t offset)
{
    uint64_t cluster = offset >> c->cluster_bits, block = cluster >> c->refblock_bits, value;
    struct table *table;
    enum check_block state = block_state(c, block);
    int err;

    if (state != CHECK_BLOCK_GOOD)
        return state == CHECK_BLOCK_ABSENT ? 0 : -1;
    err = table_cache_get(c->refblocks, c->reftable[block], &table);
    if (err < 0) {
        qcow2_check_unknown(c, "refcount block %" PRIu64 " at offset %" PRIu64 " cannot be read",
                            block, c->reftable[block]);
        return err;
    }
    value = qcow2_refcount_get(table->data, cluster & ((UINT64_C(1) << c->refblock_bits) - 1),
                               c->header->refcount_order);
    table_cache_put(c->refblocks, table);
    return value == 1;
}

/* Corrects the copied bit of an entry. */
static void check_bit(struct qcow2_check *c, uint64_t *value, const char *what)
{
    int single = is_single(c, *value & QCOW2_OFFSET_MASK);

    if (single < 0 || (*value & QCOW2_COPIED ? 1 : 0) == single)
        return;
    qcow2_check_corruption(c, c->fix_copied,
                           "the %s entry 0x%016" PRIx64 " %s the copied bit, its cluster "
                           "has%s refcount 1",
                           what, *value, single ? "lacks" : "has", single ? "" : " not");
    if (c->fix_copied)
        *value ^= QCOW2_COPIED;
}

static int check_l2_bits(struct qcow2_check *c, uint64_t offset)
{
    bool changed = false;
    enum check_table got;

    if (qcow2_external_data(c->header)) /* data has no refcounts there */
        return 0;
    got = qcow2_check_read(c, offset);
    if (got == CHECK_TABLE_FAILED)
        qcow2_check_unknown(c, "the L2 table at offset %" PRIu64 " cannot be read", offset);
    if (got != CHECK_TABLE_READ)
        return 0;
    for (uint64_t i = 0; i < c->cluster_size; i += UINT64_C(1) << qcow2_l2_entry_bits(c->header)) {
        uint64_t old = get_be64(c->table + i), value = old;

        if ((old & QCOW2_COMPRESSED) || !(old & QCOW2_OFFSET_MASK))
            continue;
        check_bit(c, &value, "L2");
        if (value != old) {
            put_be64(c->table + i, value);
            changed = true;
        }
    }
    return changed ? block_write(c->file, c->table, c->cluster_size, offset, 0) : 0;
}

static int visit_copied(struct qcow2_check *c, const struct check_l1 *l1, uint64_t index,
                        uint64_t *value)
{
    uint64_t offset = *value & QCOW2_OFFSET_MASK, cluster = offset >> c->cluster_bits;
    unsigned marks = qcow2_counts_marks(&c->counts, cluster);

    if (offset == 0)
        return 0;
    check_bit(c, value, "L1");
    /* Once a table: seen by the first walk, and not yet by this one. */
    if (!is_aligned(offset, c->cluster_size) || !(marks & COUNT_SEEN))
        return 0;
    qcow2_counts_set_marks(&c->counts, cluster, marks & ~(unsigned)COUNT_SEEN);
    return check_l2_bits(c, offset);
}

/*
 * Repaired leaks change what copied bits ought to be: without other errors the bits are corrected
 * along with them, or leaks would become errors.
 */
static bool fixes_copied(const struct qcow2_check *c)
{
    const struct block_check_result *r = &c->check->result;

    if (qcow2_check_fixes(c))
        return true;
    return (c->check->fix & CHECK_FIX_LEAKS) && r->corruptions == 0 && r->leaks == 0 &&
           r->check_errors == 0;
}

int qcow2_check_copied(struct qcow2_check *c, const struct check_l1 *active)
{
    int err;

    c->fix_copied = fixes_copied(c);
    c->refblocks =
        table_cache_new(c->file, (uint32_t)c->cluster_size,
                        (unsigned)max_u64(REFBLOCK_CACHE_BYTES / c->cluster_size, 2), NULL);
    if (!c->refblocks)
        return -ENOMEM;
    err = qcow2_check_walk_l1(c, active, visit_copied);
    table_cache_free(c->refblocks);
    c->refblocks = NULL;
    return err;
}
