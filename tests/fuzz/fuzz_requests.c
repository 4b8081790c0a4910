/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: a connection over a socket pair, against a disk in memory.  The first two bytes of
 * the input choose what the disk and the session are like; the rest is what the client sends, which
 * it does in pieces.  Besides not crashing: replies follow the protocol's rules, every one belongs
 * to a request, all requests are answered once, and when the client has gone the server is as
 * before.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/reactor.h"
#include "nbd/request.h"
#include "nbd/server.h"
#include "tests/dialogue/exchange.h"
#include "tests/dialogue/ram_driver.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum {
    READ_ONLY = 1,
    SLOW = 2,      /* requests wait, and end in another order */
    RAW = 4,       /* the input has the handshake, too */
    PROTECTED = 8, /* guessed raw */
    ZEROES = 16,   /* zeroes are detected */
    FAILING = 32,  /* writes fail */
    PIECES = 64,   /* the input is sent in small pieces */
    UNMAP = 128,
};

/* The second byte; its two lowest bits are the mode, 3 as 2. */
enum {
    MODE_BITS = 3,
    CONTEXTS = 4, /* base:allocation is selected */
    DEPTH = 8,    /* qemu:allocation-depth, too */
    HOLES = 16,   /* the disk has some */
    BAD = 32,     /* part of the disk cannot be read */
};

#define DISK_BYTES 131072
#define ROUNDS_MAX 3000

struct session {
    struct ram_disk disk;
    struct node *node;
    struct nbd_exports exports;
    struct nbd_export *nbd_export;
    struct nbd_server *server;
    unsigned traits, more;
    enum nbd_reply_mode mode;
    uint64_t contexts;
    int fd;
    struct message in; /* what the server said */
};

static void require(bool condition)
{
    if (!condition)
        abort();
}

static int open_export(void *arg)
{
    struct session *s = arg;
    unsigned flags = s->traits & READ_ONLY ? 0 : NODE_WRITABLE;

    if (s->traits & UNMAP)
        flags |= NODE_UNMAP;
    s->node = ram_disk_open(&s->disk, flags);
    s->nbd_export = nbd_export_new("disk", "text", s->node, s->traits & READ_ONLY, true);
    require(s->nbd_export);
    s->nbd_export->header_node = s->traits & PROTECTED ? s->nbd_export->node : NULL;
    s->nbd_export->probe_drivers = ram_drivers;
    s->nbd_export->detect_zeroes = s->traits & ZEROES;
    s->nbd_export->allocation_depth = s->more & DEPTH;
    list_append(&s->exports.list, &s->nbd_export->link);
    s->exports.default_export = s->nbd_export;
    return 0;
}

static int close_export(void *arg)
{
    struct session *s = arg;

    nbd_export_free(s->nbd_export);
    node_unref(s->node);
    return 0;
}

static void begin(struct session *s)
{
    static const struct nbd_server_config config = {0};
    int fds[2];

    ram_disk_init(&s->disk, DISK_BYTES);
    memset(s->disk.data, 0xee, DISK_BYTES);
    if (s->more & HOLES)
        ram_disk_set_layout(&s->disk, "dhhd", 8192);
    s->disk.bad_offset = 40000;
    s->disk.bad_length = s->more & BAD ? 3 : 0;
    s->disk.slow = s->traits & SLOW;
    s->disk.write_error = s->traits & FAILING ? -ENOSPC : 0;
    nbd_exports_init(&s->exports);
    reactor_run_coroutine(open_export, s);
    s->server = nbd_server_new(&config, &s->exports, NULL);
    require(s->server);
    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    require(nbd_server_add_client(s->server, fds[1], "fuzz") == 0);
    s->fd = fds[0];
}

static void end(struct session *s)
{
    s->disk.slow = false;
    nbd_server_free(s->server);
    reactor_run_coroutine(close_export, s);
    ram_disk_fini(&s->disk);
    close(s->fd);
    message_free(&s->in);
    require(buffer_bytes_used() == 0);
}

static void receive_all(struct session *s)
{
    static uint8_t buffer[65536];
    ssize_t n;

    while ((n = recv(s->fd, buffer, sizeof(buffer), MSG_DONTWAIT)) > 0)
        message_bytes(&s->in, buffer, (size_t)n);
}

/* One round of the loop; a slow disk lets its youngest call go. */
static void step(struct session *s)
{
    reactor_poll(false);
    if (s->disk.waiting_count > 0)
        ram_disk_release(&s->disk, s->disk.waiting_count - 1);
    receive_all(s);
}

static void send_all(struct session *s, const uint8_t *data, size_t length)
{
    for (int round = 0; length > 0 && round < ROUNDS_MAX; round++) {
        size_t piece = s->traits & PIECES && length > 29 ? 29 : length;
        ssize_t n = send(s->fd, data, piece, MSG_NOSIGNAL);

        if (n < 0 && errno != EAGAIN)
            return;
        if (n > 0) {
            data += n;
            length -= (size_t)n;
        }
        step(s);
    }
}

/* The client has said all it had to say. */
static void drain(struct session *s)
{
    shutdown(s->fd, SHUT_WR);
    for (int round = 0; nbd_server_connections(s->server) > 0; round++) {
        require(round < ROUNDS_MAX);
        step(s);
    }
    step(s);
}

/* ---- What must have been said ---- */

/* Skips the handshake. Returns whether it led to where it should. */
static bool skip_handshake(struct byte_reader *in)
{
    byte_reader_skip(in, 18);
    while (!in->failed) {
        uint64_t magic = byte_reader_be64(in);
        uint32_t option = byte_reader_be32(in), type = byte_reader_be32(in);

        byte_reader_skip(in, byte_reader_be32(in));
        if (magic != NBD_OPTION_REPLY_MAGIC || type & NBD_REPLY_ERROR_BIT)
            return false;
        if (option == NBD_OPT_GO && type == NBD_REP_ACK)
            return !in->failed;
    }
    return false;
}

/* The requests that the server has seen whole, in order, and what must be told of contexts. */
static void expect_requests(struct exchange *x, struct byte_reader in, uint64_t selected)
{
    size_t header = nbd_request_bytes(x->mode);

    while (in.left >= header) {
        struct nbd_request request;

        if (!nbd_request_decode(x->mode, in.data, &request) || request.command == NBD_CMD_DISC)
            break;
        byte_reader_skip(&in, header);
        request.contexts = request.payload ? 0 : selected;
        exchange_expect(x, &request);
        if (request.payload > in.left)
            break;
        if (nbd_request_filter_bytes(&request))
            nbd_request_take_filter(&x->answers[x->count - 1].request, in.data, selected);
        byte_reader_skip(&in, request.payload);
    }
}

static bool cookies_differ(const struct exchange *x)
{
    for (size_t i = 0; i < x->count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (x->answers[i].request.cookie == x->answers[k].request.cookie)
                return false;
        }
    }
    return true;
}

static void check_replies(const struct session *s, const uint8_t *data, size_t size)
{
    struct byte_reader in = byte_reader_of(s->in.data, s->in.length);
    struct exchange x;

    exchange_init(&x, s->mode);
    require(skip_handshake(&in));
    expect_requests(&x, byte_reader_of(data, size), s->contexts);
    if (cookies_differ(&x)) {
        if (!exchange_read(&x, &in))
            fprintf(stderr, "%s\n", x.broken);
        require(!x.broken && in.left == 0);
        /* All but a last one, whose payload never came. */
        for (size_t i = 0; i + 1 < x.count; i++)
            require(x.answers[i].done);
    }
    exchange_free(&x);
}

static void handshake(struct session *s)
{
    static const char *const modes[] = {"", "structured;", "extended;"};
    struct message m = {0};
    char script[128];

    if (s->more & CONTEXTS && s->mode != NBD_MODE_SIMPLE)
        s->contexts = s->more & DEPTH ? 3 : 1;
    snprintf(script, sizeof(script), "flags 3; %s %s go disk", modes[s->mode],
             s->contexts == 3   ? "set disk base:allocation qemu:allocation-depth;"
             : s->contexts == 1 ? "set disk base:allocation;"
                                : "");
    message_script(&m, script);
    send_all(s, m.data, m.length);
    message_free(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool started;
    struct session s = {0};

    if (size < 2)
        return 0;
    if (!started)
        require(reactor_init(NULL) == 0);
    started = true;
    s.traits = data[0];
    s.more = data[1];
    s.mode = (s.more & MODE_BITS) > 2 ? NBD_MODE_EXTENDED : s.more & MODE_BITS;
    begin(&s);
    if (!(s.traits & RAW))
        handshake(&s);
    send_all(&s, data + 2, size - 2);
    drain(&s);
    if (!(s.traits & RAW))
        check_replies(&s, data + 2, size - 2);
    end(&s);
    return 0;
}
