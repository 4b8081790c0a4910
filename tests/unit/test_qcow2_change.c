/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Operations that change a qcow2 image as a whole (another size, other features), when a call fails
 * and when the power does: at the k-th write, sync or truncation, for every k, and after every
 * change to the file with anything of what was not flushed lost or torn.
 *
 * The disk is then what it was, or what it was to become; the image has no error, leaks at most;
 * and it can be used on.
 */
#include "base/checked.h"
#include "base/options.h"
#include "base/sys.h"
#include "blockcore/amend.h"
#include "blockcore/resize.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"
#include "tests/support/recorder.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define BASE_BYTE 0xb5
#define SECTOR 512
#define CUT_SEEDS 4 /* ways to lose what was not flushed, at each record */

/* Backing files, all alike. */
static const char *const base_paths[] = {"/sim/base.raw", "/sim/another.raw",
                                         "/sim/the-base-by-its-longer-name.raw"};

struct stage;

struct operation {
    const char *name;
    /* The image before: as many clusters, of which the first `filled` hold something. */
    unsigned version, cluster_bits, order;
    uint64_t clusters, filled, odd_bytes; /* the disk ends so many bytes behind the clusters */
    bool snapshot, backing;               /* the backing file is twice as long as the disk */
    int (*run)(const struct stage *stage, struct node *node, struct error *error);
    /* What is asked for. */
    uint64_t size; /* bytes; 0: as before */
    enum preallocation preallocation;
    const char *options; /* to amend; or the name of another backing file */
    bool writes;         /* other contents; cut off, each sector is old or new */
};

struct stage {
    const struct operation *op;
    struct fault_plan plan;
    uint64_t old_size, new_size;
    uint8_t *old, *new; /* the disk before and afterwards */
    int result;
    bool fired, cut;
};

static void plant(struct stage *stage, struct qcow2_image *image)
{
    uint64_t cluster = UINT64_C(1) << image->cluster_bits;

    for (uint64_t i = 0; i < stage->op->filled; i++) {
        uint8_t fill = (uint8_t)(i + 1);

        if (i % 4 == 2) {
            fill = 0;
            if (image->version >= 3)
                qcow2_image_set(image, i, i % 8 == 2 ? qcow2_image_add(image, 1) | 1 : 1);
            else
                qcow2_image_data(image, i, 0);
        } else if (i % 4 == 1) {
            qcow2_image_compressed(image, i, fill, true);
        } else if (i % 4 == 0) {
            qcow2_image_data(image, i, fill);
        } else {
            continue;
        }
        memset(stage->old + i * cluster, fill, cluster);
    }
}

static void store_base(const struct stage *stage)
{
    uint8_t *base = malloc(2 * stage->old_size);

    memset(base, BASE_BYTE, 2 * stage->old_size);
    for (size_t i = 0; i < ARRAY_SIZE(base_paths); i++)
        sim_disk_create(base_paths[i], base, 2 * stage->old_size);
    free(base);
}

/* Contents of which most can be compressed, some not, and some are zeroes. */
static void invent(struct stage *stage)
{
    uint64_t cluster = UINT64_C(1) << stage->op->cluster_bits;
    struct prng prng = prng_of(test_seed());

    for (uint64_t at = 0, i = 0; at < stage->new_size; at += cluster, i++) {
        uint64_t length = min_u64(cluster, stage->new_size - at);

        memset(stage->new + at, i % 7 == 3 ? 0 : (int)(i + 100), length);
        if (i % 7 != 3)
            prng_fill(&prng, stage->new + at, i % 5 == 2 ? length : length / 3);
    }
}

static void stage_init(struct stage *stage, const struct operation *op)
{
    struct qcow2_image image = {
        .version = op->version,
        .cluster_bits = op->cluster_bits,
        .order = op->order,
        .size = (op->clusters << op->cluster_bits) + op->odd_bytes,
        .backing = op->backing ? "base.raw" : NULL,
        .backing_format = op->backing ? "raw" : NULL,
    };

    *stage = (struct stage){.op = op, .old_size = image.size};
    stage->new_size = op->size ? op->size : image.size;
    stage->old = malloc(max_u64(stage->old_size, stage->new_size));
    stage->new = calloc(1, stage->new_size);
    assert_true(stage->old && stage->new);
    memset(stage->old, op->backing ? BASE_BYTE : 0, image.size);
    if (op->backing)
        store_base(stage);
    qcow2_image_start(&image);
    plant(stage, &image);
    if (op->snapshot)
        qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
    memcpy(stage->new, stage->old, min_u64(stage->old_size, stage->new_size));
    if (op->writes)
        invent(stage);
}

static void stage_fini(struct stage *stage)
{
    free(stage->old);
    free(stage->new);
}

/* Writes here and there what is there already, so that tables are dirty when it begins. */
static void make_dirty(const struct stage *stage, struct node *node)
{
    uint64_t cluster = node->cluster_size;

    for (uint64_t at = 0; at + cluster <= stage->old_size; at += 5 * cluster)
        assert_int_equal(block_write(node, stage->old + at, cluster, at, 0), 0);
}

static int run_operation(void *arg)
{
    struct stage *stage = arg;
    struct error error = {.text = ""};
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);

    make_dirty(stage, node);
    fault_arm(&stage->plan);
    stage->result = stage->op->run(stage, node, &error);
    stage->fired = fault_fired();
    if (stage->plan.nth == 0 && stage->result < 0)
        test_die("%s: %s", stage->op->name, error.text);
    assert_true(stage->result == 0 || error.text[0] != 0);
    assert_true(stage->result == 0 || stage->fired);
    node_unref(node);
    stage->fired |= fault_fired();
    fault_arm(&(struct fault_plan){0});
    return 0;
}

/* Each sector is as it was, or as it was to become. */
static void check_sectors(const struct stage *stage, const uint8_t *seen)
{
    for (uint64_t at = 0; at < stage->new_size; at += SECTOR) {
        if (memcmp(seen + at, stage->old + at, SECTOR) != 0 &&
            memcmp(seen + at, stage->new + at, SECTOR) != 0)
            test_die("%s: the sector at %lu is neither old nor new", stage->op->name, at);
    }
}

static void check_disk(const struct stage *stage, struct node *node)
{
    uint8_t *seen = malloc(node->size + 1);
    bool is_new = node->size == stage->new_size;

    if (!is_new && node->size != stage->old_size)
        test_die("%s: the disk has %lu bytes", stage->op->name, node->size);
    assert_int_equal(block_read(node, seen, node->size, 0), 0);
    if (stage->op->writes && (stage->result < 0 || stage->cut))
        check_sectors(stage, seen);
    for (uint64_t i = 0; i < node->size && !stage->op->writes; i++) {
        uint8_t wanted = is_new ? stage->new[i] : stage->old[i];

        if (seen[i] != wanted)
            test_die("%s: byte %lu of %lu is %#x instead of %#x", stage->op->name, i, node->size,
                     seen[i], wanted);
    }
    if (stage->op->writes && stage->result == 0 && !stage->cut)
        assert_memory_equal(seen, stage->new, stage->new_size);
    free(seen);
}

/* Everything is written once more. */
static void use_on(void)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);
    uint8_t *data = malloc(node->size + 1), *seen = malloc(node->size + 1);
    struct prng prng = prng_of(test_seed());

    prng_fill(&prng, data, node->size);
    assert_int_equal(block_write(node, data, node->size, 0, 0), 0);
    node_unref(node);
    node = stage_open(0);
    assert_int_equal(block_read(node, seen, node->size, 0), 0);
    assert_memory_equal(seen, data, node->size);
    node_unref(node);
    stage_check(false);
    free(data);
    free(seen);
}

static int look_afterwards(void *arg)
{
    struct stage *stage = arg;
    struct node *node;

    stage_check(!stage->fired);
    node = stage_open(0);
    assert_true(stage->result < 0 || node->size == stage->new_size);
    check_disk(stage, node);
    node_unref(node);
    use_on();
    return 0;
}

/* One run; whether the fault came. */
static bool try_fault(const struct operation *op, struct fault_plan plan)
{
    struct stage stage;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    fault_install();
    stage_init(&stage, op);
    stage.plan = plan;
    assert_int_equal(test_run(run_operation, &stage), 0);
    assert_int_equal(test_run(look_afterwards, &stage), 0);
    assert_int_equal(sim_disk_open_count(), 0);
    stage_fini(&stage);
    fault_remove();
    sim_disk_remove();
    return stage.fired;
}

static void try_faults(const struct operation *op)
{
    static const struct fault_plan plans[] = {
        {.calls = FAULT_PWRITEV, .error = EIO},
        {.calls = FAULT_PWRITEV, .error = ENOSPC, .sticky = true},
        {.calls = FAULT_FDATASYNC, .error = EIO},
        {.calls = FAULT_PREADV, .error = EIO},
        {.calls = FAULT_FTRUNCATE | FAULT_FALLOCATE, .error = EIO},
    };

    for (size_t i = 0; i < ARRAY_SIZE(plans); i++) {
        struct fault_plan plan = plans[i];

        do {
            plan.nth++;
        } while (try_fault(op, plan));
        assert_true(plan.nth > 1 || i > 2);
    }
}

static int look_at_rest(void *arg)
{
    struct stage *stage = arg;
    struct node *node;

    stage_check(false);
    node = stage_open(0);
    check_disk(stage, node);
    node_unref(node);
    use_on();
    return 0;
}

static int change_backing(const struct stage *stage, struct node *node, struct error *error)
{
    return block_change_backing(node, stage->op->options, "raw", error);
}

static void try_cuts(const struct operation *op)
{
    const struct sys *below, *recording;
    /* Few changes, of which most tear in ways that do no harm: they are tried more often. */
    uint64_t seeds = op->run == change_backing ? 40 : CUT_SEEDS;
    struct stage stage;
    size_t count;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    fault_install();
    stage_init(&stage, op);
    below = sys;
    recorder_install();
    recording = sys;
    assert_int_equal(test_run(run_operation, &stage), 0);
    count = recorder_count();
    assert_true(count > 0);
    stage.cut = true;
    for (size_t i = 0; i <= count; i++) {
        for (uint64_t seed = 0; seed < seeds; seed++) {
            struct content content = {0};

            recorder_rebuild(&content, (unsigned)recorder_file(STAGE_PATH), i,
                             seed ? test_seed() + i * seeds + seed : 0);
            sys = below;
            sim_disk_create(STAGE_PATH, content.data, content.size);
            assert_int_equal(test_run(look_at_rest, &stage), 0);
            sys = recording;
            content_fini(&content);
        }
    }
    recorder_remove();
    fault_remove();
    sim_disk_remove();
    stage_fini(&stage);
}

static int resize(const struct stage *stage, struct node *node, struct error *error)
{
    const struct block_resize resize = {stage->op->size, stage->op->preallocation, true};

    return block_resize(node, &resize, error);
}

/* A few clusters a call, so that they are not all on their way at once. */
static int compress(const struct stage *stage, struct node *node, struct error *error)
{
    uint64_t piece = 5 * (uint64_t)node->compress_unit;
    int err = 0;

    for (uint64_t at = 0; at < stage->new_size && err == 0; at += piece)
        err =
            block_write_compressed(node, stage->new + at, min_u64(piece, stage->new_size - at), at);
    if (err == 0)
        err = block_flush(node);
    return err < 0 ? error_set_errno(error, -err, "writing") : 0;
}

static int amend(const struct stage *stage, struct node *node, struct error *error)
{
    json_t *options;
    int err = options_parse(stage->op->options, NULL, &options, error);

    assert_int_equal(err, 0);
    err = block_amend(node, options, NULL, error);
    json_decref(options);
    return err;
}

static const struct operation operations[] = {
    {"grow a little", 3, 12, 4, 20, 20, 512, false, false, resize, 40 * 4096, PREALLOCATION_OFF},
    {"grow the L1 table", 3, 9, 4, 60, 60, 0, false, false, resize, 512 * KIB, PREALLOCATION_OFF},
    {"grow it far", 3, 9, 6, 60, 60, 0, false, false, resize, 3 * MIB, PREALLOCATION_OFF},
    {"grow beside a snapshot", 3, 9, 4, 60, 60, 512, true, false, resize, 64 * KIB + 512,
     PREALLOCATION_OFF},
    {"grow over a backing file", 3, 12, 4, 10, 6, 512, false, true, resize, 40 * 4096,
     PREALLOCATION_OFF},
    {"grow over a backing file, version 2", 2, 12, 4, 10, 6, 512, false, true, resize, 40 * 4096,
     PREALLOCATION_OFF},
    {"grow with metadata", 3, 12, 4, 10, 10, 512, false, false, resize, 30 * 4096 + 512,
     PREALLOCATION_METADATA},
    {"grow in full", 3, 12, 1, 10, 10, 0, false, false, resize, 30 * 4096, PREALLOCATION_FULL},
    {"grow with storage", 2, 12, 4, 10, 10, 0, false, false, resize, 30 * 4096,
     PREALLOCATION_FALLOC},
    {"shrink a little", 3, 12, 4, 30, 30, 512, false, false, resize, 17 * 4096 + 512,
     PREALLOCATION_OFF},
    {"shrink the L1 table", 3, 9, 4, 600, 600, 0, false, false, resize, 40 * 512,
     PREALLOCATION_OFF},
    {"shrink beside a snapshot", 3, 9, 4, 300, 300, 0, true, false, resize, 40 * 512,
     PREALLOCATION_OFF},
    {"shrink over a backing file", 3, 12, 4, 30, 24, 0, false, true, resize, 5 * 4096 + 512,
     PREALLOCATION_OFF},
    {"shrink, version 2", 2, 12, 4, 30, 30, 0, false, false, resize, 6 * 4096, PREALLOCATION_OFF},
    {"compress", 3, 12, 4, 30, 20, 512, false, false, compress, .writes = true},
    {"compress beside a snapshot", 3, 12, 4, 30, 20, 0, true, false, compress, .writes = true},
    {"compress over a backing file", 2, 9, 4, 80, 40, 0, false, true, compress, .writes = true},
    {"widen refcounts", 3, 9, 4, 200, 150, 0, true, false, amend, .options = "refcount_bits=64"},
    {"narrow refcounts", 3, 9, 6, 200, 150, 0, false, false, amend, .options = "refcount_bits=4"},
    {"upgrade", 2, 12, 4, 20, 12, 0, false, true, amend,
     .options = "compat=1.1,lazy_refcounts=on,refcount_bits=8"},
    {"upgrade beside a snapshot", 2, 9, 4, 100, 80, 0, true, false, amend, .options = "compat=1.1"},
    {"downgrade", 3, 12, 4, 40, 40, 512, false, false, amend, .options = "compat=0.10"},
    {"downgrade over a backing file", 3, 12, 4, 40, 30, 0, false, true, amend,
     .options = "compat=0.10"},
    {"downgrade from wide refcounts", 3, 9, 6, 90, 80, 0, false, false, amend,
     .options = "compat=0.10,refcount_bits=16"},
    {"lazy refcounts", 3, 12, 4, 20, 12, 0, false, false, amend, .options = "lazy_refcounts=on"},
    {"everything", 2, 9, 4, 90, 80, 0, false, false, amend, 20 * 512,
     .options = "compat=1.1,lazy_refcounts=on,refcount_bits=32,size=10k"},
    {"another backing file", 3, 12, 4, 20, 12, 0, false, true, change_backing,
     .options = "the-base-by-its-longer-name.raw"},
    {"another backing file in small clusters", 3, 9, 4, 50, 40, 0, false, true, change_backing,
     .options = "another.raw"},
    {"another backing file, version 2", 2, 12, 4, 20, 12, 0, false, true, change_backing,
     .options = "another.raw"},
    {"compress with narrow refcounts", 3, 12, 1, 30, 20, 0, false, false, compress, .writes = true},
};

static void write_byte(struct node *node, uint64_t cluster, uint8_t byte, bool compressed)
{
    uint8_t data[4096];

    memset(data, byte, sizeof(data));
    if (compressed)
        assert_int_equal(block_write_compressed(node, data, sizeof(data), cluster * 4096), 0);
    else
        assert_int_equal(block_write(node, data, sizeof(data), cluster * 4096, 0), 0);
}

/* A host cluster that has room for more is given back, and is somebody else's then. */
static int run_reuse(void *arg)
{
    struct node *node = stage_open(NODE_WRITABLE | NODE_UNMAP);

    write_byte(node, 0, 1, true);
    assert_int_equal(block_zero(node, 0, 4096, ZERO_MAY_UNMAP | BLOCK_FUA), 0);
    write_byte(node, 1, 2, false);
    for (uint64_t i = 2; i < 10; i++)
        write_byte(node, i, (uint8_t)(i + 1), true);
    node_unref(node);
    node = stage_open(0);
    for (uint64_t i = 1; i < 10; i++) {
        uint8_t seen[4096];

        assert_int_equal(block_read(node, seen, sizeof(seen), i * 4096), 0);
        for (unsigned k = 0; k < sizeof(seen); k++)
            assert_int_equal(seen[k], i + 1);
    }
    node_unref(node);
    return 0;
}

static void a_freed_cluster_takes_no_more(void **state)
{
    struct qcow2_image image = {.version = 3, .cluster_bits = 12, .order = 4, .size = 10 * 4096};

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    qcow2_image_start(&image);
    qcow2_image_finish(&image);
    stage_store(&image);
    qcow2_image_fini(&image);
    assert_int_equal(test_run(run_reuse, NULL), 0);
    stage_check(true);
    sim_disk_remove();
}

static void a_call_fails(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++)
        try_faults(&operations[i]);
}

static void the_power_fails(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++)
        try_cuts(&operations[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_freed_cluster_takes_no_more),
        cmocka_unit_test(a_call_fails),
        cmocka_unit_test(the_power_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
