/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine, reading side: reads, status, prefetch, and flattening for zero-copy.
 *
 * All of them walk the chain with locate(): from a node down its backing links, and through formats
 * that only pass on (raw), to the layer that has the bytes.  The walk is a loop, so that a chain of
 * any length costs no stack.
 *
 * Locks: a read of a node whose mapping can change holds a shared range lock from the map to the
 * end of the I/O.  Paths that never wait need no lock, only to see that nobody holds an exclusive
 * one.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Status answers cover at most this many map calls, so that one of them cannot hold the loop. */
#define STATUS_MAPS_MAX 256

/* Where a guest range ends up. */
struct location {
    struct extent extent; /* DATA with a child to be read with block_readv, ZERO or ENCODED */
    struct node *owner;   /* the node whose map gave it */
    uint64_t offset;      /* of the range, in the owner */
    unsigned depth;       /* 1: the top; 0: no layer has it */
    bool allocated;       /* some layer has it */
    bool reused;          /* the storage may hold other data later */
};

/* Filters and protocols hold their bytes themselves: reads of them are passed on as they are. */
static int map_node(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    if (!is_filter(node) && !is_protocol(node))
        return node->driver->map(node, offset, length, ret);
    *ret = (struct extent){
        .kind = EXTENT_DATA,
        .flags = EXTENT_WRITABLE,
        .length = length,
        .child = node,
        .child_offset = offset,
    };
    return 0;
}

/*
 * One step down: true when `at` names the next node to ask.  A format without allocate only passes
 * on, so that its child is asked in its place, unless the child must be locked (then it is read as
 * a whole, by block_readv) and waiting is possible.
 */
static bool step_down(struct node **at, uint64_t *offset, uint64_t *length, struct location *loc)
{
    struct extent *e = &loc->extent;
    struct node *next = NULL;

    *length = e->length;
    if (e->kind == EXTENT_DATA && !(e->flags & EXTENT_ENCRYPTED) && !is_protocol(e->child) &&
        !is_filter(e->child)) {
        if (needs_locks(e->child) && coroutine_self())
            return false;
        next = e->child;
        *offset = e->child_offset;
    } else if (e->kind == EXTENT_ABSENT && (*at)->backing) {
        loc->depth++;
        if (*offset < (*at)->backing->size) {
            next = (*at)->backing;
            *length = min_u64(*length, next->size - *offset);
        } else {
            e->kind = EXTENT_ZERO; /* what lies behind its end is the backing node's too */
        }
    }
    if (!next)
        return false;
    *at = next;
    return true;
}

static int locate(struct node *node, uint64_t offset, uint64_t length, struct location *loc)
{
    struct extent *e = &loc->extent;
    int err;

    loc->depth = 1;
    loc->reused = false;
    do {
        if (!coroutine_self() && needs_locks(node) &&
            !range_lock_is_free(&node->locks, offset, length))
            return -EAGAIN;
        err = map_node(node, offset, length, e);
        if (err < 0)
            return err;
        loc->owner = node;
        loc->offset = offset;
        loc->reused |= node->reuses_storage || (needs_locks(node) && e->kind == EXTENT_DATA &&
                                                !(e->flags & EXTENT_WRITABLE));
    } while (step_down(&node, &offset, &length, loc));
    loc->allocated = e->kind != EXTENT_ABSENT;
    if (!loc->allocated) {
        e->kind = EXTENT_ZERO;
        loc->depth = 0;
    }
    return 0;
}

void engine_forget_decoded(struct node *node)
{
    if (!node->decoded)
        return;
    buffer_put(node->decoded->buffer, node->decoded->length);
    free(node->decoded);
    node->decoded = NULL;
}

static bool is_decoded(const struct node *node, const struct extent *e)
{
    const struct decoded_unit *unit = node->decoded;

    return unit && unit->child == e->child && unit->child_offset == e->child_offset &&
           unit->offset == e->unit_offset && unit->length == e->unit_length;
}

/* Keeps a decoded buffer; frees it when there is no memory to keep it. */
static void keep_decoded(struct node *node, const struct extent *e, uint8_t *buffer)
{
    engine_forget_decoded(node);
    node->decoded = malloc(sizeof(*node->decoded));
    if (!node->decoded) {
        buffer_put(buffer, e->unit_length);
        return;
    }
    *node->decoded = (struct decoded_unit){
        .child = e->child,
        .child_offset = e->child_offset,
        .offset = e->unit_offset,
        .length = e->unit_length,
        .buffer = buffer,
    };
}

/* `offset` is in the owner's guest range. */
static int read_encoded(struct node *owner, const struct extent *e, const struct vec *vec,
                        uint64_t offset)
{
    size_t skip = offset - e->unit_offset;
    uint8_t *buffer;
    int err;

    if (is_decoded(owner, e)) {
        iov_from_buffer(vec->iov, vec->iovcnt, vec->offset, owner->decoded->buffer + skip,
                        vec->length);
        return 0;
    }
    if (!coroutine_self())
        return -EAGAIN;
    buffer = buffer_get(e->unit_length);
    if (!buffer)
        return -ENOMEM;
    err = owner->driver->decode(owner, e, buffer);
    if (err < 0) {
        buffer_put(buffer, e->unit_length);
        return err;
    }
    iov_from_buffer(vec->iov, vec->iovcnt, vec->offset, buffer + skip, vec->length);
    keep_decoded(owner, e, buffer);
    return 0;
}

int engine_read_child(struct node *child, struct vec vec, uint64_t offset)
{
    struct range_lock lock;
    int err;

    if (is_protocol(child))
        return protocol_read(child, vec, offset);
    if (is_filter(child))
        return filter_read(child, vec, offset);
    range_lock_shared(&child->locks, &lock, offset, vec.length);
    err = engine_read_locked(child, vec, offset);
    range_unlock(&child->locks, &lock);
    return err;
}

int engine_read_locked(struct node *node, struct vec vec, uint64_t offset)
{
    while (vec.length > 0) {
        struct location loc;
        struct vec piece;
        int err = locate(node, offset, vec.length, &loc);

        if (err < 0)
            return err;
        piece = vec_head(&vec, loc.extent.length);
        if (loc.extent.kind == EXTENT_ZERO)
            iov_fill(piece.iov, piece.iovcnt, piece.offset, piece.length, 0);
        else if (loc.extent.flags & EXTENT_ENCRYPTED)
            err = crypt_read(&loc.extent, piece);
        else if (loc.extent.kind == EXTENT_DATA)
            err = engine_read_child(loc.extent.child, piece, loc.extent.child_offset);
        else
            err = read_encoded(loc.owner, &loc.extent, &piece, loc.offset);
        if (err < 0)
            return err;
        vec_advance(&vec, piece.length);
        offset += piece.length;
    }
    return 0;
}

int block_readv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct vec vec = {iov, iovcnt, 0, iov_length(iov, iovcnt)};
    struct range_lock lock;
    int err;

    TRACE(block_read, "%s offset %" PRIu64 " length %zu", node_name(node), offset, vec.length);
    if (is_protocol(node))
        return protocol_read(node, vec, offset);
    if (!grows(node) && !range_within(offset, vec.length, node->size))
        return -EINVAL;
    if (is_filter(node))
        return filter_read(node, vec, offset);
    if (!needs_locks(node))
        return engine_read_locked(node, vec, offset);
    range_lock_shared(&node->locks, &lock, offset, vec.length);
    err = engine_read_locked(node, vec, offset);
    range_unlock(&node->locks, &lock);
    return err;
}

int block_read(struct node *node, void *buffer, size_t length, uint64_t offset)
{
    const struct iovec iov = {buffer, length};

    return block_readv(node, &iov, 1, offset);
}

int engine_child_read_nowait(struct node *child, void *buffer, size_t length, uint64_t offset)
{
    const struct iovec iov = {buffer, length};

    if (is_filter(child))
        return filter_read_nowait(child, buffer, length, offset);
    /* Direct I/O always goes through the engine. */
    if (!child->driver->preadv_nowait || child->request_alignment > 1)
        return -EAGAIN;
    return child->driver->preadv_nowait(child, &iov, 1, offset);
}

int block_read_nowait(struct node *node, void *buffer, size_t length, uint64_t offset)
{
    uint8_t *out = buffer;

    if (grows(node))
        return engine_child_read_nowait(node, buffer, length, offset);
    if (!range_within(offset, length, node->size))
        return -EINVAL;
    while (length > 0) {
        struct location loc;
        struct iovec iov = {out, 0};
        struct vec vec = {&iov, 1, 0, 0};
        int err = locate(node, offset, length, &loc);

        if (err < 0)
            return err;
        iov.iov_len = vec.length = loc.extent.length;
        if (loc.extent.kind == EXTENT_ZERO)
            memset(out, 0, vec.length);
        else if (loc.extent.flags & EXTENT_ENCRYPTED)
            err = crypt_read_nowait(&loc.extent, out, vec.length);
        else if (loc.extent.kind == EXTENT_DATA)
            err = engine_child_read_nowait(loc.extent.child, out, vec.length,
                                           loc.extent.child_offset);
        else
            err = read_encoded(loc.owner, &loc.extent, &vec, loc.offset);
        if (err < 0)
            return err;
        out += vec.length;
        offset += vec.length;
        length -= vec.length;
    }
    return 0;
}

/* A piece of a protocol node, or of what filters show; only those that need not see reads. */
static int resolve_child(struct node *child, uint64_t offset, uint64_t length,
                         struct block_extent *ret)
{
    for (; is_filter(child); child = child->file) {
        if (child->sees_reads || child->driver->preadv)
            return -ENOENT;
    }
    if (!is_protocol(child))
        return block_resolve(child, offset, length, ret);
    if (!child->driver->descriptor || child->request_alignment > 1 || offset >= child->size)
        return -ENOENT;
    ret->fd = child->driver->descriptor(child);
    ret->offset = offset;
    ret->length = min_u64(length, child->size - offset);
    return ret->fd < 0 ? -ENOENT : 0;
}

int block_resolve(struct node *node, uint64_t offset, uint64_t length, struct block_extent *ret)
{
    struct location loc;
    int err;

    if (is_protocol(node) || !range_within(offset, length, node->size) || length == 0)
        return -ENOENT;
    if (needs_locks(node) && !range_lock_is_free(&node->locks, offset, length))
        return -EAGAIN;
    err = locate(node, offset, length, &loc);
    if (err < 0)
        return err;
    if (loc.extent.kind != EXTENT_DATA || (loc.extent.flags & EXTENT_ENCRYPTED) || loc.reused ||
        !(is_protocol(loc.extent.child) || is_filter(loc.extent.child)))
        return -ENOENT;
    return resolve_child(loc.extent.child, loc.extent.child_offset, loc.extent.length, ret);
}

/* A protocol node's own answer: holes read as zeroes. `ret` has the length asked for. */
static int protocol_status(struct node *node, uint64_t offset, struct block_status *ret)
{
    struct extent e = {.kind = EXTENT_DATA, .length = ret->length};
    int err = 0;

    if (node->driver->map)
        err = node->driver->map(node, offset, ret->length, &e);
    ret->length = e.length;
    ret->flags |= e.kind == EXTENT_ZERO ? STATUS_ZERO : STATUS_DATA;
    return err;
}

/* What the child of the owner says, of as much as `ret` has. */
static int child_status(struct node *child, uint64_t offset, struct block_status *ret)
{
    unsigned above = ret->depth - 1;
    int err;

    child = filter_bottom(child);
    if (is_protocol(child))
        return protocol_status(child, offset, ret);
    err = block_get_status(child, offset, ret->length, ret);
    if (err == 0 && ret->depth > 0)
        ret->depth += above;
    return err;
}

static int status_once(struct node *node, uint64_t offset, uint64_t length,
                       struct block_status *ret)
{
    struct location loc;
    int err = locate(node, offset, length, &loc);

    if (err < 0)
        return err;
    *ret = (struct block_status){.length = loc.extent.length, .depth = loc.depth};
    if (loc.allocated)
        ret->flags |= STATUS_ALLOCATED;
    if (loc.extent.kind == EXTENT_ZERO) {
        ret->flags |= STATUS_ZERO;
        return 0;
    }
    /*
     * Where the format keeps no map of its own, the file's holes are the answer, unless they stand
     * for noise.
     */
    if (loc.extent.kind == EXTENT_DATA && !(loc.extent.flags & EXTENT_ENCRYPTED) &&
        !loc.owner->driver->allocate)
        return child_status(loc.extent.child, loc.extent.child_offset, ret);
    ret->flags |= STATUS_DATA;
    return 0;
}

int block_get_status(struct node *node, uint64_t offset, uint64_t length, struct block_status *ret)
{
    struct block_status next;
    struct range_lock lock;
    int err;

    if (length == 0 || !range_within(offset, length, node->size))
        return -EINVAL;
    if (is_protocol(node)) {
        *ret = (struct block_status){.length = length, .flags = STATUS_ALLOCATED, .depth = 1};
        return protocol_status(node, offset, ret);
    }
    range_lock_shared(&node->locks, &lock, offset, length);
    err = status_once(node, offset, length, ret);
    for (int i = 1; err == 0 && ret->length < length && i < STATUS_MAPS_MAX; i++) {
        /* What comes behind is a bonus: its error is for the one who asks for it. */
        if (status_once(node, offset + ret->length, length - ret->length, &next) < 0 ||
            next.flags != ret->flags || next.depth != ret->depth)
            break;
        ret->length += next.length;
    }
    range_unlock(&node->locks, &lock);
    return err;
}

/*
 * Where the bytes are another machine's, that one has them brought near, and they are not moved.
 * -ENOTSUP: they are here, or not plain.  Lets *length be how much was done.
 */
static int prefetch_elsewhere(struct node *node, uint64_t offset, uint64_t *length)
{
    struct range_lock lock;
    struct location loc;
    struct node *child;
    int err;

    range_lock_shared(&node->locks, &lock, offset, *length);
    err = locate(node, offset, *length, &loc);
    child = err == 0 && loc.extent.kind == EXTENT_DATA ? loc.extent.child : NULL;
    if (child && is_protocol(child) && child->driver->prefetch) {
        err = child->driver->prefetch(child, loc.extent.child_offset, loc.extent.length);
        *length = loc.extent.length;
    } else if (err == 0) {
        err = -ENOTSUP;
    }
    range_unlock(&node->locks, &lock);
    return err;
}

/* Reads a first part of the range, unless it is a hole. Returns its length or negative errno. */
static int64_t prefetch_part(struct node *node, uint64_t offset, uint64_t length, void *buffer)
{
    struct block_status status;
    uint64_t n = min_u64(length, BLOCK_PIECE_BYTES);
    int err;

    /* Where the status cannot be had, reading tells why. */
    if (block_get_status(node, offset, length, &status) == 0) {
        if (status.flags & STATUS_ZERO)
            return (int64_t)status.length;
        n = min_u64(n, status.length);
    }
    err = prefetch_elsewhere(node, offset, &n);
    if (err == -ENOTSUP)
        err = block_read(node, buffer, n, offset);
    return err < 0 ? err : (int64_t)n;
}

int block_prefetch(struct node *node, uint64_t offset, uint64_t length)
{
    uint64_t size = min_u64(length, BLOCK_PIECE_BYTES);
    void *buffer;
    int64_t n;

    if (!range_within(offset, length, node->size))
        return -EINVAL;
    if (length == 0 || (node->flags & NODE_NO_CACHE)) /* there is no cache to read into */
        return 0;
    buffer = buffer_get(size);
    if (!buffer)
        return -ENOMEM;
    while (length > 0) {
        n = prefetch_part(node, offset, length, buffer);
        if (n < 0)
            break;
        offset += n;
        length -= n;
        coroutine_yield();
    }
    buffer_put(buffer, size);
    return length > 0 ? (int)n : 0;
}
