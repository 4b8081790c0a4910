/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 when the power fails, at any moment, with any of the unflushed writes lost or torn: the
 * image has no errors (leaks at most), everything flushed is there, snapshots are what they were,
 * and the image can be used on.
 *
 * Each 512-byte sector may hold what it held at the last flush that was answered, or anything that
 * was written to it since.
 */
#include "base/checked.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SECTOR 512
#define ACTORS 4
#define STEPS 8 /* of each actor between two flushes; ACTORS * STEPS is at most 63 */
#define EPOCHS 4
#define SEEDS 60

struct layout {
    const char *name;
    unsigned version, cluster_bits, order;
    uint64_t clusters;
    bool snapshot;
    bool compressed;               /* decoded by threads: such a run is not the same twice */
    unsigned yields, flush_yields; /* about so many turns a run takes, and its flushes */
    uint64_t incompatible;
    bool raw;  /* the data file is to be a raw image, at any moment */
    bool wide; /* requests cover whole clusters, too */
};

/* What a sector may hold besides what was flushed. */
struct since {
    uint64_t written; /* bit i: pattern i of this epoch */
    bool zero;
};

struct stage {
    const struct layout *layout;
    struct node *node;
    struct prng prng;
    uint64_t size;
    unsigned epoch, next_pattern;
    uint8_t *before;  /* what the snapshot holds */
    uint8_t *flushed; /* at the last flush that was answered */
    uint8_t *now;     /* what a reader must see */
    struct since *since;
    unsigned yields_left; /* until the power cut */
    bool in_flush;        /* only turns during flushes count */
    bool flushing, cut, done;
};

struct actor {
    struct stage *stage;
    unsigned number;
    struct prng prng;
};

/* Sectors of different writes differ, and so do those of one write. */
static void fill_pattern(uint8_t *out, unsigned epoch, unsigned pattern, uint64_t sector)
{
    for (unsigned i = 0; i < SECTOR; i += 8)
        put_be64(out + i, (uint64_t)(epoch + 1) << 56 | (uint64_t)(pattern + 1) << 40 | sector);
}

/* Of each kind something: 32nds with data, of zeroes, of nothing. */
static void plant_mixed(struct stage *stage, struct qcow2_image *image, uint64_t i)
{
    uint64_t cluster = UINT64_C(1) << image->cluster_bits, part = cluster / 32;
    uint64_t host = qcow2_image_add(image, 1);

    memset(image->data + host, (uint8_t)i, cluster);
    qcow2_image_set_extended(image, i, host, 0x0000ff06, 0xf0000000);
    memset(stage->now + i * cluster + part, (uint8_t)i, 2 * part);
    memset(stage->now + i * cluster + 8 * part, (uint8_t)i, 8 * part);
}

/* Where tables call it zero or nothing, a data file that is not raw may hold anything. */
static void plant_external(struct stage *stage, struct qcow2_image *image)
{
    uint64_t cluster = UINT64_C(1) << image->cluster_bits;

    for (uint64_t i = 0; i < stage->layout->clusters; i++) {
        bool half = i < stage->layout->clusters / 2;

        if (half && i % 3 == 0)
            memset(stage->now + i * cluster, (uint8_t)(i + 1), cluster);
        if (half && i % 3 < 2)
            qcow2_image_set(image, i, STAGE_COPIED | i * cluster | i % 3);
    }
}

static void store_data_file(const struct stage *stage)
{
    uint8_t *data = malloc(stage->size);

    memcpy(data, stage->now, stage->size);
    for (uint64_t i = 0; i < stage->size && !stage->layout->raw; i++) {
        if (data[i] == 0)
            data[i] = 0xdd;
    }
    sim_disk_create(STAGE_DATA_PATH, data, stage->size);
    free(data);
}

static void plant(struct stage *stage, struct qcow2_image *image)
{
    uint64_t cluster = UINT64_C(1) << image->cluster_bits;

    /* The second half is empty, so that it needs new tables. */
    for (uint64_t i = 0; i < stage->layout->clusters / 2; i++) {
        if (i % 4 == 0)
            qcow2_image_data(image, i, (uint8_t)i);
        else if (i % 4 == 1 && stage->layout->compressed)
            qcow2_image_compressed(image, i, (uint8_t)i, true);
        else if (i % 4 == 3 && image->incompatible & STAGE_EXTENDED)
            plant_mixed(stage, image, i);
        else if (i % 4 == 2 && image->version >= 3)
            qcow2_image_set(image, i, qcow2_image_add(image, 1) | 1);
        if (i % 4 == 0 || (i % 4 == 1 && stage->layout->compressed))
            memset(stage->now + i * cluster, (uint8_t)i, cluster);
    }
}

static void stage_init(struct stage *stage, const struct layout *layout, uint64_t seed)
{
    struct qcow2_image image = {
        .version = layout->version,
        .cluster_bits = layout->cluster_bits,
        .order = layout->order,
        .size = layout->clusters << layout->cluster_bits,
        .incompatible = layout->incompatible,
        .autoclear = layout->raw ? 2 : 0,
    };
    bool external = layout->incompatible & STAGE_DATA_FILE;

    *stage = (struct stage){.layout = layout, .size = image.size, .prng = prng_of(seed)};
    stage->in_flush = prng_percent(&stage->prng, 60);
    stage->yields_left =
        (unsigned)prng_below(&stage->prng, stage->in_flush ? layout->flush_yields : layout->yields);
    stage->before = malloc(image.size);
    stage->flushed = malloc(image.size);
    stage->now = calloc(1, image.size);
    stage->since = calloc(image.size / SECTOR, sizeof(*stage->since));
    assert_true(stage->before && stage->flushed && stage->now && stage->since);
    if (external) {
        image.extensions = STAGE_DATA_EXTENSION;
        image.extensions_length = STAGE_DATA_EXTENSION_LENGTH;
    }
    qcow2_image_start(&image);
    if (external)
        plant_external(stage, &image);
    else
        plant(stage, &image);
    memcpy(stage->before, stage->now, image.size);
    memcpy(stage->flushed, stage->now, image.size);
    if (layout->snapshot)
        qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    if (external)
        store_data_file(stage);
    qcow2_image_fini(&image);
}

static void stage_fini(struct stage *stage)
{
    free(stage->before);
    free(stage->flushed);
    free(stage->now);
    free(stage->since);
}

/* The actor's own sectors: a short run of every ACTORS runs. */
static uint64_t own_sectors(struct actor *actor, uint64_t *ret_count)
{
    const struct layout *layout = actor->stage->layout;
    uint64_t run = 1 + (UINT64_C(1) << layout->cluster_bits) / SECTOR * (layout->wide ? 9 : 3) / 4;
    uint64_t runs = actor->stage->size / SECTOR / run / ACTORS;
    uint64_t from = prng_below(&actor->prng, run);

    *ret_count = 1 + prng_below(&actor->prng, run - from);
    return (prng_below(&actor->prng, runs) * ACTORS + actor->number) * run + from;
}

static int write_pattern(struct actor *actor, uint64_t sector, uint64_t count)
{
    struct stage *stage = actor->stage;
    unsigned pattern = stage->next_pattern++;
    uint8_t *data = malloc(count * SECTOR);
    int err;

    for (uint64_t i = 0; i < count; i++) {
        fill_pattern(data + i * SECTOR, stage->epoch, pattern, sector + i);
        stage->since[sector + i].written |= UINT64_C(1) << pattern;
    }
    err = block_write(stage->node, data, count * SECTOR, sector * SECTOR, 0);
    if (err == 0)
        memcpy(stage->now + sector * SECTOR, data, count * SECTOR);
    free(data);
    return err;
}

static int make_zero(struct actor *actor, uint64_t sector, uint64_t count, bool discard)
{
    struct stage *stage = actor->stage;
    uint8_t *at = stage->now + sector * SECTOR;
    int err;

    for (uint64_t i = 0; i < count; i++)
        stage->since[sector + i].zero = true;
    if (discard) {
        err = block_discard(stage->node, sector * SECTOR, count * SECTOR, 0);
        return err < 0 ? err : block_read(stage->node, at, count * SECTOR, sector * SECTOR);
    }
    err = block_zero(stage->node, sector * SECTOR, count * SECTOR,
                     prng_percent(&actor->prng, 50) ? ZERO_MAY_UNMAP : 0);
    if (err == 0)
        memset(at, 0, count * SECTOR);
    return err;
}

static int act(struct actor *actor)
{
    struct stage *stage = actor->stage;
    uint64_t count, sector = own_sectors(actor, &count);
    unsigned chance = (unsigned)prng_below(&actor->prng, 10);

    if (chance < 6)
        return write_pattern(actor, sector, count);
    if (chance < 8)
        return make_zero(actor, sector, count, false);
    if (chance == 8)
        return make_zero(actor, sector, count, true);
    return block_flush(stage->node); /* among the others; it covers some of them */
}

static int run_actor(void *arg)
{
    struct actor *actor = arg;
    int err = 0;

    for (unsigned i = 0; i < STEPS && err == 0; i++)
        err = act(actor);
    return err;
}

static int cut_power(void *arg)
{
    struct stage *stage = arg;

    while (stage->yields_left > 0 && !stage->done) {
        if (stage->flushing || !stage->in_flush)
            stage->yields_left--;
        coroutine_yield();
    }
    stage->cut = true;
    sim_disk_power_cut(prng_next(&stage->prng));
    return 0;
}

/* Everything since the last flush, and then a flush. */
static int run_epoch(struct stage *stage, struct actor *actors)
{
    struct co_group group;
    int err;

    co_group_init(&group);
    stage->next_pattern = 0;
    for (unsigned i = 0; i < ACTORS; i++)
        co_group_start(&group, run_actor, &actors[i]);
    err = co_group_wait(&group);
    stage->flushing = true;
    if (err == 0)
        err = block_flush(stage->node);
    stage->flushing = false;
    if (err < 0)
        return err;
    memcpy(stage->flushed, stage->now, stage->size);
    memset(stage->since, 0, stage->size / SECTOR * sizeof(*stage->since));
    stage->epoch++;
    return 0;
}

static int run_until_cut(void *arg)
{
    struct stage *stage = arg;
    struct actor actors[ACTORS];
    struct co_group killer;
    int err = 0;

    stage->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    for (unsigned i = 0; i < ACTORS; i++)
        actors[i] = (struct actor){stage, i, prng_of(prng_next(&stage->prng))};
    co_group_init(&killer);
    co_group_start(&killer, cut_power, stage);
    while (err == 0 && stage->epoch < EPOCHS)
        err = run_epoch(stage, actors);
    assert_true(err == 0 || stage->cut);
    stage->done = true;
    assert_int_equal(co_group_wait(&killer), 0);
    node_unref(stage->node);
    return 0;
}

static bool sector_may_be(const struct stage *stage, uint64_t sector, const uint8_t *seen)
{
    const struct since *since = &stage->since[sector];
    uint8_t pattern[SECTOR];

    if (memcmp(seen, stage->flushed + sector * SECTOR, SECTOR) == 0)
        return true;
    if (since->zero && bytes_are_zero(seen, SECTOR))
        return true;
    for (unsigned i = 0; i < 64; i++) {
        if (!(since->written >> i & 1))
            continue;
        fill_pattern(pattern, stage->epoch, i, sector);
        if (memcmp(seen, pattern, SECTOR) == 0)
            return true;
    }
    return false;
}

static void check_content(const struct stage *stage, const uint8_t *seen)
{
    for (uint64_t i = 0; i < stage->size / SECTOR; i++) {
        if (!sector_may_be(stage, i, seen + i * SECTOR))
            test_die(
                "%s: sector %lu holds 0x%016lx..., which is neither what was flushed (0x%016lx) "
                "nor what was written since",
                stage->layout->name, i, get_be64(seen + i * SECTOR),
                get_be64(stage->flushed + i * SECTOR));
    }
}

static void check_sectors(struct stage *stage)
{
    uint8_t *seen = malloc(stage->size), *raw;
    struct node *node = stage_open(0);
    size_t length;

    assert_int_equal(block_read(node, seen, stage->size, 0), 0);
    check_content(stage, seen);
    node_unref(node);
    free(seen);
    if (!stage->layout->raw)
        return;
    raw = sim_disk_content(STAGE_DATA_PATH, &length);
    assert_int_equal(length, stage->size);
    check_content(stage, raw);
    free(raw);
}

/* Everything is written once more. */
static void use_on(struct stage *stage)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    uint8_t *seen = malloc(stage->size);

    prng_fill(&stage->prng, stage->now, stage->size);
    assert_int_equal(block_write(node, stage->now, stage->size, 0, 0), 0);
    node_unref(node);
    stage_check(false);
    node = stage_open(0);
    assert_int_equal(block_read(node, seen, stage->size, 0), 0);
    assert_memory_equal(seen, stage->now, stage->size);
    node_unref(node);
    free(seen);
}

static void check_snapshot(struct stage *stage)
{
    size_t length;
    uint8_t *data = stage_content(&length), *seen = malloc(stage->size);
    struct node *node;

    put_be64(data + 40, get_be64(data + get_be64(data + 64)));
    sim_disk_create(STAGE_PATH, data, length);
    node = stage_open(0);
    assert_int_equal(block_read(node, seen, stage->size, 0), 0);
    assert_memory_equal(seen, stage->before, stage->size);
    node_unref(node);
    free(data);
    free(seen);
}

static int run_afterwards(void *arg)
{
    struct stage *stage = arg;

    stage_check(false);
    check_sectors(stage);
    use_on(stage);
    if (stage->layout->snapshot)
        check_snapshot(stage);
    return 0;
}

static const struct layout layouts[] = {
    {"v3, 4 KiB", 3, 12, 4, 60, false, false, 110, 20},
    {"v3, 4 KiB, snapshot", 3, 12, 4, 60, true, false, 150, 30},
    {"v3, 4 KiB, compressed, snapshot", 3, 12, 4, 60, true, true, 20000, 30},
    {"v3, 512 bytes, 64-bit refcounts, snapshot", 3, 9, 6, 400, true, false, 240, 40},
    {"v3, 512 bytes", 3, 9, 4, 1000, false, false, 280, 33},
    {"v3, 1-bit refcounts", 3, 12, 0, 60, false, false, 105, 20},
    {"v2, 4 KiB, snapshot", 2, 12, 4, 60, true, false, 130, 27},
    {"v2, 64 KiB", 2, 16, 4, 12, false, false, 65, 12},
    {"v3, 4 KiB, whole clusters, snapshot", 3, 12, 4, 60, true, false, 130, 25, .wide = true},
    {"v2, 4 KiB, whole clusters", 2, 12, 4, 60, false, false, 100, 20, .wide = true},
    {"subclusters", 3, 14, 4, 60, false, false, 110, 20, STAGE_EXTENDED},
    {"subclusters, snapshot", 3, 14, 4, 60, true, false, 130, 25, STAGE_EXTENDED},
    {"subclusters, compressed, snapshot", 3, 14, 4, 60, true, true, 20000, 30, STAGE_EXTENDED,
     .wide = true},
    {"data file", 3, 12, 4, 60, false, false, 100, 20, STAGE_DATA_FILE, .wide = true},
    {"raw data file", 3, 12, 4, 60, false, false, 100, 20, STAGE_DATA_FILE, .raw = true,
     .wide = true},
    {"data file, subclusters", 3, 14, 4, 60, false, false, 100, 20,
     STAGE_DATA_FILE | STAGE_EXTENDED, .wide = true},
};

static void survives_power_cuts(void **state)
{
    unsigned midway = 0;

    for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
        for (unsigned seed = 0; seed < SEEDS; seed++) {
            uint64_t mixed = test_seed() + i * 1000 + seed;
            struct stage stage;

            /* Without short transfers: what a sector holds must not be split between two. */
            sim_disk_install(&(struct sim_disk_config){.seed = mixed});
            stage_init(&stage, &layouts[i], mixed);
            assert_int_equal(test_run(run_until_cut, &stage), 0);
            midway += stage.epoch < EPOCHS;
            sim_disk_power_on();
            assert_int_equal(test_run(run_afterwards, &stage), 0);
            stage_fini(&stage);
            sim_disk_remove();
        }
    }
    /* Most cuts are to come while there is work. */
    assert_true(midway > ARRAY_SIZE(layouts) * SEEDS / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(survives_power_cuts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
