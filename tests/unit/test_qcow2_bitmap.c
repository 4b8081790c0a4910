/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty bitmaps of qcow2 on the simulated disk: what is recorded, against a model; what changes
 * of bitmaps do; what the file says meanwhile.  After each a checker of its own finds refcounts
 * equal to references.
 */
#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SECTOR 512
#define IN_USE 1u

static uint8_t *last_content;

static void make_image(struct qcow2_image *image)
{
    image->version = image->version ? image->version : 3;
    qcow2_image_start(image);
    qcow2_image_data(image, 0, 0x11);
    qcow2_image_finish(image);
    stage_store(image);
    qcow2_image_fini(image);
}

static void begin(unsigned cluster_bits, uint64_t size)
{
    struct qcow2_image image = {.cluster_bits = cluster_bits, .order = 4, .size = size};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    make_image(&image);
}

static void end(void)
{
    free(last_content);
    last_content = NULL;
    assert_int_equal(sim_disk_open_count(), 0);
    sim_disk_remove();
}

static void in_coroutine(int (*run)(void *))
{
    assert_int_equal(test_run(run, NULL), 0);
}

static void good(int err, const struct error *error)
{
    if (err < 0)
        test_die("%s", error->text);
}

static struct block_bitmap *add(struct node *node, const char *name, uint64_t granularity,
                                bool enabled)
{
    struct error error = {.text = ""};
    struct block_bitmap *bitmap;

    good(block_bitmap_add(node, name, granularity, enabled, &error), &error);
    bitmap = block_bitmap_get_named(node, name);
    assert_non_null(bitmap);
    assert_null(bitmap->unusable);
    return bitmap;
}

static struct block_bitmap *find(struct node *node, const char *name)
{
    struct error error = {.text = ""};
    struct block_bitmap *bitmap = NULL;

    good(block_bitmap_find(node, name, &bitmap, &error), &error);
    return bitmap;
}

/* "offset+length offset+length", in granules. */
static void check_dirty(struct block_bitmap *bitmap, const char *wanted)
{
    char text[512] = "";
    struct block_bitmap_extent extent;
    uint64_t start = 0, length = 0;

    for (uint64_t at = 0; at <= bitmap->size; at += extent.length) {
        extent = (struct block_bitmap_extent){.length = 1};
        if (at < bitmap->size)
            assert_int_equal(block_bitmap_next(bitmap, at, bitmap->size - at, &extent), 0);
        if (extent.dirty && length == 0)
            start = at;
        if (extent.dirty)
            length += extent.length;
        if (!extent.dirty && length > 0) {
            size_t used = strlen(text);

            snprintf(text + used, sizeof(text) - used, "%s%lu+%lu", used ? " " : "",
                     start / bitmap->granularity, div_round_up(length, bitmap->granularity));
            length = 0;
        }
    }
    if (strcmp(text, wanted) != 0)
        test_die("bitmap %s: '%s' instead of '%s'", bitmap->name, text, wanted);
}

static void write_at(struct node *node, uint64_t offset, uint64_t length)
{
    uint8_t *data = malloc(length);

    memset(data, 0x77, length);
    assert_int_equal(block_write(node, data, length, offset, 0), 0);
    free(data);
}

/* The flags of directory entry `index`, as they are in the file. */
static uint32_t flags_in_file(unsigned index)
{
    size_t length;
    const uint8_t *ext, *entry;

    free(last_content);
    last_content = stage_content(&length);
    ext = last_content + 112;
    while (get_be32(ext) != 0x23852875)
        ext += 8 + align_up(get_be32(ext + 4), 8);
    entry = last_content + get_be64(ext + 24);
    while (index-- > 0)
        entry += align_up(24 + get_be32(entry + 20) + get_be16(entry + 18), 8);
    return get_be32(entry + 12);
}

static int run_life(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    struct block_bitmap *one = add(node, "one", 0, true), *two = add(node, "two", 512, false);

    assert_int_equal(one->granularity, 4096);
    assert_int_equal(flags_in_file(0), 3);
    assert_int_equal(flags_in_file(1), 0);
    write_at(node, 10000, 5000);
    check_dirty(one, "2+2");
    check_dirty(two, "");
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(flags_in_file(0), 3);
    node_unref(node);
    assert_int_equal(flags_in_file(0), 2);
    stage_check(true);
    node = stage_open(0);
    one = find(node, "one");
    assert_true(one->enabled);
    check_dirty(one, "2+2");
    check_dirty(find(node, "two"), "");
    node_unref(node);
    return 0;
}

static void are_kept(void **state)
{
    begin(12, MIB);
    in_coroutine(run_life);
    end();
}

/* Reading changes nothing; opening for writing neither, until something changes. */
static int run_untouched(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    size_t length, now;
    uint8_t *before, *after, byte;

    add(node, "one", 0, true);
    write_at(node, 0, 5000);
    node_unref(node);
    before = stage_content(&length);
    for (unsigned i = 0; i < 2; i++) {
        node = stage_open(i ? NODE_WRITABLE : 0);
        check_dirty(find(node, "one"), "0+2");
        assert_int_equal(block_read(node, &byte, 1, 77), 0);
        assert_int_equal(block_flush(node), 0);
        node_unref(node);
        after = stage_content(&now);
        assert_int_equal(length, now);
        assert_memory_equal(before, after, length);
        free(after);
    }
    free(before);
    /* A write in place is a change, too. */
    node = stage_open(NODE_WRITABLE);
    assert_int_equal(flags_in_file(0), 2);
    write_at(node, 100, 1);
    assert_int_equal(flags_in_file(0), 3);
    node_unref(node);
    assert_int_equal(flags_in_file(0), 2);
    return 0;
}

static void are_not_touched_without_need(void **state)
{
    begin(12, MIB);
    in_coroutine(run_untouched);
    end();
}

static int run_changes(void *arg)
{
    struct error error = {.text = ""};
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    struct block_bitmap *one = add(node, "one", 4096, true), *two = add(node, "two", 65536, false);

    write_at(node, 4096 * 20, 8192);
    assert_int_equal(block_zero(node, 4096 * 40, 4096 * 2, 0), 0);
    assert_int_equal(block_discard(node, 4096 * 20, 4096, 0), 0);
    check_dirty(one, "20+2 40+2");
    good(block_bitmap_merge(one, two, &error), &error);
    check_dirty(two, "1+2");
    good(block_bitmap_set_enabled(one, false, &error), &error);
    good(block_bitmap_set_enabled(two, true, &error), &error);
    assert_int_equal(flags_in_file(0), 0);
    assert_int_equal(flags_in_file(1), 3);
    write_at(node, 65536 * 7, 1);
    check_dirty(one, "20+2 40+2");
    check_dirty(two, "1+2 7+1");
    good(block_bitmap_clear(one, &error), &error);
    check_dirty(one, "");
    good(block_bitmap_merge(two, one, &error), &error);
    check_dirty(one, "16+32 112+16");
    good(block_bitmap_clear(two, &error), &error);
    check_dirty(two, "");
    write_at(node, 65536 * 3, 1);
    node_unref(node);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    check_dirty(find(node, "one"), "16+32 112+16");
    check_dirty(find(node, "two"), "3+1");
    good(block_bitmap_remove(find(node, "one"), &error), &error);
    assert_null(block_bitmap_get_named(node, "one"));
    check_dirty(find(node, "two"), "3+1");
    node_unref(node);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    good(block_bitmap_remove(find(node, "two"), &error), &error);
    assert_null(block_bitmap_get(node, 0));
    write_at(node, 0, 1);
    node_unref(node);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    assert_null(block_bitmap_get(node, 0));
    add(node, "again", 0, true);
    node_unref(node);
    stage_check(true);
    return 0;
}

static void can_be_changed(void **state)
{
    begin(12, MIB);
    in_coroutine(run_changes);
    end();
}

/* The refusal and its text. */
static void refused(int got, int wanted, const struct error *error, const char *text)
{
    if (got != wanted || !strstr(error->text, text))
        test_die("%d, \"%s\"; wanted %d, \"%s\"", got, error->text, wanted, text);
}

static int run_refusals(void *arg)
{
    struct error e;
    struct node *node = stage_open(NODE_WRITABLE);
    char name[1025];

    memset(name, 'n', 1024);
    name[1024] = '\0';
    refused(block_bitmap_add(node, name, 0, true, &e), -EINVAL, &e, "1 to 1023 bytes, not 1024");
    refused(block_bitmap_add(node, "", 0, true, &e), -EINVAL, &e, "1 to 1023 bytes, not 0");
    refused(block_bitmap_add(node, "\xff", 0, true, &e), -EINVAL, &e, "UTF-8");
    refused(block_bitmap_add(node, "x", 256, true, &e), -EINVAL, &e, "power of two");
    refused(block_bitmap_add(node, "x", 1000, true, &e), -EINVAL, &e, "power of two");
    refused(block_bitmap_add(node, "x", 4 * GIB, true, &e), -EINVAL, &e, "not 4294967296");
    assert_null(block_bitmap_get(node, 0));
    name[1023] = '\0';
    add(node, name, 2 * GIB, true);
    add(node, "x", 512, true);
    refused(block_bitmap_add(node, "x", 0, true, &e), -EEXIST, &e, "'x' exists already");
    node_unref(node);
    stage_check(true);
    node = stage_open(0);
    refused(block_bitmap_add(node, "y", 0, true, &e), -EROFS, &e, "not open for writing");
    refused(block_bitmap_clear(find(node, "x"), &e), -EROFS, &e, "not open for writing");
    refused(block_bitmap_remove(find(node, name), &e), -EROFS, &e, "not open for writing");
    refused(block_bitmap_set_enabled(find(node, "x"), false, &e), -EROFS, &e, "not open");
    refused(block_bitmap_merge(find(node, name), find(node, "x"), &e), -EROFS, &e, "not open");
    node_unref(node);
    return 0;
}

static void refuse_what_cannot_be(void **state)
{
    begin(12, MIB);
    in_coroutine(run_refusals);
    end();
}

static int run_v2(void *arg)
{
    struct error e;
    struct node *node = stage_open(NODE_WRITABLE);

    refused(block_bitmap_add(node, "x", 0, true, &e), -ENOTSUP, &e, "version 2");
    node_unref(node);
    return 0;
}

static void need_version_3(void **state)
{
    struct qcow2_image image = {.version = 2, .cluster_bits = 12, .order = 4, .size = MIB};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    make_image(&image);
    in_coroutine(run_v2);
    end();
}

/* Nobody has saved it: whoever comes next sees that. */
static int run_inconsistent(void *arg)
{
    struct error e = {.text = ""};
    struct block_bitmap *bitmap;
    struct node *node = stage_open(NODE_WRITABLE);

    add(node, "one", 4096, true);
    add(node, "off", 4096, false);
    write_at(node, 0, 100);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(flags_in_file(0), 3);
    sim_disk_power_cut(1);
    node_unref(node);
    sim_disk_power_on();
    node = stage_open(NODE_WRITABLE);
    bitmap = block_bitmap_get_named(node, "one");
    assert_non_null(strstr(bitmap->unusable, "inconsistent"));
    refused(block_bitmap_find(node, "one", &bitmap, &e), -EINVAL, &e, "inconsistent");
    bitmap = block_bitmap_get_named(node, "one");
    refused(block_bitmap_clear(bitmap, &e), -EINVAL, &e, "inconsistent");
    refused(block_bitmap_set_enabled(bitmap, false, &e), -EINVAL, &e, "inconsistent");
    refused(block_bitmap_merge(bitmap, find(node, "off"), &e), -EINVAL, &e, "inconsistent");
    refused(block_bitmap_merge(find(node, "off"), bitmap, &e), -EINVAL, &e, "inconsistent");
    write_at(node, 0, 100);
    node_unref(node);
    assert_int_equal(flags_in_file(0), 3);
    node = stage_open(NODE_WRITABLE);
    good(block_bitmap_remove(block_bitmap_get_named(node, "one"), &e), &e);
    check_dirty(find(node, "off"), "");
    node_unref(node);
    stage_check(true);
    return 0;
}

static void are_inconsistent_after_a_crash(void **state)
{
    begin(12, MIB);
    in_coroutine(run_inconsistent);
    end();
}

/* All of it at once: no data is stored for what is dirty altogether. */
static int run_full(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    struct block_bitmap *one = add(node, "one", 512, true);
    size_t before, after;

    assert_int_equal(block_zero(node, 0, node->size, 0), 0);
    assert_int_equal(block_flush(node), 0);
    free(stage_content(&before));
    node_unref(node);
    free(stage_content(&after));
    /* Only the last cluster of the bitmap, which is not full. */
    assert_int_equal(after, align_up(before, 4096) + 4096);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    one = find(node, "one");
    check_dirty(one, "0+66000");
    write_at(node, 0, 4096);
    node_unref(node);
    stage_check(true);
    return 0;
}

static void may_be_dirty_all_over(void **state)
{
    begin(12, 66000 * SECTOR);
    in_coroutine(run_full);
    end();
}

/* Tables of several clusters, in an image with the smallest ones and 64-bit refcounts. */
static int run_small_clusters(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    struct block_bitmap *fine = add(node, "fine", 512, true),
                        *coarse = add(node, "coarse", 0, true);

    /* 4096 bits a cluster, 64 clusters a cluster of the table. */
    for (uint64_t i = 0; i < 40; i++)
        write_at(node, i * 3000 * SECTOR, SECTOR);
    check_dirty(coarse, "0+1 375+1 750+1 1125+1 1500+1 1875+1 2250+1 2625+1 3000+1 3375+1 3750+1 "
                        "4125+1 4500+1 4875+1 5250+1 5625+1 6000+1 6375+1 6750+1 7125+1 7500+1 "
                        "7875+1 8250+1 8625+1 9000+1 9375+1 9750+1 10125+1 10500+1 10875+1 11250+1 "
                        "11625+1 12000+1 12375+1 12750+1 13125+1 13500+1 13875+1 14250+1 14625+1");
    node_unref(node);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    fine = find(node, "fine");
    for (uint64_t i = 0; i < 40; i++) {
        struct block_bitmap_extent extent;

        assert_int_equal(block_bitmap_next(fine, i * 3000 * SECTOR, MIB, &extent), 0);
        assert_true(extent.dirty);
        assert_int_equal(extent.length, SECTOR);
    }
    node_unref(node);
    return 0;
}

static void have_tables_of_many_clusters(void **state)
{
    struct qcow2_image image = {.cluster_bits = 9, .order = 6, .size = 300 * MIB};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    make_image(&image);
    in_coroutine(run_small_clusters);
    end();
}

/* A name that is in the way, and extensions at every place of a sector. */
static int run_header(void *arg)
{
    const char *backing = arg;
    struct error error = {.text = ""};
    struct node *node = stage_open(NODE_WRITABLE);
    uint8_t byte;

    add(node, "one", 4096, true);
    write_at(node, 0, 1);
    add(node, "two", 4096, true);
    node_unref(node);
    stage_check(true);
    node = stage_open(NODE_WRITABLE);
    assert_true((node->backing != NULL) == (backing != NULL));
    assert_int_equal(block_read(node, &byte, 1, 70000), 0);
    assert_int_equal(byte, backing ? 0x99 : 0);
    check_dirty(find(node, "one"), "0+1");
    good(block_bitmap_remove(find(node, "one"), &error), &error);
    good(block_bitmap_remove(find(node, "two"), &error), &error);
    node_unref(node);
    stage_check(true);
    return 0;
}

static void are_named_by_the_header(void **state)
{
    static uint8_t data[MIB];

    memset(data, 0x99, sizeof(data));
    for (unsigned i = 0; i < 80; i++) {
        uint8_t extensions[560] = {0};
        bool backing = i % 2;
        struct qcow2_image image = {
            .cluster_bits = 12,
            .order = 4,
            .size = MIB,
            .extensions = extensions,
            .extensions_length = 8 + i / 2 * 8,
            .backing = backing ? "base-of-the-image-with-a-name-that-is-not-short" : NULL,
            .backing_format = backing ? "raw" : NULL,
        };

        put_be32(extensions, 0x12345678); /* unknown to all */
        put_be32(extensions + 4, i / 2 * 8);
        sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
        sim_disk_create("/sim/base-of-the-image-with-a-name-that-is-not-short", data, sizeof(data));
        make_image(&image);
        assert_int_equal(test_run(run_header, (void *)(uintptr_t)image.backing), 0);
        end();
    }
}

static int run_no_room(void *arg)
{
    struct error e;
    struct node *node = stage_open(NODE_WRITABLE);

    refused(block_bitmap_add(node, "x", 0, true, &e), -ENOSPC, &e, "no room");
    write_at(node, 0, 1);
    node_unref(node);
    stage_check(true);
    return 0;
}

static void need_room_in_the_header(void **state)
{
    uint8_t extensions[368] = {0};
    struct qcow2_image image = {.cluster_bits = 9,
                                .order = 4,
                                .size = MIB,
                                .extensions = extensions,
                                .extensions_length = sizeof(extensions)};

    put_be32(extensions, 0x12345678);
    put_be32(extensions + 4, sizeof(extensions) - 8);
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    make_image(&image);
    in_coroutine(run_no_room);
    end();
}

/* Random requests of many at once against a model, for several geometries. */
#define MODEL_SECTORS 8192
#define ACTORS 5

struct actor {
    struct node *node;
    struct prng prng;
};

static uint8_t model[MODEL_SECTORS];

static int run_actor(void *arg)
{
    struct actor *actor = arg;

    for (unsigned i = 0; i < 25; i++) {
        uint64_t sector = prng_below(&actor->prng, MODEL_SECTORS);
        uint64_t count = 1 + prng_below(&actor->prng, min_u64(60, MODEL_SECTORS - sector));

        memset(model + sector, 1, count);
        write_at(actor->node, sector * SECTOR, count * SECTOR);
    }
    return 0;
}

/* Exactly the bits that a written sector belongs to. */
static void compare(struct block_bitmap *bitmap)
{
    uint64_t per_bit = bitmap->granularity / SECTOR;
    struct block_bitmap_extent extent;

    for (uint64_t at = 0; at < bitmap->size; at += extent.length) {
        assert_int_equal(block_bitmap_next(bitmap, at, bitmap->size - at, &extent), 0);
        for (uint64_t s = at / SECTOR; s < (at + extent.length) / SECTOR; s += per_bit) {
            uint64_t count = min_u64(per_bit, MODEL_SECTORS - s);
            bool wanted = !bytes_are_zero(model + s, count);

            if (wanted != extent.dirty)
                test_die("bitmap %s at %lu: dirty %d instead of %d", bitmap->name, s * SECTOR,
                         extent.dirty, wanted);
        }
    }
}

static int run_model(void *arg)
{
    static const char *const names[] = {"512", "2k", "64k"};
    struct node *node = stage_open(NODE_WRITABLE);
    struct prng prng = prng_of(test_seed());

    add(node, "512", 512, true);
    add(node, "2k", 2048, true);
    add(node, "64k", 65536, true);
    memset(model, 0, sizeof(model));
    for (unsigned round = 0; round < 3; round++) {
        struct actor actors[ACTORS];
        struct co_group group;

        co_group_init(&group);
        for (unsigned i = 0; i < ACTORS; i++) {
            actors[i] = (struct actor){node, prng_of(prng_next(&prng))};
            co_group_start(&group, run_actor, &actors[i]);
        }
        assert_int_equal(co_group_wait(&group), 0);
        for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
            compare(find(node, names[i]));
        node_unref(node);
        stage_check(true);
        node = stage_open(NODE_WRITABLE);
        for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
            compare(find(node, names[i]));
    }
    node_unref(node);
    return 0;
}

static void record_what_is_written(void **state)
{
    static const unsigned cluster_bits[] = {9, 12, 16};

    for (unsigned i = 0; i < ARRAY_SIZE(cluster_bits); i++) {
        begin(cluster_bits[i], MODEL_SECTORS * SECTOR);
        in_coroutine(run_model);
        end();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(are_kept),
        cmocka_unit_test(are_not_touched_without_need),
        cmocka_unit_test(can_be_changed),
        cmocka_unit_test(refuse_what_cannot_be),
        cmocka_unit_test(need_version_3),
        cmocka_unit_test(are_inconsistent_after_a_crash),
        cmocka_unit_test(may_be_dirty_all_over),
        cmocka_unit_test(have_tables_of_many_clusters),
        cmocka_unit_test(are_named_by_the_header),
        cmocka_unit_test(need_room_in_the_header),
        cmocka_unit_test(record_what_is_written),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
