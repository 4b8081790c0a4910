/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of a connection.
 *
 * Everything that happens to it ends in settle(), which alone decides whether it is over and what
 * to wait for; the functions in between only set flags.  Three flags lead to the end:
 *
 *   input_closed  nothing more is read (DISC, the peer closed, a broken message, a stop);
 *                 what is in flight is finished and answered
 *   dead          nothing is sent either (reset, stall, cut); what runs is only awaited
 *   neither       the connection lives
 *
 * It is over when input is closed, no job runs, and all is sent or it is dead.  Jobs hold a pointer
 * to their connection and count in `running`, so it cannot be freed under them.
 */
#include "nbd/connection.h"

#include "base/checked.h"
#include "base/size.h"
#include "base/sys.h"
#include "base/trace.h"
#include "nbd/access.h"
#include "nbd/origin.h"
#include "nbd/reply.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAILED(symbol, value, text) [NBD_CMD_##symbol] = text " requests that failed",
static const char *const failed_requests[] = {NBD_COMMANDS(FAILED)};
#undef FAILED

void nbd_connection_owner_init(struct nbd_connection_owner *owner,
                               const struct nbd_exports *exports)
{
    *owner = (struct nbd_connection_owner){.exports = exports};
    nbd_memory_init(&owner->memory);
    nbd_connection_starttls_init(owner);
    list_init(&owner->payloads);
    list_init(&owner->free_jobs);
    log_limit_init(&owner->log_entered, LOG_LEVEL_INFO, "clients that connected");
    log_limit_init(&owner->log_left, LOG_LEVEL_INFO, "clients that left");
    log_limit_init(&owner->log_refused, LOG_LEVEL_INFO, "clients refused in the handshake");
    log_limit_init(&owner->log_invalid, LOG_LEVEL_INFO, "requests that were refused");
    for (unsigned i = 0; i < ARRAY_SIZE(owner->log_failed); i++)
        log_limit_init(&owner->log_failed[i], LOG_LEVEL_INFO, failed_requests[i]);
    log_limit_init(&owner->log_denied, LOG_LEVEL_WARNING, "clients that access rules keep out");
    log_limit_init(&owner->log_unanswered, LOG_LEVEL_WARNING,
                   "clients whose authorization took too long");
}

__attribute__((format(printf, 2, 0))) static void set_reason(struct nbd_connection *c,
                                                             const char *format, va_list args)
{
    if (!c->input_closed)
        vsnprintf(c->reason, sizeof(c->reason), format, args);
    c->input_closed = true;
    reactor_defer(&c->turn);
}

void nbd_connection_end_input(struct nbd_connection *c, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    set_reason(c, format, args);
    va_end(args);
}

void nbd_connection_cut(struct nbd_connection *c, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    set_reason(c, format, args);
    va_end(args);
    c->dead = true;
    co_queue_wake_all(&c->output_room);
}

void nbd_connection_broken(struct nbd_connection *c, const char *doing, int err)
{
    bool gone = err == -EPIPE || err == -ECONNRESET;

    if (gone && c->handshake)
        nbd_connection_cut(c, "the client closed the connection");
    else if (gone)
        nbd_connection_cut(c, "the client closed the connection without a goodbye");
    else
        nbd_connection_cut(c, "cannot %s the client: %s", doing, strerror(-err));
}

/* ---- Sending ---- */

static int64_t stall_ns(const struct nbd_connection *c)
{
    return c->stopping ? NBD_STOP_STALL_NS : NBD_STALL_NS;
}

static void on_stall(struct reactor_timer *timer)
{
    struct nbd_connection *c = container_of(timer, struct nbd_connection, stall);

    if (c->stopping)
        nbd_connection_cut(c, "the client has taken no replies for %d s",
                           (int)(NBD_STOP_STALL_NS / 1000000000));
    else
        nbd_connection_cut(c, "the client has taken less than %d KiB of its replies in %d s",
                           NBD_STALL_BYTES / 1024, (int)(NBD_STALL_NS / 1000000000));
}

static void start_stall(struct nbd_connection *c)
{
    c->stall_sent = c->out.sent;
    reactor_timer_start(&c->stall, stall_ns(c), on_stall);
}

/* Sends what is queued, as far as the stream takes it. */
static void flush_output(struct nbd_connection *c)
{
    uint64_t sent = c->out.sent;
    int r;

    if (c->dead || c->out.count == 0)
        return;
    do {
        r = nbd_sendq_send(&c->out, c->stream);
    } while ((r == -ENODATA || r == -EIO) && nbd_reply_file_failed(c, r));
    if (c->out.sent != sent)
        nbd_connection_active(c);
    if (r == -ENODATA)
        nbd_connection_cut(c, "export '%s' has become shorter than it was",
                           c->nbd_export ? c->nbd_export->name : "");
    else if (r < 0)
        nbd_connection_broken(c, "send to", r);
    else if (!c->out.blocked)
        reactor_timer_stop(&c->stall);
    else if (c->out.sent - c->stall_sent >= (c->stopping ? 1 : NBD_STALL_BYTES) ||
             c->stall.heap_index == 0)
        start_stall(c);
    if (c->narrow || !nbd_connection_output_full(c))
        co_queue_wake_all(&c->output_room);
}

void nbd_connection_queued(struct nbd_connection *c)
{
    if (c->out.queued >= NBD_SEND_BATCH && !c->out.blocked)
        flush_output(c);
    reactor_defer(&c->turn);
}

bool nbd_connection_output_full(const struct nbd_connection *c)
{
    return c->out.blocked &&
           (c->out.queued >= NBD_OUTPUT_MAX || c->out.count >= NBD_OUTPUT_SEGMENTS_MAX ||
            nbd_share_is_over(&c->share));
}

void nbd_connection_await_room(struct nbd_connection *c)
{
    while (!c->dead && nbd_connection_output_full(c))
        co_queue_wait(&c->output_room);
}

void nbd_connection_await_sent(struct nbd_connection *c, uint64_t bytes)
{
    while (!c->dead && c->out.queued > bytes) {
        flush_output(c);
        if (c->out.blocked && c->out.queued > bytes && !c->dead)
            co_queue_wait(&c->output_room);
    }
}

unsigned nbd_connection_requests(const struct nbd_connection *c)
{
    return c->running - (c->receiving ? 1 : 0);
}

/* ---- Idle clients ---- */

void nbd_connection_active(struct nbd_connection *c)
{
    if (c->owner->idle_limit_ns > 0)
        c->active_ns = sys->monotonic_ns();
}

/* Whether the server owes the client nothing. A payload on its way is owed by the client. */
static bool owes_nothing(const struct nbd_connection *c)
{
    return nbd_connection_requests(c) == 0 && c->out.count == 0 && !c->paused;
}

static void on_idle(struct reactor_timer *timer)
{
    struct nbd_connection *c = container_of(timer, struct nbd_connection, idle);
    int64_t limit = c->owner->idle_limit_ns;
    int64_t left = c->active_ns + limit - sys->monotonic_ns();

    if (!owes_nothing(c))
        left = limit;
    if (left > 0)
        reactor_timer_start(&c->idle, left, on_idle);
    else
        nbd_connection_end_input(c, "the client was idle for %d s", (int)(limit / 1000000000));
}

/* Not started anew with each request: when it runs out it looks when the last one came. */
static void start_idle(struct nbd_connection *c)
{
    nbd_connection_active(c);
    if (c->owner->idle_limit_ns > 0)
        reactor_timer_start(&c->idle, c->owner->idle_limit_ns, on_idle);
}

/* ---- Handshake ---- */

static void on_deadline(struct reactor_timer *timer)
{
    struct nbd_connection *c = container_of(timer, struct nbd_connection, deadline);

    nbd_connection_cut(c, "the client has not finished its handshake within %d s",
                       (int)(c->owner->handshake_limit_ns / 1000000000));
}

void nbd_connection_start_deadline(struct nbd_connection *c)
{
    if (c->owner->handshake_limit_ns > 0)
        reactor_timer_start(&c->deadline, c->owner->handshake_limit_ns, on_deadline);
}

/* Moves what the handshake has to say into the queue. */
static void queue_handshake_output(struct nbd_connection *c)
{
    struct nbd_output *output = &c->handshake->output;
    size_t done = 0;

    while (done < output->length) {
        size_t n = output->length - done;
        uint8_t *at;

        if (n > NBD_RESERVE_MAX)
            n = NBD_RESERVE_MAX;
        at = nbd_sendq_reserve(&c->out, n);
        if (!at) {
            nbd_connection_cut(c, "out of memory for the handshake");
            return;
        }
        memcpy(at, output->data + done, n);
        nbd_sendq_commit(&c->out, n);
        done += n;
    }
    output->length = 0;
    flush_output(c);
}

static void enter_transmission(struct nbd_connection *c)
{
    struct nbd_export *chosen = c->handshake->chosen;
    const struct nbd_session session = c->handshake->session;

    nbd_handshake_fini(c->handshake);
    free(c->handshake);
    c->handshake = NULL;
    c->nbd_export = chosen;
    c->session = session;
    reactor_timer_stop(&c->deadline);
    start_idle(c);
    log_limited(&c->owner->log_entered, "client %s: connected to export '%s'%s%s%s", c->peer,
                chosen->name, chosen->read_only ? " (read-only)" : "", c->tls_text[0] ? ", " : "",
                c->tls_text);
    c->owner->entered(c->owner, c);
}

/* One that the client could try again after; what ends the handshake is logged at the end. */
static void log_refusal(struct nbd_connection *c)
{
    struct error *refused = &c->handshake->refused;

    if (refused->text[0])
        log_limited(&c->owner->log_refused, "client %s: refused: %s", c->peer, refused->text);
    refused->text[0] = '\0';
}

/* Who tries to get at what is not theirs is told to the operator too. */
static void log_denied(struct nbd_connection *c)
{
    char who[400];

    log_limited(&c->owner->log_denied, "client %s may not use export '%s': no rule allows it (%s)",
                c->peer, c->handshake->denied->name,
                nbd_identity_describe(&c->identity, who, sizeof(who)));
    c->handshake->denied = NULL;
    c->handshake->refused.text[0] = '\0'; /* said by this */
}

/* After each step of the handshake: its output, and where it has led. */
static void after_handshake_step(struct nbd_connection *c)
{
    struct nbd_handshake *hs = c->handshake;

    if (hs->denied)
        log_denied(c);
    /* First, so that a client that says goodbye and is gone is not reported for it. */
    if (hs->state == NBD_HANDSHAKE_CLOSED)
        nbd_connection_end_input(c, "%s", hs->reason.text);
    queue_handshake_output(c);
    log_refusal(c);
    if (!c->input_closed && hs->state == NBD_HANDSHAKE_DONE)
        enter_transmission(c);
}

/* Why the client may enter no export now; NULL: it may. */
static const char *refusal_of(const struct nbd_connection *c)
{
    unsigned max = c->owner->connections_of_one;

    if (max > 0 && c->origin->clients >= max)
        return "there are as many clients from your address as are allowed";
    return NULL;
}

static size_t handshake_step(struct nbd_connection *c, const uint8_t *data, size_t length)
{
    struct nbd_handshake *hs = c->handshake;
    size_t used;

    hs->shutting_down = c->stopping;
    hs->refusal = refusal_of(c);
    used = nbd_handshake_input(hs, data, length);
    after_handshake_step(c);
    return used;
}

size_t nbd_connection_negotiate(struct nbd_connection *c, const uint8_t *data, size_t length)
{
    size_t used;

    c->frozen = !c->owner->may_enter(c->owner);
    if (c->frozen)
        reactor_timer_stop(&c->deadline);
    c->paused = c->frozen || nbd_connection_output_full(c);
    if (c->paused)
        return 0;
    used = handshake_step(c, data, length);
    /* What is left of a long list is not asked for again by a message. */
    while (c->handshake && c->handshake->listing && !c->input_closed && !c->paused) {
        c->paused = nbd_connection_output_full(c);
        if (!c->paused)
            handshake_step(c, NULL, 0);
    }
    return used;
}

void nbd_connection_resume(struct nbd_connection *c)
{
    if (!c->frozen)
        return;
    c->frozen = false;
    nbd_connection_start_deadline(c);
    reactor_defer(&c->turn);
}

/* ---- The end ---- */

static void destroy(struct reactor_deferred *deferred)
{
    struct nbd_connection *c = container_of(deferred, struct nbd_connection, destroy);

    if (c->handshake)
        nbd_handshake_fini(c->handshake);
    free(c->handshake);
    nbd_identity_fini(&c->identity);
    free(c->peer);
    free(c);
}

static void close_stream(struct nbd_connection *c)
{
    if (!c->stream)
        return;
    reactor_fd_free(c->watch);
    c->watch = NULL;
    if (!c->dead)
        c->stream->ops->shutdown(c->stream);
    c->stream->ops->close(c->stream);
    c->stream = NULL;
    nbd_sendq_fini(&c->out);
}

/* What a client wanted that has left in the handshake, in order. */
static const char *asked_for(const struct nbd_handshake *hs)
{
    if (hs->asked_list)
        return "asked for the list of exports";
    return hs->asked_info ? "asked about an export" : "asked for nothing";
}

static void log_end(const struct nbd_connection *c)
{
    char in[16], out[16];
    const char *reason = c->reason[0] ? c->reason : "the client disconnected";

    TRACE(nbd_close, "client %s: %s", c->peer, reason);
    if (c->nbd_export)
        log_limited(&c->owner->log_left,
                    "client %s: left export '%s' after %" PRIu64 " request%s, %" PRIu64
                    " failed, %s read, %s written: %s",
                    c->peer, c->nbd_export->name, c->operations, c->operations == 1 ? "" : "s",
                    c->failures, size_format(out, sizeof(out), c->bytes_read),
                    size_format(in, sizeof(in), c->bytes_written), reason);
    else if (c->reason[0])
        log_limited(&c->owner->log_refused, "client %s: closed in the handshake: %s", c->peer,
                    reason);
    else
        log_limited(&c->owner->log_left, "client %s: %s and left%s%s", c->peer,
                    asked_for(c->handshake), c->tls_text[0] ? ", " : "", c->tls_text);
}

static void finish(struct nbd_connection *c)
{
    reactor_timer_stop(&c->deadline);
    reactor_timer_stop(&c->stall);
    reactor_timer_stop(&c->payload_due);
    reactor_timer_stop(&c->idle);
    reactor_timer_stop(&c->tls_rest);
    nbd_connection_forget_question(c);
    close_stream(c);
    nbd_share_fini(&c->share);
    reactor_defer_cancel(&c->turn);
    log_end(c);
    c->owner->closed(c->owner, c);
    reactor_destroy_later(&c->destroy);
}

/* Shutting down, and nothing is in flight, nor has anything come that must be answered. */
static bool stopped(const struct nbd_connection *c)
{
    return c->stopping && c->running == 0 && c->out.count == 0 && !c->discard &&
           ((c->drained && !c->paused) || c->frozen);
}

/* Decides whether it is over, and what to wait for. Must be the last use of `c` by its caller. */
static void settle(struct nbd_connection *c)
{
    unsigned wanted = 0;

    if (!c->input_closed && stopped(c))
        nbd_connection_end_input(c, "the server is shutting down");
    if (c->input_closed)
        nbd_connection_drop_input(c);
    if (c->dead)
        close_stream(c);
    if (c->input_closed && c->running == 0 && (c->dead || c->out.count == 0)) {
        finish(c);
        return;
    }
    if (!c->stream)
        return;
    if (!c->input_closed && !c->paused)
        wanted |= c->tls_wait ? c->tls_wait : REACTOR_READ;
    if (c->out.blocked)
        wanted |= REACTOR_WRITE;
    if (wanted == c->watched)
        return;
    c->watched = wanted;
    reactor_fd_set(c->watch, wanted);
}

static void on_turn(struct reactor_deferred *deferred)
{
    struct nbd_connection *c = container_of(deferred, struct nbd_connection, turn);

    flush_output(c);
    if (c->paused || nbd_connection_in_starttls(c)) {
        nbd_connection_receive(c);
        flush_output(c);
    }
    settle(c);
}

static void on_ready(void *arg, unsigned events)
{
    struct nbd_connection *c = arg;

    if (events & REACTOR_WRITE && c->out.blocked) {
        c->out.blocked = false;
        reactor_defer(&c->turn);
    }
    if (events & (c->tls_wait ? c->tls_wait : REACTOR_READ) && !c->paused)
        nbd_connection_receive(c);
    settle(c);
}

void nbd_connection_stop(struct nbd_connection *c)
{
    c->stopping = true;
    c->drained = false;
    /* What has already come is still answered: the turn looks for it. */
    c->paused = true;
    reactor_defer(&c->turn);
    nbd_payload_hurry(c);
    if (c->out.blocked)
        start_stall(c);
}

void nbd_connection_cancel(struct nbd_connection *c)
{
    c->cancelling = true;
}

static enum nbd_tls_mode tls_mode(const struct nbd_tls *tls)
{
    if (!tls)
        return NBD_TLS_OFF;
    return tls->required ? NBD_TLS_REQUIRED : NBD_TLS_ALLOWED;
}

static bool begin(struct nbd_connection *c, struct stream *stream)
{
    c->watch = reactor_fd_new(stream->fd, REACTOR_READ, on_ready, c);
    if (!c->watch)
        return false;
    c->stream = stream;
    c->watched = REACTOR_READ;
    /* The oldstyle has no TLS, and what requires TLS must not be had by it. */
    nbd_handshake_init(c->handshake, c->owner->exports, &c->identity,
                       c->owner->oldstyle && !c->owner->tls);
    c->handshake->tls = tls_mode(c->owner->tls);
    c->handshake->refusal = refusal_of(c);
    nbd_handshake_start(c->handshake);
    nbd_connection_start_deadline(c);
    after_handshake_step(c);
    reactor_defer(&c->turn); /* the greeting may have been sent in part */
    return true;
}

struct nbd_connection *nbd_connection_new(struct nbd_connection_owner *owner, struct stream *stream,
                                          const char *peer, const struct nbd_identity *identity,
                                          struct nbd_origin *origin)
{
    struct nbd_connection *c = calloc(1, sizeof(*c));

    if (!c)
        return NULL;
    c->owner = owner;
    c->origin = origin;
    c->since_ns = sys->monotonic_ns();
    c->turn.run = on_turn;
    c->destroy.run = destroy;
    nbd_share_init(&c->share, &owner->memory, &c->turn);
    nbd_sendq_init(&c->out, &c->share);
    co_mutex_init(&c->status_mutex);
    co_queue_init(&c->output_room);
    c->peer = strdup(peer);
    c->identity = *identity;
    c->handshake = calloc(1, sizeof(*c->handshake));
    if (c->peer && c->handshake && begin(c, stream)) {
        TRACE(nbd_accept, "client %s", peer);
        return c;
    }
    c->identity = (struct nbd_identity){0}; /* stays the caller's */
    destroy(&c->destroy);
    return NULL;
}
