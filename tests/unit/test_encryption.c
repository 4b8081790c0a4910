/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Encrypted nodes under the data engine, on the simulated disk, against a model: many requests at
 * once that share sectors but never bytes, so that one that covers a sector in part must not undo
 * another; then what happens when calls fail or the power goes while a volume is made or its keys
 * are changed.
 */
#include "base/checked.h"
#include "blockcore/cipher.h"
#include "blockcore/create.h"
#include "blockcore/luks.h"
#include "tests/support/fault.h"
#include "tests/support/qcow2_stage.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define PATH "/sim/disk"
#define SIZE (40 * 4096 + 512)
#define ACTORS 7
#define STEPS 60
#define PIECE 200 /* bytes that belong to one actor: sectors are shared */

static struct secret_store secrets;
static const struct block_context context = {
    .drivers = block_drivers, .engine = &io_engine_sim, .secrets = &secrets};

struct stage {
    const char *format, *create, *open; /* options as JSON */
    uint32_t alignment;                 /* forced on the file; 0: as it is */
    struct node *node;
    uint8_t model[SIZE];
    struct co_group group;
};

struct actor {
    struct stage *stage;
    unsigned number;
    struct prng prng;
};

static int create(const char *format, const char *text, struct error *error)
{
    json_t *options = json_loads(text, 0, NULL);
    int err;

    assert_non_null(options);
    err = block_create(&context, format, PATH, options, error);
    json_decref(options);
    return err;
}

static int open_node(const struct stage *stage, unsigned flags, struct node **ret,
                     struct error *error)
{
    json_t *options = json_loads(stage->open, 0, NULL);
    int err;

    assert_non_null(options);
    err = node_open_image(&context, PATH, stage->format, options, flags, ret, NULL, error);
    json_decref(options);
    return err;
}

/* A range within the actor's own bytes; now and then all of them in a row of pieces. */
static size_t own_range(struct actor *actor, uint64_t *ret)
{
    uint64_t pieces = SIZE / PIECE;
    uint64_t piece = prng_below(&actor->prng, pieces / ACTORS) * ACTORS + actor->number;
    uint64_t skip = prng_below(&actor->prng, PIECE / 2);

    *ret = piece * PIECE + skip;
    return 1 + prng_below(&actor->prng, PIECE - skip);
}

static int act(struct actor *actor)
{
    struct stage *stage = actor->stage;
    uint8_t buffer[PIECE];
    uint64_t offset;
    size_t length = own_range(actor, &offset);
    const struct iovec iov[] = {{buffer, length / 2}, {buffer + length / 2, length - length / 2}};
    int err;

    switch (prng_below(&actor->prng, 5)) {
    case 0:
    case 1:
        prng_fill(&actor->prng, buffer, length);
        memcpy(stage->model + offset, buffer, length);
        return block_writev(stage->node, iov, 2, offset, 0);
    case 2:
        memset(stage->model + offset, 0, length);
        return block_zero(stage->node, offset, length, ZERO_MAY_UNMAP);
    case 3:
        err = block_read_nowait(stage->node, buffer, length, offset);
        if (err == -EAGAIN)
            return 0;
        break;
    default:
        err = block_readv(stage->node, iov, 2, offset);
        break;
    }
    if (err == 0 && memcmp(buffer, stage->model + offset, length) != 0)
        test_die("actor %u: %zu bytes at %lu are not what was written last", actor->number, length,
                 offset);
    return err;
}

static int run_actor(void *arg)
{
    int err = 0;

    for (unsigned i = 0; i < STEPS && err == 0; i++)
        err = act(arg);
    return err;
}

static void check_all(struct stage *stage)
{
    uint8_t *all = malloc(SIZE);

    assert_int_equal(block_read(stage->node, all, SIZE, 0), 0);
    for (size_t i = 0; i < SIZE; i++) {
        if (all[i] != stage->model[i])
            test_die("byte %zu is %#x, not %#x", i, all[i], stage->model[i]);
    }
    /* Aligned, and large: in place and in a worker. */
    memset(all, 0, SIZE);
    if (block_read_nowait(stage->node, all, 4096, 8192) == 0)
        assert_memory_equal(all, stage->model + 8192, 4096);
    free(all);
}

static void check_nothing_flat(struct stage *stage)
{
    struct block_extent extent;
    struct block_status status;

    for (uint64_t offset = 0; offset < SIZE; offset += 4096)
        assert_true(block_resolve(stage->node, offset, 512, &extent) < 0);
    for (uint64_t offset = 0; offset < SIZE; offset += status.length) {
        assert_int_equal(block_get_status(stage->node, offset, SIZE - offset, &status), 0);
        if (status.flags & STATUS_ZERO)
            assert_true(bytes_are_zero(stage->model + offset, status.length));
    }
}

static int run_stage(void *arg)
{
    struct stage *stage = arg;
    struct actor actors[ACTORS];
    struct error error = {.text = ""};

    if (create(stage->format, stage->create, &error) < 0 ||
        open_node(stage, NODE_WRITABLE | NODE_UNMAP, &stage->node, &error) < 0)
        test_die("%s", error.text);
    for (struct node *n = stage->node->file; stage->alignment && n; n = n->file)
        n->request_alignment = stage->alignment;
    assert_int_equal(stage->node->size, SIZE);
    assert_int_equal(block_zero(stage->node, 0, SIZE, 0), 0);
    for (unsigned round = 0; round < 3; round++) {
        co_group_init(&stage->group);
        for (unsigned i = 0; i < ACTORS; i++) {
            actors[i] = (struct actor){stage, i, prng_of(test_seed() + round * ACTORS + i)};
            co_group_start(&stage->group, run_actor, &actors[i]);
        }
        assert_int_equal(co_group_wait(&stage->group), 0);
        check_all(stage);
        check_nothing_flat(stage);
    }
    node_unref(stage->node);
    assert_int_equal(open_node(stage, 0, &stage->node, &error), 0);
    check_all(stage);
    node_unref(stage->node);
    return 0;
}

static void start(void)
{
    if (!cipher_available())
        test_skip("this build is without ciphers (nettle)");
    sim_disk_install(&(struct sim_disk_config){
        .seed = test_seed(), .short_percent = 10, .eintr_percent = 5, .uncached_percent = 40});
    secret_store_init(&secrets);
    assert_int_equal(secret_store_add(&secrets, "s", "open sesame", 11, NULL), 0);
    assert_int_equal(secret_store_add(&secrets, "t", "other", 5, NULL), 0);
}

static void stop(void)
{
    assert_int_equal(sim_disk_open_count(), 0);
    secret_store_fini(&secrets);
    sim_disk_remove();
}

static void play(const char *format, const char *create_options, const char *open_options,
                 uint32_t alignment)
{
    struct stage *stage;

    start();
    stage = calloc(1, sizeof(*stage));
    *stage = (struct stage){format, create_options, open_options, alignment, .node = NULL};
    assert_int_equal(test_run(run_stage, stage), 0);
    free(stage);
    stop();
}

_Static_assert(SIZE == 164352, "the size in the options");

#define LUKS_OPTIONS "{\"size\": 164352, \"key-secret\": \"s\", \"iter-time\": 1}"
#define OPEN_LUKS "{\"key-secret\": \"s\"}"
#define OPEN_QCOW2 "{\"encrypt\": {\"key-secret\": \"s\"}}"
#define QCOW2_OPTIONS(encrypt, more)                                                               \
    "{\"size\": 164352, \"cluster_size\": 4096, \"encrypt\": {\"key-secret\": \"s\", "             \
    "\"format\": " encrypt "}" more "}"

static void test_luks(void **state)
{
    play("luks", LUKS_OPTIONS, OPEN_LUKS, 0);
}

static void test_luks_aligned(void **state)
{
    play("luks", LUKS_OPTIONS, OPEN_LUKS, 4096);
}

static void test_qcow2_luks(void **state)
{
    play("qcow2", QCOW2_OPTIONS("\"luks\", \"iter-time\": 1", ""), OPEN_QCOW2, 0);
}

static void test_qcow2_aes(void **state)
{
    play("qcow2", QCOW2_OPTIONS("\"aes\"", ""), OPEN_QCOW2, 0);
}

static void test_qcow2_preallocated(void **state)
{
    play("qcow2", QCOW2_OPTIONS("\"luks\", \"iter-time\": 1", ", \"preallocation\": \"metadata\""),
         OPEN_QCOW2, 512);
}

/* Without a key the map is there, and no byte of the data. */
static int look_without_key(void *arg)
{
    struct stage *stage = arg;
    struct block_status status;
    struct extent e;
    uint8_t byte;

    assert_int_equal(create(stage->format, stage->create, NULL), 0);
    assert_int_equal(open_node(stage, NODE_WRITABLE, &stage->node, NULL), 0);
    assert_int_equal(block_write(stage->node, "x", 1, 0, 0), 0);
    node_unref(stage->node);
    stage->open = "{}";
    assert_int_equal(open_node(stage, 0, &stage->node, NULL), -ENOKEY);
    assert_int_equal(open_node(stage, NODE_NO_DATA, &stage->node, NULL), 0);
    assert_int_equal(stage->node->driver->map(stage->node, 0, 512, &e), 0);
    assert_true(e.flags & EXTENT_ENCRYPTED);
    assert_int_equal(block_get_status(stage->node, 0, 512, &status), 0);
    assert_int_equal(block_read(stage->node, &byte, 1, 0), -EACCES);
    assert_int_equal(block_read_nowait(stage->node, &byte, 1, 0), -EACCES);
    node_unref(stage->node);
    return 0;
}

static void test_no_key(void **state)
{
    static struct stage stages[] = {
        {.format = "luks", .create = LUKS_OPTIONS, .open = OPEN_LUKS},
        {.format = "qcow2", .create = QCOW2_OPTIONS("\"aes\"", ""), .open = OPEN_QCOW2},
    };

    start();
    for (size_t i = 0; i < ARRAY_SIZE(stages); i++)
        assert_int_equal(test_run(look_without_key, &stages[i]), 0);
    stop();
}

/* A fast zeroing of what can only be written is refused, and has changed nothing. */
static int zero_fast(void *arg)
{
    static struct stage stage = {.format = "luks", .open = OPEN_LUKS}; /* too large for a stack */
    uint8_t bytes[512], back[512];

    memset(bytes, 7, sizeof(bytes));
    assert_int_equal(create("luks", LUKS_OPTIONS, NULL), 0);
    assert_int_equal(open_node(&stage, NODE_WRITABLE | NODE_UNMAP, &stage.node, NULL), 0);
    assert_int_equal(block_write(stage.node, bytes, sizeof(bytes), 512, 0), 0);
    assert_int_equal(block_zero(stage.node, 0, 4096, ZERO_FAST | ZERO_MAY_UNMAP), -ENOTSUP);
    assert_int_equal(block_discard(stage.node, 0, 4096, 0), 0);
    assert_int_equal(block_read(stage.node, back, sizeof(back), 512), 0);
    assert_memory_equal(back, bytes, sizeof(back));
    node_unref(stage.node);
    return 0;
}

static void test_zero_fast(void **state)
{
    start();
    assert_int_equal(test_run(zero_fast, NULL), 0);
    stop();
}

/* ---- calls that fail, and power cuts ---- */

static const char *const add_key =
    "{\"state\": \"active\", \"new-secret\": \"t\", \"iter-time\": 1}";
static const char *const erase_key = "{\"state\": \"inactive\", \"old-secret\": \"t\"}";

static const struct stage luks_stage = {
    .format = "luks", .create = LUKS_OPTIONS, .open = OPEN_LUKS};
static const struct stage luks_stage_other = {.format = "luks", .open = "{\"key-secret\": \"t\"}"};

static int change_keys(const char *text)
{
    json_t *options = json_loads(text, 0, NULL);
    struct node *node;
    int err = open_node(&luks_stage, NODE_WRITABLE, &node, NULL);

    assert_non_null(options);
    if (err == 0) {
        err = luks_amend(node, &secrets, options, false, NULL);
        node_unref(node);
    }
    json_decref(options);
    return err;
}

static bool opens_with(const struct stage *stage)
{
    struct node *node;

    if (open_node(stage, 0, &node, NULL) < 0)
        return false;
    node_unref(node);
    return true;
}

static int fail_each_create(void *arg)
{
    for (unsigned k = 1;; k++) {
        bool fired;
        int err;

        sim_disk_create(PATH, NULL, 0);
        fault_arm(&(struct fault_plan){.calls = FAULT_PREADV | FAULT_PWRITEV | FAULT_FDATASYNC |
                                                FAULT_FTRUNCATE | FAULT_RANDOM,
                                       .nth = k,
                                       .error = EIO});
        err = create("luks", LUKS_OPTIONS, NULL);
        fired = fault_fired();
        fault_arm(&(struct fault_plan){0});
        if (!fired) {
            assert_int_equal(err, 0);
            break;
        }
        assert_true(err < 0);
    }
    return opens_with(&luks_stage) ? 0 : -1;
}

/* The old key opens after every failure; the new one if the call said so. */
static int fail_each_change(void *arg)
{
    for (unsigned k = 1;; k++) {
        bool fired;
        int err;

        assert_int_equal(create("luks", LUKS_OPTIONS, NULL), 0);
        fault_arm(&(struct fault_plan){.calls = FAULT_PREADV | FAULT_PWRITEV | FAULT_FDATASYNC |
                                                FAULT_RANDOM,
                                       .nth = k,
                                       .error = EIO});
        err = change_keys(add_key);
        if (err == 0)
            err = change_keys(erase_key);
        fired = fault_fired();
        fault_arm(&(struct fault_plan){0});
        if (!fired) {
            assert_int_equal(err, 0);
            break;
        }
        assert_true(opens_with(&luks_stage));
    }
    assert_true(opens_with(&luks_stage));
    assert_false(opens_with(&luks_stage_other));
    return 0;
}

/*
 * The power goes after each number of writes and syncs in turn while a key is added and another
 * one erased: the volume opens with the key that nobody touches.
 */
static int cut_each_change(void *arg)
{
    for (unsigned k = 1;; k++) {
        int err;

        assert_int_equal(create("luks", LUKS_OPTIONS, NULL), 0);
        fault_arm(&(struct fault_plan){
            .calls = FAULT_PWRITEV | FAULT_FDATASYNC, .nth = k, .sticky = true, .error = EIO});
        err = change_keys(add_key);
        if (err == 0)
            err = change_keys(erase_key);
        fault_arm(&(struct fault_plan){0});
        sim_disk_power_cut(test_seed() + k);
        sim_disk_power_on();
        assert_true(opens_with(&luks_stage));
        if (err == 0)
            return 0;
    }
}

static void test_power_cuts(void **state)
{
    start();
    fault_install();
    assert_int_equal(test_run(cut_each_change, NULL), 0);
    fault_remove();
    stop();
}

static void test_failing_calls(void **state)
{
    start();
    fault_install();
    assert_int_equal(test_run(fail_each_create, NULL), 0);
    assert_int_equal(test_run(fail_each_change, NULL), 0);
    fault_remove();
    stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_luks),       cmocka_unit_test(test_luks_aligned),
        cmocka_unit_test(test_qcow2_luks), cmocka_unit_test(test_qcow2_aes),
        cmocka_unit_test(test_no_key),     cmocka_unit_test(test_qcow2_preallocated),
        cmocka_unit_test(test_zero_fast),  cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_power_cuts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
