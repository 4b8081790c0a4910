/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 on a disk that is full.  What was acknowledged before, or in spite of, ENOSPC is made
 * durable by the next flush, for tables have their room from the start; and what was freed can be
 * used at once.
 */
#include "base/checked.h"
#include "base/sys.h"
#include "tests/support/content.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTER UINT64_C(4096)
#define PER_TABLE (CLUSTER / 8)
#define TABLES 16
#define CLUSTERS (TABLES * PER_TABLE)

static struct stage {
    struct node *node;
    uint8_t acked[CLUSTERS]; /* what each byte is, by what was acknowledged */
    uint8_t next;            /* what is written next */
} stage;

static void make_image(void)
{
    struct qcow2_image image = {
        .version = 3, .cluster_bits = 12, .order = 4, .size = CLUSTERS * CLUSTER};

    memset(&stage, 0, sizeof(stage));
    qcow2_image_start(&image);
    for (uint64_t i = 0; i < 8; i++) {
        qcow2_image_data(&image, i, (uint8_t)(i + 1));
        stage.acked[i] = (uint8_t)(i + 1);
    }
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

static int write_one(uint64_t cluster)
{
    static uint8_t data[CLUSTER];
    int err;

    stage.next = stage.next % 255 + 1;
    memset(data, stage.next, CLUSTER);
    err = block_write(stage.node, data, CLUSTER, cluster * CLUSTER, 0);
    if (err == 0)
        stage.acked[cluster] = stage.next;
    return err;
}

/* All that was written, and here and there what was not. */
static void read_all(struct node *node)
{
    static uint8_t data[CLUSTER], wanted[CLUSTER];

    for (uint64_t i = 0; i < CLUSTERS; i++) {
        if (stage.acked[i] == 0 && i % 64 != 0)
            continue;
        assert_int_equal(block_read(node, data, CLUSTER, i * CLUSTER), 0);
        memset(wanted, stage.acked[i], CLUSTER);
        assert_memory_equal(data, wanted, CLUSTER);
    }
}

/* A cluster of each table, until there is no room; then as much as goes into the first one. */
static void fill(void)
{
    int err = 0;

    for (uint64_t i = 0; i < TABLES && err == 0; i++)
        err = write_one(i * PER_TABLE + PER_TABLE / 2);
    assert_int_equal(err, -ENOSPC);
    for (uint64_t i = 100; err == 0 || i == 100; i++)
        err = write_one(i);
    assert_int_equal(err, -ENOSPC);
    assert_int_equal(write_one(CLUSTERS - 1), -ENOSPC);
}

static int run_fill(void *arg)
{
    stage.node = stage_open(NODE_WRITABLE);
    fill();
    assert_int_equal(block_flush(stage.node), 0);
    read_all(stage.node);
    node_unref(stage.node);
    return 0;
}

static int run_afterwards(void *arg)
{
    struct node *node = stage_open(0);

    stage_check(true);
    read_all(node);
    node_unref(node);
    return 0;
}

/* Plays on disks that are full sooner or later: between a table and its data, and elsewhere. */
static void play(int (*run)(void *), const struct fault_plan *plan)
{
    for (uint64_t blocks = 14; blocks < 44; blocks++) {
        sim_disk_install(
            &(struct sim_disk_config){.seed = test_seed(), .capacity = blocks * CONTENT_BLOCK});
        fault_install();
        make_image();
        fault_arm(plan);
        assert_int_equal(test_run(run, NULL), 0);
        fault_arm(&(struct fault_plan){0});
        assert_int_equal(test_run(run_afterwards, NULL), 0);
        fault_remove();
        sim_disk_remove();
    }
}

static void what_was_acknowledged_is_kept(void **state)
{
    play(run_fill, &(struct fault_plan){0});
}

/* Room is made by writing, then. */
static void without_fallocate(void **state)
{
    play(run_fill, &(struct fault_plan){
                       .calls = FAULT_FALLOCATE, .nth = 1, .sticky = true, .error = EOPNOTSUPP});
}

struct writer {
    uint64_t cluster;
};

static int write_in_group(void *arg)
{
    const struct writer *writer = arg;
    static uint8_t data[CLUSTER];

    memset(data, 0x77, CLUSTER);
    stage.acked[writer->cluster] = 0x77;
    return block_write(stage.node, data, CLUSTER, writer->cluster * CLUSTER, 0);
}

/* Several requests at once find the disk full, after as many clusters were given up. */
static int run_reuse(void *arg)
{
    static struct writer writers[8];
    struct co_group group;

    stage.node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    fill();
    assert_int_equal(block_zero(stage.node, 0, 8 * CLUSTER, ZERO_MAY_UNMAP), 0);
    memset(stage.acked, 0, 8);
    co_group_init(&group);
    for (uint64_t i = 0; i < ARRAY_SIZE(writers); i++) {
        writers[i].cluster = 10 + 2 * i;
        co_group_start(&group, write_in_group, &writers[i]);
    }
    assert_int_equal(co_group_wait(&group), 0);
    assert_int_equal(write_one(50), -ENOSPC);
    assert_int_equal(block_flush(stage.node), 0);
    read_all(stage.node);
    node_unref(stage.node);
    return 0;
}

static void what_was_freed_is_used_at_once(void **state)
{
    play(run_reuse, &(struct fault_plan){0});
}

static int run_reuse_compressed(void *arg)
{
    static uint8_t data[CLUSTER];

    stage.node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    fill();
    assert_int_equal(block_zero(stage.node, 0, CLUSTER, ZERO_MAY_UNMAP), 0);
    memset(data, 0x66, CLUSTER);
    assert_int_equal(block_write_compressed(stage.node, data, CLUSTER, 10 * CLUSTER), 0);
    stage.acked[0] = 0;
    stage.acked[10] = 0x66;
    assert_int_equal(block_flush(stage.node), 0);
    read_all(stage.node);
    node_unref(stage.node);
    return 0;
}

static void what_was_freed_is_used_by_compressed_data(void **state)
{
    play(run_reuse_compressed, &(struct fault_plan){0});
}

/* Blocks of zeroes become holes, as copying an image may do that: tables and all. */
static void punch_zeroes(void)
{
    static const uint8_t zeroes[CONTENT_BLOCK];
    size_t length;
    uint8_t *data = stage_content(&length);
    int fd = sys->openat(AT_FDCWD, STAGE_PATH, O_RDWR, 0);

    assert_true(fd >= 0);
    for (size_t at = 0; at + CONTENT_BLOCK <= length; at += CONTENT_BLOCK) {
        if (memcmp(data + at, zeroes, CONTENT_BLOCK) == 0)
            assert_int_equal(
                sys->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, CONTENT_BLOCK),
                0);
    }
    sys->close(fd);
    free(data);
}

/* Pieces whose L2 entries are in the second block of the table. */
static int run_sparse(void *arg)
{
    int err = 0;

    stage.node = stage_open(NODE_WRITABLE);
    for (uint64_t i = CLUSTERS / 2; err == 0; i++)
        err = write_one(i);
    assert_int_equal(err, -ENOSPC);
    assert_int_equal(block_flush(stage.node), 0);
    read_all(stage.node);
    node_unref(stage.node);
    return 0;
}

static void fill_sparse_image(unsigned cluster_bits)
{
    for (uint64_t blocks = 24; blocks < 90; blocks += 3) {
        struct qcow2_image image = {
            .version = 3, .cluster_bits = cluster_bits, .order = 4, .size = CLUSTERS * CLUSTER};

        sim_disk_install(
            &(struct sim_disk_config){.seed = test_seed(), .capacity = blocks * CONTENT_BLOCK});
        memset(&stage, 0, sizeof(stage));
        qcow2_image_start(&image);
        for (uint64_t i = 0; i << cluster_bits < UINT64_C(16) * CLUSTER; i++)
            qcow2_image_data(&image, i, 0x11);
        memset(stage.acked, 0x11, 16);
        qcow2_image_finish(&image);
        stage_store(&image);
        qcow2_image_fini(&image);
        punch_zeroes();
        assert_int_equal(test_run(run_sparse, NULL), 0);
        assert_int_equal(test_run(run_afterwards, NULL), 0);
        sim_disk_remove();
    }
}

/* Clusters of 64 KiB: of L2 table and refcount block, only the first blocks are on the disk. */
static void tables_with_holes(void **state)
{
    fill_sparse_image(16);
}

/* Clusters of 512 bytes: the second half of the L1 table is a block of its own. */
static void an_l1_table_with_a_hole(void **state)
{
    fill_sparse_image(9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_acknowledged_is_kept),
        cmocka_unit_test(without_fallocate),
        cmocka_unit_test(what_was_freed_is_used_at_once),
        cmocka_unit_test(what_was_freed_is_used_by_compressed_data),
        cmocka_unit_test(tables_with_holes),
        cmocka_unit_test(an_l1_table_with_a_hole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
