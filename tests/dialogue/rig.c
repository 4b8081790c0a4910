/* SPDX-License-Identifier: BSD-3-Clause */
/* A server and clients in one thread. */
#include "tests/dialogue/rig.h"

#include "base/bytes.h"
#include "base/reactor.h"
#include "tests/dialogue/layer_driver.h"
#include "tests/support/support.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* Rounds of the loop after which nothing more will happen by itself. */
#define PUMP_ROUNDS 12
/* Rounds without progress after which an expectation has failed. */
#define PATIENCE 200

static void on_client_left(void *arg, unsigned remaining)
{
    struct rig *rig = arg;

    rig->left++;
    rig->remaining = remaining;
}

static void on_stopped(void *arg)
{
    struct rig *rig = arg;

    rig->stopped = true;
}

static int open_export(void *arg)
{
    struct rig *rig = arg;

    rig->node = rig->options->layer ? layer_open(rig->options->layer)
                                    : ram_disk_open(&rig->disk, rig->node_flags);
    rig->nbd_export = nbd_export_new("disk", NULL, rig->node, rig->read_only, true);
    if (!rig->nbd_export)
        test_die("out of memory for an export");
    rig->nbd_export->allocation_depth = rig->options->allocation_depth;
    if (rig->options->bitmap &&
        nbd_export_add_bitmap(rig->nbd_export, rig->options->bitmap, NULL) < 0)
        test_die("there is no bitmap '%s'", rig->options->bitmap);
    list_append(&rig->exports.list, &rig->nbd_export->link);
    rig->exports.default_export = rig->nbd_export;
    return 0;
}

static int close_export(void *arg)
{
    struct rig *rig = arg;

    nbd_export_free(rig->nbd_export);
    node_unref(rig->node);
    return 0;
}

void rig_init(struct rig *rig, const struct rig_options *options)
{
    static const struct rig_options defaults = {.size = 1 << 20};
    struct nbd_server_config config = {.handshake_limit_ns = RIG_LIMIT_NS};
    const struct nbd_server_events events = {
        .arg = rig, .client_left = on_client_left, .stopped = on_stopped};

    bool read_only;

    if (!options)
        options = &defaults;
    read_only = options->read_only || options->layer;
    config.oldstyle = options->oldstyle;
    config.tls = options->tls;
    config.connections_max = options->connections_max;
    config.connections_of_one = options->connections_of_one;
    config.idle_limit_ns = options->idle_limit_ns;
    *rig = (struct rig){.read_only = read_only,
                        .node_flags = options->node_flags | (read_only ? 0 : NODE_WRITABLE),
                        .options = options};
    if (reactor_init(NULL) < 0)
        test_die("cannot start the loop");
    if (options->pattern)
        ram_disk_init_pattern(&rig->disk, options->size);
    else
        ram_disk_init(&rig->disk, options->size);
    if (options->layout)
        ram_disk_set_layout(&rig->disk, options->layout, options->unit);
    nbd_exports_init(&rig->exports);
    reactor_run_coroutine(open_export, rig);
    rig->server = nbd_server_new(&config, &rig->exports, &events);
    if (!rig->server)
        test_die("out of memory for a server");
    nbd_server_start(rig->server);
}

void rig_fini(struct rig *rig)
{
    nbd_server_stop(rig->server, RIG_LIMIT_NS);
    rig->disk.slow = false;
    ram_disk_release_all(&rig->disk);
    for (int i = 0; i < PATIENCE && !rig->stopped; i++)
        rig_pump();
    assert_true(rig->stopped);
    assert_int_equal(nbd_server_connections(rig->server), 0);
    nbd_server_free(rig->server);
    reactor_run_coroutine(close_export, rig);
    ram_disk_fini(&rig->disk);
    reactor_fini();
}

void rig_pump(void)
{
    for (int i = 0; i < PUMP_ROUNDS; i++)
        reactor_poll(false);
}

void rig_await_no_clients(struct rig *rig)
{
    for (int i = 0; i < PATIENCE && nbd_server_connections(rig->server) > 0; i++)
        rig_pump();
    assert_int_equal(nbd_server_connections(rig->server), 0);
}

void client_connect(struct client *c, struct rig *rig)
{
    int fds[2];

    *c = (struct client){0};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0)
        test_die("socketpair: %s", strerror(errno));
    c->fd = fds[0];
    if (nbd_server_add_client(rig->server, fds[1], "test") < 0)
        test_die("the server does not take a client");
}

void client_enter(struct client *c, struct rig *rig)
{
    struct message m = {0};

    client_connect(c, rig);
    message_go(&m, "disk");
    client_send_message(c, &m);
    /* The greeting, two informations and the acknowledgment. */
    assert_true(client_receive(c, 18 + 20 + 12 + 20 + 14 + 20));
    assert_int_equal(c->in.length, 104);
    c->in.length = 0;
    message_free(&m);
}

static void take(struct client *c, void *data, size_t length)
{
    if (data)
        memcpy(data, c->in.data, length);
    c->in.length -= length;
    memmove(c->in.data, c->in.data + length, c->in.length);
}

/* Takes one reply to an option off. Returns whether it was the ACK of GO. */
static bool take_option_reply(struct client *c)
{
    uint32_t option, type, length;

    assert_true(client_receive(c, NBD_OPTION_REPLY_HEADER_BYTES));
    option = get_be32(c->in.data + 8);
    type = get_be32(c->in.data + 12);
    length = get_be32(c->in.data + 16);
    assert_false(type & NBD_REPLY_ERROR_BIT);
    assert_true(client_receive(c, NBD_OPTION_REPLY_HEADER_BYTES + length));
    if (type == NBD_REP_INFO && get_be16(c->in.data + 20) == NBD_INFO_EXPORT)
        c->flags = get_be16(c->in.data + 30);
    take(c, NULL, NBD_OPTION_REPLY_HEADER_BYTES + length);
    return option == NBD_OPT_GO && type == NBD_REP_ACK;
}

void client_enter_mode(struct client *c, struct rig *rig, enum nbd_reply_mode mode,
                       const char *contexts)
{
    static const char *const modes[] = {"", "structured;", "extended;"};
    char script[256];

    client_connect(c, rig);
    snprintf(script, sizeof(script), "flags 3; %s %s %s; go disk", modes[mode],
             contexts ? "set disk" : "", contexts ? contexts : "");
    client_send_script(c, script);
    assert_true(client_receive(c, 18));
    take(c, NULL, 18);
    while (!take_option_reply(c))
        ;
    assert_int_equal(c->in.length, 0);
}

void client_disconnect(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

void client_free(struct client *c)
{
    client_disconnect(c);
    message_free(&c->in);
}

size_t client_send_some(struct client *c, const void *data, size_t length)
{
    size_t done = 0;

    while (done < length) {
        ssize_t n = send(c->fd, (const uint8_t *)data + done, length - done, MSG_NOSIGNAL);

        if (n < 0)
            break;
        done += (size_t)n;
    }
    return done;
}

void client_send(struct client *c, const void *data, size_t length)
{
    for (int i = 0; i < PATIENCE && length > 0; i++) {
        size_t n = client_send_some(c, data, length);

        data = (const uint8_t *)data + n;
        length -= n;
        if (n > 0)
            i = 0;
        reactor_poll(false);
    }
    assert_int_equal(length, 0);
}

void client_send_message(struct client *c, struct message *m)
{
    client_send(c, m->data, m->length);
    m->length = 0;
}

void client_send_script(struct client *c, const char *script)
{
    struct message m = {0};

    message_script(&m, script);
    client_send_message(c, &m);
    message_free(&m);
}

void client_request(struct client *c, uint16_t command, uint16_t flags, uint64_t cookie,
                    uint64_t offset, uint32_t length)
{
    struct message m = {0};

    message_request(&m, &(struct nbd_request){.command = command,
                                              .flags = flags,
                                              .cookie = cookie,
                                              .offset = offset,
                                              .length = length});
    client_send_message(c, &m);
    message_free(&m);
}

void client_write(struct client *c, uint16_t flags, uint64_t cookie, uint64_t offset, uint8_t byte,
                  uint32_t length)
{
    struct message m = {0};

    message_request(&m, &(struct nbd_request){.command = NBD_CMD_WRITE,
                                              .flags = flags,
                                              .cookie = cookie,
                                              .offset = offset,
                                              .length = length});
    message_fill(&m, byte, length);
    client_send_message(c, &m);
    message_free(&m);
}

/* Receives what is there. Returns whether anything was. */
static bool receive_some(struct client *c)
{
    static uint8_t buffer[256 * 1024];
    ssize_t n = c->closed ? -1 : recv(c->fd, buffer, sizeof(buffer), MSG_DONTWAIT);

    if (n > 0)
        message_bytes(&c->in, buffer, (size_t)n);
    else if (n == 0 || (!c->closed && errno != EAGAIN))
        c->closed = true;
    return n > 0;
}

bool client_receive(struct client *c, size_t length)
{
    for (int i = 0; i < PATIENCE && c->in.length < length && !c->closed; i++) {
        reactor_poll(false);
        while (c->in.length < length && receive_some(c))
            i = 0;
    }
    return c->in.length >= length;
}

void client_take(struct client *c)
{
    while (receive_some(c))
        ;
}

void client_expect_close(struct client *c)
{
    for (int i = 0; i < PATIENCE && !c->closed; i++) {
        reactor_poll(false);
        while (receive_some(c))
            i = 0;
    }
    assert_true(c->closed);
}

void client_expect_silence(struct client *c)
{
    rig_pump();
    receive_some(c);
    assert_int_equal(c->in.length, 0);
    assert_false(c->closed);
}

uint32_t client_reply(struct client *c, uint64_t *ret_cookie, void *data, size_t length)
{
    uint8_t header[NBD_SIMPLE_REPLY_BYTES];
    uint32_t error;

    if (!client_receive(c, sizeof(header)))
        fail_msg("no reply came, but %zu bytes", c->in.length);
    take(c, header, sizeof(header));
    assert_int_equal(get_be32(header), NBD_SIMPLE_REPLY_MAGIC);
    error = get_be32(header + 4);
    *ret_cookie = get_be64(header + 8);
    if (error == NBD_SUCCESS && length > 0) {
        assert_true(client_receive(c, length));
        take(c, data, length);
    }
    return error;
}

void client_expect(struct client *c, uint64_t cookie, uint32_t error)
{
    uint64_t got;

    assert_int_equal(client_reply(c, &got, NULL, 0), error);
    assert_int_equal(got, cookie);
}

void client_ask(struct client *c, struct exchange *x, const struct nbd_request *request,
                const void *data, size_t payload)
{
    struct message m = {0};

    exchange_expect(x, request);
    exchange_request(&m, x->mode, request);
    message_bytes(&m, data, payload);
    client_send_message(c, &m);
    message_free(&m);
}

void client_await(struct client *c, struct exchange *x)
{
    for (int i = 0; i < PATIENCE && x->done < x->count; i++) {
        struct byte_reader in = byte_reader_of(c->in.data, c->in.length);
        bool whole = exchange_read(x, &in);
        size_t used = c->in.length - in.left;

        if (!whole)
            fail_msg("a reply breaks the rules: %s", x->broken);
        if (used > 0)
            i = 0;
        take(c, NULL, used);
        reactor_poll(false);
        while (receive_some(c))
            i = 0;
    }
    assert_int_equal(x->done, x->count);
}

void client_expect_log(struct client *c, enum nbd_reply_mode mode,
                       const struct nbd_request *request, const char *log)
{
    uint8_t *payload = calloc(1, request->payload + 1);
    struct exchange x;

    assert_non_null(payload);
    exchange_init(&x, mode);
    client_ask(c, &x, request, payload, request->payload);
    client_await(c, &x);
    if (strcmp(answer_log(&x.answers[0]), log) != 0)
        fail_msg("%s flags 0x%x of %" PRIu64 " bytes at %" PRIu64 ":\n  answered %s\n  expected %s",
                 nbd_command_name(request->command), request->flags, request->length,
                 request->offset, answer_log(&x.answers[0]), log);
    exchange_free(&x);
    free(payload);
}

void client_expect_data(struct client *c, uint64_t cookie, const void *data, size_t length)
{
    uint8_t *got = malloc(length ? length : 1);
    uint64_t got_cookie;

    assert_non_null(got);
    assert_int_equal(client_reply(c, &got_cookie, got, length), NBD_SUCCESS);
    assert_int_equal(got_cookie, cookie);
    assert_memory_equal(got, data, length);
    free(got);
}
