/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Clients that hold all of the memory there is: they ask for much and take none of it.  Everybody
 * else's READs are answered all the same, in all three modes, and the memory has its bound.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "tests/dialogue/rig.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CROWD = 16 };

#define LONG_BYTES (32 << 20)

static const struct rig_options large = {.size = 2 * LONG_BYTES};

static const struct way {
    enum nbd_reply_mode mode;
    uint16_t flags;
} ways[] = {{NBD_MODE_SIMPLE, 0},
            {NBD_MODE_STRUCTURED, 0},
            {NBD_MODE_STRUCTURED, NBD_CMD_FLAG_DF},
            {NBD_MODE_EXTENDED, 0}};

struct crowd {
    struct rig rig;
    struct client clients[CROWD];
};

static struct nbd_request read_of(const struct way *way, uint64_t cookie, uint32_t length)
{
    return (struct nbd_request){.command = NBD_CMD_READ,
                                .flags = way->flags,
                                .cookie = cookie,
                                .offset = LONG_BYTES - 12345,
                                .length = length};
}

static void send_request(struct client *c, const struct way *way, const struct nbd_request *request)
{
    struct message m = {0};

    exchange_request(&m, way->mode, request);
    client_send_message(c, &m);
    message_free(&m);
}

/* All of them ask twice for as much as may be, and take nothing. */
static void crowd_init(struct crowd *crowd, const struct way *way)
{
    rig_init(&crowd->rig, &large);
    for (size_t i = 0; i < 2 * LONG_BYTES; i++)
        crowd->rig.disk.data[i] = (uint8_t)(i * 31 ^ i >> 12 ^ i >> 20) | 1;
    for (unsigned i = 0; i < CROWD; i++) {
        client_enter_mode(&crowd->clients[i], &crowd->rig, way->mode, NULL);
        for (unsigned k = 0; k < 2; k++) {
            struct nbd_request request = read_of(way, k, LONG_BYTES);

            send_request(&crowd->clients[i], way, &request);
        }
    }
    rig_pump();
    assert_true(buffer_bytes_used() <= NBD_SERVER_BYTES_MAX + CROWD * (UINT64_C(5) << 18));
}

static void crowd_fini(struct crowd *crowd)
{
    for (unsigned i = 0; i < CROWD; i++)
        client_free(&crowd->clients[i]);
    rig_await_no_clients(&crowd->rig);
    rig_fini(&crowd->rig);
}

static void expect_read(struct crowd *crowd, struct client *c, const struct way *way,
                        uint32_t length)
{
    struct nbd_request request = read_of(way, 7, length);
    struct exchange x;

    exchange_init(&x, way->mode);
    client_ask(c, &x, &request, NULL, 0);
    client_await(c, &x);
    assert_int_equal(x.answers[0].error, NBD_SUCCESS);
    assert_int_equal(x.answers[0].covered, length);
    assert_memory_equal(x.answers[0].data, crowd->rig.disk.data + request.offset, length);
    exchange_free(&x);
}

static void test_good_client(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        static struct crowd crowd;
        struct client good;

        crowd_init(&crowd, &ways[i]);
        for (unsigned k = 0; k < ARRAY_SIZE(ways); k++) {
            client_enter_mode(&good, &crowd.rig, ways[k].mode, NULL);
            expect_read(&crowd, &good, &ways[k], 4096);
            expect_read(&crowd, &good, &ways[k], 3 << 20);
            expect_read(&crowd, &good, &ways[k], LONG_BYTES);
            client_free(&good);
        }
        crowd_fini(&crowd);
    }
}

/* The disk cannot be read: the client is told, if it is not too late for that. */
static void test_failing_disk(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        static struct crowd crowd;
        const struct way *way = &ways[i];
        struct nbd_request request = read_of(way, 7, LONG_BYTES);
        struct client good;
        struct exchange x;

        crowd_init(&crowd, way);
        client_enter_mode(&good, &crowd.rig, way->mode, NULL);
        crowd.rig.disk.bad_offset = LONG_BYTES + (8 << 20);
        crowd.rig.disk.bad_length = 512;
        exchange_init(&x, way->mode);
        client_ask(&good, &x, &request, NULL, 0);
        client_await(&good, &x);
        assert_int_equal(x.answers[0].error, NBD_EIO);
        exchange_free(&x);
        crowd.rig.disk.bad_length = 0;
        expect_read(&crowd, &good, way, 3 << 20);
        if (way->mode == NBD_MODE_SIMPLE) {
            send_request(&good, way, &request);
            rig_pump();
            crowd.rig.disk.read_error = -EIO;
            client_expect_close(&good);
            assert_true(good.in.length < LONG_BYTES);
        }
        client_free(&good);
        crowd_fini(&crowd);
    }
}

/* Who took nothing for long gets all of it in the end. */
static void test_end_of_a_pause(void **state)
{
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        static struct crowd crowd;
        struct client *last = &crowd.clients[CROWD - 1];
        struct exchange x;

        crowd_init(&crowd, &ways[i]);
        exchange_init(&x, ways[i].mode);
        for (unsigned k = 0; k < 2; k++) {
            struct nbd_request request = read_of(&ways[i], k, LONG_BYTES);

            exchange_expect(&x, &request);
        }
        client_await(last, &x);
        for (unsigned k = 0; k < 2; k++)
            assert_memory_equal(x.answers[k].data, crowd.rig.disk.data + LONG_BYTES - 12345,
                                LONG_BYTES);
        exchange_free(&x);
        crowd_fini(&crowd);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_client),
        cmocka_unit_test(test_failing_disk),
        cmocka_unit_test(test_end_of_a_pause),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
