/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The qcow2 driver, one behavior at a time: how it maps, what it reuses, when it gives storage
 * back, what it does to the header, how its tables grow, and how it shows the backing file.
 */
#include "base/checked.h"
#include "base/reactor.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

/* One image, one thing. */
struct scene {
    struct qcow2_image image;
    int (*play)(struct node *node);
    unsigned flags;
};

static int run_scene(void *arg)
{
    struct scene *scene = arg;
    struct node *node = stage_open(scene->flags);
    int err = scene->play(node);

    node_unref(node);
    return err;
}

/* 4 KiB clusters, 16-bit refcounts; `plan` puts things into the image. */
static void play(unsigned version, unsigned flags, void (*plan)(struct qcow2_image *),
                 int (*act_out)(struct node *node))
{
    struct scene scene = {
        .image = {.version = version, .cluster_bits = 12, .order = 4, .size = MIB},
        .play = act_out,
        .flags = flags,
    };

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&scene.image);
    plan(&scene.image);
    qcow2_image_finish(&scene.image);
    stage_store(&scene.image);
    assert_int_equal(test_run(run_scene, &scene), 0);
    if (flags & NODE_WRITABLE)
        stage_check(true);
    qcow2_image_fini(&scene.image);
    sim_disk_remove();
}

static void map_one(struct node *node, uint64_t cluster, struct extent *ret)
{
    assert_int_equal(node->driver->map(node, cluster * 4096, 4096, ret), 0);
}

static void plan_two_tables(struct qcow2_image *image)
{
    image->size = 5 * MIB; /* a table covers 2 MiB; the L1 table's cluster has room for three */
    image->l1_size = 3;
    qcow2_image_data(image, 15, 9);
    for (unsigned i = 0; i < 4; i++)
        qcow2_image_data(image, 10 + i, (uint8_t)(1 + i));
    for (unsigned i = 0; i < 5; i++)
        qcow2_image_set(image, 20 + i, 1);
}

static int act_map(struct node *node)
{
    struct extent e;

    assert_int_equal(node->driver->map(node, 10 * 4096 + 100, 8 * 4096, &e), 0);
    assert_int_equal(e.kind, EXTENT_DATA);
    assert_int_equal(e.length, 4 * 4096 - 100);
    assert_int_equal(e.child_offset % 4096, 100);
    assert_ptr_equal(e.child, node->file);
    assert_int_equal(e.flags, 0); /* not opened for writing */
    assert_int_equal(node->driver->map(node, 14 * 4096, 8 * 4096, &e), 0);
    assert_int_equal(e.kind, EXTENT_ABSENT);
    assert_int_equal(e.length, 4096);
    assert_int_equal(node->driver->map(node, 20 * 4096, 3 * 4096 + 7, &e), 0);
    assert_int_equal(e.kind, EXTENT_ZERO);
    assert_int_equal(e.length, 3 * 4096 + 7);
    /* To the end of the first table, and over all that have none. */
    assert_int_equal(node->driver->map(node, 25 * 4096, 4 * MIB, &e), 0);
    assert_int_equal(e.length, 2 * MIB - 25 * 4096);
    assert_int_equal(node->driver->map(node, 2 * MIB + 5, 3 * MIB - 5, &e), 0);
    assert_int_equal(e.kind, EXTENT_ABSENT);
    assert_int_equal(e.length, 3 * MIB - 5);
    return 0;
}

static void maps_and_merges(void **state)
{
    play(3, 0, plan_two_tables, act_map);
}

static void plan_many_tables(struct qcow2_image *image)
{
    image->size = 10000 * 2 * MIB;
    image->l1_size = 10000;
    image->l1_offset = qcow2_image_add(image, 20);
    qcow2_image_data(image, 9999 * 512, 9);
}

/* A call looks at some of the tables that are not there; the extents meet, and those above merge.
 */
static int act_map_absent(struct node *node)
{
    uint64_t at = 5, end = 9999 * 2 * MIB;
    struct block_status status;
    struct extent e;

    while (at < end) {
        assert_int_equal(node->driver->map(node, at, node->size - at, &e), 0);
        assert_int_equal(e.kind, EXTENT_ABSENT);
        assert_in_range(e.length, 1, min_u64(256 * 2 * MIB, end - at));
        at += e.length;
    }
    assert_int_equal(block_get_status(node, 5, node->size - 5, &status), 0);
    assert_int_equal(status.length, end - 5);
    return 0;
}

static void looks_at_some_tables(void **state)
{
    play(3, 0, plan_many_tables, act_map_absent);
}

struct timed_read {
    struct reactor_timer timer;
    struct node *node;
    int result;
    struct coroutine *waiter;
};

static void on_timer(struct reactor_timer *timer)
{
    struct timed_read *t = container_of(timer, struct timed_read, timer);
    uint8_t byte;

    assert_null(coroutine_self());
    t->result = block_read_nowait(t->node, &byte, 1, 10 * 4096);
    coroutine_wake(t->waiter);
}

/* Reads on the loop's own stack. */
static int nowait_result(struct node *node)
{
    struct timed_read t = {.node = node, .waiter = coroutine_self()};

    reactor_timer_start(&t.timer, 0, on_timer);
    coroutine_suspend();
    return t.result;
}

static int act_nowait(struct node *node)
{
    uint8_t byte;

    assert_int_equal(nowait_result(node), -EAGAIN);
    assert_int_equal(block_read(node, &byte, 1, 10 * 4096), 0);
    assert_int_equal(nowait_result(node), 0);
    return 0;
}

static void does_not_wait_on_the_loop(void **state)
{
    play(3, 0, plan_two_tables, act_nowait);
    play(3, NODE_WRITABLE, plan_two_tables, act_nowait);
}

static void plan_reserved(struct qcow2_image *image)
{
    for (unsigned i = 0; i < 4; i++)
        qcow2_image_set(image, 8 + i, qcow2_image_add(image, 1) | 1);
}

/* Zero clusters with storage keep it when data is written, and when they are zeroed again. */
static int act_reserved(struct node *node)
{
    uint64_t size = node->file->size;
    struct extent e;
    uint8_t data[4096];

    memset(data, 0x5a, sizeof(data));
    map_one(node, 8, &e);
    assert_int_equal(e.kind, EXTENT_ZERO);
    assert_int_equal(e.flags, EXTENT_RESERVED);
    assert_int_equal(block_write(node, data, 700, 9 * 4096 + 1000, 0), 0);
    map_one(node, 9, &e);
    assert_int_equal(e.kind, EXTENT_DATA);
    assert_int_equal(e.flags, EXTENT_WRITABLE);
    assert_int_equal(block_read(node, data, 4096, 9 * 4096), 0);
    assert_true(bytes_are_zero(data, 1000));
    assert_true(bytes_are_zero(data + 1700, 4096 - 1700));
    assert_int_equal(data[1000], 0x5a);
    assert_int_equal(block_zero(node, 9 * 4096, 4096, 0), 0);
    map_one(node, 9, &e);
    assert_int_equal(e.kind, EXTENT_ZERO);
    assert_int_equal(e.flags, EXTENT_RESERVED);
    assert_int_equal(block_zero(node, 9 * 4096, 4096, ZERO_MAY_UNMAP), 0);
    map_one(node, 9, &e);
    assert_int_equal(e.flags, 0);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(node->file->size, size);
    return 0;
}

static void reuses_reserved_storage(void **state)
{
    play(3, NODE_WRITABLE | NODE_UNMAP, plan_reserved, act_reserved);
}

static void plan_full(struct qcow2_image *image)
{
    for (unsigned i = 0; i < 64; i++)
        qcow2_image_data(image, i, 7);
}

/* A discarded cluster is used again, but not before its entry is gone from the disk. */
static int act_reuse(struct node *node)
{
    uint8_t data[4096] = {1};
    struct extent old, e;

    map_one(node, 5, &old);
    assert_int_equal(block_discard(node, 5 * 4096, 4096, 0), 0);
    assert_int_equal(block_write(node, data, 4096, 100 * 4096, 0), 0);
    map_one(node, 100, &e);
    assert_int_not_equal(e.child_offset, old.child_offset);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(block_write(node, data, 4096, 101 * 4096, 0), 0);
    map_one(node, 101, &e);
    assert_int_equal(e.child_offset, old.child_offset);
    return 0;
}

static void frees_only_what_is_durable(void **state)
{
    play(3, NODE_WRITABLE | NODE_UNMAP, plan_full, act_reuse);
}

static int act_punch(struct node *node)
{
    struct extent e;
    uint8_t *data;
    size_t length;

    map_one(node, 5, &e);
    assert_int_equal(block_discard(node, 5 * 4096, 3 * 4096, 0), 0);
    data = stage_content(&length);
    assert_int_equal(data[e.child_offset], 7); /* still there: nothing is durable */
    free(data);
    assert_int_equal(block_flush(node), 0);
    data = stage_content(&length);
    assert_true(bytes_are_zero(data + e.child_offset, 3 * 4096));
    assert_int_equal(data[e.child_offset + 3 * 4096], 7);
    free(data);
    return 0;
}

static void discards_reach_the_file(void **state)
{
    play(3, NODE_WRITABLE | NODE_UNMAP, plan_full, act_punch);
    play(2, NODE_WRITABLE | NODE_UNMAP, plan_full, act_punch);
}

static void plan_shared(struct qcow2_image *image)
{
    plan_full(image);
    qcow2_image_snapshot(image);
}

static int act_shared_discard(struct node *node)
{
    struct extent e;
    uint8_t *data;
    size_t length;

    map_one(node, 5, &e);
    assert_int_equal(e.flags, 0);
    assert_int_equal(block_discard(node, 0, 64 * 4096, BLOCK_FUA), 0);
    data = stage_content(&length);
    assert_int_equal(data[e.child_offset], 7);
    free(data);
    return 0;
}

static void keeps_what_snapshots_share(void **state)
{
    play(3, NODE_WRITABLE | NODE_UNMAP, plan_shared, act_shared_discard);
    play(2, NODE_WRITABLE | NODE_UNMAP, plan_shared, act_shared_discard);
}

static void plan_packed(struct qcow2_image *image)
{
    for (unsigned i = 0; i < 64; i++)
        qcow2_image_compressed(image, i, (uint8_t)i, true);
}

/* Many compressed clusters in one host cluster: it goes with the last of them. */
static int act_packed(struct node *node)
{
    uint8_t data[4096] = {0};

    for (unsigned i = 0; i < 63; i++) {
        assert_int_equal(block_write(node, data, 1 + i, i * 4096 + 5, 0), 0);
        if (i % 20 == 0)
            assert_int_equal(block_flush(node), 0);
        assert_int_equal(block_read(node, data, 4096, 63 * 4096), 0);
        for (unsigned k = 0; k < 4096; k++)
            assert_int_equal(data[k], 63);
        memset(data, 0, sizeof(data));
    }
    return block_zero(node, 63 * 4096, 4096, 0);
}

static void counts_packed_clusters(void **state)
{
    play(3, NODE_WRITABLE, plan_packed, act_packed);
    play(2, NODE_WRITABLE | NODE_UNMAP, plan_packed, act_packed);
}

static int act_idle(struct node *node)
{
    uint64_t generation = node->file->write_generation;
    uint8_t data[4096];

    assert_int_equal(block_flush(node), 0);
    assert_int_equal(block_read(node, data, sizeof(data), 4096), 0);
    assert_int_equal(block_write(node, data, sizeof(data), 4096, 0), 0); /* in place */
    assert_int_equal(node->file->write_generation, generation + 1);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(node->file->write_generation, generation + 1);
    return 0;
}

static void writes_no_metadata_in_place(void **state)
{
    play(3, NODE_WRITABLE, plan_full, act_idle);
}

/* Version 2 with a backing file cannot zero by its tables; without one it drops the entries. */
static int act_v2_zero(struct node *node)
{
    struct extent e;

    assert_int_equal(block_zero(node, 5 * 4096, 4096, ZERO_FAST), 0);
    map_one(node, 5, &e);
    assert_int_equal(e.kind, EXTENT_ABSENT);
    return 0;
}

static void version_2_drops_entries(void **state)
{
    play(2, NODE_WRITABLE, plan_full, act_v2_zero);
}

/* The header: opening changes nothing, the first write clears what it must, and no more. */
static int act_autoclear(void *arg)
{
    size_t length, wanted_length;
    uint8_t *wanted = stage_content(&wanted_length), *seen, byte = 1;
    struct node *node = stage_open(NODE_WRITABLE);

    assert_int_equal(block_read(node, &byte, 1, 5 * 4096), 0);
    assert_int_equal(block_flush(node), 0);
    seen = stage_content(&length);
    assert_int_equal(length, wanted_length);
    assert_memory_equal(seen, wanted, length);
    free(seen);
    /* A write in place, which needs no change of tables. */
    assert_int_equal(block_write(node, &byte, 1, 5 * 4096 + 9, 0), 0);
    seen = stage_content(&length);
    put_be64(wanted + 88, 0);
    assert_memory_equal(seen, wanted, 4096);
    free(seen);
    node_unref(node);
    free(wanted);
    return 0;
}

static void clears_autoclear_lazily(void **state)
{
    static const uint64_t bits[] = {UINT64_C(1) << 63, 2, UINT64_C(0xf0)};

    for (size_t i = 0; i < ARRAY_SIZE(bits); i++) {
        struct qcow2_image image = {
            .version = 3,
            .cluster_bits = 12,
            .order = 4,
            .size = MIB,
            .autoclear = bits[i],
            .compatible = UINT64_C(0xff00000000000001),
            .header_length = 128,
            .extensions = "\x12\x34\x56\x78\0\0\0\3abc\0\0\0\0",
            .extensions_length = 16,
        };

        sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
        qcow2_image_start(&image);
        plan_full(&image);
        qcow2_image_finish(&image);
        memset(image.data + 112, 0xaa, 16); /* header fields of a later time */
        stage_store(&image);
        assert_int_equal(test_run(act_autoclear, NULL), 0);
        stage_check(true);
        qcow2_image_fini(&image);
        sim_disk_remove();
    }
}

static int act_size(void *arg)
{
    struct node *node = stage_open(0);
    uint8_t data[1024];

    assert_int_equal(node->size, MIB - 512);
    assert_int_equal(block_read(node, data, 512, MIB - 1024), 0);
    assert_int_equal(block_read(node, data, 512, MIB - 512), -EINVAL);
    node_unref(node);
    return 0;
}

static void rounds_the_size_down(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = MIB - 1};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    assert_int_equal(test_run(act_size, NULL), 0);
    qcow2_image_fini(&image);
    sim_disk_remove();
}

/* A data cluster that the file ends in: what is missing reads as zeroes. */
static int act_cut(void *arg)
{
    struct node *node = stage_open(0);
    uint8_t data[4096];

    assert_int_equal(block_read(node, data, 4096, 10 * 4096), 0);
    assert_int_equal(data[99], 3);
    assert_true(bytes_are_zero(data + 100, 4096 - 100));
    assert_int_equal(block_read(node, data, 4096, 11 * 4096), 0);
    assert_true(bytes_are_zero(data, 4096));
    node_unref(node);
    return 0;
}

static void data_past_the_end_reads_zero(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = MIB};
    uint64_t at;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    at = qcow2_image_set(&image, 10, 0);
    qcow2_image_finish(&image);
    put_be64(image.data + at, image.length);
    put_be64(image.data + at + 8, image.length + (UINT64_C(1) << 40));
    qcow2_image_add(&image, 1);
    memset(image.data + image.length - 4096, 3, 4096);
    image.length -= 4096 - 100;
    stage_store(&image);
    assert_int_equal(test_run(act_cut, NULL), 0);
    qcow2_image_fini(&image);
    sim_disk_remove();
}

static void knows_itself(void **state)
{
    static const struct {
        uint8_t bytes[8];
        size_t length;
        bool match;
    } cases[] = {
        {{'Q', 'F', 'I', 0xfb, 0, 0, 0, 2}, 8, true},
        {{'Q', 'F', 'I', 0xfb, 0, 0, 0, 3}, 8, true},
        {{'Q', 'F', 'I', 0xfb, 0, 0, 0, 4}, 8, true},  /* refused, but not taken for raw */
        {{'Q', 'F', 'I', 0xfb, 0, 0, 0, 1}, 8, false}, /* another format */
        {{'Q', 'F', 'I', 0xfb, 0, 0, 0, 2}, 7, false},
        {{'Q', 'F', 'I', 0xfa, 0, 0, 0, 2}, 8, false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct probe probe = {cases[i].bytes, cases[i].length, cases[i].length};

        assert_ptr_equal(driver_probe(block_drivers, &probe),
                         cases[i].match ? &driver_qcow2 : NULL);
    }
}

static int act_backed(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    unsigned version = *(unsigned *)arg;
    uint8_t data[3 * 4096];
    struct extent e;

    assert_non_null(node->backing);
    assert_int_equal(block_read(node, data, sizeof(data), 0), 0);
    assert_int_equal(data[0], 'b');
    assert_int_equal(data[5000], 0); /* the backing file ends there */
    /* Zeroed where there is no table yet; zeroes of version 2 are data. */
    assert_int_equal(block_zero(node, 0, 4096, 0), 0);
    map_one(node, 0, &e);
    assert_int_equal(e.kind, version == 3 ? EXTENT_ZERO : EXTENT_DATA);
    assert_int_equal(block_write(node, data, 4096, 0, 0), 0);
    /* The rest of a cluster comes from below. */
    assert_int_equal(block_write(node, "x", 1, 100, 0), 0);
    assert_int_equal(block_read(node, data, 4096, 0), 0);
    assert_int_equal(data[99], 'b');
    assert_int_equal(data[100], 'x');
    assert_int_equal(data[101], 'b');
    /* Nothing shows through what was zeroed, also where there was no table. */
    assert_int_equal(block_zero(node, 0, 2 * 4096, version == 3 ? ZERO_FAST : 0), 0);
    assert_int_equal(block_read(node, data, sizeof(data), 0), 0);
    assert_true(bytes_are_zero(data, sizeof(data)));
    if (version == 2)
        assert_int_equal(node->driver->zero(node, 4096, 4096, 0), -ENOTSUP);
    /* A discarded cluster shows what it held, or zeroes. */
    assert_int_equal(block_write(node, "y", 1, 10, 0), 0);
    assert_int_equal(block_discard(node, 0, 4096, 0), 0);
    map_one(node, 0, &e);
    assert_int_equal(e.kind, version == 3 ? EXTENT_ZERO : EXTENT_DATA);
    node_unref(node);
    return 0;
}

static void reads_through_to_backing(void **state)
{
    for (unsigned version = 2; version <= 3; version++) {
        struct qcow2_image image = {
            .version = version,
            .cluster_bits = 12,
            .order = 4,
            .size = MIB,
            .backing = "base.raw",
            .backing_format = "raw",
        };
        uint8_t base[5000];

        memset(base, 'b', sizeof(base));
        sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
        sim_disk_create("/sim/base.raw", base, sizeof(base));
        qcow2_image_start(&image);
        qcow2_image_finish(&image);
        stage_store(&image);
        assert_int_equal(test_run(act_backed, &version), 0);
        stage_check(true);
        qcow2_image_fini(&image);
        sim_disk_remove();
    }
}

static void plan_one(struct qcow2_image *image)
{
    qcow2_image_data(image, 3, 7);
}

static bool want_reuse;

static int act_resolve(struct node *node)
{
    struct block_extent piece;
    int err = block_resolve(node, 3 * 4096 + 10, 4096, &piece);

    assert_int_equal(err, want_reuse ? -ENOENT : 0);
    if (err == 0)
        assert_int_equal(piece.length, 4096 - 10);
    assert_int_equal(block_resolve(node, 0, 4096, &piece), -ENOENT); /* no storage at all */
    return 0;
}

static void plan_one_shared(struct qcow2_image *image)
{
    plan_one(image);
    qcow2_image_snapshot(image);
}

/*
 * What is sent from the file may be taken by the client long afterwards: storage that zeroing or
 * discarding can give to other data meanwhile must not be sent so.
 */
static void resolves_what_stays(void **state)
{
    static const struct {
        unsigned version, flags;
        bool reuses;
    } rows[] = {
        {3, 0, false}, {3, NODE_WRITABLE, false}, {3, NODE_WRITABLE | NODE_UNMAP, true},
        {2, 0, false}, {2, NODE_WRITABLE, true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        want_reuse = rows[i].reuses;
        play(rows[i].version, rows[i].flags, plan_one, act_resolve);
    }
    /* Storage that a write would leave for another may be given back, if the image is broken. */
    want_reuse = true;
    play(3, NODE_WRITABLE, plan_one_shared, act_resolve);
    want_reuse = false;
    play(3, 0, plan_one_shared, act_resolve);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(resolves_what_stays),          cmocka_unit_test(maps_and_merges),
        cmocka_unit_test(does_not_wait_on_the_loop),    cmocka_unit_test(reuses_reserved_storage),
        cmocka_unit_test(frees_only_what_is_durable),   cmocka_unit_test(discards_reach_the_file),
        cmocka_unit_test(keeps_what_snapshots_share),   cmocka_unit_test(counts_packed_clusters),
        cmocka_unit_test(writes_no_metadata_in_place),  cmocka_unit_test(version_2_drops_entries),
        cmocka_unit_test(clears_autoclear_lazily),      cmocka_unit_test(rounds_the_size_down),
        cmocka_unit_test(data_past_the_end_reads_zero), cmocka_unit_test(knows_itself),
        cmocka_unit_test(reads_through_to_backing),     cmocka_unit_test(looks_at_some_tables),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
