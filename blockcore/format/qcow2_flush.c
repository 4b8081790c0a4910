/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Flush: what is dirty is written in the order of qcow2.h, in rounds.
 *
 * A round takes over, with the lock held and at one moment, all that is dirty: L2 tables and
 * sectors of the L1 table in the state that they have then, and what waits to be freed.  The lock
 * is let go during the syncs.  Changes made meanwhile depend on data and refcounts that these syncs
 * may not cover, so they are none of this round's: it writes the states that it took over.
 *
 * There is one round at a time (flush.lock), and it covers whatever was changed before it took
 * over.  A flush needs the next round that takes over if anything is dirty, else at most the one
 * under way; so flushes that wait for a round share the next one.
 *
 * What changes more than entries of L2 tables (snapshots, sizes, bitmaps, amending) keeps rounds
 * out while it works, and writes everything back itself where it must.
 */
#include "base/checked.h"
#include "base/trace.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* 512 bytes of the L1 table as they are to be on disk; the last sector may have less. */
struct l1_sector {
    uint64_t number;
    uint8_t data[512];
};

/* What a round took over, but for what others keep frozen (L2 cache, pending). */
struct round {
    struct qcow2 *q;
    bool locked; /* the lock is held all the time */
    uint64_t number;
    struct l1_sector *l1;
    size_t l1_count;
};

static bool is_dirty(const struct qcow2 *q)
{
    return table_cache_is_dirty(q->refcount_cache) || table_cache_is_dirty(q->l2_cache) ||
           q->l1_any_dirty || q->pending.count > q->pending.frozen;
}

static uint64_t l1_sectors(const struct qcow2 *q)
{
    return div_round_up(q->header.l1_size, QCOW2_L1_SECTOR_ENTRIES);
}

static uint64_t entries_in_sector(const struct qcow2 *q, uint64_t sector)
{
    return min_u64(QCOW2_L1_SECTOR_ENTRIES, q->header.l1_size - sector * QCOW2_L1_SECTOR_ENTRIES);
}

static void take_l1_sector(const struct qcow2 *q, uint64_t sector, struct l1_sector *ret)
{
    ret->number = sector;
    for (uint64_t i = 0; i < entries_in_sector(q, sector); i++)
        put_be64(ret->data + i * 8, q->l1[sector * QCOW2_L1_SECTOR_ENTRIES + i]);
    q->l1_dirty[sector] = false;
}

static int put_l1_sector(const struct qcow2 *q, const struct l1_sector *s)
{
    return block_write(q->file, s->data, entries_in_sector(q, s->number) * 8,
                       q->header.l1_offset + s->number * sizeof(s->data), 0);
}

int qcow2_l1_rewrite(struct qcow2 *q)
{
    int err = 0;

    for (uint64_t i = 0; i < l1_sectors(q) && err == 0; i++) {
        struct l1_sector s;

        take_l1_sector(q, i, &s);
        err = put_l1_sector(q, &s);
    }
    return err;
}

static int take_l1(struct round *r)
{
    struct qcow2 *q = r->q;
    uint64_t sectors = l1_sectors(q), count = 0;

    if (!q->l1_any_dirty)
        return 0;
    for (uint64_t i = 0; i < sectors; i++)
        count += q->l1_dirty[i];
    r->l1 = calloc(count + 1, sizeof(*r->l1));
    if (!r->l1)
        return -ENOMEM;
    for (uint64_t i = 0; i < sectors; i++) {
        if (q->l1_dirty[i])
            take_l1_sector(q, i, &r->l1[r->l1_count++]);
    }
    q->l1_any_dirty = false;
    return 0;
}

/* Refcounts can be written at any time, so all are; nothing waits behind that. */
static int take_over(struct round *r)
{
    struct qcow2 *q = r->q;
    int err = table_cache_writeback(q->refcount_cache);

    if (err == 0)
        err = take_l1(r);
    if (err < 0)
        return err;
    table_cache_freeze(q->l2_cache);
    q->pending.frozen = q->pending.count;
    r->number = ++q->flush.taken;
    return 0;
}

/* Makes durable what has been written, and data if `data` is set. */
static int sync_files(struct round *r, bool data)
{
    struct qcow2 *q = r->q;
    int err;

    if (!r->locked)
        co_mutex_unlock(&q->lock);
    err = data ? table_cache_settle(q->l2_cache) : block_flush(q->file);
    if (!r->locked)
        co_mutex_lock(&q->lock);
    return err;
}

static int put_l2(struct round *r)
{
    int err = 0;

    if (table_cache_is_frozen(r->q->l2_cache))
        err = sync_files(r, true);
    return err == 0 ? table_cache_write_frozen(r->q->l2_cache) : err;
}

static int put_l1(struct round *r)
{
    int err = r->l1_count > 0 ? sync_files(r, false) : 0;

    while (r->l1_count > 0 && err == 0) {
        err = put_l1_sector(r->q, &r->l1[r->l1_count - 1]);
        if (err == 0)
            r->l1_count--;
    }
    return err;
}

static int free_pending(struct round *r)
{
    struct qcow2 *q = r->q;
    int err = 0;

    if (q->pending.frozen > 0 && !q->corrupt)
        err = sync_files(r, false);
    if (err == 0)
        err = qcow2_pending_apply(q);
    return err == 0 ? table_cache_writeback(q->refcount_cache) : err;
}

/* What was not written is dirty again. */
static void give_back(struct round *r)
{
    struct qcow2 *q = r->q;

    table_cache_thaw(q->l2_cache);
    q->pending.frozen = 0;
    for (size_t i = 0; i < r->l1_count; i++)
        q->l1_dirty[r->l1[i].number] = q->l1_any_dirty = true;
}

/* With the lock held, which is let go in between unless `locked`; no other round is under way. */
static int run_round(struct qcow2 *q, bool locked)
{
    struct round r = {.q = q, .locked = locked};
    int err = take_over(&r);

    if (err == 0)
        err = put_l2(&r);
    if (err == 0)
        err = put_l1(&r);
    if (err == 0)
        err = free_pending(&r);
    if (err == 0)
        q->flush.done = r.number;
    else
        give_back(&r);
    free(r.l1);
    return err;
}

int qcow2_write_back(struct qcow2 *q)
{
    return run_round(q, true);
}

int qcow2_flush(struct node *node)
{
    struct qcow2 *q = node->state;
    uint64_t wanted = q->flush.taken + is_dirty(q);
    int err = 0;

    if (q->flush.done >= wanted)
        return 0;
    co_mutex_lock(&q->flush.lock);
    if (q->flush.done < wanted) {
        co_mutex_lock(&q->lock);
        err = run_round(q, false);
        co_mutex_unlock(&q->lock);
    } else {
        TRACE(qcow2_flush, "%s: round %" PRIu64 " has covered it", node_name(node), q->flush.done);
    }
    co_mutex_unlock(&q->flush.lock);
    return err;
}

void qcow2_lock_all(struct qcow2 *q)
{
    co_mutex_lock(&q->flush.lock);
    co_mutex_lock(&q->lock);
}

void qcow2_unlock_all(struct qcow2 *q)
{
    co_mutex_unlock(&q->lock);
    co_mutex_unlock(&q->flush.lock);
}
