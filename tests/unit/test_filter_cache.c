/* SPDX-License-Identifier: BSD-3-Clause */
/* The filters that read or write in another way, and the null protocol, in simulated time. */
#include "base/colock.h"
#include "blockcore/block.h"
#include "blockcore/create.h"
#include "blockcore/drivers.h"
#include "tests/support/filter_stage.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SLOW                                                                                       \
    "file.driver=delay,file.read-ms=10,file.file.driver=raw,file.file.file.filename=disk.raw"

/* How many reads of the slow file below a read took. */
static int64_t cost(struct node *node, uint64_t offset, size_t length)
{
    int64_t begin = stage_ms();

    assert_int_equal(stage_read(node, offset, length), 0);
    return (stage_ms() - begin) / 10;
}

/* ---- cache ---- */

static void caches(struct node *node)
{
    assert_int_equal(cost(node, 100, 10), 1);
    assert_int_equal(cost(node, 0, 4096), 0);
    assert_int_equal(cost(node, 4000, 200), 1); /* one block is there */
    assert_int_equal(cost(node, 0, 8192), 0);
    /* Four blocks at most: the first is the one that was not used for the longest time. */
    assert_int_equal(cost(node, 8192, 8192), 2);
    assert_int_equal(cost(node, 4096, 12288), 0);
    assert_int_equal(cost(node, 16384, 1), 1);
    assert_int_equal(cost(node, 4096, 12288 + 1), 0);
    assert_int_equal(cost(node, 0, 1), 1);
    assert_int_equal(cost(node, STAGE_DISK_BYTES - 1, 1), 1);
    assert_int_equal(cost(node, STAGE_DISK_BYTES - 4096, 4096), 0);
}

static void drops_what_is_written(struct node *node)
{
    uint8_t byte;

    assert_int_equal(cost(node, 0, 12288), 3);
    assert_int_equal(stage_write(node, 4090, 10, 0xee), 0);
    assert_int_equal(block_read(node, &byte, 1, 4095), 0);
    assert_int_equal(byte, 0xee);
    assert_int_equal(cost(node, 8192, 4096), 0);
    assert_int_equal(cost(node, 4100, 10), 1);
    assert_int_equal(block_zero(node, 0, 100000, 0), 0);
    assert_int_equal(block_read(node, &byte, 1, 8192), 0);
    assert_int_equal(byte, 0);
    assert_int_equal(cost(node, 200000, 1), 1);
    assert_int_equal(block_discard(node, 200000, 100, 0), 0);
    assert_int_equal(cost(node, 204799, 1), 1);
}

static int read_slowly(void *arg)
{
    uint8_t byte;

    return block_read(arg, &byte, 1, 5);
}

/* A write while a block is being loaded: the block must not be kept as it was. */
static void is_never_stale(struct node *node)
{
    struct co_group group;
    uint8_t byte = 0;

    co_group_init(&group);
    co_group_start(&group, read_slowly, node);
    coroutine_yield();
    assert_int_equal(stage_write(node, 5, 1, 0x77), 0);
    assert_int_equal(co_group_wait(&group), 0);
    assert_int_equal(block_read(node, &byte, 1, 5), 0);
    assert_int_equal(byte, 0x77);
}

/* Any reads and writes at once, against a model. */
static void equals_a_model(struct node *node)
{
    struct prng prng = prng_of(test_seed());
    uint8_t *model = malloc(65536), *got = malloc(65536);

    assert_int_equal(block_read(node, model, 65536, 0), 0);
    for (unsigned i = 0; i < 2000; i++) {
        uint64_t offset = prng_below(&prng, 65536), length = prng_below(&prng, 65536 - offset);

        if (prng_percent(&prng, 30)) {
            length = length / 8;
            prng_fill(&prng, model + offset, length);
            assert_int_equal(block_write(node, model + offset, length, offset, 0), 0);
        } else {
            assert_int_equal(block_read(node, got, length, offset), 0);
            assert_memory_equal(got, model + offset, length);
        }
    }
    free(model);
    free(got);
}

/* What cannot be read is no reason to fail a read of what lies beside it. */
static void reads_beside_errors(struct node *node)
{
    assert_int_equal(stage_read(node, 524288, 4096), 0);
    assert_int_equal(stage_read(node, 524288 + 4096, 512), -EIO);
    assert_int_equal(stage_read(node, 524288, 4096), 0);
    assert_int_equal(stage_read(node, 524288 + 4608, 512), 0);
}

static void test_cache(void **state)
{
    stage_play("driver=cache,limit=16k,block-size=4k," SLOW, 0, caches);
    stage_play("driver=cache,block-size=4k," SLOW, NODE_WRITABLE | NODE_UNMAP,
               drops_what_is_written);
    stage_play(
        "driver=cache,file.driver=error,file.operation=read,file.offset=528384,file.size=512,"
        "file.file.driver=raw,file.file.file.filename=disk.raw",
        0, reads_beside_errors);
}

static void test_cache_and_writes(void **state)
{
    stage_play("driver=cache,limit=32k,block-size=4k," SLOW, NODE_WRITABLE, equals_a_model);
    stage_play("driver=cache,limit=512,block-size=512," SLOW, NODE_WRITABLE, equals_a_model);
    stage_play("driver=cache," SLOW, NODE_WRITABLE, is_never_stale);
}

static void test_bad_options_of_cache(void **state)
{
    stage_refused("driver=cache,block-size=5000," SLOW, 0, EINVAL, "must be a power of two");
    stage_refused("driver=cache,block-size=2M," SLOW, 0, EINVAL, "from 512 to 1M");
    stage_refused("driver=cache,block-size=0," SLOW, 0, EINVAL, "is 0, it must be");
    stage_refused("driver=cache,limit=4k," SLOW, 0, EINVAL, "the block size (65536) at least");
    stage_refused("driver=cache,limit=," SLOW, 0, EINVAL, "'limit'");
    stage_refused("driver=cache,size=1," SLOW, 0, EINVAL, "'size'");
}

/* ---- copy-on-read ---- */

static void make_image(struct node *unused)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sync};
    json_t *options =
        json_pack("{s:i, s:s, s:s, s:i}", "size", STAGE_DISK_BYTES + 65536, "backing_file",
                  "disk.raw", "backing_fmt", driver_raw.name, "cluster_size", 4096);
    struct error error;

    assert_int_equal(block_create(&context, driver_qcow2.name, "disk.qcow2", options, &error), 0);
    json_decref(options);
}

static unsigned depth_at(struct node *node, uint64_t offset)
{
    struct block_status status;

    assert_int_equal(block_get_status(node, offset, 1, &status), 0);
    return status.depth;
}

static void copies(struct node *node)
{
    uint8_t byte;

    assert_int_equal(depth_at(node, 8192), 2);
    assert_int_equal(stage_read(node, 5000, 10), 0);
    assert_int_equal(depth_at(node, 4095), 2);
    assert_int_equal(depth_at(node, 4096), 1);
    assert_int_equal(depth_at(node, 8192), 2);
    assert_int_equal(stage_write(node, 12288, 1, 1), 0);
    assert_int_equal(stage_read(node, 0, 12288), 0);
    assert_int_equal(depth_at(node, 0), 1);
    assert_int_equal(block_read(node, &byte, 1, 12288), 0);
    assert_int_equal(byte, 1);
    assert_int_equal(stage_read(node, 300000, 600000), 0);
    assert_int_equal(depth_at(node, 299999), 1);
    assert_int_equal(depth_at(node, 800000), 1);
    assert_int_equal(depth_at(node, 903000), 2);
    assert_int_equal(block_read(node, &byte, 1, STAGE_DISK_BYTES + 5), 0);
    assert_int_equal(depth_at(node, STAGE_DISK_BYTES + 5), 2);
}

static void keeps_copies(struct node *node)
{
    assert_int_equal(stage_read(node, 300000, 600000), 0);
    assert_int_equal(depth_at(node, 800000), 1);
}

static int read_at(void *arg)
{
    return stage_read(arg, 65536, 300);
}

static int write_at(void *arg)
{
    return stage_write(arg, 65536 + 400, 100, 0x99);
}

/* A write that meets the copying of its cluster is not undone by it. */
static void meets_writes(struct node *node)
{
    uint8_t bytes[100];
    struct co_group group;

    co_group_init(&group);
    for (unsigned i = 0; i < 3; i++) {
        co_group_start(&group, read_at, node);
        co_group_start(&group, write_at, node);
    }
    assert_int_equal(co_group_wait(&group), 0);
    assert_int_equal(block_read(node, bytes, sizeof(bytes), 65536 + 400), 0);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        assert_int_equal(bytes[i], 0x99);
}

#define COPY "driver=copy-on-read,file.driver=qcow2,file.file.filename=disk.qcow2"

static void test_copy_on_read(void **state)
{
    stage_play("driver=raw,file.filename=disk.raw", 0, make_image);
    stage_play(COPY, NODE_WRITABLE, copies);
    stage_play("driver=qcow2,file.filename=disk.qcow2", 0, keeps_copies);
    stage_play(COPY
               ",file.backing.driver=delay,file.backing.read-ms=20,file.backing.file.driver=raw,"
               "file.backing.file.file.filename=disk.raw",
               NODE_WRITABLE, meets_writes);
}

/* Nothing can be written below: reads go on. */
static void copies_in_vain(struct node *node)
{
    assert_int_equal(stage_read(node, 5000, 10), 0);
    assert_int_equal(depth_at(node, 4096), 2);
}

static void test_copies_that_fail(void **state)
{
    stage_play("driver=raw,file.filename=disk.raw", 0, make_image);
    stage_play("driver=copy-on-read,file.driver=qcow2,file.file.driver=error,"
               "file.file.operation=write,file.file.file.filename=disk.qcow2",
               NODE_WRITABLE, copies_in_vain);
    stage_refused(COPY, 0, EROFS, "opened read-only: leave out --read-only");
    stage_refused("driver=copy-on-read,file.driver=raw,file.file.filename=disk.raw", NODE_WRITABLE,
                  EINVAL, "needs an image with a backing file below it");
    stage_refused(COPY ",x=1", NODE_WRITABLE, EINVAL, "'x'");
}

/* ---- detect-zeroes ---- */

static void detects(struct node *node)
{
    struct block_status status;

    assert_int_equal(stage_write(node, 65536, 65536, 0), 0);
    assert_int_equal(stage_write(node, 131072, 65536, 1), 0);
    assert_int_equal(block_get_status(node, 65536, 131072, &status), 0);
    assert_int_equal(status.flags & STATUS_ZERO, STATUS_ZERO);
    assert_int_equal(status.length, 65536);
    assert_int_equal(block_get_status(node, 131072, 65536, &status), 0);
    assert_int_equal(status.flags & STATUS_ZERO, 0);
}

static void test_detect_zeroes(void **state)
{
    stage_play("driver=detect-zeroes,unmap=on,file.driver=raw,file.file.filename=disk.raw",
               NODE_WRITABLE | NODE_UNMAP, detects);
    stage_play("driver=detect-zeroes,file.driver=raw,file.file.filename=disk.raw", NODE_WRITABLE,
               NULL);
    stage_refused("driver=detect-zeroes,unmap=on,file.driver=raw,file.file.filename=disk.raw",
                  NODE_WRITABLE, EINVAL, "needs discard=unmap");
    stage_refused("driver=detect-zeroes,unmap=maybe,file.driver=raw,file.file.filename=disk.raw",
                  NODE_WRITABLE | NODE_UNMAP, EINVAL, "'unmap'");
}

/* ---- null ---- */

static void is_nothing(struct node *node)
{
    uint8_t bytes[64];

    assert_int_equal(node->size, 1000000);
    memset(bytes, 1, sizeof(bytes));
    assert_int_equal(block_write(node, bytes, sizeof(bytes), 5000, BLOCK_FUA), 0);
    assert_int_equal(stage_ms(), 4);
    assert_int_equal(block_read(node, bytes, sizeof(bytes), 5000), 0);
    assert_int_equal(stage_ms(), 6);
    for (unsigned i = 0; i < sizeof(bytes); i++)
        assert_int_equal(bytes[i], 0);
    assert_int_equal(block_zero(node, 0, 1000000, 0), 0);
    assert_int_equal(block_discard(node, 0, 1000000, 0), 0);
    assert_int_equal(stage_ms(), 10);
    assert_int_equal(block_write(node, bytes, 2, 999999, 0), -ENOSPC);
}

static void is_all_zeroes(struct node *node)
{
    struct block_status status;

    assert_int_equal(block_get_status(node, 0, GIB, &status), 0);
    assert_int_equal(status.length, GIB);
    assert_int_equal(status.flags & STATUS_ZERO, STATUS_ZERO);
}

static void test_null(void **state)
{
    stage_play("driver=null-co,size=1000000,latency-ns=2000000", NODE_WRITABLE | NODE_UNMAP,
               is_nothing);
    stage_play("driver=raw,file.driver=null-aio,file.read-zeroes=on", 0, is_all_zeroes);
    stage_play("driver=null-co,size=0", 0, NULL);
    stage_refused("driver=null-co,size=-1", 0, EINVAL, "'size'");
    stage_refused("driver=null-co,size=9E", 0, EINVAL, "'size'");
    stage_refused("driver=null-co,latency-ns=10000000001", 0, EINVAL, "at most 10000000000");
    stage_refused("driver=null-co,read-zeroes=x", 0, EINVAL, "'read-zeroes'");
    stage_refused("driver=null-co,filename=x", 0, EINVAL, "'filename'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_cache, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_cache_and_writes, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_bad_options_of_cache, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_copy_on_read, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_copies_that_fail, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_detect_zeroes, stage_setup, stage_teardown),
        cmocka_unit_test_setup_teardown(test_null, stage_setup, stage_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
