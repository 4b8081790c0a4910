/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Flushes of qcow2 that meet writes and each other.  Syncs are held back by the engine, so that it
 * is known what happens while a flush waits for one: others allocate and end, flushes that come
 * meanwhile share the next round, and what a flush covers is on the disk when the power fails
 * afterwards, wherever that finds the rest.
 */
#include "base/checked.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTER 4096
#define FIRST 10u   /* cluster that is written first */
#define PASSES 1000 /* of the loop, in which a write ends that waits for nothing */
#define WRITERS 8u  /* clients that write, and flush, while a flush waits */

struct client {
    struct node *node;
    unsigned cluster;
    int written, flushed; /* 1: not yet; else the result */
};

struct scene {
    bool shared;  /* the image has a snapshot: clusters are given back, too */
    unsigned cut; /* passes before the power fails; 0: it does not */
    uint64_t seed;
    struct node *node;
    struct client first, others[WRITERS];
    bool over;
};

static int write_cluster(struct client *c)
{
    uint8_t data[CLUSTER];

    memset(data, (int)c->cluster, CLUSTER);
    c->written = block_write(c->node, data, CLUSTER, (uint64_t)c->cluster * CLUSTER, 0);
    return c->written;
}

static int run_client(void *arg)
{
    struct client *c = arg;

    write_cluster(c);
    c->flushed = block_flush(c->node);
    return c->flushed;
}

static void start(struct co_group *group, struct scene *s, struct client *c, unsigned cluster)
{
    *c = (struct client){s->node, cluster, 1, 1};
    co_group_start(group, run_client, c);
}

static void plant(bool shared)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = 4 * MIB};

    qcow2_image_start(&image);
    for (unsigned i = FIRST; i < FIRST + 4; i++)
        qcow2_image_data(&image, i, 0xee);
    if (shared)
        qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

/* One flush waits for its first sync; then others write, in the same table and in a new one. */
static void write_meanwhile(struct scene *s, struct co_group *group)
{
    sim_engine_hold_syncs(true);
    start(group, s, &s->first, FIRST);
    while (sim_engine_held() == 0)
        coroutine_yield();
    for (unsigned i = 0; i < WRITERS; i++) {
        start(group, s, &s->others[i], i % 2 ? 600 + i : FIRST + 1 + i);
        for (unsigned k = 0; k < PASSES && s->others[i].written > 0; k++)
            coroutine_yield();
        assert_int_equal(s->others[i].written, 0);
    }
    assert_int_equal(s->first.flushed, 1);
    assert_int_equal(sim_engine_held(), 1);
}

static int run_meanwhile(void *arg)
{
    struct scene *s = arg;
    struct co_group group;

    s->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    co_group_init(&group);
    fault_arm(&(struct fault_plan){.calls = FAULT_FDATASYNC});
    write_meanwhile(s, &group);
    sim_engine_hold_syncs(false);
    assert_int_equal(co_group_wait(&group), 0);
    /* A round has three syncs at most, and its flush one; nine flushes had two rounds. */
    assert_in_range(fault_count(), 2, 8);
    node_unref(s->node);
    return 0;
}

static void play(int (*run)(void *arg), struct scene *s)
{
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed() + s->seed});
    fault_install();
    plant(s->shared);
    assert_int_equal(test_run(run, s), 0);
    fault_remove();
    sim_disk_remove();
}

static void writes_end_while_a_flush_waits(void **state)
{
    play(run_meanwhile, &(struct scene){.shared = false});
    play(run_meanwhile, &(struct scene){.shared = true});
}

static int cut_power(void *arg)
{
    struct scene *s = arg;

    for (unsigned i = 0; i < s->cut; i++)
        coroutine_yield();
    s->over = s->first.flushed == 0;
    for (unsigned i = 0; i < WRITERS; i++)
        s->over &= s->others[i].flushed == 0;
    sim_disk_power_cut(s->seed);
    return 0;
}

static void expect_cluster(struct node *node, unsigned cluster)
{
    uint8_t data[CLUSTER];

    assert_int_equal(block_read(node, data, CLUSTER, (uint64_t)cluster * CLUSTER), 0);
    for (unsigned i = 0; i < CLUSTER; i++)
        assert_int_equal(data[i], (uint8_t)cluster);
}

/* What a flush has covered is there. */
static void look_back(struct scene *s)
{
    s->node = stage_open(0);
    if (s->first.flushed == 0)
        expect_cluster(s->node, s->first.cluster);
    for (unsigned i = 0; i < WRITERS; i++) {
        if (s->others[i].flushed == 0)
            expect_cluster(s->node, s->others[i].cluster);
    }
    node_unref(s->node);
}

static int run_cut(void *arg)
{
    struct scene *s = arg;
    struct co_group group, killer;

    s->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    co_group_init(&group);
    co_group_init(&killer);
    write_meanwhile(s, &group);
    co_group_start(&killer, cut_power, s);
    sim_engine_hold_syncs(false);
    co_group_wait(&group);
    co_group_wait(&killer);
    node_unref(s->node);
    sim_disk_power_on();
    stage_check(false);
    look_back(s);
    return 0;
}

static void flushed_writes_survive(void **state)
{
    struct scene s = {0};

    for (unsigned shared = 0; shared < 2; shared++) {
        for (unsigned cut = 0;; cut++) {
            for (unsigned round = 0; round < 10; round++) {
                s = (struct scene){.shared = shared, .cut = cut, .seed = cut * 10 + round};
                play(run_cut, &s);
            }
            if (s.over)
                break;
            assert_true(cut < 10000);
        }
    }
}

/* A sync that fails while others have written is final for all of them. */
static int run_failure(void *arg)
{
    struct scene *s = arg;
    struct co_group group;

    s->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    co_group_init(&group);
    write_meanwhile(s, &group);
    fault_arm(&(struct fault_plan){.calls = FAULT_FDATASYNC, .nth = 1, .error = EIO});
    sim_engine_hold_syncs(false);
    assert_int_equal(co_group_wait(&group), -EIO);
    assert_true(fault_fired());
    assert_int_equal(s->first.flushed, -EIO);
    for (unsigned i = 0; i < WRITERS; i++)
        assert_int_equal(s->others[i].flushed, -EIO);
    assert_int_equal(block_flush(s->node), -EIO);
    for (unsigned i = 0; i < WRITERS; i++)
        expect_cluster(s->node, s->others[i].cluster);
    node_unref(s->node);
    stage_check(false);
    return 0;
}

static void a_failed_sync_is_final(void **state)
{
    play(run_failure, &(struct scene){.shared = false});
    play(run_failure, &(struct scene){.shared = true});
}

/* A table that cannot be written fails the flush, and the next one makes up for it. */
static int run_retry(void *arg)
{
    struct scene *s = arg;
    struct co_group group;

    s->node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    co_group_init(&group);
    write_meanwhile(s, &group);
    fault_arm(&(struct fault_plan){.calls = FAULT_PWRITEV, .nth = s->cut, .error = ENOSPC});
    sim_engine_hold_syncs(false);
    co_group_wait(&group);
    s->over = !fault_fired();
    fault_arm(&(struct fault_plan){0});
    assert_int_equal(block_flush(s->node), 0);
    s->first.flushed = 0;
    for (unsigned i = 0; i < WRITERS; i++)
        s->others[i].flushed = 0;
    sim_disk_power_cut(s->seed);
    node_unref(s->node);
    sim_disk_power_on();
    stage_check(false);
    look_back(s);
    return 0;
}

static void a_failed_write_is_made_up_for(void **state)
{
    struct scene s = {0};

    for (unsigned k = 1; !s.over; k++) {
        s = (struct scene){.shared = true, .cut = k, .seed = k};
        play(run_retry, &s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_end_while_a_flush_waits),
        cmocka_unit_test(flushed_writes_survive),
        cmocka_unit_test(a_failed_sync_is_final),
        cmocka_unit_test(a_failed_write_is_made_up_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
