/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine against a model, on the simulated disk: many requests at once that share clusters
 * but never sectors, with completions in seeded random order.  What each reads must be what it
 * wrote last, and at the end the whole disk must equal the model.
 */
#include "base/reactor.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "tests/sim/toy_format.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECTOR 512
#define DISK_SIZE (64 * 4096 + 1000) /* ends within a cluster and within a sector */
#define ACTORS 8
#define STEPS 120
#define ROUNDS 6

static const struct driver *const drivers[] = {&driver_toy, &driver_raw, &driver_file, NULL};

struct stage {
    const char *options; /* the node, as JSON */
    uint32_t alignment;  /* forced on the file at the bottom; 0: as it is */
    uint64_t seed;
    bool encode;
    struct node *node;
    uint8_t model[DISK_SIZE];
    struct co_group group;
};

struct actor {
    struct stage *stage;
    unsigned number;
    struct prng prng;
};

/* Part of the actor's own sectors: those whose number is `number` modulo ACTORS. */
static size_t own_range(struct actor *actor, uint64_t *ret_offset)
{
    uint64_t sectors = DISK_SIZE / SECTOR + 1;
    uint64_t sector = prng_below(&actor->prng, sectors / ACTORS) * ACTORS + actor->number;
    uint64_t start = sector * SECTOR, end = min_u64(start + SECTOR, DISK_SIZE);

    if (prng_percent(&actor->prng, 50)) { /* not whole sectors */
        start += prng_below(&actor->prng, (end - start) / 2);
        end -= prng_below(&actor->prng, (end - start) / 2);
    }
    *ret_offset = start;
    return end - start;
}

static int act(struct actor *actor)
{
    struct stage *stage = actor->stage;
    uint8_t buffer[SECTOR];
    uint64_t offset;
    size_t length = own_range(actor, &offset);
    int err;

    switch (prng_below(&actor->prng, 5)) {
    case 0:
        prng_fill(&actor->prng, buffer, length);
        memcpy(stage->model + offset, buffer, length);
        return block_write(stage->node, buffer, length, offset, 0);
    case 1:
        memset(stage->model + offset, 0, length);
        return block_zero(stage->node, offset, length, ZERO_MAY_UNMAP);
    case 2:
        if (stage->encode)
            return 0;
        return block_flush(stage->node);
    case 3:
        err = block_read_nowait(stage->node, buffer, length, offset);
        if (err == -EAGAIN)
            return 0;
        break;
    default:
        err = block_read(stage->node, buffer, length, offset);
        break;
    }
    if (err == 0 && memcmp(buffer, stage->model + offset, length) != 0)
        test_die("seed %#lx actor %u: %zu bytes at %lu are not what was written last", stage->seed,
                 actor->number, length, offset);
    return err;
}

static int run_actor(void *arg)
{
    struct actor *actor = arg;
    int err = 0;

    for (unsigned i = 0; i < STEPS && err == 0; i++)
        err = act(actor);
    return err;
}

/* Whole clusters are zeroed and discarded between the rounds of the actors. */
static void sweep(struct stage *stage, struct prng *prng)
{
    uint64_t offset = prng_below(prng, DISK_SIZE), length = prng_below(prng, DISK_SIZE - offset);

    memset(stage->model + offset, 0, length);
    assert_int_equal(block_zero(stage->node, offset, length, ZERO_MAY_UNMAP | BLOCK_FUA), 0);
}

static void check_all(struct stage *stage)
{
    uint8_t *all = malloc(DISK_SIZE);

    assert_int_equal(block_read(stage->node, all, DISK_SIZE, 0), 0);
    for (size_t i = 0; i < DISK_SIZE; i++) {
        if (all[i] != stage->model[i])
            test_die("seed %#lx: byte %zu is %#x, not %#x", stage->seed, i, all[i],
                     stage->model[i]);
    }
    free(all);
}

static void check_status(struct stage *stage)
{
    struct block_status status;

    for (uint64_t offset = 0; offset < DISK_SIZE; offset += status.length) {
        assert_int_equal(block_get_status(stage->node, offset, DISK_SIZE - offset, &status), 0);
        assert_in_range(status.length, 1, DISK_SIZE - offset);
        for (uint64_t i = 0; (status.flags & STATUS_ZERO) && i < status.length; i++)
            assert_int_equal(stage->model[offset + i], 0);
    }
}

static void open_stage(struct stage *stage)
{
    const struct block_context context = {.drivers = drivers, .engine = &io_engine_sim};
    json_t *tree = json_loads(stage->options, 0, NULL);
    struct error error = {.text = ""};

    assert_non_null(tree);
    if (node_open_tree(&context, tree, NODE_WRITABLE | NODE_UNMAP, &stage->node, &error) < 0)
        test_die("%s", error.text);
    json_decref(tree);
    assert_int_equal(stage->node->size, DISK_SIZE);
    for (struct node *n = stage->node; stage->alignment && n; n = n->file)
        n->request_alignment = n->file ? n->request_alignment : stage->alignment;
}

static int run_stage(void *arg)
{
    struct stage *stage = arg;
    struct prng prng = prng_of(stage->seed);
    struct actor actors[ACTORS];

    open_stage(stage);
    for (unsigned round = 0; round < ROUNDS; round++) {
        co_group_init(&stage->group);
        for (unsigned i = 0; i < ACTORS; i++) {
            actors[i] = (struct actor){stage, i, prng_of(prng_next(&prng))};
            co_group_start(&stage->group, run_actor, &actors[i]);
        }
        assert_int_equal(co_group_wait(&stage->group), 0);
        check_all(stage);
        check_status(stage);
        sweep(stage, &prng);
    }
    check_all(stage);
    assert_int_equal(stage->node->locks.exclusive, 0);
    assert_true(list_empty(&stage->node->locks.held));
    node_unref(stage->node);
    return 0;
}

static void play(const char *options, uint32_t alignment, bool bottom)
{
    struct stage *stage = calloc(1, sizeof(*stage));

    for (unsigned i = 0; i < 12; i++) {
        const struct sim_disk_config config = {
            .seed = test_seed() + i,
            .short_percent = 10,
            .eintr_percent = 5,
            .uncached_percent = 40,
        };
        struct prng prng = prng_of(config.seed);

        *stage = (struct stage){.options = options, .alignment = alignment, .seed = config.seed};
        sim_disk_install(&config);
        prng_fill(&prng, stage->model, DISK_SIZE);
        sim_disk_create("/sim/bottom", stage->model, DISK_SIZE);
        sim_disk_create("/sim/top", NULL, 0);
        if (!bottom)
            memset(stage->model, 0, DISK_SIZE);
        assert_int_equal(test_run(run_stage, stage), 0);
        assert_int_equal(sim_disk_open_count(), 0);
        sim_disk_remove();
    }
    free(stage);
}

#define FILE_NODE(path) "{\"driver\": \"file\", \"filename\": \"" path "\"}"
#define RAW_NODE(path) "{\"driver\": \"raw\", \"file\": " FILE_NODE(path) "}"
#define TOY_NODE(backing)                                                                          \
    "{\"driver\": \"toy\", \"size\": 263144, \"file\": " FILE_NODE("/sim/top") backing "}"

_Static_assert(DISK_SIZE == 263144, "the size in TOY_NODE");

static void test_raw(void **state)
{
    play(RAW_NODE("/sim/bottom"), 0, true);
}

static void test_raw_aligned(void **state)
{
    play(RAW_NODE("/sim/bottom"), 4096, true);
}

static void test_allocating(void **state)
{
    play(TOY_NODE(""), 0, false);
}

static void test_allocating_aligned(void **state)
{
    play(TOY_NODE(""), 4096, false);
}

static void test_backing(void **state)
{
    play(TOY_NODE(", \"backing\": " RAW_NODE("/sim/bottom")), 0, true);
}

static void test_window(void **state)
{
    play("{\"driver\": \"raw\", \"file\": " TOY_NODE(", \"backing\": " RAW_NODE("/sim/bottom")) "}",
         0, true);
}

/* Encoded units: read through decode, in whole and in part, then written over. */
static int run_encoded(void *arg)
{
    struct stage *stage = arg;
    uint8_t data[3 * TOY_CLUSTER], back[3 * TOY_CLUSTER];
    struct prng prng = prng_of(test_seed());

    open_stage(stage);
    prng_fill(&prng, data, sizeof(data));
    assert_int_equal(block_write(stage->node, data, sizeof(data), 0, 0), 0);
    toy_encode(stage->node, TOY_CLUSTER);
    for (int i = 0; i < TOY_CLUSTER; i++)
        data[TOY_CLUSTER + i] ^= 0xff;
    assert_int_equal(block_read(stage->node, back, sizeof(back), 0), 0);
    assert_memory_equal(back, data, sizeof(data));
    assert_int_equal(block_read(stage->node, back, 100, TOY_CLUSTER + 77), 0);
    assert_memory_equal(back, data + TOY_CLUSTER + 77, 100);
    memset(data + TOY_CLUSTER + 10, 0x55, 20);
    assert_int_equal(block_write(stage->node, data + TOY_CLUSTER + 10, 20, TOY_CLUSTER + 10, 0), 0);
    assert_int_equal(block_read(stage->node, back, sizeof(back), 0), 0);
    assert_memory_equal(back, data, sizeof(data));
    assert_int_equal(toy_clusters_used(stage->node), 3);
    node_unref(stage->node);
    return 0;
}

static void test_encoded(void **state)
{
    const struct sim_disk_config config = {.seed = test_seed()};
    struct stage *stage = calloc(1, sizeof(*stage));

    stage->options = TOY_NODE("");
    sim_disk_install(&config);
    sim_disk_create("/sim/top", NULL, 0);
    assert_int_equal(test_run(run_encoded, stage), 0);
    sim_disk_remove();
    free(stage);
}

/* Reads that meet the end of a file while writes move it further must not take that for damage. */
static int read_at_the_end(void *arg)
{
    struct stage *stage = arg;
    uint8_t buffer[3000];
    int err = 0;

    for (unsigned i = 0; i < 40 && err == 0; i++)
        err = block_read(stage->node, buffer, sizeof(buffer), stage->node->size - 100);
    return err;
}

static int write_at_the_end(void *arg)
{
    struct stage *stage = arg;
    uint8_t buffer[700] = {1};
    int err = 0;

    for (unsigned i = 0; i < 40 && err == 0; i++)
        err = block_write(stage->node, buffer, sizeof(buffer), stage->node->size, 0);
    return err;
}

static int run_growth(void *arg)
{
    struct stage *stage = arg;
    struct co_group group;

    open_stage(stage);
    co_group_init(&group);
    for (unsigned i = 0; i < 4; i++) {
        co_group_start(&group, read_at_the_end, stage);
        co_group_start(&group, write_at_the_end, stage);
    }
    assert_int_equal(co_group_wait(&group), 0);
    node_unref(stage->node);
    return 0;
}

static void test_growth(void **state)
{
    struct stage *stage = calloc(1, sizeof(*stage));

    for (unsigned i = 0; i < 8; i++) {
        const struct sim_disk_config config = {.seed = test_seed() + i, .uncached_percent = 50};

        *stage = (struct stage){.options = FILE_NODE("/sim/bottom")};
        sim_disk_install(&config);
        sim_disk_create("/sim/bottom", NULL, DISK_SIZE);
        assert_int_equal(test_run(run_growth, stage), 0);
        sim_disk_remove();
    }
    free(stage);
}

static int run_bounds(void *arg)
{
    struct stage *stage = arg;
    struct block_status status;
    uint8_t byte = 0;

    open_stage(stage);
    assert_int_equal(block_read(stage->node, &byte, 1, DISK_SIZE), -EINVAL);
    assert_int_equal(block_read(stage->node, &byte, 1, UINT64_MAX), -EINVAL);
    assert_int_equal(block_read_nowait(stage->node, &byte, 1, DISK_SIZE), -EINVAL);
    assert_int_equal(block_write(stage->node, &byte, 1, DISK_SIZE, 0), -ENOSPC);
    assert_int_equal(block_zero(stage->node, DISK_SIZE - 1, 2, 0), -ENOSPC);
    assert_int_equal(block_zero(stage->node, 0, UINT64_MAX, 0), -ENOSPC);
    assert_int_equal(block_discard(stage->node, DISK_SIZE, 1, 0), -EINVAL);
    assert_int_equal(block_get_status(stage->node, DISK_SIZE, 1, &status), -EINVAL);
    assert_int_equal(block_get_status(stage->node, 0, 0, &status), -EINVAL);
    assert_int_equal(block_write(stage->node, &byte, 0, DISK_SIZE, 0), 0);
    assert_int_equal(block_read(stage->node, &byte, 0, DISK_SIZE), 0);
    stage->node->flags &= ~(unsigned)NODE_WRITABLE;
    assert_int_equal(block_write(stage->node, &byte, 1, 0, 0), -EROFS);
    assert_int_equal(block_zero(stage->node, 0, 1, 0), -EROFS);
    assert_int_equal(block_discard(stage->node, 0, 1, 0), -EROFS);
    node_unref(stage->node);
    return 0;
}

static void test_bounds(void **state)
{
    const struct sim_disk_config config = {.seed = test_seed()};
    struct stage *stage = calloc(1, sizeof(*stage));

    stage->options = RAW_NODE("/sim/bottom");
    sim_disk_install(&config);
    sim_disk_create("/sim/bottom", NULL, DISK_SIZE);
    assert_int_equal(test_run(run_bounds, stage), 0);
    sim_disk_remove();
    free(stage);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_raw),        cmocka_unit_test(test_raw_aligned),
        cmocka_unit_test(test_allocating), cmocka_unit_test(test_allocating_aligned),
        cmocka_unit_test(test_backing),    cmocka_unit_test(test_window),
        cmocka_unit_test(test_encoded),    cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_growth),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
