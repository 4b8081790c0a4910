/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images opened by options: looking for the format that was not said, the options that all nodes
 * have and how they pass from node to node, and the engine of files.
 */
#include "base/io.h"
#include "blockcore/block.h"
#include "blockcore/create.h"
#include "blockcore/drivers.h"
#include "tests/support/fault.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FILE_BYTES 65536

static const struct block_context context = {.drivers = block_drivers, .engine = &io_engine_sync};

static char *dir;

/* The outcome of an open; of the nodes only what tests look at. */
struct opened {
    const char *text, *format;
    unsigned flags;
    int result;
    struct error error;
    bool guessed_raw;
    const char *driver;
    uint64_t size;
    char first;
    unsigned top_flags, file_flags, backing_flags, backing_file_flags;
    enum node_detect_zeroes detect_zeroes;
};

static void look_at(struct opened *o, struct node *node)
{
    o->driver = node->driver->name;
    o->size = node->size;
    o->top_flags = node->flags;
    o->detect_zeroes = node->detect_zeroes;
    if (node->file)
        o->file_flags = node->file->flags;
    if (node->backing)
        o->backing_flags = node->backing->flags;
    if (node->backing && node->backing->file)
        o->backing_file_flags = node->backing->file->flags;
    assert_int_equal(block_read(node, &o->first, 1, 0), 0);
}

static int run_open(void *arg)
{
    struct opened *o = arg;
    struct node *node;
    json_t *options;

    o->result = options_parse(o->text, "file", &options, &o->error);
    if (o->result < 0)
        return 0;
    o->result = node_open_options(&context, options, o->format, o->flags, &node, &o->guessed_raw,
                                  &o->error);
    json_decref(options);
    if (o->result < 0)
        return 0;
    look_at(o, node);
    node_unref(node);
    return 0;
}

static struct opened open_as(const char *text, const char *format, unsigned flags)
{
    struct opened o = {.text = text, .format = format, .flags = flags};

    assert_int_equal(test_run(run_open, &o), 0);
    return o;
}

static void assert_refused(const char *text, unsigned flags, int error, const char *words)
{
    struct opened o = open_as(text, NULL, flags);

    if (!strstr(o.error.text, words))
        fail_msg("\"%s\": \"%s\" does not say \"%s\"", text, o.error.text, words);
    assert_int_equal(o.result, -error);
}

/* disk.qcow2 over base.raw, whose bytes are 'b'; other.raw has 'o'. */
static int make_images(void *arg)
{
    json_t *options =
        json_pack("{s:s, s:s}", "backing_file", "base.raw", "backing_fmt", driver_raw.name);
    struct error error;

    assert_int_equal(block_create(&context, driver_qcow2.name, "disk.qcow2", options, &error), 0);
    json_decref(options);
    return 0;
}

static int setup(void **state)
{
    char data[FILE_BYTES];

    dir = test_dir_make();
    assert_int_equal(chdir(dir), 0);
    memset(data, 'b', sizeof(data));
    test_file_write("base.raw", data, sizeof(data));
    memset(data, 'o', sizeof(data));
    test_file_write("other.raw", data, sizeof(data));
    return test_run(make_images, NULL);
}

static int teardown(void **state)
{
    assert_int_equal(chdir("/"), 0);
    test_dir_remove(dir);
    return 0;
}

static void test_the_format_is_looked_for(void **state)
{
    struct opened o = open_as("file.filename=disk.qcow2", NULL, 0);

    assert_int_equal(o.result, 0);
    assert_string_equal(o.driver, "qcow2");
    assert_false(o.guessed_raw);
    o = open_as("file.filename=base.raw,file.driver=file", NULL, NODE_WRITABLE);
    assert_string_equal(o.driver, "raw");
    assert_true(o.guessed_raw);
    o = open_as("json:{\"driver\":\"qcow2\",\"file.filename\":\"disk.qcow2\"}", "raw", 0);
    assert_string_equal(o.driver, "raw"); /* what is asked for comes first */
    assert_false(o.guessed_raw);
    o = open_as("driver=file,filename=base.raw", NULL, 0);
    assert_string_equal(o.driver, "file");
    assert_refused("", 0, EINVAL, "Must specify either driver or file");
    assert_refused("filename=base.raw", 0, EINVAL, "Must specify either driver or file");
    assert_refused("base.raw", 0, EINVAL, "'file'");
    assert_refused("file.filename=missing", 0, ENOENT, "'missing'");
}

static void test_backing(void **state)
{
    struct opened o = open_as("driver=qcow2,file.filename=disk.qcow2", NULL, 0);

    assert_int_equal(o.first, 'b');
    o = open_as("driver=qcow2,file.filename=disk.qcow2,backing.file.filename=other.raw", NULL, 0);
    assert_int_equal(o.first, 'o');
    o = open_as("driver=qcow2,file.filename=disk.qcow2,backing.driver=raw,"
                "backing.file.filename=other.raw,backing.offset=4k",
                NULL, 0);
    assert_int_equal(o.first, 'o');
    o = open_as("driver=qcow2,file.filename=disk.qcow2,backing.driver=file,"
                "backing.filename=other.raw",
                NULL, 0);
    assert_int_equal(o.first, 'o');
    o = open_as("driver=qcow2,file.filename=disk.qcow2,backing=", NULL, 0);
    assert_int_equal(o.result, 0);
    assert_int_equal(o.first, 0);
    o = open_as("json:{\"file\":{\"filename\":\"disk.qcow2\"},\"backing\":null}", NULL, 0);
    assert_int_equal(o.first, 0);
    assert_refused("driver=qcow2,file.filename=disk.qcow2,backing=other.raw", 0, EINVAL,
                   "'backing'");
    assert_refused("driver=qcow2,file.filename=disk.qcow2,backing.filename=other.raw", 0, EINVAL,
                   "cannot open the backing file of 'disk.qcow2': Must specify");
    assert_refused("driver=qcow2,file.filename=disk.qcow2,backing.file.filename=disk.qcow2", 0,
                   ELOOP, "comes back to 'disk.qcow2'");
}

static void test_flags_pass_down(void **state)
{
    const unsigned given = NODE_NO_FLUSH | NODE_UNMAP;
    struct opened o = open_as("driver=qcow2,file.filename=disk.qcow2,cache.no-flush=on,"
                              "discard=unmap",
                              NULL, NODE_WRITABLE);

    assert_int_equal(o.result, 0);
    assert_int_equal(o.top_flags, NODE_WRITABLE | given);
    assert_int_equal(o.file_flags, NODE_WRITABLE | given);
    assert_int_equal(o.backing_flags, 0); /* never written */
    o = open_as("driver=qcow2,file.filename=disk.qcow2,file.discard=ignore,cache.no-flush=off",
                NULL, NODE_WRITABLE | given);
    assert_int_equal(o.top_flags, NODE_WRITABLE | NODE_UNMAP);
    assert_int_equal(o.file_flags, NODE_WRITABLE);
    o = open_as("driver=qcow2,file.filename=disk.qcow2,force-share=on,read-only=on", NULL, 0);
    assert_int_equal(o.backing_file_flags, NODE_FORCE_SHARE);
}

static void test_nothing_gets_more_than_it_may(void **state)
{
    struct opened o = open_as("driver=raw,read-only=off,file.filename=base.raw", NULL, 0);

    assert_int_equal(o.top_flags, 0);
    o = open_as("driver=qcow2,file.filename=disk.qcow2,backing.read-only=off", NULL, 0);
    assert_int_equal(o.result, -EINVAL); /* a backing of which nothing but that is said */
    assert_refused("driver=raw,read-only=on,file.filename=base.raw", NODE_WRITABLE, EROFS,
                   "Block node is read-only");
    assert_refused("driver=raw,file.read-only=on,file.filename=base.raw", NODE_WRITABLE, EROFS,
                   "Block node is read-only");
    assert_refused("driver=raw,force-share=on,file.filename=base.raw", NODE_WRITABLE, EINVAL,
                   "force-share=on can only be used with read-only images");
}

static void test_detecting_zeroes(void **state)
{
    struct opened o = open_as("driver=raw,detect-zeroes=on,file.filename=base.raw", NULL, 0);

    assert_int_equal(o.detect_zeroes, NODE_DETECT_ZEROES_ON);
    o = open_as("driver=raw,detect-zeroes=unmap,discard=on,file.filename=base.raw", NULL, 0);
    assert_int_equal(o.detect_zeroes, NODE_DETECT_ZEROES_UNMAP);
    assert_refused("driver=raw,detect-zeroes=unmap,file.filename=base.raw", 0, EINVAL,
                   "without setting discard operation to unmap");
    assert_refused("driver=raw,file.detect-zeroes=on,file.filename=base.raw", 0, EINVAL,
                   "'detect-zeroes' is for the node that is exported");
}

static void test_engines(void **state)
{
    assert_int_equal(open_as("driver=file,aio=threads,filename=base.raw", NULL, 0).result, 0);
    assert_refused("driver=file,aio=native,filename=base.raw", 0, EINVAL,
                   "requires cache.direct=on");
    assert_refused("driver=file,aio=fast,filename=base.raw", 0, EINVAL,
                   "'aio' of a file must be one of threads, native, io_uring, not 'fast'");
}

/* A file that another process has a lease on: who asked again until it is given back would spin. */
static void test_leased_file(void **state)
{
    fault_install();
    fault_arm(&(struct fault_plan){.calls = FAULT_OPENAT, .nth = 1, .error = EAGAIN});
    assert_refused("driver=file,filename=base.raw", 0, EAGAIN, "cannot open 'base.raw'");
    fault_arm(&(struct fault_plan){.calls = FAULT_OPENAT, .nth = 1, .error = EINTR});
    assert_int_equal(open_as("driver=file,filename=base.raw", NULL, 0).result, 0);
    assert_true(fault_fired());
    fault_remove();
}

static void test_bad_values_name_the_key(void **state)
{
    static const char *const rows[][2] = {
        {"driver=raw,cache.direct=maybe,file.filename=base.raw", "'cache.direct'"},
        {"driver=raw,discard=perhaps,file.filename=base.raw", "'discard'"},
        {"driver=raw,node-name.x=1,file.filename=base.raw", "'node-name'"},
        {"json:{\"driver\":\"raw\",\"read-only\":7,\"file.filename\":\"base.raw\"}", "'read-only'"},
        {"driver=raw,cache.no-flash=on,file.filename=base.raw", "no-flash"},
        {"driver=nothing,file.filename=base.raw", "Unknown driver 'nothing'"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        assert_refused(rows[i][0], 0, EINVAL, rows[i][1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_the_format_is_looked_for, setup, teardown),
        cmocka_unit_test_setup_teardown(test_backing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flags_pass_down, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing_gets_more_than_it_may, setup, teardown),
        cmocka_unit_test_setup_teardown(test_detecting_zeroes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_leased_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_values_name_the_key, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
