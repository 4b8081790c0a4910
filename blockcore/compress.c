/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine: writing compressed.
 *
 * A format compresses whole units (clusters), each under an exclusive lock, several at a time, so
 * that the worker threads have something to do.  What does not get smaller is written as it is, and
 * zeroes need no data where the format can say so.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define UNITS_AT_ONCE 8

/* One call, shared by the coroutines that work for it. */
struct compressed_write {
    struct node *node;
    const uint8_t *data;
    uint64_t next, end; /* guest bytes that nobody has taken yet */
    int error;          /* the first one: no more units are begun */
};

/* `data` is a whole unit, of which the first `length` bytes are the disk's. The lock is held. */
static int write_locked(struct node *node, const void *data, uint64_t length, uint64_t offset)
{
    const struct iovec iov = {(void *)(uintptr_t)data, length};
    const struct vec vec = {&iov, 1, 0, length};
    int err = -ENOTSUP;

    if (node->driver->zero && bytes_are_zero(data, length))
        err = node->driver->zero(node, offset, length, ZERO_MAY_UNMAP);
    if (err != -ENOTSUP)
        return err;
    err = node->driver->write_compressed(node, offset, data);
    return err > 0 ? format_write_locked(node, vec, offset) : err;
}

/* The same, on a full disk in what earlier requests have freed. */
static int write_or_reclaim(struct node *node, const void *data, uint64_t length, uint64_t offset)
{
    uint64_t generation = node->reclaim_generation;
    int err = write_locked(node, data, length, offset);

    return engine_reclaim(node, err, generation) ? write_locked(node, data, length, offset) : err;
}

static int write_unit(struct node *node, const uint8_t *data, uint64_t length, uint64_t offset)
{
    struct range_lock lock;
    uint8_t *padded = NULL;
    int err;

    if (length < node->compress_unit) { /* the disk ends in it */
        padded = buffer_get(node->compress_unit);
        if (!padded)
            return -ENOMEM;
        memcpy(padded, data, length);
        memset(padded + length, 0, node->compress_unit - length);
        data = padded;
    }
    range_lock_exclusive(&node->locks, &lock, offset, node->compress_unit);
    err = track_change(node, offset, length);
    if (err == 0)
        err = write_or_reclaim(node, data, length, offset);
    engine_forget_decoded(node);
    range_unlock(&node->locks, &lock);
    buffer_put(padded, node->compress_unit);
    return err;
}

static int work(void *arg)
{
    struct compressed_write *w = arg;

    while (w->next < w->end && w->error == 0) {
        uint64_t offset = w->next, length = min_u64(w->node->compress_unit, w->end - offset);
        const uint8_t *data = w->data;
        int err;

        w->data += length;
        w->next += length;
        err = write_unit(w->node, data, length, offset);
        if (err < 0 && w->error == 0)
            w->error = err;
    }
    return 0;
}

int block_write_compressed(struct node *node, const void *buffer, size_t length, uint64_t offset)
{
    struct compressed_write w = {node, buffer, offset, offset + length, 0};
    struct co_group group;
    uint64_t units;

    TRACE(block_write, "%s offset %" PRIu64 " length %zu compressed", node_name(node), offset,
          length);
    if (!node_writable(node))
        return -EROFS;
    if (!node->driver->write_compressed || node->compress_unit == 0)
        return -ENOTSUP;
    if (!range_within(offset, length, node->size))
        return -ENOSPC;
    if (!is_aligned(offset, node->compress_unit) ||
        (!is_aligned(length, node->compress_unit) && w.end != node->size))
        return -EINVAL;
    units = min_u64(div_round_up(length, node->compress_unit), UNITS_AT_ONCE);
    co_group_init(&group);
    for (uint64_t i = 1; i < units; i++)
        co_group_start(&group, work, &w);
    work(&w);
    co_group_wait(&group);
    return w.error;
}
