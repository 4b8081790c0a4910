/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Extended L2 entries and external data files of qcow2: what single requests do to entries and
 * storage, and entries that contradict themselves.  Random requests are the crash tester's.
 */
#include "base/checked.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define CLUSTER UINT64_C(16384)
#define PART (CLUSTER / 32)
#define ALL UINT32_MAX

/* Guest clusters of the image that the tests start from. */
enum { DATA, PACKED, MIXED, RESERVED, NOTHING, ZEROES, MORE_DATA, CLUSTERS = 64 };

static uint64_t hosts[CLUSTERS], entries[CLUSTERS];

static void plant(struct qcow2_image *image)
{
    static const struct {
        uint32_t data, zero;
    } bitmaps[] = {
        [DATA] = {ALL, 0},      [MIXED] = {0x0000ff06, 0xf0000000},
        [RESERVED] = {0, 0},    [ZEROES] = {0, ALL},
        [MORE_DATA] = {ALL, 0}, [MORE_DATA + 1] = {0xff, 0},
    };

    *image = (struct qcow2_image){.version = 3,
                                  .cluster_bits = 14,
                                  .order = 4,
                                  .size = CLUSTERS * CLUSTER,
                                  .incompatible = STAGE_EXTENDED};
    qcow2_image_start(image);
    for (unsigned i = 0; i < ARRAY_SIZE(bitmaps); i++) {
        if (i == PACKED || i == NOTHING)
            continue;
        hosts[i] = qcow2_image_add(image, 1);
        memset(image->data + hosts[i], (int)i + 1, CLUSTER);
        entries[i] = qcow2_image_set_extended(image, i, hosts[i], bitmaps[i].data, bitmaps[i].zero);
    }
    qcow2_image_compressed(image, PACKED, PACKED + 1, false);
    entries[PACKED] = entries[DATA] + 16;
    entries[NOTHING] = entries[DATA] + (UINT64_C(16) * NOTHING);
    qcow2_image_finish(image);
}

static void begin(struct qcow2_image *image)
{
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    plant(image);
    stage_store(image);
}

static void end(struct qcow2_image *image)
{
    qcow2_image_fini(image);
    assert_int_equal(sim_disk_open_count(), 0);
    sim_disk_remove();
}

/* Runs a test on the image as it is planted; it has no errors afterwards, and no leaks. */
static void run_planted(int (*play)(void *arg))
{
    struct qcow2_image image;

    begin(&image);
    assert_int_equal(test_run(play, NULL), 0);
    stage_check(true);
    end(&image);
}

/* A word of an entry, as it is on the disk. */
static uint64_t on_disk(uint64_t at)
{
    size_t length;
    uint8_t *data = stage_content(&length);
    uint64_t value = get_be64(data + at);

    free(data);
    return value;
}

static void assert_entry(unsigned cluster, uint64_t host, uint32_t data, uint32_t zero)
{
    assert_int_equal(on_disk(entries[cluster]) & ~STAGE_COPIED, host);
    assert_int_equal(on_disk(entries[cluster] + 8), (uint64_t)zero << 32 | data);
}

static void assert_reads(struct node *node, uint64_t offset, uint64_t length, uint8_t byte)
{
    uint8_t *data = malloc(length);

    assert_int_equal(block_read(node, data, length, offset), 0);
    for (uint64_t i = 0; i < length; i++)
        assert_int_equal(data[i], byte);
    free(data);
}

static void assert_map(struct node *node, uint64_t offset, enum extent_kind kind, unsigned flags,
                       uint64_t length)
{
    struct extent e;

    assert_int_equal(node->driver->map(node, offset, node->size - offset, &e), 0);
    assert_int_equal(e.kind, kind);
    assert_int_equal(e.flags, flags);
    assert_int_equal(e.length, length);
}

static int play_map(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);

    assert_int_equal(node->cluster_size, PART);
    assert_int_equal(node->lock_size, CLUSTER);
    assert_map(node, DATA * CLUSTER + 700, EXTENT_DATA, EXTENT_WRITABLE, CLUSTER - 700);
    assert_map(node, PACKED * CLUSTER + 5 * PART, EXTENT_ENCODED, 0, CLUSTER - 5 * PART);
    assert_map(node, MIXED * CLUSTER, EXTENT_ABSENT, EXTENT_RESERVED, PART);
    assert_map(node, MIXED * CLUSTER + PART, EXTENT_DATA, EXTENT_WRITABLE, 2 * PART);
    assert_map(node, MIXED * CLUSTER + 8 * PART + 1, EXTENT_DATA, EXTENT_WRITABLE, 8 * PART - 1);
    assert_map(node, MIXED * CLUSTER + 16 * PART, EXTENT_ABSENT, EXTENT_RESERVED, 12 * PART);
    assert_map(node, MIXED * CLUSTER + 28 * PART, EXTENT_ZERO, EXTENT_RESERVED, 4 * PART);
    assert_map(node, RESERVED * CLUSTER, EXTENT_ABSENT, EXTENT_RESERVED, CLUSTER);
    assert_map(node, NOTHING * CLUSTER, EXTENT_ABSENT, 0, CLUSTER);
    assert_map(node, ZEROES * CLUSTER, EXTENT_ZERO, EXTENT_RESERVED, CLUSTER);
    /* On into the next cluster, whose storage is next, too. */
    assert_map(node, MORE_DATA * CLUSTER + PART, EXTENT_DATA, EXTENT_WRITABLE, 39 * PART);
    assert_map(node, (MORE_DATA + 1) * CLUSTER + 8 * PART, EXTENT_ABSENT, EXTENT_RESERVED,
               24 * PART);
    assert_reads(node, MIXED * CLUSTER + PART, 2 * PART, MIXED + 1);
    assert_reads(node, MIXED * CLUSTER + 3 * PART, 5 * PART, 0);
    node_unref(node);
    return 0;
}

static void maps_subclusters(void **state)
{
    run_planted(play_map);
}

/* Neither what is reserved nor what is its own needs a new place. */
static int play_own(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    uint8_t data[100];

    memset(data, 0xaa, sizeof(data));
    assert_int_equal(block_write(node, data, sizeof(data), RESERVED * CLUSTER + 3 * PART, 0), 0);
    assert_int_equal(block_write(node, data, sizeof(data), MIXED * CLUSTER + 30 * PART + 5, 0), 0);
    assert_int_equal(block_write(node, data, sizeof(data), NOTHING * CLUSTER + 7 * PART - 50, 0),
                     0);
    assert_reads(node, RESERVED * CLUSTER + 3 * PART, 100, 0xaa);
    assert_reads(node, RESERVED * CLUSTER + 3 * PART + 100, CLUSTER - 3 * PART - 100, 0);
    assert_reads(node, MIXED * CLUSTER + 30 * PART, 5, 0);
    assert_int_equal(block_flush(node), 0);
    assert_entry(RESERVED, hosts[RESERVED], 1 << 3, 0);
    assert_entry(MIXED, hosts[MIXED], 0x4000ff06, 0xb0000000);
    assert_int_equal((uint32_t)on_disk(entries[NOTHING] + 8), 3 << 6);
    node_unref(node);
    return 0;
}

static void writes_into_its_own_storage(void **state)
{
    run_planted(play_own);
}

/* A compressed cluster moves as a whole; a range that ends in one is fast nevertheless. */
static int play_compressed(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);
    uint64_t from = PACKED * CLUSTER + 3 * PART + 7;

    assert_int_equal(block_zero(node, from, 2 * CLUSTER - (3 * PART + 7), ZERO_FAST), 0);
    assert_reads(node, PACKED * CLUSTER, 3 * PART + 7, PACKED + 1);
    assert_reads(node, from, 2 * CLUSTER - (3 * PART + 7), 0);
    assert_int_equal(block_flush(node), 0);
    assert_entry(MIXED, hosts[MIXED], 0, 0xf000ff06);
    assert_int_equal(on_disk(entries[PACKED] + 8), ALL);
    node_unref(node);
    return 0;
}

static void zeroes_a_part_of_a_compressed_cluster(void **state)
{
    run_planted(play_compressed);
}

static int play_compressed_end(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE);

    assert_int_equal(block_zero(node, 10, CLUSTER + PART, ZERO_FAST), 0);
    assert_reads(node, 10, CLUSTER + PART, 0);
    assert_reads(node, CLUSTER + PART + 10, CLUSTER - PART - 10, PACKED + 1);
    assert_int_equal(block_flush(node), 0);
    assert_entry(DATA, hosts[DATA], 1, ALL - 1);
    node_unref(node);
    return 0;
}

static void zeroes_up_to_a_part_of_a_compressed_cluster(void **state)
{
    run_planted(play_compressed_end);
}

/* Parts of a compressed cluster stay; all of it is given back. */
static int play_discard(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);

    assert_int_equal(block_discard(node, PACKED * CLUSTER + PART, CLUSTER - PART, 0), 0);
    assert_reads(node, PACKED * CLUSTER, CLUSTER, PACKED + 1);
    assert_int_equal(block_discard(node, PACKED * CLUSTER, CLUSTER, 0), 0);
    assert_int_equal(block_discard(node, DATA * CLUSTER, 5 * PART + 1, 0), 0);
    assert_reads(node, PACKED * CLUSTER, CLUSTER, 0);
    assert_reads(node, DATA * CLUSTER, 5 * PART, 0);
    assert_reads(node, DATA * CLUSTER + 5 * PART, CLUSTER - 5 * PART, DATA + 1);
    assert_int_equal(block_flush(node), 0);
    assert_entry(PACKED, 0, 0, ALL);
    assert_entry(DATA, hosts[DATA], ALL - 31, 31);
    node_unref(node);
    return 0;
}

static void discards_subclusters(void **state)
{
    run_planted(play_discard);
}

/* Storage goes with the last data of its cluster, if it may. */
static int play_free(void *arg)
{
    const bool *unmap = arg;
    struct node *node = stage_open(NODE_WRITABLE | (*unmap ? NODE_UNMAP : 0));

    for (unsigned i = 0; i < 32; i++) {
        assert_int_equal(on_disk(entries[DATA]) & ~STAGE_COPIED, hosts[DATA]);
        assert_int_equal(block_zero(node, i * PART, PART, ZERO_MAY_UNMAP), 0);
        assert_int_equal(block_flush(node), 0);
        assert_int_equal(on_disk(entries[DATA] + 8) >> 32, ALL >> (31 - i));
    }
    assert_int_equal(on_disk(entries[DATA]) & ~STAGE_COPIED, *unmap ? 0 : hosts[DATA]);
    assert_reads(node, 0, CLUSTER, 0);
    node_unref(node);
    return 0;
}

static void gives_storage_back(void **state)
{
    for (int i = 0; i < 2; i++) {
        struct qcow2_image image;
        bool unmap = i;

        begin(&image);
        assert_int_equal(test_run(play_free, &unmap), 0);
        stage_check(true);
        end(&image);
    }
}

static int play_broken(void *arg)
{
    const unsigned *cluster = arg;
    uint64_t at = *cluster * CLUSTER;
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    uint8_t data[512];

    assert_int_equal(block_read(node, data, sizeof(data), at), -EIO);
    assert_int_equal(on_disk(72) & 2, 2); /* marked corrupt */
    assert_int_equal(block_write(node, data, sizeof(data), at, 0), -EIO);
    assert_int_equal(block_zero(node, at, CLUSTER, 0), -EIO);
    assert_int_equal(block_discard(node, at, CLUSTER, 0), -EIO);
    assert_reads(node, MORE_DATA * CLUSTER, CLUSTER, MORE_DATA + 1);
    node_unref(node);
    return 0;
}

struct broken {
    unsigned cluster;
    uint64_t value, bitmaps; /* that are set in the entry */
};

/* An entry that cannot be is an error for its cluster, and nothing of the image changes any more.
 */
static void refuses_broken_entries(void **state)
{
    static const struct broken cases[] = {
        {DATA, 0, UINT64_C(1) << 32},     /* both data and zero */
        {DATA, 0, UINT64_C(1) << 63},     /* the same in the last subcluster */
        {NOTHING, 0, 1},                  /* data without storage */
        {NOTHING, 1, 0},                  /* the zero bit of standard entries */
        {DATA, 1, 0},                     /* the same, with storage */
        {PACKED, 0, 1},                   /* compressed, with subclusters */
        {PACKED, 0, UINT64_C(1) << 32},   /* the same, of zeroes */
        {DATA, 512, 0},                   /* not aligned */
        {RESERVED, UINT64_C(1) << 57, 0}, /* reserved bits */
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        unsigned cluster = cases[i].cluster;
        struct qcow2_image image;
        uint8_t *entry, *after;
        size_t length;

        begin(&image);
        entry = image.data + entries[cluster];
        put_be64(entry, get_be64(entry) | cases[i].value);
        put_be64(entry + 8, get_be64(entry + 8) | cases[i].bitmaps);
        stage_store(&image);
        assert_int_equal(test_run(play_broken, &cluster), 0);
        after = stage_content(&length);
        assert_int_equal(length, image.length);
        put_be64(after + 72, get_be64(image.data + 72));
        assert_memory_equal(after, image.data, length);
        free(after);
        end(&image);
    }
}

/* Images with a data file: 64 clusters, the first four of which are data; `raw`: see qcow2.h. */
static void begin_external(struct qcow2_image *image, bool raw)
{
    uint8_t *data = calloc(CLUSTERS, CLUSTER);

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    *image = (struct qcow2_image){
        .version = 3,
        .cluster_bits = 14,
        .order = 4,
        .size = CLUSTERS * CLUSTER - 512,
        .incompatible = STAGE_DATA_FILE,
        .autoclear = raw ? 2 | 32 : 32, /* and a feature that nobody knows */
        .extensions = STAGE_DATA_EXTENSION,
        .extensions_length = STAGE_DATA_EXTENSION_LENGTH,
    };
    qcow2_image_start(image);
    for (unsigned i = 0; i < 4; i++) {
        entries[i] = qcow2_image_set(image, i, STAGE_COPIED | i * CLUSTER);
        memset(data + i * CLUSTER, (int)i + 1, CLUSTER);
    }
    qcow2_image_finish(image);
    stage_store(image);
    sim_disk_create(STAGE_DATA_PATH, data, image->size);
    free(data);
}

static void assert_data_file(uint64_t offset, uint64_t length, uint8_t byte)
{
    size_t size;
    uint8_t *data = sim_disk_content(STAGE_DATA_PATH, &size);

    assert_int_equal(size, CLUSTERS * CLUSTER - 512);
    for (uint64_t i = offset; i < offset + length; i++)
        assert_int_equal(data[i], byte);
    free(data);
}

static int play_external(void *arg)
{
    const bool *raw = arg;
    struct node *node = stage_open(NODE_WRITABLE);
    struct block_extent flat;
    uint8_t data[512];

    assert_int_equal(node->children_count, 1);
    assert_int_equal(block_zero(node, CLUSTER, CLUSTER, 0), 0);
    assert_data_file(CLUSTER, CLUSTER, *raw ? 0 : 2);
    memset(data, 0x77, sizeof(data));
    /* A hidden byte must not come back, and the file must not become longer than the disk. */
    assert_int_equal(block_write(node, data, 1, CLUSTER + 10, 0), 0);
    assert_int_equal(block_write(node, data, 512, node->size - 512, 0), 0);
    assert_reads(node, CLUSTER, 10, 0);
    assert_reads(node, CLUSTER + 10, 1, 0x77);
    assert_reads(node, CLUSTER + 11, CLUSTER - 11, 0);
    assert_data_file(CLUSTER + 11, CLUSTER - 11, 0);
    assert_data_file(CLUSTERS * CLUSTER - 1024, 512, 0x77);
    assert_int_equal(block_resolve(node, 2 * CLUSTER + 5, CLUSTER, &flat), 0);
    assert_int_equal(flat.offset, 2 * CLUSTER + 5);
    assert_int_equal(flat.length, CLUSTER);
    node_unref(node);
    assert_int_equal(on_disk(88), *raw ? 2 : 0); /* still raw */
    return 0;
}

static void keeps_data_in_a_file_of_its_own(void **state)
{
    for (int i = 0; i < 2; i++) {
        struct qcow2_image image;
        bool raw = i;

        begin_external(&image, raw);
        assert_int_equal(test_run(play_external, &raw), 0);
        stage_check(true);
        end(&image);
    }
}

/* Discarding frees storage of the data file, and of a raw one it makes zeroes. */
static int play_external_discard(void *arg)
{
    const bool *raw = arg;
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);

    assert_int_equal(block_discard(node, CLUSTER, CLUSTER, 0), 0);
    assert_int_equal(block_zero(node, 2 * CLUSTER, CLUSTER, ZERO_MAY_UNMAP), 0);
    assert_int_equal(block_flush(node), 0);
    assert_data_file(CLUSTER, 2 * CLUSTER, 0);
    assert_data_file(0, CLUSTER, 1);
    assert_data_file(3 * CLUSTER, CLUSTER, 4);
    assert_reads(node, CLUSTER, 2 * CLUSTER, 0);
    assert_int_equal(on_disk(entries[2]), (*raw ? STAGE_COPIED | 2 * CLUSTER : 0) | 1);
    node_unref(node);
    return 0;
}

static void discards_in_a_data_file(void **state)
{
    for (int i = 0; i < 2; i++) {
        struct qcow2_image image;
        bool raw = i;

        begin_external(&image, raw);
        assert_int_equal(test_run(play_external_discard, &raw), 0);
        stage_check(true);
        end(&image);
    }
}

static int play_external_broken(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    uint8_t data[512];

    assert_int_equal(block_read(node, data, sizeof(data), 2 * CLUSTER), -EIO);
    assert_int_equal(block_write(node, data, sizeof(data), 2 * CLUSTER, 0), -EIO);
    assert_int_equal(block_discard(node, 2 * CLUSTER, CLUSTER, 0), -EIO);
    assert_reads(node, CLUSTER, CLUSTER, 2);
    node_unref(node);
    return 0;
}

static void refuses_broken_entries_of_data_files(void **state)
{
    const uint64_t values[] = {
        STAGE_COPIED,                /* where cluster 0 is */
        STAGE_COPIED | 3 * CLUSTER,  /* where another one is */
        UINT64_C(1) << 62 | CLUSTER, /* compressed */
    };

    for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
        struct qcow2_image image;

        begin_external(&image, false);
        put_be64(image.data + entries[2], values[i]);
        sim_disk_create(STAGE_PATH, image.data, image.length);
        assert_int_equal(test_run(play_external_broken, NULL), 0);
        assert_data_file(0, CLUSTER, 1);
        assert_data_file(3 * CLUSTER, CLUSTER, 4);
        end(&image);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(maps_subclusters),
        cmocka_unit_test(writes_into_its_own_storage),
        cmocka_unit_test(zeroes_a_part_of_a_compressed_cluster),
        cmocka_unit_test(zeroes_up_to_a_part_of_a_compressed_cluster),
        cmocka_unit_test(discards_subclusters),
        cmocka_unit_test(gives_storage_back),
        cmocka_unit_test(refuses_broken_entries),
        cmocka_unit_test(keeps_data_in_a_file_of_its_own),
        cmocka_unit_test(discards_in_a_data_file),
        cmocka_unit_test(refuses_broken_entries_of_data_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
