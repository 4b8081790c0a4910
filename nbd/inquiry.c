/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Runs sessions of nbd/client.h over streams, until the server has told everything.
 *
 * Some servers hang up after so many options.  When one does that to a session that got at least
 * one export further, the next session goes on from there.  The time limit is for all of it, so
 * that neither dripping bytes nor hanging up again and again keeps anybody waiting.
 */
#include "nbd/inquiry.h"

#include "base/coroutine.h"
#include "base/reactor.h"
#include "base/stream.h"
#include "base/sys.h"
#include "base/trace.h"
#include "nbd/client.h"
#include "nbd/client_step.h"
#include "nbd/tls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* A server that was told good-bye may take so long to close, so that it sees no reset. */
#define FAREWELL_NS INT64_C(1000000000)

struct session {
    struct nbd_client client;
    struct stream *stream;
    const struct nbd_tls *tls; /* NULL: plain */
    bool secured;              /* the stream is inside of TLS */
    int64_t deadline_ns;
    size_t start, length; /* of what was received and not used */
    /* Never full of an incomplete message. */
    uint8_t input[2 * NBD_CLIENT_INPUT_MAX];
};

/* For no events: lets others go first. */
static int await(const struct session *s, unsigned events)
{
    int64_t left = nbd_time_left(s->deadline_ns);
    int r = 0;

    if (left == 0)
        return -ETIMEDOUT;
    if (events != 0)
        r = co_wait_fd(s->stream->fd, events, left);
    else
        coroutine_yield();
    return r < 0 ? r : 0;
}

static int send_output(struct session *s)
{
    struct iovec rest = {.iov_base = s->client.output, .iov_len = s->client.output_length};
    int r = 0;

    s->client.output_length = 0;
    while (r == 0 && rest.iov_len > 0) {
        ssize_t n = s->stream->ops->send(s->stream, &rest, 1, false);

        if (n >= 0) {
            rest.iov_base = (uint8_t *)rest.iov_base + n;
            rest.iov_len -= (size_t)n;
        } else {
            r = n == -EAGAIN ? await(s, REACTOR_WRITE) : (int)n;
        }
    }
    return r;
}

/* Waits for more, unless it waits inside of the stream. */
static int await_input(const struct session *s)
{
    if (!s->stream->ops->pending(s->stream))
        return await(s, REACTOR_READ);
    return nbd_time_left(s->deadline_ns) != 0 ? 0 : -ETIMEDOUT;
}

/* Receives at least one byte. 0, or negative errno; -ECONNRESET for the end of the stream. */
static int receive(struct session *s)
{
    struct iovec room;

    memmove(s->input, s->input + s->start, s->length);
    s->start = 0;
    room =
        (struct iovec){.iov_base = s->input + s->length, .iov_len = sizeof(s->input) - s->length};
    for (;;) {
        ssize_t n = s->stream->ops->recv(s->stream, &room, 1);
        int r;

        if (n > 0) {
            s->length += (size_t)n;
            return 0;
        }
        if (n != -EAGAIN)
            return n == 0 ? -ECONNRESET : (int)n;
        r = await_input(s);
        if (r < 0)
            return r;
    }
}

/* The TLS handshake. 0: done, or failed and the client knows why; or negative errno. */
static int secure(struct session *s)
{
    const struct nbd_tls *tls = s->tls;
    struct stream *stream = tls->start(tls->arg, s->stream);
    struct error error = {""};
    unsigned events = 0;
    char text[200];
    int r;

    if (!stream)
        return -ENOMEM;
    s->stream = stream;
    while ((r = tls->handshake(tls->arg, stream, &events, &error)) == -EAGAIN) {
        r = await(s, events);
        if (r < 0)
            return r;
    }
    if (r < 0) {
        nbd_client_fail(&s->client, "no TLS: %s", error.text);
        return 0;
    }
    TRACE(nbd_tls, "server: %s", tls->describe(tls->arg, stream, text, sizeof(text)));
    s->secured = true;
    nbd_client_secured(&s->client);
    return 0;
}

static bool ended(const struct session *s)
{
    return s->client.state == NBD_CLIENT_DONE || s->client.state == NBD_CLIENT_FAILED;
}

/* Brings the dialogue to its end, or returns the errno that ended it before. */
static int talk(struct session *s)
{
    int r = 0;

    while (r == 0 && !ended(s)) {
        size_t used = nbd_client_input(&s->client, s->input + s->start, s->length);

        s->start += used;
        s->length -= used;
        if (ended(s))
            break;
        if (s->client.output_length > 0)
            r = send_output(s);
        else if (used == 0 && s->client.state == NBD_CLIENT_STARTTLS)
            r = secure(s);
        else if (used == 0)
            r = receive(s);
        if (r == 0 && nbd_time_left(s->deadline_ns) == 0)
            r = -ETIMEDOUT;
    }
    return r;
}

/* Says good-bye and lets the server close, so that what was sent is not lost to a reset. */
static void leave(struct session *s)
{
    int64_t limit = sys->monotonic_ns() + FAREWELL_NS;

    if (limit < s->deadline_ns)
        s->deadline_ns = limit;
    if (send_output(s) < 0 || s->stream->ops->shutdown(s->stream) < 0)
        return;
    do {
        s->length = 0;
    } while (receive(s) == 0 && nbd_time_left(s->deadline_ns) > 0);
}

/* Whether the server went away, without or with a word: inside of TLS it may have left both out. */
static bool went_away(int r)
{
    return r == -ECONNRESET || r == -EPIPE || r == -ECONNABORTED;
}

/* What the server ended the TLS session with; it may have come before what could not be sent. */
static const char *alert_of(struct session *s)
{
    if (!s->secured)
        return NULL;
    receive(s);
    return s->tls->alert(s->tls->arg, s->stream);
}

/* 0 when all is told, 1 when another session may get further, or negative errno. */
static int run_session(struct session *s, struct error *error)
{
    int r = talk(s);
    const char *alert;

    if (s->client.state == NBD_CLIENT_DONE) {
        leave(s);
        return 0;
    }
    if (s->client.state == NBD_CLIENT_FAILED) {
        if (s->client.output_length > 0)
            leave(s);
        return error_set(error, EPROTO, "%s", s->client.reason.text);
    }
    if (r == -ETIMEDOUT)
        return error_set(error, ETIMEDOUT, "the server did not tell everything in time");
    if (!went_away(r))
        return error_set_errno(error, -r, "the connection broke");
    if (s->client.examined > 0)
        return 1;
    alert = alert_of(s);
    if (alert)
        return error_set(error, ECONNRESET, "the server ended the TLS session with the alert '%s'",
                         alert);
    nbd_client_hang_up(&s->client);
    return error_set(error, ECONNRESET, "%s", s->client.reason.text);
}

static int connect_and_ask(const struct nbd_address *address, const struct nbd_tls *tls,
                           int64_t deadline_ns, struct nbd_remote *remote, struct error *error)
{
    char text[NBD_ADDRESS_TEXT_MAX];
    struct session *s = malloc(sizeof(*s));
    int r;

    if (!s)
        return error_set(error, ENOMEM, "out of memory for a connection");
    s->deadline_ns = deadline_ns;
    s->start = s->length = 0;
    s->tls = tls;
    s->secured = false;
    nbd_client_init(&s->client, remote);
    s->client.tls = tls;
    r = nbd_connect(address, deadline_ns, &s->stream, error);
    if (r == 0) {
        r = run_session(s, error);
        s->stream->ops->close(s->stream);
        if (r < 0)
            error_prefix(error, "Failed to list the exports of '%s': ",
                         nbd_address_text(text, sizeof(text), address));
    }
    free(s);
    return r;
}

int nbd_inquire(const struct nbd_address *address, const struct nbd_tls *tls, int64_t limit_ns,
                struct nbd_remote *ret, struct error *error)
{
    int64_t deadline_ns = limit_ns ? sys->monotonic_ns() + limit_ns : INT64_MAX;
    int r;

    do {
        r = connect_and_ask(address, tls, deadline_ns, ret, error);
    } while (r > 0);
    return r;
}
