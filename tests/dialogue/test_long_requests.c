/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests that take long: they run in pieces, and end between two of them when their client has
 * left, or when the server is to stop.
 */
#include "tests/dialogue/rig.h"
#include "tests/support/sim_clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)

static const struct rig_options huge = {
    .size = 1024 * GIB, .pattern = true, .node_flags = NODE_UNMAP};

/* Calls of the disk that long requests are made of. */
static unsigned pieces(const struct rig *rig)
{
    return rig->disk.zeroes + rig->disk.discards;
}

/* Starts the request, of which the first piece waits then. */
static void start_long(struct rig *rig, struct client *c, uint16_t command)
{
    rig->disk.slow = true;
    client_request(c, command, 0, 1, 4096, GIB);
    client_expect_silence(c);
    assert_int_equal(rig->disk.waiting_count, 1);
}

static void test_whole(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, &huge);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 1, 4097, GIB - 5);
    client_expect(&c, 1, NBD_SUCCESS);
    assert_true(rig.disk.changed == GIB - 5);
    assert_true(rig.disk.discards > 1);
    assert_int_equal(rig.disk.flushes, 1);
    client_request(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA, 2, 4097, GIB - 5);
    client_expect(&c, 2, NBD_SUCCESS);
    assert_true(rig.disk.changed == 2 * (GIB - 5));
    assert_int_equal(rig.disk.flushes, 2);
    client_free(&c);
    rig_fini(&rig);
}

/* A client that says goodbye wants what it has asked for; one that is just gone does not. */
static void test_client_leaves(void **state)
{
    static const uint16_t commands[] = {NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES};

    for (unsigned i = 0; i < 4; i++) {
        struct rig rig;
        struct client c;
        bool goodbye = i % 2;

        rig_init(&rig, &huge);
        client_enter(&c, &rig);
        start_long(&rig, &c, commands[i / 2]);
        if (goodbye)
            client_request(&c, NBD_CMD_DISC, 0, 2, 0, 0);
        else
            client_free(&c);
        rig_pump();
        rig.disk.slow = false;
        ram_disk_release_all(&rig.disk);
        if (goodbye)
            client_expect(&c, 1, NBD_SUCCESS);
        rig_await_no_clients(&rig);
        assert_int_equal(rig.disk.changed == GIB, goodbye);
        assert_int_equal(pieces(&rig) == 1, !goodbye);
        client_free(&c);
        rig_fini(&rig);
    }
}

static void test_cache(void **state)
{
    struct rig rig;
    struct client c;
    unsigned whole;

    rig_init(&rig, &huge);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_CACHE, 0, 1, 0, GIB);
    client_expect(&c, 1, NBD_SUCCESS);
    whole = rig.disk.reads;
    start_long(&rig, &c, NBD_CMD_CACHE);
    client_free(&c);
    rig_pump();
    rig.disk.slow = false;
    ram_disk_release_all(&rig.disk);
    rig_await_no_clients(&rig);
    assert_true(rig.disk.reads - whole < whole / 2);
    rig_fini(&rig);
}

/* At a stop it has a second; then it ends with an error, and the client hears of it. */
static void test_stop(void **state)
{
    for (enum nbd_reply_mode mode = NBD_MODE_SIMPLE; mode <= NBD_MODE_EXTENDED; mode++) {
        const struct nbd_request request = {
            .command = NBD_CMD_WRITE_ZEROES, .cookie = 5, .offset = 512, .length = GIB};
        struct rig rig;
        struct client c;
        struct exchange x;

        sim_clock_install();
        rig_init(&rig, &huge);
        client_enter_mode(&c, &rig, mode, NULL);
        exchange_init(&x, mode);
        rig.disk.slow = true;
        client_ask(&c, &x, &request, NULL, 0);
        rig_pump();
        nbd_server_stop(rig.server, RIG_LIMIT_NS);
        sim_clock_advance(SECOND / 2);
        rig_pump();
        ram_disk_release_all(&rig.disk);
        client_expect_silence(&c);
        assert_int_equal(rig.disk.waiting_count, 1);
        sim_clock_advance(SECOND);
        rig_pump();
        ram_disk_release_all(&rig.disk);
        client_await(&c, &x);
        assert_non_null(strstr(answer_log(&x.answers[0]), "ESHUTDOWN"));
        if (mode != NBD_MODE_SIMPLE)
            assert_non_null(strstr(x.answers[0].text, "the server is shutting down"));
        client_expect_close(&c);
        assert_int_equal(pieces(&rig), 2);
        exchange_free(&x);
        client_free(&c);
        rig_fini(&rig);
        sim_clock_remove();
    }
}

/* What does not even end between pieces is waited for; its client is not. */
static void test_stop_limit(void **state)
{
    struct rig rig;
    struct client c;

    sim_clock_install();
    rig_init(&rig, &huge);
    client_enter(&c, &rig);
    start_long(&rig, &c, NBD_CMD_TRIM);
    nbd_server_stop(rig.server, 2 * SECOND);
    sim_clock_advance(3 * SECOND);
    client_expect_close(&c);
    for (int i = 0; i < 5; i++) {
        sim_clock_advance(3 * SECOND);
        rig_pump();
        assert_false(rig.stopped);
    }
    rig.disk.slow = false;
    ram_disk_release_all(&rig.disk);
    rig_pump();
    assert_true(rig.stopped);
    assert_int_equal(pieces(&rig), 1);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

/* The disk is taken for raw, and its first bytes are protected. */
static void start_protected(struct rig *rig, struct client *c)
{
    rig_init(rig, &huge);
    rig->nbd_export->header_node = rig->nbd_export->node;
    rig->nbd_export->probe_drivers = ram_drivers;
    client_enter(c, rig);
    rig->disk.slow = true;
}

/* Only its first piece keeps others from the first bytes. */
static void test_protected_header(void **state)
{
    struct rig rig;
    struct client c;

    start_protected(&rig, &c);
    client_request(&c, NBD_CMD_WRITE_ZEROES, 0, 1, 0, GIB);
    for (int i = 0; i < 2; i++) { /* the look at the header, and the first piece */
        rig_pump();
        assert_int_equal(rig.disk.waiting_count, 1);
        ram_disk_release_all(&rig.disk);
    }
    rig_pump();
    assert_int_equal(rig.disk.zeroes, 2);
    client_request(&c, NBD_CMD_TRIM, 0, 2, 0, 4096);
    for (int i = 0; i < 2; i++) {
        rig_pump();
        assert_int_equal(rig.disk.waiting_count, 2);
        ram_disk_release(&rig.disk, 1);
    }
    client_expect(&c, 2, NBD_SUCCESS);
    assert_int_equal(rig.disk.zeroes, 2);
    rig.disk.slow = false;
    ram_disk_release_all(&rig.disk);
    client_expect(&c, 1, NBD_SUCCESS);
    client_free(&c);
    rig_fini(&rig);
}

/* Those that wait for their turn at the first bytes do nothing more when they are given up. */
static void test_protected_stop(void **state)
{
    struct rig rig;
    struct client c;
    unsigned errors = 0;

    sim_clock_install();
    start_protected(&rig, &c);
    for (uint64_t i = 0; i < 3; i++)
        client_request(&c, NBD_CMD_TRIM, 0, i, 0, GIB);
    rig_pump();
    nbd_server_stop(rig.server, RIG_LIMIT_NS);
    rig_pump();
    sim_clock_advance(2 * SECOND);
    rig_pump();
    rig.disk.slow = false;
    ram_disk_release_all(&rig.disk);
    for (int i = 0; i < 3; i++) {
        uint64_t cookie;

        errors += client_reply(&c, &cookie, NULL, 0) == NBD_ESHUTDOWN;
    }
    assert_int_equal(errors, 3);
    assert_int_equal(rig.disk.reads, 1);
    assert_int_equal(pieces(&rig), 1);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),          cmocka_unit_test(test_client_leaves),
        cmocka_unit_test(test_cache),          cmocka_unit_test(test_stop),
        cmocka_unit_test(test_stop_limit),     cmocka_unit_test(test_protected_header),
        cmocka_unit_test(test_protected_stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
