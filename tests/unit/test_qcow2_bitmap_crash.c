/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bitmaps of qcow2 when the power fails at any moment, or a call on the file does: the image
 * has no errors (leaks at most), and a bitmap that can be used afterwards calls dirty whatever was
 * written while it was enabled, or changed by applying a snapshot.  The disk gets other sizes, too.
 */
#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "blockcore/resize.h"
#include "blockcore/snapshot.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SECTOR 512
#define SECTORS 4000
#define NAMES 4
#define STEPS 14
#define SEEDS 250

static const char *const names[NAMES] = {"a", "b", "c", "d"};

/* What is known of each bitmap. */
struct wanted {
    bool exists, enabled;
    uint8_t dirty[SECTORS]; /* at least these */
};

struct scene {
    unsigned cluster_bits;
    struct prng prng;
    struct node *node;
    struct wanted bitmaps[NAMES];
    bool has_data[SECTORS]; /* of what was written here */
    unsigned yields_left;
    bool cut, cut_midway, done;
    unsigned changed; /* changes of bitmaps that succeeded */
    unsigned applied; /* snapshots */
    unsigned resized;
};

static struct scene scene;
static unsigned usable_after, unusable_after;

static void scene_init(unsigned cluster_bits, uint64_t seed)
{
    struct qcow2_image image = {
        .version = 3, .cluster_bits = cluster_bits, .order = 4, .size = SECTORS * SECTOR};

    memset(&scene, 0, sizeof(scene));
    scene.cluster_bits = cluster_bits;
    scene.prng = prng_of(seed);
    qcow2_image_start(&image);
    for (unsigned i = 0; i < 20; i++)
        qcow2_image_data(&image, i * 3 % (SECTORS * SECTOR >> cluster_bits), (uint8_t)i);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

/* The sectors hold data now, or zeroes: whether each of them has changed, by all that is known. */
static void note_change(uint64_t sector, uint64_t count, bool data)
{
    for (uint64_t s = sector; s < sector + count; s++) {
        bool changed = data || scene.has_data[s];

        scene.has_data[s] = data;
        for (unsigned i = 0; i < NAMES && changed; i++) {
            if (scene.bitmaps[i].exists && scene.bitmaps[i].enabled)
                scene.bitmaps[i].dirty[s] = 1;
        }
    }
}

static void write_some(void)
{
    uint64_t sectors = scene.node->size / SECTOR, sector = prng_below(&scene.prng, sectors);
    uint64_t count = 1 + prng_below(&scene.prng, min_u64(30, sectors - sector));
    bool data = prng_percent(&scene.prng, 70);
    uint8_t *bytes = malloc(count * SECTOR);
    int err;

    memset(bytes, 0x5a, count * SECTOR);
    if (data)
        err = block_write(scene.node, bytes, count * SECTOR, sector * SECTOR, 0);
    else
        err = block_zero(scene.node, sector * SECTOR, count * SECTOR, ZERO_MAY_UNMAP);
    free(bytes);
    if (err == 0)
        note_change(sector, count, data);
}

static int add_one(unsigned i)
{
    bool enabled = prng_percent(&scene.prng, 70);
    int err = block_bitmap_add(scene.node, names[i], UINT64_C(512) << prng_below(&scene.prng, 8),
                               enabled, NULL);

    /* When it failed the bitmap may be there or not; if it is, nobody has counted on it. */
    scene.bitmaps[i] = (struct wanted){.exists = err == 0, .enabled = enabled};
    return err;
}

static int merge_one(struct block_bitmap *bitmap, unsigned i)
{
    unsigned from = (unsigned)prng_below(&scene.prng, NAMES);
    struct block_bitmap *source = block_bitmap_get_named(scene.node, names[from]);
    int err;

    if (!source || source->unusable || from == i)
        return 0;
    err = block_bitmap_merge(source, bitmap, NULL);
    for (unsigned s = 0; s < SECTORS && err == 0; s++)
        scene.bitmaps[i].dirty[s] |= scene.bitmaps[from].dirty[s];
    return err;
}

static int enable_one(struct block_bitmap *bitmap, unsigned i)
{
    bool enabled = !bitmap->enabled;
    int err;

    /* On the way it may be either. */
    scene.bitmaps[i].enabled = false;
    err = block_bitmap_set_enabled(bitmap, enabled, NULL);
    scene.bitmaps[i].enabled = err == 0 && enabled;
    return err;
}

static int change_one(struct block_bitmap *bitmap, unsigned i)
{
    switch (prng_below(&scene.prng, 5)) {
    case 0:
        scene.bitmaps[i].exists = false;
        return block_bitmap_remove(bitmap, NULL);
    case 1:
        memset(scene.bitmaps[i].dirty, 0, SECTORS);
        return block_bitmap_clear(bitmap, NULL);
    case 2:
        return enable_one(bitmap, i);
    default:
        return merge_one(bitmap, i);
    }
}

static void change_some(void)
{
    unsigned i = (unsigned)prng_below(&scene.prng, NAMES);
    struct block_bitmap *bitmap = block_bitmap_get_named(scene.node, names[i]);
    int err = 0;

    if (!bitmap)
        err = add_one(i);
    else if (!bitmap->unusable && scene.bitmaps[i].exists)
        err = change_one(bitmap, i);
    scene.changed += err == 0;
}

/* What lies behind the end is not on the disk any more. */
static void note_end(uint64_t sectors)
{
    memset(scene.has_data + sectors, 0, sizeof(scene.has_data) - sectors);
    for (unsigned i = 0; i < NAMES; i++)
        memset(scene.bitmaps[i].dirty + sectors, 0, SECTORS - sectors);
}

/* Any sector may be another now. */
static void note_apply(void)
{
    scene.applied++;
    memset(scene.has_data, 0, sizeof(scene.has_data));
    for (unsigned i = 0; i < NAMES; i++) {
        if (scene.bitmaps[i].exists && scene.bitmaps[i].enabled)
            memset(scene.bitmaps[i].dirty, 1, SECTORS);
    }
}

static void change_snapshots(void)
{
    static char name[] = "s";
    const struct block_snapshot_choice choice = {.name = name};

    switch (prng_below(&scene.prng, 4)) {
    case 0:
        if (block_snapshot_apply(scene.node, &choice, NULL) == 0)
            note_apply();
        note_end(scene.node->size / SECTOR);
        break;
    case 1:
        block_snapshot_delete(scene.node, &choice, NULL);
        break;
    default:
        block_snapshot_create(scene.node, name, NULL);
        break;
    }
}

static void change_size(void)
{
    uint64_t sectors = SECTORS / 4 + prng_below(&scene.prng, SECTORS * 3 / 4 + 1);
    const struct block_resize resize = {.size = sectors * SECTOR, .shrink = true};

    note_end(min_u64(sectors, scene.node->size / SECTOR));
    scene.resized += block_resize(scene.node, &resize, NULL) == 0;
}

static void step(void)
{
    if (prng_percent(&scene.prng, 8))
        change_size();
    else if (prng_percent(&scene.prng, 20))
        change_snapshots();
    else if (prng_percent(&scene.prng, 45))
        write_some();
    else if (prng_percent(&scene.prng, 75))
        change_some();
    else
        block_flush(scene.node);
}

/* A few lives of the node; closing is one of the things that can be cut off. */
static void live(void)
{
    for (unsigned life = 0; life < 3 && !scene.cut; life++) {
        struct error error;

        if (stage_try_open(NODE_WRITABLE | NODE_UNMAP, &scene.node, &error) < 0)
            continue;
        for (unsigned i = 0; i < STEPS; i++)
            step();
        /* What could not be flushed may be gone: then to zero it changes nothing. */
        if (block_flush(scene.node) < 0)
            memset(scene.has_data, 0, sizeof(scene.has_data));
        node_unref(scene.node);
    }
}

/* Never clean where it was written. */
static void check_bitmap(struct block_bitmap *bitmap, const struct wanted *wanted)
{
    struct block_bitmap_extent extent;

    for (uint64_t at = 0; at < bitmap->size; at += extent.length) {
        assert_int_equal(block_bitmap_next(bitmap, at, bitmap->size - at, &extent), 0);
        for (uint64_t s = at / SECTOR; !extent.dirty && s < (at + extent.length) / SECTOR; s++) {
            if (wanted->dirty[s])
                test_die("bitmap %s calls sector %lu clean, which was written", bitmap->name, s);
        }
    }
}

static int look(void *arg)
{
    struct node *node = stage_open(0);

    for (unsigned i = 0; i < NAMES; i++) {
        struct block_bitmap *bitmap = block_bitmap_get_named(node, names[i]);

        if (!scene.bitmaps[i].exists)
            continue;
        if (!bitmap)
            test_die("bitmap %s is gone", names[i]);
        if (bitmap->unusable) {
            unusable_after++;
            assert_non_null(strstr(bitmap->unusable, "inconsistent"));
        } else {
            usable_after++;
            check_bitmap(bitmap, &scene.bitmaps[i]);
        }
    }
    node_unref(node);
    return 0;
}

/* What is left can be removed, and then nothing of it is left but leaks. */
static int clean_up(void *arg)
{
    struct error error = {.text = ""};
    struct node *node = stage_open(NODE_WRITABLE);
    struct block_bitmap *bitmap;

    while ((bitmap = block_bitmap_get(node, 0))) {
        if (block_bitmap_remove(bitmap, &error) < 0)
            test_die("%s", error.text);
    }
    node_unref(node);
    stage_check(false);
    return 0;
}

static int cut_power(void *arg)
{
    while (scene.yields_left > 0 && !scene.done) {
        scene.yields_left--;
        coroutine_yield();
    }
    scene.cut = true;
    scene.cut_midway = !scene.done;
    sim_disk_power_cut(prng_next(&scene.prng));
    return 0;
}

static int live_until_cut(void *arg)
{
    struct co_group killer;

    co_group_init(&killer);
    co_group_start(&killer, cut_power, NULL);
    live();
    scene.done = true;
    return co_group_wait(&killer);
}

static const unsigned geometries[] = {9, 12, 16};

static void survive_power_cuts(void **state)
{
    unsigned midway = 0, applied = 0;

    usable_after = unusable_after = 0;
    for (unsigned seed = 0; seed < SEEDS; seed++) {
        uint64_t mixed = test_seed() + seed;

        sim_disk_install(&(struct sim_disk_config){.seed = mixed});
        scene_init(geometries[seed % ARRAY_SIZE(geometries)], mixed);
        scene.yields_left = (unsigned)prng_below(&scene.prng, 600);
        assert_int_equal(test_run(live_until_cut, NULL), 0);
        midway += scene.cut_midway;
        applied += scene.applied;
        sim_disk_power_on();
        stage_check(false);
        assert_int_equal(test_run(look, NULL), 0);
        assert_int_equal(test_run(clean_up, NULL), 0);
        sim_disk_remove();
    }
    /* Most cuts come while there is work; bitmaps survive some of them. */
    assert_true(midway > SEEDS / 2);
    assert_true(usable_after > SEEDS / 4);
    assert_true(unusable_after > SEEDS / 4);
    assert_true(applied > SEEDS / 10);
}

static int prepare(void *arg)
{
    scene.node = stage_open(NODE_WRITABLE);
    for (unsigned i = 0; i < NAMES; i++) {
        assert_int_equal(block_bitmap_add(scene.node, names[i], 0, i > 0, NULL), 0);
        scene.bitmaps[i] = (struct wanted){.exists = true, .enabled = i > 0};
    }
    node_unref(scene.node);
    return 0;
}

static int write_until_cut(void *arg)
{
    scene.node = stage_open(NODE_WRITABLE);
    for (unsigned i = 0; i < 1 + prng_below(&scene.prng, 3); i++)
        write_some();
    sim_disk_power_cut(prng_next(&scene.prng));
    node_unref(scene.node);
    return 0;
}

/* Nothing else is ever flushed here. */
static void are_in_use_before_the_first_write(void **state)
{
    for (unsigned seed = 0; seed < 60; seed++) {
        sim_disk_install(&(struct sim_disk_config){.seed = test_seed() + seed});
        scene_init(12, test_seed() + seed);
        assert_int_equal(test_run(prepare, NULL), 0);
        assert_int_equal(test_run(write_until_cut, NULL), 0);
        sim_disk_power_on();
        stage_check(false);
        assert_int_equal(test_run(look, NULL), 0);
        sim_disk_remove();
    }
}

static int live_through(void *arg)
{
    fault_arm(arg);
    live();
    return 0;
}

/* One run of a fixed series; whether the fault came. */
static bool try_fault(unsigned cluster_bits, struct fault_plan plan)
{
    bool fired;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    fault_install();
    scene_init(cluster_bits, test_seed() + 1);
    assert_int_equal(test_run(live_through, &plan), 0);
    fired = fault_fired();
    fault_arm(&(struct fault_plan){0});
    stage_check(!fired);
    assert_int_equal(test_run(look, NULL), 0);
    assert_int_equal(test_run(clean_up, NULL), 0);
    assert_int_equal(sim_disk_open_count(), 0);
    fault_remove();
    sim_disk_remove();
    return fired;
}

static void try_all(unsigned calls, int error, bool sticky)
{
    for (size_t i = 0; i < ARRAY_SIZE(geometries); i++) {
        struct fault_plan plan = {.calls = calls, .error = error, .sticky = sticky};

        do {
            plan.nth++;
        } while (try_fault(geometries[i], plan));
        assert_true(plan.nth > 20);
    }
}

static void one_write_fails(void **state)
{
    try_all(FAULT_PWRITEV, EIO, false);
}

static void the_disk_is_full_from_then_on(void **state)
{
    try_all(FAULT_PWRITEV, ENOSPC, true);
}

static void one_read_fails(void **state)
{
    try_all(FAULT_PREADV, EIO, false);
}

static void one_sync_fails(void **state)
{
    try_all(FAULT_FDATASYNC, EIO, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(are_in_use_before_the_first_write),
        cmocka_unit_test(survive_power_cuts),
        cmocka_unit_test(one_write_fails),
        cmocka_unit_test(the_disk_is_full_from_then_on),
        cmocka_unit_test(one_read_fails),
        cmocka_unit_test(one_sync_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
