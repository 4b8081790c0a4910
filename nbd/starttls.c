/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From STARTTLS to the end of the TLS handshake.
 *
 * The acknowledgment leaves first; then the connection's stream is replaced by one that wraps it,
 * and the TLS handshake goes on whenever the descriptor is ready for what it waits for.  Nothing
 * else is received or sent meanwhile; the time limit of the handshake goes on.
 *
 * A step may cost as much as thousands of requests (a signature), so all connections together make
 * one step in a turn and have a share of the time; the others wait, while those who transmit go on.
 */
#include "nbd/connection.h"

#include "base/sys.h"
#include "base/trace.h"

#include <errno.h>
#include <stdio.h>

/* One part in so many of the loop's time is for the steps of TLS handshakes; saved up at most. */
#define TIME_SHARE 4
#define TIME_BURST_NS INT64_C(10000000)
/* Until a handshake that waits for no descriptor is looked at again. */
#define LATER_NS INT64_C(2000000)

bool nbd_connection_in_starttls(const struct nbd_connection *c)
{
    return c->handshake && c->handshake->state == NBD_HANDSHAKE_STARTTLS;
}

void nbd_connection_starttls_init(struct nbd_connection_owner *owner)
{
    owner->tls_pace = nbd_pace_of(TIME_SHARE, TIME_BURST_NS, sys->monotonic_ns());
}

static void on_pace(struct reactor_timer *timer)
{
    reactor_defer(&container_of(timer, struct nbd_connection, tls_rest)->turn);
}

/* Whether a step may be made now. If not, the connection is paused until it may. */
static bool has_its_turn(struct nbd_connection *c)
{
    struct nbd_connection_owner *owner = c->owner;
    int64_t wait = nbd_pace_wait(&owner->tls_pace, sys->monotonic_ns());

    if (wait == 0 && owner->tls_turn != reactor_turns()) {
        owner->tls_turn = reactor_turns();
        return true;
    }
    c->paused = true;
    if (wait > 0)
        reactor_timer_start(&c->tls_rest, wait, on_pace);
    else
        reactor_defer(&c->turn);
    return false;
}

static void come_back_later(struct nbd_connection *c)
{
    c->paused = true;
    reactor_timer_start(&c->tls_rest, LATER_NS, on_pace);
}

static bool wrap_stream(struct nbd_connection *c)
{
    const struct nbd_tls *tls = c->owner->tls;
    struct stream *stream = tls->start(tls->arg, c->stream);

    if (!stream) {
        nbd_connection_cut(c, "out of memory for TLS");
        return false;
    }
    c->stream = stream;
    c->tls_begun = true;
    c->tls_wait = REACTOR_READ;
    return true;
}

static void identify(struct nbd_connection *c)
{
    const struct nbd_tls *tls = c->owner->tls;

    c->tls_done = true;
    tls->identify(tls->arg, c->stream, &c->identity);
    tls->describe(tls->arg, c->stream, c->tls_text, sizeof(c->tls_text));
    TRACE(nbd_tls, "client %s: %s", c->peer, c->tls_text);
}

static void go_on_inside(struct nbd_connection *c)
{
    c->tls_wait = 0;
    nbd_handshake_secured(c->handshake);
    /* Options may have come with the end of the handshake. */
    c->paused = true;
    reactor_defer(&c->turn);
}

/* 0: the client is known, and what can be known of it. Else as `handshake` of struct nbd_tls. */
static int step(struct nbd_connection *c, struct error *error)
{
    const struct nbd_tls *tls = c->owner->tls;

    if (!c->tls_done) {
        int r = tls->handshake(tls->arg, c->stream, &c->tls_wait, error);

        if (r < 0)
            return r;
        identify(c);
    }
    return nbd_connection_authorize(c) ? 0 : -EAGAIN;
}

void nbd_connection_starttls(struct nbd_connection *c)
{
    struct error error = {""};
    int64_t before;
    int r;

    if (c->stopping) {
        nbd_connection_end_input(c, "the server is shutting down");
        return;
    }
    /* The turn that sends the rest comes back here. */
    if (!c->tls_begun && (c->out.count > 0 || !wrap_stream(c)))
        return;
    c->paused = c->asked;
    if (c->paused || !has_its_turn(c))
        return;
    before = sys->monotonic_ns();
    r = step(c, &error);
    nbd_pace_spend(&c->owner->tls_pace, sys->monotonic_ns() - before);
    if (r == 0)
        go_on_inside(c);
    else if (r != -EAGAIN)
        nbd_connection_cut(c, "no TLS: %s", error.text);
    else if (!c->tls_done && c->tls_wait == 0)
        come_back_later(c);
}
