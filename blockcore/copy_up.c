/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Copying up: what an image has from its backing file becomes its own, while it is in use.  What
 * the disk shows does not change, so nobody has to be told.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>

/* The first part of a range that the backing node shows; *ret_length 0: there is none. */
static int find_inherited(struct node *node, uint64_t offset, uint64_t length, uint64_t *ret_offset,
                          uint64_t *ret_length)
{
    *ret_length = 0;
    if (!node->driver->allocate || !node->backing)
        return 0;
    length = min_u64(length, node->backing->size - min_u64(offset, node->backing->size));
    while (length > 0) {
        struct extent e;
        int err = node->driver->map(node, offset, length, &e);

        if (err < 0)
            return err;
        if (e.kind == EXTENT_ABSENT) {
            *ret_offset = offset;
            *ret_length = e.length;
            return 0;
        }
        offset += e.length;
        length -= e.length;
    }
    return 0;
}

int block_is_own(struct node *node, uint64_t offset, uint64_t length)
{
    bool waits = coroutine_self();
    struct range_lock lock;
    uint64_t at, n;
    int err;

    if (!waits && needs_locks(node) && !range_lock_is_free(&node->locks, offset, length))
        return -EAGAIN;
    if (waits)
        range_lock_shared(&node->locks, &lock, offset, length);
    err = find_inherited(node, offset, length, &at, &n);
    if (waits)
        range_unlock(&node->locks, &lock);
    return err < 0 ? err : n == 0;
}

/* Whole clusters that are the backing node's, up to BLOCK_PIECE_BYTES. */
static int copy_clusters(struct node *node, uint64_t start, uint64_t length)
{
    uint8_t *buffer = buffer_get(length);
    const struct iovec iov = {buffer, length};
    const struct vec vec = {&iov, 1, 0, length};
    int err;

    if (!buffer)
        return -ENOMEM;
    err = engine_read_locked(node, vec, start);
    if (err == 0) {
        err = -ENOTSUP;
        if (node->driver->zero && bytes_are_zero(buffer, length))
            err = node->driver->zero(node, start, length, ZERO_MAY_UNMAP);
        if (err == -ENOTSUP)
            err = format_write_locked(node, vec, start);
    }
    engine_forget_decoded(node);
    buffer_put(buffer, length);
    return err;
}

/* The exclusive lock on all of it is held. */
static int copy_locked(struct node *node, uint64_t offset, uint64_t length)
{
    uint64_t end = offset + length, n;
    uint32_t cluster = node->cluster_size;
    int err = find_inherited(node, offset, length, &offset, &n);

    while (err == 0 && n > 0) {
        uint64_t start = align_down(offset, cluster);
        uint64_t piece = max_u64(align_down(BLOCK_PIECE_BYTES, cluster), cluster);
        uint64_t stop = min_u64(align_up(offset + n, cluster), start + piece);

        err = copy_clusters(node, start, min_u64(stop, node->size) - start);
        if (err < 0 || stop >= end)
            return err;
        err = find_inherited(node, stop, end - stop, &offset, &n);
    }
    return err;
}

int block_copy_up(struct node *node, uint64_t offset, uint64_t length)
{
    struct range_lock lock;
    int own, err;

    if (!node_writable(node))
        return -EROFS;
    if (length == 0 || !range_within(offset, length, node->size))
        return length == 0 ? 0 : -EINVAL;
    own = block_is_own(node, offset, length);
    if (own != 0)
        return own < 0 ? own : 0;
    TRACE(block_write, "%s offset %" PRIu64 " length %" PRIu64 " is copied up", node_name(node),
          offset, length);
    lock_for_change(node, &lock, offset, length);
    err = copy_locked(node, offset, length);
    range_unlock(&node->locks, &lock);
    return err;
}
