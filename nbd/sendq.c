/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The output queue of a connection.
 *
 * Segments are a ring of small records.  A segment of memory belongs to a chunk (which counts its
 * segments) or is a buffer of its own; both go back to the buffer pool when their last byte is
 * sent. The current chunk has a reference of its own, which is dropped when the queue runs empty,
 * so an idle connection holds no chunk.  Chunks and buffers are charged to the connection's share.
 */
#include "nbd/sendq.h"

#include "base/buffer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RING_MIN 32
#define VECTORS_MAX 64
/* One call sends at most this much of a file, so that no client keeps the loop for long. */
#define FILE_BYTES_MAX (4 << 20)
#define ZEROES_BYTES (16 * 1024)

struct nbd_chunk {
    unsigned references; /* segments, and one while it is current */
    size_t used;         /* from the start of the chunk */
};

enum segment_kind { SEGMENT_MEMORY, SEGMENT_FILE, SEGMENT_ZEROES };

struct nbd_segment {
    enum segment_kind kind;
    int fd;        /* FILE */
    size_t length; /* bytes left to send */
    union {
        struct {
            const uint8_t *data;
            struct nbd_chunk *chunk; /* or NULL: a buffer of its own */
            void *buffer;            /* of buffer_length bytes, or NULL */
            size_t buffer_length;
        };
        struct {
            uint64_t offset; /* of the file */
            struct nbd_file_use use;
        };
    };
};

_Static_assert(NBD_RESERVE_MAX + sizeof(struct nbd_chunk) <= NBD_CHUNK_BYTES,
               "a chunk is too small");

void nbd_sendq_init(struct nbd_sendq *q, struct nbd_share *share)
{
    *q = (struct nbd_sendq){.share = share};
}

static struct nbd_segment *segment_at(const struct nbd_sendq *q, unsigned index)
{
    return &q->ring[(q->head + index) & (q->room - 1)];
}

static bool make_room(struct nbd_sendq *q)
{
    unsigned room = q->room ? 2 * q->room : RING_MIN;
    struct nbd_segment *ring;

    if (q->room - q->count > NBD_SEGMENTS_SURE)
        return true;
    ring = malloc(room * sizeof(*ring));
    if (!ring)
        return false;
    for (unsigned i = 0; i < q->count; i++)
        ring[i] = *segment_at(q, i);
    free(q->ring);
    q->ring = ring;
    q->room = room;
    q->head = 0;
    return true;
}

static void chunk_release(struct nbd_sendq *q, struct nbd_chunk *chunk)
{
    if (--chunk->references > 0)
        return;
    buffer_put(chunk, NBD_CHUNK_BYTES);
    nbd_share_give(q->share, NBD_CHUNK_BYTES);
}

static void drop_current_chunk(struct nbd_sendq *q)
{
    struct nbd_chunk *chunk = q->chunk;

    q->chunk = NULL;
    if (chunk)
        chunk_release(q, chunk);
}

static struct nbd_chunk *new_chunk(struct nbd_sendq *q)
{
    struct nbd_chunk *chunk = buffer_get(NBD_CHUNK_BYTES);

    drop_current_chunk(q);
    if (!chunk)
        return NULL;
    nbd_share_take(q->share, NBD_CHUNK_BYTES);
    chunk->references = 1;
    chunk->used = sizeof(*chunk);
    q->chunk = chunk;
    return chunk;
}

uint8_t *nbd_sendq_reserve(struct nbd_sendq *q, size_t length)
{
    struct nbd_chunk *chunk = q->chunk;

    if (!make_room(q))
        return NULL;
    if (!chunk || NBD_CHUNK_BYTES - chunk->used < length)
        chunk = new_chunk(q);
    return chunk ? (uint8_t *)chunk + chunk->used : NULL;
}

static struct nbd_segment *append(struct nbd_sendq *q, size_t length)
{
    struct nbd_segment *segment = segment_at(q, q->count++);

    *segment = (struct nbd_segment){.length = length};
    q->queued += length;
    return segment;
}

void nbd_sendq_commit(struct nbd_sendq *q, size_t length)
{
    struct nbd_chunk *chunk = q->chunk;
    uint8_t *at = (uint8_t *)chunk + chunk->used;
    struct nbd_segment *last = q->count ? segment_at(q, q->count - 1) : NULL;

    if (length == 0)
        return;
    chunk->used += length;
    if (last && last->kind == SEGMENT_MEMORY && last->chunk == chunk &&
        last->data + last->length == at) {
        last->length += length;
        q->queued += length;
        return;
    }
    last = append(q, length);
    last->data = at;
    last->chunk = chunk;
    chunk->references++;
}

static void own_buffer(struct nbd_sendq *q, struct nbd_segment *segment, void *buffer,
                       size_t length)
{
    nbd_share_take(q->share, length);
    segment->data = buffer;
    segment->buffer = buffer;
    segment->buffer_length = length;
}

void nbd_sendq_buffer(struct nbd_sendq *q, void *buffer, size_t length)
{
    own_buffer(q, append(q, length), buffer, length);
}

void nbd_sendq_file(struct nbd_sendq *q, const struct block_extent *file,
                    const struct nbd_file_use *use)
{
    struct nbd_segment *segment = append(q, file->length);

    segment->kind = SEGMENT_FILE;
    segment->fd = file->fd;
    segment->offset = file->offset;
    segment->use = *use;
}

static void release_first(struct nbd_sendq *q)
{
    struct nbd_segment *segment = segment_at(q, 0);

    q->head = (q->head + 1) & (q->room - 1);
    q->count--;
    if (segment->kind != SEGMENT_MEMORY)
        return;
    if (segment->chunk)
        chunk_release(q, segment->chunk);
    if (segment->buffer) {
        buffer_put(segment->buffer, segment->buffer_length);
        nbd_share_give(q->share, segment->buffer_length);
    }
}

/* `length` bytes from the front are sent. */
static void consume(struct nbd_sendq *q, size_t length)
{
    q->queued -= length;
    q->sent += length;
    while (length > 0) {
        struct nbd_segment *segment = segment_at(q, 0);
        size_t n = length < segment->length ? length : segment->length;

        if (segment->kind == SEGMENT_MEMORY) {
            segment->data += n;
        } else {
            segment->offset += n;
            segment->use.position += n;
        }
        segment->length -= n;
        length -= n;
        if (segment->length == 0)
            release_first(q);
    }
}

static void ran_empty(struct nbd_sendq *q)
{
    drop_current_chunk(q);
    if (q->room <= RING_MIN)
        return;
    free(q->ring);
    q->ring = NULL;
    q->room = q->head = 0;
}

void nbd_sendq_fini(struct nbd_sendq *q)
{
    while (q->count > 0)
        release_first(q);
    ran_empty(q);
    free(q->ring);
    q->ring = NULL;
    q->room = q->head = 0;
    q->queued = 0;
}

/* Sends the memory segments at the front. Sets *ret_asked to the bytes offered. */
static ssize_t send_memory(struct nbd_sendq *q, struct stream *stream, size_t *ret_asked)
{
    struct iovec iov[VECTORS_MAX];
    unsigned n = 0;

    *ret_asked = 0;
    for (; n < q->count && n < VECTORS_MAX; n++) {
        const struct nbd_segment *segment = segment_at(q, n);

        if (segment->kind != SEGMENT_MEMORY)
            break;
        iov[n].iov_base = (void *)(uintptr_t)segment->data;
        iov[n].iov_len = segment->length;
        *ret_asked += segment->length;
    }
    return stream->ops->send(stream, iov, (int)n, n < q->count);
}

static ssize_t send_file(struct nbd_sendq *q, struct stream *stream, size_t *ret_asked)
{
    const struct nbd_segment *segment = segment_at(q, 0);
    ssize_t n;

    *ret_asked = segment->length < FILE_BYTES_MAX ? segment->length : FILE_BYTES_MAX;
    n = stream->ops->send_file(stream, segment->fd, segment->offset, *ret_asked);
    return n == 0 ? -ENODATA : n;
}

static ssize_t send_zeroes(struct nbd_sendq *q, struct stream *stream, size_t *ret_asked)
{
    static const uint8_t zeroes[ZEROES_BYTES];
    struct iovec iov = {.iov_base = (void *)(uintptr_t)zeroes};

    iov.iov_len = *ret_asked = min_u64(segment_at(q, 0)->length, sizeof(zeroes));
    return stream->ops->send(stream, &iov, 1, q->count > 1);
}

static ssize_t send_front(struct nbd_sendq *q, struct stream *stream, size_t *ret_asked)
{
    switch (segment_at(q, 0)->kind) {
    case SEGMENT_FILE:
        return send_file(q, stream, ret_asked);
    case SEGMENT_ZEROES:
        return send_zeroes(q, stream, ret_asked);
    default:
        return send_memory(q, stream, ret_asked);
    }
}

int nbd_sendq_send(struct nbd_sendq *q, struct stream *stream)
{
    while (q->count > 0 && !q->blocked) {
        size_t asked;
        ssize_t n = send_front(q, stream, &asked);

        if (n < 0 && n != -EAGAIN)
            return (int)n;
        if (n > 0)
            consume(q, (size_t)n);
        q->blocked = n < 0 || (size_t)n < asked;
    }
    if (q->count == 0)
        ran_empty(q);
    return 0;
}

/* ---- Files that turn out to be unreadable ---- */

bool nbd_sendq_file_in_front(const struct nbd_sendq *q, struct nbd_file_use *ret)
{
    if (q->count == 0 || segment_at(q, 0)->kind != SEGMENT_FILE)
        return false;
    *ret = segment_at(q, 0)->use;
    return true;
}

/* Makes place for a segment before the index-th. The ring has room. */
static struct nbd_segment *insert(struct nbd_sendq *q, unsigned index, size_t length)
{
    append(q, length);
    for (unsigned i = q->count - 1; i > index; i--)
        *segment_at(q, i) = *segment_at(q, i - 1);
    *segment_at(q, index) = (struct nbd_segment){.length = length};
    return segment_at(q, index);
}

bool nbd_sendq_give_up_file(struct nbd_sendq *q, const void *notice, size_t length)
{
    void *buffer = buffer_get(length);
    unsigned i = 0;

    if (!buffer || !make_room(q)) {
        buffer_put(buffer, length);
        return false;
    }
    memcpy(buffer, notice, length);
    for (; i < q->count && segment_at(q, i)->kind == SEGMENT_FILE; i++)
        segment_at(q, i)->kind = SEGMENT_ZEROES;
    own_buffer(q, insert(q, i, length), buffer, length);
    return true;
}
