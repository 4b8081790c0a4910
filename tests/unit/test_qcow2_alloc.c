/* SPDX-License-Identifier: BSD-3-Clause */
/* The storage of qcow2: growth of the refcount table, files that cannot grow, deferred frees. */
#include "base/checked.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* A block of the 64-bit refcounts covers 32 KiB, and the table of one cluster 2 MiB. */
static int act_grow(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    uint64_t size = node->size;
    uint8_t *data = malloc(size), *seen = malloc(size);
    struct prng prng = prng_of(test_seed());

    prng_fill(&prng, data, size);
    for (uint64_t at = 0; at < size; at += 96 * KIB)
        assert_int_equal(block_write(node, data + at, min_u64(96 * KIB, size - at), at, 0), 0);
    node_unref(node);
    stage_check(true);
    node = stage_open(0);
    assert_int_equal(block_read(node, seen, size, 0), 0);
    assert_memory_equal(data, seen, size);
    node_unref(node);
    free(data);
    free(seen);
    return 0;
}

static void grows_the_refcount_table(void **state)
{
    static const unsigned orders[] = {6, 5};

    for (size_t i = 0; i < ARRAY_SIZE(orders); i++) {
        struct qcow2_image image = {
            .version = 3, .cluster_bits = 9, .order = orders[i], .size = 9 * MIB};
        size_t length;
        uint8_t *data;

        sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
        qcow2_image_start(&image);
        qcow2_image_finish(&image);
        assert_int_equal(get_be32(image.data + 56), 1);
        stage_store(&image);
        assert_int_equal(test_run(act_grow, NULL), 0);
        data = stage_content(&length);
        assert_true(get_be32(data + 56) > 2);
        free(data);
        qcow2_image_fini(&image);
        sim_disk_remove();
    }
}

/* A file that cannot grow: what is free in it is used, and then the disk is full. */
static int act_fixed(void *arg)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sim};
    struct error error = {.text = ""};
    json_t *tree = json_pack("{s:s, s:{s:s, s:s}}", "driver", "qcow2", "file", "driver", "raw",
                             "filename", STAGE_PATH);
    uint8_t data[4096] = {1};
    struct node *node;
    unsigned written = 0;

    if (node_open_tree(&context, tree, NODE_WRITABLE, &node, &error) < 0)
        test_die("%s", error.text);
    json_decref(tree);
    while (block_write(node, data, sizeof(data), written * 4096, 0) == 0)
        written++;
    assert_int_equal(written, 10);
    assert_int_equal(block_write(node, data, sizeof(data), 200 * 4096, 0), -ENOSPC);
    assert_int_equal(block_write(node, data, sizeof(data), 0, 0), 0);
    node_unref(node);
    return 0;
}

static void fills_a_fixed_file(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = MIB};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    qcow2_image_finish(&image);
    qcow2_image_add(&image, 11); /* ten for data and one for the L2 table */
    stage_store(&image);
    assert_int_equal(test_run(act_fixed, NULL), 0);
    stage_check(true);
    qcow2_image_fini(&image);
    sim_disk_remove();
}

/* More runs are given back than are kept in memory: the tables are written before there is a flush.
 */
static int act_many(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    uint64_t generation = node->file->write_generation;

    for (uint64_t i = 0; i < node->size / 512; i += 2)
        assert_int_equal(block_discard(node, i * 512, 512, 0), 0);
    assert_true(node->file->write_generation > generation);
    node_unref(node);
    return 0;
}

static void bounds_what_is_pending(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 9, .order = 4, .size = 5 * MIB};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    for (uint64_t i = 0; i < image.size / 512; i++)
        qcow2_image_data(&image, i, 1);
    qcow2_image_finish(&image);
    stage_store(&image);
    assert_int_equal(test_run(act_many, NULL), 0);
    stage_check(true);
    qcow2_image_fini(&image);
    sim_disk_remove();
}

/* A table that is not marked as its own, but is: as after a snapshot was deleted elsewhere. */
static int act_unmarked(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    uint64_t size = node->file->size;
    uint8_t data[4096] = {1};

    assert_int_equal(block_write(node, data, 4096, 5 * 4096, 0), 0);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(node->file->size, size + 4096); /* data, but no table */
    assert_int_equal(block_write(node, data, 4096, 5 * 4096, 0), 0);
    node_unref(node);
    return 0;
}

static void marks_tables_of_its_own(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = MIB};
    uint8_t *entry;
    size_t length;
    uint8_t *data;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    qcow2_image_set(&image, 0, 1);
    qcow2_image_finish(&image);
    entry = image.data + image.l1_offset;
    put_be64(entry, get_be64(entry) & ~(UINT64_C(1) << 63));
    stage_store(&image);
    assert_int_equal(test_run(act_unmarked, NULL), 0);
    stage_check(true);
    data = stage_content(&length);
    assert_true(get_be64(data + image.l1_offset) >> 63);
    free(data);
    qcow2_image_fini(&image);
    sim_disk_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(grows_the_refcount_table),
        cmocka_unit_test(fills_a_fixed_file),
        cmocka_unit_test(bounds_what_is_pending),
        cmocka_unit_test(marks_tables_of_its_own),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
