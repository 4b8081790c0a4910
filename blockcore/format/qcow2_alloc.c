/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Places for data: allocate, commit, abort.
 *
 * allocate gives free clusters (refcount 1, nothing points to them), or, where the guest clusters
 * have storage of their own that nothing else uses, that storage.  commit points the L2 entries
 * there; what they named before is freed later (qcow2_pending_add).  An allocation lies within one
 * L2 table, so that commit has one table to get, and changes nothing when it fails.
 *
 * Storage is for whole clusters, also when only subclusters of them are written.  So where a
 * cluster gets new storage, what it had in the old one must come along: the allocation then begins
 * before the range asked for, or ends behind it, and the core fills it up as any other.
 */
#include "base/checked.h"
#include "base/trace.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>

/* cookie[0] of an allocation. */
enum place { PLACE_NEW, PLACE_OWN };

/* What becomes of a range: of the first clusters of it, which are alike. */
struct survey {
    uint64_t offset, end; /* in: what is asked for; out: what is to be written */
    uint64_t clusters;    /* that this touches */
    bool has_own;         /* they have storage that may be overwritten, */
    uint64_t own;         /* from this host offset on */
};

/*
 * Entries with the copied bit, in an L2 table that has it: nobody else has the cluster.  DATA comes
 * here only when map would not let it be written in place.  An external data file always has a
 * place.
 */
static bool own_storage(const struct qcow2 *q, uint64_t guest, const struct qcow2_entry *e,
                        uint64_t *ret)
{
    *ret = qcow2_has_data_file(q) ? guest : e->host;
    if (qcow2_has_data_file(q))
        return true;
    return (q->l1[qcow2_l1_index(q, guest)] & QCOW2_COPIED) && e->kind == QCOW2_KIND_NORMAL &&
           e->stored && e->copied;
}

/* Whether cluster number i has its place behind those of the clusters before. */
static bool is_alike(const struct qcow2 *q, const struct survey *s, uint64_t i, bool has_own,
                     uint64_t own)
{
    return has_own == s->has_own && (!has_own || own == s->own + (i << q->cluster_bits));
}

/* Extends the range by what the cluster's old storage holds. */
static void carry_over(const struct qcow2 *q, struct survey *s, uint64_t guest,
                       const struct qcow2_entry *e)
{
    uint32_t held = e->kind == QCOW2_KIND_COMPRESSED ? QCOW2_ALL_SUBCLUSTERS : e->data;
    unsigned bits = qcow2_subcluster_bits(q);

    if (held == 0)
        return;
    s->offset = min_u64(s->offset, guest + ((uint64_t)__builtin_ctz(held) << bits));
    s->end = max_u64(s->end, guest + ((uint64_t)(QCOW2_SUBCLUSTERS - __builtin_clz(held)) << bits));
}

static int survey_clusters(struct qcow2 *q, struct survey *s, const struct table *table)
{
    uint64_t first = align_down(s->offset, q->cluster_size), end = s->end;

    s->clusters = div_round_up(end - first, q->cluster_size);
    for (uint64_t i = 0; i < s->clusters; i++) {
        uint64_t guest = first + (i << q->cluster_bits), own;
        struct qcow2_entry e = {.kind = QCOW2_KIND_NORMAL};
        bool has_own;
        int err = 0;

        if (table)
            err = qcow2_l2_decode_for_change(q, guest, qcow2_l2_at(q, table, guest), &e);
        if (err < 0)
            return err;
        has_own = own_storage(q, guest, &e, &own);
        if (i == 0) {
            s->has_own = has_own;
            s->own = own;
        } else if (!is_alike(q, s, i, has_own, own)) {
            s->clusters = i;
            s->end = guest;
            break;
        }
        if (!has_own)
            carry_over(q, s, guest, &e);
    }
    return 0;
}

static int survey(struct qcow2 *q, struct survey *s)
{
    struct table *table;
    int err = qcow2_l2_get(q, qcow2_l1_index(q, s->offset), &table);

    if (err < 0)
        return err;
    err = survey_clusters(q, s, table);
    if (table)
        table_cache_put(q->l2_cache, table);
    return err;
}

static int reserve(struct qcow2 *q, uint64_t offset, uint64_t end, struct allocation *ret)
{
    struct survey s = {.offset = offset, .end = end};
    uint64_t first = align_down(offset, q->cluster_size), cluster, count;
    int err = survey(q, &s);

    if (err < 0)
        return err;
    *ret = (struct allocation){.offset = s.offset, .child = q->data};
    if (s.has_own) {
        ret->child_offset = s.own + (s.offset - first);
        ret->length = s.end - s.offset;
        /* A data file is not to become longer than the disk. */
        if (qcow2_has_data_file(q))
            ret->length = min_u64(s.end, q->node->size) - s.offset;
        ret->cookie[0] = PLACE_OWN;
        return 0;
    }
    err = qcow2_clusters_alloc(q, s.clusters, &cluster, &count);
    if (err < 0)
        return err;
    ret->child_offset = (cluster << q->cluster_bits) + (s.offset - first);
    ret->length = min_u64(s.end, first + (count << q->cluster_bits)) - s.offset;
    ret->reads_zero = ret->child_offset >= max_u64(q->file->size, q->stale_end);
    ret->cookie[0] = PLACE_NEW;
    return 0;
}

int qcow2_allocate(struct node *node, uint64_t offset, uint64_t length, struct allocation *ret)
{
    struct qcow2 *q = node->state;
    uint64_t table_bytes = q->cluster_size << q->l2_bits;
    uint64_t end = min_u64(offset + length, align_down(offset, table_bytes) + table_bytes);
    int err;

    err = qcow2_lock_to_change(q);
    if (err == 0)
        err = reserve(q, offset, end, ret);
    if (err == 0)
        qcow2_crypt_allocation(q, ret);
    co_mutex_unlock(&q->lock);
    if (err == 0)
        TRACE(qcow2_alloc, "%s guest %" PRIu64 " length %" PRIu64 " host %" PRIu64 "%s",
              node_name(node), offset, ret->length, ret->child_offset,
              ret->cookie[0] == PLACE_OWN ? " (its own)" : "");
    return err;
}

/* Points the entry of a cluster to the place; *e is the old one. */
static void change_entry(const struct qcow2 *q, const struct allocation *a, uint64_t guest,
                         struct qcow2_entry *e)
{
    uint64_t end = align_up(a->offset + a->length, q->node->cluster_size);
    uint32_t written = qcow2_subclusters(q, guest, a->offset, end);

    if (e->kind == QCOW2_KIND_COMPRESSED)
        *e = (struct qcow2_entry){.kind = QCOW2_KIND_NORMAL};
    /* What had data in another place has come along. */
    e->data = a->cookie[0] == PLACE_NEW ? written : e->data | written;
    e->zero &= ~written;
    e->host = guest - a->offset + a->child_offset;
    e->stored = e->copied = true;
}

/* Points the entries to the new place. Nothing waits in here. */
static void set_entries(struct qcow2 *q, const struct table *table, const struct allocation *a)
{
    uint64_t guest = align_down(a->offset, q->cluster_size);

    for (; guest < a->offset + a->length; guest += q->cluster_size) {
        uint8_t *at = qcow2_l2_at(q, table, guest);
        struct qcow2_entry e = qcow2_l2_decode(&q->header, at);

        if (a->cookie[0] == PLACE_NEW)
            qcow2_pending_add_entry(q, &e);
        change_entry(q, a, guest, &e);
        qcow2_l2_encode(&q->header, &e, at);
    }
}

static int commit(struct qcow2 *q, const struct allocation *a)
{
    struct table *table;
    int err = qcow2_pending_reserve(q, (a->length >> q->cluster_bits) + 3);

    if (err == 0)
        err = qcow2_l2_get_private(q, qcow2_l1_index(q, a->offset), &table);
    if (err < 0)
        return err;
    set_entries(q, table, a);
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
    uint64_t first = allocation->child_offset >> q->cluster_bits;
    uint64_t last = (allocation->child_offset + allocation->length - 1) >> q->cluster_bits;

    if (allocation->cookie[0] != PLACE_NEW)
        return;
    co_mutex_lock(&q->lock);
    /* A write that failed in its midst may have left something there. */
    q->stale_end = max_u64(q->stale_end, allocation->child_offset + allocation->length);
    qcow2_clusters_unalloc(q, first, last - first + 1);
    co_mutex_unlock(&q->lock);
}
