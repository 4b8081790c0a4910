/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the data engine share; not for drivers. */
#ifndef EVNBD_BLOCKCORE_ENGINE_H
#define EVNBD_BLOCKCORE_ENGINE_H

#include "blockcore/block.h"
#include "blockcore/filter.h"

/* The last unit that was decoded; `buffer` has `length` bytes. */
struct decoded_unit {
    const struct node *child;
    uint64_t child_offset; /* names the unit together with its guest offset */
    uint64_t offset, length;
    uint8_t *buffer;
};

/* A piece of vectors: [offset, offset + length) of iov. */
struct vec {
    const struct iovec *iov;
    int iovcnt;
    size_t offset, length;
};

/* The first `length` bytes of `vec`. */
static inline struct vec vec_head(const struct vec *vec, size_t length)
{
    return (struct vec){vec->iov, vec->iovcnt, vec->offset, length};
}

/* Moves `vec` on by `length` bytes. */
static inline void vec_advance(struct vec *vec, size_t length)
{
    vec->offset += length;
    vec->length -= length;
}

static inline bool is_protocol(const struct node *node)
{
    return node->driver->kind == DRIVER_PROTOCOL;
}

/* Whether writes behind the end let the node grow; else its size is a bound. */
static inline bool grows(const struct node *node)
{
    return is_protocol(filter_bottom(node));
}

/*
 * Whether the mapping of the node can change under a request, or a write of a part of a sector may
 * write all of it: then range locks are needed.
 */
static inline bool needs_locks(const struct node *node)
{
    return (node->driver->allocate != NULL || node->encrypted) && node_writable(node);
}

/* Before contents change, under the range lock: lets the driver record it. */
static inline int track_change(struct node *node, uint64_t offset, uint64_t length)
{
    return node->tracks_changes ? node->driver->track(node, offset, length) : 0;
}

/* Takes an exclusive lock for a change of allocation in the range: on whole units of lock_size. */
static inline void lock_for_change(struct node *node, struct range_lock *lock, uint64_t offset,
                                   uint64_t length)
{
    uint64_t start = align_down(offset, node->lock_size);

    range_lock_exclusive(&node->locks, lock, start,
                         align_up(offset + length, node->lock_size) - start);
}

/* read.c: reads without taking the node's range lock: the caller holds one that covers it. */
int engine_read_locked(struct node *node, struct vec vec, uint64_t offset);
/* Forgets the decoded unit: the mapping of the node has changed. */
void engine_forget_decoded(struct node *node);

/*
 * crypt.c: extents that are encrypted.  Reads and writes of any alignment; a write that covers
 * sectors in part holds an exclusive lock on all of them.  -EACCES without a key.
 */
int crypt_read(const struct extent *e, struct vec vec);
/* Into one buffer, without waiting: -EAGAIN when that cannot be done at once. */
int crypt_read_nowait(const struct extent *e, uint8_t *out, size_t length);
int crypt_write(const struct extent *e, struct vec vec);
/* Locks what a write in place needs: sectors that it covers in part are read before, and written.
 */
void crypt_lock_write(struct node *node, struct range_lock *lock, uint64_t offset, uint64_t length);

/*
 * reserve.c: a request ended with `err`, before which node->reclaim_generation was `generation`.
 * Whether it is to be tried again: the disk was full, and something has been given back since.
 */
bool engine_reclaim(struct node *node, int64_t err, uint64_t generation);

/* read.c: reads a child, whatever it is, with the lock that it needs. */
int engine_read_child(struct node *child, struct vec vec, uint64_t offset);
/* -EAGAIN when it is not all there, or the child is a format. */
int engine_child_read_nowait(struct node *child, void *buffer, size_t length, uint64_t offset);
/* write.c: writes a child, whatever it is. */
int engine_write_child(struct node *child, struct vec vec, uint64_t offset);

/* zero.c: zeroes or discards in a child, whatever it is; `flags` as for block_zero, without FUA. */
int engine_zero_child(struct node *child, uint64_t offset, uint64_t length, unsigned flags);
int engine_discard_child(struct node *child, uint64_t offset, uint64_t length);

/*
 * filter.c: passes requests of a filter on to its file, with what its driver does about them.  The
 * nowait functions are for the loop's stack.
 */
int filter_read(struct node *node, struct vec vec, uint64_t offset);
int filter_read_nowait(struct node *node, void *buffer, size_t length, uint64_t offset);
int filter_write(struct node *node, struct vec vec, uint64_t offset);
int filter_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags);
int filter_discard(struct node *node, uint64_t offset, uint64_t length);
int filter_before(struct node *node, enum block_operation operation, uint64_t offset,
                  uint64_t length);

/* protocol_io.c: calls preadv or pwritev of a driver with the piece of vectors that `vec` is. */
int engine_transfer(int (*call)(struct node *, const struct iovec *, int, uint64_t),
                    struct node *node, const struct vec *vec, uint64_t offset);

/* protocol_io.c: I/O of protocol nodes, with alignment and generations. */
int protocol_read(struct node *node, struct vec vec, uint64_t offset);
int protocol_write(struct node *node, struct vec vec, uint64_t offset);
int protocol_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags);
int protocol_discard(struct node *node, uint64_t offset, uint64_t length);
int protocol_flush(struct node *node);

/* write.c: writes to a format node, with the locks that it needs. The range was checked. */
int format_write(struct node *node, struct vec vec, uint64_t offset);
/* The same for a format that allocates; the caller holds an exclusive lock on all the clusters. */
int format_write_locked(struct node *node, struct vec vec, uint64_t offset);

/* The same for zeroes, in pieces. */
int write_zeroes_locked(struct node *node, uint64_t offset, uint64_t length);

/* zero.c: writes zeroes as data, in pieces. */
int write_zero_data(struct node *node, uint64_t offset, uint64_t length);

#endif
