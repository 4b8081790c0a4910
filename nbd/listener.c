/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Listening sockets.
 *
 * TCP: every address that the host name stands for gets a socket of its own.  That of the wildcard
 * `::` takes clients of both families; other IPv6 ones are for IPv6 only, so that one host name
 * means the same whatever the system's default for mapped addresses is.
 *
 * Unix: a socket file may be left over from a server that was killed.  Connecting tells: only a
 * socket that refuses is stale and is replaced.  The file made here is remembered by device and
 * inode, and only that file is removed in the end.
 */
#include "nbd/listener.h"

#include "base/sys.h"
#include "nbd/wire.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Replies in a Unix socket's buffer, which the client takes while the next ones are made. */
#define UNIX_BUFFER_BYTES (2 << 20)
/* Others hold the lock of a directory for as long as it takes to bind and listen: not for a second.
 */
#define LOCK_TRIES 100
#define LOCK_WAIT_NS 10000000

/* "host:port" in numbers, in NBD_PEER_MAX bytes; "" for an address that is none of TCP's. */
static void name_address(const struct sockaddr_storage *address, socklen_t length, char *ret)
{
    const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)address;
    bool mapped = address->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&ipv6->sin6_addr);
    char host[NBD_PEER_MAX - 16], port[8];

    ret[0] = '\0';
    if (address->ss_family != AF_INET && address->ss_family != AF_INET6)
        return;
    if (getnameinfo((const struct sockaddr *)address, length, host, sizeof(host), port,
                    sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return;
    if (mapped)
        snprintf(ret, NBD_PEER_MAX, "%s:%s", host + strlen("::ffff:"), port);
    else
        snprintf(ret, NBD_PEER_MAX, address->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
                 port);
}

static int add_listener(struct list *listeners, int fd, struct nbd_listener **ret)
{
    struct nbd_listener *listener = calloc(1, sizeof(*listener));

    if (!listener)
        return -ENOMEM;
    listener->fd = fd;
    list_append(listeners, &listener->link);
    *ret = listener;
    return 0;
}

/*
 * By what the system says: the port may have been 0, and a passed socket have any address, or one
 * that cannot be told.
 */
static void name_listener(struct nbd_listener *listener)
{
    union {
        struct sockaddr_storage any;
        struct sockaddr_un local;
    } address = {.any = {.ss_family = AF_UNSPEC}};
    socklen_t length = sizeof(address);
    size_t path;

    snprintf(listener->name, sizeof(listener->name), "descriptor %d", listener->fd);
    if (sys->getsockname(listener->fd, (struct sockaddr *)&address, &length) < 0)
        return;
    path = strnlen(address.local.sun_path, sizeof(address.local.sun_path));
    if (address.any.ss_family == AF_UNIX && path > 0)
        error_escape(listener->name, sizeof(listener->name), address.local.sun_path, path);
    else if (address.any.ss_family == AF_INET || address.any.ss_family == AF_INET6)
        name_address(&address.any, length, listener->name);
}

/* ---- TCP ---- */

static int set_number(int fd, int level, int name, int value)
{
    return sys->setsockopt(fd, level, name, &value, sizeof(value));
}

static bool is_ipv6_wildcard(const struct addrinfo *address)
{
    const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)address->ai_addr;

    return address->ai_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&ipv6->sin6_addr);
}

/* A listening socket at one address, or negative errno. */
static int listen_at(const struct addrinfo *address, int backlog)
{
    int fd = sys->socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                         address->ai_protocol);
    int r;

    if (fd < 0)
        return fd;
    r = set_number(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (r == 0 && address->ai_family == AF_INET6)
        r = set_number(fd, IPPROTO_IPV6, IPV6_V6ONLY, !is_ipv6_wildcard(address));
    if (r == 0)
        r = sys->bind(fd, address->ai_addr, address->ai_addrlen);
    if (r == 0)
        r = sys->listen(fd, backlog);
    if (r == 0)
        return fd;
    sys->close(fd);
    return r;
}

/* The resolver may name an address twice. */
static bool seen_before(const struct addrinfo *first, const struct addrinfo *address)
{
    for (; first != address; first = first->ai_next) {
        if (first->ai_addrlen == address->ai_addrlen &&
            memcmp(first->ai_addr, address->ai_addr, address->ai_addrlen) == 0)
            return true;
    }
    return false;
}

/* Listens at each address; those of a family that this machine does not have are passed over. */
static int listen_at_all(struct list *listeners, const struct addrinfo *addresses, int backlog)
{
    int passed = -EADDRNOTAVAIL, count = 0;

    for (const struct addrinfo *it = addresses; it; it = it->ai_next) {
        struct nbd_listener *listener;
        int fd, r;

        if (seen_before(addresses, it))
            continue;
        fd = listen_at(it, backlog);
        if (fd == -EADDRNOTAVAIL || fd == -EAFNOSUPPORT) {
            passed = fd;
            continue;
        }
        if (fd < 0)
            return fd;
        r = add_listener(listeners, fd, &listener);
        if (r < 0) {
            sys->close(fd);
            return r;
        }
        name_listener(listener);
        count++;
    }
    return count > 0 ? 0 : passed;
}

static void free_all(struct list *listeners)
{
    struct list *node;

    while ((node = list_pop(listeners)))
        nbd_listener_free(list_entry(node, struct nbd_listener, link));
}

/* One host name or address. *ret_missing: this machine does not have its family or address. */
static int listen_host(struct list *listeners, const char *host, const char *port, int backlog,
                       bool *ret_missing, struct error *error)
{
    const struct addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct list made = LIST_INIT(made);
    struct addrinfo *addresses;
    int r;

    *ret_missing = false;
    r = getaddrinfo(host, port, &hints, &addresses);
    if (r != 0)
        return error_set(error, r == EAI_SYSTEM ? errno : EINVAL,
                         "cannot listen on host '%s', port '%s': %s", host, port,
                         r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r));
    r = listen_at_all(&made, addresses, backlog);
    freeaddrinfo(addresses);
    if (r < 0) {
        free_all(&made);
        *ret_missing = r == -EADDRNOTAVAIL || r == -EAFNOSUPPORT;
        return error_set_errno(error, -r, "cannot listen on host '%s', port '%s'", host, port);
    }
    list_splice(listeners, &made);
    return 0;
}

int nbd_listen_tcp(struct list *listeners, const char *host, const char *port, int backlog,
                   struct error *error)
{
    bool missing;
    int r;

    if (!port)
        port = NBD_DEFAULT_PORT;
    if (!host || *host)
        return listen_host(listeners, host ? host : "0.0.0.0", port, backlog, &missing, error);
    /* One socket for both families, so that they have the same port even if it is chosen. */
    r = listen_host(listeners, "::", port, backlog, &missing, error);
    if (r < 0 && missing)
        r = listen_host(listeners, "0.0.0.0", port, backlog, &missing, error);
    return r;
}

/* ---- Unix ---- */

/* What is at `path` itself, not behind a symbolic link. */
static int look_at(const char *path, struct stat *st)
{
    int fd = sys->openat(AT_FDCWD, path, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0), r;

    if (fd < 0)
        return fd;
    r = sys->fstat(fd, st);
    sys->close(fd);
    return r;
}

/* Whether the socket at the address refuses: -ECONNREFUSED; 0 when somebody is there. */
static int probe_socket(const struct sockaddr_un *address)
{
    int fd = sys->socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r;

    if (fd < 0)
        return fd;
    r = sys->connect(fd, (const struct sockaddr *)address, sizeof(*address));
    sys->close(fd);
    /* A full backlog has a server behind it; so has a socket of another type. */
    return r == -EAGAIN || r == -EINPROGRESS || r == -EPROTOTYPE ? 0 : r;
}

/*
 * Between bind and listen a socket looks stale, and between looking and removing it may be
 * replaced. So servers that start on paths in one directory do it one after the other.  The lock is
 * advice among ourselves: where it cannot be had, or somebody sits on it, it is done without.
 * Returns the descriptor that holds it, or negative errno.
 */
static int lock_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *directory = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int fd, r;

    if (!directory)
        return -ENOMEM;
    fd = sys->openat(AT_FDCWD, directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    free(directory);
    if (fd < 0)
        return fd;
    for (int tries = 0; tries < LOCK_TRIES; tries++) {
        r = sys->flock(fd, LOCK_EX | LOCK_NB);
        if (r != -EWOULDBLOCK && r != -EINTR)
            break;
        nanosleep(&(struct timespec){.tv_nsec = LOCK_WAIT_NS}, NULL);
    }
    return fd;
}

/* Makes the path free, or says why it is not. */
static int clear_path(const struct sockaddr_un *address, struct error *error)
{
    const char *path = address->sun_path;
    struct stat st;
    int r = look_at(path, &st);

    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return error_set_errno(error, -r, "cannot look at socket path '%s'", path);
    if (!S_ISSOCK(st.st_mode))
        return error_set(error, EEXIST,
                         "cannot listen on '%s': it exists and is not a socket; it is left alone",
                         path);
    r = probe_socket(address);
    if (r == 0)
        return error_set(error, EADDRINUSE,
                         "cannot listen on '%s': another server is listening there", path);
    if (r == -ENOENT)
        return 0;
    if (r != -ECONNREFUSED)
        return error_set_errno(error, -r, "cannot tell whether a server is listening on '%s'",
                               path);
    r = sys->unlinkat(AT_FDCWD, path, 0);
    if (r < 0 && r != -ENOENT)
        return error_set_errno(error, -r, "cannot remove the stale socket '%s'", path);
    return 0;
}

static int listen_unix_at(struct nbd_listener *listener, const struct sockaddr_un *address,
                          int backlog, struct error *error)
{
    struct stat st;
    int r;

    listener->fd = sys->socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener->fd < 0)
        return error_set_errno(error, -listener->fd, "cannot make a Unix socket");
    r = sys->bind(listener->fd, (const struct sockaddr *)address, sizeof(*address));
    if (r < 0)
        return error_set_errno(error, -r, "cannot listen on '%s'", address->sun_path);
    r = look_at(address->sun_path, &st);
    listener->path = strdup(address->sun_path);
    if (r == 0 && !listener->path)
        r = -ENOMEM;
    if (r < 0) {
        /* Made a moment ago; what cannot be recognized later must not stay now. */
        sys->unlinkat(AT_FDCWD, address->sun_path, 0);
    } else {
        listener->device = st.st_dev;
        listener->inode = st.st_ino;
        r = sys->listen(listener->fd, backlog);
    }
    return r < 0 ? error_set_errno(error, -r, "cannot listen on '%s'", address->sun_path) : 0;
}

int nbd_listen_unix(struct list *listeners, const char *path, int backlog, struct error *error)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct nbd_listener *listener;
    int lock, r;

    if (path[0] == '\0')
        return error_set(error, EINVAL, "the path of the Unix socket is empty");
    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(
            error, ENAMETOOLONG,
            "the path of the Unix socket has %zu bytes; at most %zu are possible: '%s'",
            strlen(path), sizeof(address.sun_path) - 1, path);
    memcpy(address.sun_path, path, strlen(path));
    r = add_listener(listeners, -1, &listener);
    if (r < 0)
        return error_set_errno(error, -r, "cannot listen on '%s'", path);
    lock = lock_directory(path);
    r = clear_path(&address, error);
    if (r == 0)
        r = listen_unix_at(listener, &address, backlog, error);
    if (lock >= 0)
        sys->close(lock);
    if (r < 0)
        nbd_listener_free(listener);
    else
        name_listener(listener);
    return r;
}

void nbd_listener_free(struct nbd_listener *listener)
{
    struct stat st;

    if (!listener)
        return;
    list_remove(&listener->link);
    if (listener->path && look_at(listener->path, &st) == 0 && st.st_dev == listener->device &&
        st.st_ino == listener->inode)
        sys->unlinkat(AT_FDCWD, listener->path, 0);
    if (listener->fd >= 0)
        sys->close(listener->fd);
    free(listener->path);
    free(listener);
}

/* ---- Passed by somebody else ---- */

static int socket_option(int fd, int name, int *ret)
{
    socklen_t length = sizeof(*ret);

    return sys->getsockopt(fd, SOL_SOCKET, name, ret, &length);
}

/* Refuses what is no listening stream socket. */
static int check_passed(int fd, struct error *error)
{
    int type, listening, r = socket_option(fd, SO_TYPE, &type);

    if (r == -ENOTSOCK)
        return error_set(error, ENOTSOCK, "the passed descriptor %d is not a socket", fd);
    if (r == 0)
        r = socket_option(fd, SO_ACCEPTCONN, &listening);
    if (r < 0)
        return error_set_errno(error, -r, "cannot use the passed descriptor %d", fd);
    if (type != SOCK_STREAM)
        return error_set(error, EPROTOTYPE,
                         "the passed descriptor %d is not a stream socket, which NBD needs", fd);
    if (!listening)
        return error_set(error, EINVAL,
                         "the passed descriptor %d is a socket that does not listen; one with "
                         "Accept=no is needed, not a connection",
                         fd);
    return 0;
}

int nbd_listen_passed(struct list *listeners, int fd, struct error *error)
{
    struct nbd_listener *listener;
    int r = check_passed(fd, error), flags;

    if (r < 0)
        return r;
    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return error_set_errno(error, errno, "cannot use the passed descriptor %d", fd);
    r = add_listener(listeners, fd, &listener);
    if (r < 0)
        return error_set_errno(error, -r, "cannot use the passed descriptor %d", fd);
    name_listener(listener);
    return 0;
}

/* ---- Accepting ---- */

void nbd_socket_tune(int fd)
{
    /* Fails on what is not TCP, and so tells which it is. */
    if (set_number(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30) == 0) {
        set_number(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
        set_number(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
        set_number(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 60000);
        set_number(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
        return;
    }
    /* What a Unix socket may hold is the sender's limit alone; the receive buffer is not used. */
    if (set_number(fd, SOL_SOCKET, SO_SNDBUFFORCE, UNIX_BUFFER_BYTES) < 0)
        set_number(fd, SOL_SOCKET, SO_SNDBUF, UNIX_BUFFER_BYTES);
}

bool nbd_socket_name_process(int fd, char *peer)
{
    struct ucred process;
    socklen_t length = sizeof(process);

    if (sys->getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &process, &length) < 0)
        return false;
    snprintf(peer, NBD_PEER_MAX, "pid %d uid %u", (int)process.pid, (unsigned)process.uid);
    return true;
}

int nbd_listener_accept(struct nbd_listener *listener, char *peer)
{
    struct sockaddr_storage address = {.ss_family = AF_UNSPEC};
    socklen_t length = sizeof(address);
    int fd = sys->accept(listener->fd, (struct sockaddr *)&address, &length,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0)
        return fd;
    nbd_socket_tune(fd);
    name_address(&address, length, peer);
    return fd;
}
