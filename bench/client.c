/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Addresses, blocking I/O and time, where speed does not matter.  Every failure ends the program,
 * since a benchmark with a hole in it is void.
 */
#include "bench/client.h"

#include "base/bytes.h"
#include "nbd/wire.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { SEND_BUFFER_BYTES = 1 << 20 };

void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

void address_unix(struct address *address, const char *path)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(un.sun_path))
        die("the socket path '%s' is longer than %zu bytes", path, sizeof(un.sun_path) - 1);
    memcpy(un.sun_path, path, strlen(path));
    memcpy(&address->storage, &un, sizeof(un));
    address->length = sizeof(un);
}

static void address_resolve(struct address *address, const char *host, const char *port)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    int err = getaddrinfo(host, port, &hints, &list);
    if (err)
        die("cannot resolve host '%s', port '%s': %s", host, port, gai_strerror(err));
    memcpy(&address->storage, list->ai_addr, list->ai_addrlen);
    address->length = list->ai_addrlen;
    freeaddrinfo(list);
}

void address_tcp(struct address *address, const char *text)
{
    char *copy = strdup(text);
    char *colon = copy ? strrchr(copy, ':') : NULL;
    if (!colon)
        die("'%s' is not HOST:PORT", text);
    *colon = '\0';
    char *host = copy;
    if (host[0] == '[' && colon[-1] == ']') {
        colon[-1] = '\0';
        host++;
    }
    address_resolve(address, host, colon + 1);
    free(copy);
}

void address_uri(struct address *address, const char *uri, char **ret_export)
{
    char *copy = strdup(uri);
    if (!copy)
        die("out of memory");
    char *path, *query;
    if (strncmp(copy, "nbd+unix:///", 12) == 0 && (query = strstr(copy, "?socket="))) {
        *query = '\0';
        path = copy + 12;
        address_unix(address, query + strlen("?socket="));
    } else if (strncmp(copy, "nbd://", 6) == 0) {
        char *host = copy + 6;
        path = strchrnul(host, '/');
        if (*path)
            *path++ = '\0';
        char *bracket = strchr(host, ']');
        char *with_port = NULL;
        if (!strchr(bracket ? bracket : host, ':') &&
            asprintf(&with_port, "%s:" NBD_DEFAULT_PORT, host) < 0)
            die("out of memory");
        address_tcp(address, with_port ? with_port : host);
        free(with_port);
    } else {
        die("'%s' is neither nbd://HOST[:PORT]/EXPORT nor nbd+unix:///EXPORT?socket=PATH", uri);
    }
    *ret_export = strdup(path);
    free(copy);
}

/*
 * A full Unix socket wakes its sender only when three quarters have been read.  With the usual
 * 208 KiB both sides then take turns instead of working at the same time.
 */
void socket_tune(int fd, const struct address *address)
{
    if (address->storage.ss_family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    else if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &(int){SEND_BUFFER_BYTES}, sizeof(int)))
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){SEND_BUFFER_BYTES}, sizeof(int));
}

void send_all(int fd, const void *data, size_t length)
{
    for (const char *p = data; length;) {
        ssize_t n = send(fd, p, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            die("cannot send to the peer: %s", strerror(errno));
        p += n;
        length -= (size_t)n;
    }
}

void recv_all(int fd, void *data, size_t length)
{
    for (char *p = data; length;) {
        ssize_t n = recv(fd, p, length, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            die("cannot receive from the peer: %s", strerror(errno));
        if (n == 0)
            die("the peer closed the connection during negotiation");
        p += n;
        length -= (size_t)n;
    }
}

int64_t clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

void sleep_until(int64_t ns)
{
    const struct timespec ts = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
        ;
}

double parse_positive(const char *name, const char *text, double maximum)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value > 0 && value <= maximum))
        die("--%s takes a positive number up to %g, not '%s'", name, maximum, text);
    return value;
}
