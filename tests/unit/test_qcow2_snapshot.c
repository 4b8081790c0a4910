/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Internal snapshots of qcow2 on the simulated disk, against models in memory: series of writes,
 * creations, applications and deletions; and each verb when any call fails or the power does.
 * Whatever happens, the disk and each snapshot hold what they held before or what they are to hold
 * afterwards, and the image has no errors (leaks at most).
 */
#include "base/checked.h"
#include "blockcore/snapshot.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define STATES_MAX 8 /* snapshots at a time */
#define NAME_MAX_BYTES 16
#define FAULTY_LAYOUTS 2 /* the first so many are used where a call fails */

struct layout {
    const char *name;
    unsigned version, cluster_bits, order;
    uint64_t clusters;
    bool small_caches; /* four tables each: they are written back in the midst of things */
};

/* What an image holds. */
struct state {
    char name[NAME_MAX_BYTES];
    uint8_t *data;
};

struct world {
    struct state disk;
    struct state snapshots[STATES_MAX];
    unsigned count;
};

enum verb { VERB_CREATE, VERB_APPLY, VERB_DELETE_FIRST, VERB_DELETE_LAST, VERBS };

struct run {
    const struct layout *layout;
    uint64_t size;
    struct prng prng;
    struct world before, after;
    enum verb verb;
    struct fault_plan plan;
    unsigned yields_left; /* until the power cut */
    uint64_t cut_seed;
    bool cut, done, fired;
    int result;
};

static const struct layout layouts[] = {
    {"v3, 4 KiB", 3, 12, 4, 60, false},
    {"v3, 512 bytes, small caches", 3, 9, 4, 300, true},
    {"v3, 512 bytes, 64-bit refcounts", 3, 9, 6, 200, false},
    {"v2, 4 KiB", 2, 12, 4, 40, false},
    {"v3, 4 KiB, 2-bit refcounts", 3, 12, 1, 30, true},
};

static struct node *open_with(const struct layout *layout, unsigned flags, const char *snapshot)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sim};
    struct error error = {.text = ""};
    json_t *options = json_object();
    struct node *node;

    if (layout->small_caches)
        json_object_update_new(
            options, json_pack("{s:i, s:i}", "l2-cache-size", 1, "refcount-cache-size", 1));
    if (snapshot)
        json_object_set_new(options, "snapshot", json_string(snapshot));
    if (node_open_image(&context, STAGE_PATH, "qcow2", options, flags, &node, NULL, &error) < 0)
        test_die("%s: %s", layout->name, error.text);
    json_decref(options);
    return node;
}

static void world_fini(struct world *world)
{
    free(world->disk.data);
    for (unsigned i = 0; i < world->count; i++)
        free(world->snapshots[i].data);
    *world = (struct world){0};
}

static uint8_t *copy_of(const uint8_t *data, uint64_t size)
{
    uint8_t *copy = malloc(size);

    assert_non_null(copy);
    return memcpy(copy, data, size);
}

static void world_copy(struct world *to, const struct world *from, uint64_t size)
{
    *to = *from;
    to->disk.data = copy_of(from->disk.data, size);
    for (unsigned i = 0; i < from->count; i++)
        to->snapshots[i].data = copy_of(from->snapshots[i].data, size);
}

static void world_add(struct world *world, const char *name, uint64_t size)
{
    struct state *s = &world->snapshots[world->count++];

    snprintf(s->name, sizeof(s->name), "%s", name);
    s->data = copy_of(world->disk.data, size);
}

static void world_remove(struct world *world, unsigned index)
{
    free(world->snapshots[index].data);
    for (unsigned i = index + 1; i < world->count; i++)
        world->snapshots[i - 1] = world->snapshots[i];
    world->count--;
}

static int by_name(struct node *node, const char *name,
                   int (*verb)(struct node *node, const struct block_snapshot_choice *choice,
                               struct error *error))
{
    struct error error = {.text = ""};
    struct block_snapshot_choice choice = {.name = strdup(name)};
    int err = verb(node, &choice, &error);

    assert_true(err == 0 || error.text[0]);
    block_snapshot_choice_fini(&choice);
    return err;
}

/* Writes, zeroes or discards somewhere. */
static int change_disk(struct run *run, struct node *node)
{
    uint64_t cluster = UINT64_C(1) << run->layout->cluster_bits;
    uint64_t offset = prng_below(&run->prng, run->size);
    uint64_t length = 1 + prng_below(&run->prng, min_u64(6 * cluster, run->size - offset));
    uint8_t *at = run->before.disk.data + offset;
    int err;

    switch (prng_below(&run->prng, 6)) {
    case 0:
        memset(at, 0, length);
        return block_zero(node, offset, length, ZERO_MAY_UNMAP);
    case 1:
        err = block_discard(node, offset, length, 0);
        return err < 0 ? err : block_read(node, at, length, offset);
    default:
        prng_fill(&run->prng, at, length);
        return block_write(node, at, length, offset, 0);
    }
}

static void change_much(struct run *run, struct node *node)
{
    for (unsigned i = 0; i < 6; i++)
        assert_int_equal(change_disk(run, node), 0);
}

/* An image with compressed clusters, zeroes, and data. */
static void make_image(struct run *run)
{
    const struct layout *layout = run->layout;
    struct qcow2_image image = {
        .version = layout->version,
        .cluster_bits = layout->cluster_bits,
        .order = layout->order,
        .size = (layout->clusters << layout->cluster_bits) - 512,
    };
    uint64_t cluster = UINT64_C(1) << image.cluster_bits;

    run->size = image.size;
    run->before.disk.data = calloc(1, layout->clusters << layout->cluster_bits);
    qcow2_image_start(&image);
    for (uint64_t i = 0; i < layout->clusters / 2; i++) {
        if (i % 4 == 0)
            qcow2_image_data(&image, i, (uint8_t)i);
        else if (i % 4 == 1 && layout->order > 1)
            qcow2_image_compressed(&image, i, (uint8_t)i, true);
        else if (i % 4 == 2 && layout->version >= 3)
            qcow2_image_set(&image, i, qcow2_image_add(&image, 1) | 1);
        if (i % 4 == 0 || (i % 4 == 1 && layout->order > 1))
            memset(run->before.disk.data + i * cluster, (uint8_t)i, cluster);
    }
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
}

/* The disk and all snapshots hold what the world says. */
static void expect_world(const struct run *run, const struct world *world)
{
    uint8_t *seen = malloc(run->size);

    for (unsigned i = 0; i <= world->count; i++) {
        const struct state *s = i < world->count ? &world->snapshots[i] : &world->disk;
        struct node *node = open_with(run->layout, 0, i < world->count ? s->name : NULL);

        assert_int_equal(node->size, run->size);
        assert_int_equal(block_read(node, seen, run->size, 0), 0);
        for (uint64_t k = 0; k < run->size; k++) {
            if (seen[k] != s->data[k])
                test_die("%s: byte %lu of '%s' is %#x instead of %#x", run->layout->name, k,
                         i < world->count ? s->name : "the disk", seen[k], s->data[k]);
        }
        node_unref(node);
    }
    free(seen);
}

static bool same_names(const struct block_snapshots *list, const struct world *world)
{
    if (list->count != world->count)
        return false;
    for (unsigned i = 0; i < world->count; i++) {
        if (strcmp(list->items[i].name, world->snapshots[i].name) != 0)
            return false;
    }
    return true;
}

static void expect_list(const struct run *run, const struct world *world)
{
    struct node *node = open_with(run->layout, 0, NULL);
    struct block_snapshots list;

    assert_int_equal(block_snapshots_list(node, &list, NULL), 0);
    assert_true(same_names(&list, world));
    block_snapshots_fini(&list);
    node_unref(node);
}

/* A random step of a long series. */
static void step(struct run *run, struct node *node, unsigned number)
{
    struct world *w = &run->before;
    unsigned victim = w->count ? (unsigned)prng_below(&run->prng, w->count) : 0;
    char name[NAME_MAX_BYTES];

    snprintf(name, sizeof(name), "s%u", number);
    switch (prng_below(&run->prng, 5)) {
    case 0:
        if (w->count < (run->layout->order == 1 ? 2 : STATES_MAX - 1)) {
            assert_int_equal(block_snapshot_create(node, name, NULL), 0);
            world_add(w, name, run->size);
        }
        return;
    case 1:
        if (w->count > 0 && (run->layout->order != 1 || w->count < 2)) {
            assert_int_equal(by_name(node, w->snapshots[victim].name, block_snapshot_apply), 0);
            memcpy(w->disk.data, w->snapshots[victim].data, run->size);
        }
        return;
    case 2:
        if (w->count > 0) {
            assert_int_equal(by_name(node, w->snapshots[victim].name, block_snapshot_delete), 0);
            world_remove(w, victim);
        }
        return;
    default:
        change_much(run, node);
    }
}

static int run_series(void *arg)
{
    struct run *run = arg;
    struct node *node = open_with(run->layout, NODE_WRITABLE | NODE_UNMAP, NULL);

    for (unsigned i = 0; i < 40; i++) {
        step(run, node, i);
        if (i % 8 == 7) {
            node_unref(node);
            stage_check(true);
            expect_list(run, &run->before);
            expect_world(run, &run->before);
            node = open_with(run->layout, NODE_WRITABLE | (i & 8 ? NODE_UNMAP : 0), NULL);
        }
    }
    while (run->before.count > 0) {
        assert_int_equal(by_name(node, run->before.snapshots[0].name, block_snapshot_delete), 0);
        world_remove(&run->before, 0);
    }
    node_unref(node);
    stage_check(true);
    expect_world(run, &run->before);
    return 0;
}

static void series_of_everything(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
        for (unsigned seed = 0; seed < 8; seed++) {
            uint64_t mixed = test_seed() + i * 100 + seed;
            struct run run = {.layout = &layouts[i], .prng = prng_of(mixed)};

            sim_disk_install(&(struct sim_disk_config){.seed = mixed, .short_percent = 10});
            make_image(&run);
            assert_int_equal(test_run(run_series, &run), 0);
            world_fini(&run.before);
            assert_int_equal(sim_disk_open_count(), 0);
            sim_disk_remove();
        }
    }
}

/* Two snapshots, and changes before, between and after them. */
static int prepare(void *arg)
{
    struct run *run = arg;
    struct node *node = open_with(run->layout, NODE_WRITABLE | NODE_UNMAP, NULL);
    unsigned snapshots = run->layout->order == 1 ? 1 : 2;

    for (unsigned i = 0; i < snapshots; i++) {
        char name[NAME_MAX_BYTES];

        snprintf(name, sizeof(name), "s%u", i);
        change_much(run, node);
        assert_int_equal(block_snapshot_create(node, name, NULL), 0);
        world_add(&run->before, name, run->size);
    }
    change_much(run, node);
    node_unref(node);
    stage_check(true);
    world_copy(&run->after, &run->before, run->size);
    return 0;
}

/* Where the verb will lead. */
static void foresee(struct run *run)
{
    struct world *w = &run->after;

    switch (run->verb) {
    case VERB_CREATE:
        world_add(w, "new", run->size);
        break;
    case VERB_APPLY:
        memcpy(w->disk.data, w->snapshots[0].data, run->size);
        break;
    case VERB_DELETE_FIRST:
        world_remove(w, 0);
        break;
    default:
        world_remove(w, w->count - 1);
        break;
    }
}

static int do_verb(struct run *run, struct node *node)
{
    const struct world *w = &run->before;
    struct error error = {.text = ""};

    switch (run->verb) {
    case VERB_CREATE:
        return block_snapshot_create(node, "new", &error);
    case VERB_APPLY:
        return by_name(node, w->snapshots[0].name, block_snapshot_apply);
    case VERB_DELETE_FIRST:
        return by_name(node, w->snapshots[0].name, block_snapshot_delete);
    default:
        return by_name(node, w->snapshots[w->count - 1].name, block_snapshot_delete);
    }
}

/* Which of the two worlds the image is in; it must be one of them. */
static const struct world *find_world(const struct run *run)
{
    struct node *node = open_with(run->layout, 0, NULL);
    const struct world *found = &run->before;
    uint8_t *seen = malloc(run->size);
    struct block_snapshots list;

    assert_int_equal(block_snapshots_list(node, &list, NULL), 0);
    assert_int_equal(block_read(node, seen, run->size, 0), 0);
    if (same_names(&list, &run->after) && memcmp(seen, run->after.disk.data, run->size) == 0)
        found = &run->after;
    else
        assert_true(same_names(&list, &run->before));
    block_snapshots_fini(&list);
    node_unref(node);
    free(seen);
    return found;
}

/* The image goes on: snapshots stay what they are when the disk is written, and can be deleted. */
static void use_on(struct run *run, const struct world *world)
{
    struct node *node = open_with(run->layout, NODE_WRITABLE | NODE_UNMAP, NULL);
    struct world rest;

    world_copy(&rest, world, run->size);
    prng_fill(&run->prng, rest.disk.data, run->size);
    assert_int_equal(block_write(node, rest.disk.data, run->size, 0, 0), 0);
    node_unref(node);
    stage_check(false);
    expect_world(run, &rest);
    node = open_with(run->layout, NODE_WRITABLE | NODE_UNMAP, NULL);
    while (rest.count > 0) {
        assert_int_equal(by_name(node, rest.snapshots[0].name, block_snapshot_delete), 0);
        world_remove(&rest, 0);
        stage_check(false);
    }
    node_unref(node);
    expect_world(run, &rest);
    world_fini(&rest);
}

static int look_afterwards(void *arg)
{
    struct run *run = arg;
    const struct world *world;

    stage_check(false);
    world = find_world(run);
    expect_world(run, world);
    if (run->result == 0 && !run->cut)
        assert_ptr_equal(world, &run->after);
    use_on(run, world);
    return 0;
}

static int run_with_fault(void *arg)
{
    struct run *run = arg;
    struct node *node = open_with(run->layout, NODE_WRITABLE | NODE_UNMAP, NULL);

    fault_arm(&run->plan);
    run->result = do_verb(run, node);
    run->fired = fault_fired();
    if (!run->plan.sticky)
        fault_arm(&(struct fault_plan){0});
    assert_true(run->fired || run->result == 0);
    node_unref(node);
    fault_arm(&(struct fault_plan){0});
    return 0;
}

static void run_init(struct run *run, const struct layout *layout, enum verb verb, uint64_t seed)
{
    run->layout = layout;
    run->verb = verb;
    run->prng = prng_of(seed);
    make_image(run);
    assert_int_equal(test_run(prepare, run), 0);
    foresee(run);
}

/* One run; whether the fault came. */
static bool try_fault(const struct layout *layout, enum verb verb, struct fault_plan plan)
{
    struct run run = {.plan = plan};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    fault_install();
    run_init(&run, layout, verb, test_seed());
    assert_int_equal(test_run(run_with_fault, &run), 0);
    assert_int_equal(test_run(look_afterwards, &run), 0);
    world_fini(&run.before);
    world_fini(&run.after);
    fault_remove();
    sim_disk_remove();
    return run.fired;
}

static void try_all(unsigned calls, bool sticky)
{
    for (size_t i = 0; i < FAULTY_LAYOUTS; i++) {
        for (enum verb verb = 0; verb < VERBS; verb++) {
            unsigned k = 1;

            while (try_fault(
                &layouts[i], verb,
                (struct fault_plan){.calls = calls, .nth = k, .error = EIO, .sticky = sticky}))
                k++;
            assert_true(k > 2);
        }
    }
}

static void a_write_fails(void **state)
{
    try_all(FAULT_PWRITEV, false);
}

static void writes_fail_from_then_on(void **state)
{
    try_all(FAULT_PWRITEV, true);
}

static void a_read_fails(void **state)
{
    try_all(FAULT_PREADV, false);
}

static void a_sync_fails(void **state)
{
    try_all(FAULT_FDATASYNC, false);
}

static int cut_power(void *arg)
{
    struct run *run = arg;

    while (run->yields_left > 0 && !run->done) {
        run->yields_left--;
        coroutine_yield();
    }
    run->cut = !run->done;
    if (run->cut)
        sim_disk_power_cut(run->cut_seed);
    return 0;
}

static int run_until_cut(void *arg)
{
    struct run *run = arg;
    struct node *node = open_with(run->layout, NODE_WRITABLE | NODE_UNMAP, NULL);
    struct co_group killer;

    co_group_init(&killer);
    co_group_start(&killer, cut_power, run);
    run->result = do_verb(run, node);
    run->done = true;
    assert_int_equal(co_group_wait(&killer), 0);
    assert_true(run->result == 0 || run->cut);
    node_unref(node);
    return 0;
}

/*
 * Cuts the power after so many turns of a run that is always the same; whether that was before the
 * verb had ended.
 */
static bool try_cut(const struct layout *layout, enum verb verb, unsigned yields, uint64_t seed)
{
    struct run run = {.yields_left = yields, .cut_seed = seed + yields};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    run_init(&run, layout, verb, test_seed());
    assert_int_equal(test_run(run_until_cut, &run), 0);
    if (run.cut)
        sim_disk_power_on();
    assert_int_equal(test_run(look_afterwards, &run), 0);
    world_fini(&run.before);
    world_fini(&run.after);
    sim_disk_remove();
    return run.cut;
}

static void survives_power_cuts(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(layouts); i++) {
        for (enum verb verb = 0; verb < VERBS; verb++) {
            unsigned yields = 0;

            if (layouts[i].order == 1 && verb == VERB_APPLY)
                continue; /* one reference more than its refcounts can say */
            while (try_cut(&layouts[i], verb, yields, test_seed()))
                yields++;
            assert_true(yields > 5);
        }
    }
}

/* The verbs, with numbers of snapshots that are not there any more. */
static int run_numbers(void *arg)
{
    const struct block_snapshot_ops *ops = driver_qcow2.snapshots;
    struct error error;
    struct node *node = stage_open(NODE_WRITABLE);

    assert_int_equal(ops->apply(node, 1, &error), -EINVAL);
    assert_non_null(strstr(error.text, "has 1 snapshots now"));
    assert_int_equal(ops->remove(node, SIZE_MAX, &error), -EINVAL);
    assert_int_equal(ops->remove(node, 0, &error), 0);
    assert_int_equal(ops->remove(node, 0, &error), -EINVAL);
    node_unref(node);
    node = stage_open(0);
    assert_int_equal(ops->load(node, 0, &error), -EINVAL);
    node_unref(node);
    return 0;
}

static void numbers_that_are_gone(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = 40 * 4096};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    qcow2_image_data(&image, 3, 0x33);
    qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
    assert_int_equal(test_run(run_numbers, NULL), 0);
    stage_check(true);
    sim_disk_remove();
}

/* A table that only a snapshot has, and that a broken image calls free: it is not given out. */
static int run_guarded(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    static uint8_t data[4096];

    assert_int_equal(block_write(node, data, sizeof(data), 0, 0), -EIO);
    node_unref(node);
    return 0;
}

static void tables_of_snapshots_are_guarded(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = 40 * 4096};
    uint64_t table, block;
    uint8_t *after;
    size_t length;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    qcow2_image_data(&image, 3, 0x33);
    qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    table = get_be64(image.data + image.l1_offset) & UINT64_C(0x00fffffffffffe00);
    assert_int_equal(get_be64(image.data + image.snapshot_l1[0]) & UINT64_C(0x00fffffffffffe00),
                     table);
    put_be64(image.data + image.l1_offset, 0);
    block = get_be64(image.data + get_be64(image.data + 48));
    put_be16(image.data + block + table / 4096 * 2, 0);
    stage_store(&image);
    assert_int_equal(test_run(run_guarded, NULL), 0);
    after = stage_content(&length);
    assert_memory_equal(after + table, image.data + table, 4096);
    free(after);
    qcow2_image_fini(&image);
    sim_disk_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(series_of_everything),
        cmocka_unit_test(numbers_that_are_gone),
        cmocka_unit_test(tables_of_snapshots_are_guarded),
        cmocka_unit_test(a_write_fails),
        cmocka_unit_test(writes_fail_from_then_on),
        cmocka_unit_test(a_read_fails),
        cmocka_unit_test(a_sync_fails),
        cmocka_unit_test(survives_power_cuts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
