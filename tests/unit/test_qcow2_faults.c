/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 when calls fail: the k-th read, write or sync of a fixed series of requests fails, for
 * every k, once or from then on; or the disk is full.  A request that fails leaves old or new bytes
 * in its own range and nothing else, and the image never has an error (leaks at most).
 */
#include "base/checked.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define REQUESTS 18

struct layout {
    unsigned version, cluster_bits, order;
    uint64_t clusters;
    bool snapshot;
    uint64_t incompatible;
};

struct run {
    const struct layout *layout;
    struct fault_plan plan;
    struct node *node;
    uint64_t size;
    uint8_t *model, *wanted, *seen;
    unsigned failed;
    bool fired;
};

/* The refcount table of one cluster is nearly used up: it grows in the course of these writes. */
static const struct layout growing = {3, 9, 6, 8000, false};

static void plant_external(const struct run *run, struct qcow2_image *image)
{
    uint64_t cluster = UINT64_C(1) << image->cluster_bits;

    for (uint64_t i = 0; i < run->layout->clusters / 2; i++) {
        qcow2_image_set(image, i, STAGE_COPIED | i * cluster | i % 3 % 2);
        if (i % 3 % 2 == 0)
            memset(run->model + i * cluster, (uint8_t)(i + 1), cluster);
    }
}

static void plant(const struct run *run, struct qcow2_image *image)
{
    uint64_t cluster = UINT64_C(1) << image->cluster_bits;

    for (uint64_t i = 0; i < run->layout->clusters / 2; i++) {
        if (i % 3 == 0 || run->layout == &growing)
            qcow2_image_data(image, i, (uint8_t)(i + 1));
        else if (i % 3 == 1)
            qcow2_image_compressed(image, i, (uint8_t)(i + 1), true);
        if (i % 3 < 2 || run->layout == &growing)
            memset(run->model + i * cluster, (uint8_t)(i + 1), cluster);
    }
}

static void run_init(struct run *run, const struct layout *layout)
{
    struct qcow2_image image = {
        .version = layout->version,
        .cluster_bits = layout->cluster_bits,
        .order = layout->order,
        .size = layout->clusters << layout->cluster_bits,
        .incompatible = layout->incompatible,
    };
    bool external = layout->incompatible & STAGE_DATA_FILE;

    run->layout = layout;
    run->size = image.size;
    run->failed = 0;
    run->model = calloc(1, run->size);
    run->wanted = calloc(1, run->size);
    run->seen = calloc(1, run->size);
    assert_true(run->model && run->wanted && run->seen);
    if (external) {
        image.extensions = STAGE_DATA_EXTENSION;
        image.extensions_length = STAGE_DATA_EXTENSION_LENGTH;
    }
    qcow2_image_start(&image);
    if (external)
        plant_external(run, &image);
    else
        plant(run, &image);
    if (layout->snapshot)
        qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    memcpy(run->wanted, run->model, run->size);
    stage_store(&image);
    if (external)
        sim_disk_create(STAGE_DATA_PATH, run->model, run->size);
    qcow2_image_fini(&image);
}

static void run_fini(struct run *run)
{
    free(run->model);
    free(run->wanted);
    free(run->seen);
}

static int request(struct run *run, struct prng *prng, uint64_t offset, uint64_t length,
                   unsigned kind)
{
    if (kind < 5) {
        prng_fill(prng, run->wanted + offset, length);
        return block_write(run->node, run->wanted + offset, length, offset,
                           kind == 0 ? BLOCK_FUA : 0);
    }
    if (kind == 5)
        return block_flush(run->node);
    memset(run->wanted + offset, 0, length);
    if (kind == 6)
        return block_discard(run->node, offset, length, 0);
    return block_zero(run->node, offset, length, kind == 7 ? ZERO_MAY_UNMAP : 0);
}

/* Each byte of the request is old or new, and becomes what it is now. */
static void adopt(struct run *run, uint64_t offset, uint64_t length)
{
    assert_int_equal(block_read(run->node, run->seen, run->size, 0), 0);
    for (uint64_t i = 0; i < run->size; i++) {
        bool inside = i >= offset && i < offset + length;

        if (run->seen[i] != run->model[i] && !(inside && run->seen[i] == run->wanted[i]))
            test_die("call %u: byte %lu is %#x; old %#x, new %#x", run->plan.nth, i, run->seen[i],
                     run->model[i], run->wanted[i]);
    }
    memcpy(run->model, run->seen, run->size);
    memcpy(run->wanted, run->seen, run->size);
}

/* Faults are off while the test looks, but for those that stay. */
static void look(struct run *run, uint64_t offset, uint64_t length)
{
    unsigned count = fault_count();
    bool fired = fault_fired();
    struct fault_plan rest = run->plan;

    fault_arm(&(struct fault_plan){0});
    adopt(run, offset, length);
    run->fired |= fired;
    if (rest.nth > count)
        rest.nth -= count;
    else
        rest.nth = rest.sticky && rest.nth > 0 ? 1 : 0;
    run->plan = rest;
    fault_arm(&run->plan);
}

/* A failed sync is final, as is of course a fault that stays. */
static bool lasting(const struct fault_plan *plan)
{
    return plan->sticky || (plan->calls & FAULT_FDATASYNC);
}

static int run_requests(void *arg)
{
    struct run *run = arg;
    struct prng prng = prng_of(test_seed());
    uint64_t cluster = UINT64_C(1) << run->layout->cluster_bits;

    run->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    fault_arm(&run->plan);
    for (unsigned i = 0; i < REQUESTS; i++) {
        uint64_t offset = prng_below(&prng, run->size - 4 * cluster);
        uint64_t length = 1 + prng_below(&prng, 4 * cluster);
        int err = request(run, &prng, offset, length, (unsigned)prng_below(&prng, 9));

        run->failed += err < 0;
        look(run, offset, length);
    }
    /* The fault may be in there: then the next flush makes up for it. */
    if (block_flush(run->node) < 0 && !lasting(&run->plan))
        assert_int_equal(block_flush(run->node), 0);
    node_unref(run->node);
    run->fired |= fault_fired();
    fault_arm(&(struct fault_plan){0});
    return 0;
}

static int run_afterwards(void *arg)
{
    struct run *run = arg;
    struct node *node = stage_open(0);

    stage_check(!run->fired);
    assert_int_equal(block_read(node, run->seen, run->size, 0), 0);
    node_unref(node);
    return 0;
}

/* One run; whether the fault came. */
static bool try_fault(const struct layout *layout, struct fault_plan plan)
{
    struct run run = {.plan = plan};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    fault_install();
    run_init(&run, layout);
    assert_int_equal(test_run(run_requests, &run), 0);
    assert_int_equal(test_run(run_afterwards, &run), 0);
    if (!lasting(&plan))
        assert_memory_equal(run.seen, run.model, run.size);
    assert_true(run.fired || run.failed == 0);
    assert_int_equal(sim_disk_open_count(), 0);
    run_fini(&run);
    fault_remove();
    sim_disk_remove();
    return run.fired;
}

static const struct layout layouts[] = {
    {3, 12, 4, 40, false},
    {3, 12, 4, 40, true},
    {3, 9, 6, 300, true},
    {2, 12, 4, 40, true},
    {3, 14, 4, 40, true, STAGE_EXTENDED},
    {3, 12, 4, 40, false, STAGE_DATA_FILE},
};

static void try_all(unsigned calls, int error, bool sticky)
{
    for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
        unsigned k = 1;

        while (try_fault(
            &layouts[i],
            (struct fault_plan){.calls = calls, .nth = k, .error = error, .sticky = sticky}))
            k++;
        /* The series has a few of any kind; where data needs no place, little is read. */
        assert_true(k > (layouts[i].incompatible & STAGE_DATA_FILE ? 1 : 2));
    }
}

static void one_write_fails(void **state)
{
    try_all(FAULT_PWRITEV, EIO, false);
}

static void one_write_finds_the_disk_full(void **state)
{
    try_all(FAULT_PWRITEV, ENOSPC, false);
}

static void writes_fail_from_then_on(void **state)
{
    try_all(FAULT_PWRITEV, EIO, true);
}

static void one_read_fails(void **state)
{
    try_all(FAULT_PREADV, EIO, false);
}

static void one_sync_fails(void **state)
{
    try_all(FAULT_FDATASYNC, EIO, false);
}

static int run_growth(void *arg)
{
    struct run *run = arg;
    uint64_t at = run->size / 2, step = 100 * 512;

    run->node = stage_open(NODE_WRITABLE);
    fault_arm(&run->plan);
    for (unsigned i = 0; i < 8; i++, at += step) {
        memset(run->wanted + at, 0xa0 + (int)i, step);
        run->failed += block_write(run->node, run->wanted + at, step, at, 0) < 0;
    }
    if (block_flush(run->node) < 0)
        assert_int_equal(block_flush(run->node), 0);
    run->fired = fault_fired();
    fault_arm(&(struct fault_plan){0});
    assert_int_equal(block_read(run->node, run->model, run->size, 0), 0);
    node_unref(run->node);
    return 0;
}

static void check_growth(struct run *run)
{
    size_t length;
    uint8_t *data = stage_content(&length);

    assert_memory_equal(run->seen, run->model, run->size);
    assert_true(run->fired || run->failed == 0);
    if (run->failed == 0)
        assert_memory_equal(run->seen, run->wanted, run->size);
    assert_true(run->fired || get_be32(data + 56) > 1);
    free(data);
}

/* Whatever fails, one of the two tables is in force, and is right. */
static void growth_fails_anywhere(void **state)
{
    struct run run;
    unsigned k = 0;

    do {
        run = (struct run){.plan = {.calls = FAULT_PWRITEV, .nth = ++k, .error = EIO}};
        sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
        fault_install();
        run_init(&run, &growing);
        assert_int_equal(test_run(run_growth, &run), 0);
        assert_int_equal(test_run(run_afterwards, &run), 0);
        check_growth(&run);
        run_fini(&run);
        fault_remove();
        sim_disk_remove();
    } while (run.fired);
    assert_true(k > 8 + 4);
}

/* The disk is full: requests fail until something is given back; closing loses nothing. */
static int run_full(void *arg)
{
    struct run *run = arg;
    uint64_t at = 0;

    run->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    for (; at < run->size; at += 8192) {
        memset(run->wanted + at, 0xee, 8192);
        if (block_write(run->node, run->wanted + at, 8192, at, 0) < 0)
            break;
        adopt(run, at, 8192);
    }
    assert_true(at < run->size);
    adopt(run, at, 8192);
    memset(run->wanted, 0, at / 2);
    assert_int_equal(block_zero(run->node, 0, at / 2, ZERO_MAY_UNMAP), 0);
    adopt(run, 0, at / 2);
    return 0;
}

static int run_more(void *arg)
{
    struct run *run = arg;

    assert_int_equal(block_flush(run->node), 0);
    memset(run->wanted, 0xdd, 8192);
    assert_int_equal(block_write(run->node, run->wanted, 8192, 0, 0), 0);
    adopt(run, 0, 8192);
    node_unref(run->node);
    return 0;
}

static int run_full_all(void *arg)
{
    int err = run_full(arg);

    return err < 0 ? err : run_more(arg);
}

static void a_full_disk(void **state)
{
    static const struct layout layout = {3, 12, 4, 256, false};
    struct run run = {0};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed(), .capacity = 512 * KIB});
    run_init(&run, &layout);
    assert_int_equal(test_run(run_full_all, &run), 0);
    stage_check(true);
    assert_int_equal(test_run(run_afterwards, &run), 0);
    assert_memory_equal(run.seen, run.model, run.size);
    run_fini(&run);
    sim_disk_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_write_fails),
        cmocka_unit_test(one_write_finds_the_disk_full),
        cmocka_unit_test(writes_fail_from_then_on),
        cmocka_unit_test(one_read_fails),
        cmocka_unit_test(one_sync_fails),
        cmocka_unit_test(growth_fails_anywhere),
        cmocka_unit_test(a_full_disk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
