/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The transport of a connection: a table of six functions.  A socket is one; TLS wraps another.
 * All calls are non-blocking and return -EAGAIN when they would wait.
 */
#ifndef EVNBD_BASE_STREAM_H
#define EVNBD_BASE_STREAM_H

#include "base/checked.h"

#include <sys/types.h>
#include <sys/uio.h>

struct stream;

struct stream_ops {
    /* Bytes received (0: the peer closed its side) or negative errno. */
    ssize_t (*recv)(struct stream *stream, const struct iovec *iov, int iovcnt);
    /* Bytes taken (maybe fewer) or negative errno. `more`: another send follows at once. */
    ssize_t (*send)(struct stream *stream, const struct iovec *iov, int iovcnt, bool more);
    /* Sends from a file without copying; NULL where the transport cannot. */
    ssize_t (*send_file)(struct stream *stream, int fd, uint64_t offset, size_t length);
    /* Whether received bytes wait inside the stream although the descriptor is not readable. */
    bool (*pending)(struct stream *stream);
    /* No more will be sent (TLS: close_notify first). 0 or negative errno. */
    int (*shutdown)(struct stream *stream);
    /* Closes and frees. */
    void (*close)(struct stream *stream);
};

struct stream {
    const struct stream_ops *ops;
    int fd; /* to watch with the reactor; owned by the innermost stream */
};

/* Takes ownership of a connected socket, which it makes non-blocking. NULL: out of memory (fd not
 * closed). */
struct stream *stream_socket_new(int fd);

#endif
