/* SPDX-License-Identifier: BSD-3-Clause */
/* An independent reader of replies. */
#include "tests/dialogue/exchange.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "tests/support/support.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One message of the server. */
struct chunk {
    bool simple;
    uint16_t flags, type;
    uint32_t error; /* simple */
    uint64_t cookie, offset;
    struct byte_reader payload;
};

void exchange_init(struct exchange *x, enum nbd_reply_mode mode)
{
    *x = (struct exchange){.mode = mode};
}

void exchange_free(struct exchange *x)
{
    for (size_t i = 0; i < x->count; i++) {
        message_free(&x->answers[i].log);
        free(x->answers[i].data);
        free(x->answers[i].seen);
    }
    free(x->answers);
    *x = (struct exchange){0};
}

struct answer *exchange_expect(struct exchange *x, const struct nbd_request *request)
{
    struct answer *a;

    if (x->count == x->room) {
        x->room = 2 * x->room + 8;
        x->answers = realloc(x->answers, x->room * sizeof(*x->answers));
        if (!x->answers)
            test_die("out of memory for answers");
    }
    a = &x->answers[x->count++];
    *a = (struct answer){.request = *request};
    return a;
}

const char *answer_log(struct answer *answer)
{
    message_bytes(&answer->log, "", 1);
    answer->log.length--;
    return (const char *)answer->log.data;
}

void exchange_request(struct message *m, enum nbd_reply_mode mode,
                      const struct nbd_request *request)
{
    uint8_t header[NBD_EXTENDED_REQUEST_BYTES];
    struct nbd_request copy = *request;

    if (mode == NBD_MODE_EXTENDED && request->command == NBD_CMD_WRITE)
        copy.flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    if (mode == NBD_MODE_EXTENDED)
        nbd_request_encode_extended(header, &copy);
    else
        nbd_request_encode(header, &copy);
    message_bytes(m, header, nbd_request_bytes(mode));
}

/* ---- Log ---- */

__attribute__((format(printf, 2, 3))) static void say(struct answer *a, const char *format, ...)
{
    char text[128];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    message_bytes(&a->log, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

/* ---- Rules. Each returns the one that was broken, or NULL. ---- */

static const char *take_content(struct answer *a, uint64_t offset, uint64_t length,
                                const uint8_t *data)
{
    const struct nbd_request *r = &a->request;

    if (r->command != NBD_CMD_READ)
        return "content answers something else than a READ";
    if (length == 0)
        return "a chunk of content is empty";
    if (offset < r->offset || !range_within(offset - r->offset, length, r->length))
        return "content is outside of what was asked for";
    if (!a->data) {
        a->data = calloc(1, r->length);
        a->seen = calloc(1, r->length);
    }
    if (!a->data || !a->seen)
        test_die("out of memory for content");
    for (uint64_t i = 0; i < length; i++) {
        if (a->seen[offset - r->offset + i])
            return "content overlaps with other content";
    }
    memset(a->seen + (offset - r->offset), 1, length);
    if (data)
        memcpy(a->data + (offset - r->offset), data, length);
    a->covered += length;
    a->contents++;
    if (a->contents > 1 && r->flags & NBD_CMD_FLAG_DF)
        return "content that must not be fragmented is";
    return NULL;
}

static const char *take_data(struct answer *a, struct chunk *c)
{
    uint64_t offset = byte_reader_be64(&c->payload);

    if (c->payload.failed)
        return "a data chunk is too short";
    say(a, "data %" PRIu64 "+%zu", offset, c->payload.left);
    return take_content(a, offset, c->payload.left, c->payload.data);
}

static const char *take_hole(struct answer *a, struct chunk *c)
{
    uint64_t offset = byte_reader_be64(&c->payload);
    uint32_t length = byte_reader_be32(&c->payload);

    if (c->payload.failed || c->payload.left > 0)
        return "a hole chunk has a wrong size";
    say(a, "hole %" PRIu64 "+%" PRIu32, offset, length);
    return take_content(a, offset, length, NULL);
}

static const char *take_text(struct answer *a, struct byte_reader *payload)
{
    uint16_t length = byte_reader_be16(payload);
    const uint8_t *text = byte_reader_take(payload, length);

    if (!text || length > NBD_STRING_MAX)
        return "the text of an error has a wrong size";
    if (length == 0 || !bytes_are_utf8(text, length))
        return "an error has no text";
    snprintf(a->text, sizeof(a->text), "%.*s", (int)length, (const char *)text);
    return NULL;
}

static const char *take_error(struct answer *a, struct chunk *c)
{
    uint32_t error = byte_reader_be32(&c->payload);
    const char *broken = take_text(a, &c->payload);

    if (broken)
        return broken;
    if (error == NBD_SUCCESS)
        return "an error chunk tells success";
    if (a->error && c->type == NBD_REPLY_TYPE_ERROR)
        return "a second error without an offset";
    a->error = error;
    say(a, "error %s", nbd_error_name(error));
    if (c->type == NBD_REPLY_TYPE_ERROR_OFFSET) {
        uint64_t offset = byte_reader_be64(&c->payload);

        say(a, " at %" PRIu64, offset);
        if (offset < a->request.offset || offset - a->request.offset >= a->request.length)
            return "the offset of an error is outside of what was asked for";
    }
    return c->payload.failed || c->payload.left > 0 ? "an error chunk has a wrong size" : NULL;
}

static const char *take_extents(struct answer *a, struct chunk *c, bool extended)
{
    uint64_t before = UINT64_MAX;

    a->told_length = a->extents = 0;
    while (c->payload.left > 0) {
        uint64_t length = extended ? byte_reader_be64(&c->payload) : byte_reader_be32(&c->payload);
        uint64_t flags = extended ? byte_reader_be64(&c->payload) : byte_reader_be32(&c->payload);

        if (c->payload.failed)
            return "the last extent is cut short";
        if (a->extents < 100)
            say(a, " %" PRIu64 ":%" PRIu64, length, flags);
        if (length == 0)
            return "an extent is empty";
        if (flags == before)
            return "neighboring extents have the same flags";
        if (!range_within(a->told_length, length, a->request.length))
            return "extents reach past what was asked for";
        before = flags;
        a->told_length += length;
        a->extents++;
    }
    if (a->extents == 0)
        return "a context has no extent";
    if (a->request.flags & NBD_CMD_FLAG_REQ_ONE && a->extents > 1)
        return "more than the one extent that was asked for";
    return a->extents > 1 << 20 ? "too many extents" : NULL;
}

static const char *take_status(struct answer *a, struct chunk *c)
{
    bool extended = c->type == NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
    uint32_t id = byte_reader_be32(&c->payload), count = 0;
    uint64_t bit = id < 64 ? UINT64_C(1) << id : 0;
    const char *broken;

    if (extended)
        count = byte_reader_be32(&c->payload);
    if (c->payload.failed)
        return "a status chunk is too short";
    if (a->request.command != NBD_CMD_BLOCK_STATUS || !(a->request.contexts & bit))
        return "status of a context that was not asked for";
    if (a->told & bit)
        return "a context is told of twice";
    a->told |= bit;
    say(a, "status %" PRIu32 ":", id);
    broken = take_extents(a, c, extended);
    if (!broken && extended && count != a->extents)
        return "the count of extents is wrong";
    return broken;
}

static const char *take_simple(struct answer *a, struct chunk *c, enum nbd_reply_mode mode)
{
    const struct nbd_request *r = &a->request;

    if (mode == NBD_MODE_EXTENDED)
        return "a simple reply with extended headers";
    if (mode == NBD_MODE_STRUCTURED && r->command == NBD_CMD_READ)
        return "a simple reply to a READ although replies are structured";
    if (mode == NBD_MODE_STRUCTURED && c->error)
        return "an error without text although replies are structured";
    say(a, c->error ? "simple %s" : "simple", nbd_error_name(c->error));
    a->error = c->error;
    if (c->payload.left == 0)
        return NULL;
    return take_content(a, r->offset, r->length, c->payload.data);
}

static const char *take_chunk(struct answer *a, struct chunk *c, enum nbd_reply_mode mode)
{
    if (c->simple)
        return take_simple(a, c, mode);
    if (mode == NBD_MODE_SIMPLE)
        return "a chunk although simple replies were negotiated";
    if (c->flags & ~NBD_REPLY_FLAG_DONE)
        return "unknown flags of a reply";
    if (mode == NBD_MODE_EXTENDED && c->offset != a->request.offset)
        return "the offset of the request is not repeated";
    switch (c->type) {
    case NBD_REPLY_TYPE_NONE:
        say(a, "none");
        if (c->payload.left > 0 || !(c->flags & NBD_REPLY_FLAG_DONE))
            return "a chunk of no type has data, or is not the last";
        return NULL;
    case NBD_REPLY_TYPE_OFFSET_DATA:
        return take_data(a, c);
    case NBD_REPLY_TYPE_OFFSET_HOLE:
        return take_hole(a, c);
    case NBD_REPLY_TYPE_ERROR:
    case NBD_REPLY_TYPE_ERROR_OFFSET:
        return take_error(a, c);
    default:
        if (c->type != (mode == NBD_MODE_EXTENDED ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT
                                                  : NBD_REPLY_TYPE_BLOCK_STATUS))
            return "a chunk of an unknown type";
        return take_status(a, c);
    }
}

static const char *check_done(struct answer *a)
{
    const struct nbd_request *r = &a->request;

    say(a, " done");
    a->done = true;
    if (a->error)
        return NULL;
    if (r->command == NBD_CMD_READ && a->covered != r->length)
        return "success, but not all that was asked for has come";
    if (r->command == NBD_CMD_BLOCK_STATUS && a->told != r->contexts)
        return "success, but not all contexts were told of";
    return NULL;
}

/* ---- Framing ---- */

static struct answer *find(struct exchange *x, uint64_t cookie)
{
    for (size_t i = 0; i < x->count; i++) {
        if (x->answers[i].request.cookie == cookie && !x->answers[i].done)
            return &x->answers[i];
    }
    return NULL;
}

/* Whether the payload is there; then it is taken. */
static bool take_payload(struct byte_reader *in, uint64_t length, struct chunk *c)
{
    if (length > in->left)
        return false;
    c->payload = byte_reader_of(byte_reader_take(in, length), length);
    return true;
}

static bool frame_simple(struct exchange *x, struct byte_reader *in, struct chunk *c)
{
    const struct answer *a;

    c->simple = true;
    c->flags = NBD_REPLY_FLAG_DONE;
    c->error = byte_reader_be32(in);
    c->cookie = byte_reader_be64(in);
    if (in->failed)
        return false;
    a = find(x, c->cookie);
    return take_payload(
        in, a && !c->error && a->request.command == NBD_CMD_READ ? a->request.length : 0, c);
}

static bool frame_chunk(struct byte_reader *in, bool extended, struct chunk *c)
{
    uint64_t length;

    c->flags = byte_reader_be16(in);
    c->type = byte_reader_be16(in);
    c->cookie = byte_reader_be64(in);
    if (extended)
        c->offset = byte_reader_be64(in);
    length = extended ? byte_reader_be64(in) : byte_reader_be32(in);
    return !in->failed && take_payload(in, length, c);
}

/* Takes one message. False: it is not complete, or x->broken. */
static bool frame(struct exchange *x, struct byte_reader *in, struct chunk *c)
{
    struct byte_reader copy = *in;
    uint32_t magic = byte_reader_be32(&copy);
    bool whole = false;

    *c = (struct chunk){0};
    if (copy.failed)
        return false;
    if (magic == NBD_SIMPLE_REPLY_MAGIC)
        whole = frame_simple(x, &copy, c);
    else if (magic == NBD_STRUCTURED_REPLY_MAGIC && x->mode == NBD_MODE_STRUCTURED)
        whole = frame_chunk(&copy, false, c);
    else if (magic == NBD_EXTENDED_REPLY_MAGIC && x->mode == NBD_MODE_EXTENDED)
        whole = frame_chunk(&copy, true, c);
    else
        x->broken = "a reply begins with a wrong number";
    if (whole)
        *in = copy;
    return whole;
}

bool exchange_read(struct exchange *x, struct byte_reader *in)
{
    struct chunk c;

    while (!x->broken && in->left > 0 && frame(x, in, &c)) {
        struct answer *a = find(x, c.cookie);

        if (!a) {
            x->broken = "a reply to nothing that was asked and not answered";
            break;
        }
        if (a->log.length > 0)
            say(a, "; ");
        x->broken = take_chunk(a, &c, x->mode);
        if (x->broken || !(c.flags & NBD_REPLY_FLAG_DONE))
            continue;
        x->broken = check_done(a);
        x->done++;
    }
    return !x->broken;
}
