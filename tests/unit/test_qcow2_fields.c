/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Every field of the qcow2 header, and one entry of each table, with every extreme value, one and
 * two at a time, and the file cut at every byte (rows B1 and B2 of the list of hostile images).
 * Whatever it is: to refuse is to say why and to change nothing; to open for reading changes
 * nothing; what was written is there; a repair that leaves no errors leaves none for those who
 * count anew.
 */
#include "base/checked.h"
#include "blockcore/check.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTER 512
#define CLUSTERS 128u /* of the disk */
#define FIELDS_MAX 32
#define CHOICES_MAX (FIELDS_MAX * 8)

struct field {
    const char *name;
    uint64_t at;
    unsigned bytes;
};

/* One field with one value. */
struct choice {
    const struct field *field;
    uint64_t value;
};

static struct {
    struct qcow2_image image;
    struct field fields[FIELDS_MAX];
    unsigned fields_count;
    struct choice choices[CHOICES_MAX];
    unsigned choices_count;
    uint8_t *spoiled; /* the image as it is on the disk */
    char what[160];   /* which fields are spoiled */
} stage;

static const struct field header_fields[] = {
    {"version", 4, 4},
    {"backing_offset", 8, 8},
    {"backing_length", 16, 4},
    {"cluster_bits", 20, 4},
    {"size", 24, 8},
    {"crypt_method", 32, 4},
    {"l1_size", 36, 4},
    {"l1_offset", 40, 8},
    {"reftable_offset", 48, 8},
    {"reftable_clusters", 56, 4},
    {"snapshots", 60, 4},
    {"snapshots_offset", 64, 8},
    {"incompatible", 72, 8},
    {"compatible", 80, 8},
    {"autoclear", 88, 8},
    {"refcount_order", 96, 4},
    {"header_length", 100, 4},
    {"compression_type", 104, 1},
    {"first extension", 112, 4},
    {"its length", 116, 4},
};

static const uint64_t extremes[] = {
    0, 1, INT32_MAX, UINT64_C(1) << 31, UINT32_MAX, UINT64_C(1) << 63, UINT64_MAX,
};

static void add_field(const char *name, uint64_t at, unsigned bytes)
{
    stage.fields[stage.fields_count++] = (struct field){name, at, bytes};
}

static void add_choices(void)
{
    for (unsigned i = 0; i < stage.fields_count; i++) {
        const struct field *f = &stage.fields[i];

        for (size_t j = 0; j < ARRAY_SIZE(extremes); j++) {
            if (f->bytes == 8 || extremes[j] >> (8 * f->bytes) == 0)
                stage.choices[stage.choices_count++] = (struct choice){f, extremes[j]};
        }
    }
}

/* Data, a compressed cluster and a snapshot, in clusters of 512 bytes. */
static void build(unsigned version)
{
    struct qcow2_image *image = &stage.image;
    uint64_t data, entry, l1, reftable, snapshots;

    memset(&stage, 0, sizeof(stage));
    *image = (struct qcow2_image){
        .version = version, .cluster_bits = 9, .order = 4, .size = CLUSTERS * CLUSTER};
    qcow2_image_start(image);
    qcow2_image_data(image, 2, 0x22);
    qcow2_image_snapshot(image);
    put_be64(image->data + image->l1_offset, 0); /* what follows is not shared */
    data = qcow2_image_data(image, 3, 0x33);
    entry = qcow2_image_set(image, 3, data);
    qcow2_image_compressed(image, 5, 0x55, false);
    qcow2_image_data(image, 100, 0x64);
    qcow2_image_finish(image);
    for (size_t i = 0; i < ARRAY_SIZE(header_fields); i++) {
        if (version >= 3 || header_fields[i].at < 72)
            stage.fields[stage.fields_count++] = header_fields[i];
    }
    l1 = get_be64(image->data + 40);
    reftable = get_be64(image->data + 48);
    snapshots = get_be64(image->data + 64);
    add_field("L1 entry", l1, 8);
    add_field("L2 entry", entry, 8);
    add_field("refcount table entry", reftable, 8);
    add_field("refcount", get_be64(image->data + reftable) + data / CLUSTER * 2, 2);
    add_field("snapshot's L1 offset", snapshots, 8);
    add_field("snapshot's L1 size", snapshots + 8, 4);
    add_field("snapshot's extra data", snapshots + 36, 4);
    add_choices();
    stage.spoiled = malloc(image->length);
}

static void unbuild(void)
{
    free(stage.spoiled);
    qcow2_image_fini(&stage.image);
}

static void put_choice(const struct choice *c)
{
    uint8_t bytes[8];

    put_be64(bytes, c->value);
    memcpy(stage.spoiled + c->field->at, bytes + 8 - c->field->bytes, c->field->bytes);
}

static void store(void)
{
    sim_disk_create(STAGE_PATH, stage.spoiled, stage.image.length);
}

static void assert_unchanged(const char *by)
{
    size_t length;
    uint8_t *now = stage_content(&length);

    if (length != stage.image.length || memcmp(now, stage.spoiled, length) != 0)
        fail_msg("%s: %s changed the file", stage.what, by);
    free(now);
}

/* The node, or NULL when it was refused, with a sentence and without harm. */
static struct node *try_open(unsigned flags)
{
    struct error error = {.text = ""};
    struct node *node = NULL;

    if (stage_try_open(flags, &node, &error) < 0) {
        if (error.text[0] == 0)
            fail_msg("%s: refused without a word", stage.what);
        assert_unchanged("what was refused");
        return NULL;
    }
    return node;
}

static void assert_due(int r, const char *by)
{
    if (r < 0 && r != -EIO && r != -ENOSPC)
        fail_msg("%s: %s ended with error %d", stage.what, by, -r);
}

static void read_all(struct node *node)
{
    uint8_t data[CLUSTER];

    for (uint64_t at = 0; at < min_u64(node->size, CLUSTERS * CLUSTER); at += CLUSTER) {
        struct block_status status;
        uint64_t length = min_u64(CLUSTER, node->size - at);

        assert_due(block_read(node, data, length, at), "a read");
        assert_due(block_get_status(node, at, node->size - at, &status), "block status");
    }
}

static int check(struct node *node, unsigned fix, struct block_check *ret)
{
    struct error error = {.text = ""};
    int r;

    *ret = (struct block_check){.fix = fix};
    r = block_check(node, ret, &error);
    if (r < 0 && error.text[0] == 0)
        fail_msg("%s: a check failed without a word", stage.what);
    return r;
}

static int play_reading(void *arg)
{
    struct node *node = try_open(0);
    struct block_check found;

    if (!node)
        return 0;
    read_all(node);
    check(node, 0, &found);
    node_unref(node);
    assert_unchanged("reading");
    return 0;
}

static void write_at(struct node *node, uint64_t at)
{
    uint8_t data[CLUSTER], back[CLUSTER];
    int r;

    if (at + CLUSTER > node->size)
        return;
    memset(data, 0xdd, sizeof(data));
    r = block_write(node, data, CLUSTER, at, 0);
    assert_due(r, "a write");
    if (r == 0 && (block_read(node, back, CLUSTER, at) < 0 || memcmp(data, back, CLUSTER) != 0))
        fail_msg("%s: what was written at %" PRIu64 " is not there", stage.what, at);
}

static int play_writing(void *arg)
{
    struct node *node = try_open(NODE_WRITABLE | NODE_UNMAP);

    if (!node)
        return 0;
    write_at(node, 0);
    write_at(node, 3ull * CLUSTER);
    write_at(node, 5ull * CLUSTER);
    write_at(node, (CLUSTERS - 1ull) * CLUSTER);
    if (node->size >= CLUSTERS * CLUSTER) {
        assert_due(block_zero(node, 2ull * CLUSTER, 3ull * CLUSTER, ZERO_MAY_UNMAP), "zeroing");
        assert_due(block_discard(node, 100ull * CLUSTER, CLUSTER, 0), "a discard");
    }
    assert_due(block_flush(node), "a flush");
    read_all(node);
    node_unref(node);
    return 0;
}

static int play_repair(void *arg)
{
    struct block_check first, second;
    struct node *node = try_open(NODE_REPAIR);
    int r;

    if (!node)
        return 0;
    r = check(node, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, &first);
    node_unref(node);
    if (r < 0 || first.result.corruptions > 0 || first.result.check_errors > 0)
        return 0;
    node = stage_open(NODE_NO_DATA); /* spoiled, it may seem to be encrypted */
    r = check(node, 0, &second);
    node_unref(node);
    if (r < 0 || second.result.corruptions > 0 || second.result.leaks > first.result.leaks)
        fail_msg("%s: %" PRIu64 " errors and %" PRIu64 " leaks after a repair", stage.what,
                 second.result.corruptions, second.result.leaks);
    return 0;
}

/* Everything that is done with an image. */
static void try_spoiled(void)
{
    int (*const plays[])(void *) = {play_reading, play_writing, play_repair};

    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        store();
        plays[i](NULL);
        assert_int_equal(sim_disk_open_count(), 0);
    }
}

/* With these fields spoiled; `b` may be NULL. */
static void try_choices(const struct choice *a, const struct choice *b)
{
    memcpy(stage.spoiled, stage.image.data, stage.image.length);
    put_choice(a);
    if (b)
        put_choice(b);
    snprintf(stage.what, sizeof(stage.what), "%s = %" PRIu64 "%s%s", a->field->name, a->value,
             b ? ", " : "", b ? b->field->name : "");
    try_spoiled();
}

static int play_singles(void *arg)
{
    for (unsigned i = 0; i < stage.choices_count; i++)
        try_choices(&stage.choices[i], NULL);
    return 0;
}

static int play_pairs(void *arg)
{
    for (unsigned i = 0; i < stage.choices_count; i++) {
        for (unsigned j = i + 1; j < stage.choices_count; j++) {
            if (stage.choices[i].field != stage.choices[j].field)
                try_choices(&stage.choices[i], &stage.choices[j]);
        }
    }
    return 0;
}

static void run_on_disk(unsigned version, int (*play)(void *))
{
    build(version);
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    assert_int_equal(test_run(play, NULL), 0);
    sim_disk_remove();
    unbuild();
}

static void B2_every_field_with_every_extreme(void **state)
{
    run_on_disk(2, play_singles);
    run_on_disk(3, play_singles);
}

static void B2_every_two_fields_with_every_extreme(void **state)
{
    run_on_disk(3, play_pairs);
}

/* A sector reads as what it was, or as zeroes: the file is not there any more. */
static void assert_not_invented(const uint8_t *data, uint64_t cluster)
{
    static const uint8_t bytes[CLUSTERS] = {[3] = 0x33, [5] = 0x55, [100] = 0x64};

    for (size_t i = 0; i < CLUSTER; i++) {
        if (data[i] != 0 && data[i] != bytes[cluster])
            fail_msg("%s: byte %zu of cluster %" PRIu64 " is invented", stage.what, i, cluster);
    }
}

static void read_what_is_left(void)
{
    struct node *node = try_open(0);
    uint8_t data[CLUSTER];

    for (uint64_t i = 0; node && i < CLUSTERS; i++) {
        if (block_read(node, data, CLUSTER, i * CLUSTER) == 0)
            assert_not_invented(data, i);
    }
    node_unref(node);
}

static int play_cuts(void *arg)
{
    size_t full = stage.image.length;

    memcpy(stage.spoiled, stage.image.data, full);
    for (size_t n = 0; n <= full; n++) {
        stage.image.length = n;
        snprintf(stage.what, sizeof(stage.what), "cut to %zu bytes", n);
        store();
        read_what_is_left();
        try_spoiled();
    }
    return 0;
}

static int play_cuts_without_refcounts(void *arg)
{
    /* They come last in the file: without them more cuts get past the header. */
    put_be64(stage.image.data + 48, get_be64(stage.image.data + 40));
    return play_cuts(arg);
}

static void B1_truncated_at_every_byte(void **state)
{
    run_on_disk(3, play_cuts);
    run_on_disk(3, play_cuts_without_refcounts);
}

static void refuse_unknown(unsigned bit)
{
    char wanted[32];

    snprintf(wanted, sizeof(wanted), "incompatible bit %u", bit);
    memcpy(stage.spoiled, stage.image.data, stage.image.length);
    put_be64(stage.spoiled + 72, UINT64_C(1) << bit);
    store();
    for (unsigned writable = 0; writable < 2; writable++) {
        struct error error = {.text = ""};
        struct node *node = NULL;

        assert_int_equal(stage_try_open(writable ? NODE_WRITABLE : 0, &node, &error), -ENOTSUP);
        if (!strstr(error.text, wanted))
            fail_msg("bit %u was refused with: %s", bit, error.text);
        assert_unchanged("what was refused");
    }
}

static int play_unknown(void *arg)
{
    for (unsigned bit = 5; bit < 64; bit++)
        refuse_unknown(bit);
    return 0;
}

static void B14_every_unknown_feature(void **state)
{
    run_on_disk(3, play_unknown);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(B1_truncated_at_every_byte),
        cmocka_unit_test(B2_every_field_with_every_extreme),
        cmocka_unit_test(B2_every_two_fields_with_every_extreme),
        cmocka_unit_test(B14_every_unknown_feature),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
