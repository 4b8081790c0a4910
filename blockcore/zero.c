/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine: zeroing and discarding.
 *
 * Both work on whole clusters where a format allocates: the ragged ends of a zeroing are written as
 * data, those of a discard are left alone.  Large ranges are done in pieces, each under its own
 * range lock, with a yield between, so that no request holds the loop or the lock for long.
 */
#include "base/buffer.h"
#include "base/iov.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define CLUSTERS_PER_PIECE 4096

/* In pieces, each with `write`. */
static int write_zeroes(struct node *node, uint64_t offset, uint64_t length,
                        int (*write)(struct node *, struct vec, uint64_t))
{
    uint64_t piece = min_u64(length, BLOCK_PIECE_BYTES);
    uint8_t *zeroes = buffer_get(piece);
    int err = 0;

    if (!zeroes)
        return -ENOMEM;
    memset(zeroes, 0, piece);
    while (length > 0 && err == 0) {
        uint64_t n = min_u64(length, piece);
        const struct iovec iov = {zeroes, n};
        const struct vec vec = {&iov, 1, 0, n};

        err = write(node, vec, offset);
        offset += n;
        length -= n;
        if (length > 0)
            coroutine_yield();
    }
    buffer_put(zeroes, piece);
    return err;
}

int write_zero_data(struct node *node, uint64_t offset, uint64_t length)
{
    return write_zeroes(node, offset, length, engine_write_child);
}

int write_zeroes_locked(struct node *node, uint64_t offset, uint64_t length)
{
    return write_zeroes(node, offset, length, format_write_locked);
}

/* Whether all of a short range is known to read as zeroes already. */
static bool reads_zero(struct node *node, uint64_t offset, uint64_t length)
{
    struct block_status status;

    return block_get_status(node, offset, length, &status) == 0 && status.length == length &&
           (status.flags & STATUS_ZERO);
}

/* Bitmaps tell of writes, whether or not these changed anything. */
static int only_track(struct node *node, uint64_t offset, uint64_t length)
{
    struct range_lock lock;
    int err;

    if (!node->tracks_changes)
        return 0;
    lock_for_change(node, &lock, offset, length);
    err = track_change(node, offset, length);
    range_unlock(&node->locks, &lock);
    return err;
}

/* A part of a cluster: as data, unless there is nothing to do. */
static int zero_part(struct node *node, uint64_t offset, uint64_t length, bool allocate)
{
    if (length == 0)
        return 0;
    if (!allocate && reads_zero(node, offset, length))
        return only_track(node, offset, length);
    return write_zero_data(node, offset, length);
}

/* The first part of a long range: it ends where a unit of storage does. */
static uint64_t first_piece(const struct node *node, uint64_t offset, uint64_t length)
{
    uint64_t start = align_down(offset, node->lock_size);

    return min_u64(length, start + (uint64_t)node->lock_size * CLUSTERS_PER_PIECE - offset);
}

static int driver_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    uint64_t generation = node->reclaim_generation;
    int err = node->driver->zero(node, offset, length, flags);

    return engine_reclaim(node, err, generation) ? node->driver->zero(node, offset, length, flags)
                                                 : err;
}

/* Whole clusters (the last may be cut by the disk's end). */
static int zero_clusters(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    while (length > 0) {
        uint64_t n = first_piece(node, offset, length);
        int err = -ENOTSUP;

        if (node->driver->zero) {
            struct range_lock lock;

            lock_for_change(node, &lock, offset, n);
            err = track_change(node, offset, n);
            if (err == 0)
                err = driver_zero(node, offset, n, flags);
            engine_forget_decoded(node);
            range_unlock(&node->locks, &lock);
        }
        if (err == -ENOTSUP && !(flags & ZERO_FAST))
            err = write_zero_data(node, offset, n);
        if (err < 0)
            return err;
        offset += n;
        length -= n;
        if (length > 0)
            coroutine_yield();
    }
    return 0;
}

/* Whether the first part of a range of clusters has storage of its own; *ret: how long it is. */
static int has_storage(struct node *node, uint64_t offset, uint64_t length, uint64_t *ret)
{
    struct range_lock lock;
    struct extent e;
    int err;

    range_lock_shared(&node->locks, &lock, offset, length);
    err = node->driver->map(node, offset, length, &e);
    range_unlock(&node->locks, &lock);
    if (err < 0)
        return err;
    *ret = e.length;
    return (e.kind == EXTENT_DATA && (e.flags & EXTENT_WRITABLE)) || (e.flags & EXTENT_RESERVED);
}

/* Whether all of it has storage: 1, 0 or negative errno. */
static int all_has_storage(struct node *node, uint64_t offset, uint64_t length)
{
    int has = 1;

    while (length > 0 && has > 0) {
        uint64_t n;

        has = has_storage(node, offset, length, &n);
        if (has < 0)
            return has;
        offset += n;
        length -= n;
        coroutine_yield();
    }
    return has;
}

/* As zero_clusters, but with storage everywhere afterwards: what has none gets it by a write. */
static int zero_with_storage(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int err = 0;

    if (flags & ZERO_FAST) {
        int has = all_has_storage(node, offset, length);

        if (has <= 0)
            return has < 0 ? has : -ENOTSUP;
    }
    while (length > 0 && err == 0) {
        uint64_t n;
        int has = has_storage(node, offset, length, &n);

        if (has < 0)
            return has;
        err = has ? zero_clusters(node, offset, n, flags | ZERO_KEEP)
                  : write_zero_data(node, offset, n);
        offset += n;
        length -= n;
        if (length > 0)
            coroutine_yield();
    }
    return err;
}

/* The same unless what is at `at` is encoded: that can only be zeroed as a whole. */
static int keep_border(struct node *node, uint64_t at, uint64_t whole, uint64_t *border)
{
    struct extent e;
    int err;

    if (is_aligned(*border, node->lock_size) || at >= node->size)
        return 0;
    err = node->driver->map(node, at, 1, &e);
    if (err == 0 && e.kind == EXTENT_ENCODED)
        *border = whole;
    return err;
}

/* The clusters in a range that can be zeroed by themselves; none when *start >= *stop. */
static int find_clusters(struct node *node, uint64_t offset, uint64_t end, uint64_t *start,
                         uint64_t *stop)
{
    uint32_t cluster = node->cluster_size;
    int err = 0;

    *start = align_up(offset, cluster);
    *stop = end == node->size ? end : align_down(end, cluster);
    if (*start < *stop && node->lock_size > cluster) {
        err = keep_border(node, *start, align_up(offset, node->lock_size), start);
        if (err == 0 && end != node->size)
            err = keep_border(node, *stop - 1, align_down(end, node->lock_size), stop);
    }
    return err;
}

/*
 * The clusters come first: only they can be refused as not fast, and then nothing has changed.  A
 * range without a whole cluster is never faster than a write, unless there is nothing to do.
 */
static int zero_allocating(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    bool allocate = flags & BLOCK_ALLOCATE;
    uint64_t end = offset + length, start, stop;
    int err = find_clusters(node, offset, end, &start, &stop);

    if (err < 0)
        return err;
    flags &= ~(unsigned)BLOCK_ALLOCATE;
    if (start >= stop) { /* within one cluster, or the two halves at a border */
        if ((flags & ZERO_FAST) && (allocate || !reads_zero(node, offset, length)))
            return -ENOTSUP;
        return zero_part(node, offset, length, allocate);
    }
    err = allocate ? zero_with_storage(node, start, stop - start, flags)
                   : zero_clusters(node, start, stop - start, flags);
    if (err == 0)
        err = zero_part(node, offset, start - offset, allocate);
    if (err == 0)
        err = zero_part(node, stop, end - stop, allocate);
    return err;
}

/* Formats that pass on: the child is zeroed where the map says. */
static int zero_mapped(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    while (length > 0) {
        struct extent e;
        int err = node->driver->map(node, offset, length, &e);

        if (err < 0)
            return err;
        if (e.kind != EXTENT_DATA || !(e.flags & EXTENT_WRITABLE))
            return -EIO;
        if (!(e.flags & EXTENT_ENCRYPTED))
            err = engine_zero_child(e.child, e.child_offset, e.length, flags);
        else /* zeroes of the file are noise here */
            err = flags & ZERO_FAST ? -ENOTSUP : write_zero_data(node, offset, e.length);
        if (err < 0)
            return err;
        offset += e.length;
        length -= e.length;
    }
    return 0;
}

int engine_zero_child(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    if (is_protocol(node))
        return protocol_zero(node, offset, length, flags & ~(unsigned)BLOCK_ALLOCATE);
    if (is_filter(node))
        return filter_zero(node, offset, length, flags);
    if (node->driver->allocate)
        return zero_allocating(node, offset, length, flags);
    return zero_mapped(node, offset, length, flags);
}

int block_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int err = 0;

    TRACE(block_zero, "%s offset %" PRIu64 " length %" PRIu64 " flags %#x", node_name(node), offset,
          length, flags);
    if (!node_writable(node))
        return -EROFS;
    if (!grows(node) && !range_within(offset, length, node->size))
        return -ENOSPC;
    if (!(node->flags & NODE_UNMAP))
        flags &= ~(unsigned)ZERO_MAY_UNMAP;
    if (length > 0)
        err = engine_zero_child(node, offset, length, flags & ~(unsigned)BLOCK_FUA);
    if (err == 0 && (flags & BLOCK_FUA))
        err = block_flush(node);
    return err;
}

int block_writev_detecting(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset,
                           unsigned flags)
{
    size_t length = iov_length(iov, iovcnt);

    if (iov_is_zero(iov, iovcnt, 0, length))
        return block_zero(node, offset, length, flags);
    return block_writev(node, iov, iovcnt, offset, flags & BLOCK_FUA);
}

static int discard_clusters(struct node *node, uint64_t offset, uint64_t length)
{
    int err = 0;

    while (length > 0 && err == 0) {
        uint64_t n = first_piece(node, offset, length);
        struct range_lock lock;

        lock_for_change(node, &lock, offset, n);
        err = track_change(node, offset, n);
        if (err == 0)
            err = node->driver->discard(node, offset, n);
        engine_forget_decoded(node);
        range_unlock(&node->locks, &lock);
        offset += n;
        length -= n;
        if (length > 0)
            coroutine_yield();
    }
    return err == -ENOTSUP ? 0 : err;
}

int engine_discard_child(struct node *node, uint64_t offset, uint64_t length)
{
    int err = 0;

    if (is_protocol(node))
        return protocol_discard(node, offset, length);
    if (is_filter(node))
        return filter_discard(node, offset, length);
    if (node->driver->allocate) {
        uint64_t start = align_up(offset, node->cluster_size), end = offset + length;

        if (end != node->size)
            end = align_down(end, node->cluster_size);
        return start < end && node->driver->discard ? discard_clusters(node, start, end - start)
                                                    : 0;
    }
    while (length > 0 && err == 0) {
        struct extent e;

        err = node->driver->map(node, offset, length, &e);
        if (err == 0 && e.kind == EXTENT_DATA && (e.flags & EXTENT_WRITABLE) &&
            !(e.flags & EXTENT_ENCRYPTED)) /* holes would tell what is in use */
            err = engine_discard_child(e.child, e.child_offset, e.length);
        offset += e.length;
        length -= e.length;
    }
    return err;
}

int block_discard(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int err = 0;

    TRACE(block_discard, "%s offset %" PRIu64 " length %" PRIu64, node_name(node), offset, length);
    if (!node_writable(node))
        return -EROFS;
    if (!grows(node) && !range_within(offset, length, node->size))
        return -EINVAL;
    if (length > 0 && (node->flags & NODE_UNMAP))
        err = engine_discard_child(node, offset, length);
    if (err == 0 && (flags & BLOCK_FUA))
        err = block_flush(node);
    return err;
}
