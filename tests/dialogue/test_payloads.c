/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Payloads of WRITEs on their way: who announces much and sends little or nothing takes no memory
 * that others need, and is not waited for without end; and what is written in parts is right.
 */
#include "base/checked.h"
#include "tests/dialogue/rig.h"
#include "tests/support/sim_clock.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)
#define LONG_BYTES (32 << 20) /* of a payload */

/* The seconds until the server has no connection any more, at most `limit`. */
static int64_t seconds_until_gone(struct rig *rig, int64_t limit)
{
    int64_t start = sim_clock_now();

    while (nbd_server_connections(rig->server) > 0 && sim_clock_now() - start < limit * SECOND)
        sim_clock_poll();
    return (sim_clock_now() - start) / SECOND;
}

/* A payload that does not come, or in drops, of a WRITE or of a request that was refused. */
static void test_payload_that_stalls(void **state)
{
    for (unsigned i = 0; i < 4; i++) {
        struct rig rig;
        struct client c;

        sim_clock_install();
        rig_init(&rig, NULL);
        client_enter(&c, &rig);
        client_request(&c, NBD_CMD_WRITE, 0, 1, i % 2 ? 1 << 20 : 0, 1 << 20);
        rig_pump();
        for (unsigned drop = 0; i >= 2 && drop < 3; drop++) {
            client_send_script(&c, "fill 1000 1");
            rig_pump();
            sim_clock_advance(19 * SECOND);
            rig_pump();
        }
        assert_in_range(seconds_until_gone(&rig, 1000), 50, 125);
        assert_int_equal(rig.disk.writes, 0);
        client_free(&c);
        rig_fini(&rig);
        sim_clock_remove();
    }
}

/* Many payloads one after the other, and pauses between them, are nobody's stall. */
static void test_payloads_that_go_on(void **state)
{
    struct rig rig;
    struct client c;

    sim_clock_install();
    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    for (unsigned i = 0; i < 20; i++) {
        client_request(&c, NBD_CMD_WRITE, 0, i, 0, 100);
        rig_pump();
        sim_clock_advance(17 * SECOND);
        rig_pump();
        client_send_script(&c, "fill 100 1");
        client_expect(&c, i, NBD_SUCCESS);
        sim_clock_advance(i * 10 * SECOND);
    }
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
}

/* ---- Memory ---- */

enum { CROWD = 12 };

static const struct rig_options large = {.size = 2 * LONG_BYTES};

/* What is written at an offset of the disk, whoever writes it. */
static uint8_t byte_at(uint64_t offset)
{
    return (uint8_t)(offset * 31 ^ offset >> 12 ^ offset >> 20);
}

/* Sends the header of a WRITE and the first `sent` bytes of its payload. */
static void begin_write(struct client *c, uint64_t cookie, uint64_t offset, uint32_t length,
                        size_t sent)
{
    uint8_t *data = malloc(sent + 1);

    assert_non_null(data);
    for (size_t i = 0; i < sent; i++)
        data[i] = byte_at(offset + i);
    client_request(c, NBD_CMD_WRITE, 0, cookie, offset, length);
    client_send(c, data, sent);
    free(data);
}

static void send_rest(struct client *c, uint64_t offset, uint32_t length, size_t sent)
{
    for (uint64_t at = offset + sent; at < offset + length;) {
        uint8_t data[65536];
        size_t n = 0;

        for (; n < sizeof(data) && at < offset + length; n++)
            data[n] = byte_at(at++);
        client_send(c, data, n);
    }
}

static void expect_written(const struct rig *rig, uint64_t offset, uint64_t length)
{
    for (uint64_t at = offset; at < offset + length; at++) {
        if (rig->disk.data[at] != byte_at(at))
            fail_msg("byte %" PRIu64 " is wrong", at);
    }
}

/* A client that wants a lot at once gets it. */
static void be_good(struct rig *rig)
{
    struct client c;

    client_enter(&c, rig);
    client_request(&c, NBD_CMD_READ, 0, 1, LONG_BYTES, 8 << 20);
    client_expect_data(&c, 1, rig->disk.data + LONG_BYTES, 8 << 20);
    begin_write(&c, 2, LONG_BYTES, 8 << 20, 8 << 20);
    client_expect(&c, 2, NBD_SUCCESS);
    expect_written(rig, LONG_BYTES, 8 << 20);
    client_free(&c);
}

/* Many clients that announce as much as may be, and send all, some or nothing of it. */
static void test_crowd(void **state)
{
    static const size_t sent[] = {0, 100, 24 << 20};
    const uint32_t length = LONG_BYTES - 12345;

    for (unsigned i = 0; i < ARRAY_SIZE(sent); i++) {
        struct rig rig;
        struct client crowd[CROWD];

        rig_init(&rig, &large);
        for (unsigned k = 0; k < CROWD; k++) {
            client_enter(&crowd[k], &rig);
            begin_write(&crowd[k], k, 12345, length, sent[i]);
        }
        rig_pump();
        be_good(&rig);
        /* Their own requests come to a good end too. */
        for (unsigned k = 0; k < 2; k++) {
            send_rest(&crowd[k], 12345, length, sent[i]);
            client_expect(&crowd[k], k, NBD_SUCCESS);
        }
        expect_written(&rig, 12345, length);
        for (unsigned k = 0; k < CROWD; k++)
            client_free(&crowd[k]);
        rig_await_no_clients(&rig);
        rig_fini(&rig);
    }
}

/* ---- Parts ---- */

/*
 * On a slow disk, two WRITEs that take nearly all of what a client may have; then a third one, of
 * which a part has to be written before the rest can come.
 */
static void begin_parts(struct rig *rig, struct client *c)
{
    client_enter(c, rig);
    rig->disk.slow = true;
    begin_write(c, 1, 0, LONG_BYTES, LONG_BYTES);
    begin_write(c, 2, 0, 30 << 20, 30 << 20);
    begin_write(c, 3, LONG_BYTES + 77, 8 << 20, 1 << 20);
    rig_pump();
    assert_int_equal(rig->disk.waiting_count, 3);
}

static void test_parts(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, &large);
    begin_parts(&rig, &c);
    assert_non_null(rig.disk.writer); /* a throttle has to know whose part it is */
    ram_disk_release(&rig.disk, 2);
    send_rest(&c, LONG_BYTES + 77, 2 << 20, 1 << 20);
    client_expect_silence(&c);
    assert_int_equal(rig.disk.waiting_count, 3);
    rig.disk.slow = false;
    ram_disk_release(&rig.disk, 2);
    send_rest(&c, LONG_BYTES + 77, 8 << 20, 2 << 20);
    client_expect(&c, 3, NBD_SUCCESS);
    expect_written(&rig, LONG_BYTES + 77, 8 << 20);
    ram_disk_release_all(&rig.disk);
    client_expect(&c, 1, NBD_SUCCESS);
    client_expect(&c, 2, NBD_SUCCESS);
    client_free(&c);
    rig_fini(&rig);
}

/* A client that is at its own limit does not make others write in parts. */
static void test_limit_of_another(void **state)
{
    struct rig rig;
    struct client c, greedy;

    rig_init(&rig, &large);
    rig.disk.slow = true;
    client_enter(&c, &rig);
    begin_write(&c, 1, 77, 8 << 20, 3 << 20);
    client_enter(&greedy, &rig);
    for (unsigned i = 0; i < 3; i++)
        client_request(&greedy, NBD_CMD_READ, 0, i, 0, LONG_BYTES);
    rig_pump();
    assert_int_equal(rig.disk.reads, 2);
    assert_int_equal(rig.disk.writes, 0);
    rig.disk.slow = false;
    ram_disk_release_all(&rig.disk);
    send_rest(&c, 77, 8 << 20, 3 << 20);
    client_expect(&c, 1, NBD_SUCCESS);
    assert_int_equal(rig.disk.writes, 1);
    client_free(&greedy);
    client_free(&c);
    rig_await_no_clients(&rig);
    rig_fini(&rig);
}

/* A part that cannot be written: the request fails at once, and its rest is skipped. */
static void test_part_that_fails(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, &large);
    begin_parts(&rig, &c);
    rig.disk.write_error = -ENOSPC;
    ram_disk_release(&rig.disk, 2);
    client_expect(&c, 3, NBD_ENOSPC);
    rig.disk.write_error = 0;
    send_rest(&c, LONG_BYTES + 77, 8 << 20, 1 << 20);
    client_request(&c, NBD_CMD_TRIM, 0, 4, 0, 0);
    client_expect(&c, 4, NBD_SUCCESS);
    ram_disk_release_all(&rig.disk);
    client_expect(&c, 1, NBD_SUCCESS);
    client_expect(&c, 2, NBD_SUCCESS);
    client_free(&c);
    rig_fini(&rig);
}

/* The client is gone while a part is written, or the server is told to stop. */
static void test_end_within_a_part(void **state)
{
    for (unsigned i = 0; i < 2; i++) {
        struct rig rig;
        struct client c;

        sim_clock_install();
        rig_init(&rig, &large);
        begin_parts(&rig, &c);
        if (i)
            nbd_server_stop(rig.server, RIG_LIMIT_NS);
        else
            client_free(&c);
        rig_pump();
        rig.disk.slow = false;
        ram_disk_release_all(&rig.disk);
        if (i)
            assert_in_range(seconds_until_gone(&rig, 1000), 0, 2);
        rig_await_no_clients(&rig);
        client_free(&c);
        rig_fini(&rig);
        sim_clock_remove();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_payload_that_stalls),
        cmocka_unit_test(test_payloads_that_go_on),
        cmocka_unit_test(test_crowd),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_limit_of_another),
        cmocka_unit_test(test_part_that_fails),
        cmocka_unit_test(test_end_within_a_part),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
