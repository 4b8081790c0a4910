/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening nodes: trees of options, probing, backing chains with their limits and path policy, image
 * locks. A format of the test's own keeps nothing but the name of its backing file, in its first
 * line: "LINK format name".  Another one shows what is in a further child: "PAIR name".
 */
#include "base/buffer.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define TEXT_MAX 512

static int link_open(struct node *node, struct node_open *open, struct error *error)
{
    char text[TEXT_MAX + 1] = "", format[32] = "", name[TEXT_MAX] = "";
    unsigned writing = open->flags & NODE_WRITABLE ? PERM_WRITE | PERM_RESIZE : 0;
    int err = node_open_file(node, open, PERM_CONSISTENT_READ | writing,
                             PERM_ALL & ~(unsigned)(PERM_WRITE | PERM_RESIZE), error);

    if (err < 0)
        return err;
    node->size = 4096;
    err = block_read(node->file, text, min_u64(TEXT_MAX, node->file->size), 0);
    if (err < 0)
        return err;
    if (sscanf(text, "LINK %31s %511[^\n]", format, name) < 1)
        return error_set(error, EINVAL, "%s is no link", node_name(node));
    return node_open_backing(node, open, *name ? name : NULL, strlen(name),
                             strcmp(format, "-") == 0 ? NULL : format, error);
}

static int link_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    *ret = (struct extent){.kind = EXTENT_ABSENT, .length = length};
    return 0;
}

static int pair_open(struct node *node, struct node_open *open, struct error *error)
{
    char text[TEXT_MAX + 1] = "", name[TEXT_MAX] = "";
    struct node *child;
    int err = node_open_file(node, open, PERM_CONSISTENT_READ, PERM_ALL, error);

    if (err < 0)
        return err;
    err = block_read(node->file, text, min_u64(TEXT_MAX, node->file->size), 0);
    if (err < 0)
        return err;
    if (sscanf(text, "PAIR %511[^\n]", name) != 1)
        name[0] = 0;
    err = node_open_child(node, open, "data", "data file", *name ? name : NULL, strlen(name),
                          PERM_CONSISTENT_READ, PERM_ALL, &child, error);
    if (err < 0)
        return err;
    assert_ptr_equal(child, node->children[node->children_count - 1]);
    node->size = child->size;
    return 0;
}

static int pair_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    *ret = (struct extent){
        .kind = EXTENT_DATA, .length = length, .child = node->children[0], .child_offset = offset};
    return 0;
}

static const struct magic pair_magics[] = {{0, 5, "PAIR "}, {0}};
static const struct driver driver_pair = {
    .name = "pair",
    .kind = DRIVER_FORMAT,
    .magics = pair_magics,
    .open = pair_open,
    .map = pair_map,
};

static const struct magic link_magics[] = {{0, 5, "LINK "}, {0}};
static const struct driver driver_link = {
    .name = "link",
    .kind = DRIVER_FORMAT,
    .magics = link_magics,
    .open = link_open,
    .map = link_map,
};

static const struct driver *const drivers[] = {&driver_link, &driver_pair,        &driver_raw,
                                               &driver_file, &driver_host_device, NULL};
static const struct block_context context = {.drivers = drivers, .engine = &io_engine_sync};

static char *dir;
static struct error last;

static int setup(void **state)
{
    dir = test_dir_make();
    return chdir(dir);
}

static int teardown(void **state)
{
    assert_int_equal(chdir("/"), 0);
    test_dir_remove(dir);
    return 0;
}

static void put(const char *name, const char *text)
{
    char *path = test_path(dir, name);

    test_file_write(path, text, strlen(text));
    free(path);
}

/* What open_image tells. */
struct opened {
    const char *filename, *format;
    unsigned flags;
    int result;
    unsigned layers;
    bool guessed_raw;
    uint64_t size;
    char first; /* first byte that is read */
};

static int run_image(void *arg)
{
    struct opened *o = arg;
    struct node *node;

    last.text[0] = 0;
    o->result = node_open_image(&context, o->filename, o->format, NULL, o->flags, &node,
                                &o->guessed_raw, &last);
    if (o->result < 0)
        return 0;
    o->size = node->size;
    if (node->size > 0)
        assert_int_equal(block_read(node, &o->first, 1, 0), 0);
    for (const struct node *n = node; n; n = n->backing)
        o->layers++;
    node_unref(node);
    return 0;
}

static struct opened open_image(const char *filename, const char *format, unsigned flags)
{
    struct opened o = {.filename = filename, .format = format, .flags = flags};

    assert_int_equal(test_run(run_image, &o), 0);
    return o;
}

#define assert_error(call, error, words)                                                           \
    do {                                                                                           \
        assert_int_equal((call).result, -(error));                                                 \
        if (!strstr(last.text, words))                                                             \
            fail_msg("\"%s\" does not say \"%s\"", last.text, words);                              \
    } while (0)

static void test_raw_and_probing(void **state)
{
    struct opened o;

    put("plain", "hello");
    o = open_image("plain", NULL, NODE_WRITABLE);
    assert_int_equal(o.result, 0);
    assert_true(o.guessed_raw);
    assert_int_equal(o.size, 5); /* byte-exact */
    assert_int_equal(o.first, 'h');
    o = open_image("plain", "raw", 0);
    assert_int_equal(o.result, 0);
    assert_false(o.guessed_raw);
    put("empty", "");
    o = open_image("empty", NULL, NODE_WRITABLE);
    assert_int_equal(o.result, 0);
    assert_int_equal(o.size, 0);
    put("link", "LINK raw plain\n");
    o = open_image("link", NULL, 0);
    assert_int_equal(o.result, 0);
    assert_false(o.guessed_raw);
    assert_int_equal(o.layers, 2);
    assert_int_equal(o.first, 'h');
    o = open_image("link", "raw", 0); /* told raw, it stays raw */
    assert_int_equal(o.first, 'L');
}

static void test_foreign_formats(void **state)
{
    static const struct {
        const char *name, *start;
        size_t offset, length;
    } rows[] = {
        {"qcow", "QFI\xfb\0\0\0\1", 0, 8},
        {"qed", "QED", 0, 4},
        {"vhdx", "vhdxfile", 0, 8},
        {"vmdk", "KDMV", 0, 4},
        {"vmdk", "COWD", 0, 4},
        {"vmdk", "# Disk DescriptorFile", 0, 21},
        {"vdi", "\x7f\x10\xda\xbe", 64, 4},
        {"parallels", "WithoutFreeSpace", 0, 16},
        {"vpc", "conectix", 0, 8},
        {"bochs", "Bochs Virtual HD Image", 0, 22},
        {"cloop", "#!/bin/sh\n#V2.0 Format\n", 0, 23},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        char *path = test_path(dir, "foreign"), data[1024] = "", words[64];

        memcpy(data + rows[i].offset, rows[i].start, rows[i].length);
        test_file_write(path, data, sizeof(data));
        free(path);
        snprintf(words, sizeof(words), "looks like a %s image", rows[i].name);
        assert_error(open_image("foreign", NULL, NODE_WRITABLE), ENOTSUP, words);
        assert_int_equal(open_image("foreign", "raw", NODE_WRITABLE).result, 0);
    }
}

/* Texts whose first line is a version are VMDK descriptors; all others are not. */
static void test_vmdk_texts(void **state)
{
    static const struct {
        const char *text;
        bool vmdk;
    } rows[] = {
        {"version=1\n", true},
        {"version=3\r\n", true},
        {"version=2", true},
        {"# a comment\nversion=1\n", true},
        {"# a comment\r\n\r\n  \r\n\t\n#\nversion=1\r\nCID=1\n", true},
        {"\n\nversion=1\n", true},
        {" version = 12 \n", true},
        {"Version=1\n", true},
        {"#\n # more\nversion=1\n", true},
        {"versio", false},
        {"version", false},
        {"version=", false},
        {"version=\n", false},
        {"version=one\n", false},
        {"version=1x\n", false},
        {"version 1\n", false},
        {"versions=1\n", false},
        {"CID=1\nversion=1\n", false},
        {"# version=1", false},
        {"# version=1\n", false},
        {"#version=1\nx\nversion=1\n", false},
        {"\n \r\n", false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        put("text", rows[i].text);
        if (rows[i].vmdk)
            assert_error(open_image("text", NULL, NODE_WRITABLE), ENOTSUP,
                         "looks like a vmdk image");
        else
            assert_true(open_image("text", NULL, NODE_WRITABLE).guessed_raw);
    }
}

static void test_what_is_no_image(void **state)
{
    char *fifo = test_path(dir, "fifo");

    assert_int_equal(mkfifo(fifo, 0600), 0);
    free(fifo);
    assert_error(open_image("missing", NULL, 0), ENOENT, "'missing'");
    assert_error(open_image(".", NULL, 0), EINVAL, "is a directory");
    assert_error(open_image(".", "raw", NODE_WRITABLE), EISDIR, "cannot open '.'");
    assert_error(open_image("fifo", NULL, 0), EINVAL, "is a FIFO");
    assert_error(open_image("fifo", "raw", NODE_WRITABLE), EINVAL, "is a FIFO");
    assert_error(open_image("/dev/null", NULL, 0), EINVAL, "is a character device");
    assert_error(open_image("", NULL, 0), EINVAL, "filename");
    put("plain", "hello");
    assert_error(open_image("plain", "nothing", 0), EINVAL, "Unknown driver 'nothing'");
    assert_error(open_image("plain", "file", 0), EINVAL, "Unknown driver 'file'");
}

static void test_cycles(void **state)
{
    put("self", "LINK link self\n");
    assert_error(open_image("self", NULL, 0), ELOOP, "comes back to 'self'");
    /* Writable, its locks would stand against it, which is not what is wrong with it. */
    assert_error(open_image("self", NULL, NODE_WRITABLE), ELOOP, "comes back to 'self'");
    put("a", "LINK link b\n");
    put("b", "LINK link ./c\n");
    put("c", "LINK link a\n");
    assert_error(open_image("a", NULL, 0), ELOOP, "comes back to 'a'");
    /* By another name of the same file. */
    put("x", "LINK link y\n");
    assert_int_equal(symlink("x", "y"), 0);
    assert_error(open_image("x", NULL, 0), ELOOP, "comes back to 'x'");
}

static void make_chain(unsigned links)
{
    char name[32], text[64];

    put("n0", "LINK raw plain\n");
    for (unsigned i = 1; i <= links; i++) {
        snprintf(name, sizeof(name), "n%u", i);
        snprintf(text, sizeof(text), "LINK link n%u\n", i - 1);
        put(name, text);
    }
}

static void test_depth(void **state)
{
    struct opened o;

    put("plain", "hello");
    make_chain(NODE_DEPTH_MAX);
    o = open_image("n63", NULL, 0); /* 64 links down to plain */
    assert_int_equal(o.result, 0);
    assert_int_equal(o.layers, NODE_DEPTH_MAX + 1);
    assert_int_equal(o.first, 'h');
    assert_error(open_image("n64", NULL, 0), ELOOP, "longer than 64");
}

static void test_backing_policy(void **state)
{
    put("plain", "hello");
    put("noformat", "LINK - plain\n");
    assert_error(open_image("noformat", NULL, 0), EINVAL, "does not record its format");
    put("unknown", "LINK vmdk plain\n");
    assert_error(open_image("unknown", NULL, 0), ENOTSUP, "'vmdk'");
    put("json", "LINK raw json:{\"driver\":\"file\"}\n");
    assert_error(open_image("json", NULL, 0), EINVAL, "only plain paths");
    put("net", "LINK raw nbd://localhost/\n");
    assert_error(open_image("net", NULL, 0), EINVAL, "only plain paths");
    put("device", "LINK raw /dev/zero\n");
    assert_error(open_image("device", NULL, 0), EINVAL, "character device");
    put("dir", "LINK raw .\n");
    assert_error(open_image("dir", NULL, 0), EINVAL, "cannot open the backing file of 'dir'");
    put("gone", "LINK raw nowhere\n");
    assert_error(open_image("gone", NULL, 0), ENOENT, "'nowhere'");
    put("protocol", "LINK file plain\n"); /* stands for raw */
    assert_int_equal(open_image("protocol", NULL, 0).result, 0);
}

static void test_relative_names(void **state)
{
    char *sub = test_path(dir, "sub");

    assert_int_equal(mkdir(sub, 0700), 0);
    put("sub/base", "base");
    put("sub/top", "LINK raw base\n");
    put("base", "wrong");
    assert_int_equal(open_image("sub/top", NULL, 0).first, 'b');
    put("up", "LINK link sub/top\n");
    assert_int_equal(open_image("up", NULL, 0).first, 'b');
    free(sub);
}

static int run_tree(void *arg)
{
    struct opened *o = arg;
    json_t *tree = json_loads(o->filename, 0, NULL);
    struct node *node;

    assert_non_null(tree);
    last.text[0] = 0;
    o->result = node_open_tree(&context, tree, o->flags, &node, &last);
    json_decref(tree);
    if (o->result < 0)
        return 0;
    o->size = node->size;
    assert_int_equal(block_read(node, &o->first, 1, 0), 0);
    node_unref(node);
    return 0;
}

static struct opened open_tree(const char *json)
{
    struct opened o = {.filename = json};

    assert_int_equal(test_run(run_tree, &o), 0);
    return o;
}

static void test_trees(void **state)
{
    struct opened o;

    put("plain", "hello world");
    put("link", "LINK raw nowhere\n");
    o = open_tree(
        "{\"driver\":\"raw\",\"offset\":\"6\",\"size\":3,\"file\":{\"filename\":\"plain\"}}");
    assert_int_equal(o.result, 0);
    assert_int_equal(o.size, 3);
    assert_int_equal(o.first, 'w');
    o = open_tree("{\"driver\":\"raw\",\"filename\":\"plain\"}");
    assert_int_equal(o.size, 11);
    /* The backing file that the user gives goes before the one that the image names. */
    o = open_tree("{\"driver\":\"link\",\"filename\":\"link\",\"backing\":{\"driver\":\"raw\","
                  "\"filename\":\"plain\"}}");
    assert_int_equal(o.first, 'h');
    o = open_tree("{\"driver\":\"link\",\"filename\":\"link\",\"backing\":null}");
    assert_int_equal(o.result, 0);
    assert_int_equal(o.first, 0);
    assert_error(open_tree("{\"driver\":\"raw\",\"offset\":12,\"filename\":\"plain\"}"), EINVAL,
                 "Offset (12) cannot be greater than size of the containing file (11)");
    assert_error(open_tree("{\"driver\":\"raw\",\"size\":12,\"filename\":\"plain\"}"), EINVAL,
                 "passes the end");
    assert_error(open_tree("{\"driver\":\"raw\",\"sizes\":1,\"filename\":\"plain\"}"), EINVAL,
                 "'sizes'");
    assert_error(open_tree("{\"driver\":\"raw\"}"), EINVAL, "'file'");
    assert_error(open_tree("{\"driver\":7}"), EINVAL, "'driver' of a node must be a string");
    assert_error(open_tree("{\"file\":{\"filename\":\"plain\"}}"), EINVAL, "'driver'");
    assert_error(open_tree("{\"driver\":\"raw\",\"file\":\"plain\"}"), EINVAL, "'file'");
    assert_error(open_tree("{\"driver\":\"raw\",\"filename\":\"plain\",\"backing\":null}"), EINVAL,
                 "'backing'");
    assert_error(open_tree("{\"driver\":\"host_device\",\"filename\":\"plain\"}"), EINVAL,
                 "use driver 'file'");
}

/* Children beside the file follow the rules for backing files. */
static void test_children(void **state)
{
    put("plain", "hello");
    put("other", "world");
    put("pair", "PAIR plain\n");
    assert_int_equal(open_image("pair", NULL, NODE_WRITABLE).first, 'h');
    put("sub-pair", "PAIR nowhere\n");
    assert_error(open_image("sub-pair", NULL, 0), ENOENT,
                 "cannot open the data file of 'sub-pair'");
    assert_error(open_image("sub-pair", NULL, 0), ENOENT, "'nowhere'");
    put("net", "PAIR nbd://localhost/\n");
    assert_error(open_image("net", NULL, 0), EINVAL, "as its data file; only plain paths");
    put("none", "PAIR \n");
    assert_error(open_image("none", NULL, 0), EINVAL, "the option 'data.filename' must");
    assert_int_equal(
        open_tree("{\"driver\":\"pair\",\"filename\":\"none\",\"data\":{\"filename\":\"other\"}}")
            .first,
        'w');
    assert_int_equal(
        open_tree("{\"driver\":\"pair\",\"filename\":\"net\",\"data\":\"other\"}").first, 'w');
    assert_error(open_tree("{\"driver\":\"pair\",\"filename\":\"net\",\"data\":1}"), EINVAL,
                 "must be a string");
    put("self", "PAIR ./self\n");
    assert_error(open_image("self", NULL, 0), ELOOP, "comes back to 'self'");
    put("pair-of-pair", "PAIR plain\n");
    assert_error(
        open_tree("{\"driver\":\"pair\",\"filename\":\"pair\",\"data\":{\"driver\":\"pair\","
                  "\"filename\":\"pair-of-pair\",\"data\":{\"filename\":\"pair\"}}}"),
        ELOOP, "comes back to 'pair'");
}

static void test_nesting(void **state)
{
    char text[2048] = "{\"filename\":\"plain\"}";

    put("plain", "hello");
    for (unsigned i = 1; i <= NODE_FILE_DEPTH_MAX; i++) {
        char inner[2048];

        strcpy(inner, text);
        snprintf(text, sizeof(text), "{\"driver\":\"raw\",\"file\":%.1900s}", inner);
    }
    assert_int_equal(open_tree(text).result, 0);
    {
        char inner[2048];

        strcpy(inner, text);
        snprintf(text, sizeof(text), "{\"driver\":\"raw\",\"file\":%.1900s}", inner);
    }
    assert_error(open_tree(text), ELOOP, "nested");
}

struct two {
    unsigned first, second;
    const char *format;
    int result;
};

static int run_two(void *arg)
{
    struct two *two = arg;
    struct node *a, *b;

    assert_int_equal(
        node_open_image(&context, "image", two->format, NULL, two->first, &a, NULL, &last), 0);
    two->result =
        node_open_image(&context, "image", two->format, NULL, two->second, &b, NULL, &last);
    if (two->result == 0)
        node_unref(b);
    node_unref(a);
    return 0;
}

static int open_two(const char *format, unsigned first, unsigned second)
{
    struct two two = {first, second, format, 0};

    assert_int_equal(test_run(run_two, &two), 0);
    return two.result;
}

static void test_locks(void **state)
{
    put("image", "LINK raw plain\n");
    put("plain", "hello");
    assert_int_equal(open_two("raw", 0, 0), 0);
    assert_int_equal(open_two("raw", NODE_WRITABLE, NODE_WRITABLE), -EAGAIN);
    assert_non_null(strstr(last.text, "another process is using the image 'image'"));
    assert_int_equal(open_two("raw", NODE_WRITABLE, 0), 0);
    assert_int_equal(open_two("raw", 0, NODE_WRITABLE), 0);
    assert_int_equal(
        open_two("raw", NODE_WRITABLE | NODE_SHARE_WRITE, NODE_WRITABLE | NODE_SHARE_WRITE), 0);
    assert_int_equal(open_two("raw", NODE_WRITABLE, NODE_WRITABLE | NODE_NO_LOCK), 0);
    assert_int_equal(open_two("link", 0, 0), 0);
    assert_int_equal(open_two("link", NODE_WRITABLE, 0), -EAGAIN);
    assert_int_equal(open_two("link", 0, NODE_WRITABLE), -EAGAIN);
}

/* What a process has that was killed: a lock that goes away by itself. */
struct dying {
    struct reactor_timer timer;
    int fd;
};

static void let_go(struct reactor_timer *timer)
{
    struct dying *dying = container_of(timer, struct dying, timer);

    assert_int_equal(sys->close(dying->fd), 0);
}

static int run_dying(void *arg)
{
    struct dying dying = {.fd = sys->openat(AT_FDCWD, "image", O_RDWR | O_CLOEXEC, 0)};
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1};
    struct node *node;

    assert_true(dying.fd >= 0);
    assert_int_equal(sys->fcntl_lock(dying.fd, F_OFD_SETLK, &lock), 0);
    reactor_timer_start(&dying.timer, 20000000, let_go);
    assert_int_equal(
        node_open_image(&context, "image", "raw", NULL, NODE_WRITABLE, &node, NULL, &last), 0);
    node_unref(node);
    return 0;
}

static void test_lock_of_a_dying_process(void **state)
{
    put("image", "hello");
    assert_int_equal(test_run(run_dying, NULL), 0);
}

static int run_window(void *arg)
{
    const struct node_window past = {6, NODE_WINDOW_REST};
    const struct node_window rest = {4, NODE_WINDOW_REST}, middle = {1, 3};
    struct node *raw, *window;
    char byte;

    (void)arg;
    assert_int_equal(node_open_image(&context, "plain", "raw", NULL, 0, &raw, NULL, NULL), 0);
    assert_int_equal(node_open_window(&context, raw, &rest, &window, &last), 0);
    assert_int_equal(window->size, 1);
    assert_int_equal(block_read(window, &byte, 1, 0), 0);
    assert_int_equal(byte, 'o');
    node_unref(window);
    assert_int_equal(node_open_image(&context, "plain", "raw", NULL, 0, &raw, NULL, NULL), 0);
    assert_int_equal(node_open_window(&context, raw, &middle, &window, &last), 0);
    assert_int_equal(window->size, 3);
    assert_int_equal(block_read(window, &byte, 1, 0), 0);
    assert_int_equal(byte, 'e');
    assert_int_equal(block_write(window, "x", 1, 0, 0), -EROFS);
    node_unref(window);
    assert_int_equal(node_open_image(&context, "plain", "raw", NULL, 0, &raw, NULL, NULL), 0);
    assert_int_equal(node_open_window(&context, raw, &past, &window, &last), -EINVAL);
    return 0;
}

static void test_window(void **state)
{
    put("plain", "hello");
    assert_int_equal(test_run(run_window, NULL), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_raw_and_probing), TEST(test_what_is_no_image),
        TEST(test_cycles),          TEST(test_depth),
        TEST(test_backing_policy),  TEST(test_relative_names),
        TEST(test_trees),           TEST(test_nesting),
        TEST(test_locks),           TEST(test_lock_of_a_dying_process),
        TEST(test_foreign_formats), TEST(test_vmdk_texts),
        TEST(test_window),          TEST(test_children),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
