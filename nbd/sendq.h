/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a connection has to send, in order: replies collected in large chunks of memory, whole
 * buffers, and pieces of files.  Pieces of files lie between segments of memory: a reply has a
 * header.
 *
 * Small replies are written in place: reserve room, fill it, commit.  Replies that lie side by side
 * become one vector of the gathered send.  A reservation lasts no longer than the caller's turn on
 * the stack: nothing else may use the queue before it is committed.
 */
#ifndef EVNBD_NBD_SENDQ_H
#define EVNBD_NBD_SENDQ_H

#include "base/stream.h"
#include "blockcore/block.h"
#include "nbd/memory.h"

#define NBD_CHUNK_BYTES (256 * 1024)
/* The largest reservation. */
#define NBD_RESERVE_MAX (NBD_CHUNK_BYTES - 64)
/* Segments that may follow a reservation without being refused for lack of memory. */
#define NBD_SEGMENTS_SURE 16

struct nbd_chunk;
struct nbd_segment;

/* What a piece of a file is sent for: a READ, and where in the export the piece begins. */
struct nbd_file_use {
    uint64_t cookie, request_offset;
    uint64_t position;
};

struct nbd_sendq {
    struct nbd_share *share;  /* charged with chunks and buffers */
    struct nbd_segment *ring; /* `count` segments from `head` on, of `room` (a power of two) */
    unsigned head, count, room;
    struct nbd_chunk *chunk; /* where reservations are made, or NULL */
    uint64_t queued;         /* bytes not yet sent, those of files included */
    uint64_t sent;           /* bytes sent since the start */
    bool blocked;            /* the peer's window is full: wait until it is writable */
};

void nbd_sendq_init(struct nbd_sendq *q, struct nbd_share *share);
/* Drops what is queued. */
void nbd_sendq_fini(struct nbd_sendq *q);

/* Room for `length` (at most NBD_RESERVE_MAX) bytes, or NULL: out of memory. */
uint8_t *nbd_sendq_reserve(struct nbd_sendq *q, size_t length);
/* Queues the first `length` bytes of the last reservation; 0 gives it back. */
void nbd_sendq_commit(struct nbd_sendq *q, size_t length);
/* Queues `length` bytes of `buffer`, taken over, which came from buffer_get(length). */
void nbd_sendq_buffer(struct nbd_sendq *q, void *buffer, size_t length);
/* Queues a piece of an open file, which must not be closed while it is queued. */
void nbd_sendq_file(struct nbd_sendq *q, const struct block_extent *file,
                    const struct nbd_file_use *use);

/*
 * Sends as much as the stream takes.  Returns 0 (then all was sent, or q->blocked is set) or
 * negative errno; -ENODATA: a file was shorter than the piece of it that was promised; -EIO with a
 * file in front: it cannot be read.
 */
int nbd_sendq_send(struct nbd_sendq *q, struct stream *stream);

/* Whether a file is next to be sent; *ret: what for, and from where on. */
bool nbd_sendq_file_in_front(const struct nbd_sendq *q, struct nbd_file_use *ret);
/*
 * Sends zeroes for the files in front, which are one part of a reply, and `notice` after them.
 * False: out of memory.
 */
bool nbd_sendq_give_up_file(struct nbd_sendq *q, const void *notice, size_t length);

#endif
