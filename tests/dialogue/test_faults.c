/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Faults of the network: in a session of all kinds of requests, each call in turn is interrupted,
 * cut short, or fails.  What only disturbs changes nothing; what breaks ends this connection and no
 * other.
 */
#include "base/buffer.h"
#include "base/reactor.h"
#include "tests/dialogue/rig.h"
#include "tests/support/fault.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REQUESTS 40

/* The handshake, reads and writes, DISC; all sent at once. */
static void session(struct message *m)
{
    message_go(m, "disk");
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint32_t length = i % 7 ? 1000 * i : 100000;

        message_request(m, &(struct nbd_request){.command = i % 2 ? NBD_CMD_READ : NBD_CMD_WRITE,
                                                 .cookie = i,
                                                 .offset = 100 * i,
                                                 .length = length});
        if (i % 2 == 0)
            message_fill(m, (uint8_t)i, length);
    }
    message_request(m, &(struct nbd_request){.command = NBD_CMD_DISC});
}

/* Runs the session until the server has done with it. Nothing here fails: the server may be gone.
 */
static void run_session(struct rig *rig, const struct message *m, struct message *ret_said)
{
    struct client c;
    size_t sent = 0;

    memset(rig->disk.data, 0, rig->disk.size);
    client_connect(&c, rig);
    for (int i = 0; i < 2000 && nbd_server_connections(rig->server) > 0; i++) {
        if (!c.closed)
            sent += client_send_some(&c, m->data + sent, m->length - sent);
        reactor_poll(false);
        client_receive(&c, c.in.length + 1);
    }
    assert_int_equal(nbd_server_connections(rig->server), 0);
    client_expect_close(&c);
    if (ret_said)
        message_bytes(ret_said, c.in.data, c.in.length);
    client_free(&c);
}

static void run_with(const struct fault_plan *plan, bool harmless)
{
    struct rig rig;
    struct message m = {0}, expected = {0};
    unsigned nth;

    fault_install();
    rig_init(&rig, NULL);
    session(&m);
    fault_arm(&(struct fault_plan){0});
    run_session(&rig, &m, &expected);
    assert_true(expected.length > 104 + REQUESTS * 16);
    for (nth = 1;; nth++) {
        struct fault_plan armed = *plan;
        struct message said = {0};
        bool fired;

        armed.nth = nth;
        fault_arm(&armed);
        run_session(&rig, &m, &said);
        fired = fault_fired();
        fault_arm(&(struct fault_plan){0});
        if (harmless || !fired) {
            assert_int_equal(said.length, expected.length);
            assert_memory_equal(said.data, expected.data, said.length);
        } else {
            assert_true(said.length <= expected.length);
            assert_memory_equal(said.data, expected.data, said.length);
        }
        message_free(&said);
        if (!fired)
            break;
    }
    assert_true(nth > 2);
    rig_fini(&rig);
    fault_remove();
    message_free(&m);
    message_free(&expected);
}

static void test_interrupted(void **state)
{
    run_with(&(struct fault_plan){.calls = FAULT_RECVMSG | FAULT_SENDMSG, .error = EINTR}, true);
}

static void test_not_ready_after_all(void **state)
{
    run_with(&(struct fault_plan){.calls = FAULT_RECVMSG | FAULT_SENDMSG, .error = EAGAIN}, true);
}

static void test_cut_short(void **state)
{
    run_with(&(struct fault_plan){.calls = FAULT_RECVMSG, .short_to = 1}, true);
    run_with(&(struct fault_plan){.calls = FAULT_RECVMSG, .short_to = 61}, true);
    run_with(&(struct fault_plan){.calls = FAULT_SENDMSG, .short_to = 1}, true);
    run_with(&(struct fault_plan){.calls = FAULT_SENDMSG, .sticky = true}, true);
}

static void test_broken(void **state)
{
    run_with(&(struct fault_plan){.calls = FAULT_RECVMSG, .error = ECONNRESET}, false);
    run_with(&(struct fault_plan){.calls = FAULT_SENDMSG, .error = EPIPE}, false);
    run_with(&(struct fault_plan){.calls = FAULT_SENDMSG, .error = ENOBUFS}, false);
}

/* Options of the socket are for speed only. */
static void test_without_options(void **state)
{
    run_with(&(struct fault_plan){.calls = FAULT_SETSOCKOPT | FAULT_SHUTDOWN, .error = ENOPROTOOPT},
             true);
}

/* A client that says nothing before it has read the greeting gets all of it. */
static void test_greeting_in_pieces(void **state)
{
    struct rig rig;
    struct client c;

    fault_install();
    fault_arm(&(struct fault_plan){0});
    rig_init(&rig, NULL);
    fault_arm(&(struct fault_plan){.calls = FAULT_SENDMSG, .nth = 1, .short_to = 5});
    client_connect(&c, &rig);
    assert_true(client_receive(&c, 18));
    assert_true(fault_fired());
    client_free(&c);
    rig_fini(&rig);
    fault_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_interrupted),     cmocka_unit_test(test_not_ready_after_all),
        cmocka_unit_test(test_cut_short),       cmocka_unit_test(test_broken),
        cmocka_unit_test(test_without_options), cmocka_unit_test(test_greeting_in_pieces),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
