/* SPDX-License-Identifier: BSD-3-Clause */
/* The filter `throttle`, in simulated time: rates, bursts, who waits for whom, and its options. */
#include "base/reactor.h"
#include "blockcore/block.h"
#include "blockcore/filter/throttle_limits.h"
#include "tests/support/filter_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define RAW ",file.driver=raw,file.file.filename=disk.raw"
#define PIECE 10000
#define WRITTEN (STAGE_DISK_BYTES / 2) /* from here on; reads are of the rest */

/* How long a number of requests takes, one after the other. */
static int64_t time_of(struct node *node, unsigned count, size_t length, bool write)
{
    int64_t begin = stage_ms();

    for (unsigned i = 0; i < count; i++)
        assert_int_equal(
            write ? stage_write(node, WRITTEN, length, 1) : stage_read(node, 0, length), 0);
    return stage_ms() - begin;
}

/* A tenth of a second is at hand; the request that goes over it is let go too. */
static void reads_are_limited(struct node *node)
{
    assert_int_equal(time_of(node, 11, PIECE, false), 0);
    assert_int_equal(time_of(node, 100, PIECE, false), 1000);
    assert_int_equal(time_of(node, 20, 65536, true), 0);
    assert_int_equal(block_flush(node), 0);
    co_sleep(INT64_C(5000000000));
    assert_int_equal(time_of(node, 11, PIECE, false), 0); /* time that passed is not saved up */
    assert_in_range(time_of(node, 10, PIECE, false), 99, 101);
}

static void all_is_limited(struct node *node)
{
    assert_int_equal(time_of(node, 11, PIECE, true), 0);
    assert_int_equal(time_of(node, 50, PIECE, false), 500);
    assert_int_equal(time_of(node, 50, PIECE, true), 500);
    assert_int_equal(block_zero(node, WRITTEN, 500000, 0), 0); /* goes, and those behind it wait */
    assert_in_range(time_of(node, 1, PIECE, false), 500, 520);
}

static void requests_are_limited(struct node *node)
{
    assert_int_equal(time_of(node, 11, 1, false), 0);
    assert_in_range(time_of(node, 100, 1, false), 999, 1001);
    assert_in_range(time_of(node, 100, 4096, false), 999, 1001);
    assert_in_range(time_of(node, 10, 40960, false), 100, 1000); /* the first is paid for already */
    assert_in_range(time_of(node, 10, 40960, false), 999, 1001);
}

/* Twice the rate for 5 seconds, then the rate. */
static void bursts(struct node *node)
{
    int64_t burst = time_of(node, 1000, PIECE, false), then;

    assert_in_range(burst, 4800, 5000);
    time_of(node, 2000, PIECE, false);
    then = time_of(node, 100, PIECE, false);
    assert_in_range(then, 999, 1001);
}

/* All of the burst at once, when its length is not given. */
static void bursts_at_once(struct node *node)
{
    assert_int_equal(time_of(node, 401, PIECE, false), 0);
    assert_in_range(time_of(node, 100, PIECE, false), 999, 1001);
}

static void test_rates(void **state)
{
    stage_play("driver=throttle" RAW, NODE_WRITABLE, NULL);
    stage_play("driver=throttle,limits.bps-read=1000000" RAW, NODE_WRITABLE, reads_are_limited);
    stage_play("driver=throttle,x-bps-read=1000000" RAW, NODE_WRITABLE, reads_are_limited);
}

static void test_totals(void **state)
{
    stage_play("driver=throttle,limits.bps-total=1000000" RAW, NODE_WRITABLE, all_is_limited);
}

static void test_requests(void **state)
{
    stage_play("driver=throttle,limits.iops-read=100,limits.iops-size=4k" RAW, 0,
               requests_are_limited);
}

static void test_bursts(void **state)
{
    stage_play("driver=throttle,limits.bps-read=1000000,limits.bps-read-max=2000000,"
               "limits.bps-read-max-length=5" RAW,
               0, bursts);
    stage_play("driver=throttle,limits.bps-read=1000000,limits.bps-read-max=4000000" RAW, 0,
               bursts_at_once);
}

/* The time after which a huge range is paid for cannot be told: but there is something to wait for.
 */
static void test_huge_range(void **state)
{
    struct throttle_limits limits = {.config.limits[THROTTLE_BPS_WRITE].rate = 1};
    int64_t wait;

    throttle_count(&limits, THROTTLE_WRITE, OFFSET_MAX);
    wait = throttle_wait_ns(&limits, THROTTLE_WRITE);
    assert_true(wait > 0 && wait < INT64_MAX / 2);
    throttle_leak(&limits, wait);
    assert_true(throttle_wait_ns(&limits, THROTTLE_WRITE) > 0);
}

/* ---- Several clients ---- */

struct client {
    struct node *node;
    bool write;
    unsigned wanted, at_once, running, done;
    int64_t ended_ms;
};

static unsigned clients_left;

static void request(void *arg)
{
    struct client *client = arg;

    coroutine_set_owner(client);
    assert_int_equal(client->write ? stage_write(client->node, WRITTEN, PIECE, 1)
                                   : stage_read(client->node, PIECE, PIECE),
                     0);
    client->running--;
    client->done++;
    if (client->done == client->wanted) {
        client->ended_ms = stage_ms();
        clients_left--;
    }
}

static void run_clients(struct client *clients, unsigned count)
{
    clients_left = count;
    while (clients_left > 0) {
        for (unsigned i = 0; i < count; i++) {
            struct client *client = &clients[i];

            while (client->running < client->at_once &&
                   client->done + client->running < client->wanted) {
                client->running++;
                assert_int_equal(coroutine_start(request, client), 0);
            }
        }
        co_sleep(1000000);
    }
}

/* A hundred requests at once gain nothing over one at a time. */
static void is_fair(struct node *node)
{
    struct client clients[] = {
        {.node = node, .wanted = 200, .at_once = 100},
        {.node = node, .wanted = 100, .at_once = 2},
    };

    run_clients(clients, 2);
    assert_in_range(clients[1].ended_ms, 1800, 2200);
    assert_in_range(clients[0].ended_ms, 2800, 3000);
}

static void reads_and_writes_take_turns(struct node *node)
{
    struct client clients[] = {
        {.node = node, .wanted = 200, .at_once = 50, .write = true},
        {.node = node, .wanted = 100, .at_once = 2},
    };

    run_clients(clients, 2);
    assert_in_range(clients[1].ended_ms, 1800, 2200);
    assert_in_range(clients[0].ended_ms, 2800, 3000);
}

static void test_fairness(void **state)
{
    stage_play("driver=throttle,limits.bps-read=1000000" RAW, 0, is_fair);
    stage_play("driver=throttle,limits.bps-total=1000000" RAW, NODE_WRITABLE,
               reads_and_writes_take_turns);
}

/* ---- Options ---- */

static void test_bad_options(void **state)
{
    static const char *const rows[][2] = {
        {"limits.bps-total=1,limits.bps-read=1",
         "'limits.bps-total' cannot be used together with 'limits.bps-read' and"},
        {"limits.iops-total=1,x-iops-write=1", "'limits.iops-total' cannot be used together"},
        {"limits.bps-read-max=1", "'limits.bps-read-max' needs 'limits.bps-read'"},
        {"limits.bps-read=5,limits.bps-read-max=4", "it must not be lower than"},
        {"limits.iops-read=5,limits.iops-read-max-length=4", "needs 'limits.iops-read-max'"},
        {"limits.iops-size=4k", "'limits.iops-size' needs a limit of requests"},
        {"limits.bps-read=1000000000000001", "is above 1000000000000000"},
        {"limits.bps-read=1G,limits.bps-read-max=1T,limits.bps-read-max-length=1000",
         "is above 1000000000000000"},
        {"limits.bps-read=1,x-bps-read=1", "'limits.bps-read' and 'x-bps-read' mean the same"},
        {"limits.bps-read=fast", "'limits.bps-read'"},
        {"limits.iops-read=-5", "'limits.iops-read'"},
        {"limits.iops-read=", "'limits.iops-read'"},
        {"limits.bps-reads=1", "bps-reads"},
    };
    char text[300];

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        snprintf(text, sizeof(text), "driver=throttle,%s" RAW, rows[i][0]);
        stage_refused(text, 0, EINVAL, rows[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rates, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_totals, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_requests, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_bursts, stage_setup, stage_teardown),
        cmocka_unit_test(test_huge_range),
        cmocka_unit_test_setup_teardown(test_fairness, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_bad_options, stage_setup, stage_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
