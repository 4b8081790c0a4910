/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The yardstick: the least that a one-thread NBD server over a raw file can do.  No formats, no
 * locks, no caps, no checks beyond the bounds of the file.  Only for the bench.
 *
 * A turn of a connection: one large receive; each small read by one pread straight behind its reply
 * header in the output buffer; one send.  Reads from SENDFILE_FROM up go out by sendfile.  What a
 * write brings is written as it arrives, straight from the input buffer.  While output waits for
 * the socket the connection is not received from.
 */
#include "bench/client.h"

#include "base/bytes.h"
#include "nbd/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    INPUT_BYTES = 256 << 10,
    OUTPUT_BYTES = 256 << 10,
    SENDFILE_FROM = 32 << 10,
    EVENTS = 64,
    FLAGS = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
            NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN,
};

enum progress { BLOCKED, DONE, BROKEN }; /* by the socket; nothing left; close the connection */

struct server {
    struct address address;
    int listen_fd;
    int epoll_fd;
    int file_fd;
    uint64_t size;
};

struct connection {
    int fd;
    bool wants_out;

    off_t file_at; /* of a sendfile that follows the output */
    size_t file_left;

    uint64_t write_at; /* of a write whose payload is coming in */
    uint32_t write_left;
    uint32_t write_error;
    bool write_fua;
    uint64_t write_cookie;

    size_t in_at, in_end;
    size_t out_at, out_end;
    uint8_t in[INPUT_BYTES];
    uint8_t out[OUTPUT_BYTES];
};

/* ---- output ---- */

static uint8_t *output_reply(struct connection *c, uint64_t cookie, uint32_t error)
{
    uint8_t *reply = c->out + c->out_end;
    put_be32(reply, NBD_SIMPLE_REPLY_MAGIC);
    put_be32(reply + 4, error);
    put_be64(reply + 8, cookie);
    c->out_end += NBD_SIMPLE_REPLY_BYTES;
    return reply + NBD_SIMPLE_REPLY_BYTES;
}

static enum progress output_send(const struct server *s, struct connection *c)
{
    while (c->out_at < c->out_end) {
        int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (c->file_left ? MSG_MORE : 0);
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_end - c->out_at, flags);
        if (n < 0)
            return errno == EAGAIN ? BLOCKED : BROKEN;
        c->out_at += (size_t)n;
    }
    c->out_at = c->out_end = 0;
    while (c->file_left) {
        ssize_t n = sendfile(c->fd, s->file_fd, &c->file_at, c->file_left);
        if (n <= 0)
            return n < 0 && errno == EAGAIN ? BLOCKED : BROKEN;
        c->file_left -= (size_t)n;
    }
    return DONE;
}

/* ---- requests ---- */

static void run_read(const struct server *s, struct connection *c, uint64_t cookie, uint64_t offset,
                     uint32_t length)
{
    uint8_t *payload = output_reply(c, cookie, 0);
    if (length >= SENDFILE_FROM) {
        c->file_at = (off_t)offset;
        c->file_left = length;
    } else if (pread(s->file_fd, payload, length, (off_t)offset) == (ssize_t)length) {
        c->out_end += length;
    } else {
        put_be32(payload - NBD_SIMPLE_REPLY_BYTES + 4, NBD_EIO);
    }
}

static void run_write_payload(const struct server *s, struct connection *c)
{
    size_t n = c->in_end - c->in_at;
    if (n > c->write_left)
        n = c->write_left;
    if (!c->write_error &&
        pwrite(s->file_fd, c->in + c->in_at, n, (off_t)c->write_at) != (ssize_t)n)
        c->write_error = NBD_EIO;
    c->in_at += n;
    c->write_at += n;
    c->write_left -= (uint32_t)n;
    if (c->write_left)
        return;
    if (c->write_fua && fdatasync(s->file_fd))
        c->write_error = NBD_EIO;
    output_reply(c, c->write_cookie, c->write_error);
}

static int run_plain(const struct server *s, uint16_t command, uint64_t offset, uint32_t length)
{
    switch (command) {
    case NBD_CMD_FLUSH:
        return fdatasync(s->file_fd);
    case NBD_CMD_TRIM:
        return fallocate(s->file_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                         length);
    case NBD_CMD_WRITE_ZEROES:
        return fallocate(s->file_fd, FALLOC_FL_ZERO_RANGE, (off_t)offset, length);
    default:
        return -1;
    }
}

static bool run_request(const struct server *s, struct connection *c, const uint8_t *request)
{
    uint16_t flags = get_be16(request + 4);
    uint16_t command = get_be16(request + 6);
    uint64_t cookie = get_be64(request + 8);
    uint64_t offset = get_be64(request + 16);
    uint32_t length = get_be32(request + 24);
    bool fits = offset <= s->size && length <= s->size - offset;
    bool fua = flags & NBD_CMD_FLAG_FUA;
    if (get_be32(request) != NBD_REQUEST_MAGIC || command == NBD_CMD_DISC)
        return false;
    if (command == NBD_CMD_WRITE) {
        c->write_at = offset;
        c->write_left = length;
        c->write_error = fits ? 0 : NBD_ENOSPC;
        c->write_fua = fua;
        c->write_cookie = cookie;
        if (!length)
            output_reply(c, cookie, c->write_error);
    } else if (!fits) {
        output_reply(c, cookie, NBD_EINVAL);
    } else if (command == NBD_CMD_READ) {
        run_read(s, c, cookie, offset, length);
    } else {
        int err = run_plain(s, command, offset, length);
        if (!err && fua)
            err = fdatasync(s->file_fd);
        output_reply(c, cookie, err ? NBD_EIO : 0);
    }
    return true;
}

/* BLOCKED: the output must leave before the next request; DONE: more input is needed. */
static enum progress run_requests(const struct server *s, struct connection *c)
{
    for (;;) {
        size_t left = c->in_end - c->in_at;
        if (c->file_left ||
            OUTPUT_BYTES - c->out_end < (size_t)NBD_SIMPLE_REPLY_BYTES + SENDFILE_FROM)
            return BLOCKED;
        if (c->write_left && left) {
            run_write_payload(s, c);
        } else if (!c->write_left && left >= NBD_REQUEST_BYTES) {
            c->in_at += NBD_REQUEST_BYTES;
            if (!run_request(s, c, c->in + c->in_at - NBD_REQUEST_BYTES))
                return BROKEN;
        } else {
            memmove(c->in, c->in + c->in_at, left);
            c->in_at = 0;
            c->in_end = left;
            return DONE;
        }
    }
}

/* ---- connections ---- */

static void connection_close(struct connection *c)
{
    close(c->fd);
    free(c);
}

static bool connection_receive(struct connection *c)
{
    ssize_t n = recv(c->fd, c->in + c->in_end, INPUT_BYTES - c->in_end, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN;
    c->in_end += (size_t)n;
    return n > 0;
}

static void connection_turn(const struct server *s, struct connection *c)
{
    if (!c->wants_out && !connection_receive(c)) {
        connection_close(c);
        return;
    }
    enum progress ran, sent;
    do {
        ran = run_requests(s, c);
        sent = ran == BROKEN ? BROKEN : output_send(s, c);
    } while (ran == BLOCKED && sent == DONE);
    if (sent == BROKEN) {
        connection_close(c);
        return;
    }
    bool wants_out = sent == BLOCKED;
    if (wants_out == c->wants_out)
        return;
    c->wants_out = wants_out;
    struct epoll_event event = {.events = wants_out ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

/* ---- negotiation: blocking, and trusting the client ---- */

static void send_option_reply(int fd, uint32_t option, uint32_t type, const void *data,
                              uint32_t length)
{
    uint8_t header[NBD_OPTION_REPLY_HEADER_BYTES];
    put_be64(header, NBD_OPTION_REPLY_MAGIC);
    put_be32(header + 8, option);
    put_be32(header + 12, type);
    put_be32(header + 16, length);
    send_all(fd, header, sizeof(header));
    send_all(fd, data, length);
}

static bool negotiate(const struct server *s, int fd)
{
    uint8_t buffer[NBD_OPTION_HEADER_BYTES + 2 * NBD_STRING_MAX];
    put_be64(buffer, NBD_MAGIC);
    put_be64(buffer + 8, NBD_OPTION_MAGIC);
    put_be16(buffer + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    send_all(fd, buffer, 18);
    if (recv(fd, buffer, 4, MSG_WAITALL) != 4)
        return false;
    for (;;) {
        if (recv(fd, buffer, NBD_OPTION_HEADER_BYTES, MSG_WAITALL) != NBD_OPTION_HEADER_BYTES)
            return false;
        uint32_t option = get_be32(buffer + 8);
        uint32_t length = get_be32(buffer + 12);
        if (get_be64(buffer) != NBD_OPTION_MAGIC || length > 2 * NBD_STRING_MAX)
            return false;
        recv_all(fd, buffer, length);
        if (option != NBD_OPT_GO && option != NBD_OPT_INFO) {
            send_option_reply(fd, option, NBD_REP_ERR_UNSUP, NULL, 0);
            continue;
        }
        put_be16(buffer, NBD_INFO_EXPORT);
        put_be64(buffer + 2, s->size);
        put_be16(buffer + 10, FLAGS);
        send_option_reply(fd, option, NBD_REP_INFO, buffer, 12);
        send_option_reply(fd, option, NBD_REP_ACK, NULL, 0);
        if (option == NBD_OPT_GO)
            return true;
    }
}

static void server_accept(const struct server *s)
{
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    socket_tune(fd, &s->address);
    if (!negotiate(s, fd)) {
        close(fd);
        return;
    }
    fcntl(fd, F_SETFL, O_NONBLOCK); /* sendfile takes no MSG_DONTWAIT */
    struct connection *c = malloc(sizeof(*c));
    if (!c)
        die("out of memory for a connection");
    memset(c, 0, offsetof(struct connection, in));
    c->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &event))
        die("cannot watch a connection: %s", strerror(errno));
}

static void server_init(struct server *s, const char *path)
{
    const struct address *address = &s->address;
    struct stat st;
    s->file_fd = open(path, O_RDWR | O_CLOEXEC);
    if (s->file_fd < 0 || fstat(s->file_fd, &st))
        die("cannot open '%s': %s", path, strerror(errno));
    s->size = (uint64_t)st.st_size;
    s->listen_fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(s->listen_fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (s->listen_fd < 0 ||
        bind(s->listen_fd, (const struct sockaddr *)&address->storage, address->length) ||
        listen(s->listen_fd, SOMAXCONN))
        die("cannot listen: %s", strerror(errno));
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->listen_fd, &event))
        die("cannot watch the listening socket: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    struct server server;
    if (argc != 4 || (strcmp(argv[1], "--unix") != 0 && strcmp(argv[1], "--tcp") != 0))
        die("usage: limit (--unix PATH | --tcp HOST:PORT) FILE");
    if (strcmp(argv[1], "--unix") == 0)
        address_unix(&server.address, argv[2]);
    else
        address_tcp(&server.address, argv[2]);
    server_init(&server, argv[3]);
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(server.epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr)
                connection_turn(&server, events[i].data.ptr);
            else
                server_accept(&server);
        }
    }
}
