/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zeroing and discarding that race allocating writes on the same qcow2 clusters (row B47 of the
 * list of hostile images).  In whatever order the operations of a seed end, each cluster is what
 * they would have made of it one after another, in some order; the image stays sound without a
 * leak, and a snapshot that shares the clusters keeps what it had.
 */
#include "base/checked.h"
#include "tests/support/qcow2_stage.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define CLUSTER 4096
#define FIRST 5u /* the clusters that are raced for: this one and the next */
#define RACERS 4
#define ROUNDS 400 /* of each kind */
#define BEFORE 0x77

enum kind { KIND_ABSENT, KIND_ZERO, KIND_DATA, KIND_PACKED, KIND_SHARED, KINDS };
enum verb { VERB_WRITE, VERB_ZERO, VERB_UNMAP, VERB_DISCARD, VERB_FLUSH };

/* Offsets from the first cluster. Writes and zeroes of less than a cluster do not overlap. */
static const struct operation {
    enum verb verb;
    uint8_t fill;
    uint32_t offset, length;
} operations[] = {
    {VERB_WRITE, 0xa1, 100, 900},    {VERB_WRITE, 0xb2, 3000, CLUSTER},
    {VERB_WRITE, 0xc3, 7500, 500},   {VERB_ZERO, 0, 1000, 1000},
    {VERB_UNMAP, 0, 0, 2 * CLUSTER}, {VERB_UNMAP, 0, CLUSTER, CLUSTER},
    {VERB_DISCARD, 0, 0, CLUSTER},   {VERB_DISCARD, 0, CLUSTER, CLUSTER},
    {VERB_FLUSH, 0, 0, 0},
};

struct race {
    enum kind kind;
    uint64_t seed;
    struct node *node;
    struct prng prng;
    const struct operation *chosen[RACERS];
    unsigned delays[RACERS];
    uint8_t disk[2 * CLUSTER]; /* what it came to */
};

struct racer {
    struct race *race;
    unsigned number;
};

static bool has_content(enum kind kind)
{
    return kind == KIND_DATA || kind == KIND_PACKED || kind == KIND_SHARED;
}

static void plant(enum kind kind)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = 64 * CLUSTER};

    qcow2_image_start(&image);
    for (unsigned i = FIRST; i < FIRST + 2; i++) {
        if (kind == KIND_PACKED)
            qcow2_image_compressed(&image, i, BEFORE, true);
        else if (kind == KIND_ZERO)
            qcow2_image_set(&image, i, 1);
        else if (has_content(kind))
            qcow2_image_data(&image, i, BEFORE);
    }
    if (kind == KIND_SHARED)
        qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

static int run_racer(void *arg)
{
    const struct racer *racer = arg;
    struct race *race = racer->race;
    const struct operation *o = race->chosen[racer->number];
    uint64_t at = FIRST * CLUSTER + o->offset;
    uint8_t data[CLUSTER];

    for (unsigned i = 0; i < race->delays[racer->number]; i++)
        coroutine_yield();
    switch (o->verb) {
    case VERB_WRITE:
        memset(data, o->fill, o->length);
        return block_write(race->node, data, o->length, at, 0);
    case VERB_DISCARD:
        return block_discard(race->node, at, o->length, 0);
    case VERB_FLUSH:
        return block_flush(race->node);
    default:
        return block_zero(race->node, at, o->length, o->verb == VERB_UNMAP ? ZERO_MAY_UNMAP : 0);
    }
}

/* What the operations make of both clusters, in the order of that permutation. */
static void apply(const struct race *race, unsigned permutation, uint8_t *disk)
{
    const struct operation *left[RACERS];

    memcpy(left, race->chosen, sizeof(left));
    memset(disk, has_content(race->kind) ? BEFORE : 0, 2 * CLUSTER);
    for (unsigned n = RACERS; n > 0; n--) {
        unsigned pick = permutation % n;
        const struct operation *o = left[pick];

        permutation /= n;
        left[pick] = left[n - 1];
        memset(disk + o->offset, o->fill, o->length);
    }
}

static bool some_order_explains(const struct race *race, unsigned cluster)
{
    uint8_t wanted[2 * CLUSTER];

    for (unsigned permutation = 0; permutation < 4 * 3 * 2; permutation++) {
        apply(race, permutation, wanted);
        if (memcmp(wanted + cluster * CLUSTER, race->disk + cluster * CLUSTER, CLUSTER) == 0)
            return true;
    }
    return false;
}

static void check_snapshot(void)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sim};
    json_t *options = json_pack("{s:s}", "snapshot", "s1");
    uint8_t data[2 * CLUSTER];
    struct node *node;

    assert_int_equal(node_open_image(&context, STAGE_PATH, "qcow2", options, 0, &node, NULL, NULL),
                     0);
    json_decref(options);
    assert_int_equal(block_read(node, data, sizeof(data), FIRST * CLUSTER), 0);
    node_unref(node);
    assert_true(data[0] == BEFORE && memcmp(data, data + 1, sizeof(data) - 1) == 0);
}

static int run_race(void *arg)
{
    struct race *race = arg;
    struct racer racers[RACERS];
    struct co_group group;
    uint8_t again[2 * CLUSTER];

    race->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    co_group_init(&group);
    for (unsigned i = 0; i < RACERS; i++) {
        racers[i] = (struct racer){race, i};
        co_group_start(&group, run_racer, &racers[i]);
    }
    assert_int_equal(co_group_wait(&group), 0);
    assert_int_equal(block_read(race->node, race->disk, sizeof(race->disk), FIRST * CLUSTER), 0);
    node_unref(race->node);
    for (unsigned cluster = 0; cluster < 2; cluster++) {
        if (!some_order_explains(race, cluster))
            test_die("kind %u, seed %" PRIu64 ": no order of the operations explains cluster %u",
                     race->kind, race->seed, cluster);
    }
    stage_check(true);
    race->node = stage_open(0);
    assert_int_equal(block_read(race->node, again, sizeof(again), FIRST * CLUSTER), 0);
    node_unref(race->node);
    assert_memory_equal(again, race->disk, sizeof(again));
    if (race->kind == KIND_SHARED)
        check_snapshot();
    return 0;
}

static int run_rounds(void *arg)
{
    struct race *race = arg;

    for (unsigned round = 0; round < ROUNDS; round++) {
        race->seed = test_seed() + round;
        race->prng = prng_of(race->seed);
        sim_engine_seed(race->seed);
        for (unsigned i = 0; i < RACERS; i++) {
            race->chosen[i] = &operations[prng_below(&race->prng, ARRAY_SIZE(operations))];
            race->delays[i] = (unsigned)prng_below(&race->prng, 12);
        }
        plant(race->kind);
        run_race(race);
    }
    return 0;
}

static void B47_zero_and_discard_race_writes(void **state)
{
    static struct race race;

    for (unsigned kind = 0; kind < KINDS; kind++) {
        race.kind = kind;
        sim_disk_install(
            &(struct sim_disk_config){.seed = test_seed() + kind, .uncached_percent = 60});
        assert_int_equal(test_run(run_rounds, &race), 0);
        assert_int_equal(sim_disk_open_count(), 0);
        sim_disk_remove();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(B47_zero_and_discard_race_writes)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
