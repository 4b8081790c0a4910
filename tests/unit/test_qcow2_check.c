/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Repair of qcow2 when things fail in its midst: every call in turn, and the power at every write.
 * What is left is no worse than what was there, another repair completes it, and nothing that was
 * sound is lost.  The images are checked by counting that is not ours (qcow2_image.h).
 */
#include "base/checked.h"
#include "blockcore/check.h"
#include "blockcore/format/qcow2_counts.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTER 4096
#define LOST 5   /* guest cluster whose entry is broken */
#define SHARED 9 /* refcount too low */
#define CLUSTERS 900

/* How the image is damaged. */
enum damage { DAMAGE_IN_PLACE, DAMAGE_BLOCK };

struct trial {
    enum damage damage;
    unsigned fault; /* the call that fails, 0: none */
    bool cut;       /* all fail from there on, and the power with them */
    uint64_t seed;
    struct block_check check;
    uint8_t disk[CLUSTERS * CLUSTER];
};

static struct trial trial;

static void spoil(struct qcow2_image *image, uint64_t lost_at, uint64_t shared)
{
    uint8_t *block = image->data + get_be64(image->data + get_be64(image->data + 48));
    uint8_t *snapshot = image->data + get_be64(image->data + 64);

    image->data[79] |= 2;       /* marked corrupt */
    put_be32(snapshot + 36, 0); /* no extra data */
    memmove(snapshot + 40, snapshot + 56, 8);
    image->data[image->l1_offset] |=
        0x80; /* the copied bit, though the snapshot has the table, too */
    put_be64(image->data + lost_at, (UINT64_C(1) << 50) | UINT64_C(1) << 63);
    put_be16(block + (shared / CLUSTER) * 2, 0);
    /* A leak behind everything. */
    put_be16(block + qcow2_image_add(image, 2) / CLUSTER * 2, 1);
    if (trial.damage == DAMAGE_BLOCK)
        put_be64(image->data + get_be64(image->data + 48), 0x123);
}

static void plant(void)
{
    struct qcow2_image image = {
        .version = 3, .cluster_bits = 12, .order = 4, .size = CLUSTERS * CLUSTER};
    uint64_t shared, lost, lost_at;

    memset(trial.disk, 0, sizeof(trial.disk));
    qcow2_image_start(&image);
    for (uint64_t i = 0; i < CLUSTERS; i += 3) {
        memset(trial.disk + i * CLUSTER, (int)(i % 255 + 1), CLUSTER);
        if (i % 2)
            qcow2_image_data(&image, i, (uint8_t)(i % 255 + 1));
        else
            qcow2_image_compressed(&image, i, (uint8_t)(i % 255 + 1), true);
    }
    qcow2_image_snapshot(&image);
    put_be64(image.data + image.l1_offset + 8, 0); /* the rest of the disk is not shared */
    memset(trial.disk + 512 * CLUSTER, 0, (CLUSTERS - 512) * CLUSTER);
    lost = qcow2_image_data(&image, 512 + LOST, 0x55);
    lost_at = qcow2_image_set(&image, 512 + LOST, lost);
    shared = qcow2_image_data(&image, 512 + SHARED, 0x66);
    memset(trial.disk + (512 + SHARED) * CLUSTER, 0x66, CLUSTER);
    qcow2_image_finish(&image);
    spoil(&image, lost_at, shared);
    stage_store(&image);
    qcow2_image_fini(&image);
}

static int repair(void *arg)
{
    unsigned *fix = arg;
    struct error error;
    struct node *node;
    int err = stage_try_open(NODE_REPAIR, &node, &error);

    if (err < 0)
        return err;
    trial.check = (struct block_check){.fix = *fix};
    err = block_check(node, &trial.check, &error);
    node_unref(node);
    return err;
}

static int read_disk(void *arg)
{
    static uint8_t data[sizeof(trial.disk)];
    struct node *node = stage_open(0);
    uint8_t *lost = data + (512 + LOST) * CLUSTER;

    for (uint64_t i = 0; i < CLUSTERS; i++) {
        if (block_read(node, data + i * CLUSTER, CLUSTER, i * CLUSTER) < 0)
            test_die("cluster %lu cannot be read", i);
    }
    node_unref(node);
    memset(lost, 0, CLUSTER); /* what it reads as before the repair is not of interest */
    if (memcmp(data, trial.disk, sizeof(data)) != 0)
        test_die("the disk has changed");
    return 0;
}

/* The dirty and corrupt bits. */
static unsigned marks(void)
{
    size_t length;
    uint8_t *data = stage_content(&length);
    unsigned bits = data[79] & 3;

    free(data);
    return bits;
}

/* The snapshot's entry has all of its extra data, and its name. */
static void assert_complete(void)
{
    size_t length;
    uint8_t *data = stage_content(&length), *entry = data + get_be64(data + 64);

    assert_true(get_be32(entry + 36) >= 16);
    assert_int_equal(get_be64(entry + 48), sizeof(trial.disk));
    assert_memory_equal(entry + 40 + get_be32(entry + 36), "1s1", 3);
    free(data);
}

static void assert_repaired(void)
{
    unsigned all = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS;

    assert_int_equal(test_run(repair, &all), 0);
    assert_int_equal(trial.check.result.corruptions, 0);
    assert_int_equal(trial.check.result.leaks, 0);
    stage_check(true);
    assert_complete();
    assert_int_equal(marks(), 0);
    assert_int_equal(test_run(read_disk, NULL), 0);
}

/* One repair with its trouble, then one without. Whether there was trouble. */
static bool run_trial(void)
{
    unsigned all = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS;
    unsigned calls = trial.cut ? FAULT_PWRITEV | FAULT_FDATASYNC : FAULT_FILE;
    bool fired;
    int err;

    sim_disk_install(&(struct sim_disk_config){.seed = trial.seed});
    plant();
    fault_install();
    fault_arm(&(struct fault_plan){
        .calls = calls, .nth = trial.fault, .sticky = trial.cut, .error = EIO});
    err = test_run(repair, &all);
    fired = fault_fired();
    fault_remove();
    if (trial.cut) {
        sim_disk_power_cut(trial.seed);
        sim_disk_power_on();
    }
    if (!fired)
        assert_true(err == 0 && trial.check.result.corruptions == 0);
    assert_int_equal(test_run(read_disk, NULL), 0);
    if (marks() == 0) /* it says that all is well */
        stage_check(true);
    assert_repaired();
    assert_int_equal(sim_disk_open_count(), 0);
    sim_disk_remove();
    return fired;
}

static void every_fault(enum damage damage, bool cut, unsigned seeds)
{
    for (unsigned seed = 0; seed < seeds; seed++) {
        for (unsigned k = 1;; k++) {
            trial.damage = damage;
            trial.cut = cut;
            trial.fault = k;
            trial.seed = test_seed() + seed * 1000 + k;
            if (!run_trial())
                break;
        }
    }
}

static void calls_that_fail(void **state)
{
    every_fault(DAMAGE_IN_PLACE, false, 1);
    every_fault(DAMAGE_BLOCK, false, 1);
}

static void power_cuts(void **state)
{
    every_fault(DAMAGE_IN_PLACE, true, 8);
    every_fault(DAMAGE_BLOCK, true, 8);
}

static void leaks_alone_leave_the_rest(void **state)
{
    unsigned fix = CHECK_FIX_LEAKS, none = 0;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    trial.damage = DAMAGE_IN_PLACE;
    plant();
    assert_int_equal(test_run(repair, &none), 0);
    assert_true(trial.check.result.leaks > 0 && trial.check.result.leaks_fixed == 0);
    assert_true(trial.check.result.corruptions > 0);
    assert_int_equal(test_run(repair, &fix), 0);
    assert_true(trial.check.result.leaks == 0 && trial.check.result.leaks_fixed > 0);
    assert_true(trial.check.result.corruptions > 0 && trial.check.result.corruptions_fixed == 0);
    assert_repaired();
    sim_disk_remove();
}

/* As when making a snapshot was cut off: refcount 2, one reference, the copied bit gone or not. */
static void repaired_leaks_take_copied_bits_along(void **state)
{
    struct qcow2_image image = {
        .version = 3, .cluster_bits = 12, .order = 4, .size = CLUSTERS * CLUSTER};
    unsigned fix = CHECK_FIX_LEAKS;
    uint64_t gone;
    uint8_t *block;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    gone = qcow2_image_data(&image, 0, 1);
    qcow2_image_data(&image, 1, 2);
    qcow2_image_finish(&image);
    block = image.data + get_be64(image.data + get_be64(image.data + 48));
    put_be16(block + gone / CLUSTER * 2, 2);
    put_be16(block + (gone / CLUSTER + 1) * 2, 2); /* its table */
    put_be64(image.data + qcow2_image_set(&image, 0, gone), gone);
    stage_store(&image);
    qcow2_image_fini(&image);
    assert_int_equal(test_run(repair, &fix), 0);
    assert_true(trial.check.result.leaks == 0 && trial.check.result.leaks_fixed == 2);
    assert_true(trial.check.result.corruptions == 0 && trial.check.result.corruptions_fixed == 1);
    stage_check(true);
    sim_disk_remove();
}

static int write_to_it(void *arg)
{
    struct node *node;
    struct error error;
    uint8_t byte = 1;
    int err;

    if (stage_try_open(NODE_REPAIR, &node, &error) < 0)
        return -EINVAL;
    err = block_write(node, &byte, 1, 0, 0);
    node_unref(node);
    return err;
}

static int repair_read_only(void *arg)
{
    struct block_check check = {.fix = CHECK_FIX_LEAKS};
    struct node *node = stage_open(0);
    struct error error;
    int err = block_check(node, &check, &error);

    node_unref(node);
    return err;
}

static void only_the_check_may_write(void **state)
{
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    plant();
    assert_int_equal(test_run(write_to_it, NULL), -EROFS);
    assert_int_equal(test_run(repair_read_only, NULL), -EROFS);
    sim_disk_remove();
}

static void counts(void **state)
{
    struct qcow2_counts c = {0};
    const uint64_t far = UINT64_C(1) << 54;

    assert_int_equal(qcow2_counts_get(&c, 7), 0);
    for (uint64_t i = 0; i < 40; i++) {
        for (uint64_t k = 0; k < i; k++)
            assert_int_equal(qcow2_counts_add(&c, far - i * 1000, 1, k ? 0 : COUNT_TABLE), 0);
    }
    assert_int_equal(qcow2_counts_add(&c, 3, UINT64_MAX - 1, 0), 0);
    assert_int_equal(qcow2_counts_add(&c, 3, 7, COUNT_FIXED), 0);
    qcow2_counts_sort(&c);
    assert_int_equal(c.chunks[0].index, 0);
    for (uint64_t i = 1; i < 40; i++) {
        assert_int_equal(qcow2_counts_get(&c, far - i * 1000), i);
        assert_int_equal(qcow2_counts_marks(&c, far - i * 1000), COUNT_TABLE);
        assert_int_equal(qcow2_counts_get(&c, far - i * 1000 + 1), 0);
    }
    assert_true(qcow2_counts_get(&c, 3) == UINT64_MAX);
    qcow2_counts_clear(&c, 3);
    assert_int_equal(qcow2_counts_get(&c, 3), 0);
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(qcow2_counts_add(&c, 3, 1, 0), 0);
    assert_int_equal(qcow2_counts_get(&c, 3), 20);
    qcow2_counts_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counts),
        cmocka_unit_test(only_the_check_may_write),
        cmocka_unit_test(leaks_alone_leave_the_rest),
        cmocka_unit_test(repaired_leaks_take_copied_bits_along),
        cmocka_unit_test(calls_that_fail),
        cmocka_unit_test(power_cuts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
