/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the data engine promises beyond the bytes: that a zeroing which is not fast is refused and
 * changes nothing, that one with storage leaves storage, that a prefetch reads data and nothing
 * else, and that runs of data are not looked for again and again.
 */
#include "base/checked.h"
#include "base/sys.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define RAW_PATH "/sim/disk.raw"
#define CLUSTER 4096

/* ---- qcow2 ---- */

struct scene {
    unsigned version;
    bool backing;
    void (*play)(struct node *node);
};

static int run_scene(void *arg)
{
    struct scene *scene = arg;
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);

    scene->play(node);
    node_unref(node);
    return 0;
}

/* Clusters: 0 to 3 data, 4 zeroes, then nothing; 256 of them and a half. */
static void play(unsigned version, bool backing, void (*act)(struct node *node))
{
    struct scene scene = {version, backing, act};
    struct qcow2_image image = {.version = version,
                                .cluster_bits = 12,
                                .order = 4,
                                .size = MIB + CLUSTER / 2,
                                .backing = backing ? "base.raw" : NULL,
                                .backing_format = backing ? "raw" : NULL};
    uint8_t base[2 * CLUSTER];

    memset(base, 'b', sizeof(base));
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    sim_disk_create("/sim/base.raw", base, sizeof(base));
    qcow2_image_start(&image);
    for (unsigned i = 0; i < 4; i++)
        qcow2_image_data(&image, i, (uint8_t)('0' + i));
    if (version >= 3)
        qcow2_image_set(&image, 4, 1);
    qcow2_image_finish(&image);
    stage_store(&image);
    assert_int_equal(test_run(run_scene, &scene), 0);
    stage_check(true);
    qcow2_image_fini(&image);
    sim_disk_remove();
}

/* The bytes of a range are what they were when it was filled with its clusters' digits. */
static void expect_byte(struct node *node, uint64_t offset, uint8_t byte)
{
    uint8_t got;

    assert_int_equal(block_read(node, &got, 1, offset), 0);
    assert_int_equal(got, byte);
}

static void act_refused(struct node *node)
{
    assert_int_equal(block_zero(node, 100, 3 * CLUSTER, ZERO_FAST), -ENOTSUP);
    assert_int_equal(block_zero(node, 0, 2 * CLUSTER, ZERO_FAST | BLOCK_FUA), -ENOTSUP);
    assert_int_equal(block_zero(node, 100, 200, ZERO_FAST), -ENOTSUP);
    assert_int_equal(block_zero(node, CLUSTER - 1, 2, ZERO_FAST), -ENOTSUP);
    for (unsigned i = 0; i < 4; i++) {
        expect_byte(node, i * CLUSTER, (uint8_t)('0' + i));
        expect_byte(node, i * CLUSTER + 100, (uint8_t)('0' + i));
        expect_byte(node, i * CLUSTER + CLUSTER - 1, (uint8_t)('0' + i));
    }
    assert_int_equal(block_zero(node, 100, 3 * CLUSTER, 0), 0);
    expect_byte(node, 99, '0');
    expect_byte(node, 100, 0);
    expect_byte(node, 3 * CLUSTER + 99, 0);
    expect_byte(node, 3 * CLUSTER + 100, '3');
}

/* Version 2 over a backing file has no way to zero but to write. */
static void refused_fast_zero_changes_nothing(void **state)
{
    play(2, true, act_refused);
}

static void act_fast(struct node *node)
{
    /* Whole clusters are fast, with the edges that come with them. */
    assert_int_equal(block_zero(node, 100, 3 * CLUSTER, ZERO_FAST), 0);
    expect_byte(node, 99, '0');
    expect_byte(node, 100, 0);
    expect_byte(node, 3 * CLUSTER + 99, 0);
    expect_byte(node, 3 * CLUSTER + 100, '3');
    /* An edge alone is not, unless it is zeroes already. */
    assert_int_equal(block_zero(node, 50, 49, ZERO_FAST), -ENOTSUP);
    expect_byte(node, 50, '0');
    assert_int_equal(block_zero(node, 4 * CLUSTER + 1, 1000, ZERO_FAST), 0);
    assert_int_equal(block_zero(node, MIB + 1, CLUSTER / 2 - 1, ZERO_FAST), 0);
    assert_int_equal(block_zero(node, MIB, CLUSTER / 2, ZERO_FAST), 0);
}

static void fast_zero(void **state)
{
    play(3, false, act_fast);
    play(3, true, act_fast);
}

/* Whether the cluster has storage, and reads as zeroes. */
static bool is_provisioned(struct node *node, uint64_t cluster)
{
    uint64_t offset = cluster * CLUSTER, length = min_u64(CLUSTER, node->size - offset);
    uint8_t data[CLUSTER];
    struct extent e;

    assert_int_equal(block_read(node, data, length, offset), 0);
    assert_true(bytes_are_zero(data, length));
    assert_int_equal(node->driver->map(node, offset, length, &e), 0);
    return e.kind == EXTENT_DATA || e.flags & EXTENT_RESERVED;
}

static void act_provision(struct node *node)
{
    /* Not everywhere is storage: that cannot be fast. */
    assert_int_equal(block_zero(node, 2 * CLUSTER, 8 * CLUSTER, ZERO_FAST | BLOCK_ALLOCATE),
                     -ENOTSUP);
    expect_byte(node, 2 * CLUSTER, '2');
    assert_int_equal(block_zero(node, 2 * CLUSTER, 8 * CLUSTER + 5, BLOCK_ALLOCATE), 0);
    for (unsigned i = 2; i < 11; i++)
        assert_true(is_provisioned(node, i));
    assert_false(is_provisioned(node, 11));
    expect_byte(node, 2 * CLUSTER - 1, '1');
    assert_int_equal(block_zero(node, MIB - 1, CLUSTER / 2 + 1, BLOCK_ALLOCATE), 0);
    assert_true(is_provisioned(node, 255));
    assert_true(is_provisioned(node, 256));
    assert_false(is_provisioned(node, 254));
    /* Without the demand nothing is allocated for zeroes. */
    assert_int_equal(block_zero(node, 20 * CLUSTER, 4 * CLUSTER, 0), 0);
    assert_false(is_provisioned(node, 21));
}

static void act_provision_fast(struct node *node)
{
    act_provision(node);
    assert_int_equal(block_zero(node, 2 * CLUSTER, 8 * CLUSTER, ZERO_FAST | BLOCK_ALLOCATE), 0);
    for (unsigned i = 2; i < 10; i++)
        assert_true(is_provisioned(node, i));
}

static void zeroes_with_storage(void **state)
{
    play(3, false, act_provision_fast);
    play(3, true, act_provision_fast);
    /* Version 2 has no zeroes with storage: writing them is the only way. */
    play(2, false, act_provision);
}

/* ---- Files ---- */

static const struct sys *inner;
static struct sys counting;
static unsigned seeks, reads;

static int64_t count_lseek(int fd, uint64_t offset, int whence)
{
    seeks++;
    return inner->lseek(fd, offset, whence);
}

static ssize_t count_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags)
{
    reads++;
    return inner->preadv(fd, iov, iovcnt, offset, flags);
}

static struct node *open_raw(unsigned flags)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sim};
    struct error error = {.text = ""};
    struct node *node;

    if (node_open_image(&context, RAW_PATH, "raw", NULL, flags, &node, NULL, &error) < 0)
        test_die("%s", error.text);
    return node;
}

/* A file of 1 MiB: 256 KiB of data, the rest a hole. */
static void with_raw(int (*act)(void *arg))
{
    static uint8_t data[256 * 1024];

    memset(data, 'd', sizeof(data));
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    sim_disk_create(RAW_PATH, NULL, MIB);
    inner = sys;
    counting = *sys;
    counting.lseek = count_lseek;
    counting.preadv = count_preadv;
    sys = &counting;
    assert_int_equal(test_run(act, data), 0);
    sys = inner;
    sim_disk_remove();
}

static void expect_status(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct block_status status;

    assert_int_equal(block_get_status(node, offset, MIB - offset, &status), 0);
    assert_int_equal(status.flags & (STATUS_DATA | STATUS_ZERO), flags);
    assert_int_equal(status.length, length);
}

static int act_map(void *data)
{
    struct node *node = open_raw(NODE_WRITABLE | NODE_UNMAP);
    unsigned before;

    assert_int_equal(block_write(node, data, 256 * 1024, 0, 0), 0);
    expect_status(node, 0, 256 * 1024, STATUS_DATA);
    before = seeks;
    for (uint64_t at = 0; at < 256 * 1024; at += CLUSTER) {
        struct extent e;

        assert_int_equal(node->file->driver->map(node->file, at, CLUSTER, &e), 0);
        assert_int_equal(e.kind, EXTENT_DATA);
        assert_int_equal(e.length, CLUSTER);
    }
    assert_int_equal(seeks, before);
    expect_status(node, 256 * 1024, MIB - 256 * 1024, STATUS_ZERO);
    /* What is given back is a hole at once. */
    expect_status(node, 0, 256 * 1024, STATUS_DATA);
    assert_int_equal(block_discard(node, 65536, 65536, 0), 0);
    expect_status(node, 0, 65536, STATUS_DATA);
    expect_status(node, 65536, 65536, STATUS_ZERO);
    assert_int_equal(block_zero(node, 0, 32768, ZERO_MAY_UNMAP), 0);
    expect_status(node, 0, 32768, STATUS_ZERO);
    node_unref(node);
    return 0;
}

static void runs_of_data_are_remembered(void **state)
{
    with_raw(act_map);
}

static int act_prefetch(void *data)
{
    struct node *node = open_raw(NODE_WRITABLE);

    assert_int_equal(block_write(node, data, 256 * 1024, 512 * 1024, 0), 0);
    reads = 0;
    assert_int_equal(block_prefetch(node, 0, MIB), 0);
    assert_true(reads > 0);
    reads = 0;
    assert_int_equal(block_prefetch(node, 0, 512 * 1024), 0);
    assert_int_equal(block_prefetch(node, 768 * 1024, 256 * 1024), 0);
    assert_int_equal(block_prefetch(node, MIB, 0), 0);
    assert_int_equal(reads, 0);
    assert_int_equal(block_prefetch(node, MIB, 1), -EINVAL);
    /* The same of a file that is served without a format. */
    assert_int_equal(block_prefetch(node->file, 512 * 1024, 65536), 0);
    assert_true(reads > 0);
    node_unref(node);
    return 0;
}

static void prefetch_reads_data(void **state)
{
    with_raw(act_prefetch);
}

static int act_fast_file(void *data)
{
    struct node *node = open_raw(NODE_WRITABLE | NODE_UNMAP);

    assert_int_equal(block_write(node, data, 256 * 1024, 0, 0), 0);
    /* A file system that can punch holes, but not zero with storage. */
    fault_arm(&(struct fault_plan){.calls = FAULT_FALLOCATE, .nth = 1, .error = EOPNOTSUPP});
    assert_int_equal(block_zero(node, 0, 65536, ZERO_FAST), -ENOTSUP);
    assert_true(fault_fired());
    assert_int_equal(block_zero(node, 0, 65536, ZERO_FAST | BLOCK_ALLOCATE), -ENOTSUP);
    expect_byte(node, 0, 'd');
    expect_byte(node, 65535, 'd');
    assert_int_equal(block_zero(node, 0, 65536, ZERO_FAST | ZERO_MAY_UNMAP), 0);
    expect_byte(node, 0, 0);
    assert_int_equal(block_zero(node, 65536, 65536, BLOCK_ALLOCATE), 0);
    expect_byte(node, 65536, 0);
    expect_byte(node, 131072, 'd');
    node_unref(node);
    return 0;
}

static void file_without_fast_zero(void **state)
{
    static uint8_t data[256 * 1024];

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    sim_disk_create(RAW_PATH, NULL, MIB);
    fault_install();
    memset(data, 'd', sizeof(data));
    assert_int_equal(test_run(act_fast_file, data), 0);
    fault_remove();
    sim_disk_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_fast_zero_changes_nothing),
        cmocka_unit_test(fast_zero),
        cmocka_unit_test(zeroes_with_storage),
        cmocka_unit_test(runs_of_data_are_remembered),
        cmocka_unit_test(prefetch_reads_data),
        cmocka_unit_test(file_without_fast_zero),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
