/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine, writing side: overwriting in place, and copy-on-write, once for every format.
 *
 * A write first goes in place, under a shared range lock, as far as the map allows that.  What
 * cannot go in place is written under an exclusive lock on whole clusters: allocate gives the
 * place, the parts of the clusters that the request does not cover are filled from what the node
 * reads there now, one vectored write moves everything, and commit makes it reachable.  When
 * anything fails, abort gives the place back and the old contents stay.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/iov.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>

/* One allocating write: [offset, offset + length) of it is the guest's, the rest is filled up. */
struct cow {
    struct node *node;
    struct allocation place;
    struct vec vec; /* the guest's bytes */
    uint64_t offset;
    uint64_t head_length, tail_length; /* bytes of the clusters before and behind */
    uint8_t *head, *tail;
};

int engine_write_child(struct node *child, struct vec vec, uint64_t offset)
{
    if (is_protocol(child))
        return protocol_write(child, vec, offset);
    return is_filter(child) ? filter_write(child, vec, offset) : format_write(child, vec, offset);
}

static bool in_place(const struct extent *e)
{
    return e->kind == EXTENT_DATA && (e->flags & EXTENT_WRITABLE);
}

/* `vec` is as long as the extent, or ends within it. */
static int write_extent(const struct extent *e, struct vec vec)
{
    return e->flags & EXTENT_ENCRYPTED ? crypt_write(e, vec)
                                       : engine_write_child(e->child, vec, e->child_offset);
}

/*
 * Writes in place from the start of `vec` on, as far as it goes, and advances vec and *offset.
 * Returns 0 (vec may have bytes left) or negative errno.
 */
static int write_in_place(struct node *node, struct vec *vec, uint64_t *offset)
{
    while (vec->length > 0) {
        struct extent e;
        int err = node->driver->map(node, *offset, vec->length, &e);

        if (err < 0)
            return err;
        if (!in_place(&e))
            return 0;
        err = write_extent(&e, vec_head(vec, e.length));
        if (err < 0)
            return err;
        vec_advance(vec, e.length);
        *offset += e.length;
    }
    return 0;
}

/*
 * Fills `length` bytes with what the node reads at `offset` now; zeroes past the disk's end.
 * *ret stays NULL when they are zeroes and the storage reads as zeroes by itself.
 */
static int read_old(struct cow *cow, uint64_t offset, uint64_t length, uint8_t **ret)
{
    struct node *node = cow->node;
    uint64_t inside = offset < node->size ? min_u64(length, node->size - offset) : 0;
    uint8_t *buffer = buffer_get(length);
    const struct iovec iov = {buffer, length};
    const struct vec old = {&iov, 1, 0, inside};
    int err;

    if (!buffer)
        return -ENOMEM;
    err = engine_read_locked(node, old, offset);
    if (err < 0) {
        buffer_put(buffer, length);
        return err;
    }
    iov_fill(&iov, 1, inside, length - inside, 0);
    if (cow->place.reads_zero && bytes_are_zero(buffer, length))
        buffer_put(buffer, length);
    else
        *ret = buffer;
    return 0;
}

static int cow_fill(struct cow *cow)
{
    int err = 0;

    if (cow->head_length > 0)
        err = read_old(cow, cow->place.offset, cow->head_length, &cow->head);
    if (err == 0 && cow->tail_length > 0)
        err = read_old(cow, cow->offset + cow->vec.length, cow->tail_length, &cow->tail);
    return err;
}

static int cow_write(struct cow *cow)
{
    struct iovec iov[BLOCK_IOV_MAX];
    const struct allocation *place = &cow->place;
    struct extent to = {
        .kind = EXTENT_DATA,
        .flags = place->cipher ? EXTENT_ENCRYPTED : 0,
        .child = place->child,
        .child_offset = place->child_offset,
        .cipher = place->cipher,
        .cipher_offset = place->cipher_offset,
    };
    struct vec all = {iov, 0, 0, 0};
    int n;

    if (cow->head)
        iov[all.iovcnt++] = (struct iovec){cow->head, cow->head_length};
    else
        to.child_offset += cow->head_length; /* encrypted storage never reads as zeroes */
    n = iov_slice(iov + all.iovcnt, BLOCK_IOV_MAX - 2, cow->vec.iov, cow->vec.iovcnt,
                  cow->vec.offset, cow->vec.length);
    if (n < 0)
        return n;
    all.iovcnt += n;
    if (cow->tail)
        iov[all.iovcnt++] = (struct iovec){cow->tail, cow->tail_length};
    all.length = iov_length(iov, all.iovcnt);
    return write_extent(&to, all);
}

/*
 * Writes a first part of `vec` to new storage.  The exclusive lock on its clusters is held and the
 * first `unmapped` bytes cannot be written in place.  Returns the bytes written or negative errno.
 */
static int64_t write_new(struct node *node, const struct vec *vec, uint64_t offset,
                         uint64_t unmapped)
{
    uint32_t cluster = node->cluster_size;
    uint64_t start = align_down(offset, cluster), end = align_up(offset + unmapped, cluster);
    struct cow cow = {.node = node, .offset = offset};
    int err = node->driver->allocate(node, start, end - start, &cow.place);

    if (err < 0)
        return err;
    end = cow.place.offset + cow.place.length;
    cow.vec = vec_head(vec, min_u64(unmapped, end - offset));
    cow.head_length = offset - cow.place.offset;
    cow.tail_length = end - (offset + cow.vec.length);
    err = cow_fill(&cow);
    if (err == 0)
        err = cow_write(&cow);
    if (err == 0)
        err = node->driver->commit(node, &cow.place);
    if (err < 0)
        node->driver->abort(node, &cow.place);
    else
        engine_forget_decoded(node);
    buffer_put(cow.head, cow.head_length);
    buffer_put(cow.tail, cow.tail_length);
    return err < 0 ? err : (int64_t)cow.vec.length;
}

/* The same, on a full disk in what earlier requests have freed. */
static int64_t write_new_or_reclaim(struct node *node, const struct vec *vec, uint64_t offset,
                                    uint64_t unmapped)
{
    uint64_t generation = node->reclaim_generation;
    int64_t n = write_new(node, vec, offset, unmapped);

    return engine_reclaim(node, n, generation) ? write_new(node, vec, offset, unmapped) : n;
}

int format_write_locked(struct node *node, struct vec vec, uint64_t offset)
{
    while (vec.length > 0) {
        struct extent e;
        int64_t n;
        int err = write_in_place(node, &vec, &offset); /* another request may have allocated */

        if (err < 0 || vec.length == 0)
            return err;
        err = node->driver->map(node, offset, vec.length, &e);
        if (err < 0)
            return err;
        n = write_new_or_reclaim(node, &vec, offset, e.length);
        if (n < 0)
            return (int)n;
        vec_advance(&vec, n);
        offset += n;
    }
    return 0;
}

int format_write(struct node *node, struct vec vec, uint64_t offset)
{
    struct range_lock lock;
    int err;

    if (!node->driver->allocate && !node->encrypted) {
        err = write_in_place(node, &vec, &offset);
        return err == 0 && vec.length > 0 ? -EIO : err;
    }
    crypt_lock_write(node, &lock, offset, vec.length);
    err = track_change(node, offset, vec.length);
    if (err == 0)
        err = write_in_place(node, &vec, &offset);
    range_unlock(&node->locks, &lock);
    if (err < 0 || vec.length == 0)
        return err;
    if (!node->driver->allocate)
        return -EIO;
    lock_for_change(node, &lock, offset, vec.length);
    err = track_change(node, offset, vec.length);
    if (err == 0)
        err = format_write_locked(node, vec, offset);
    range_unlock(&node->locks, &lock);
    return err;
}

int block_writev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset,
                 unsigned flags)
{
    struct vec vec = {iov, iovcnt, 0, iov_length(iov, iovcnt)};
    int err = 0;

    TRACE(block_write, "%s offset %" PRIu64 " length %zu flags %#x", node_name(node), offset,
          vec.length, flags);
    if (!node_writable(node))
        return -EROFS;
    if (!grows(node) && !range_within(offset, vec.length, node->size))
        return -ENOSPC;
    if (vec.length > 0)
        err = engine_write_child(node, vec, offset);
    if (err == 0 && (flags & BLOCK_FUA))
        err = block_flush(node);
    return err;
}

int block_write(struct node *node, const void *buffer, size_t length, uint64_t offset,
                unsigned flags)
{
    const struct iovec iov = {(void *)(uintptr_t)buffer, length};

    return block_writev(node, &iov, 1, offset, flags);
}

int block_flush(struct node *node)
{
    int err = 0;

    if (!node_writable(node))
        return 0;
    if (is_protocol(node))
        return protocol_flush(node);
    if (is_filter(node))
        err = filter_before(node, OPERATION_FLUSH, 0, 0);
    else if (node->driver->flush)
        err = node->driver->flush(node);
    /* Tables that find no room stay in memory, which is enough for what will be lost anyway. */
    if (err == -ENOSPC && (node->flags & NODE_TEMPORARY))
        err = 0;
    if (err == 0 && node->file)
        err = block_flush(node->file);
    for (size_t i = 0; i < node->children_count && err == 0; i++)
        err = block_flush(node->children[i]);
    node->flush_failed |= err < 0;
    return err;
}
