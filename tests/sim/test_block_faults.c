/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine when calls fail: the k-th read, write, sync, ... of a fixed series of requests
 * fails, for every k.  A request that fails leaves old or new bytes in its own range and nothing
 * else; no storage and no lock is lost; and what comes after it works.
 */
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "tests/sim/toy_format.h"
#include "tests/support/fault.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DISK_SIZE (16 * 4096 + 700)
#define REQUESTS 14

static const struct driver *const drivers[] = {&driver_toy, &driver_raw, &driver_file, NULL};

struct run {
    const char *options;
    struct fault_plan plan;
    uint32_t alignment;
    struct node *node;
    unsigned failed;
    bool fired;
    uint8_t model[DISK_SIZE], wanted[DISK_SIZE], seen[DISK_SIZE];
};

static int request(struct run *run, struct prng *prng, uint64_t offset, uint64_t length,
                   unsigned kind)
{
    if (kind == 0) {
        memset(run->wanted + offset, 0, length);
        return block_zero(run->node, offset, length, ZERO_MAY_UNMAP);
    }
    prng_fill(prng, run->wanted + offset, length);
    return block_write(run->node, run->wanted + offset, length, offset, kind == 1 ? BLOCK_FUA : 0);
}

/* After a failure every byte of the request is old or new, and becomes what it is now. */
static void adopt(struct run *run, uint64_t offset, uint64_t length)
{
    assert_int_equal(block_read(run->node, run->seen, DISK_SIZE, 0), 0);
    for (uint64_t i = 0; i < DISK_SIZE; i++) {
        bool inside = i >= offset && i < offset + length;

        if (run->seen[i] != run->model[i] && !(inside && run->seen[i] == run->wanted[i]))
            test_die("call %u: byte %lu is %#x; old %#x, new %#x", run->plan.nth, i, run->seen[i],
                     run->model[i], run->wanted[i]);
    }
    memcpy(run->model, run->seen, DISK_SIZE);
    memcpy(run->wanted, run->seen, DISK_SIZE);
}

static void open_node(struct run *run)
{
    const struct block_context context = {.drivers = drivers, .engine = &io_engine_sync};
    json_t *tree = json_loads(run->options, 0, NULL);

    assert_non_null(tree);
    assert_int_equal(node_open_tree(&context, tree, NODE_WRITABLE | NODE_UNMAP, &run->node, NULL),
                     0);
    json_decref(tree);
    if (run->alignment)
        run->node->file->request_alignment = run->alignment;
}

static int run_requests(void *arg)
{
    struct run *run = arg;
    struct prng prng = prng_of(test_seed());

    open_node(run);
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t offset = prng_below(&prng, DISK_SIZE);
        uint64_t length = 1 + prng_below(&prng, min_u64(3 * 4096, DISK_SIZE - offset));
        int err;

        if (!run->fired)
            fault_arm(&run->plan);
        err = request(run, &prng, offset, length, i % 3);
        if (!run->fired && !fault_fired())
            run->plan.nth -= fault_count();
        run->fired |= fault_fired();
        fault_arm(&(struct fault_plan){0});
        if (err == 0) {
            memcpy(run->model, run->wanted, DISK_SIZE);
            continue;
        }
        run->failed++;
        adopt(run, offset, length);
        assert_true(list_empty(&run->node->locks.held));
    }
    adopt(run, 0, 0);
    if (run->node->driver == &driver_toy)
        assert_int_equal(toy_clusters_used(run->node), toy_clusters_mapped(run->node));
    node_unref(run->node);
    return 0;
}

static void play(const char *options, uint32_t alignment, unsigned calls, int error)
{
    struct run *run = calloc(1, sizeof(*run));
    unsigned k, failed = 0;

    for (k = 1;; k++) {
        const struct sim_disk_config config = {.seed = test_seed()};
        struct prng prng = prng_of(7);

        *run = (struct run){
            .options = options, .alignment = alignment, .plan = {calls, k, false, error, 0}};
        prng_fill(&prng, run->model, DISK_SIZE);
        memcpy(run->wanted, run->model, DISK_SIZE);
        sim_disk_install(&config);
        sim_disk_create("/sim/bottom", run->model, DISK_SIZE);
        sim_disk_create("/sim/top", NULL, 0);
        fault_install();
        fault_arm(&(struct fault_plan){0});
        assert_int_equal(test_run(run_requests, run), 0);
        fault_remove();
        assert_int_equal(sim_disk_open_count(), 0);
        sim_disk_remove();
        failed += run->failed;
        if (!run->fired)
            break;
    }
    assert_true(k > 5); /* the series makes calls of this kind */
    if (error && error != EINTR)
        assert_true(failed > 0);
    else
        assert_int_equal(failed, 0);
    free(run);
}

#define FILE_NODE(path) "{\"driver\": \"file\", \"filename\": \"" path "\"}"
#define RAW "{\"driver\": \"raw\", \"file\": " FILE_NODE("/sim/bottom") "}"
#define TOY                                                                                        \
    "{\"driver\": \"toy\", \"size\": 66236, \"file\": " FILE_NODE(                                 \
        "/sim/top") ", \"backing\": " RAW "}"

_Static_assert(DISK_SIZE == 66236, "the size in TOY");

static void play_all(unsigned calls, int error)
{
    play(RAW, 0, calls, error);
    play(RAW, 4096, calls, error);
    play(TOY, 0, calls, error);
    play(TOY, 4096, calls, error);
}

static void test_read_fails(void **state)
{
    play(TOY, 0, FAULT_PREADV, EIO);
    play(RAW, 4096, FAULT_PREADV, EIO);
}

static void test_write_fails(void **state)
{
    play_all(FAULT_PWRITEV, EIO);
}

static void test_disk_full(void **state)
{
    play_all(FAULT_PWRITEV | FAULT_FALLOCATE, ENOSPC);
}

static void test_interrupted(void **state)
{
    play_all(FAULT_TRANSFER | FAULT_FALLOCATE, EINTR);
}

static void test_short(void **state)
{
    play_all(FAULT_TRANSFER, 0);
}

/* A failed sync is final: no later flush may claim success. */
static int run_failed_sync(void *arg)
{
    struct run *run = arg;
    uint8_t byte = 1;

    open_node(run);
    assert_int_equal(block_write(run->node, &byte, 1, 0, BLOCK_FUA), 0);
    fault_arm(&(struct fault_plan){FAULT_FDATASYNC, 1, false, EIO, 0});
    assert_int_equal(block_write(run->node, &byte, 1, 0, 0), 0);
    assert_int_equal(block_flush(run->node), -EIO);
    assert_int_equal(block_flush(run->node), -EIO);
    assert_int_equal(block_write(run->node, &byte, 1, 0, BLOCK_FUA), -EIO);
    assert_int_equal(fault_count(), 1); /* not even tried again */
    node_unref(run->node);
    return 0;
}

static void test_failed_sync(void **state)
{
    const struct sim_disk_config config = {.seed = test_seed()};
    struct run *run = calloc(1, sizeof(*run));

    run->options = RAW;
    sim_disk_install(&config);
    sim_disk_create("/sim/bottom", NULL, DISK_SIZE);
    fault_install();
    fault_arm(&(struct fault_plan){0});
    assert_int_equal(test_run(run_failed_sync, run), 0);
    fault_remove();
    sim_disk_remove();
    free(run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_fails), cmocka_unit_test(test_write_fails),
        cmocka_unit_test(test_disk_full),  cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_short),      cmocka_unit_test(test_failed_sync),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
