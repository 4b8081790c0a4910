/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Temporary overlays: what they show and keep, that the image below and its directory stay as they
 * were, their limit, and faults at every call.
 */
#include "base/sys.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/overlay.h"
#include "tests/support/fault.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define BASE_BYTES (256 * 1024 + 3) /* no multiple of a sector */
#define PIECE 65536

static const struct block_context context = {.drivers = block_drivers, .engine = &io_engine_sync};

static char *dir, *base_path, *overlays;
static struct error last;

static int setup(void **state)
{
    uint8_t *data = malloc(BASE_BYTES);
    struct prng prng = prng_of(7);

    dir = test_dir_make();
    overlays = test_dir_make();
    base_path = test_path(dir, "base");
    prng_fill(&prng, data, BASE_BYTES);
    test_file_write(base_path, data, BASE_BYTES);
    free(data);
    return 0;
}

static int teardown(void **state)
{
    free(base_path);
    test_dir_remove(dir);
    test_dir_remove(overlays);
    return 0;
}

static bool is_empty(const char *path)
{
    DIR *stream = opendir(path);
    unsigned entries = 0;

    assert_non_null(stream);
    while (readdir(stream))
        entries++;
    closedir(stream);
    return entries == 2;
}

static unsigned open_descriptors(void)
{
    DIR *stream = opendir("/proc/self/fd");
    unsigned entries = 0;

    while (readdir(stream))
        entries++;
    closedir(stream);
    return entries;
}

static int open_overlay(const struct overlay_place *place, unsigned flags, struct node **ret)
{
    struct node *base;
    int err = node_open_image(&context, base_path, "raw", NULL, 0, &base, NULL, &last);

    return err < 0 ? err : node_open_overlay(&context, base, place, flags, ret, &last);
}

static void assert_base_unchanged(const uint8_t *before)
{
    size_t size;
    uint8_t *data = test_file_read(base_path, &size);

    assert_int_equal(size, BASE_BYTES);
    assert_memory_equal(data, before, size);
    free(data);
}

/* Reads the disk whole, writes over an edge and the end, and reads again. */
static int run_contents(void *arg)
{
    const struct overlay_place *place = arg;
    size_t size;
    uint8_t *wanted = test_file_read(base_path, &size), *before = test_file_read(base_path, &size);
    uint8_t *got = malloc(BASE_BYTES);
    struct node *node;

    assert_int_equal(open_overlay(place, 0, &node), 0);
    assert_int_equal(node->size, BASE_BYTES);
    assert_true(node_writable(node));
    assert_true(is_empty(overlays));
    assert_int_equal(block_read(node, got, BASE_BYTES, 0), 0);
    assert_memory_equal(got, wanted, BASE_BYTES);
    memset(wanted + PIECE - 5, 0x11, 10);
    memset(wanted + BASE_BYTES - 4, 0x22, 4);
    assert_int_equal(block_write(node, wanted + PIECE - 5, 10, PIECE - 5, 0), 0);
    assert_int_equal(block_write(node, wanted + BASE_BYTES - 4, 4, BASE_BYTES - 4, 0), 0);
    assert_int_equal(block_write(node, wanted, 4, BASE_BYTES - 3, 0), -ENOSPC);
    assert_int_equal(block_zero(node, 100, 200, 0), 0);
    memset(wanted + 100, 0, 200);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(block_read(node, got, BASE_BYTES, 0), 0);
    assert_memory_equal(got, wanted, BASE_BYTES);
    node_unref(node);
    assert_base_unchanged(before);
    free(before);
    free(wanted);
    free(got);
    return 0;
}

static void test_contents(void **state)
{
    struct overlay_place place = {overlays, UINT64_MAX};

    assert_int_equal(test_run(run_contents, &place), 0);
    place = (struct overlay_place){NULL, 8 << 20};
    assert_int_equal(test_run(run_contents, &place), 0);
    assert_true(is_empty(overlays));
}

/* The limit stops writes, not the disk; and space that is given back can be used again. */
static int run_limit(void *arg)
{
    const struct overlay_place place = {NULL, 512 * 1024};
    static uint8_t data[PIECE], got[PIECE]; /* stacks of coroutines are small */
    struct node *node;
    unsigned written = 0;
    int err;

    memset(data, 0x33, sizeof(data));
    assert_int_equal(open_overlay(&place, NODE_UNMAP, &node), 0);
    while ((err = block_write(node, data, PIECE, written * PIECE, 0)) == 0)
        assert_true(++written < BASE_BYTES / PIECE);
    assert_int_equal(err, -ENOSPC);
    assert_true(written >= 2);
    assert_int_equal(block_write(node, data, PIECE, written * PIECE, 0), -ENOSPC);
    for (unsigned i = 0; i < written; i++) {
        assert_int_equal(block_read(node, got, PIECE, i * PIECE), 0);
        assert_memory_equal(got, data, PIECE);
    }
    assert_int_equal(block_discard(node, 0, PIECE, 0), 0);
    assert_int_equal(block_flush(node), 0);
    assert_int_equal(block_write(node, data, PIECE, written * PIECE, 0), 0);
    assert_int_equal(block_read(node, got, PIECE, 0), 0);
    assert_int_equal(got[0], 0);
    node_unref(node);
    return 0;
}

static void test_limit(void **state)
{
    assert_int_equal(test_run(run_limit, NULL), 0);
}

static int run_refused(void *arg)
{
    static const struct overlay_place small = {NULL, 64 * 1024}, nowhere = {"/nowhere", UINT64_MAX};
    unsigned before = open_descriptors();
    struct node *node;

    assert_int_equal(open_overlay(&small, 0, &node), -ENOSPC);
    assert_non_null(strstr(last.text, "cannot make a temporary overlay"));
    assert_int_equal(open_overlay(&nowhere, 0, &node), -ENOENT);
    assert_non_null(strstr(last.text, "'/nowhere' (TMPDIR"));
    assert_int_equal(open_descriptors(), before);
    return 0;
}

static void test_refused(void **state)
{
    assert_int_equal(test_run(run_refused, NULL), 0);
}

/* A file system that has no files without a name: the file loses its name at once. */
static int run_without_tmpfile(void *arg)
{
    const struct overlay_place place = {overlays, UINT64_MAX};
    struct node *node;
    uint8_t byte = 0x44;
    struct node *base;

    assert_int_equal(node_open_image(&context, base_path, "raw", NULL, 0, &base, NULL, &last), 0);
    fault_arm(&(struct fault_plan){.calls = FAULT_OPENAT, .nth = 1, .error = EOPNOTSUPP});
    assert_int_equal(node_open_overlay(&context, base, &place, 0, &node, &last), 0);
    assert_true(fault_fired());
    assert_true(is_empty(overlays));
    assert_int_equal(block_write(node, &byte, 1, 0, 0), 0);
    node_unref(node);
    return 0;
}

static void test_without_tmpfile(void **state)
{
    fault_install();
    assert_int_equal(test_run(run_without_tmpfile, NULL), 0);
    fault_remove();
}

/* Every call of opening fails once: no file, descriptor or change is left. */
static int run_faults(void *arg)
{
    const struct overlay_place place = {overlays, UINT64_MAX};
    unsigned before = open_descriptors();
    struct node *node;
    bool fired = true;

    for (unsigned k = 1; fired; k++) {
        int err;

        fault_arm(
            &(struct fault_plan){.calls = FAULT_FILE & ~FAULT_UNLINKAT, .nth = k, .error = EIO});
        err = open_overlay(&place, 0, &node);
        fired = fault_fired();
        fault_arm(&(struct fault_plan){0});
        if (err == 0)
            node_unref(node);
        else
            assert_true(fired && last.text[0]);
        assert_true(is_empty(overlays));
        assert_int_equal(open_descriptors(), before);
    }
    return 0;
}

static void test_faults(void **state)
{
    fault_install();
    assert_int_equal(test_run(run_faults, NULL), 0);
    fault_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_contents, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_tmpfile, setup, teardown),
        cmocka_unit_test_setup_teardown(test_faults, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
