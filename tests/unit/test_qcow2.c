/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The qcow2 driver under the data engine, on the simulated disk, against a model in memory: every
 * kind of cluster, every refcount width, snapshots that must not change, many requests at once.
 * After each run an independent checker finds refcounts equal to references.
 */
#include "base/checked.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define ACTORS 6
#define SECTOR 512

struct layout {
    const char *name;
    unsigned version, cluster_bits, order;
    uint64_t clusters; /* of the disk; the last one is cut */
    bool snapshot;
    unsigned steps; /* of each actor */
    unsigned flags;
};

struct stage {
    const struct layout *layout;
    struct node *node;
    uint64_t size;
    uint8_t *model;
    uint8_t *before; /* what the snapshot holds */
    struct co_group group;
};

struct actor {
    struct stage *stage;
    unsigned number;
    struct prng prng;
};

static uint64_t cluster_size(const struct stage *stage)
{
    return UINT64_C(1) << stage->layout->cluster_bits;
}

static void fill_model(struct stage *stage, uint64_t cluster, uint8_t fill)
{
    uint64_t offset = cluster << stage->layout->cluster_bits;

    if (offset < stage->size)
        memset(stage->model + offset, fill, min_u64(cluster_size(stage), stage->size - offset));
}

/* One of each kind of cluster in turn; every fifth stays absent. */
static void plant(struct stage *stage, struct qcow2_image *image)
{
    for (uint64_t i = 0; i < stage->layout->clusters; i++) {
        uint8_t fill = (uint8_t)(1 + i * 7);

        switch (i % 5) {
        case 0:
            qcow2_image_data(image, i, fill);
            break;
        case 1:
            if (stage->layout->order == 0)
                continue; /* clusters cannot be shared with refcounts of one bit */
            qcow2_image_compressed(image, i, fill, i % 2);
            break;
        case 2:
            if (stage->layout->version >= 3)
                qcow2_image_set(image, i, 1);
            continue;
        case 3:
            if (stage->layout->version >= 3)
                qcow2_image_set(image, i, qcow2_image_add(image, 1) | 1);
            continue;
        default:
            continue;
        }
        fill_model(stage, i, fill);
    }
}

static void stage_init(struct stage *stage, const struct layout *layout)
{
    struct qcow2_image image = {
        .version = layout->version,
        .cluster_bits = layout->cluster_bits,
        .order = layout->order,
    };

    *stage = (struct stage){.layout = layout};
    stage->size = (layout->clusters << layout->cluster_bits) - 3 * SECTOR;
    if (layout->cluster_bits == 9)
        stage->size = layout->clusters * SECTOR;
    stage->model = calloc(1, stage->size);
    stage->before = calloc(1, stage->size);
    assert_non_null(stage->model);
    assert_non_null(stage->before);
    image.size = stage->size;
    qcow2_image_start(&image);
    plant(stage, &image);
    memcpy(stage->before, stage->model, stage->size);
    if (layout->snapshot)
        qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

static void stage_fini(struct stage *stage)
{
    free(stage->model);
    free(stage->before);
}

static void compare_all(struct stage *stage, const uint8_t *wanted)
{
    uint8_t *all = malloc(stage->size);

    assert_int_equal(block_read(stage->node, all, stage->size, 0), 0);
    for (uint64_t i = 0; i < stage->size; i++) {
        if (all[i] != wanted[i])
            test_die("%s: byte %lu is %#x, not %#x", stage->layout->name, i, all[i], wanted[i]);
    }
    free(all);
}

/* A range of the actor's own sectors: a few in a row, of which it has one in ACTORS. */
static uint64_t own_range(struct actor *actor, uint64_t *ret_offset)
{
    uint64_t slice = 1 + 2 * cluster_size(actor->stage) / SECTOR / 3;
    uint64_t slices = actor->stage->size / SECTOR / slice / ACTORS;
    uint64_t start = (prng_below(&actor->prng, slices) * ACTORS + actor->number) * slice * SECTOR;
    uint64_t end = start + slice * SECTOR;

    if (prng_percent(&actor->prng, 50)) {
        start += prng_below(&actor->prng, slice * SECTOR / 2);
        end -= prng_below(&actor->prng, slice * SECTOR / 2);
    }
    *ret_offset = start;
    return end - start;
}

static int read_back(struct actor *actor, uint64_t offset, uint64_t length)
{
    struct stage *stage = actor->stage;
    uint8_t *buffer = malloc(length);
    int err = -EAGAIN;

    if (prng_percent(&actor->prng, 50))
        err = block_read_nowait(stage->node, buffer, length, offset);
    if (err == -EAGAIN)
        err = block_read(stage->node, buffer, length, offset);
    if (err == 0 && memcmp(buffer, stage->model + offset, length) != 0)
        test_die("%s: actor %u: %lu bytes at %lu are not what was written last",
                 stage->layout->name, actor->number, length, offset);
    free(buffer);
    return err;
}

static int act(struct actor *actor)
{
    struct stage *stage = actor->stage;
    uint64_t offset, length = own_range(actor, &offset);
    unsigned chance = (unsigned)prng_below(&actor->prng, 20);

    if (chance < 9) {
        prng_fill(&actor->prng, stage->model + offset, length);
        return block_write(stage->node, stage->model + offset, length, offset,
                           chance == 0 ? BLOCK_FUA : 0);
    }
    if (chance < 12) {
        memset(stage->model + offset, 0, length);
        return block_zero(stage->node, offset, length, chance == 9 ? 0 : ZERO_MAY_UNMAP);
    }
    if (chance == 12) {
        int err = block_discard(stage->node, offset, length, 0);

        memset(stage->model + offset, 0, length);
        return err < 0 ? err : block_zero(stage->node, offset, length, ZERO_MAY_UNMAP);
    }
    if (chance == 13)
        return block_flush(stage->node);
    return read_back(actor, offset, length);
}

static int run_actor(void *arg)
{
    struct actor *actor = arg;
    int err = 0;

    for (unsigned i = 0; i < actor->stage->layout->steps && err == 0; i++)
        err = act(actor);
    return err;
}

/* What one cannot do among the others: whole clusters in long ranges. */
static void sweep(struct stage *stage, struct prng *prng)
{
    uint64_t offset = prng_below(prng, stage->size);
    uint64_t length = prng_below(prng, min_u64(stage->size - offset, 20 * cluster_size(stage)));
    unsigned flags = prng_percent(prng, 50) ? ZERO_MAY_UNMAP : 0;

    memset(stage->model + offset, 0, length);
    assert_int_equal(block_zero(stage->node, offset, length, flags), 0);
    compare_all(stage, stage->model);
}

static int run_stage(void *arg)
{
    struct stage *stage = arg;
    struct actor actors[ACTORS];
    struct prng prng = prng_of(test_seed());

    stage->node = stage_open(NODE_WRITABLE | stage->layout->flags);
    assert_int_equal(stage->node->size, stage->size);
    compare_all(stage, stage->model);
    for (unsigned i = 0; i < ACTORS; i++)
        actors[i] = (struct actor){stage, i, prng_of(test_seed() + i)};
    for (unsigned round = 0; round < 3; round++) {
        co_group_init(&stage->group);
        for (unsigned i = 0; i < ACTORS; i++)
            co_group_start(&stage->group, run_actor, &actors[i]);
        assert_int_equal(co_group_wait(&stage->group), 0);
        compare_all(stage, stage->model);
        sweep(stage, &prng);
    }
    node_unref(stage->node);
    stage_check(true);
    stage->node = stage_open(0);
    compare_all(stage, stage->model);
    node_unref(stage->node);
    return 0;
}

/* Puts the snapshot's L1 table in the place of the active one, and reads the disk. */
static int read_snapshot(void *arg)
{
    struct stage *stage = arg;
    size_t length;
    uint8_t *data = stage_content(&length);

    put_be64(data + 40, get_be64(data + get_be64(data + 64)));
    sim_disk_create(STAGE_PATH, data, length);
    free(data);
    stage->node = stage_open(0);
    compare_all(stage, stage->before);
    node_unref(stage->node);
    return 0;
}

static const struct layout layouts[] = {
    {"v3, 64 KiB", 3, 16, 4, 40, false, 40, NODE_UNMAP},
    {"v3, 4 KiB", 3, 12, 4, 200, false, 60, NODE_UNMAP},
    {"v3, 512 bytes", 3, 9, 4, 700, false, 60, NODE_UNMAP},
    {"v3, 512 bytes, 64-bit refcounts", 3, 9, 6, 5000, false, 200, NODE_UNMAP},
    {"v3, 2 MiB", 3, 21, 4, 6, false, 6, 0},
    {"v3, 1-bit refcounts", 3, 12, 0, 100, false, 60, NODE_UNMAP},
    {"v3, 2-bit refcounts", 3, 12, 1, 100, false, 60, NODE_UNMAP},
    {"v3, 4-bit refcounts", 3, 12, 2, 100, true, 60, NODE_UNMAP},
    {"v3, 8-bit refcounts", 3, 12, 3, 100, true, 60, NODE_UNMAP},
    {"v3, 32-bit refcounts", 3, 12, 5, 100, true, 60, NODE_UNMAP},
    {"v3, snapshot", 3, 12, 4, 200, true, 60, NODE_UNMAP},
    {"v3, snapshot, nothing is unmapped", 3, 12, 4, 200, true, 60, 0},
    {"v3, 512 bytes, snapshot", 3, 9, 4, 500, true, 60, NODE_UNMAP},
    {"v2, 64 KiB", 2, 16, 4, 40, false, 40, NODE_UNMAP},
    {"v2, 4 KiB, snapshot", 2, 12, 4, 200, true, 60, NODE_UNMAP},
    {"v2, 512 bytes, snapshot", 2, 9, 4, 500, true, 60, 0},
};

static void equals_the_model(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
        struct sim_disk_config config = {.seed = test_seed() + i,
                                         .short_percent = 5,
                                         .eintr_percent = 5,
                                         .uncached_percent = 30};
        struct stage stage;

        sim_disk_install(&config);
        stage_init(&stage, &layouts[i]);
        assert_int_equal(test_run(run_stage, &stage), 0);
        if (layouts[i].snapshot)
            assert_int_equal(test_run(read_snapshot, &stage), 0);
        assert_int_equal(sim_disk_open_count(), 0);
        stage_fini(&stage);
        sim_disk_remove();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_model),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
