/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * READ.
 *
 * The hot path is a small READ of what is in memory: it is read on the loop's stack straight into
 * the place in the output queue from which it is sent, without a coroutine and without a copy.
 *
 * A larger one goes one of two ways.  As a whole, when the reply is a simple one or must not be
 * fragmented: sent from the file where that is possible, else through one buffer.  In parts, when
 * the reply may have chunks: a coroutine walks the range and queues holes and data as it finds
 * them, so that what can be read is sent although something behind it cannot.
 *
 * When memory is short a large READ is narrow: alone on its connection, it reads small parts and
 * sends them as the client takes them, so it gets by with memory that nobody else can hold.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "nbd/connection.h"
#include "nbd/job.h"
#include "nbd/reply.h"
#include "nbd/slice.h"

#include <errno.h>
#include <string.h>

/* From this length on, sending from the file is cheaper than copying. */
#define SEND_FILE_MIN (32 * 1024)
/* Distance of the samples by which a piece of a file is taken to be in the page cache. */
#define SAMPLE_BYTES (64 * 1024)
/* What cannot be read is looked for in parts of these sizes. */
#define SEARCH_COARSE (64 * 1024)
#define SEARCH_FINE 4096
/* While memory is short: what is left to send of the parts before when the next one is read. */
#define NARROW_QUEUED (NBD_NARROW_PART / 2)

static bool may_fragment(const struct nbd_connection *c, const struct nbd_request *request)
{
    return c->session.mode != NBD_MODE_SIMPLE && !(request->flags & NBD_CMD_FLAG_DF);
}

/* ---- Sending from files ---- */

/*
 * Sending from a file waits for what is not in the page cache, so that is sampled first.  A wrong
 * guess costs one wait for the disk, nothing else.
 */
static bool is_cached(struct node *node, const struct nbd_span *span)
{
    uint8_t byte;

    for (size_t at = 0; at < span->length; at += SAMPLE_BYTES) {
        if (block_read_nowait(node, &byte, 1, span->offset + at) < 0)
            return false;
    }
    return block_read_nowait(node, &byte, 1, span->offset + span->length - 1) == 0;
}

/* The pieces of files that make up the span, which is cut to what they are. Returns their number.
 */
static unsigned resolve(struct node *node, struct nbd_span *span, struct block_extent *files)
{
    size_t done = 0;
    unsigned count = 0;

    while (done < span->length && count < NBD_REPLY_FILES_MAX) {
        struct block_extent *file = &files[count];

        if (block_resolve(node, span->offset + done, span->length - done, file) < 0)
            break;
        file->length = min_u64(file->length, span->length - done);
        done += file->length;
        count++;
    }
    span->length = done;
    return count;
}

/* Asked first: what is too small for send_file() is the most frequent case. */
static bool wants_file(const struct nbd_connection *c, size_t length)
{
    return length >= SEND_FILE_MIN && c->stream && c->stream->ops->send_file;
}

/* Sends a first part of the span, or all of it if it must be `whole`. Cuts the span to it. */
static bool send_file(struct nbd_connection *c, const struct nbd_request *request,
                      struct nbd_span *span, bool whole)
{
    struct node *node = c->nbd_export->node;
    struct block_extent files[NBD_REPLY_FILES_MAX];
    struct nbd_span part = *span;
    unsigned count;

    count = resolve(node, &part, files);
    if (part.length < (whole ? span->length : SEND_FILE_MIN) || !is_cached(node, &part))
        return false;
    *span = part;
    nbd_reply_files(c, request, span, files, count,
                    span->offset + span->length == request->offset + request->length);
    return true;
}

/* ---- As a whole ---- */

/* Reads into the place in the queue. False: it would have to wait. */
static bool read_inline(struct nbd_connection *c, const struct nbd_request *request)
{
    uint8_t *data = nbd_reply_reserve(c, request);
    int r;

    if (!data)
        return true;
    r = block_read_nowait(c->nbd_export->node, data, request->length, request->offset);
    if (r == 0) {
        nbd_reply_commit(c, request, data);
        return true;
    }
    nbd_reply_release(c);
    /* Which part of it cannot be read is found out where there is time for that. */
    if (r == -EAGAIN || c->session.mode != NBD_MODE_SIMPLE)
        return false;
    nbd_reply_errno(c, request, r);
    return true;
}

/* The buffer has what was asked for. */
static void reply_whole(struct nbd_job *job)
{
    struct nbd_connection *c = job->connection;
    const struct nbd_request *request = &job->request;
    const struct nbd_span span = {request->offset, request->length};

    if (c->session.mode != NBD_MODE_SIMPLE && bytes_are_zero(job->buffer, span.length))
        nbd_reply_hole(c, request, &span, true);
    else
        nbd_reply_buffer(c, request, &span, nbd_job_take_buffer(job), true);
}

/* The reply is a simple one. */
static void start_simple(struct nbd_connection *c, const struct nbd_request *request)
{
    struct nbd_span span = {request->offset, request->length};
    struct nbd_job *job;

    if (wants_file(c, span.length) && send_file(c, request, &span, true)) {
        c->narrow = false;
        return;
    }
    if (request->length <= NBD_REPLY_INLINE_MAX && read_inline(c, request))
        return;
    job = nbd_job_new(c, request, c->narrow ? 0 : request->length);
    if (!job) {
        c->narrow = false;
        nbd_reply_errno(c, request, -ENOMEM);
        return;
    }
    if (c->narrow || request->length <= NBD_REPLY_INLINE_MAX ||
        request->length > NBD_READ_AT_ONCE ||
        block_read_nowait(c->nbd_export->node, job->buffer, request->length, request->offset) < 0) {
        nbd_job_start(job);
        return;
    }
    reply_whole(job);
    nbd_job_free(job);
}

/*
 * Reads all of it in small parts, and with `send` sends them as the client takes them.  Negative
 * errno: it cannot be read.
 */
static int read_narrow(struct nbd_job *job, bool send)
{
    struct nbd_connection *c = job->connection;
    uint64_t offset = job->request.offset, end = offset + job->request.length;
    struct nbd_slice slice;
    int r = 0;

    nbd_slice_begin(&slice);
    while (r == 0 && offset < end) {
        size_t n = min_u64(end - offset, NBD_NARROW_PART - offset % NBD_NARROW_PART);
        uint8_t *buffer;

        nbd_connection_await_sent(c, NARROW_QUEUED);
        if (c->dead)
            return -ESHUTDOWN;
        buffer = buffer_get(n);
        if (!buffer)
            return -ENOMEM;
        r = block_read(c->nbd_export->node, buffer, n, offset);
        if (r == 0 && send)
            nbd_reply_more(c, buffer, n);
        else
            buffer_put(buffer, n);
        offset += n;
        nbd_slice_step(&slice);
    }
    return r;
}

/*
 * The header promises all of the content, so it is read twice, first to see whether it can be.
 * What fails then all the same ends the connection.
 */
static void run_narrow(struct nbd_job *job)
{
    struct nbd_connection *c = job->connection;
    int r = read_narrow(job, false);

    if (r < 0) {
        nbd_reply_errno(c, &job->request, r);
        return;
    }
    nbd_reply_begin(c, &job->request);
    r = read_narrow(job, true);
    if (r < 0)
        nbd_connection_cut(c, "export '%s' failed in the middle of a reply: %s",
                           c->nbd_export->name, strerror(-r));
}

/* In pieces, so that what is in memory is not copied at the expense of everybody else's turn. */
static int read_whole(struct nbd_job *job)
{
    const struct nbd_request *request = &job->request;
    struct node *node = job->connection->nbd_export->node;
    uint64_t done = 0;
    int r = 0;

    if (!job->buffer && !nbd_job_get_buffer(job, request->length))
        return -ENOMEM;
    while (r == 0 && done < request->length) {
        size_t n = min_u64(request->length - done, NBD_READ_AT_ONCE);

        if (done > 0)
            coroutine_yield();
        if (job->connection->dead)
            return -ESHUTDOWN;
        r = block_read(node, job->buffer + done, n, request->offset + done);
        done += n;
    }
    return r;
}

/* A chunk that need not be read: a hole, or sent from a file. */
static bool reply_unread(struct nbd_job *job)
{
    struct nbd_connection *c = job->connection;
    struct nbd_span span = {job->request.offset, job->request.length};
    struct block_status status;

    if (block_get_status(c->nbd_export->node, span.offset, span.length, &status) == 0 &&
        status.length >= span.length && status.flags & STATUS_ZERO) {
        nbd_reply_hole(c, &job->request, &span, true);
        return true;
    }
    return wants_file(c, span.length) && send_file(c, &job->request, &span, true);
}

static void run_whole(struct nbd_job *job)
{
    int r;

    if (job->connection->session.mode != NBD_MODE_SIMPLE && reply_unread(job))
        return;
    if (job->connection->narrow) {
        run_narrow(job);
        return;
    }
    r = read_whole(job);
    if (r < 0)
        nbd_reply_errno(job->connection, &job->request, r);
    else
        reply_whole(job);
}

/* ---- In parts ---- */

/* The way through the range of one READ. */
struct walk {
    struct nbd_job *job;
    uint64_t offset, end; /* what is left */
    size_t part_max;      /* bytes that are read at once */
    bool searching;       /* ... which have become fewer, for what cannot be read */
};

static bool is_last(const struct walk *w, const struct nbd_span *span)
{
    return span->offset + span->length == w->end;
}

/* What is at w->offset: a part of what is left. Returns whether it reads as zeroes. */
static bool look(const struct walk *w, struct nbd_span *ret)
{
    struct block_status status;
    uint64_t left = w->end - w->offset;
    int r = block_get_status(w->job->connection->nbd_export->node, w->offset, left, &status);

    /* If the status cannot be had, reading will tell more about that. */
    *ret = (struct nbd_span){w->offset, r < 0 ? left : min_u64(status.length, left)};
    return r == 0 && status.flags & STATUS_ZERO;
}

static void send_hole(struct walk *w, const struct nbd_span *span)
{
    nbd_reply_hole(w->job->connection, &w->job->request, span, is_last(w, span));
    w->offset += span->length;
}

/* After a failure at w->offset: whether it is worth while to try a smaller part. */
static bool search(struct walk *w, size_t failed, int err)
{
    if (err != -EIO || failed <= SEARCH_FINE)
        return false;
    w->searching = true;
    w->part_max = failed > SEARCH_COARSE ? SEARCH_COARSE : SEARCH_FINE;
    return true;
}

/* Parts end at multiples of the largest size. */
static size_t cut_part(const struct walk *w, const struct nbd_span *span)
{
    return min_u64(span->length, w->part_max - span->offset % w->part_max);
}

/* Reads and sends a first part of the data in the span. Negative errno: it cannot be read. */
static int send_data(struct walk *w, struct nbd_span *span)
{
    struct nbd_connection *c = w->job->connection;
    uint8_t *buffer;
    int r;

    span->length = cut_part(w, span);
    buffer = buffer_get(span->length);
    if (!buffer)
        return -ENOMEM;
    r = block_read(c->nbd_export->node, buffer, span->length, span->offset);
    if (r < 0) {
        buffer_put(buffer, span->length);
        return search(w, span->length, r) ? 0 : r;
    }
    if (bytes_are_zero(buffer, span->length)) {
        buffer_put(buffer, span->length);
        send_hole(w, span);
        return 0;
    }
    if (!c->narrow) /* there it is what the next part is charged with */
        nbd_job_uncharge(w->job, span->length);
    nbd_reply_buffer(c, &w->job->request, span, buffer, is_last(w, span));
    w->offset += span->length;
    return 0;
}

static int send_part(struct walk *w)
{
    struct nbd_connection *c = w->job->connection;
    struct nbd_span span;

    if (look(w, &span)) {
        send_hole(w, &span);
        return 0;
    }
    if (!w->searching && wants_file(c, span.length) &&
        send_file(c, &w->job->request, &span, false)) {
        w->offset += span.length;
        return 0;
    }
    return send_data(w, &span);
}

static void run_in_parts(struct nbd_job *job)
{
    const struct nbd_request *request = &job->request;
    struct nbd_connection *c = job->connection;
    struct walk w = {job, request->offset, request->offset + request->length,
                     c->narrow ? NBD_NARROW_PART : NBD_READ_AT_ONCE, false};
    struct nbd_slice slice;
    int r = 0;

    nbd_slice_begin(&slice);
    while (r == 0 && w.offset < w.end && !c->dead) {
        if (c->narrow)
            nbd_connection_await_sent(c, NARROW_QUEUED);
        r = send_part(&w);
        nbd_slice_step(&slice);
    }
    if (r < 0)
        nbd_reply_errno_at(c, request, r, w.offset);
}

/* The reply is made of chunks, or of one when they must be a whole. */
static void start_chunks(struct nbd_connection *c, const struct nbd_request *request)
{
    struct nbd_job *job;

    if (request->length <= NBD_REPLY_INLINE_MAX && read_inline(c, request))
        return;
    job = nbd_job_new(c, request, 0);
    if (job) {
        nbd_job_start(job);
        return;
    }
    c->narrow = false;
    nbd_reply_errno(c, request, -ENOMEM);
}

/* ---- Both ---- */

void nbd_read_start(struct nbd_connection *c, const struct nbd_request *request)
{
    if (c->session.mode == NBD_MODE_SIMPLE)
        start_simple(c, request);
    else
        start_chunks(c, request);
}

void nbd_read_run(struct nbd_job *job)
{
    if (may_fragment(job->connection, &job->request))
        run_in_parts(job);
    else
        run_whole(job);
}
