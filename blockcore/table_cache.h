/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A cache of metadata tables (L1 and L2 tables, refcount blocks, BATs, grain tables), with
 * write-back and declared order.
 *
 * Each cache holds tables of one size in one file.  A cache may be declared to come after another:
 * "a table of `this` reaches the disk only when everything dirty in `before`, and every byte of
 * guest data written until then, is durable".  Writing back a cache therefore first writes back and
 * syncs what comes before it.  Tables are pinned while somebody holds them and evicted least
 * recently used.
 *
 * A flush need not keep others from changing tables while it waits for a sync: it freezes what is
 * dirty, settles what must be durable before, and writes the frozen state.  A frozen table that is
 * to be changed keeps a copy of that state (table_cache_get_for_change).
 *
 * Coroutines; get, mark_dirty and put never wait when the table is cached (so one holder's changes
 * between two waits are atomic to all others).
 */
#ifndef EVNBD_BLOCKCORE_TABLE_CACHE_H
#define EVNBD_BLOCKCORE_TABLE_CACHE_H

#include "blockcore/node.h"

struct table_cache;

struct table {
    uint8_t *data;   /* table_size bytes, as on disk */
    uint64_t offset; /* bytes in the file */
};

/*
 * `tables_max`: tables kept at most (pinned ones may exceed it).  `before` (may be NULL) must
 * outlive this cache.  NULL: out of memory.
 */
struct table_cache *table_cache_new(struct node *file, uint32_t table_size, unsigned tables_max,
                                    struct table_cache *before);
/*
 * Guest data is in another file than the tables: that is synced, too, before they are written.
 * `data` must outlive the cache.
 */
void table_cache_set_data(struct table_cache *cache, struct node *data);
/*
 * Every `seconds` (0: never) drops the tables that are clean and were not used since the last time.
 * While nothing is cached, nothing is woken up for it.
 */
void table_cache_set_clean_interval(struct table_cache *cache, uint64_t seconds);
/* Tables that are cached now. */
unsigned table_cache_count(const struct table_cache *cache);
/* Frees; dirty tables are dropped (flush first). NULL is fine. */
void table_cache_free(struct table_cache *cache);

/* The table at `offset` if it is cached now, pinned, else NULL. Any stack, never waits. */
struct table *table_cache_peek(struct table_cache *cache, uint64_t offset);
/* The table at `offset`, read if it must be, pinned. A table that the file ends in is an error
 * (-EIO). */
int table_cache_get(struct table_cache *cache, uint64_t offset, struct table **ret);
/*
 * The same for a change: where the file has a hole there is room for the table now, so that writing
 * it back does not end with -ENOSPC.  -ENOSPC: there is none. The caller's mutex is held until the
 * change is made.  Where tables are never frozen, table_cache_get will do, too.
 */
int table_cache_get_for_change(struct table_cache *cache, uint64_t offset, struct table **ret);
/*
 * A pinned, zeroed, dirty table at `offset`, without reading: for tables that are new.  The file
 * has room for it; -ENOSPC: it has not, and nothing was made.
 */
int table_cache_get_new(struct table_cache *cache, uint64_t offset, struct table **ret);
void table_cache_put(struct table_cache *cache, struct table *table);
void table_cache_mark_dirty(struct table_cache *cache, struct table *table);
/* Forgets the table at `offset`, dirty or not: its storage was given back. It must not be pinned.
 */
void table_cache_drop(struct table_cache *cache, uint64_t offset);

bool table_cache_is_dirty(const struct table_cache *cache);
/*
 * Writes all dirty tables, in order: what comes before is durable first.  What is written is not
 * itself synced.  The caller keeps tables from being changed meanwhile (its metadata mutex); get()
 * writes back in the same way when it must evict.
 * Returns 0 or negative errno (what was not written stays dirty).
 */
int table_cache_writeback(struct table_cache *cache);

/*
 * Freezes the state of all dirty tables, which are clean then; what was frozen before must have
 * been written or thawed.
 */
void table_cache_freeze(struct table_cache *cache);
bool table_cache_is_frozen(const struct table_cache *cache);
/* Makes durable what this cache is declared to come after, as far as it has been written. */
int table_cache_settle(struct table_cache *cache);
/*
 * Writes the frozen states, for which table_cache_settle has succeeded since they were frozen.
 * What is not written stays frozen.
 */
int table_cache_write_frozen(struct table_cache *cache);
/* Frozen tables are dirty again: the flush has failed. */
void table_cache_thaw(struct table_cache *cache);

#endif
