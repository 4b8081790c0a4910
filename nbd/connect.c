/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connecting to a server without blocking the loop.  Names are looked up in a worker thread; the
 * time limit cannot end that, but counts it.  When a host has several addresses, each gets its
 * share of the time that is left, so that one that swallows packets does not hide the next.
 */
#include "nbd/connect.h"

#include "base/checked.h"
#include "base/reactor.h"
#include "base/stream.h"
#include "base/sys.h"
#include "base/worker.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

/* How long a Unix server with a full backlog is left alone before the next try. */
#define BUSY_NS INT64_C(10000000)

char *nbd_address_text(char *out, size_t out_size, const struct nbd_address *address)
{
    const char *host = address->host ? address->host : "localhost";

    if (address->socket)
        snprintf(out, out_size, "%s", address->socket);
    else
        snprintf(out, out_size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, address->port);
    return out;
}

int64_t nbd_time_left(int64_t deadline_ns)
{
    int64_t now = sys->monotonic_ns();

    if (deadline_ns == INT64_MAX)
        return -1;
    return deadline_ns > now ? deadline_ns - now : 0;
}

/* The outcome of a connection that was under way, asked for by trying again. */
static int connect_outcome(int fd, const struct sockaddr *address, socklen_t length)
{
    int r = sys->connect(fd, address, length);

    return r == -EISCONN ? 0 : r;
}

/* 0, or negative errno. */
static int wait_connected(int fd, const struct sockaddr *address, socklen_t length,
                          int64_t deadline_ns)
{
    int r = connect_outcome(fd, address, length);

    while (r == -EINPROGRESS || r == -EALREADY || r == -EINTR || r == -EAGAIN) {
        int64_t left = nbd_time_left(deadline_ns);

        if (left == 0)
            return -ETIMEDOUT;
        if (r == -EAGAIN) { /* a Unix socket; there is nothing to wait for but time */
            co_sleep(left > 0 && left < BUSY_NS ? left : BUSY_NS);
        } else if (r != -EINTR) {
            int events = co_wait_fd(fd, REACTOR_WRITE, left);

            if (events < 0)
                return events;
        }
        r = connect_outcome(fd, address, length);
    }
    return r;
}

static int connect_to(int family, const struct sockaddr *address, socklen_t length,
                      int64_t deadline_ns, struct stream **ret)
{
    int fd = sys->socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r;

    if (fd < 0)
        return fd;
    r = wait_connected(fd, address, length, deadline_ns);
    if (r == 0) {
        *ret = stream_socket_new(fd);
        if (*ret)
            return 0;
        r = -ENOMEM;
    }
    sys->close(fd);
    return r;
}

static int connect_unix(const char *path, int64_t deadline_ns, struct stream **ret)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path));
    return connect_to(AF_UNIX, (const struct sockaddr *)&address, sizeof(address), deadline_ns,
                      ret);
}

struct lookup {
    const struct nbd_address *address;
    struct addrinfo *found;
    int error; /* errno of EAI_SYSTEM */
};

/* In a worker. Without a host, the C library gives the loopback addresses. */
static int look_up(void *arg)
{
    struct lookup *lookup = arg;
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    int r = getaddrinfo(lookup->address->host, lookup->address->port, &hints, &lookup->found);

    lookup->error = errno;
    return r;
}

static int count_addresses(const struct addrinfo *it)
{
    int count = 0;

    for (; it; it = it->ai_next)
        count++;
    return count;
}

/* Returns what the last address said when all have failed. */
static int connect_any(const struct addrinfo *addresses, int64_t deadline_ns, struct stream **ret)
{
    int left = count_addresses(addresses);
    int r = -EADDRNOTAVAIL;

    for (const struct addrinfo *it = addresses; it; it = it->ai_next, left--) {
        int64_t share = nbd_time_left(deadline_ns) / left;

        r = connect_to(it->ai_family, it->ai_addr, it->ai_addrlen,
                       share < 0 ? INT64_MAX : sys->monotonic_ns() + share, ret);
        if (r == 0)
            return 0;
    }
    return r;
}

int nbd_connect(const struct nbd_address *address, int64_t deadline_ns, struct stream **ret,
                struct error *error)
{
    struct lookup lookup = {.address = address};
    char text[NBD_ADDRESS_TEXT_MAX];
    int r;

    nbd_address_text(text, sizeof(text), address);
    if (address->socket) {
        r = connect_unix(address->socket, deadline_ns, ret);
    } else {
        r = co_run_in_worker(look_up, &lookup);
        if (r == EAI_SYSTEM)
            return error_set_errno(error, lookup.error, "address resolution failed for %s", text);
        if (r != 0)
            return error_set(error, EINVAL, "address resolution failed for %s: %s", text,
                             gai_strerror(r));
        r = connect_any(lookup.found, deadline_ns, ret);
        freeaddrinfo(lookup.found);
    }
    return r < 0 ? error_set_errno(error, -r, "Failed to connect to '%s'", text) : 0;
}
