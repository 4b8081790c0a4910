/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The filter `cache`: blocks that were read are kept in memory, up to a limit; the one that was not
 * used for the longest time goes first.  It helps where the page cache does not: direct I/O, slow
 * or far storage, compressed and encrypted images.
 *
 * Writes go through and drop the blocks that they touch.  A block whose loading meets a write is
 * not kept, for nobody knows which of the two came first.
 */
#include "base/buffer.h"
#include "base/iov.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/filter.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define LIMIT_DEFAULT (64 * MIB)
#define BLOCK_DEFAULT (64 * KIB)
#define BLOCK_MIN 512
#define BLOCK_MAX MIB
#define BUCKETS_MAX (64 * KIB)

struct cached {
    struct list link;   /* in the order of use */
    struct list bucket; /* with the same hash */
    uint64_t index;     /* of the block */
    uint64_t length;    /* bytes of it that the disk had */
    bool loading, stale;
    uint8_t *data;
};

struct cache {
    uint64_t limit, block_size; /* options */
    uint64_t blocks_max, blocks;
    struct list used;     /* the last one used first */
    struct list *buckets; /* a power of two */
    uint64_t bucket_count;
};

static const struct option_row cache_options[] = {
    {"limit", OPTION_SIZE, offsetof(struct cache, limit), NULL,
     "bytes of memory at most, 64M by default"},
    {"block-size", OPTION_SIZE, offsetof(struct cache, block_size), NULL,
     "bytes that are read and kept together, 64k by default"},
    {0},
};

static int check(const struct cache *cache, struct error *error)
{
    if (!is_power_of_two(cache->block_size) || cache->block_size < BLOCK_MIN ||
        cache->block_size > BLOCK_MAX)
        return error_set(error, EINVAL,
                         "the option 'block-size' of driver 'cache' is %" PRIu64
                         ", it must be a power of two from 512 to 1M",
                         cache->block_size);
    if (cache->limit < cache->block_size)
        return error_set(error, EINVAL,
                         "the option 'limit' of driver 'cache' is %" PRIu64
                         ", it must be the block size (%" PRIu64 ") at least",
                         cache->limit, cache->block_size);
    return 0;
}

static int cache_open(struct node *node, struct node_open *open, struct error *error)
{
    struct cache *cache = node->state;
    int err;

    cache->limit = LIMIT_DEFAULT;
    cache->block_size = BLOCK_DEFAULT;
    list_init(&cache->used);
    err = options_take(open->options, cache_options, cache, "driver 'cache'", error);
    if (err == 0)
        err = check(cache, error);
    if (err < 0)
        return err;
    cache->blocks_max = cache->limit / cache->block_size;
    cache->bucket_count = 1;
    while (cache->bucket_count < min_u64(cache->blocks_max, BUCKETS_MAX))
        cache->bucket_count *= 2;
    cache->buckets = calloc(cache->bucket_count, sizeof(*cache->buckets));
    if (!cache->buckets)
        return error_set(error, ENOMEM, "out of memory");
    for (uint64_t i = 0; i < cache->bucket_count; i++)
        list_init(&cache->buckets[i]);
    return filter_open_file(node, open, error);
}

static struct list *bucket_of(const struct cache *cache, uint64_t index)
{
    return &cache->buckets[index & (cache->bucket_count - 1)];
}

static struct cached *find(const struct cache *cache, uint64_t index)
{
    list_for_each(it, bucket_of(cache, index))
    {
        struct cached *block = list_entry(it, struct cached, bucket);

        if (block->index == index)
            return block;
    }
    return NULL;
}

static void drop(struct cache *cache, struct cached *block)
{
    list_remove(&block->link);
    list_remove(&block->bucket);
    buffer_put(block->data, cache->block_size);
    free(block);
    cache->blocks--;
}

static void cache_close(struct node *node)
{
    struct cache *cache = node->state;

    while (!list_empty(&cache->used))
        drop(cache, list_entry(cache->used.next, struct cached, link));
    free(cache->buckets);
}

/* Makes room for one more. False: all that is there is being loaded. */
static bool make_room(struct cache *cache)
{
    for (struct list *it = cache->used.prev; cache->blocks >= cache->blocks_max; it = it->prev) {
        if (it == &cache->used)
            return false;
        if (!list_entry(it, struct cached, link)->loading) {
            drop(cache, list_entry(it, struct cached, link));
            return true;
        }
    }
    return true;
}

/* A new block, which is to be loaded; NULL when there is no room for it. */
static struct cached *add(struct cache *cache, uint64_t index)
{
    struct cached *block = make_room(cache) ? calloc(1, sizeof(*block)) : NULL;

    if (!block)
        return NULL;
    block->data = buffer_get(cache->block_size);
    if (!block->data) {
        free(block);
        return NULL;
    }
    block->index = index;
    block->loading = true;
    list_prepend(&cache->used, &block->link);
    list_prepend(bucket_of(cache, index), &block->bucket);
    cache->blocks++;
    return block;
}

/* A block, if it is there and has the bytes up to `end`. */
static struct cached *use(struct cache *cache, uint64_t index, uint64_t end)
{
    struct cached *block = find(cache, index);

    if (!block || block->loading || block->length < end)
        return NULL;
    list_remove(&block->link);
    list_prepend(&cache->used, &block->link);
    return block;
}

/* Reads the block and keeps it, if it can be kept. Returns 0 with `vec` filled, or the error. */
static int load(struct node *node, struct cached *block, const struct iovec *iov, int iovcnt,
                uint64_t skip, size_t length)
{
    struct cache *cache = node->state;
    uint64_t start = block->index * cache->block_size;
    int err;

    block->length = min_u64(cache->block_size, node->size - start);
    err = block_read(node->file, block->data, block->length, start);
    block->loading = false;
    if (err == 0)
        iov_from_buffer(iov, iovcnt, 0, block->data + skip, length);
    if (err < 0 || block->stale)
        drop(cache, block);
    return err;
}

/* A part of one block; the vectors are as long as it. */
static int read_part(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset,
                     size_t length)
{
    struct cache *cache = node->state;
    uint64_t index = offset / cache->block_size, skip = offset % cache->block_size;
    struct cached *block = use(cache, index, skip + length);

    if (block) {
        iov_from_buffer(iov, iovcnt, 0, block->data + skip, length);
        return 0;
    }
    if (range_within(offset, length, node->size) && !find(cache, index)) {
        block = add(cache, index);
        if (block && load(node, block, iov, iovcnt, skip, length) == 0)
            return 0; /* else what cannot be read may be the rest of the block */
    }
    return block_readv(node->file, iov, iovcnt, offset);
}

/* Bytes up to the end of the block, or of what is wanted. */
static size_t part_length(const struct cache *cache, uint64_t offset, size_t left)
{
    return min_u64(cache->block_size - offset % cache->block_size, left);
}

static int cache_preadv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    const struct cache *cache = node->state;
    size_t length = iov_length(iov, iovcnt), done = 0;
    struct iovec part[BLOCK_IOV_MAX];
    int err = 0;

    while (done < length && err == 0) {
        size_t n = part_length(cache, offset + done, length - done);
        int count = iov_slice(part, BLOCK_IOV_MAX, iov, iovcnt, done, n);

        err = count < 0 ? count : read_part(node, part, count, offset + done, n);
        done += n;
    }
    return err;
}

/* What is not in the cache may be at hand in the page cache: then there is no need to keep it. */
static int cache_preadv_nowait(struct node *node, const struct iovec *iov, int iovcnt,
                               uint64_t offset)
{
    struct cache *cache = node->state;
    size_t length = iov_length(iov, iovcnt), done = 0;

    while (done < length) {
        size_t n = part_length(cache, offset + done, length - done);
        uint64_t skip = (offset + done) % cache->block_size;
        const struct cached *block = use(cache, (offset + done) / cache->block_size, skip + n);

        if (!block)
            return iovcnt == 1 ? block_read_nowait(node->file, iov[0].iov_base, length, offset)
                               : -EAGAIN;
        iov_from_buffer(iov, iovcnt, done, block->data + skip, n);
        done += n;
    }
    return 0;
}

static void forget(struct cache *cache, struct cached *block)
{
    if (block->loading)
        block->stale = true;
    else
        drop(cache, block);
}

/* By block or by what is kept, whichever is less. */
static void cache_after(struct node *node, uint64_t offset, uint64_t length)
{
    struct cache *cache = node->state;
    uint64_t first = offset / cache->block_size;
    uint64_t last = length > 0 ? (offset + length - 1) / cache->block_size : first;

    if (last - first < cache->blocks) {
        for (uint64_t i = first; i <= last; i++) {
            struct cached *block = find(cache, i);

            if (block)
                forget(cache, block);
        }
        return;
    }
    list_for_each_safe(it, next, &cache->used)
    {
        struct cached *block = list_entry(it, struct cached, link);

        if (block->index >= first && block->index <= last)
            forget(cache, block);
    }
}

const struct driver driver_cache = {
    .name = "cache",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct cache),
    .options = cache_options,
    .open = cache_open,
    .close = cache_close,
    .preadv = cache_preadv,
    .preadv_nowait = cache_preadv_nowait,
    .after = cache_after,
};
