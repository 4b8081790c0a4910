/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * I/O of protocol nodes: what a driver's preadv and pwritev leave to the core.
 *
 * Alignment: with O_DIRECT, offset, length and memory must be multiples of request_alignment.  What
 * is not goes through an aligned buffer.  A write that covers blocks only in part reads them first,
 * and holds an exclusive range lock on them; all other writes to such a node hold shared ones, so
 * that a read-modify-write never puts back what another write has just replaced.
 *
 * Generations: write_generation counts changes that have ended.  A sync covers the changes that had
 * ended when it began, so a flush that finds them covered by a sync that began later than they
 * ended need not sync again, and flushes that arrive together share one sync.
 */
#include "base/buffer.h"
#include "base/iov.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>

static bool vec_aligned(const struct vec *vec, uint64_t offset, uint32_t align)
{
    struct iovec iov[BLOCK_IOV_MAX];
    int n;

    if (!is_aligned(offset | vec->length, align))
        return false;
    n = iov_slice(iov, BLOCK_IOV_MAX, vec->iov, vec->iovcnt, vec->offset, vec->length);
    for (int i = 0; i < n; i++) {
        if (!is_aligned((uintptr_t)iov[i].iov_base | iov[i].iov_len, align))
            return false;
    }
    return n > 0;
}

int engine_transfer(int (*call)(struct node *, const struct iovec *, int, uint64_t),
                    struct node *node, const struct vec *vec, uint64_t offset)
{
    struct iovec iov[BLOCK_IOV_MAX];
    int n;

    if (vec->iovcnt == 1) {
        iov[0].iov_base = (uint8_t *)vec->iov[0].iov_base + vec->offset;
        iov[0].iov_len = vec->length;
        return call(node, iov, 1, offset);
    }
    n = iov_slice(iov, BLOCK_IOV_MAX, vec->iov, vec->iovcnt, vec->offset, vec->length);
    return n < 0 ? n : call(node, iov, n, offset);
}

static int read_aligned(struct node *node, void *buffer, size_t length, uint64_t offset)
{
    const struct iovec iov = {buffer, length};

    return node->driver->preadv(node, &iov, 1, offset);
}

int protocol_read(struct node *node, struct vec vec, uint64_t offset)
{
    uint32_t align = node->request_alignment;
    uint64_t start, end;
    uint8_t *buffer;
    int err;

    if (vec.length == 0)
        return 0;
    if (align <= 1 || vec_aligned(&vec, offset, align))
        return engine_transfer(node->driver->preadv, node, &vec, offset);
    start = align_down(offset, align);
    end = align_up(offset + vec.length, align);
    buffer = buffer_get(end - start);
    if (!buffer)
        return -ENOMEM;
    err = read_aligned(node, buffer, end - start, start);
    if (err == 0)
        iov_from_buffer(vec.iov, vec.iovcnt, vec.offset, buffer + (offset - start), vec.length);
    buffer_put(buffer, end - start);
    return err;
}

/* Blocks written in part keep what they had: reads the first and the last one into the buffer. */
static int read_edges(struct node *node, uint8_t *buffer, uint64_t start, uint64_t end,
                      uint64_t offset, uint64_t length)
{
    uint32_t align = node->request_alignment;
    int err = 0;

    if (offset > start || end - start == align)
        err = read_aligned(node, buffer, align, start);
    if (err == 0 && offset + length < end && end - start > align)
        err = read_aligned(node, buffer + (end - start - align), align, end - align);
    return err;
}

/* Writes through an aligned buffer. The exclusive lock is held (see lock_bounced). */
static int write_bounced(struct node *node, const struct vec *vec, uint64_t offset, uint64_t start,
                         uint64_t end)
{
    uint64_t size = max_u64(node->size, offset + vec->length), length = end - start;
    uint8_t *buffer = buffer_get(length);
    struct iovec iov = {buffer, length};
    int err;

    if (!buffer)
        return -ENOMEM;
    err = read_edges(node, buffer, start, end, offset, vec->length);
    if (err == 0) {
        iov_to_buffer(buffer + (offset - start), vec->iov, vec->iovcnt, vec->offset, vec->length);
        err = node->driver->pwritev(node, &iov, 1, start);
    }
    buffer_put(buffer, length);
    /* A file whose size is no multiple of the block keeps its size to the byte. */
    if (err == 0 && end > size && node->driver->resize)
        err = node->driver->resize(node, size, NULL);
    return err;
}

/*
 * Locks the blocks of a read-modify-write.  One that passes the end of the file locks all that lies
 * behind, too: it may cut the file to its length again, which no write beyond must see.
 */
static void lock_bounced(struct node *node, struct range_lock *lock, uint64_t start, uint64_t end)
{
    bool to_the_end;

    for (;;) {
        to_the_end = end > node->size;
        range_lock_exclusive(&node->locks, lock, start, (to_the_end ? OFFSET_MAX : end) - start);
        if (to_the_end || end <= node->size)
            return;
        range_unlock(&node->locks, lock);
    }
}

int protocol_write(struct node *node, struct vec vec, uint64_t offset)
{
    uint32_t align = node->request_alignment;
    struct range_lock lock;
    uint64_t start, end;
    int err;

    if (vec.length == 0)
        return 0;
    if (align <= 1) {
        err = engine_transfer(node->driver->pwritev, node, &vec, offset);
        node->write_generation++;
        return err;
    }
    start = align_down(offset, align);
    end = align_up(offset + vec.length, align);
    if (vec_aligned(&vec, offset, align)) {
        range_lock_shared(&node->locks, &lock, start, end - start);
        err = engine_transfer(node->driver->pwritev, node, &vec, offset);
    } else {
        lock_bounced(node, &lock, start, end);
        err = write_bounced(node, &vec, offset, start, end);
    }
    range_unlock(&node->locks, &lock);
    node->write_generation++;
    return err;
}

int protocol_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int err = -ENOTSUP;

    if (length == 0)
        return 0;
    if (node->driver->zero && is_aligned(offset | length, node->request_alignment)) {
        struct range_lock lock;

        range_lock_shared(&node->locks, &lock, offset, length); /* see protocol_write */
        err = node->driver->zero(node, offset, length, flags);
        range_unlock(&node->locks, &lock);
        node->write_generation++;
    }
    if (err == -EOPNOTSUPP && !(flags & ZERO_FAST))
        err = write_zero_data(node, offset, length);
    return err;
}

int protocol_discard(struct node *node, uint64_t offset, uint64_t length)
{
    struct range_lock lock;
    int err;

    if (!node->driver->discard || length == 0)
        return 0;
    range_lock_shared(&node->locks, &lock, offset, length);
    err = node->driver->discard(node, offset, length);
    range_unlock(&node->locks, &lock);
    node->write_generation++;
    return err == -EOPNOTSUPP ? 0 : err;
}

static int sync_now(struct node *node)
{
    uint64_t generation = node->write_generation;
    int err;

    node->flush_running = true;
    err = node->driver->flush(node);
    node->flush_running = false;
    /*
     * The kernel reports a failed write-back once and may drop the dirty pages, so a later sync
     * that succeeds proves nothing: the failure is final.
     */
    if (err < 0 && err != -ENOTCONN) /* that a server was away says nothing of the next sync */
        node->flush_error = -EIO;
    else if (err == 0)
        node->flushed_generation = max_u64(node->flushed_generation, generation);
    co_queue_wake_all(&node->flush_queue);
    return err < 0 ? -EIO : 0;
}

int protocol_flush(struct node *node)
{
    uint64_t wanted = node->write_generation;

    if (!node->driver->flush || (node->flags & NODE_NO_FLUSH))
        return 0;
    while (node->flush_error == 0 && node->flushed_generation < wanted) {
        if (!node->flush_running)
            return sync_now(node);
        co_queue_wait(&node->flush_queue);
    }
    TRACE(block_flush, "%s generation %" PRIu64 " is covered", node_name(node), wanted);
    return node->flush_error;
}
