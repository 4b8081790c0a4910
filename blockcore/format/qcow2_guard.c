/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard: which host clusters hold metadata.  It is asked before anything is written to a
 * cluster that an image, which may be broken or hostile, says is data or free.
 *
 * Header, L1 table and refcount table are compared with; snapshot tables, their L1 tables and the
 * LUKS header are a sorted array of ranges; L2 tables, refcount blocks and all of bitmaps are a
 * hash set.  So are L2 tables that only snapshots use, up to a limit of entries of their L1 tables.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static struct guard_range l1_range(const struct qcow2 *q)
{
    uint64_t start = q->header.l1_offset;

    return (struct guard_range){start,
                                start + align_up((uint64_t)q->header.l1_size * 8, q->cluster_size)};
}

static struct guard_range reftable_range(const struct qcow2 *q)
{
    uint64_t start = q->header.reftable_offset;

    return (struct guard_range){start,
                                start + ((uint64_t)q->header.reftable_clusters << q->cluster_bits)};
}

static bool in_range(struct guard_range range, uint64_t offset)
{
    return offset >= range.offset && offset < range.end;
}

/* The range that has the offset, or NULL. */
static const struct guard_range *find_range(const struct qcow2_guard *g, uint64_t offset)
{
    size_t low = 0, high = g->ranges_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (in_range(g->ranges[middle], offset))
            return &g->ranges[middle];
        if (g->ranges[middle].offset > offset)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* Where the search for a cluster begins. */
static size_t home_slot(const struct qcow2_guard *g, uint64_t cluster)
{
    return (cluster * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (g->slots_max - 1);
}

/* The slot of the cluster, or the free one where it would be. */
static uint64_t *find_slot(const struct qcow2_guard *g, uint64_t cluster)
{
    size_t i = home_slot(g, cluster);

    while (g->slots[i] != 0 && g->slots[i] >> 3 != cluster)
        i = (i + 1) & (g->slots_max - 1);
    return &g->slots[i];
}

enum guard_kind qcow2_guard_find(const struct qcow2 *q, uint64_t offset)
{
    const struct qcow2_guard *g = &q->guard;

    if (offset < q->cluster_size || in_range(l1_range(q), offset) ||
        in_range(reftable_range(q), offset) || find_range(g, offset))
        return GUARD_FIXED;
    return g->slots_max ? *find_slot(g, offset >> q->cluster_bits) & 7 : GUARD_NONE;
}

uint64_t qcow2_guard_search(const struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t i = first;

    while (i < first + count && qcow2_guard_find(q, i << q->cluster_bits) == GUARD_NONE)
        i++;
    return i;
}

static int resize_slots(struct qcow2_guard *g, size_t max)
{
    struct qcow2_guard grown = {.slots_max = max};

    grown.slots = calloc(max, sizeof(*grown.slots));
    if (!grown.slots)
        return -ENOMEM;
    for (size_t i = 0; i < g->slots_max; i++) {
        if (g->slots[i] != 0)
            *find_slot(&grown, g->slots[i] >> 3) = g->slots[i];
    }
    free(g->slots);
    g->slots = grown.slots;
    g->slots_max = max;
    return 0;
}

int qcow2_guard_reserve(struct qcow2 *q, size_t clusters)
{
    struct qcow2_guard *g = &q->guard;
    size_t max = g->slots_max ? g->slots_max : 64;

    while (max / 2 < g->slots_used + clusters)
        max *= 2;
    return max == g->slots_max ? 0 : resize_slots(g, max);
}

void qcow2_guard_add(struct qcow2 *q, uint64_t offset, enum guard_kind kind)
{
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t *slot = find_slot(&q->guard, cluster);

    if (*slot == 0)
        q->guard.slots_used++;
    else
        kind = GUARD_CONFLICT;
    *slot = cluster << 3 | kind;
}

void qcow2_guard_remove(struct qcow2 *q, uint64_t offset)
{
    struct qcow2_guard *g = &q->guard;
    size_t mask = g->slots_max - 1, hole, i;

    if (g->slots_max == 0)
        return;
    hole = (size_t)(find_slot(g, offset >> q->cluster_bits) - g->slots);
    if (g->slots[hole] == 0 || (g->slots[hole] & 7) == GUARD_CONFLICT)
        return;
    /* Those behind move up, unless that would put them before their home. */
    for (i = (hole + 1) & mask; g->slots[i] != 0; i = (i + 1) & mask) {
        if (((i - home_slot(g, g->slots[i] >> 3)) & mask) < ((i - hole) & mask))
            continue;
        g->slots[hole] = g->slots[i];
        hole = i;
    }
    g->slots[hole] = 0;
    g->slots_used--;
}

static int compare_ranges(const void *a, const void *b)
{
    const struct guard_range *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Sorts and joins ranges that touch or overlap. Returns how many are left. */
static size_t merge_ranges(struct guard_range *ranges, size_t count)
{
    size_t kept = 0;

    if (count > 0)
        qsort(ranges, count, sizeof(*ranges), compare_ranges);
    for (size_t i = 0; i < count; i++) {
        if (kept > 0 && ranges[i].offset <= ranges[kept - 1].end)
            ranges[kept - 1].end = max_u64(ranges[kept - 1].end, ranges[i].end);
        else
            ranges[kept++] = ranges[i];
    }
    return kept;
}

static bool overlap(struct guard_range a, struct guard_range b)
{
    return a.offset < b.end && b.offset < a.end;
}

static int check_overlaps(const struct qcow2 *q, struct error *error)
{
    struct guard_range l1 = l1_range(q), reftable = reftable_range(q);

    if (overlap(l1, reftable))
        return error_set(error, EINVAL,
                         "the L1 table at offset %" PRIu64
                         " overlaps the refcount table at offset %" PRIu64
                         ": the image can only be opened read-only",
                         l1.offset, reftable.offset);
    for (size_t i = 0; i < q->guard.ranges_count; i++) {
        struct guard_range r = q->guard.ranges[i];

        if (overlap(r, l1) || overlap(r, reftable))
            return error_set(error, EINVAL,
                             "the %s overlaps a snapshot's tables or the LUKS header at offset "
                             "%" PRIu64 ": the image can only be opened read-only",
                             overlap(r, l1) ? "L1 table" : "refcount table", r.offset);
    }
    return 0;
}

int qcow2_guard_init(struct qcow2 *q, struct guard_range *ranges, size_t count, struct error *error)
{
    size_t tables = 1;
    int err;

    q->guard.ranges = ranges;
    q->guard.ranges_count = merge_ranges(ranges, count);
    err = check_overlaps(q, error);
    if (err < 0)
        return err;
    for (uint64_t i = 0; i < q->header.l1_size; i++)
        tables += q->l1[i] != 0;
    for (uint64_t i = 0; i < q->reftable_entries; i++)
        tables += q->reftable[i] != 0;
    if (qcow2_guard_reserve(q, tables) < 0)
        return error_set(error, ENOMEM, "out of memory");
    for (uint64_t i = 0; i < q->header.l1_size; i++) {
        if (qcow2_l1_entry_valid(q->l1[i], q->cluster_bits))
            qcow2_guard_add(q, q->l1[i] & QCOW2_OFFSET_MASK, GUARD_L2);
    }
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        if (q->reftable[i] != 0)
            qcow2_guard_add(q, q->reftable[i], GUARD_REFBLOCK);
    }
    return 0;
}

static void guard_free(struct qcow2_guard *g)
{
    free(g->slots);
    free(g->ranges);
    *g = (struct qcow2_guard){0};
}

/* Of what is in the hash set, only bitmaps are GUARD_FIXED. */
static int keep_bitmaps(struct qcow2 *q, const struct qcow2_guard *old)
{
    if (qcow2_guard_reserve(q, old->slots_used) < 0)
        return -ENOMEM;
    for (size_t i = 0; i < old->slots_max; i++) {
        if ((old->slots[i] & 7) == GUARD_FIXED)
            qcow2_guard_add(q, old->slots[i] >> 3 << q->cluster_bits, GUARD_FIXED);
    }
    return 0;
}

int qcow2_guard_renew(struct qcow2 *q, struct guard_range *ranges, size_t count,
                      struct error *error)
{
    struct qcow2_guard old = q->guard;
    int err;

    q->guard = (struct qcow2_guard){0};
    err = qcow2_guard_init(q, ranges, count, error);
    if (err == 0 && keep_bitmaps(q, &old) < 0)
        err = error_set(error, ENOMEM, "out of memory");
    guard_free(&old);
    return err;
}

void qcow2_guard_fini(struct qcow2 *q)
{
    guard_free(&q->guard);
}
