/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps of qcow2 and internal snapshots in one image, on the simulated disk: to apply a
 * snapshot makes the whole disk dirty, and neither loses storage of the other.
 */
#include "blockcore/bitmap.h"
#include "blockcore/snapshot.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SIZE MIB
#define GRANULE 4096

static const struct block_snapshot_choice first = {.any = (char[]){"first"}};

static void begin(void)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = SIZE};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    qcow2_image_data(&image, 0, 0x11);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

static void end(void)
{
    assert_int_equal(sim_disk_open_count(), 0);
    sim_disk_remove();
}

static void good(int err, const struct error *error)
{
    if (err < 0)
        test_die("%s", error->text);
}

static void write_granule(struct node *node, uint64_t index, uint8_t byte)
{
    uint8_t data[GRANULE];

    memset(data, byte, sizeof(data));
    assert_int_equal(block_write(node, data, sizeof(data), index * GRANULE, 0), 0);
}

static uint8_t first_byte(struct node *node, uint64_t index)
{
    uint8_t byte;

    assert_int_equal(block_read(node, &byte, 1, index * GRANULE), 0);
    return byte;
}

/* Dirty granules. */
static uint64_t dirty(struct node *node, const char *name)
{
    struct error error = {.text = ""};
    struct block_bitmap *bitmap;
    uint64_t sum = 0;

    good(block_bitmap_find(node, name, &bitmap, &error), &error);
    for (uint64_t at = 0; at < bitmap->size;) {
        struct block_bitmap_extent extent;

        assert_int_equal(block_bitmap_next(bitmap, at, bitmap->size - at, &extent), 0);
        sum += extent.dirty ? extent.length : 0;
        at += extent.length;
    }
    return sum / GRANULE;
}

/* An image with one bitmap that records and one that does not, both with bits in the file. */
static struct node *open_prepared(void)
{
    struct error error = {.text = ""};
    struct node *node = stage_open(NODE_WRITABLE);

    good(block_bitmap_add(node, "on", GRANULE, true, &error), &error);
    good(block_bitmap_add(node, "off", GRANULE, true, &error), &error);
    write_granule(node, 3, 0x33);
    good(block_bitmap_set_enabled(block_bitmap_get_named(node, "off"), false, &error), &error);
    good(block_snapshot_create(node, "first", &error), &error);
    node_unref(node);
    stage_check(true);
    return stage_open(NODE_WRITABLE);
}

static int run_apply(void *arg)
{
    struct error error = {.text = ""};
    struct node *node = open_prepared();

    write_granule(node, 3, 0x44);
    write_granule(node, 5, 0x55);
    assert_int_equal(dirty(node, "on"), 2);
    good(block_snapshot_apply(node, &first, &error), &error);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(first_byte(node, 3), 0x33);
        assert_int_equal(first_byte(node, 5), 0);
        assert_int_equal(dirty(node, "on"), SIZE / GRANULE);
        assert_int_equal(dirty(node, "off"), 1);
        node_unref(node);
        stage_check(true);
        node = stage_open(NODE_WRITABLE);
    }
    node_unref(node);
    return 0;
}

static void applying_makes_all_dirty(void **state)
{
    begin();
    assert_int_equal(test_run(run_apply, NULL), 0);
    end();
}

/* All of them are written into clusters that the bitmaps have, or given back as theirs. */
static int run_storage(void *arg)
{
    struct error error = {.text = ""};
    struct node *node = open_prepared();

    good(block_snapshot_create(node, "second", &error), &error);
    write_granule(node, 7, 0x77);
    node_unref(node);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    good(block_snapshot_apply(node, &first, &error), &error);
    good(block_bitmap_clear(block_bitmap_get_named(node, "on"), &error), &error);
    assert_int_equal(dirty(node, "on"), 0);
    write_granule(node, 9, 0x99);
    good(block_snapshot_delete(node, &first, &error), &error);
    good(block_bitmap_remove(block_bitmap_get_named(node, "off"), &error), &error);
    node_unref(node);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    assert_int_equal(dirty(node, "on"), 1);
    good(block_bitmap_remove(block_bitmap_get_named(node, "on"), &error), &error);
    node_unref(node);
    stage_check(true);
    return 0;
}

static void neither_loses_storage(void **state)
{
    begin();
    assert_int_equal(test_run(run_storage, NULL), 0);
    end();
}

static int run_load(void *arg)
{
    struct error error = {.text = ""};
    struct block_bitmap *bitmap;
    struct node *node = open_prepared();

    node_unref(node);
    node = stage_open(0);
    assert_int_equal(dirty(node, "on"), 1);
    good(block_snapshot_load(node, &first, &error), &error);
    assert_int_equal(block_bitmap_find(node, "on", &bitmap, &error), -EINVAL);
    assert_non_null(strstr(error.text, "not about its snapshots"));
    node_unref(node);
    return 0;
}

static void bitmaps_are_not_of_snapshots(void **state)
{
    begin();
    assert_int_equal(test_run(run_load, NULL), 0);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(applying_makes_all_dirty),
        cmocka_unit_test(neither_loses_storage),
        cmocka_unit_test(bitmaps_are_not_of_snapshots),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
