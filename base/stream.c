/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A connected socket as a stream.
 *
 * MSG_DONTWAIT goes with every call although the socket is non-blocking: that flag belongs to the
 * open file, which an inherited socket shares with other processes.  sendfile(2) has neither that
 * nor MSG_NOSIGNAL, so the process ignores SIGPIPE (reactor_init does that).
 */
#include "base/stream.h"

#include "base/sys.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>

static ssize_t socket_recv(struct stream *stream, const struct iovec *iov, int iovcnt)
{
    struct msghdr msg = {0};
    ssize_t n;

    /* The kernel does not write through msg_iov; its type lacks the const for historic reasons. */
    msg.msg_iov = (struct iovec *)(uintptr_t)iov;
    msg.msg_iovlen = iovcnt < IOV_MAX ? (size_t)iovcnt : IOV_MAX;
    do {
        n = sys->recvmsg(stream->fd, &msg, MSG_DONTWAIT);
    } while (n == -EINTR);
    return n;
}

static ssize_t socket_send(struct stream *stream, const struct iovec *iov, int iovcnt, bool more)
{
    struct msghdr msg = {0};
    int flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    ssize_t n;

    msg.msg_iov = (struct iovec *)(uintptr_t)iov;
    msg.msg_iovlen = iovcnt < IOV_MAX ? (size_t)iovcnt : IOV_MAX;
    if (more || iovcnt > IOV_MAX)
        flags |= MSG_MORE;
    do {
        n = sys->sendmsg(stream->fd, &msg, flags);
    } while (n == -EINTR);
    return n;
}

static ssize_t socket_send_file(struct stream *stream, int fd, uint64_t offset, size_t length)
{
    ssize_t n;

    do {
        n = sys->sendfile(stream->fd, fd, offset, length);
    } while (n == -EINTR);
    return n;
}

static bool socket_pending(struct stream *stream)
{
    (void)stream;
    return false;
}

static int socket_shutdown(struct stream *stream)
{
    int r;

    do {
        r = sys->shutdown(stream->fd, SHUT_WR);
    } while (r == -EINTR);
    return r;
}

static void socket_close(struct stream *stream)
{
    sys->close(stream->fd);
    free(stream);
}

static const struct stream_ops socket_ops = {
    .recv = socket_recv,
    .send = socket_send,
    .send_file = socket_send_file,
    .pending = socket_pending,
    .shutdown = socket_shutdown,
    .close = socket_close,
};

struct stream *stream_socket_new(int fd)
{
    struct stream *stream = malloc(sizeof(*stream));
    int one = 1;

    if (!stream)
        return NULL;
    *stream = (struct stream){.ops = &socket_ops, .fd = fd};
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    /* Replies are gathered before they are sent. Fails, as it should, on what is not TCP. */
    sys->setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return stream;
}
