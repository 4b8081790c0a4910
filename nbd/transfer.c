/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests from the wire to their start, and replies.
 *
 * The hot path is a READ of what is in memory: it is read on the loop's stack straight into the
 * place in the output queue from which it is sent, without a coroutine and without a copy.  Large
 * ones are not even read: a piece of the page cache is sent from the file.  Everything else becomes
 * a job.
 */
#include "nbd/connection.h"

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/log.h"
#include "base/trace.h"
#include "blockcore/block.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Up to this length a READ is made in the output queue; beyond, in a buffer of its own. */
#define INLINE_MAX (64 * 1024)
/* A waited-for READ of at most this length is copied into the queue rather than sent in place. */
#define COPY_MAX (16 * 1024)
/* From this length on, sending from the file is cheaper than copying. */
#define SEND_FILE_MIN (32 * 1024)
/* One reply is put together from so many pieces of the file at most. */
#define SEND_FILE_PIECES (NBD_SEGMENTS_SURE - 1)
/* Distance of the samples by which a piece of a file is taken to be in the page cache. */
#define SAMPLE_BYTES (64 * 1024)

/* ---- Replies ---- */

/* Room for a reply header with `length` bytes of data behind it; NULL: the connection is over. */
static uint8_t *reserve(struct nbd_connection *c, size_t length)
{
    uint8_t *at = c->dead ? NULL : nbd_sendq_reserve(&c->out, NBD_SIMPLE_REPLY_BYTES + length);

    if (!at && !c->dead)
        nbd_connection_cut(c, "out of memory for a reply");
    return at;
}

/* Fills the header in at `at`, queues it and the `length` bytes behind it. */
static void commit(struct nbd_connection *c, const struct nbd_request *request, uint8_t *at,
                   uint32_t error, size_t length)
{
    nbd_simple_reply_encode(at, request->cookie, error);
    nbd_sendq_commit(&c->out, NBD_SIMPLE_REPLY_BYTES + length);
    TRACE(nbd_reply, "client %s: %s cookie %016" PRIx64 ": %s", c->peer,
          nbd_command_name(request->command), request->cookie, nbd_error_name(error));
    if (error != NBD_SUCCESS)
        return;
    if (request->command == NBD_CMD_READ)
        c->bytes_read += request->length;
    else if (request->command == NBD_CMD_WRITE)
        c->bytes_written += request->length;
}

void nbd_transfer_reply(struct nbd_connection *c, const struct nbd_request *request, uint32_t error)
{
    uint8_t *at = reserve(c, 0);

    if (!at)
        return;
    commit(c, request, at, error, 0);
    nbd_connection_queued(c);
}

void nbd_transfer_reply_data(struct nbd_connection *c, const struct nbd_request *request,
                             uint8_t *buffer)
{
    size_t length = request->length, copied = length <= COPY_MAX ? length : 0;
    uint8_t *at = reserve(c, copied);

    if (!at) {
        buffer_put(buffer, length);
        return;
    }
    memcpy(at + NBD_SIMPLE_REPLY_BYTES, buffer, copied);
    commit(c, request, at, NBD_SUCCESS, copied);
    if (copied)
        buffer_put(buffer, length);
    else
        nbd_sendq_buffer(&c->out, buffer, length);
    nbd_connection_queued(c);
}

/* ---- Reads that need not wait ---- */

/*
 * Sending from a file waits for what is not in the page cache, so that is sampled first.  A wrong
 * guess costs one wait for the disk, nothing else.
 */
static bool is_cached(struct node *node, uint64_t offset, uint64_t length)
{
    uint8_t byte;

    for (uint64_t at = 0; at < length; at += SAMPLE_BYTES) {
        if (block_read_nowait(node, &byte, 1, offset + at) < 0)
            return false;
    }
    return block_read_nowait(node, &byte, 1, offset + length - 1) == 0;
}

/* The pieces of files that make up the request. 0: it must be read. */
static unsigned resolve(struct node *node, const struct nbd_request *request,
                        struct block_extent *pieces)
{
    uint64_t done = 0;
    unsigned count = 0;

    while (done < request->length) {
        struct block_extent *piece = &pieces[count];

        if (count == SEND_FILE_PIECES ||
            block_resolve(node, request->offset + done, request->length - done, piece) < 0)
            return 0;
        piece->length = min_u64(piece->length, request->length - done);
        count++;
        done += piece->length;
    }
    return count;
}

bool nbd_transfer_send_file(struct nbd_connection *c, const struct nbd_request *request)
{
    struct node *node = c->nbd_export->node;
    struct block_extent pieces[SEND_FILE_PIECES];
    unsigned count;
    uint8_t *at;

    if (!c->stream->ops->send_file || request->length < SEND_FILE_MIN)
        return false;
    count = resolve(node, request, pieces);
    if (count == 0 || !is_cached(node, request->offset, request->length))
        return false;
    at = reserve(c, 0);
    if (!at)
        return true;
    commit(c, request, at, NBD_SUCCESS, 0);
    for (unsigned i = 0; i < count; i++)
        nbd_sendq_file(&c->out, pieces[i].fd, pieces[i].offset, pieces[i].length);
    nbd_connection_queued(c);
    return true;
}

/* Reads into the place in the queue. False: it would have to wait. */
static bool read_inline(struct nbd_connection *c, const struct nbd_request *request)
{
    size_t length = request->length;
    uint8_t *at = reserve(c, length);
    int r;

    if (!at)
        return true;
    r = block_read_nowait(c->nbd_export->node, at + NBD_SIMPLE_REPLY_BYTES, length,
                          request->offset);
    if (r == -EAGAIN) {
        nbd_sendq_commit(&c->out, 0);
        return false;
    }
    commit(c, request, at, nbd_error_from_errno(r), r < 0 ? 0 : length);
    nbd_connection_queued(c);
    return true;
}

static void start_read(struct nbd_connection *c, const struct nbd_request *request)
{
    struct nbd_job *job;
    uint8_t *buffer;

    if (nbd_transfer_send_file(c, request))
        return;
    if (request->length <= INLINE_MAX && read_inline(c, request))
        return;
    job = nbd_job_new(c, request, true);
    if (!job) {
        nbd_transfer_reply(c, request, NBD_ENOMEM);
        return;
    }
    if (request->length <= INLINE_MAX || request->length > NBD_READ_AT_ONCE ||
        block_read_nowait(c->nbd_export->node, job->buffer, request->length, request->offset) < 0) {
        nbd_job_start(job);
        return;
    }
    buffer = nbd_job_take_buffer(job);
    nbd_job_free(job);
    nbd_transfer_reply_data(c, request, buffer);
}

/* ---- Requests ---- */

/* A WRITE with the part of its payload that is there. Returns the bytes used. */
static size_t start_write(struct nbd_connection *c, const struct nbd_request *request,
                          const uint8_t *data, size_t length)
{
    size_t n = length < request->length ? length : request->length;
    struct nbd_job *job = nbd_job_new(c, request, true);

    if (!job) {
        nbd_transfer_reply(c, request, NBD_ENOMEM);
        c->discard = request->length;
        return 0;
    }
    memcpy(job->buffer, data, n);
    job->received = n;
    if (n == request->length) {
        nbd_job_start(job);
        return n;
    }
    c->receiving = job;
    c->large_writes = request->length >= 64 * 1024;
    return n;
}

static void start_other(struct nbd_connection *c, const struct nbd_request *request)
{
    struct nbd_job *job = nbd_job_new(c, request, false);

    if (job)
        nbd_job_start(job);
    else
        nbd_transfer_reply(c, request, NBD_ENOMEM);
}

/* Answers a request that is not run; its payload is skipped. */
static void answer(struct nbd_connection *c, const struct nbd_request *request, uint32_t error,
                   const char *why)
{
    uint64_t payload = nbd_request_payload(request);

    if (error != NBD_SUCCESS)
        log_debug("client %s: %s of %" PRIu64 " bytes at %" PRIu64
                  " with flags 0x%x refused: %s (%s)",
                  c->peer, nbd_command_name(request->command), request->length, request->offset,
                  request->flags, why, nbd_error_name(error));
    nbd_transfer_reply(c, request, error);
    if (payload > NBD_DISCARD_MAX)
        nbd_connection_end_input(c, "a WRITE of %" PRIu64 " bytes, which is not even skipped",
                                 payload);
    else
        c->discard = payload;
}

static uint32_t judge(const struct nbd_connection *c, const struct nbd_request *request,
                      const char **ret_why)
{
    if (c->stopping) {
        *ret_why = "the server is shutting down";
        return NBD_ESHUTDOWN;
    }
    return nbd_request_check(request, c->nbd_export, ret_why);
}

/* Whether the limits let this request in now. False: the connection is paused until they may. */
static bool admit(struct nbd_connection *c, const struct nbd_request *request)
{
    bool moves_data = request->command == NBD_CMD_READ || request->command == NBD_CMD_WRITE;
    uint64_t need = moves_data ? request->length : 0;

    if (c->turn_requests == 0 || c->turn_bytes == 0) {
        c->paused = true;
        reactor_defer(&c->turn);
        return false;
    }
    if (c->running >= NBD_CONNECTION_REQUESTS_MAX || nbd_connection_output_full(c) ||
        !nbd_share_may_take(&c->share, need)) {
        c->paused = true;
        return false;
    }
    c->turn_requests--;
    c->turn_bytes -= min_u64(need, c->turn_bytes);
    return true;
}

/* Starts one request. Returns how much of `data` was payload of it. */
static size_t start(struct nbd_connection *c, const struct nbd_request *request,
                    const uint8_t *data, size_t length)
{
    switch (request->command) {
    case NBD_CMD_READ:
        start_read(c, request);
        return 0;
    case NBD_CMD_WRITE:
        return start_write(c, request, data, length);
    default:
        start_other(c, request);
        return 0;
    }
}

/* One request whose header is there. Returns the bytes used; 0: it must wait. */
static size_t take_request(struct nbd_connection *c, const struct nbd_request *request,
                           const uint8_t *data, size_t length)
{
    const char *why;
    uint32_t error;

    if (request->command == NBD_CMD_DISC) {
        nbd_connection_end_input(c, "%s", "");
        return NBD_REQUEST_BYTES;
    }
    error = judge(c, request, &why);
    if (!admit(c, error ? &(struct nbd_request){.command = NBD_CMD_FLUSH} : request))
        return 0;
    TRACE(nbd_request,
          "client %s: %s flags 0x%x cookie %016" PRIx64 " offset %" PRIu64 " length %" PRIu64,
          c->peer, nbd_command_name(request->command), request->flags, request->cookie,
          request->offset, request->length);
    c->operations++;
    if (error || (request->length == 0 && request->command != NBD_CMD_FLUSH)) {
        answer(c, request, error, why);
        return NBD_REQUEST_BYTES;
    }
    return NBD_REQUEST_BYTES +
           start(c, request, data + NBD_REQUEST_BYTES, length - NBD_REQUEST_BYTES);
}

size_t nbd_transfer_input(struct nbd_connection *c, const uint8_t *data, size_t length)
{
    size_t used = min_u64(c->discard, length);

    c->discard -= used;
    while (!c->input_closed && !c->discard && length - used >= NBD_REQUEST_BYTES) {
        struct nbd_request request;
        size_t n;

        if (!nbd_request_decode(data + used, &request)) {
            nbd_connection_end_input(
                c, "a request began with 0x%08" PRIx32 " instead of its magic number",
                get_be32(data + used));
            break;
        }
        n = take_request(c, &request, data + used, length - used);
        if (n == 0)
            break;
        used += n;
    }
    return used;
}
