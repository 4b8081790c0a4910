/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Replies, from what is to be told to bytes in the output queue.
 *
 * Headers are made in the place from which they are sent: a reservation holds the header, its fixed
 * fields and, for content read in place, the data; larger data follows as segments of its own.
 *
 * A chunk that is sent from a file is never the last of its reply: that the file can be read turns
 * out only when it is sent.
 */
#include "nbd/reply.h"

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/trace.h"
#include "nbd/connection.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Content of at most this length is copied into the queue rather than sent in place. */
#define COPY_MAX (16 * 1024)
#define OFFSET_BYTES 8
#define HOLE_BYTES 12
#define ERROR_BYTES 6
#define TEXT_MAX 512
/* The largest header with fixed fields behind it. */
#define HEADER_MAX (NBD_EXTENDED_REPLY_BYTES + OFFSET_BYTES)

_Static_assert(HEADER_MAX + NBD_REPLY_INLINE_MAX <= NBD_RESERVE_MAX, "inline content fits");
_Static_assert(NBD_EXTENDED_REPLY_BYTES + 8 + 16 * NBD_REPLY_EXTENTS_MAX <= NBD_RESERVE_MAX,
               "a status chunk fits");
_Static_assert(NBD_REPLY_FILES_MAX < NBD_SEGMENTS_SURE, "files fit behind their header");

/* ---- Headers ---- */

static bool is_simple(const struct nbd_connection *c)
{
    return c->session.mode == NBD_MODE_SIMPLE;
}

static size_t chunk_bytes(const struct nbd_connection *c)
{
    return c->session.mode == NBD_MODE_EXTENDED ? NBD_EXTENDED_REPLY_BYTES
                                                : NBD_STRUCTURED_REPLY_BYTES;
}

/* What comes before data: the header, and in chunks the offset. */
static size_t lead_bytes(const struct nbd_connection *c)
{
    return is_simple(c) ? NBD_SIMPLE_REPLY_BYTES : chunk_bytes(c) + OFFSET_BYTES;
}

static void put_simple(uint8_t *at, uint64_t cookie, uint32_t error)
{
    put_be32(at, NBD_SIMPLE_REPLY_MAGIC);
    put_be32(at + 4, error);
    put_be64(at + 8, cookie);
}

/* The header of a chunk with `length` bytes of payload. Returns where the payload goes. */
static uint8_t *put_chunk(const struct nbd_connection *c, const struct nbd_request *request,
                          uint8_t *at, uint16_t type, uint32_t length, bool last)
{
    bool extended = c->session.mode == NBD_MODE_EXTENDED;

    put_be32(at, extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
    put_be16(at + 4, last ? NBD_REPLY_FLAG_DONE : 0);
    put_be16(at + 6, type);
    put_be64(at + 8, request->cookie);
    if (extended) {
        put_be64(at + 16, request->offset);
        put_be64(at + 24, length);
    } else {
        put_be32(at + 16, length);
    }
    TRACE(nbd_reply, "client %s: %s cookie %016" PRIx64 ": %s of %" PRIu32 " bytes%s", c->peer,
          nbd_command_name(request->command), request->cookie, nbd_reply_type_name(type), length,
          last ? ", done" : "");
    return at + chunk_bytes(c);
}

/* The header of content, and what comes before it. */
static void put_lead(const struct nbd_connection *c, const struct nbd_request *request, uint8_t *at,
                     const struct nbd_span *span, bool last)
{
    if (is_simple(c)) {
        put_simple(at, request->cookie, NBD_SUCCESS);
        TRACE(nbd_reply, "client %s: READ cookie %016" PRIx64 ": success", c->peer,
              request->cookie);
        return;
    }
    at = put_chunk(c, request, at, NBD_REPLY_TYPE_OFFSET_DATA,
                   (uint32_t)(OFFSET_BYTES + span->length), last);
    put_be64(at, span->offset);
}

/* Room for `length` bytes; NULL: the connection is over. */
static uint8_t *reserve(struct nbd_connection *c, size_t length)
{
    uint8_t *at = c->dead ? NULL : nbd_sendq_reserve(&c->out, length);

    if (!at && !c->dead)
        nbd_connection_cut(c, "out of memory for a reply");
    return at;
}

/* ---- Success and errors ---- */

void nbd_reply_done(struct nbd_connection *c, const struct nbd_request *request)
{
    bool chunk =
        c->session.mode == NBD_MODE_EXTENDED || (request->command == NBD_CMD_READ && !is_simple(c));
    size_t length = chunk ? chunk_bytes(c) : NBD_SIMPLE_REPLY_BYTES;
    uint8_t *at = reserve(c, length);

    if (!at)
        return;
    if (chunk) {
        put_chunk(c, request, at, NBD_REPLY_TYPE_NONE, 0, true);
    } else {
        put_simple(at, request->cookie, NBD_SUCCESS);
        TRACE(nbd_reply, "client %s: %s cookie %016" PRIx64 ": success", c->peer,
              nbd_command_name(request->command), request->cookie);
    }
    nbd_sendq_commit(&c->out, length);
    nbd_connection_queued(c);
}

/* Makes an error chunk; `offset` may be NULL. Returns its bytes. */
static size_t put_error(const struct nbd_connection *c, const struct nbd_request *request,
                        uint8_t *at, uint32_t error, const char *text, const uint64_t *offset,
                        bool last)
{
    size_t text_length = strnlen(text, TEXT_MAX);
    size_t length = ERROR_BYTES + text_length + (offset ? OFFSET_BYTES : 0);

    at = put_chunk(c, request, at, offset ? NBD_REPLY_TYPE_ERROR_OFFSET : NBD_REPLY_TYPE_ERROR,
                   (uint32_t)length, last);
    put_be32(at, error);
    put_be16(at + 4, (uint16_t)text_length);
    memcpy(at + ERROR_BYTES, text, text_length);
    if (offset)
        put_be64(at + ERROR_BYTES + text_length, *offset);
    TRACE(nbd_reply, "client %s: %s cookie %016" PRIx64 ": %s: %s", c->peer,
          nbd_command_name(request->command), request->cookie, nbd_error_name(error), text);
    return chunk_bytes(c) + length;
}

static void reply_error(struct nbd_connection *c, const struct nbd_request *request, uint32_t error,
                        const char *text, const uint64_t *offset)
{
    size_t length = NBD_SIMPLE_REPLY_BYTES;
    uint8_t *at = reserve(c, HEADER_MAX + ERROR_BYTES + TEXT_MAX);

    c->failures += error != NBD_ENOTSUP;
    if (!at)
        return;
    if (is_simple(c)) {
        put_simple(at, request->cookie, error);
        TRACE(nbd_reply, "client %s: %s cookie %016" PRIx64 ": %s: %s", c->peer,
              nbd_command_name(request->command), request->cookie, nbd_error_name(error), text);
    } else {
        length = put_error(c, request, at, error, text, offset, true);
    }
    nbd_sendq_commit(&c->out, length);
    nbd_connection_queued(c);
}

void nbd_reply_error(struct nbd_connection *c, const struct nbd_request *request, uint32_t error,
                     const char *text)
{
    reply_error(c, request, error, text, NULL);
}

static const char *cause_of(const struct nbd_connection *c, int err)
{
    if (err == -ENODATA)
        return "the image has become shorter";
    if (err != -ESHUTDOWN || !nbd_connection_gives_up(c))
        return strerror(-err);
    return c->cancelling ? "the server is shutting down" : "its connection has ended";
}

/* Why the block layer refused, in a sentence for the client's user. Returns the wire's error. */
static uint32_t explain(const struct nbd_connection *c, const struct nbd_request *request, int err,
                        uint64_t offset, char *text)
{
    const char *export_name = c->nbd_export->name;
    char name[160];

    error_escape(name, sizeof(name), export_name, strlen(export_name));
    if (err == -ENOTSUP && request->flags & NBD_CMD_FLAG_FAST_ZERO &&
        request->command == NBD_CMD_WRITE_ZEROES) {
        snprintf(text, TEXT_MAX, "zeroing this part of export '%s' would not be fast", name);
        return NBD_ENOTSUP;
    }
    if (err == -EPERM && c->nbd_export->header_node)
        snprintf(text, TEXT_MAX,
                 "export '%s' was opened without a format: its first bytes must not become the "
                 "header of an image format",
                 name);
    else
        snprintf(text, TEXT_MAX, "%s of export '%s' failed at byte %" PRIu64 ": %s",
                 nbd_command_name(request->command), name, offset, cause_of(c, err));
    /* On the wire ENOTSUP has one meaning, the one above. */
    return err == -ENOTSUP ? NBD_EINVAL : nbd_error_from_errno(err);
}

/* Why the block layer refused, for the client and the log. Returns the wire's error. */
static uint32_t tell_failure(const struct nbd_connection *c, const struct nbd_request *request,
                             int err, uint64_t offset, char *text)
{
    uint32_t error = explain(c, request, err, offset, text);

    if (error != NBD_ENOTSUP) /* an answer that FAST_ZERO asks for */
        log_limited(&c->owner->log_failed[request->command], "client %s: %s", c->peer, text);
    return error;
}

void nbd_reply_errno(struct nbd_connection *c, const struct nbd_request *request, int err)
{
    char text[TEXT_MAX];
    uint32_t error = tell_failure(c, request, err, request->offset, text);

    reply_error(c, request, error, text, NULL);
}

void nbd_reply_errno_at(struct nbd_connection *c, const struct nbd_request *request, int err,
                        uint64_t offset)
{
    char text[TEXT_MAX];
    uint32_t error = tell_failure(c, request, err, offset, text);

    reply_error(c, request, error, text, &offset);
}

/* ---- Content ---- */

uint8_t *nbd_reply_reserve(struct nbd_connection *c, const struct nbd_request *request)
{
    size_t lead = lead_bytes(c);
    uint8_t *at = reserve(c, lead + request->length);

    return at ? at + lead : NULL;
}

void nbd_reply_release(struct nbd_connection *c)
{
    nbd_sendq_commit(&c->out, 0);
}

void nbd_reply_commit(struct nbd_connection *c, const struct nbd_request *request, uint8_t *data)
{
    const struct nbd_span span = {request->offset, request->length};
    size_t lead = lead_bytes(c);

    if (!is_simple(c) && bytes_are_zero(data, span.length)) {
        nbd_reply_hole(c, request, &span, true); /* in the same place */
        return;
    }
    put_lead(c, request, data - lead, &span, true);
    nbd_sendq_commit(&c->out, lead + span.length);
    c->bytes_read += span.length;
    nbd_connection_queued(c);
}

void nbd_reply_buffer(struct nbd_connection *c, const struct nbd_request *request,
                      const struct nbd_span *span, uint8_t *buffer, bool last)
{
    size_t lead = lead_bytes(c), copied = span->length <= COPY_MAX ? span->length : 0;
    uint8_t *at = reserve(c, lead + copied);

    if (!at) {
        buffer_put(buffer, span->length);
        return;
    }
    put_lead(c, request, at, span, last);
    memcpy(at + lead, buffer, copied);
    nbd_sendq_commit(&c->out, lead + copied);
    if (copied)
        buffer_put(buffer, span->length);
    else
        nbd_sendq_buffer(&c->out, buffer, span->length);
    c->bytes_read += span->length;
    nbd_connection_queued(c);
}

void nbd_reply_begin(struct nbd_connection *c, const struct nbd_request *request)
{
    const struct nbd_span span = {request->offset, request->length};
    size_t lead = lead_bytes(c);
    uint8_t *at = reserve(c, lead);

    if (!at)
        return;
    put_lead(c, request, at, &span, true);
    nbd_sendq_commit(&c->out, lead);
    nbd_connection_queued(c);
}

void nbd_reply_more(struct nbd_connection *c, uint8_t *buffer, size_t length)
{
    /* For the room of the segment. */
    if (!reserve(c, 0)) {
        buffer_put(buffer, length);
        return;
    }
    nbd_sendq_buffer(&c->out, buffer, length);
    c->bytes_read += length;
    nbd_connection_queued(c);
}

void nbd_reply_files(struct nbd_connection *c, const struct nbd_request *request,
                     const struct nbd_span *span, const struct block_extent *files, unsigned count,
                     bool last)
{
    struct nbd_file_use use = {request->cookie, request->offset, span->offset};
    size_t lead = lead_bytes(c);
    uint8_t *at = reserve(c, lead);

    if (!at)
        return;
    put_lead(c, request, at, span, false);
    nbd_sendq_commit(&c->out, lead);
    for (unsigned i = 0; i < count; i++) {
        nbd_sendq_file(&c->out, &files[i], &use);
        use.position += files[i].length;
    }
    c->bytes_read += span->length;
    if (last && !is_simple(c))
        nbd_reply_done(c, request);
    else
        nbd_connection_queued(c);
}

void nbd_reply_hole(struct nbd_connection *c, const struct nbd_request *request,
                    const struct nbd_span *span, bool last)
{
    uint8_t *at = reserve(c, chunk_bytes(c) + HOLE_BYTES), *fields;

    if (!at)
        return;
    fields = put_chunk(c, request, at, NBD_REPLY_TYPE_OFFSET_HOLE, HOLE_BYTES, last);
    put_be64(fields, span->offset);
    put_be32(fields + 8, (uint32_t)span->length);
    nbd_sendq_commit(&c->out, chunk_bytes(c) + HOLE_BYTES);
    c->bytes_read += span->length;
    nbd_connection_queued(c);
}

bool nbd_reply_file_failed(struct nbd_connection *c, int err)
{
    uint8_t chunk[HEADER_MAX + ERROR_BYTES + TEXT_MAX];
    struct nbd_file_use use;
    char text[TEXT_MAX];
    uint32_t error;

    if (is_simple(c) || !nbd_sendq_file_in_front(&c->out, &use))
        return false;
    const struct nbd_request request = {
        .command = NBD_CMD_READ, .cookie = use.cookie, .offset = use.request_offset};

    error = tell_failure(c, &request, err, use.position, text);
    c->failures++;
    return nbd_sendq_give_up_file(&c->out, chunk,
                                  put_error(c, &request, chunk, error, text, &use.position, false));
}

/* ---- Status ---- */

static void put_extents(uint8_t *at, const struct nbd_extent *extents, unsigned count)
{
    for (unsigned i = 0; i < count; i++, at += 8) {
        put_be32(at, (uint32_t)extents[i].length);
        put_be32(at + 4, (uint32_t)extents[i].flags);
    }
}

static void put_extents_extended(uint8_t *at, const struct nbd_extent *extents, unsigned count)
{
    for (unsigned i = 0; i < count; i++, at += 16) {
        put_be64(at, extents[i].length);
        put_be64(at + 8, extents[i].flags);
    }
}

void nbd_reply_status(struct nbd_connection *c, const struct nbd_request *request, uint32_t context,
                      const struct nbd_extent *extents, unsigned count, bool last)
{
    bool extended = c->session.mode == NBD_MODE_EXTENDED;
    uint32_t length = extended ? 8 + 16 * count : 4 + 8 * count;
    uint8_t *at = reserve(c, chunk_bytes(c) + length), *fields;

    if (!at)
        return;
    fields = put_chunk(c, request, at,
                       extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS,
                       length, last);
    put_be32(fields, context);
    if (extended) {
        put_be32(fields + 4, count);
        put_extents_extended(fields + 8, extents, count);
    } else {
        put_extents(fields + 4, extents, count);
    }
    nbd_sendq_commit(&c->out, chunk_bytes(c) + length);
    nbd_connection_queued(c);
}
