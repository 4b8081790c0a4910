/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Broken and hostile qcow2 images: refused at open by name, or an error for the range that is
 * broken; a write that would do harm marks the image corrupt and changes nothing else.
 */
#include "base/checked.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTER 4096
#define DATA_AT 5    /* guest cluster that is spoiled */
#define OTHER_AT 800 /* another one, below another L2 table */

/* Where things are in the image that all tests start from. */
struct place {
    uint64_t l1, l2_entry, l2_table, other_table, data, reftable, refblock, snapshot_table,
        snapshot_l1, end;
};

static struct place build(struct qcow2_image *image, unsigned version)
{
    struct place p = {0};

    *image =
        (struct qcow2_image){.version = version, .cluster_bits = 12, .order = 4, .size = 4 * MIB};
    qcow2_image_start(image);
    qcow2_image_data(image, 700, 0x70);
    qcow2_image_snapshot(image);
    put_be64(image->data + image->l1_offset + 8, 0); /* what follows is not shared */
    p.data = qcow2_image_data(image, DATA_AT, 0x55);
    p.l2_entry = qcow2_image_set(image, DATA_AT, p.data);
    p.l2_table = align_down(p.l2_entry, CLUSTER);
    qcow2_image_data(image, OTHER_AT, 0x66);
    p.l1 = image->l1_offset;
    qcow2_image_finish(image);
    p.other_table = get_be64(image->data + p.l1 + 8) & UINT64_C(0xfffffffffffe00);
    p.reftable = get_be64(image->data + 48);
    p.refblock = get_be64(image->data + p.reftable);
    p.snapshot_table = get_be64(image->data + 64);
    p.snapshot_l1 = image->snapshot_l1[0];
    p.end = image->length;
    return p;
}

static void begin(void)
{
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
}

static void end(struct qcow2_image *image)
{
    qcow2_image_fini(image);
    assert_int_equal(sim_disk_open_count(), 0);
    sim_disk_remove();
}

/* What is on the disk differs from `image` only in [from, from + length). */
static void assert_unchanged_but(const struct qcow2_image *image, size_t from, size_t length)
{
    size_t now;
    uint8_t *data = stage_content(&now);

    assert_int_equal(now, image->length);
    memcpy(data + from, image->data + from, length);
    assert_memory_equal(data, image->data, now);
    free(data);
}

static bool marked_corrupt(void)
{
    size_t length;
    uint8_t *data = stage_content(&length);
    bool corrupt = data[79] & 2;

    free(data);
    return corrupt;
}

/* One broken thing: how each request on the range ends. */
struct expect {
    unsigned version;
    int read;     /* 0 or -EIO */
    bool on_read; /* reading is enough to mark it corrupt; else writing does */
};

static int play_broken(void *arg)
{
    const struct expect *expect = arg;
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    uint8_t data[CLUSTER];

    assert_int_equal(block_read(node, data, CLUSTER, DATA_AT * CLUSTER), expect->read);
    assert_int_equal(marked_corrupt(), expect->on_read && expect->version >= 3);
    memset(data, 0x11, sizeof(data));
    assert_int_equal(block_write(node, data, 512, DATA_AT * CLUSTER + 512, 0), -EIO);
    assert_int_equal(marked_corrupt(), expect->version >= 3);
    /* The rest can still be read; once it is known to be broken, nothing is written any more. */
    assert_int_equal(block_read(node, data, CLUSTER, OTHER_AT * CLUSTER), 0);
    assert_int_equal(data[0], 0x66);
    assert_int_equal(block_write(node, data, 1, (OTHER_AT + 1) * CLUSTER, 0), -EIO);
    assert_int_equal(block_zero(node, OTHER_AT * CLUSTER, CLUSTER, ZERO_MAY_UNMAP), -EIO);
    assert_int_equal(block_flush(node), 0);
    node_unref(node);
    return 0;
}

/* Spoils 8 bytes of the image, in each version. */
static void try_broken(uint64_t (*at)(const struct place *),
                       uint64_t (*value)(const struct place *), int read, bool on_read)
{
    for (unsigned version = 2; version <= 3; version++) {
        struct expect expect = {version, read, on_read};
        struct qcow2_image image;
        struct place p = build(&image, version);

        begin();
        put_be64(image.data + at(&p), value(&p));
        stage_store(&image);
        assert_int_equal(test_run(play_broken, &expect), 0);
        assert_unchanged_but(&image, 72, version >= 3 ? 8 : 0);
        end(&image);
    }
}

#define PLACE(name, expression)                                                                    \
    static uint64_t name(const struct place *p)                                                    \
    {                                                                                              \
        (void)p;                                                                                   \
        return expression;                                                                         \
    }

#define COPIED (UINT64_C(1) << 63)
PLACE(at_l1, p->l1)
PLACE(at_l2, p->l2_entry)
PLACE(reserved_low, (p->data | COPIED | 2))
PLACE(reserved_high, (p->data | COPIED | UINT64_C(1) << 60))
PLACE(unaligned, (p->data + 512))
PLACE(copied_nothing, COPIED)
PLACE(to_header, 0x1 << 8)
PLACE(to_l1, p->l1 | COPIED)
PLACE(to_l2, p->l2_table | COPIED)
PLACE(to_other_table, p->other_table | COPIED)
PLACE(to_reftable, p->reftable | COPIED)
PLACE(to_refblock, p->refblock | COPIED)
PLACE(to_snapshot_table, p->snapshot_table | COPIED)
PLACE(to_snapshot_l1, p->snapshot_l1 | COPIED)
PLACE(to_l1_shared, p->l1)
PLACE(compressed_in_l1, UINT64_C(1) << 62 | p->l1)
PLACE(table_unaligned, p->l2_table + 512)
PLACE(table_reserved, p->l2_table | UINT64_C(1) << 57)
PLACE(table_past_end, p->end | COPIED)
PLACE(table_far_past_end, UINT64_C(0xfffffffffff000))
PLACE(block_unaligned, p->refblock + 512)
PLACE(block_past_end, p->end)
PLACE(no_block, 0)

static void broken_l2_entries(void **state)
{
    try_broken(at_l2, reserved_low, -EIO, true);
    try_broken(at_l2, reserved_high, -EIO, true);
    try_broken(at_l2, unaligned, -EIO, true);
    try_broken(at_l2, copied_nothing, -EIO, true);
    try_broken(at_l2, to_header, -EIO, true);
}

/* Reading metadata as data does no harm; writing it would. */
static void data_that_is_metadata(void **state)
{
    try_broken(at_l2, to_l1, 0, false);
    try_broken(at_l2, to_l1_shared, 0, false);
    try_broken(at_l2, to_l2, 0, false);
    try_broken(at_l2, to_other_table, 0, false);
    try_broken(at_l2, to_reftable, 0, false);
    try_broken(at_l2, to_refblock, 0, false);
    try_broken(at_l2, to_snapshot_table, 0, false);
    try_broken(at_l2, to_snapshot_l1, 0, false);
    try_broken(at_l2, compressed_in_l1, -EIO, false);
}

static void broken_l1_entries(void **state)
{
    try_broken(at_l1, table_unaligned, -EIO, true);
    try_broken(at_l1, table_reserved, -EIO, true);
    try_broken(at_l1, copied_nothing, -EIO, true);
}

static int play_zero(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);

    assert_int_equal(block_discard(node, (DATA_AT - 1) * CLUSTER, 4 * CLUSTER, 0), -EIO);
    assert_true(marked_corrupt());
    node_unref(node);
    return 0;
}

/* Nothing that is metadata is given back. */
static void zeroing_finds_them_too(void **state)
{
    uint64_t (*const values[])(const struct place *) = {to_l1, to_refblock, reserved_low,
                                                        compressed_in_l1};

    for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
        struct qcow2_image image;
        struct place p = build(&image, 3);

        begin();
        put_be64(image.data + p.l2_entry, values[i](&p));
        stage_store(&image);
        assert_int_equal(test_run(play_zero, NULL), 0);
        assert_unchanged_but(&image, 72, 8);
        end(&image);
    }
}

static int play_table(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    uint8_t byte = 1;

    assert_int_equal(block_write(node, &byte, 1, DATA_AT * CLUSTER, 0), -EIO);
    assert_int_equal(block_write(node, &byte, 1, (DATA_AT + 1) * CLUSTER, 0), -EIO);
    assert_int_equal(block_zero(node, DATA_AT * CLUSTER, 8 * CLUSTER, 0), -EIO);
    node_unref(node);
    return 0;
}

/* An L2 table that is other metadata, or beyond the end, is never written. */
static void l2_tables_that_are_metadata(void **state)
{
    uint64_t (*const values[])(const struct place *) = {
        to_l1,          to_other_table, to_reftable,
        to_refblock,    to_refblock,    to_snapshot_table,
        to_snapshot_l1, table_past_end, table_far_past_end,
    };

    for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
        struct qcow2_image image;
        struct place p = build(&image, 3);

        begin();
        put_be64(image.data + p.l1, values[i](&p));
        stage_store(&image);
        assert_int_equal(test_run(play_table, NULL), 0);
        assert_true(marked_corrupt());
        assert_unchanged_but(&image, 72, 8);
        end(&image);
    }
}

static int play_allocation(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    uint8_t byte = 1;

    assert_int_equal(block_write(node, &byte, 1, (DATA_AT + 1) * CLUSTER, 0), -EIO);
    assert_int_equal(block_write(node, &byte, 1, (DATA_AT + 1) * CLUSTER, 0), -EIO);
    assert_int_equal(block_flush(node), 0);
    node_unref(node);
    return 0;
}

/* The refcount of metadata is 0: a new cluster would overwrite it. */
static void free_clusters_that_are_metadata(void **state)
{
    uint64_t (*const victims[])(const struct place *) = {
        to_l1, to_l2, to_other_table, to_reftable, to_refblock, to_snapshot_table, to_snapshot_l1,
    };

    for (size_t i = 0; i < ARRAY_SIZE(victims); i++) {
        struct qcow2_image image;
        struct place p = build(&image, 3);

        begin();
        put_be16(image.data + p.refblock + (victims[i](&p) & ~COPIED) / CLUSTER * 2, 0);
        stage_store(&image);
        assert_int_equal(test_run(play_allocation, NULL), 0);
        assert_true(marked_corrupt());
        assert_unchanged_but(&image, 72, 8);
        end(&image);
    }
}

static void broken_refcount_table(void **state)
{
    uint64_t (*const values[])(const struct place *) = {
        block_unaligned, block_past_end, no_block, to_l1_shared, reserved_low,
    };

    for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
        struct qcow2_image image;
        struct place p = build(&image, 3);

        begin();
        put_be64(image.data + p.reftable, values[i](&p));
        stage_store(&image);
        assert_int_equal(test_run(play_allocation, NULL), 0);
        assert_true(marked_corrupt());
        assert_unchanged_but(&image, 72, 8);
        end(&image);
    }
}

static int play_underflow(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    uint8_t byte = 1;

    assert_int_equal(block_discard(node, DATA_AT * CLUSTER, CLUSTER, 0), 0);
    assert_int_equal(block_flush(node), -EIO);
    assert_true(marked_corrupt());
    assert_int_equal(block_write(node, &byte, 1, OTHER_AT * CLUSTER, 0), -EIO);
    assert_int_equal(block_flush(node), 0);
    node_unref(node);
    return 0;
}

/* The active L1 table says that its L2 table is shared; nobody counts any reference. */
static void tables_without_refcount(void **state)
{
    struct qcow2_image image;
    struct place p = build(&image, 3);

    begin();
    put_be64(image.data + p.l1, p.l2_table);
    put_be16(image.data + p.refblock + p.l2_table / CLUSTER * 2, 0);
    stage_store(&image);
    assert_int_equal(test_run(play_zero, NULL), 0);
    assert_unchanged_but(&image, 72, 8);
    end(&image);
}

static void refcounts_never_wrap(void **state)
{
    struct qcow2_image image;
    struct place p = build(&image, 3);

    begin();
    put_be16(image.data + p.refblock + p.data / CLUSTER * 2, 0);
    stage_store(&image);
    assert_int_equal(test_run(play_underflow, NULL), 0);
    end(&image);
}

static int play_read_error(void *arg)
{
    struct node *node = stage_open(0);
    uint8_t data[CLUSTER];

    assert_int_equal(block_read(node, data, CLUSTER, DATA_AT * CLUSTER), -EIO);
    assert_int_equal(block_read(node, data, CLUSTER, OTHER_AT * CLUSTER), 0);
    node_unref(node);
    return 0;
}

static void broken_compressed_clusters(void **state)
{
    const uint64_t compressed = UINT64_C(1) << 62;
    const unsigned sectors = 62 - (12 - 8); /* bit of the first digit of their number */

    for (unsigned i = 0; i < 5; i++) {
        struct qcow2_image image;
        struct place p = build(&image, 3);
        uint64_t stream = image.length, value;

        begin();
        qcow2_image_add(&image, 1);
        qcow2_image_deflate(image.data + stream, i == 0 ? CLUSTER - 1 : CLUSTER, 0x42);
        value = compressed | stream;
        if (i == 1)
            image.data[stream] = 0x07; /* a block type that does not exist */
        else if (i == 2)
            value = compressed | UINT64_C(0xf) << sectors | (image.length + CLUSTER);
        else if (i == 3)
            value = compressed | UINT64_C(0x3fffffffffff000);
        else if (i == 4)
            value = compressed | UINT64_C(0xf) << sectors | (image.length - 2);
        put_be64(image.data + p.l2_entry, value);
        stage_store(&image);
        assert_int_equal(test_run(play_read_error, NULL), 0);
        assert_unchanged_but(&image, 0, 0);
        end(&image);
    }
}

struct refusal {
    unsigned flags;
    int err;
    const char *text;
};

static int play_refusal(void *arg)
{
    const struct refusal *r = arg;
    struct error error = {.text = ""};
    struct node *node;
    int err = stage_try_open(r->flags, &node, &error);

    if (err == 0)
        node_unref(node);
    if (err != r->err || !strstr(error.text, r->text))
        test_die("%d, \"%s\"; wanted %d, \"%s\"", err, error.text, r->err, r->text);
    return 0;
}

static void try_refusal(struct qcow2_image *image, unsigned flags, int err, const char *text)
{
    struct refusal r = {flags, err, text};

    begin();
    stage_store(image);
    assert_int_equal(test_run(play_refusal, &r), 0);
    assert_unchanged_but(image, 0, 0);
    sim_disk_remove();
}

static void refuses_states_for_writing(void **state)
{
    struct qcow2_image image;

    build(&image, 3);
    put_be64(image.data + 72, 1); /* dirty: would be repaired by the other way of opening */
    try_refusal(&image, 0, 0, "");
    put_be64(image.data + 72, 3);
    try_refusal(&image, 0, 0, "");
    try_refusal(&image, NODE_WRITABLE, -EROFS, "marked corrupt");
    qcow2_image_fini(&image);
}

static void refuses_overlapping_bitmaps(void **state)
{
    struct qcow2_image image;
    struct place p = build(&image, 3);
    uint8_t *ext = image.data + 112;

    put_be64(image.data + 88, 1);
    put_be32(ext, 0x23852875);
    put_be32(ext + 4, 24);
    put_be32(ext + 8, 1);
    put_be64(ext + 16, 64);
    put_be64(ext + 24, p.data);
    memset(image.data + p.data, 0, 64); /* an entry of an unknown type */
    try_refusal(&image, NODE_WRITABLE, 0, "");
    put_be64(ext + 24, p.l1);
    try_refusal(&image, NODE_WRITABLE, -EINVAL, "bitmap directory at offset");
    put_be64(ext + 24, p.reftable);
    try_refusal(&image, NODE_WRITABLE, -EINVAL, "bitmap directory at offset");
    try_refusal(&image, 0, 0, "");
    qcow2_image_fini(&image);
}

static void refuses_overlapping_tables(void **state)
{
    struct qcow2_image image;
    struct place p = build(&image, 3);

    put_be64(image.data + 40, p.reftable);
    try_refusal(&image, NODE_WRITABLE, -EINVAL, "overlaps the refcount table");
    try_refusal(&image, 0, 0, "");
    put_be64(image.data + 40, p.snapshot_table);
    try_refusal(&image, NODE_WRITABLE, -EINVAL, "L1 table overlaps a snapshot's tables");
    put_be64(image.data + 40, p.l1);
    put_be64(image.data + 48, p.snapshot_l1);
    try_refusal(&image, NODE_WRITABLE, -EINVAL, "refcount table overlaps");
    qcow2_image_fini(&image);
}

static void refuses_broken_snapshot_tables(void **state)
{
    struct qcow2_image image;
    struct place p = build(&image, 3);

    put_be32(image.data + 60, 2); /* one more than there are */
    put_be32(image.data + p.snapshot_table + 64 + 36, 1025);
    try_refusal(&image, 0, -EINVAL, "snapshot 1 has 1025 bytes of extra data");
    put_be32(image.data + p.snapshot_table + 64 + 36, 0);
    put_be64(image.data + p.snapshot_table + 64, 12345);
    try_refusal(&image, NODE_WRITABLE, -EINVAL, "snapshot 1 is at offset 12345");
    put_be32(image.data + 60, 65536);
    put_be64(image.data + p.snapshot_table + 64, 0);
    try_refusal(&image, 0, -EINVAL, "beyond the end of the file");
    put_be32(image.data + 60, 1);
    put_be64(image.data + 64, image.length - CLUSTER);
    put_be32(image.data + image.length - CLUSTER + 36, 1024);
    put_be16(image.data + image.length - CLUSTER + 14, 65535);
    try_refusal(&image, 0, -EINVAL, "the snapshot table ends within snapshot 0");
    qcow2_image_fini(&image);
}

/* More of the header is judged in test_qcow2_disk.c; here, that open asks there and says where. */
static void names_the_file(void **state)
{
    struct qcow2_image image;

    build(&image, 3);
    put_be32(image.data + 20, 8);
    try_refusal(&image, 0, -EINVAL, "'/sim/disk.qcow2': the qcow2 header's cluster_bits is 8");
    qcow2_image_fini(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_l2_entries),
        cmocka_unit_test(data_that_is_metadata),
        cmocka_unit_test(broken_l1_entries),
        cmocka_unit_test(zeroing_finds_them_too),
        cmocka_unit_test(l2_tables_that_are_metadata),
        cmocka_unit_test(free_clusters_that_are_metadata),
        cmocka_unit_test(broken_refcount_table),
        cmocka_unit_test(tables_without_refcount),
        cmocka_unit_test(refcounts_never_wrap),
        cmocka_unit_test(broken_compressed_clusters),
        cmocka_unit_test(refuses_states_for_writing),
        cmocka_unit_test(refuses_overlapping_tables),
        cmocka_unit_test(refuses_overlapping_bitmaps),
        cmocka_unit_test(refuses_broken_snapshot_tables),
        cmocka_unit_test(names_the_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
