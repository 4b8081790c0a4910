/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the data engine share; not for drivers. */
#ifndef EVNBD_BLOCKCORE_ENGINE_H
#define EVNBD_BLOCKCORE_ENGINE_H

#include "blockcore/block.h"

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

/* Whether the mapping of the node can change under a request: then range locks are needed. */
static inline bool needs_locks(const struct node *node)
{
    return node->driver->allocate != NULL && node_writable(node);
}

/* read.c: reads without taking the node's range lock: the caller holds one that covers it. */
int engine_read_locked(struct node *node, struct vec vec, uint64_t offset);
/* Forgets the decoded unit: the mapping of the node has changed. */
void engine_forget_decoded(struct node *node);

/* protocol_io.c: I/O of protocol nodes, with alignment and generations. */
int protocol_read(struct node *node, struct vec vec, uint64_t offset);
int protocol_write(struct node *node, struct vec vec, uint64_t offset);
int protocol_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags);
int protocol_discard(struct node *node, uint64_t offset, uint64_t length);
int protocol_flush(struct node *node);

/* write.c: writes to a format node, with the locks that it needs. The range was checked. */
int format_write(struct node *node, struct vec vec, uint64_t offset);

/* zero.c: writes zeroes as data, in pieces. */
int write_zero_data(struct node *node, uint64_t offset, uint64_t length);

#endif
