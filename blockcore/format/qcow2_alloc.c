/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Places for data: allocate, commit, abort.
 *
 * allocate gives free clusters (refcount 1, nothing points to them), or, where the guest clusters
 * have storage of their own that nothing else uses, that storage.  commit points the L2 entries
 * there; what they named before is freed later (qcow2_pending_add).  An allocation lies within one
 * L2 table, so that commit has one table to get, and changes nothing when it fails.
 */
#include "base/checked.h"
#include "base/trace.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>

/* cookie[0] of an allocation. */
enum place { PLACE_NEW, PLACE_OWN };

/* What the guest clusters have now: the first `count` of them are alike. */
struct survey {
    uint64_t count;
    uint64_t own; /* host offset of storage that may be overwritten; 0: none */
};

/*
 * Entries with the copied bit, in an L2 table that has it: nobody else has the cluster.  DATA comes
 * here only when map would not let it be written in place.
 */
static uint64_t own_storage(uint64_t l1_entry, const struct qcow2_entry *e)
{
    if (!(l1_entry & QCOW2_COPIED) || !e->copied || e->kind == QCOW2_KIND_COMPRESSED)
        return 0;
    return e->host;
}

static int survey(struct qcow2 *q, uint64_t offset, uint64_t clusters, struct survey *ret)
{
    uint64_t l1_index = qcow2_l1_index(q, offset), l2_index = qcow2_l2_index(q, offset);
    struct table *table;
    int err = qcow2_l2_get(q, l1_index, &table);

    *ret = (struct survey){.count = clusters};
    if (err < 0 || !table)
        return err;
    for (uint64_t i = 0; i < clusters; i++) {
        struct qcow2_entry e;
        uint64_t own, bytes = i << q->cluster_bits;

        err = qcow2_l2_decode_for_change(q, offset + bytes,
                                         get_be64(table->data + (l2_index + i) * 8), &e);
        if (err < 0)
            break;
        own = own_storage(q->l1[l1_index], &e);
        if (i == 0)
            ret->own = own;
        else if (own != (ret->own ? ret->own + bytes : 0)) {
            ret->count = i;
            break;
        }
    }
    table_cache_put(q->l2_cache, table);
    return err;
}

static int reserve(struct qcow2 *q, uint64_t offset, uint64_t clusters, struct allocation *ret)
{
    struct survey found;
    uint64_t first, count;
    int err = survey(q, offset, clusters, &found);

    if (err < 0)
        return err;
    *ret = (struct allocation){.offset = offset, .child = q->file};
    if (found.own) {
        ret->child_offset = found.own;
        ret->length = found.count << q->cluster_bits;
        ret->cookie[0] = PLACE_OWN;
        return 0;
    }
    err = qcow2_clusters_alloc(q, found.count, &first, &count);
    if (err < 0)
        return err;
    ret->child_offset = first << q->cluster_bits;
    ret->length = count << q->cluster_bits;
    ret->reads_zero = ret->child_offset >= max_u64(q->file->size, q->stale_end);
    ret->cookie[0] = PLACE_NEW;
    return 0;
}

int qcow2_allocate(struct node *node, uint64_t offset, uint64_t length, struct allocation *ret)
{
    struct qcow2 *q = node->state;
    uint64_t in_table = (UINT64_C(1) << q->l2_bits) - qcow2_l2_index(q, offset);
    uint64_t clusters = min_u64(div_round_up(length, q->cluster_size), in_table);
    int err;

    co_mutex_lock(&q->lock);
    err = qcow2_begin_change(q);
    if (err == 0)
        err = reserve(q, offset, clusters, ret);
    if (err == 0)
        qcow2_crypt_allocation(q, ret);
    co_mutex_unlock(&q->lock);
    if (err == 0)
        TRACE(qcow2_alloc, "%s guest %" PRIu64 " length %" PRIu64 " host %" PRIu64 "%s",
              node_name(node), offset, ret->length, ret->child_offset,
              ret->cookie[0] == PLACE_OWN ? " (its own)" : "");
    return err;
}

/* Points the entries to the new place. Nothing waits in here. */
static void set_entries(struct qcow2 *q, uint8_t *entries, const struct allocation *a)
{
    uint64_t clusters = a->length >> q->cluster_bits;

    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t host = a->child_offset + (i << q->cluster_bits);
        struct qcow2_entry old =
            qcow2_l2_decode(get_be64(entries + i * 8), q->cluster_bits, q->header.version);

        if (a->cookie[0] == PLACE_NEW)
            qcow2_pending_add_entry(q, &old);
        put_be64(entries + i * 8, host | QCOW2_COPIED);
    }
}

static int commit(struct qcow2 *q, const struct allocation *a)
{
    struct table *table;
    int err = qcow2_pending_reserve(q, (a->length >> q->cluster_bits) + 1);

    if (err == 0)
        err = qcow2_l2_get_private(q, qcow2_l1_index(q, a->offset), &table);
    if (err < 0)
        return err;
    set_entries(q, table->data + qcow2_l2_index(q, a->offset) * 8, a);
    table_cache_mark_dirty(q->l2_cache, table);
    table_cache_put(q->l2_cache, table);
    return 0;
}

int qcow2_commit(struct node *node, struct allocation *allocation)
{
    struct qcow2 *q = node->state;
    int err;

    co_mutex_lock(&q->lock);
    err = q->corrupt ? -EIO : commit(q, allocation);
    co_mutex_unlock(&q->lock);
    return err;
}

void qcow2_abort(struct node *node, struct allocation *allocation)
{
    struct qcow2 *q = node->state;

    if (allocation->cookie[0] != PLACE_NEW)
        return;
    co_mutex_lock(&q->lock);
    /* A write that failed in its midst may have left something there. */
    q->stale_end = max_u64(q->stale_end, allocation->child_offset + allocation->length);
    qcow2_clusters_unalloc(q, allocation->child_offset >> q->cluster_bits,
                           allocation->length >> q->cluster_bits);
    co_mutex_unlock(&q->lock);
}
