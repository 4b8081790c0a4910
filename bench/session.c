/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What happens before the first request, where speed does not matter: the stream never blocks, so
 * this waits for it with poll().  Every failure ends the program.
 */
#include "bench/session.h"

#include "base/bytes.h"
#include "base/reactor.h"
#include "nbd/wire.h"
#include "tls/tls_stream.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

enum { WAIT_MS = 20000 };

static void await(const struct stream *s, short events)
{
    struct pollfd p = {.fd = s->fd, .events = events};
    int r = poll(&p, 1, WAIT_MS);

    if (r == 0)
        die("the server has not gone on with the handshake for %d s", WAIT_MS / 1000);
}

static void put(struct stream *s, const void *data, size_t length)
{
    struct iovec iov = {(void *)(uintptr_t)data, length};

    while (iov.iov_len) {
        ssize_t n = s->ops->send(s, &iov, 1, false);
        if (n < 0 && n != -EAGAIN)
            die("cannot send to the server: %s", strerror((int)-n));
        if (n < 0) {
            await(s, POLLOUT);
            continue;
        }
        iov.iov_base = (char *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
    }
}

static void get(struct stream *s, void *data, size_t length)
{
    struct iovec iov = {data, length};

    while (iov.iov_len) {
        ssize_t n = s->ops->recv(s, &iov, 1);
        if (n == 0)
            die("the server closed the connection in the handshake");
        if (n < 0 && n != -EAGAIN)
            die("cannot receive from the server: %s", strerror((int)-n));
        if (n < 0) {
            if (!s->ops->pending(s))
                await(s, POLLIN);
            continue;
        }
        iov.iov_base = (char *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
    }
}

static void put_option(struct stream *s, uint32_t option, const void *data, size_t length)
{
    uint8_t header[NBD_OPTION_HEADER_BYTES];

    put_be64(header, NBD_OPTION_MAGIC);
    put_be32(header + 8, option);
    put_be32(header + 12, (uint32_t)length);
    put(s, header, sizeof(header));
    put(s, data, length);
}

/* Returns the type; up to `room` bytes of the payload, whose length is in *ret_length. */
static uint32_t get_reply(struct stream *s, uint32_t option, uint8_t *payload, size_t room,
                          uint32_t *ret_length)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_BYTES];

    get(s, header, sizeof(header));
    *ret_length = get_be32(header + 16);
    if (get_be64(header) != NBD_OPTION_REPLY_MAGIC || *ret_length > room)
        die("the server's answer to %s is malformed", nbd_option_name(option));
    get(s, payload, *ret_length);
    return get_be32(header + 12);
}

static struct stream *start_tls(struct stream *s, struct tls_credentials *credentials)
{
    uint8_t payload[NBD_STRING_MAX];
    uint32_t length;
    struct error error;
    unsigned events;
    int r;

    put_option(s, NBD_OPT_STARTTLS, NULL, 0);
    if (get_reply(s, NBD_OPT_STARTTLS, payload, sizeof(payload), &length) != NBD_REP_ACK)
        die("the server refused TLS: %.*s", (int)length, (const char *)payload);
    s = tls_stream_new(credentials, "localhost", s);
    if (!s)
        die("out of memory for TLS");
    while ((r = tls_stream_handshake(s, &events, &error)) == -EAGAIN)
        await(s, events == REACTOR_WRITE ? POLLOUT : POLLIN);
    if (r < 0)
        die("no TLS: %s", error.text);
    return s;
}

static void put_go(struct stream *s, const char *export_name)
{
    uint8_t data[4 + NBD_STRING_MAX + 2];
    size_t name_length = strlen(export_name);

    if (name_length > NBD_STRING_MAX)
        die("the export name is longer than %d bytes", NBD_STRING_MAX);
    put_be32(data, (uint32_t)name_length);
    memcpy(data + 4, export_name, name_length);
    put_be16(data + 4 + name_length, 0);
    put_option(s, NBD_OPT_GO, data, 4 + name_length + 2);
}

static void get_go_replies(struct stream *s, const char *export_name, struct export_info *ret_info)
{
    uint8_t payload[2 * NBD_STRING_MAX];

    for (;;) {
        uint32_t length;
        uint32_t type = get_reply(s, NBD_OPT_GO, payload, sizeof(payload), &length);

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

static struct stream *open_socket(const struct address *address)
{
    int fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct stream *s;

    if (fd < 0 || connect(fd, (const struct sockaddr *)&address->storage, address->length))
        die("cannot connect to the server: %s", strerror(errno));
    s = stream_socket_new(fd);
    if (!s)
        die("out of memory for a connection");
    socket_tune(fd, address);
    return s;
}

struct stream *session_open(const struct address *address, const char *export_name,
                            struct tls_credentials *credentials, struct export_info *ret_info)
{
    struct stream *s = open_socket(address);
    uint8_t greeting[18], flags[4];

    get(s, greeting, sizeof(greeting));
    if (get_be64(greeting) != NBD_MAGIC || get_be64(greeting + 8) != NBD_OPTION_MAGIC)
        die("the server does not speak newstyle NBD");
    put_be32(flags, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    put(s, flags, sizeof(flags));
    if (credentials)
        s = start_tls(s, credentials);
    *ret_info = (struct export_info){0};
    put_go(s, export_name);
    get_go_replies(s, export_name, ret_info);
    if (!ret_info->size)
        die("the server did not tell the size of export '%s', or it is empty", export_name);
    return s;
}

struct tls_credentials *session_credentials(const char *certificates, const char *psk,
                                            bool verify_peer)
{
    const struct tls_credentials_config config = {
        .kind = psk ? TLS_PSK : TLS_X509,
        .endpoint = TLS_CLIENT,
        .dir = certificates,
        .psk_file = psk,
        .verify_peer = verify_peer,
    };
    struct tls_credentials *credentials = NULL;
    struct error error;

    if ((psk || certificates) && tls_credentials_new(&config, &credentials, &error) < 0)
        die("%s", error.text);
    return credentials;
}
