/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine's face: reading and writing nodes.  One implementation for every format, on top
 * of map, allocate and commit.
 *
 * Offsets and lengths are bytes of any alignment; vectors have at most BLOCK_IOV_MAX elements.  All
 * functions run in a coroutine unless they say otherwise and return 0 or negative errno: -EINVAL a
 * range past the end, -ENOSPC a write past the end or a full disk, -EROFS a node that is not
 * writable, -EIO a broken image or device, -ENOTSUP fast zeroing that would be slow.
 */
#ifndef EVNBD_BLOCKCORE_BLOCK_H
#define EVNBD_BLOCKCORE_BLOCK_H

#include "blockcore/node.h"

#define BLOCK_IOV_MAX 16

enum {
    BLOCK_FUA = 1 << 8,      /* durable, with the metadata it needs, before the call returns */
    BLOCK_ALLOCATE = 1 << 9, /* zeroing: the range has storage afterwards, not for MAY_UNMAP */
};

/* Reads iov's length at `offset`. */
int block_readv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset);
int block_read(struct node *node, void *buffer, size_t length, uint64_t offset);

/*
 * Reads without waiting, on any stack: 0, or -EAGAIN when some of it is not at hand (then
 * block_read it in a coroutine), or another error, which is then the read's.
 */
int block_read_nowait(struct node *node, void *buffer, size_t length, uint64_t offset);

/* `flags`: BLOCK_FUA. */
int block_writev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset,
                 unsigned flags);
int block_write(struct node *node, const void *buffer, size_t length, uint64_t offset,
                unsigned flags);

/* Writes; but zeroes when there is nothing else to write. `flags`: BLOCK_FUA, ZERO_MAY_UNMAP. */
int block_writev_detecting(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset,
                           unsigned flags);

/*
 * Makes what a format node has from its backing node its own; reads of it show the same as before.
 * Does nothing where there is no backing node, or a format cannot allocate.
 */
int block_copy_up(struct node *node, uint64_t offset, uint64_t length);
/*
 * Whether there is nothing to copy: 1, 0 or negative errno; on any stack: -EAGAIN, without a
 * coroutine, when that cannot be told at once.
 */
int block_is_own(struct node *node, uint64_t offset, uint64_t length);

/*
 * Writes compressed.  The range is whole units of the node (compress_unit), but for one that the
 * disk ends in, else -EINVAL.  What does not get smaller is written as it is, zeroes are zeroed.
 * -ENOTSUP: the format, or the image, cannot. After an error any of the units may be written.
 */
int block_write_compressed(struct node *node, const void *buffer, size_t length, uint64_t offset);

/* The largest buffer of a zeroing or a prefetch, however long its range is. */
#define BLOCK_PIECE_BYTES (256 * KIB)

/*
 * `flags`: ZERO_MAY_UNMAP, ZERO_FAST, BLOCK_FUA, BLOCK_ALLOCATE.  `length` may exceed 4 GiB.  When
 * it fails with -ENOTSUP, which it does only with ZERO_FAST, nothing has changed.
 */
int block_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags);

/*
 * Makes storage for a range of the file below a format, so that a later write there does not end
 * with -ENOSPC; what it reads as stays.  The file may grow.  -ENOSPC: there is no room;
 * -EOPNOTSUPP: only writing there does that.
 */
int block_reserve(struct node *node, uint64_t offset, uint64_t length);

/* Advice; parts smaller than the node can discard are left alone. Nothing without NODE_UNMAP. */
int block_discard(struct node *node, uint64_t offset, uint64_t length, unsigned flags);

/*
 * Every write that had returned before the call is durable when it returns, with all metadata.
 * After a failed sync each later flush fails too.
 */
int block_flush(struct node *node);

/* Reads what is data into the page cache (NBD CACHE), if the node uses it; returns no data. */
int block_prefetch(struct node *node, uint64_t offset, uint64_t length);

enum {
    STATUS_DATA = 1 << 0,      /* the extent has data in some layer */
    STATUS_ZERO = 1 << 1,      /* it reads as zeroes */
    STATUS_ALLOCATED = 1 << 2, /* some layer of the chain has it (data, or explicit zeroes) */
};

struct block_status {
    uint64_t length; /* bytes from the offset asked for, at least 1 */
    unsigned flags;  /* STATUS_* */
    /*
     * Layer that has it: 1 the top, 2 its backing node...; 0: none.  A backing node that is shorter
     * than the one above it has the zeroes behind its end.
     */
    unsigned depth;
};

/* What is at `offset`: a first part of the range, neighbours with the same answer merged. */
int block_get_status(struct node *node, uint64_t offset, uint64_t length, struct block_status *ret);

/* A flat piece of an open file, for zero-copy sends. */
struct block_extent {
    int fd;
    uint64_t offset, length;
};

/*
 * Flattens the chain of maps at `offset` to a piece of a file, on any stack, without waiting.
 * The piece keeps its meaning, whatever is written, zeroed or discarded meanwhile: a peer may take
 * the bytes out of it long after they were sent.
 * Returns 0, -ENOENT (zeroes, encoded, storage that may be used for other data later: read it
 * instead) or -EAGAIN (tables are not at hand).
 */
int block_resolve(struct node *node, uint64_t offset, uint64_t length, struct block_extent *ret);

#endif
