/* SPDX-License-Identifier: BSD-3-Clause */
/* A stream that inverts bytes. */
#include "tests/dialogue/fake_tls.h"

#include "base/reactor.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fake_stream {
    struct stream stream;
    struct fake_tls *tls;
    struct stream *inner;
    size_t heard, said; /* of the handshake */
    uint8_t held[4096]; /* received and not given to the caller */
    size_t held_length;
};

static struct fake_stream *fake_of(struct stream *stream)
{
    return container_of(stream, struct fake_stream, stream);
}

void fake_tls_invert(void *data, size_t length)
{
    uint8_t *at = data;

    for (size_t i = 0; i < length; i++)
        at[i] = (uint8_t)~at[i];
}

static ssize_t take_held(struct fake_stream *f, const struct iovec *iov)
{
    size_t n = f->held_length;

    if (iov->iov_len < n)
        return -EIO;
    memcpy(iov->iov_base, f->held, n);
    fake_tls_invert(iov->iov_base, n);
    f->held_length = 0;
    return (ssize_t)n;
}

/* As TLS does it with a record for itself. */
static ssize_t hold(struct fake_stream *f)
{
    struct iovec iov = {f->held, sizeof(f->held)};
    ssize_t n = f->inner->ops->recv(f->inner, &iov, 1);

    if (n <= 0)
        return n;
    f->tls->holds--;
    f->held_length = (size_t)n;
    return -EAGAIN;
}

static ssize_t fake_recv(struct stream *stream, const struct iovec *iov, int iovcnt)
{
    struct fake_stream *f = fake_of(stream);
    ssize_t n;

    (void)iovcnt;
    if (f->held_length > 0)
        return take_held(f, iov);
    if (f->tls->holds > 0)
        return hold(f);
    n = f->inner->ops->recv(f->inner, iov, 1);
    if (n == 0 && f->tls->truncated)
        return -ECONNABORTED;
    if (n > 0)
        fake_tls_invert(iov->iov_base, (size_t)n);
    return n;
}

static ssize_t fake_send(struct stream *stream, const struct iovec *iov, int iovcnt, bool more)
{
    struct fake_stream *f = fake_of(stream);
    uint8_t copy[4096];
    struct iovec out = {copy, iov->iov_len < sizeof(copy) ? iov->iov_len : sizeof(copy)};

    memcpy(copy, iov->iov_base, out.iov_len);
    fake_tls_invert(copy, out.iov_len);
    return f->inner->ops->send(f->inner, &out, 1, more || iovcnt > 1);
}

static bool fake_pending(struct stream *stream)
{
    return fake_of(stream)->held_length > 0;
}

static int fake_shutdown(struct stream *stream)
{
    struct fake_stream *f = fake_of(stream);

    return f->inner->ops->shutdown(f->inner);
}

static void fake_close(struct stream *stream)
{
    struct fake_stream *f = fake_of(stream);

    f->inner->ops->close(f->inner);
    f->tls->alive--;
    free(f);
}

static const struct stream_ops fake_ops = {
    .recv = fake_recv,
    .send = fake_send,
    .pending = fake_pending,
    .shutdown = fake_shutdown,
    .close = fake_close,
};

static struct stream *start(void *arg, struct stream *inner)
{
    struct fake_tls *tls = arg;
    struct fake_stream *f = tls->no_memory ? NULL : calloc(1, sizeof(*f));

    if (!f)
        return NULL;
    f->stream = (struct stream){.ops = &fake_ops, .fd = inner->fd};
    f->tls = tls;
    f->inner = inner;
    tls->alive++;
    return &f->stream;
}

static void count_step(struct fake_tls *tls)
{
    uint64_t turn = reactor_turns();

    tls->steps++;
    if (tls->turn != turn)
        tls->turn_steps = 0;
    tls->turn = turn;
    if (++tls->turn_steps > tls->turn_most)
        tls->turn_most = tls->turn_steps;
}

/* What the other side begins with, byte by byte. */
static int hear(struct fake_stream *f, unsigned *ret_wait, struct error *error)
{
    const char *wanted = f->tls->client ? FAKE_WELCOME : FAKE_HELLO;

    while (f->heard < strlen(wanted)) {
        char c;
        struct iovec iov = {&c, 1};
        ssize_t n = f->inner->ops->recv(f->inner, &iov, 1);

        *ret_wait = REACTOR_READ;
        if (n == -EAGAIN)
            return -EAGAIN;
        if (n != 1 || c != wanted[f->heard])
            return error_set(error, EPROTO, "this is no %s", wanted);
        f->heard++;
    }
    return 0;
}

static int say(struct fake_stream *f, const char *text, struct error *error)
{
    struct iovec iov = {(char *)(uintptr_t)text, strlen(text)};

    if (f->said == iov.iov_len)
        return 0;
    if (f->inner->ops->send(f->inner, &iov, 1, false) != (ssize_t)iov.iov_len)
        return error_set(error, EIO, "cannot send");
    f->said = iov.iov_len;
    return 0;
}

static int handshake(void *arg, struct stream *stream, unsigned *ret_wait, struct error *error)
{
    struct fake_tls *tls = arg;
    struct fake_stream *f = fake_of(stream);
    int r;

    count_step(tls);
    if (tls->laters > 0) {
        tls->laters--;
        *ret_wait = 0;
        return -EAGAIN;
    }
    r = tls->client ? say(f, FAKE_HELLO, error) : 0;
    if (r == 0)
        r = hear(f, ret_wait, error);
    if (r < 0)
        return r;
    if (tls->refuse)
        return error_set(error, EACCES, "nobody is welcome");
    if (tls->writes > 0) {
        tls->writes--;
        *ret_wait = REACTOR_WRITE;
        return -EAGAIN;
    }
    return tls->client ? 0 : say(f, FAKE_WELCOME, error);
}

static const char *describe(void *arg, const struct stream *stream, char *out, size_t out_size)
{
    (void)arg;
    (void)stream;
    snprintf(out, out_size, "inverted");
    return out;
}

static const char *alert(void *arg, const struct stream *stream)
{
    const struct fake_tls *tls = arg;

    (void)stream;
    return tls->alert;
}

static void identify(void *arg, const struct stream *stream, struct nbd_identity *identity)
{
    const struct fake_tls *tls = arg;

    (void)stream;
    identity->proof = tls->name ? NBD_PROOF_KEY : NBD_PROOF_NONE;
    identity->name = tls->name;
}

void fake_tls_init(struct fake_tls *tls, bool required)
{
    *tls = (struct fake_tls){.table = {.required = required,
                                       .start = start,
                                       .handshake = handshake,
                                       .describe = describe,
                                       .alert = alert,
                                       .identify = identify}};
    tls->table.arg = tls;
}
