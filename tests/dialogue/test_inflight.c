/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Many requests at once: replies in any order, and the ways in which a connection ends while some
 * are in flight.
 */
#include "base/checked.h"
#include "tests/dialogue/rig.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

static void test_replies_out_of_order(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    memcpy(rig.disk.data, "abcdefgh", 8);
    client_enter(&c, &rig);
    rig.disk.slow = true;
    client_request(&c, NBD_CMD_READ, 0, 100, 0, 4);
    client_write(&c, 0, 101, 4096, 7, 512);
    client_request(&c, NBD_CMD_READ, 0, 102, 4, 4);
    client_expect_silence(&c);
    assert_int_equal(rig.disk.waiting_count, 3);
    ram_disk_release(&rig.disk, 2);
    client_expect_data(&c, 102, "efgh", 4);
    ram_disk_release(&rig.disk, 1);
    client_expect(&c, 101, NBD_SUCCESS);
    assert_int_equal(rig.disk.data[4096], 7);
    client_expect_silence(&c);
    ram_disk_release(&rig.disk, 0);
    client_expect_data(&c, 100, "abcd", 4);
    client_free(&c);
    rig_fini(&rig);
}

/* What is at hand overtakes what waits. */
static void test_overtaking(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    rig.disk.slow = true;
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 1);
    rig_pump();
    rig.disk.slow = false;
    client_request(&c, NBD_CMD_READ, 0, 2, 0, 1);
    client_expect_data(&c, 2, "\0", 1);
    ram_disk_release_all(&rig.disk);
    client_expect_data(&c, 1, "\0", 1);
    client_free(&c);
    rig_fini(&rig);
}

/* Cookies are the client's business: equal ones, 0 and all ones come back as they are. */
static void test_cookies(void **state)
{
    static const uint64_t cookies[] = {0, 0, UINT64_MAX, UINT64_MAX, 5};
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    rig.disk.slow = true;
    for (size_t i = 0; i < ARRAY_SIZE(cookies); i++)
        client_request(&c, NBD_CMD_READ, 0, cookies[i], i, 1);
    rig_pump();
    ram_disk_release_all(&rig.disk);
    for (size_t i = 0; i < ARRAY_SIZE(cookies); i++)
        client_expect_data(&c, cookies[i], "\0", 1);
    client_free(&c);
    rig_fini(&rig);
}

static void test_two_clients(void **state)
{
    struct rig rig;
    struct client a, b;

    rig_init(&rig, NULL);
    client_enter(&a, &rig);
    client_enter(&b, &rig);
    assert_int_equal(nbd_server_connections(rig.server), 2);
    client_write(&a, 0, 1, 0, 'a', 4);
    client_expect(&a, 1, NBD_SUCCESS);
    client_request(&b, NBD_CMD_READ, 0, 1, 0, 4);
    client_expect_data(&b, 1, "aaaa", 4);
    client_free(&a);
    rig_pump();
    assert_int_equal(rig.left, 1);
    assert_int_equal(rig.remaining, 1);
    client_write(&b, 0, 2, 0, 'b', 4);
    client_expect(&b, 2, NBD_SUCCESS);
    client_free(&b);
    rig_await_no_clients(&rig);
    assert_int_equal(rig.left, 2);
    assert_int_equal(rig.remaining, 0);
    rig_fini(&rig);
}

/* ---- Ends ---- */

/* DISC, with nonsense in its fields: what is in flight is answered, what follows is not looked at.
 */
static void test_disconnect(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    rig.disk.slow = true;
    client_write(&c, 0, 1, 0, 'w', 512);
    client_request(&c, NBD_CMD_DISC, 0xffff, 2, 777, 888);
    client_write(&c, 0, 3, 0, 'x', 512);
    client_request(&c, 0x4141, 0x4141, 4, 0, 0);
    client_expect_silence(&c);
    assert_int_equal(rig.disk.waiting_count, 1);
    ram_disk_release_all(&rig.disk);
    client_expect(&c, 1, NBD_SUCCESS);
    client_expect_close(&c);
    assert_int_equal(c.in.length, 0);
    assert_int_equal(rig.disk.data[0], 'w');
    assert_int_equal(rig.disk.writes, 1);
    rig_await_no_clients(&rig);
    client_free(&c);
    rig_fini(&rig);
}

/* The client closes its sending side only: it still gets what it has asked for. */
static void test_half_close(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    memset(rig.disk.data, 'h', 100);
    client_enter(&c, &rig);
    rig.disk.slow = true;
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 3);
    assert_int_equal(shutdown(c.fd, SHUT_WR), 0);
    client_expect_silence(&c);
    ram_disk_release_all(&rig.disk);
    client_expect_data(&c, 1, "hhh", 3);
    client_expect_close(&c);
    client_free(&c);
    rig_fini(&rig);
}

/* The client is gone while reads, a write and a flush run: they end, and nothing is left. */
static void test_reset(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 4096); /* never taken */
    rig_pump();
    rig.disk.slow = true;
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 4096);
    client_request(&c, NBD_CMD_READ, 0, 2, 0, 100000);
    client_write(&c, 0, 3, 0, 'r', 512);
    client_request(&c, NBD_CMD_TRIM, 0, 4, 0, 512);
    client_free(&c);
    rig_pump();
    assert_int_equal(nbd_server_connections(rig.server), 1);
    assert_true(rig.disk.waiting_count > 0);
    for (int i = 0; i < 10; i++) {
        ram_disk_release_all(&rig.disk);
        rig_pump();
    }
    rig_await_no_clients(&rig);
    assert_int_equal(rig.disk.data[0], 'r');
    rig_fini(&rig);
}

/* Gone at every byte of a header and its payload: a write is whole or not at all. */
static void test_reset_at_every_byte(void **state)
{
    struct rig rig;
    struct message m = {0};

    rig_init(&rig, NULL);
    message_request(&m, &(struct nbd_request){.command = NBD_CMD_WRITE, .length = 40});
    message_fill(&m, 'p', 40);
    for (size_t length = 0; length <= m.length; length++) {
        struct client c;

        client_enter(&c, &rig);
        client_send(&c, m.data, length);
        if (length % 2)
            rig_pump();
        client_free(&c);
        rig_await_no_clients(&rig);
        assert_int_equal(rig.disk.data[0], length == m.length ? 'p' : 0);
        assert_int_equal(rig.disk.writes, length == m.length);
    }
    message_free(&m);
    rig_fini(&rig);
}

/* The same for the handshake. */
static void test_leaving_the_handshake(void **state)
{
    struct rig rig;
    struct message m = {0};

    rig_init(&rig, NULL);
    message_script(&m, "flags 3; list; info disk 3; option 77 20; fill 20 1; go disk");
    for (size_t length = 0; length <= m.length; length++) {
        struct client c;

        client_connect(&c, &rig);
        client_send(&c, m.data, length);
        if (length % 2)
            rig_pump();
        client_free(&c);
        rig_await_no_clients(&rig);
    }
    message_free(&m);
    rig_fini(&rig);
}

/* A broken request ends the connection; what came before it is still answered. */
static void test_broken_requests(void **state)
{
    static const char *const scripts[] = {
        "hex 25609514; fill 24 0", "hex 21e41c71; fill 28 0", "hex 12560953; fill 24 0",
        "hex 96744668; fill 24 0", "list; fill 100 0",        "fill 28 0",
    };
    struct rig rig;

    rig_init(&rig, NULL);
    for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
        struct client c;

        client_enter(&c, &rig);
        rig.disk.slow = true;
        client_request(&c, NBD_CMD_READ, 0, 1, 0, 1);
        rig_pump();
        client_send_script(&c, scripts[i]);
        client_expect_silence(&c);
        ram_disk_release_all(&rig.disk);
        client_expect_data(&c, 1, "\0", 1);
        client_expect_close(&c);
        rig_await_no_clients(&rig);
        client_free(&c);
    }
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replies_out_of_order),
        cmocka_unit_test(test_overtaking),
        cmocka_unit_test(test_cookies),
        cmocka_unit_test(test_two_clients),
        cmocka_unit_test(test_disconnect),
        cmocka_unit_test(test_half_close),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_reset_at_every_byte),
        cmocka_unit_test(test_leaving_the_handshake),
        cmocka_unit_test(test_broken_requests),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
