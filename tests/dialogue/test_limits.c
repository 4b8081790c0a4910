/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Limits: time, memory, numbers.  A client that asks too much, or nothing, or never listens, slows
 * and harms itself only.
 */
#include "base/buffer.h"
#include "base/reactor.h"
#include "tests/dialogue/rig.h"
#include "tests/support/sim_clock.h"
#include "tests/support/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)

/* A message of `count` requests. */
static void many_requests(struct message *m, uint16_t command, uint32_t length, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        message_request(m, &(struct nbd_request){
                               .command = command, .cookie = i, .offset = 0, .length = length});
}

/* ---- In flight ---- */

static void test_requests_in_flight(void **state)
{
    struct rig rig;
    struct client c;
    struct message m = {0};

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    rig.disk.slow = true;
    many_requests(&m, NBD_CMD_READ, 512, 1000);
    client_send_message(&c, &m);
    rig_pump();
    assert_int_equal(rig.disk.waiting_count, NBD_CONNECTION_REQUESTS_MAX);
    /* For each that ends one more is taken. */
    ram_disk_release(&rig.disk, 5);
    ram_disk_release(&rig.disk, 5);
    rig_pump();
    assert_int_equal(rig.disk.waiting_count, NBD_CONNECTION_REQUESTS_MAX);
    assert_int_equal(rig.disk.reads, NBD_CONNECTION_REQUESTS_MAX + 2);
    rig.disk.slow = false;
    ram_disk_release_all(&rig.disk);
    assert_true(client_receive(&c, 1000 * (16 + 512)));
    message_free(&m);
    client_free(&c);
    rig_fini(&rig);
}

/* Takes what comes for all of them until each has had `length` bytes. */
static void drain_all(struct client *c, unsigned count, size_t length)
{
    size_t got[8] = {0}, before, all = 0;

    do {
        before = all;
        for (unsigned i = 0; i < count; i++) {
            if (got[i] < length)
                client_receive(&c[i], 1);
            got[i] += c[i].in.length;
            all += c[i].in.length;
            c[i].in.length = 0;
        }
    } while (all > before);
    for (unsigned i = 0; i < count; i++)
        assert_int_equal(got[i], length);
}

static void test_bytes_in_flight(void **state)
{
    const struct rig_options options = {.size = 32 << 20};
    struct rig rig;
    struct client c[6];
    struct message m = {0};
    uint64_t all;

    rig_init(&rig, &options);
    rig.disk.slow = true;
    for (int i = 0; i < 6; i++) {
        client_enter(&c[i], &rig);
        many_requests(&m, NBD_CMD_READ, 8 << 20, 20);
        client_send_message(&c[i], &m);
        rig_pump();
        m.length = 0;
        if (i == 0)
            assert_int_equal(rig.disk.waiting_count, NBD_CONNECTION_BYTES_MAX >> 23);
    }
    all = (uint64_t)rig.disk.waiting_count << 23;
    assert_true(all <= NBD_SERVER_BYTES_MAX);
    assert_true(all > NBD_SERVER_BYTES_MAX / 2);
    /* Greedy ones do not keep small requests of a newcomer out. */
    rig.disk.slow = false;
    client_request(&c[5], NBD_CMD_DISC, 0, 0, 0, 0);
    client_free(&c[5]);
    client_enter(&c[5], &rig);
    client_request(&c[5], NBD_CMD_READ, 0, 7, 0, 4096);
    client_expect_data(&c[5], 7, rig.disk.data, 4096);
    ram_disk_release_all(&rig.disk);
    drain_all(c, 5, 20 * (16 + (8 << 20)));
    for (int i = 0; i < 6; i++)
        client_free(&c[i]);
    message_free(&m);
    rig_fini(&rig);
}

/* ---- Clients that do not read ---- */

/* Small replies pile up to a bound; then no more requests are read; then all are answered. */
static void test_deaf_client(void **state)
{
    const unsigned count = 100000;
    struct rig rig;
    struct client c, other;
    struct message m = {0};
    size_t sent = 0, n;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_enter(&other, &rig);
    many_requests(&m, NBD_CMD_READ, 4096, count);
    do {
        n = client_send_some(&c, m.data + sent, m.length - sent);
        sent += n;
        rig_pump();
        assert_true(buffer_bytes_used() < 16 << 20);
    } while (n > 0);
    assert_true(sent < m.length);
    /* Others are served meanwhile. */
    client_request(&other, NBD_CMD_READ, 0, 3, 0, 1);
    client_expect_data(&other, 3, "\0", 1);
    for (unsigned i = 0; i < count; i++) {
        static uint8_t data[4096];
        uint64_t cookie;

        if (c.in.length < sizeof(data) + 16) {
            sent += client_send_some(&c, m.data + sent, m.length - sent);
            client_receive(&c, 1);
        }
        assert_int_equal(client_reply(&c, &cookie, data, sizeof(data)), NBD_SUCCESS);
        assert_int_equal(cookie, i);
    }
    message_free(&m);
    client_free(&c);
    client_free(&other);
    rig_fini(&rig);
}

static void test_stalled_output(void **state)
{
    struct rig rig;
    struct client c;
    struct message m = {0};
    int64_t start;

    sim_clock_install();
    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    many_requests(&m, NBD_CMD_READ, 1 << 20, 20);
    client_send_message(&c, &m);
    rig_pump();
    assert_int_equal(nbd_server_connections(rig.server), 1);
    /* Each time the client takes something the time starts anew. */
    sim_clock_advance(50 * SECOND);
    rig_pump();
    assert_true(client_receive(&c, 8 << 20));
    rig_pump();
    sim_clock_advance(50 * SECOND);
    rig_pump();
    assert_int_equal(nbd_server_connections(rig.server), 1);
    start = sim_clock_now();
    while (nbd_server_connections(rig.server) > 0 && sim_clock_now() - start < 100 * SECOND)
        sim_clock_poll();
    assert_int_equal(nbd_server_connections(rig.server), 0);
    assert_true(sim_clock_now() - start <= 11 * SECOND);
    message_free(&m);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

/* ---- The handshake ---- */

static void test_silent_client(void **state)
{
    struct rig rig;
    struct client c;
    int64_t start;

    sim_clock_install();
    start = sim_clock_now();
    rig_init(&rig, NULL);
    client_connect(&c, &rig);
    assert_true(client_receive(&c, 18));
    while (nbd_server_connections(rig.server) > 0)
        sim_clock_poll();
    client_expect_close(&c);
    assert_true(sim_clock_now() - start >= RIG_LIMIT_NS);
    assert_true(sim_clock_now() - start < RIG_LIMIT_NS + SECOND);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

/* The limit is for the whole handshake, not for each byte of it; afterwards there is none. */
static void test_slow_handshake(void **state)
{
    struct rig rig;
    struct client c, patient;
    struct message m = {0};
    unsigned sent = 0;

    sim_clock_install();
    rig_init(&rig, NULL);
    client_enter(&patient, &rig);
    client_connect(&c, &rig);
    message_script(&m, "flags 3; list; go disk");
    while (sent < m.length && client_send_some(&c, m.data + sent, 1) == 1) {
        sent++;
        sim_clock_advance(SECOND);
        rig_pump();
    }
    assert_in_range(sent, 8, 12);
    client_expect_close(&c);
    sim_clock_advance(100000 * SECOND);
    client_request(&patient, NBD_CMD_READ, 0, 1, 0, 1);
    client_expect_data(&patient, 1, "\0", 1);
    message_free(&m);
    client_free(&c);
    client_free(&patient);
    rig_fini(&rig);
    sim_clock_remove();
}

/* The oldest of too many silent ones makes room, and who speaks is served at once. */
static void test_many_handshakes(void **state)
{
    enum { COUNT = 300 };
    static struct client c[COUNT];
    struct rig rig;
    struct client good;
    unsigned closed = 0;

    sim_clock_install();
    rig_init(&rig, NULL);
    for (int i = 0; i < COUNT; i++) {
        client_connect(&c[i], &rig);
        reactor_poll(false);
    }
    rig_pump();
    assert_int_equal(nbd_server_connections(rig.server), 256);
    client_enter(&good, &rig);
    client_request(&good, NBD_CMD_READ, 0, 1, 0, 1);
    client_expect_data(&good, 1, "\0", 1);
    for (int i = 0; i < COUNT; i++) {
        client_receive(&c[i], 19);
        closed += c[i].closed;
        assert_int_equal(c[i].closed, i < COUNT - 256 + 1);
        client_free(&c[i]);
    }
    assert_int_equal(closed, COUNT - 256 + 1);
    client_free(&good);
    rig_await_no_clients(&rig);
    rig_fini(&rig);
    sim_clock_remove();
}

/* Pipelined options beyond the number allowed. */
static void test_endless_options(void **state)
{
    struct rig rig;
    struct client c;
    struct message m = {0};

    rig_init(&rig, NULL);
    client_connect(&c, &rig);
    message_script(&m, "flags 3");
    for (int i = 0; i < 1100; i++)
        message_script(&m, "list");
    client_send_some(&c, m.data, m.length);
    client_expect_close(&c);
    /* A thousand lists of one export of a four-letter name, and their ends. */
    assert_int_equal(c.in.length, 18 + 1000 * (20 + 8 + 20));
    message_free(&m);
    client_free(&c);
    rig_fini(&rig);
}

/* ---- The number of clients ---- */

static void test_connections_max(void **state)
{
    const struct rig_options options = {.size = 4096, .connections_max = 1};
    struct rig rig;
    struct client a, b;

    sim_clock_install();
    rig_init(&rig, &options);
    client_enter(&a, &rig);
    client_connect(&b, &rig);
    assert_true(client_receive(&b, 18));
    b.in.length = 0;
    client_send_script(&b, "flags 3; go disk");
    client_expect_silence(&b);
    /* Waiting for the other one does not count as a slow handshake. */
    sim_clock_advance(2 * RIG_LIMIT_NS);
    client_expect_silence(&b);
    client_request(&a, NBD_CMD_DISC, 0, 0, 0, 0);
    assert_true(client_receive(&b, 86));
    b.in.length = 0;
    client_request(&b, NBD_CMD_READ, 0, 1, 0, 1);
    client_expect_data(&b, 1, "\0", 1);
    client_free(&a);
    client_free(&b);
    rig_fini(&rig);
    sim_clock_remove();
}

/* ---- Idle clients ---- */

/* The seconds until the server has no connection any more, at most `limit`. */
static int64_t seconds_until_gone(struct rig *rig, int64_t limit)
{
    int64_t start = sim_clock_now();

    while (nbd_server_connections(rig->server) > 0 && sim_clock_now() - start < limit * SECOND)
        sim_clock_poll();
    return (sim_clock_now() - start) / SECOND;
}

static void test_idle_client(void **state)
{
    const struct rig_options options = {.size = 4096, .idle_limit_ns = 30 * SECOND};
    struct rig rig;
    struct client c;

    sim_clock_install();
    rig_init(&rig, &options);
    client_enter(&c, &rig);
    for (int i = 0; i < 10; i++) {
        sim_clock_advance(20 * SECOND);
        client_request(&c, NBD_CMD_READ, 0, 1, 0, 1);
        client_expect_data(&c, 1, "\0", 1);
    }
    /* As long as a request runs the client is not idle, and its time starts with the reply. */
    rig.disk.slow = true;
    client_request(&c, NBD_CMD_READ, 0, 2, 0, 1);
    rig_pump();
    assert_in_range(seconds_until_gone(&rig, 200), 200, 230);
    rig.disk.slow = false;
    ram_disk_release_all(&rig.disk);
    client_expect_data(&c, 2, "\0", 1);
    assert_in_range(seconds_until_gone(&rig, 200), 29, 31);
    client_expect_close(&c);
    assert_int_equal(c.in.length, 0);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

/* A payload that does not come is the client's silence, not work of the server. */
static void test_idle_within_a_payload(void **state)
{
    const struct rig_options options = {.size = 4096, .idle_limit_ns = 30 * SECOND};
    struct rig rig;
    struct client c;

    sim_clock_install();
    rig_init(&rig, &options);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_WRITE, 0, 1, 0, 512);
    client_send_script(&c, "fill 100 1");
    rig_pump();
    assert_in_range(seconds_until_gone(&rig, 200), 29, 31);
    client_expect_close(&c);
    assert_int_equal(rig.disk.writes, 0);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_in_flight),    cmocka_unit_test(test_bytes_in_flight),
        cmocka_unit_test(test_deaf_client),           cmocka_unit_test(test_stalled_output),
        cmocka_unit_test(test_silent_client),         cmocka_unit_test(test_slow_handshake),
        cmocka_unit_test(test_many_handshakes),       cmocka_unit_test(test_endless_options),
        cmocka_unit_test(test_connections_max),       cmocka_unit_test(test_idle_client),
        cmocka_unit_test(test_idle_within_a_payload),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
