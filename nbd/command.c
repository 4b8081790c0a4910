/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Commands that are answered without data: those that change the disk, FLUSH, CACHE.
 *
 * A range may be as long as the disk, so TRIM, WRITE_ZEROES and CACHE are handed to the block layer
 * in pieces, and end between two of them when nobody is there any more who wants it done.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "blockcore/block.h"
#include "nbd/connection.h"
#include "nbd/job.h"
#include "nbd/slice.h"

#include <errno.h>
#include <string.h>

/*
 * Pieces start with this size, which is also the least, and grow while they take less than
 * PIECE_NS.  They end at multiples of PIECE_ALIGN, which no cluster crosses.
 */
#define PIECE_BYTES (UINT64_C(8) << 20)
#define PIECE_ALIGN (UINT64_C(4) << 20)
#define PIECE_NS INT64_C(50000000)
/* They grow up to this, or to what makes so many of a very long range. */
#define PIECE_BYTES_MAX (UINT64_C(4) << 30)
#define PIECES_WANTED 1024

/* Does what the job wants for a part of its range. 0 or negative errno. */
typedef int piece_function(struct nbd_job *job, uint64_t offset, uint64_t length);

/* A first part of a range of `left` bytes. The last one is no scrap, which could not be fast. */
static uint64_t cut_piece(uint64_t offset, uint64_t left, uint64_t size)
{
    if (left < size + 2 * PIECE_ALIGN)
        return left;
    return size + (PIECE_ALIGN - offset % PIECE_ALIGN) % PIECE_ALIGN;
}

/* The size of the next piece, after one that took so long. */
static uint64_t next_size(uint64_t size, int64_t took_ns, uint64_t most)
{
    if (took_ns < PIECE_NS)
        return min_u64(2 * size, most);
    return took_ns > 4 * PIECE_NS && size > PIECE_BYTES ? size / 2 : size;
}

static unsigned write_flags(const struct nbd_job *job)
{
    const struct nbd_export *e = job->connection->nbd_export;

    return job->request.flags & NBD_CMD_FLAG_FUA || e->write_through ? BLOCK_FUA : 0;
}

static unsigned zero_flags(const struct nbd_job *job)
{
    unsigned flags = write_flags(job);

    flags |= job->request.flags & NBD_CMD_FLAG_NO_HOLE ? BLOCK_ALLOCATE : ZERO_MAY_UNMAP;
    if (job->request.flags & NBD_CMD_FLAG_FAST_ZERO)
        flags |= ZERO_FAST;
    return flags;
}

static struct node *node_of(const struct nbd_job *job)
{
    return job->connection->nbd_export->node;
}

static int write_piece(struct nbd_job *job, uint64_t offset, uint64_t length)
{
    const struct nbd_export *e = job->connection->nbd_export;
    const struct iovec iov = {job->buffer, length};

    if (e->detect_zeroes)
        return block_writev_detecting(e->node, &iov, 1, offset,
                                      write_flags(job) |
                                          (e->detect_zeroes_unmap ? ZERO_MAY_UNMAP : 0));
    return block_writev(e->node, &iov, 1, offset, write_flags(job));
}

/* Of TRIM and WRITE_ZEROES, one flush behind the last piece makes up for FUA. */
static int discard_piece(struct nbd_job *job, uint64_t offset, uint64_t length)
{
    return block_discard(node_of(job), offset, length, 0);
}

static int zero_piece(struct nbd_job *job, uint64_t offset, uint64_t length)
{
    return block_zero(node_of(job), offset, length, zero_flags(job) & ~(unsigned)BLOCK_FUA);
}

static int prefetch_piece(struct nbd_job *job, uint64_t offset, uint64_t length)
{
    return block_prefetch(node_of(job), offset, length);
}

/* What the first bytes of the disk would be after that change. 0 or negative errno. */
static int preview(const struct nbd_job *job, uint64_t offset, uint64_t length, uint8_t *bytes,
                   size_t size)
{
    const struct nbd_export *e = job->connection->nbd_export;
    uint64_t at = e->header_offset + offset;
    size_t n = min_u64(length, size - at);
    int r = block_read(e->header_node, bytes, size, 0);

    if (r < 0)
        return r;
    if (job->buffer)
        memcpy(bytes + at, job->buffer, n);
    else
        memset(bytes + at, 0, n);
    return 0;
}

/* -EPERM when the change would make the disk look like an image format, see run_protected(). */
static int check_header(const struct nbd_job *job, uint64_t offset, uint64_t length)
{
    const struct nbd_export *e = job->connection->nbd_export;
    size_t size = min_u64(PROBE_BYTES, e->header_node->size);
    uint8_t *bytes = buffer_get(PROBE_BYTES);
    struct probe probe = {.data = bytes, .length = size, .file_size = e->header_node->size};
    int r;

    if (!bytes)
        return -ENOMEM;
    r = preview(job, offset, length, bytes, size);
    if (r == 0 && probe_shows_format(e->probe_drivers, &probe))
        r = -EPERM;
    buffer_put(bytes, PROBE_BYTES);
    return r;
}

/* A write has come with its data, and is done whoever is still there. */
static bool given_up(const struct nbd_job *job)
{
    return job->request.command != NBD_CMD_WRITE && nbd_connection_gives_up(job->connection);
}

/*
 * The disk was taken for raw because its first bytes show no format.  A client must not be able to
 * change that: the next open would follow a header, and backing files, that the client wrote.
 * Changes are checked one at a time, or two halves of a header would pass side by side.  While one
 * waits for its turn, its client may have left.
 */
static int run_protected(struct nbd_job *job, uint64_t offset, uint64_t length, piece_function *run)
{
    struct nbd_export *e = job->connection->nbd_export;
    int r;

    co_mutex_lock(&e->header_mutex);
    r = given_up(job) ? -ESHUTDOWN : check_header(job, offset, length);
    if (r == 0)
        r = run(job, offset, length);
    co_mutex_unlock(&e->header_mutex);
    return r;
}

/* Only the piece with the probed bytes waits for others: the rest of a long range may take hours.
 */
static int run_piece(struct nbd_job *job, uint64_t offset, uint64_t length, piece_function *run)
{
    const struct nbd_export *e = job->connection->nbd_export;

    if (given_up(job))
        return -ESHUTDOWN;
    if (run != prefetch_piece && e->header_node && e->header_offset + offset < PROBE_BYTES)
        return run_protected(job, offset, length, run);
    return run(job, offset, length);
}

/* Runs it for `length` bytes of the request's range. -ESHUTDOWN: it was given up in between. */
static int in_pieces(struct nbd_job *job, uint64_t length, piece_function *run)
{
    uint64_t at = job->request.offset, end = at + length, size = PIECE_BYTES;
    uint64_t most = length / PIECES_WANTED;
    struct nbd_slice slice;
    int r = 0;

    if (most < PIECE_BYTES_MAX)
        most = PIECE_BYTES_MAX;
    nbd_slice_begin(&slice);
    while (at < end && r == 0) {
        uint64_t n = cut_piece(at, end - at, size);
        int64_t began = sys->monotonic_ns();

        r = run_piece(job, at, n, run);
        at += n;
        size = next_size(size, sys->monotonic_ns() - began, most);
        nbd_slice_step(&slice);
    }
    return r;
}

static int change_in_pieces(struct nbd_job *job, piece_function *run)
{
    int r = in_pieces(job, job->request.length, run);

    return r == 0 && write_flags(job) & BLOCK_FUA ? block_flush(node_of(job)) : r;
}

int nbd_command_run(struct nbd_job *job)
{
    const struct nbd_request *request = &job->request;

    switch (request->command) {
    case NBD_CMD_FLUSH:
        return block_flush(node_of(job));
    case NBD_CMD_CACHE:
        return in_pieces(job, min_u64(request->length, NBD_CACHE_AT_ONCE), prefetch_piece);
    case NBD_CMD_WRITE:
        return run_piece(job, request->offset + job->written, job->received, write_piece);
    case NBD_CMD_TRIM:
        return change_in_pieces(job, discard_piece);
    default: /* WRITE_ZEROES */
        return change_in_pieces(job, zero_piece);
    }
}
