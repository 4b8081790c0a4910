/* SPDX-License-Identifier: BSD-3-Clause */
/* The orderly stop: what is in flight, what comes late, and who is not waited for. */
#include "tests/dialogue/rig.h"
#include "tests/support/sim_clock.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)

static void test_stop_in_flight(void **state)
{
    struct rig rig;
    struct client c, idle, shaking;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_enter(&idle, &rig);
    client_connect(&shaking, &rig);
    client_send_script(&shaking, "flags 3");
    rig.disk.slow = true;
    client_write(&c, 0, 1, 0, 's', 512);
    rig_pump();
    nbd_server_stop(rig.server, RIG_LIMIT_NS);
    client_expect_close(&idle);
    client_expect_close(&shaking);
    /* More of it is refused, what runs is finished. */
    client_write(&c, 0, 2, 0, 't', 512);
    client_expect(&c, 2, NBD_ESHUTDOWN);
    client_request(&c, NBD_CMD_READ, 0, 3, 0, 1);
    client_expect(&c, 3, NBD_ESHUTDOWN);
    assert_false(rig.stopped);
    assert_int_equal(rig.disk.flushes, 0);
    ram_disk_release_all(&rig.disk);
    client_expect(&c, 1, NBD_SUCCESS);
    client_expect_close(&c);
    rig_pump();
    /* The last thing is a flush of what was written. */
    assert_int_equal(nbd_server_connections(rig.server), 0);
    assert_int_equal(rig.disk.waiting_count, 1);
    assert_int_equal(rig.disk.flushes, 1);
    assert_false(rig.stopped);
    ram_disk_release_all(&rig.disk);
    rig_pump();
    assert_true(rig.stopped);
    assert_int_equal(rig.disk.data[0], 's');
    client_free(&c);
    client_free(&idle);
    client_free(&shaking);
    rig_fini(&rig);
}

/* What has come before the stop is seen is answered, in the handshake too. */
static void test_stop_with_pending_input(void **state)
{
    struct rig rig;
    struct client c, shaking;
    char text[32];
    struct message m = {0};

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_connect(&shaking, &rig);
    rig_pump();
    assert_true(client_receive(&shaking, 18));
    shaking.in.length = 0;
    message_script(&m, "flags 3; list");
    assert_int_equal(client_send_some(&shaking, m.data, m.length), m.length);
    m.length = 0;
    /* More than one turn handles. */
    for (unsigned i = 0; i < 1000; i++)
        message_request(&m,
                        &(struct nbd_request){.command = NBD_CMD_READ, .cookie = i, .length = 1});
    assert_int_equal(client_send_some(&c, m.data, m.length), m.length);
    nbd_server_stop(rig.server, RIG_LIMIT_NS);
    for (unsigned i = 0; i < 1000; i++)
        client_expect(&c, i, NBD_ESHUTDOWN);
    client_expect_close(&c);
    client_expect_close(&shaking);
    assert_true(shaking.in.length > 20);
    memcpy(text, shaking.in.data + 12, 4);
    assert_memory_equal(text, "\x80\0\0\x07", 4); /* ERR_SHUTDOWN */
    message_free(&m);
    client_free(&c);
    client_free(&shaking);
    rig_fini(&rig);
}

static void test_stop_takes_no_clients(void **state)
{
    struct rig rig;
    int fds[2];

    rig_init(&rig, NULL);
    nbd_server_stop(rig.server, RIG_LIMIT_NS);
    nbd_server_stop(rig.server, RIG_LIMIT_NS);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(nbd_server_add_client(rig.server, fds[1], "late"), -ESHUTDOWN);
    assert_int_equal(recv(fds[0], fds, 1, 0), 0);
    assert_false(rig.stopped); /* never told before the call returns */
    rig_pump();
    assert_true(rig.stopped);
    rig_fini(&rig);
}

/* ---- Who is not waited for ---- */

/* Stops the server, which must come to its end within a second and a half. */
static void expect_quick_stop(struct rig *rig)
{
    int64_t start = sim_clock_now();

    nbd_server_stop(rig->server, RIG_LIMIT_NS);
    while (!rig->stopped && sim_clock_now() - start < 60 * SECOND)
        sim_clock_poll();
    assert_true(rig->stopped);
    assert_true(sim_clock_now() - start < SECOND * 3 / 2);
}

/* A payload that does not go on, of a request that is carried out or that was refused. */
static void test_stop_within_a_payload(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct rig rig;
        struct client c;

        sim_clock_install();
        rig_init(&rig, NULL);
        client_enter(&c, &rig);
        client_request(&c, NBD_CMD_WRITE, 0, 1, i ? 1 << 20 : 0, 512);
        client_send_script(&c, "fill 100 1");
        rig_pump();
        expect_quick_stop(&rig);
        assert_int_equal(rig.disk.writes, 0);
        client_expect_close(&c);
        client_free(&c);
        rig_fini(&rig);
        sim_clock_remove();
    }
}

/* A payload that goes on is waited for. */
static void test_stop_with_a_slow_payload(void **state)
{
    struct rig rig;
    struct client c;

    sim_clock_install();
    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_WRITE, 0, 1, 0, 6);
    rig_pump();
    nbd_server_stop(rig.server, RIG_LIMIT_NS);
    for (unsigned i = 0; i < 6; i++) {
        rig_pump();
        client_send(&c, &"abcdef"[i], 1);
        rig_pump();
        sim_clock_advance(SECOND * 3 / 4);
    }
    client_expect(&c, 1, NBD_SUCCESS);
    assert_memory_equal(rig.disk.data, "abcdef", 6);
    client_expect_close(&c);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

/* Replies that are not taken: 20 MiB are more than a socket holds. */
static void test_stop_with_a_deaf_client(void **state)
{
    struct rig rig;
    struct client c;

    sim_clock_install();
    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    for (unsigned i = 0; i < 20; i++)
        client_request(&c, NBD_CMD_READ, 0, i, 0, 1 << 20);
    rig_pump();
    expect_quick_stop(&rig);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_in_flight),
        cmocka_unit_test(test_stop_with_pending_input),
        cmocka_unit_test(test_stop_takes_no_clients),
        cmocka_unit_test(test_stop_within_a_payload),
        cmocka_unit_test(test_stop_with_a_slow_payload),
        cmocka_unit_test(test_stop_with_a_deaf_client),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
