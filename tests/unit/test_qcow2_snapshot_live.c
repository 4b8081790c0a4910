/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Snapshots of a qcow2 image that is being written: each cluster of a snapshot holds what its
 * writer had written before, or was writing, when it was made; nothing is lost, and the image stays
 * sound.
 */
#include "base/checked.h"
#include "blockcore/snapshot.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTER 4096
#define COPY_PATH "/sim/copy.qcow2"
#define WRITERS 6
#define ROUNDS 12 /* snapshots that are made, one after another */

struct live {
    struct node *node;
    bool stopping;
    uint8_t began[WRITERS], ended[WRITERS]; /* the last byte that the writer wrote all over */
};

/* When a snapshot was made. */
struct moment {
    uint8_t low[WRITERS], high[WRITERS]; /* what writers had written before, or began until then */
    uint8_t *file;                       /* the image right afterwards */
    size_t length;
};

struct writer {
    struct live *live;
    unsigned number;
};

/* Fills its own cluster with 1, 2, 3..., and reads it back. */
static int run_writer(void *arg)
{
    const struct writer *w = arg;
    struct live *live = w->live;
    uint64_t offset = (uint64_t)w->number * CLUSTER;
    uint8_t data[CLUSTER];

    while (!live->stopping) {
        uint8_t fill = (uint8_t)(live->ended[w->number] % 250 + 1);

        live->began[w->number] = fill;
        memset(data, fill, sizeof(data));
        assert_int_equal(block_write(live->node, data, sizeof(data), offset, 0), 0);
        live->ended[w->number] = fill;
        memset(data, 0, sizeof(data));
        assert_int_equal(block_read(live->node, data, sizeof(data), offset), 0);
        assert_true(data[0] == fill && memcmp(data, data + 1, sizeof(data) - 1) == 0);
        coroutine_yield(); /* what is cached does not wait */
    }
    return 0;
}

/* Whether going up from `low` comes to `value` before it passes `high`. */
static bool between(uint8_t low, uint8_t value, uint8_t high)
{
    uint8_t i = low;

    while (i != value && i != high)
        i = (uint8_t)(i % 250 + 1);
    return i == value;
}

/* What the snapshot of an image holds of the writers' clusters. */
static void read_snapshot(const char *path, const char *name, uint8_t *out)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sim};
    json_t *options = json_pack("{s:s}", "snapshot", name);
    struct node *node;

    assert_int_equal(node_open_image(&context, path, "qcow2", options, 0, &node, NULL, NULL), 0);
    json_decref(options);
    assert_int_equal(block_read(node, out, WRITERS * CLUSTER, 0), 0);
    node_unref(node);
}

static void check_snapshot(const struct moment *moment, const char *name)
{
    static uint8_t seen[WRITERS * CLUSTER], then[WRITERS * CLUSTER];

    read_snapshot(STAGE_PATH, name, seen);
    for (unsigned i = 0; i < WRITERS; i++) {
        const uint8_t *cluster = seen + (size_t)i * CLUSTER;

        assert_memory_equal(cluster, cluster + 1, CLUSTER - 1);
        if (!between(moment->low[i], cluster[0], moment->high[i]))
            test_die("snapshot %s has %u of writer %u, which had written %u, and %u afterwards",
                     name, cluster[0], i, moment->low[i], moment->high[i]);
    }
    /* No write of before reached it late. */
    sim_disk_create(COPY_PATH, moment->file, moment->length);
    read_snapshot(COPY_PATH, name, then);
    assert_memory_equal(seen, then, sizeof(seen));
}

static void make_snapshot(struct live *live, struct moment *moment, const char *name)
{
    for (unsigned i = 0; i < 40; i++)
        coroutine_yield();
    memcpy(moment->low, live->ended, WRITERS);
    assert_int_equal(block_snapshot_create(live->node, name, NULL), 0);
    memcpy(moment->high, live->began, WRITERS);
    moment->file = stage_content(&moment->length);
}

static int run_live(void *arg)
{
    struct live *live = arg;
    struct writer writers[WRITERS];
    struct moment moments[ROUNDS];
    struct co_group group;
    char name[2] = "a";

    live->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    co_group_init(&group);
    for (unsigned i = 0; i < WRITERS; i++) {
        writers[i] = (struct writer){live, i};
        co_group_start(&group, run_writer, &writers[i]);
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        name[0] = (char)('a' + i);
        make_snapshot(live, &moments[i], name);
        if (i % 3 == 2) {
            name[0] = (char)('a' + i - 1);
            assert_int_equal(block_snapshot_delete(
                                 live->node, &(struct block_snapshot_choice){.any = name}, NULL),
                             0);
        }
    }
    live->stopping = true;
    assert_int_equal(co_group_wait(&group), 0);
    node_unref(live->node);
    stage_check(true);
    for (unsigned i = 0; i < ROUNDS; i++) {
        name[0] = (char)('a' + i);
        if (i % 3 != 1)
            check_snapshot(&moments[i], name);
        free(moments[i].file);
    }
    return 0;
}

/* An empty image of 64 clusters on a new disk. */
static void begin(uint64_t seed)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = 64 * CLUSTER};

    sim_disk_install(&(struct sim_disk_config){.seed = seed, .uncached_percent = 60});
    qcow2_image_start(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

static void snapshots_of_a_busy_disk(void **state)
{
    static struct live live;

    for (unsigned seed = 0; seed < 6; seed++) {
        begin(test_seed() + seed);
        live = (struct live){0};
        assert_int_equal(test_run(run_live, &live), 0);
        assert_int_equal(sim_disk_open_count(), 0);
        sim_disk_remove();
    }
}

static int create_one(void *arg)
{
    struct live *live = arg;
    int err = block_snapshot_create(live->node, "one", NULL);

    live->stopping = true;
    return err;
}

/* A request holds a range as long as it takes: a snapshot waits for it. */
static int run_waiting(void *arg)
{
    struct live *live = arg;
    struct range_lock lock;
    struct co_group group;

    live->node = stage_open(NODE_WRITABLE);
    range_lock_shared(&live->node->locks, &lock, 40 * CLUSTER, 1);
    co_group_init(&group);
    co_group_start(&group, create_one, live);
    for (unsigned i = 0; i < 500; i++)
        coroutine_yield();
    assert_false(live->stopping);
    assert_false(range_lock_is_free(&live->node->locks, 0, 1));
    range_unlock(&live->node->locks, &lock);
    assert_int_equal(co_group_wait(&group), 0);
    assert_true(live->stopping);
    assert_true(range_lock_is_free(&live->node->locks, 0, 1));
    node_unref(live->node);
    stage_check(true);
    return 0;
}

static void waits_for_what_is_under_way(void **state)
{
    struct live live = {0};

    begin(test_seed());
    assert_int_equal(test_run(run_waiting, &live), 0);
    sim_disk_remove();
}

/* The size of a disk that is applied is that of the snapshot; writing ends there. */
static int run_sizes(void *arg)
{
    struct block_snapshot_choice choice = {.any = (char[]){"1"}};
    uint8_t byte = 7, seen = 0;
    size_t length;
    uint8_t *data;
    struct node *node = stage_open(NODE_WRITABLE);

    assert_int_equal(block_write(node, &byte, 1, 9 * CLUSTER, 0), 0);
    assert_int_equal(block_snapshot_create(node, "small", NULL), 0);
    node_unref(node);
    data = stage_content(&length);
    put_be64(data + get_be64(data + 64) + 48, 10 * CLUSTER);
    sim_disk_create(STAGE_PATH, data, length);
    free(data);
    node = stage_open(NODE_WRITABLE);
    assert_int_equal(node->size, 64 * CLUSTER);
    assert_int_equal(block_snapshot_apply(node, &choice, NULL), 0);
    assert_int_equal(node->size, 10 * CLUSTER);
    assert_int_equal(block_read(node, &seen, 1, 9 * CLUSTER), 0);
    assert_int_equal(seen, 7);
    assert_int_equal(block_write(node, &byte, 1, 10 * CLUSTER, 0), -ENOSPC);
    assert_int_equal(block_write(node, &byte, 1, 10 * CLUSTER - 1, 0), 0);
    node_unref(node);
    stage_check(true);
    return 0;
}

static void sizes(void **state)
{
    begin(test_seed());
    assert_int_equal(test_run(run_sizes, NULL), 0);
    sim_disk_remove();
}

/* What is refused, and by what words. */
static int run_refusals(void *arg)
{
    struct block_snapshot_choice choice = {.any = (char[]){"1"}};
    struct error error = {.text = ""};
    char name[BLOCK_SNAPSHOT_NAME_MAX + 2];
    struct node *node = stage_open(0);

    assert_int_equal(block_snapshot_create(node, "x", &error), -EROFS);
    assert_non_null(strstr(error.text, "must be writable"));
    assert_int_equal(block_snapshot_load(node, &choice, &error), -ENOENT);
    assert_non_null(strstr(error.text, "Can't find snapshot '1'"));
    assert_int_equal(block_snapshot_create(node->file, "x", &error), -ENOTSUP);
    node_unref(node);
    node = stage_open(NODE_WRITABLE);
    assert_int_equal(block_snapshot_load(node, &choice, &error), -EROFS);
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = 0;
    assert_int_equal(block_snapshot_create(node, name, &error), -EINVAL);
    assert_non_null(strstr(error.text, "256 bytes"));
    assert_int_equal(block_snapshot_create(node, name + 1, &error), 0);
    node_unref(node);
    stage_check(true);
    return 0;
}

static void refusals(void **state)
{
    begin(test_seed());
    assert_int_equal(test_run(run_refusals, NULL), 0);
    sim_disk_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snapshots_of_a_busy_disk),
        cmocka_unit_test(waits_for_what_is_under_way),
        cmocka_unit_test(sizes),
        cmocka_unit_test(refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
