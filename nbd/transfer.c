/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests from the wire to their start: decoded, judged, let in as the limits allow, and begun.
 *
 * Only the payload of a WRITE is not waited for as a whole: it goes into the buffer of its job as
 * it comes.
 */
#include "base/bytes.h"
#include "base/trace.h"
#include "nbd/connection.h"
#include "nbd/job.h"
#include "nbd/reply.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* A WRITE with the part of its payload that is there. Returns the bytes used. */
static size_t start_write(struct nbd_connection *c, const struct nbd_request *request,
                          const uint8_t *data, size_t length)
{
    size_t n = length < request->length ? length : request->length;
    struct nbd_job *job = nbd_job_new(c, request, request->length);

    if (!job) {
        nbd_reply_errno(c, request, -ENOMEM);
        nbd_payload_discard(c, request->length);
        return 0;
    }
    memcpy(job->buffer, data, n);
    job->received = n;
    if (n == request->length) {
        nbd_job_start(job);
        return n;
    }
    nbd_payload_begin(c, job);
    c->large_writes = request->length >= 64 * 1024;
    return n;
}

static void start_other(struct nbd_connection *c, const struct nbd_request *request)
{
    bool status = request->command == NBD_CMD_BLOCK_STATUS;
    struct nbd_job *job = nbd_job_new(c, request, status ? nbd_status_bytes(request) : 0);

    if (job)
        nbd_job_start(job);
    else
        nbd_reply_errno(c, request, -ENOMEM);
}

/* Skips the payload of a request that is not run. */
static void skip_payload(struct nbd_connection *c, const struct nbd_request *request)
{
    if (request->payload > NBD_DISCARD_MAX)
        nbd_connection_end_input(
            c, "a %s with a payload of %" PRIu64 " bytes, which is not even skipped",
            nbd_command_name(request->command), request->payload);
    else
        nbd_payload_discard(c, request->payload);
}

static void refuse(struct nbd_connection *c, const struct nbd_request *request, uint32_t error,
                   const char *why)
{
    log_limited(&c->owner->log_invalid,
                "client %s: %s of %" PRIu64 " bytes at %" PRIu64
                " with flags 0x%x refused: %s (%s)",
                c->peer, nbd_command_name(request->command), request->length, request->offset,
                request->flags, why, nbd_error_name(error));
    nbd_reply_error(c, request, error, why);
    skip_payload(c, request);
}

static uint32_t judge(const struct nbd_connection *c, const struct nbd_request *request,
                      const char **ret_why)
{
    if (c->stopping) {
        *ret_why = "the server is shutting down";
        return NBD_ESHUTDOWN;
    }
    return nbd_request_check(request, c->nbd_export, &c->session, ret_why);
}

/*
 * Whether a READ that memory is too short for begins all the same, in small parts: only when it is
 * alone, since nothing else may come between the parts of its reply.
 */
static bool goes_narrow(const struct nbd_connection *c, const struct nbd_request *request)
{
    return request->command == NBD_CMD_READ && c->running == 0 &&
           nbd_share_is_short(&c->share, request->length);
}

/* Whether the limits let this request in now. False: the connection is paused until they may. */
static bool admit(struct nbd_connection *c, const struct nbd_request *request)
{
    bool moves_data = request->command == NBD_CMD_READ || request->command == NBD_CMD_WRITE;

    if (c->turn_requests == 0 || c->turn_bytes == 0) {
        c->paused = true;
        reactor_defer(&c->turn);
        return false;
    }
    if (c->narrow || c->running >= NBD_CONNECTION_REQUESTS_MAX || nbd_connection_output_full(c)) {
        c->paused = true;
        return false;
    }
    if (!nbd_share_may_take(&c->share, nbd_job_memory(request))) {
        /* At its own limit it is not others who keep memory from it. */
        if (!nbd_share_is_full(&c->share, nbd_job_memory(request)))
            nbd_payloads_give_way(c->owner);
        c->narrow = goes_narrow(c, request);
        c->paused = !c->narrow;
        if (c->paused)
            return false;
    }
    c->turn_requests--;
    if (moves_data)
        c->turn_bytes -= min_u64(request->length, c->turn_bytes);
    return true;
}

/* Starts one request. Returns how much of `data` was payload of it. */
static size_t start(struct nbd_connection *c, const struct nbd_request *request,
                    const uint8_t *data, size_t length)
{
    switch (request->command) {
    case NBD_CMD_READ:
        nbd_read_start(c, request);
        return 0;
    case NBD_CMD_WRITE:
        return start_write(c, request, data, length);
    default:
        start_other(c, request);
        return 0;
    }
}

/*
 * Completes a request with the payload that must be there to judge it, and what it leaves unsaid.
 * Returns the bytes of that payload, or -1: they have not all come.
 */
static ssize_t complete(const struct nbd_connection *c, struct nbd_request *request,
                        const uint8_t *data, size_t length)
{
    uint64_t selected = nbd_session_contexts(&c->session, c->nbd_export);
    size_t filter;

    if (request->command != NBD_CMD_BLOCK_STATUS)
        return 0;
    filter = nbd_request_filter_bytes(request);
    if (length < filter)
        return -1;
    if (filter > 0)
        nbd_request_take_filter(request, data, selected);
    else if (request->payload == 0)
        request->contexts = selected;
    return (ssize_t)filter;
}

/* Runs or refuses a request. Returns how much of `data` was payload of it; -1: it must wait. */
static ssize_t take_request(struct nbd_connection *c, struct nbd_request *request,
                            const uint8_t *data, size_t length)
{
    ssize_t used = complete(c, request, data, length);
    const char *why;
    uint32_t error;

    if (used < 0)
        return -1;
    error = judge(c, request, &why);
    if (!admit(c, error ? &(struct nbd_request){.command = NBD_CMD_FLUSH} : request))
        return -1;
    TRACE(nbd_request,
          "client %s: %s flags 0x%x cookie %016" PRIx64 " offset %" PRIu64 " length %" PRIu64,
          c->peer, nbd_command_name(request->command), request->flags, request->cookie,
          request->offset, request->length);
    c->operations++;
    if (error)
        refuse(c, request, error, why);
    else if (request->length == 0 && request->command != NBD_CMD_FLUSH)
        nbd_reply_done(c, request);
    else
        return used + (ssize_t)start(c, request, data, length);
    return used;
}

size_t nbd_transfer_input(struct nbd_connection *c, const uint8_t *data, size_t length)
{
    size_t used = min_u64(c->discard, length), header = nbd_request_bytes(c->session.mode);

    c->discard -= used;
    c->payload_seen += used;
    while (!c->input_closed && !c->discard && length - used >= header) {
        struct nbd_request request;
        ssize_t n;

        if (!nbd_request_decode(c->session.mode, data + used, &request)) {
            nbd_connection_end_input(
                c, "a request began with 0x%08" PRIx32 " instead of its magic number",
                get_be32(data + used));
            break;
        }
        if (request.command == NBD_CMD_DISC) {
            nbd_connection_end_input(c, "%s", "");
            return used + header;
        }
        n = take_request(c, &request, data + used + header, length - used - header);
        if (n < 0)
            break;
        used += header + (size_t)n;
    }
    return used;
}
