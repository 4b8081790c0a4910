/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From the stream to whole messages.
 *
 * All connections receive into a scratch buffer that is borrowed for the length of one call, so an
 * idle connection has none.  What is left of it afterwards is kept: usually the first bytes of a
 * message, copied in front of the next receive; when a limit was met also whole messages, which are
 * handled in place before anything more is received.  The payload of a WRITE that has begun goes
 * into the buffer of its job, with the scratch buffer as the second vector.
 */
#include "nbd/connection.h"

#include "base/buffer.h"
#include "nbd/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Receives in one call, so that a client that always has more does not keep the others waiting. */
#define ROUNDS_MAX 4
/* Read ahead of a payload: a header and little more, since payloads want to be received in place.
 */
#define LARGE_WRITES_BYTES (16 * 1024)

static void kept_clear(struct nbd_kept *kept)
{
    if (kept->data != kept->small)
        free(kept->data);
    kept->data = NULL;
    kept->offset = kept->length = 0;
}

static bool keep(struct nbd_kept *kept, const uint8_t *data, size_t length)
{
    uint8_t *copy = kept->small;

    if (length > sizeof(kept->small))
        copy = malloc(length);
    if (!copy)
        return false;
    memcpy(copy, data, length);
    kept_clear(kept);
    kept->data = copy;
    kept->length = length;
    return true;
}

void nbd_connection_drop_input(struct nbd_connection *c)
{
    kept_clear(&c->kept);
    nbd_payload_drop(c);
}

static bool may_go_on(const struct nbd_connection *c)
{
    return !c->input_closed && !c->paused && !nbd_connection_in_starttls(c);
}

/* Handles the whole messages in `data`, as far as the limits allow. Returns the bytes used. */
static size_t feed(struct nbd_connection *c, const uint8_t *data, size_t length)
{
    size_t used = 0;

    while (may_go_on(c) && used < length) {
        size_t n = c->handshake ? nbd_connection_negotiate(c, data + used, length - used)
                                : nbd_transfer_input(c, data + used, length - used);

        if (n == 0)
            break;
        used += n;
    }
    return used;
}

static void feed_kept(struct nbd_connection *c)
{
    struct nbd_kept *kept = &c->kept;
    size_t used;

    if (kept->length == 0)
        return;
    used = feed(c, kept->data + kept->offset, kept->length);
    if (c->input_closed)
        return;
    kept->offset += used;
    kept->length -= used;
    if (kept->length == 0)
        kept_clear(kept);
}

static void input_ended(struct nbd_connection *c)
{
    c->gone = true;
    if (c->receiving || c->discard)
        nbd_connection_end_input(c, "the client closed the connection in the middle of a payload");
    else if (c->kept.length > 0)
        nbd_connection_end_input(c, "the client closed the connection in the middle of a message");
    else
        nbd_connection_end_input(c, "the client closed the connection");
}

/* What was received into the scratch buffer, behind what had been kept. */
static void take_scratch(struct nbd_connection *c, const uint8_t *scratch, size_t length)
{
    size_t used;

    kept_clear(&c->kept);
    used = feed(c, scratch, length);
    if (c->input_closed || used == length)
        return;
    if (!keep(&c->kept, scratch + used, length - used))
        nbd_connection_cut(c, "out of memory for %zu received bytes", length - used);
}

/* Receives once. Returns whether more may be there. */
static bool receive_once(struct nbd_connection *c, uint8_t *scratch)
{
    size_t kept = c->kept.length, room = c->large_writes ? LARGE_WRITES_BYTES : NBD_RECEIVE_BYTES;
    size_t payload, direct;
    bool all;
    uint8_t *place = nbd_payload_room(c, &payload, &all);
    struct iovec iov[2] = {{.iov_base = place, .iov_len = payload},
                           {.iov_base = scratch + kept, .iov_len = room}};
    ssize_t n;

    if (!all) /* what follows is payload too */
        iov[1].iov_len = room = 0;
    n = c->stream->ops->recv(c->stream, payload ? iov : iov + 1, payload && room ? 2 : 1);
    c->drained = n == -EAGAIN || (n > 0 && (size_t)n < payload + room);
    if (n == -EAGAIN)
        return false;
    if (n == -ECONNABORTED) {
        nbd_connection_cut(c, "the client ended without closing its TLS session");
        return false;
    }
    if (n < 0) {
        nbd_connection_broken(c, "receive from", (int)n);
        return false;
    }
    if (n == 0) {
        input_ended(c);
        return false;
    }
    nbd_connection_active(c);
    direct = min_u64(payload, (size_t)n);
    if (direct > 0)
        nbd_payload_take(c, direct);
    if (kept > 0)
        memcpy(scratch, c->kept.data + c->kept.offset, kept);
    c->large_writes = c->large_writes && (c->drained || payload > 0);
    take_scratch(c, scratch, kept + (size_t)n - direct);
    if (may_go_on(c) && c->drained && c->stream->ops->pending(c->stream))
        c->drained = false;
    return !c->drained;
}

/* A partial message that is kept must leave room behind it in the scratch buffer. */
#define SCRATCH_BYTES (NBD_OPTION_HEADER_BYTES + NBD_OPTION_BYTES_MAX + NBD_RECEIVE_BYTES)

void nbd_connection_receive(struct nbd_connection *c)
{
    uint8_t *scratch;

    if (c->input_closed)
        return;
    c->paused = c->writing != NULL;
    if (c->paused)
        return;
    if (nbd_connection_in_starttls(c)) {
        nbd_connection_starttls(c);
        return;
    }
    c->turn_requests = NBD_TURN_REQUESTS;
    c->turn_bytes = NBD_TURN_BYTES;
    if (c->handshake && c->handshake->listing)
        nbd_connection_negotiate(c, NULL, 0);
    feed_kept(c);
    if (!may_go_on(c))
        return;
    scratch = buffer_get(SCRATCH_BYTES);
    if (!scratch) {
        nbd_connection_cut(c, "out of memory for receiving");
        return;
    }
    for (int round = 0; round < ROUNDS_MAX && may_go_on(c); round++) {
        if (!receive_once(c, scratch))
            break;
    }
    buffer_put(scratch, SCRATCH_BYTES);
    /* What waits inside the stream does not make its descriptor readable. */
    if (may_go_on(c) && c->stream->ops->pending(c->stream)) {
        c->paused = true;
        reactor_defer(&c->turn);
    }
}
