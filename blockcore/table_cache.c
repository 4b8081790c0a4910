/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table cache: a hash of tables by offset, a list in order of use, a list of dirty ones.
 *
 * A table that is being loaded is in the hash already, pinned by its loader; others who want it
 * wait for the loader.  Tables are written from their own memory: nobody changes them during a
 * write-back (see the header), so that what reaches the disk is what was ordered.  A frozen table
 * is written from its copy once it has one; when it is written back in its present state, which has
 * everything that the frozen one has, it is frozen no more.
 */
#include "blockcore/table_cache.h"

#include "base/buffer.h"
#include "base/reactor.h"
#include "base/trace.h"
#include "blockcore/block.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct cached_table {
    struct table table;
    struct cached_table *hash_next;
    struct list used;   /* in cache->used, least recent first */
    struct list dirty;  /* in cache->dirty while it is */
    struct list frozen; /* in cache->frozen while it is */
    uint8_t *copy;      /* its frozen state, when it has been changed since, else NULL */
    unsigned pins;
    bool loading;
    bool recent;            /* used since the last cleaning */
    bool reserved;          /* the file has room for it */
    struct co_queue loaded; /* waits for `loading` to end */
};

struct table_cache {
    struct node *file;
    struct node *data; /* a file to be synced before tables are written, or NULL */
    struct table_cache *before;
    uint32_t table_size;
    unsigned tables, tables_max;
    struct list used, dirty, frozen;
    unsigned buckets; /* power of two */
    struct cached_table **hash;
    int64_t clean_ns; /* 0: never */
    struct reactor_timer clean_timer;
};

#define SECONDS_MAX 1000000000
#define NS_PER_SECOND INT64_C(1000000000)

struct table_cache *table_cache_new(struct node *file, uint32_t table_size, unsigned tables_max,
                                    struct table_cache *before)
{
    struct table_cache *cache = calloc(1, sizeof(*cache));

    if (!cache)
        return NULL;
    cache->file = file;
    cache->before = before;
    cache->table_size = table_size;
    cache->tables_max = tables_max;
    list_init(&cache->used);
    list_init(&cache->dirty);
    list_init(&cache->frozen);
    cache->buckets = 16;
    while (cache->buckets < tables_max && cache->buckets < 65536)
        cache->buckets *= 2;
    cache->hash = calloc(cache->buckets, sizeof(*cache->hash));
    if (!cache->hash) {
        free(cache);
        return NULL;
    }
    return cache;
}

void table_cache_set_data(struct table_cache *cache, struct node *data)
{
    cache->data = data;
}

static struct cached_table **bucket(const struct table_cache *cache, uint64_t offset)
{
    uint64_t h = (offset / cache->table_size) * UINT64_C(0x9e3779b97f4a7c15);

    return &cache->hash[(h >> 32) & (cache->buckets - 1)];
}

static struct cached_table *find(const struct table_cache *cache, uint64_t offset)
{
    struct cached_table *t = *bucket(cache, offset);

    while (t && t->table.offset != offset)
        t = t->hash_next;
    return t;
}

/* Its frozen state is written, or of no use. */
static void unfreeze(struct table_cache *cache, struct cached_table *t)
{
    list_remove(&t->frozen);
    if (t->copy)
        buffer_put(t->copy, cache->table_size);
    t->copy = NULL;
}

/* It has nothing that is to be written. */
static bool is_clean(const struct cached_table *t)
{
    return !list_linked(&t->dirty) && !list_linked(&t->frozen);
}

static void forget(struct table_cache *cache, struct cached_table *t)
{
    struct cached_table **link = bucket(cache, t->table.offset);

    while (*link != t)
        link = &(*link)->hash_next;
    *link = t->hash_next;
    list_remove(&t->used);
    list_remove(&t->dirty);
    unfreeze(cache, t);
    cache->tables--;
    buffer_put(t->table.data, cache->table_size);
    free(t);
}

void table_cache_free(struct table_cache *cache)
{
    if (!cache)
        return;
    reactor_timer_stop(&cache->clean_timer);
    while (!list_empty(&cache->used))
        forget(cache, list_entry(cache->used.next, struct cached_table, used));
    free(cache->hash);
    free(cache);
}

static void clean(struct reactor_timer *timer);

/* The timer runs while there is something to drop. */
static void start_cleaning(struct table_cache *cache)
{
    if (cache->clean_ns > 0 && cache->tables > 0 && cache->clean_timer.heap_index == 0)
        reactor_timer_start(&cache->clean_timer, cache->clean_ns, clean);
}

static void clean(struct reactor_timer *timer)
{
    struct table_cache *cache = container_of(timer, struct table_cache, clean_timer);

    list_for_each_safe(it, next, &cache->used)
    {
        struct cached_table *t = list_entry(it, struct cached_table, used);

        if (t->pins == 0 && is_clean(t) && !t->recent)
            forget(cache, t);
        else
            t->recent = false;
    }
    start_cleaning(cache);
}

void table_cache_set_clean_interval(struct table_cache *cache, uint64_t seconds)
{
    cache->clean_ns = (int64_t)min_u64(seconds, SECONDS_MAX) * NS_PER_SECOND;
    reactor_timer_stop(&cache->clean_timer);
    start_cleaning(cache);
}

unsigned table_cache_count(const struct table_cache *cache)
{
    return cache->tables;
}

static struct table *pin(struct table_cache *cache, struct cached_table *t)
{
    t->pins++;
    t->recent = true;
    if (cache->used.prev != &t->used) {
        list_remove(&t->used);
        list_append(&cache->used, &t->used);
    }
    return &t->table;
}

struct table *table_cache_peek(struct table_cache *cache, uint64_t offset)
{
    struct cached_table *t = find(cache, offset);

    return t && !t->loading ? pin(cache, t) : NULL;
}

/* The least recently used table that can go, or NULL. */
static struct cached_table *victim(struct table_cache *cache)
{
    list_for_each(it, &cache->used)
    {
        struct cached_table *t = list_entry(it, struct cached_table, used);

        if (t->pins == 0 && is_clean(t))
            return t;
    }
    return NULL;
}

/* Makes room for one more table. Waits when only dirty ones could go. */
static int make_room(struct table_cache *cache)
{
    struct cached_table *t;
    int err;

    if (cache->tables < cache->tables_max)
        return 0;
    t = victim(cache);
    if (!t && (table_cache_is_dirty(cache) || table_cache_is_frozen(cache))) {
        err = table_cache_writeback(cache);
        if (err < 0)
            return err;
        t = victim(cache);
    }
    /* All pinned: a few tables more than the limit are better than a dead end. */
    if (t)
        forget(cache, t);
    return 0;
}

/* A new entry in the hash, pinned. */
static struct cached_table *insert(struct table_cache *cache, uint64_t offset)
{
    struct cached_table *t = calloc(1, sizeof(*t));
    struct cached_table **head = bucket(cache, offset);

    if (!t)
        return NULL;
    t->table.data = buffer_get(cache->table_size);
    if (!t->table.data) {
        free(t);
        return NULL;
    }
    t->table.offset = offset;
    t->pins = 1;
    co_queue_init(&t->loaded);
    t->hash_next = *head;
    *head = t;
    list_append(&cache->used, &t->used);
    cache->tables++;
    t->recent = true;
    start_cleaning(cache);
    return t;
}

static int load(struct table_cache *cache, struct cached_table *t)
{
    uint64_t offset = t->table.offset;
    int err;

    t->loading = true;
    if (range_within(offset, cache->table_size, cache->file->size))
        err = block_read(cache->file, t->table.data, cache->table_size, offset);
    else
        err = -EIO;
    t->loading = false;
    return err;
}

int table_cache_get(struct table_cache *cache, uint64_t offset, struct table **ret)
{
    struct cached_table *t;
    int err;

    for (;;) {
        t = find(cache, offset);
        if (t && t->loading) {
            co_queue_wait(&t->loaded);
            continue; /* it may be gone again: the load failed */
        }
        if (t) {
            *ret = pin(cache, t);
            return 0;
        }
        err = make_room(cache);
        if (err < 0)
            return err;
        if (!find(cache, offset))
            break;
    }
    t = insert(cache, offset);
    if (!t)
        return -ENOMEM;
    err = load(cache, t);
    co_queue_wake_all(&t->loaded);
    if (err < 0) {
        forget(cache, t);
        return err;
    }
    *ret = &t->table;
    return 0;
}

/* The table is going to be changed: its frozen state, if it has one, is kept aside. */
static int keep_frozen(struct table_cache *cache, struct cached_table *t)
{
    if (!list_linked(&t->frozen) || t->copy)
        return 0;
    t->copy = buffer_get(cache->table_size);
    if (!t->copy)
        return -ENOMEM;
    memcpy(t->copy, t->table.data, cache->table_size);
    return 0;
}

int table_cache_get_for_change(struct table_cache *cache, uint64_t offset, struct table **ret)
{
    struct cached_table *t;
    int err = table_cache_get(cache, offset, ret);

    if (err < 0)
        return err;
    t = container_of(*ret, struct cached_table, table);
    if (!t->reserved)
        err = block_reserve(cache->file, offset, cache->table_size);
    /* Where the file system cannot tell, what has been written once is taken to have its room. */
    if (err == -EOPNOTSUPP)
        err = 0;
    t->reserved = err == 0;
    if (err == 0)
        err = keep_frozen(cache, t);
    if (err < 0) {
        table_cache_put(cache, *ret);
        *ret = NULL;
    }
    return err;
}

int table_cache_get_new(struct table_cache *cache, uint64_t offset, struct table **ret)
{
    struct cached_table *t;
    int err = block_reserve(cache->file, offset, cache->table_size);

    if (err == -EOPNOTSUPP)
        err = block_zero(cache->file, offset, cache->table_size, 0);
    if (err == 0)
        err = make_room(cache);
    if (err < 0)
        return err;
    t = find(cache, offset);
    if (t) {
        assert(!t->loading);
        err = keep_frozen(cache, t);
        if (err < 0)
            return err;
        pin(cache, t);
    } else {
        t = insert(cache, offset);
        if (!t)
            return -ENOMEM;
    }
    memset(t->table.data, 0, cache->table_size);
    t->reserved = true;
    table_cache_mark_dirty(cache, &t->table);
    *ret = &t->table;
    return 0;
}

void table_cache_put(struct table_cache *cache, struct table *table)
{
    struct cached_table *t = container_of(table, struct cached_table, table);

    (void)cache;
    assert(t->pins > 0);
    t->pins--;
}

void table_cache_mark_dirty(struct table_cache *cache, struct table *table)
{
    struct cached_table *t = container_of(table, struct cached_table, table);

    assert(!list_linked(&t->frozen) || t->copy);
    if (!list_linked(&t->dirty))
        list_append(&cache->dirty, &t->dirty);
}

void table_cache_drop(struct table_cache *cache, uint64_t offset)
{
    struct cached_table *t = find(cache, offset);

    if (!t)
        return;
    assert(t->pins == 0);
    forget(cache, t);
}

bool table_cache_is_dirty(const struct table_cache *cache)
{
    return !list_empty(&cache->dirty);
}

bool table_cache_is_frozen(const struct table_cache *cache)
{
    return !list_empty(&cache->frozen);
}

int table_cache_settle(struct table_cache *cache)
{
    int err = block_flush(cache->file);

    return err == 0 && cache->data ? block_flush(cache->data) : err;
}

static int write_table(struct table_cache *cache, struct cached_table *t, const uint8_t *data)
{
    int err;

    t->pins++; /* it must not be evicted while it is written */
    TRACE(qcow2_writeback, "table at %" PRIu64 " of %s", t->table.offset, node_name(cache->file));
    err = block_write(cache->file, data, cache->table_size, t->table.offset, 0);
    t->pins--;
    return err;
}

int table_cache_writeback(struct table_cache *cache)
{
    int err;

    if (cache->before) {
        err = table_cache_writeback(cache->before);
        if (err < 0)
            return err;
    }
    /* All must go for the sake of room. Should it fail, what is frozen is so still. */
    list_for_each(it, &cache->frozen)
    {
        struct cached_table *t = list_entry(it, struct cached_table, frozen);

        if (!list_linked(&t->dirty))
            list_append(&cache->dirty, &t->dirty);
    }
    if (!table_cache_is_dirty(cache))
        return 0;
    err = cache->before ? table_cache_settle(cache) : 0;
    while (err == 0 && !list_empty(&cache->dirty)) {
        struct cached_table *t = list_entry(cache->dirty.next, struct cached_table, dirty);

        err = write_table(cache, t, t->table.data);
        if (err < 0)
            break;
        list_remove(&t->dirty);
        unfreeze(cache, t);
    }
    return err;
}

void table_cache_freeze(struct table_cache *cache)
{
    struct list *it;

    assert(!table_cache_is_frozen(cache));
    while ((it = list_pop(&cache->dirty)))
        list_append(&cache->frozen, &list_entry(it, struct cached_table, dirty)->frozen);
}

int table_cache_write_frozen(struct table_cache *cache)
{
    while (table_cache_is_frozen(cache)) {
        struct cached_table *t = list_entry(cache->frozen.next, struct cached_table, frozen);
        int err = write_table(cache, t, t->copy ? t->copy : t->table.data);

        if (err < 0)
            return err;
        unfreeze(cache, t);
    }
    return 0;
}

void table_cache_thaw(struct table_cache *cache)
{
    while (table_cache_is_frozen(cache)) {
        struct cached_table *t = list_entry(cache->frozen.next, struct cached_table, frozen);

        unfreeze(cache, t);
        table_cache_mark_dirty(cache, &t->table);
    }
}
