/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Refcounts and copied bits of all that an L1 table reaches.  Tables are walked one at a time, and
 * neighbouring clusters are taken together, so that memory does not grow with the image.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_snapshot.h"

#include <errno.h>
#include <inttypes.h>

/* One way through all references below an L1 table, in runs of clusters. */
struct walk {
    struct qcow2 *q;
    int (*visit)(struct qcow2 *q, uint64_t first, uint64_t count);
    uint64_t done;  /* runs that were visited */
    uint64_t limit; /* runs that are to be visited */
};

/* L2 entry `k`; its first 64-bit word holds the host offset and the copied bit. */
static uint8_t *entry_at(const struct qcow2 *q, const struct table *table, uint64_t k)
{
    return table->data + k * (q->cluster_size >> q->l2_bits);
}

/* Whether the L1 entry can name an L2 table. */
static int check_l1_entry(struct qcow2 *q, uint64_t index, uint64_t entry)
{
    enum guard_kind kind;

    if (!qcow2_l1_entry_valid(entry, q->cluster_bits))
        return qcow2_set_corrupt(q,
                                 "entry %" PRIu64 " of a snapshot's or the active L1 table is "
                                 "0x%016" PRIx64,
                                 index, entry);
    kind = qcow2_guard_find(q, entry & QCOW2_OFFSET_MASK);
    if (kind != GUARD_NONE && kind != GUARD_L2)
        return qcow2_set_corrupt(q,
                                 "entry %" PRIu64 " of a snapshot's or the active L1 table "
                                 "(0x%016" PRIx64 ") points to other metadata",
                                 index, entry);
    return 0;
}

static int load_table(struct qcow2 *q, uint64_t index, uint64_t entry, struct table **ret)
{
    int err = check_l1_entry(q, index, entry);

    return err < 0 ? err : qcow2_l2_load(q, entry & QCOW2_OFFSET_MASK, ret);
}

static int visit(struct walk *w, uint64_t first, uint64_t count)
{
    int err;

    if (count == 0 || w->done == w->limit)
        return 0;
    err = w->visit(w->q, first, count);
    if (err == 0)
        w->done++;
    return err;
}

/* The clusters that an entry uses. */
static int entry_clusters(struct qcow2 *q, uint64_t guest_offset, const uint8_t *at,
                          struct pending_run *ret)
{
    struct qcow2_entry e;
    int err = qcow2_l2_decode_for_change(q, guest_offset, at, &e);

    *ret = (struct pending_run){0};
    if (err < 0)
        return err;
    ret->first = e.host >> q->cluster_bits;
    if (e.kind == QCOW2_KIND_COMPRESSED)
        ret->count = ((e.host + e.length - 1) >> q->cluster_bits) - ret->first + 1;
    else
        ret->count = e.stored;
    return 0;
}

static int walk_entries(struct walk *w, uint64_t index, const struct table *table)
{
    struct pending_run run = {0}, next;
    int err = 0;

    for (uint64_t k = 0; k < UINT64_C(1) << w->q->l2_bits && err == 0; k++) {
        uint64_t guest = ((index << w->q->l2_bits) + k) << w->q->cluster_bits;

        err = entry_clusters(w->q, guest, entry_at(w->q, table, k), &next);
        if (err < 0 || next.count == 0)
            continue;
        if (run.count > 0 && next.first == run.first + run.count) {
            run.count += next.count;
            continue;
        }
        err = visit(w, run.first, run.count);
        run = next;
    }
    return err < 0 ? err : visit(w, run.first, run.count);
}

/* The table's own cluster comes last: it is read until then. */
static int walk(struct walk *w, const struct snapshot_l1 *l1)
{
    int err = 0;

    for (uint64_t i = 0; i < l1->count && w->done < w->limit && err == 0; i++) {
        struct table *table;

        if (l1->entries[i] == 0)
            continue;
        err = load_table(w->q, i, l1->entries[i], &table);
        if (err < 0)
            break;
        err = walk_entries(w, i, table);
        table_cache_put(w->q->l2_cache, table);
        if (err == 0)
            err = visit(w, (l1->entries[i] & QCOW2_OFFSET_MASK) >> w->q->cluster_bits, 1);
        coroutine_yield();
    }
    return err;
}

static int visit_examine(struct qcow2 *q, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        uint64_t refcount;
        int err = qcow2_refcount_read(q, i, &refcount);

        if (err < 0)
            return err;
        if (refcount == 0)
            return qcow2_set_corrupt(q,
                                     "the cluster at offset %" PRIu64 " is in use with refcount 0",
                                     i << q->cluster_bits);
    }
    return 0;
}

int qcow2_refs_examine(struct qcow2 *q, const struct snapshot_l1 *l1)
{
    struct walk w = {.q = q, .visit = visit_examine, .limit = UINT64_MAX};

    return walk(&w, l1);
}

static int visit_unraise(struct qcow2 *q, uint64_t first, uint64_t count)
{
    qcow2_clusters_unalloc(q, first, count);
    return 0;
}

static void unraise(struct qcow2 *q, const struct snapshot_l1 *l1, uint64_t runs)
{
    struct walk w = {.q = q, .visit = visit_unraise, .limit = runs};

    walk(&w, l1);
}

int qcow2_refs_raise(struct qcow2 *q, const struct snapshot_l1 *l1)
{
    struct walk w = {.q = q, .visit = qcow2_refcounts_raise, .limit = UINT64_MAX};
    int err = walk(&w, l1);

    if (err < 0)
        unraise(q, l1, w.done);
    return err;
}

void qcow2_refs_unraise(struct qcow2 *q, const struct snapshot_l1 *l1)
{
    unraise(q, l1, UINT64_MAX);
}

static int visit_drop(struct qcow2 *q, uint64_t first, uint64_t count)
{
    int err = 0;

    if (q->pending.count >= QCOW2_PENDING_MAX)
        err = qcow2_write_back(q);
    if (err == 0)
        err = qcow2_pending_reserve(q, 1);
    if (err == 0)
        qcow2_pending_add(q, first, count);
    return err;
}

int qcow2_refs_drop(struct qcow2 *q, const struct snapshot_l1 *l1)
{
    struct walk w = {.q = q, .visit = visit_drop, .limit = UINT64_MAX};

    return walk(&w, l1);
}

static bool clear_entries(const struct qcow2 *q, struct table *table)
{
    bool any = false;

    for (uint64_t k = 0; k < UINT64_C(1) << q->l2_bits; k++) {
        uint64_t value = get_be64(entry_at(q, table, k));

        if ((value & QCOW2_COMPRESSED) || !(value & QCOW2_COPIED))
            continue;
        put_be64(entry_at(q, table, k), value & ~QCOW2_COPIED);
        any = true;
    }
    return any;
}

int qcow2_refs_clear_copied(struct qcow2 *q)
{
    for (uint64_t i = 0; i < q->header.l1_size; i++) {
        uint64_t entry = q->l1[i];
        struct table *table;
        int err;

        if (entry == 0)
            continue;
        err = load_table(q, i, entry, &table);
        if (err < 0)
            return err;
        if (clear_entries(q, table))
            table_cache_mark_dirty(q->l2_cache, table);
        table_cache_put(q->l2_cache, table);
        if (entry & QCOW2_COPIED)
            qcow2_l1_set(q, i, entry & ~QCOW2_COPIED);
        coroutine_yield();
    }
    return 0;
}

/* Whether a cluster has one reference, not counting one that is about to go: 1, 0, or an errno. */
static int is_single(struct qcow2 *q, uint64_t offset, bool leaving)
{
    uint64_t refcount;
    int err = qcow2_refcount_read(q, offset >> q->cluster_bits, &refcount);

    return err < 0 ? err : refcount == (leaving ? 2 : 1);
}

static int with_bit(struct qcow2 *q, uint64_t value, bool leaving, uint64_t *ret)
{
    int single = is_single(q, value & QCOW2_OFFSET_MASK, leaving);

    *ret = single > 0 ? value | QCOW2_COPIED : value & ~QCOW2_COPIED;
    return single;
}

/* `old` is the table that leaves: another one, the same one, or NULL. */
static int set_entries(struct qcow2 *q, struct table *table, const struct table *old)
{
    bool changed = false;
    int err = 0;

    for (uint64_t k = 0; k < UINT64_C(1) << q->l2_bits && err >= 0; k++) {
        uint64_t value = get_be64(entry_at(q, table, k)), host = value & QCOW2_OFFSET_MASK;
        uint64_t before = old ? get_be64(entry_at(q, old, k)) : 0, wanted = value;

        if ((value & QCOW2_COMPRESSED) || host == 0)
            continue;
        err =
            with_bit(q, value, !(before & QCOW2_COMPRESSED) && (before & QCOW2_OFFSET_MASK) == host,
                     &wanted);
        if (err < 0 || wanted == value)
            continue;
        put_be64(entry_at(q, table, k), wanted);
        changed = true;
    }
    if (changed)
        table_cache_mark_dirty(q->l2_cache, table);
    return err < 0 ? err : 0;
}

/* The entries of a table that belongs to the active L1 table alone. */
static int set_table(struct qcow2 *q, uint64_t index, uint64_t old_entry)
{
    struct table *table, *old = NULL;
    int err = load_table(q, index, q->l1[index], &table);

    if (err == 0 && old_entry != 0) {
        err = load_table(q, index, old_entry, &old);
        if (err < 0)
            table_cache_put(q->l2_cache, table);
    }
    if (err < 0)
        return err;
    err = set_entries(q, table, old);
    if (old)
        table_cache_put(q->l2_cache, old);
    table_cache_put(q->l2_cache, table);
    return err;
}

int qcow2_refs_set_copied(struct qcow2 *q, const struct snapshot_l1 *leaving)
{
    int err = 0;

    for (uint64_t i = 0; i < q->header.l1_size && err >= 0; i++) {
        uint64_t entry = q->l1[i], wanted = entry;
        uint64_t old = leaving && i < leaving->count ? leaving->entries[i] : 0;

        if (entry == 0)
            continue;
        err = check_l1_entry(q, i, entry);
        if (err == 0)
            err = with_bit(q, entry, ((entry ^ old) & QCOW2_OFFSET_MASK) == 0, &wanted);
        if (err >= 0 && wanted != entry)
            qcow2_l1_set(q, i, wanted);
        /* Below a table that is shared everything is. */
        if (err > 0)
            err = set_table(q, i, old);
        coroutine_yield();
    }
    return err < 0 ? err : 0;
}
