/* SPDX-License-Identifier: BSD-3-Clause */
/* What all filters have in common, and those with which users test their clients. */
#include "base/reactor.h"
#include "blockcore/block.h"
#include "blockcore/create.h"
#include "blockcore/drivers.h"
#include "blockcore/resize.h"
#include "tests/support/filter_stage.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define RAW "file.driver=raw,file.file.filename=disk.raw"

/* ---- Passing on ---- */

/* All that a node can be asked for, through a filter that does nothing about it. */
static void passes(struct node *node)
{
    struct block_status status;
    struct block_extent piece;
    uint8_t byte = 0;

    assert_int_equal(node->size, STAGE_DISK_BYTES);
    assert_int_equal(stage_read(node, 1000, 9000), 0);
    assert_int_equal(stage_read(node, STAGE_DISK_BYTES - 1, 2), -EINVAL);
    assert_int_equal(stage_write(node, STAGE_DISK_BYTES - 1, 2, 'x'), -ENOSPC);
    assert_int_equal(block_resolve(node, 4096, 8192, &piece), 0);
    assert_int_equal(piece.offset, 4096);
    assert_int_equal(piece.length, 8192);
    assert_int_equal(stage_write(node, 5, 3, 'x'), 0);
    assert_int_equal(block_read(node, &byte, 1, 7), 0);
    assert_int_equal(byte, 'x');
    assert_int_equal(block_zero(node, 65536, 131072, ZERO_MAY_UNMAP | BLOCK_FUA), 0);
    assert_int_equal(block_get_status(node, 65536, 262144, &status), 0);
    assert_int_equal(status.flags & STATUS_ZERO, STATUS_ZERO);
    assert_int_equal(status.length, 131072);
    assert_int_equal(block_discard(node, 262144, 65536, 0), 0);
    assert_int_equal(block_get_status(node, 262144, 65536, &status), 0);
    assert_int_equal(status.flags & STATUS_ZERO, STATUS_ZERO);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(block_prefetch(node, 0, 65536), 0);
}

static void test_requests_pass(void **state)
{
    stage_play("driver=delay," RAW, NODE_WRITABLE | NODE_UNMAP, passes);
}

static void test_through_several_filters(void **state)
{
    stage_play("driver=error,operation=read,offset=1M,file.driver=delay,file.file.driver=raw,"
               "file.file.file.filename=disk.raw",
               0, NULL);
    stage_play("driver=delay,file.driver=delay,file.file.driver=raw,"
               "file.file.file.filename=disk.raw",
               NODE_WRITABLE | NODE_UNMAP, passes);
}

static void test_raw_above_a_filter(void **state)
{
    stage_play("driver=raw,file.driver=delay,file.file.filename=disk.raw",
               NODE_WRITABLE | NODE_UNMAP, passes);
}

static void make_qcow2(struct node *unused)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sync};
    json_t *options = json_pack("{s:i, s:s, s:s}", "size", STAGE_DISK_BYTES, "backing_file",
                                "disk.raw", "backing_fmt", driver_raw.name);
    struct error error;

    assert_int_equal(block_create(&context, driver_qcow2.name, "disk.qcow2", options, &error), 0);
    json_decref(options);
}

/* The image grows, through the filter and beyond what the file was. */
static void writes_and_resizes(struct node *node)
{
    const struct block_resize smaller = {.size = STAGE_DISK_BYTES / 2, .shrink = true};
    struct block_status status;
    uint8_t byte = 0;
    struct error error;

    assert_int_equal(stage_read(node, 70000, 1000), 0);
    assert_int_equal(block_get_status(node, 0, 65536, &status), 0);
    assert_int_equal(status.depth, 2);
    assert_int_equal(stage_write(node, 0, STAGE_DISK_BYTES, 'y'), 0);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(block_get_status(node, 0, 65536, &status), 0);
    assert_int_equal(status.depth, 1);
    assert_int_equal(block_read(node, &byte, 1, STAGE_DISK_BYTES - 1), 0);
    assert_int_equal(byte, 'y');
    assert_int_equal(block_resize(node, &smaller, &error), 0);
    assert_int_equal(node->size, STAGE_DISK_BYTES / 2);
}

static void test_around_a_format(void **state)
{
    stage_play("driver=raw,file.filename=disk.raw", 0, make_qcow2);
    stage_play("driver=delay,file.driver=qcow2,file.file.driver=delay,"
               "file.file.file.filename=disk.qcow2,file.backing.driver=delay,"
               "file.backing.file.driver=raw,file.backing.file.file.filename=disk.raw",
               NODE_WRITABLE, writes_and_resizes);
    stage_play("driver=delay,file.driver=qcow2,file.file.filename=disk.qcow2", 0, NULL);
}

static void test_the_file_must_name_its_driver(void **state)
{
    stage_refused("driver=delay,file.filename=disk.raw", 0, EINVAL,
                  "the driver 'delay' needs to know the driver of its 'file'");
    stage_refused("driver=delay,file.driver=error,file.file.filename=disk.raw", 0, EINVAL,
                  "the driver 'error' needs");
    stage_refused("driver=delay", 0, EINVAL, "the driver 'delay' needs");
}

/* ---- delay ---- */

static void waits(struct node *node)
{
    uint8_t byte;

    assert_int_equal(stage_read(node, 0, 10), 0);
    assert_int_equal(stage_ms(), 100);
    assert_int_equal(stage_write(node, 0, 10, 1), 0);
    assert_int_equal(stage_ms(), 120);
    assert_int_equal(block_zero(node, 0, 10, 0), 0);
    assert_int_equal(stage_ms(), 123);
    assert_int_equal(block_discard(node, 0, 10, 0), 0);
    assert_int_equal(stage_ms(), 127);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(stage_ms(), 132);
    assert_int_equal(block_read(node, &byte, 1, 0), 0);
    assert_int_equal(stage_ms(), 232);
}

static void test_delay(void **state)
{
    stage_play("driver=delay,read-ms=100,write-ms=20,zero-ms=3,discard-ms=4,flush-ms=5," RAW,
               NODE_WRITABLE | NODE_UNMAP, waits);
    stage_refused(
        "driver=delay,read-ms=3600001," RAW, 0, EINVAL,
        "'read-ms' of driver 'delay' is 3600001 milliseconds, it must be at most 3600000");
    stage_refused("driver=delay,write-ms=-1," RAW, 0, EINVAL, "'write-ms' of driver 'delay'");
    stage_refused("driver=delay,write-ms=," RAW, 0, EINVAL, "'write-ms' of driver 'delay'");
    stage_refused("driver=delay,wait-ms=1," RAW, 0, EINVAL, "wait-ms");
}

/* Without a coroutine a read that would wait is left to one; and it is not sent from the file. */
static void is_left_to_coroutines(void *arg)
{
    struct node *node = arg;
    struct block_extent piece;
    uint8_t byte;

    assert_int_equal(block_read_nowait(node, &byte, 1, 0), -EAGAIN);
    assert_int_equal(block_resolve(node, 0, 65536, &piece), -ENOENT);
}

struct deferred {
    struct reactor_deferred deferred;
    struct node *node;
    void (*fn)(void *arg);
};

static void run_deferred(struct reactor_deferred *deferred)
{
    struct deferred *d = container_of(deferred, struct deferred, deferred);

    d->fn(d->node);
}

static void check_nowait(struct node *node)
{
    struct deferred d = {{.run = run_deferred}, node, is_left_to_coroutines};

    reactor_defer(&d.deferred);
    while (list_linked(&d.deferred.link))
        coroutine_yield();
}

static void test_reads_that_do_not_wait(void **state)
{
    stage_play("driver=delay,read-ms=1," RAW, 0, check_nowait);
    stage_play("driver=error,operation=read," RAW, 0, check_nowait);
}

/* ---- error ---- */

static void fails_one_kind(struct node *node)
{
    assert_int_equal(stage_read(node, 0, 10), 0);
    assert_int_equal(stage_write(node, 0, 10, 1), -ENOSPC);
    assert_int_equal(block_zero(node, 500000, 10, 0), 0);
    assert_int_equal(block_discard(node, 500000, 10, 0), 0);
    assert_int_equal(block_flush(node), 0);
}

static void fails_all(struct node *node)
{
    assert_int_equal(stage_read(node, 0, 10), -EIO);
    assert_int_equal(stage_write(node, 0, 10, 1), -EIO);
    assert_int_equal(block_zero(node, 0, 10, 0), -EIO);
    assert_int_equal(block_discard(node, 0, 10, 0), -EIO);
    assert_int_equal(block_flush(node), -EIO);
}

static void fails_some(struct node *node)
{
    assert_int_equal(stage_read(node, 0, 10), 0);
    assert_int_equal(stage_read(node, 0, 10), 0);
    assert_int_equal(stage_read(node, 0, 10), -EIO);
    assert_int_equal(stage_read(node, 0, 10), -EIO);
    assert_int_equal(stage_read(node, 0, 10), 0);
}

static void fails_at_a_place(struct node *node)
{
    assert_int_equal(stage_read(node, 4000, 96), 0);
    assert_int_equal(stage_read(node, 4000, 97), -EPERM);
    assert_int_equal(stage_read(node, 4607, 1), -EPERM);
    assert_int_equal(stage_read(node, 4608, 100), 0);
    assert_int_equal(block_flush(node), 0);
}

static unsigned failures;

static void counts_failures(struct node *node)
{
    failures = 0;
    for (unsigned i = 0; i < 1000; i++)
        failures += stage_read(node, 0, 1) < 0;
}

static void test_error(void **state)
{
    unsigned first;

    stage_play("driver=error,operation=write,errno=ENOSPC," RAW, NODE_WRITABLE | NODE_UNMAP,
               fails_one_kind);
    stage_play("driver=error," RAW, NODE_WRITABLE | NODE_UNMAP, fails_all);
    stage_play("driver=error,operation=read,after=2,count=2," RAW, 0, fails_some);
    stage_play("driver=error,operation=read,errno=EPERM,offset=4k,size=512," RAW, 0,
               fails_at_a_place);
    stage_play("driver=error,operation=read,probability=30,seed=5," RAW, 0, counts_failures);
    assert_in_range(failures, 200, 400);
    first = failures;
    stage_play("driver=error,operation=read,probability=30,seed=5," RAW, 0, counts_failures);
    assert_int_equal(failures, first);
    stage_play("driver=error,operation=read,probability=30,seed=6," RAW, 0, counts_failures);
    assert_int_not_equal(failures, first);
}

static void test_bad_options_of_error(void **state)
{
    static const char *const rows[][2] = {
        {"operation=reads", "'operation' of driver 'error' must be one of read, write"},
        {"errno=EFOO", "'errno' of driver 'error' must be one of EIO, EPERM"},
        {"probability=0", "it must be a number from 1 to 100"},
        {"probability=101", "is 101, it must be a number from 1 to 100"},
        {"probability=half", "'probability'"},
        {"count=0", "'count' of driver 'error' is 0, so that nothing would ever fail"},
        {"size=0", "'size' of driver 'error' is 0, so that nothing would ever fail"},
        {"after=-1", "'after'"},
        {"offset=1x", "'offset'"},
        {"what=x", "'what'"},
    };
    char text[200];

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        snprintf(text, sizeof(text), "driver=error,%s," RAW, rows[i][0]);
        stage_refused(text, 0, EINVAL, rows[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_requests_pass, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_through_several_filters, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_raw_above_a_filter, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_around_a_format, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_the_file_must_name_its_driver, stage_setup,
                                        stage_teardown),
        cmocka_unit_test_setup_teardown(test_delay, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_reads_that_do_not_wait, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_error, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_bad_options_of_error, stage_setup, stage_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
