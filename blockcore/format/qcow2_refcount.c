/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Host clusters: taking and giving back.
 *
 * Taking is first fit from q->hint on, below which nothing is free; a run lies within one refcount
 * block, so that it is taken wholly or not at all.  Giving back is deferred (see qcow2.h): runs
 * wait in q->pending, each for one reference that is gone.
 */
#include "base/checked.h"
#include "base/trace.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Runs that are looked at before a long one is taken where nothing is yet. */
#define RUN_TRIES 64

static uint64_t block_entries(const struct qcow2 *q)
{
    return UINT64_C(1) << q->refblock_bits;
}

/*
 * Takes a run from q->hint on out of the block of its range.  Returns the number of clusters, 0
 * when none is free there, or negative errno.
 */
static int64_t take_run(struct qcow2 *q, struct table *block, uint64_t wanted, uint64_t *ret_first)
{
    unsigned order = q->header.refcount_order;
    uint64_t base = align_down(q->hint, block_entries(q));
    uint64_t i = qcow2_refcount_find(block->data, order, q->hint - base, block_entries(q), false);
    uint64_t end = min_u64(block_entries(q), q->cluster_limit - base);

    if (i == block_entries(q))
        return 0;
    if (i >= end)
        return -ENOSPC;
    end = i + min_u64(wanted, end - i);
    end = qcow2_refcount_find(block->data, order, i, end, true);
    if (qcow2_guard_search(q, base + i, end - i) < base + end)
        return qcow2_set_corrupt(q, "metadata at offset %" PRIu64 " or behind has refcount 0",
                                 (base + i) << q->cluster_bits);
    for (uint64_t k = i; k < end; k++)
        qcow2_refcount_set(block->data, k, order, 1);
    table_cache_mark_dirty(q->refcount_cache, block);
    q->hint = base + end;
    *ret_first = base + i;
    return (int64_t)(end - i);
}

int qcow2_clusters_alloc(struct qcow2 *q, uint64_t wanted, uint64_t *ret_first, uint64_t *ret_count)
{
    for (;;) {
        struct table *block;
        int64_t n;
        int err;

        if (q->hint >= q->cluster_limit)
            return -ENOSPC;
        err = qcow2_refblock_get(q, q->hint >> q->refblock_bits, &block);
        if (err == 0 && !block) {
            err = qcow2_refblock_make(q);
            if (err == 0)
                continue;
        }
        if (err < 0)
            return err;
        n = take_run(q, block, wanted, ret_first);
        table_cache_put(q->refcount_cache, block);
        if (n < 0)
            return (int)n;
        *ret_count = (uint64_t)n;
        if (n > 0)
            return 0;
        q->hint = align_down(q->hint, block_entries(q)) + block_entries(q);
        coroutine_yield(); /* an image may have many full blocks */
    }
}

int qcow2_clusters_alloc_run(struct qcow2 *q, uint64_t clusters, uint64_t *ret_first)
{
    struct pending_run aside[RUN_TRIES];
    uint64_t count = 0;
    unsigned tries = 0;
    int err = 0;

    /* Runs that are too short are put aside until the search is over: it must not find them again.
     */
    while (clusters <= block_entries(q) && tries < RUN_TRIES && err == 0) {
        err = qcow2_clusters_alloc(q, clusters, ret_first, &count);
        if (err < 0 || count == clusters)
            break;
        aside[tries++] = (struct pending_run){*ret_first, count};
    }
    while (tries > 0) {
        tries--;
        qcow2_clusters_unalloc(q, aside[tries].first, aside[tries].count);
    }
    if (err < 0 || count == clusters)
        return err;
    return qcow2_reftable_take_region(q, clusters, ret_first);
}

/* A run of clusters whose refcounts were lowered alike. */
struct lowered {
    uint64_t count;
    bool free; /* to 0 */
};

/* Lowers the refcounts of a first part of a run by one. */
static int lower(struct qcow2 *q, uint64_t first, uint64_t count, struct lowered *ret)
{
    unsigned order = q->header.refcount_order;
    uint64_t i = first & (block_entries(q) - 1), n = 0;
    struct table *block;
    uint64_t value;
    int err = qcow2_refblock_get(q, first >> q->refblock_bits, &block);

    if (err < 0)
        return err;
    value = block ? qcow2_refcount_get(block->data, i, order) : 0;
    if (value > 0) {
        ret->free = value == 1;
        count = min_u64(count, block_entries(q) - i);
        for (; n < count; n++) {
            value = qcow2_refcount_get(block->data, i + n, order);
            if (value == 0 || (value == 1) != ret->free)
                break;
            qcow2_refcount_set(block->data, i + n, order, value - 1);
        }
        table_cache_mark_dirty(q->refcount_cache, block);
    }
    if (block)
        table_cache_put(q->refcount_cache, block);
    if (n == 0)
        return qcow2_set_corrupt(q, "the cluster at offset %" PRIu64 " is in use with refcount 0",
                                 first << q->cluster_bits);
    if (ret->free) {
        q->hint = min_u64(q->hint, first);
        if (q->packed_end >> q->cluster_bits >= first &&
            q->packed_end >> q->cluster_bits < first + n)
            q->packed_end = 0;
    }
    ret->count = n;
    TRACE(qcow2_free, "%s host %" PRIu64 " clusters %" PRIu64 "%s", node_name(q->node),
          first << q->cluster_bits, n, ret->free ? "" : " (still shared)");
    return 0;
}

void qcow2_clusters_unalloc(struct qcow2 *q, uint64_t first, uint64_t count)
{
    while (count > 0) {
        struct lowered part = {0};

        if (lower(q, first, count, &part) < 0)
            return;
        first += part.count;
        count -= part.count;
    }
}

/* Raises the refcounts of a first part of a run, within one block; *ret_count is how many. */
static int raise_part(struct qcow2 *q, uint64_t first, uint64_t count, uint64_t *ret_count)
{
    unsigned order = q->header.refcount_order;
    uint64_t max = order == 6 ? UINT64_MAX : (UINT64_C(1) << (1u << order)) - 1;
    uint64_t i = first & (block_entries(q) - 1), value = 0;
    struct table *block;
    int err = qcow2_refblock_get(q, first >> q->refblock_bits, &block);

    *ret_count = 0;
    count = min_u64(count, block_entries(q) - i);
    for (uint64_t n = 0; block && n < count; n++) {
        value = qcow2_refcount_get(block->data, i + n, order);
        if (value == 0 || value == max)
            break;
        qcow2_refcount_set(block->data, i + n, order, value + 1);
        ++*ret_count;
    }
    if (block && *ret_count > 0)
        table_cache_mark_dirty(q->refcount_cache, block);
    if (block)
        table_cache_put(q->refcount_cache, block);
    if (err < 0 || *ret_count == count)
        return err;
    if (value == max)
        return -EOVERFLOW;
    return qcow2_set_corrupt(q, "the cluster at offset %" PRIu64 " is in use with refcount 0",
                             (first + *ret_count) << q->cluster_bits);
}

int qcow2_refcounts_raise(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t done = 0, n;

    while (done < count) {
        int err = raise_part(q, first + done, count - done, &n);

        done += n;
        if (err < 0) {
            qcow2_clusters_unalloc(q, first, done);
            return err;
        }
    }
    return 0;
}

int qcow2_refcount_read(struct qcow2 *q, uint64_t cluster, uint64_t *ret)
{
    struct table *block;
    int err = qcow2_refblock_get(q, cluster >> q->refblock_bits, &block);

    *ret = 0;
    if (err < 0 || !block)
        return err;
    *ret =
        qcow2_refcount_get(block->data, cluster & (block_entries(q) - 1), q->header.refcount_order);
    table_cache_put(q->refcount_cache, block);
    return 0;
}

int qcow2_pending_reserve(struct qcow2 *q, size_t runs)
{
    struct qcow2_pending *p = &q->pending;
    struct pending_run *grown;
    size_t max = p->max ? p->max : 64;

    while (max - p->count < runs)
        max *= 2;
    if (max == p->max)
        return 0;
    grown = reallocarray(p->runs, max, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    p->runs = grown;
    p->max = max;
    return 0;
}

void qcow2_pending_add(struct qcow2 *q, uint64_t first, uint64_t count)
{
    struct qcow2_pending *p = &q->pending;
    struct pending_run *last = p->count > p->frozen ? &p->runs[p->count - 1] : NULL;

    if (last && last->first + last->count == first)
        last->count += count;
    else
        p->runs[p->count++] = (struct pending_run){first, count};
}

void qcow2_pending_add_entry(struct qcow2 *q, const struct qcow2_entry *entry)
{
    uint64_t first = entry->host >> q->cluster_bits, last = first;

    if (entry->kind == QCOW2_KIND_BROKEN || qcow2_has_data_file(q))
        return;
    if (entry->kind == QCOW2_KIND_COMPRESSED)
        last = (entry->host + entry->length - 1) >> q->cluster_bits;
    else if (!entry->stored)
        return;
    qcow2_pending_add(q, first, last - first + 1);
}

/* Nothing durable points there any more, and nobody can be given it before this ends. */
static void discard_host(struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t offset = first << q->cluster_bits, size = q->file->size;

    if ((q->node->flags & NODE_UNMAP) && q->options.pass_discard && offset < size)
        block_discard(q->file, offset, min_u64(count << q->cluster_bits, size - offset), 0);
}

/* Lowers the refcounts of the run, or of its first part. */
static int apply_part(struct qcow2 *q, struct pending_run *run)
{
    uint64_t first = run->first;
    struct lowered part = {0};
    int err = lower(q, first, run->count, &part);

    if (err < 0)
        return err;
    run->first += part.count;
    run->count -= part.count;
    if (part.free)
        discard_host(q, first, part.count);
    return 0;
}

int qcow2_pending_apply(struct qcow2 *q)
{
    struct qcow2_pending *p = &q->pending;
    size_t left = p->frozen;
    int err = 0;

    if (p->count == 0)
        return 0;
    while (left > 0 && !q->corrupt && err == 0) {
        err = apply_part(q, &p->runs[left - 1]);
        if (err == 0 && p->runs[left - 1].count == 0)
            left--;
    }
    memmove(p->runs + left, p->runs + p->frozen, (p->count - p->frozen) * sizeof(*p->runs));
    p->count -= p->frozen - left;
    p->frozen = 0;
    /* A full disk has no room for a block that had holes: then leaks, if it comes to a crash. */
    if (err == -ENOSPC)
        err = 0;
    /* In an image known to be broken leaks are better than more damage. */
    if (q->corrupt)
        p->count = 0;
    return err;
}
