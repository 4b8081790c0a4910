/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The blocking half of the bench programs: whatever happens before the first request, where speed
 * does not matter.  Every failure ends the program, since a benchmark with a hole in it is void.
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

static void send_go(int fd, const char *export_name)
{
    size_t name_length = strlen(export_name);
    if (name_length > NBD_STRING_MAX)
        die("the export name is longer than %d bytes", NBD_STRING_MAX);
    uint8_t message[4 + NBD_OPTION_HEADER_BYTES + 4 + NBD_STRING_MAX + 2];
    put_be32(message, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    put_be64(message + 4, NBD_OPTION_MAGIC);
    put_be32(message + 12, NBD_OPT_GO);
    put_be32(message + 16, (uint32_t)(4 + name_length + 2));
    put_be32(message + 20, (uint32_t)name_length);
    memcpy(message + 24, export_name, name_length);
    put_be16(message + 24 + name_length, 0);
    send_all(fd, message, 24 + name_length + 2);
}

static void read_go_replies(int fd, const char *export_name, struct export_info *ret_info)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_BYTES];
    uint8_t payload[2 * NBD_STRING_MAX];
    for (;;) {
        recv_all(fd, header, sizeof(header));
        uint32_t type = get_be32(header + 12);
        uint32_t length = get_be32(header + 16);
        if (get_be64(header) != NBD_OPTION_REPLY_MAGIC || length > sizeof(payload))
            die("the server's answer to NBD_OPT_GO is malformed");
        recv_all(fd, payload, length);
        if (type & NBD_REPLY_ERROR_BIT)
            die("the server refused export '%s' (reply 0x%x): %.*s", export_name, type, (int)length,
                (const char *)payload);
        if (type == NBD_REP_ACK)
            return;
        if (type == NBD_REP_INFO && length == 12 && get_be16(payload) == NBD_INFO_EXPORT) {
            ret_info->size = get_be64(payload + 2);
            ret_info->flags = get_be16(payload + 10);
        }
    }
}

int client_connect(const struct address *address, const char *export_name,
                   struct export_info *ret_info)
{
    int fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address->storage, address->length))
        die("cannot connect to the server: %s", strerror(errno));
    socket_tune(fd, address);

    uint8_t greeting[18];
    recv_all(fd, greeting, sizeof(greeting));
    if (get_be64(greeting) != NBD_MAGIC || get_be64(greeting + 8) != NBD_OPTION_MAGIC)
        die("the server does not speak newstyle NBD");
    *ret_info = (struct export_info){0};
    send_go(fd, export_name);
    read_go_replies(fd, export_name, ret_info);
    if (!ret_info->size)
        die("the server did not tell the size of export '%s', or it is empty", export_name);
    return fd;
}
