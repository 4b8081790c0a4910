/* SPDX-License-Identifier: BSD-3-Clause */
/* Connections that change over to TLS, with something else in its place (fake_tls.h). */
#include "base/bytes.h"
#include "tests/dialogue/fake_tls.h"
#include "tests/dialogue/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define GREETING_BYTES 18
#define WELCOME_BYTES (sizeof(FAKE_WELCOME) - 1)

struct fixture {
    struct rig rig;
    struct fake_tls tls;
};

static void fixture_init(struct fixture *f)
{
    struct rig_options options = {.size = 1 << 20, .tls = &f->tls.table};

    fake_tls_init(&f->tls, true);
    rig_init(&f->rig, &options);
}

static void fixture_fini(struct fixture *f)
{
    rig_fini(&f->rig);
    assert_int_equal(f->tls.alive, 0);
}

/* Up to the acknowledgment of STARTTLS. */
static void begin(struct client *c, struct fixture *f)
{
    client_connect(c, &f->rig);
    client_send_script(c, "flags 3; option 5");
    assert_true(client_receive(c, GREETING_BYTES + NBD_OPTION_REPLY_HEADER_BYTES));
    assert_int_equal(get_be32(c->in.data + GREETING_BYTES + 12), NBD_REP_ACK);
    assert_int_equal(c->in.length, GREETING_BYTES + NBD_OPTION_REPLY_HEADER_BYTES);
    c->in.length = 0;
}

static void expect_welcome(struct client *c)
{
    assert_true(client_receive(c, WELCOME_BYTES));
    assert_memory_equal(c->in.data, FAKE_WELCOME, WELCOME_BYTES);
    c->in.length -= WELCOME_BYTES;
    memmove(c->in.data, c->in.data + WELCOME_BYTES, c->in.length);
}

static void enter(struct client *c, struct fixture *f)
{
    begin(c, f);
    client_send(c, FAKE_HELLO, strlen(FAKE_HELLO));
    expect_welcome(c);
}

static void send_inside(struct client *c, struct message *m)
{
    fake_tls_invert(m->data, m->length);
    client_send_message(c, m);
}

/* Enters the export inside, and reads from it. */
static void go_and_read(struct client *c, const char *script)
{
    struct message m = {0};
    uint8_t request[NBD_REQUEST_BYTES];

    message_script(&m, script);
    send_inside(c, &m);
    assert_true(client_receive(c, 20 + 12 + 20 + 14 + 20));
    fake_tls_invert(c->in.data, c->in.length);
    assert_int_equal(get_be64(c->in.data), NBD_OPTION_REPLY_MAGIC);
    assert_int_equal(c->in.length, 86);
    c->in.length = 0;
    nbd_request_encode(request, &(struct nbd_request){.command = NBD_CMD_READ, .length = 512});
    message_bytes(&m, request, sizeof(request));
    send_inside(c, &m);
    assert_true(client_receive(c, 16 + 512));
    fake_tls_invert(c->in.data, 16);
    assert_int_equal(get_be32(c->in.data), NBD_SIMPLE_REPLY_MAGIC);
    assert_int_equal(get_be32(c->in.data + 4), 0);
    message_free(&m);
}

static void test_session(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f);
    enter(&c, &f);
    go_and_read(&c, "go disk");
    assert_int_equal(f.tls.alive, 1);
    client_free(&c);
    fixture_fini(&f);
}

/* Options that come with the end of the handshake are not waited for in vain. */
static void test_options_with_the_hello(void **state)
{
    struct message m = {0};
    struct fixture f;
    struct client c;

    fixture_init(&f);
    begin(&c, &f);
    message_script(&m, "option 2");
    fake_tls_invert(m.data, m.length);
    client_send(&c, FAKE_HELLO, strlen(FAKE_HELLO));
    client_send_message(&c, &m);
    expect_welcome(&c);
    assert_true(client_receive(&c, NBD_OPTION_REPLY_HEADER_BYTES));
    fake_tls_invert(c.in.data, NBD_OPTION_REPLY_HEADER_BYTES);
    assert_int_equal(get_be32(c.in.data + 8), NBD_OPT_ABORT);
    assert_int_equal(get_be32(c.in.data + 12), NBD_REP_ACK);
    client_expect_close(&c);
    message_free(&m);
    client_free(&c);
    fixture_fini(&f);
}

static void test_drops(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f);
    begin(&c, &f);
    f.tls.writes = 3;
    for (size_t i = 0; i < strlen(FAKE_HELLO); i++) {
        client_expect_silence(&c);
        client_send(&c, FAKE_HELLO + i, 1);
    }
    expect_welcome(&c);
    assert_int_equal(f.tls.writes, 0);
    go_and_read(&c, "go disk");
    client_free(&c);
    fixture_fini(&f);
}

static void expect_no_tls(struct fixture *f, const char *hello)
{
    struct client c;

    begin(&c, f);
    client_send(&c, hello, strlen(hello));
    client_expect_close(&c);
    assert_int_equal(c.in.length, 0);
    client_free(&c);
    rig_await_no_clients(&f->rig);
    assert_int_equal(f->tls.alive, 0);
}

static void test_failures(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f);
    expect_no_tls(&f, "help!");
    expect_no_tls(&f, "GET / HTTP/1.0\r\n\r\n");
    f.tls.refuse = true;
    expect_no_tls(&f, FAKE_HELLO);
    f.tls.refuse = false;
    f.tls.no_memory = true;
    expect_no_tls(&f, FAKE_HELLO);
    f.tls.no_memory = false;
    begin(&c, &f);
    client_send(&c, FAKE_HELLO, 2);
    client_free(&c);
    rig_await_no_clients(&f.rig);
    enter(&c, &f);
    client_free(&c);
    fixture_fini(&f);
}

/* Bytes in the same segment as STARTTLS, by somebody between client and server. */
static void test_injection(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f);
    client_connect(&c, &f.rig);
    client_send_script(&c, "flags 3; option 5; structured");
    client_expect_close(&c);
    client_free(&c);
    rig_await_no_clients(&f.rig);
    assert_int_equal(f.tls.steps, 0);
    fixture_fini(&f);
}

static void test_end_that_nobody_vouches_for(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f);
    enter(&c, &f);
    go_and_read(&c, "go disk");
    f.tls.truncated = true;
    client_disconnect(&c);
    rig_await_no_clients(&f.rig);
    client_free(&c);
    fixture_fini(&f);
}

static void test_stop(void **state)
{
    struct fixture f;
    struct client waiting, inside;

    fixture_init(&f);
    begin(&waiting, &f);
    client_send(&waiting, FAKE_HELLO, 2);
    enter(&inside, &f);
    rig_pump();
    nbd_server_stop(f.rig.server, RIG_LIMIT_NS);
    client_expect_close(&waiting);
    client_expect_close(&inside);
    client_free(&waiting);
    client_free(&inside);
    fixture_fini(&f);
}

/* However many want it: the steps of their handshakes are spread over turns. */
static void test_steps_of_a_turn(void **state)
{
    enum { CLIENTS = 20 };
    struct client c[CLIENTS];
    struct fixture f;

    fixture_init(&f);
    for (int i = 0; i < CLIENTS; i++)
        begin(&c[i], &f);
    for (int i = 0; i < CLIENTS; i++)
        assert_int_equal(write(c[i].fd, FAKE_HELLO, strlen(FAKE_HELLO)), strlen(FAKE_HELLO));
    for (int i = 0; i < CLIENTS; i++) {
        expect_welcome(&c[i]);
        client_free(&c[i]);
    }
    assert_int_equal(f.tls.turn_most, 1);
    fixture_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_session),   cmocka_unit_test(test_options_with_the_hello),
        cmocka_unit_test(test_drops),     cmocka_unit_test(test_failures),
        cmocka_unit_test(test_injection), cmocka_unit_test(test_end_that_nobody_vouches_for),
        cmocka_unit_test(test_stop),      cmocka_unit_test(test_steps_of_a_turn),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
