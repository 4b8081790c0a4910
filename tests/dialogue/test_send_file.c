/* SPDX-License-Identifier: BSD-3-Clause */
/* Reads that are sent from the file itself: the same bytes, and an honest end when there are none.
 */
#include "base/io.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "blockcore/drivers.h"
#include "tests/dialogue/rig.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define FILE_BYTES ((3 << 20) + 1234)

static const struct driver *const file_drivers[] = {&driver_file, &driver_raw, NULL};
static const struct block_context context = {.drivers = file_drivers, .engine = &io_engine_sync};

struct file_rig {
    struct rig rig; /* its server serves the file, its disk is not used */
    char *dir, *path;
    uint8_t *contents;
    unsigned flags;
};

static const struct sys *real_sys;
static struct sys counting_sys;
static unsigned files_sent;

static ssize_t count_sendfile(int out_fd, int in_fd, uint64_t offset, size_t length)
{
    files_sent++;
    return real_sys->sendfile(out_fd, in_fd, offset, length);
}

static int open_file(void *arg)
{
    struct file_rig *f = arg;
    struct node *node;
    struct error error;

    if (node_open_image(&context, f->path, "raw", NULL, f->flags, &node, NULL, &error) < 0)
        test_die("%s", error.text);
    nbd_export_free(f->rig.nbd_export);
    f->rig.nbd_export = nbd_export_new("disk", NULL, node, !(f->flags & NODE_WRITABLE), false);
    node_unref(node);
    list_append(&f->rig.exports.list, &f->rig.nbd_export->link);
    f->rig.exports.default_export = f->rig.nbd_export;
    return 0;
}

static void setup(struct file_rig *f, unsigned flags)
{
    struct prng prng = prng_of(test_seed());

    real_sys = sys;
    counting_sys = *sys;
    counting_sys.sendfile = count_sendfile;
    sys = &counting_sys;
    files_sent = 0;
    f->flags = flags;
    f->dir = test_dir_make();
    f->path = test_path(f->dir, "disk");
    f->contents = malloc(FILE_BYTES);
    if (!f->contents)
        test_die("out of memory");
    prng_fill(&prng, f->contents, FILE_BYTES);
    test_file_write(f->path, f->contents, FILE_BYTES);
    rig_init(&f->rig, NULL);
    reactor_run_coroutine(open_file, f);
}

static void teardown(struct file_rig *f)
{
    rig_fini(&f->rig);
    free(f->path);
    free(f->contents);
    test_dir_remove(f->dir);
    sys = real_sys;
}

static void check_reads(struct file_rig *f)
{
    static const uint32_t lengths[] = {1,     4096,   32767,   32768,  32769,
                                       65536, 262144, 1000001, 3 << 20};
    struct client c;

    client_enter(&c, &f->rig);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        client_request(&c, NBD_CMD_READ, 0, i, 1234, lengths[i]);
        client_expect_data(&c, i, f->contents + 1234, lengths[i]);
        client_request(&c, NBD_CMD_READ, 0, ~0ULL - i, FILE_BYTES - lengths[i], lengths[i]);
        client_expect_data(&c, ~0ULL - i, f->contents + FILE_BYTES - lengths[i], lengths[i]);
    }
    client_free(&c);
}

static void test_reads(void **state)
{
    struct file_rig f;

    setup(&f, 0);
    check_reads(&f);
    assert_true(files_sent >= 10);
    teardown(&f);
}

/* Many of them and small ones between, read late, so that the queue has pieces of all kinds. */
static void test_mixed(void **state)
{
    struct file_rig f;
    struct client c;
    struct message m = {0};

    setup(&f, NODE_WRITABLE);
    client_enter(&c, &f.rig);
    for (unsigned i = 0; i < 200; i++)
        message_request(&m, &(struct nbd_request){.command = NBD_CMD_READ,
                                                  .cookie = i,
                                                  .offset = i * 1000,
                                                  .length = i % 3 ? 100 * i : 100000 + i});
    client_send_message(&c, &m);
    rig_pump();
    for (unsigned i = 0; i < 200; i++)
        client_expect_data(&c, i, f.contents + i * 1000, i % 3 ? 100 * i : 100000 + i);
    assert_true(files_sent > 0);
    message_free(&m);
    client_free(&c);
    teardown(&f);
}

/* Reads once; returns whether it was sent from the file. */
static bool sent_from_file(struct file_rig *f, struct client *c)
{
    files_sent = 0;
    client_request(c, NBD_CMD_READ, 0, 1, 0, 65536);
    client_expect_data(c, 1, f->contents, 65536);
    return files_sent > 0;
}

/* Never from storage that may hold other data by the time the client takes the bytes. */
static void test_storage_reused(void **state)
{
    struct file_rig f;
    struct client c;

    setup(&f, NODE_WRITABLE | NODE_UNMAP);
    client_enter(&c, &f.rig);
    client_request(&c, NBD_CMD_TRIM, 0, 1, 1 << 20, 65536);
    client_expect(&c, 1, NBD_SUCCESS);
    assert_true(sent_from_file(&f, &c)); /* raw: places do not change their meaning */
    f.rig.nbd_export->node->reuses_storage = true;
    assert_false(sent_from_file(&f, &c));
    client_free(&c);
    teardown(&f);
}

/*
 * The file is cut after the header of the reply has gone out: there is no honest way to go on, so
 * the connection ends, and the client gets no byte that was not there.
 */
static void test_file_shrinks(void **state)
{
    struct file_rig f;
    struct client c;
    struct message m = {0};

    setup(&f, 0);
    client_enter(&c, &f.rig);
    /* More than the socket holds, so that most of it is still queued. */
    for (unsigned i = 0; i < 8; i++)
        message_request(
            &m, &(struct nbd_request){.command = NBD_CMD_READ, .cookie = i, .length = 3 << 20});
    client_send_message(&c, &m);
    rig_pump();
    assert_int_equal(truncate(f.path, 4096), 0);
    client_expect_close(&c);
    assert_true(c.in.length < 8 * (16 + (3 << 20)));
    rig_await_no_clients(&f.rig);
    message_free(&m);
    client_free(&c);
    /* The server itself goes on. */
    client_enter(&c, &f.rig);
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 4096);
    client_expect_data(&c, 1, f.contents, 4096);
    client_free(&c);
    teardown(&f);
}

static const enum nbd_reply_mode chunked[] = {NBD_MODE_STRUCTURED, NBD_MODE_EXTENDED};

/* In chunks, and as one. */
static void check_chunked_reads(struct file_rig *f, enum nbd_reply_mode mode, uint16_t flags)
{
    static const uint32_t lengths[] = {4096, 65536, 65537, 262144, 1000001, 3 << 20};
    struct exchange x;
    struct client c;

    client_enter_mode(&c, &f->rig, mode, NULL);
    exchange_init(&x, mode);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++)
        client_ask(&c, &x,
                   &(struct nbd_request){
                       .flags = flags, .cookie = i, .offset = 1234 - i, .length = lengths[i]},
                   NULL, 0);
    client_await(&c, &x);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        assert_int_equal(x.answers[i].error, NBD_SUCCESS);
        assert_memory_equal(x.answers[i].data, f->contents + 1234 - i, lengths[i]);
    }
    exchange_free(&x);
    client_free(&c);
}

static void test_chunked_reads(void **state)
{
    struct file_rig f;

    setup(&f, 0);
    for (unsigned i = 0; i < 4; i++) {
        files_sent = 0;
        check_chunked_reads(&f, chunked[i & 1], i & 2 ? NBD_CMD_FLAG_DF : 0);
        assert_true(files_sent >= 4);
    }
    teardown(&f);
}

/* A hole in the file is a hole for the client. */
static void test_sparse_file(void **state)
{
    struct file_rig f;
    struct client c;

    setup(&f, NODE_WRITABLE | NODE_UNMAP);
    client_enter_mode(&c, &f.rig, NBD_MODE_STRUCTURED, NULL);
    client_expect_log(&c, NBD_MODE_STRUCTURED,
                      &(struct nbd_request){
                          .command = NBD_CMD_WRITE_ZEROES, .offset = 1 << 20, .length = 1 << 20},
                      "simple done");
    client_expect_log(&c, NBD_MODE_STRUCTURED, &(struct nbd_request){.length = 3 << 20},
                      "data 0+1048576; hole 1048576+1048576; data 2097152+1048576; none done");
    client_free(&c);
    teardown(&f);
}

#define LONG_BYTES (2 << 20)

/* Reads eight times; behind the first megabyte the file ends while that goes on. */
static void cut_in_the_middle(struct file_rig *f, struct client *c, struct exchange *x,
                              uint16_t flags)
{
    exchange_init(x, x->mode);
    for (unsigned i = 0; i < 8; i++)
        client_ask(c, x,
                   &(struct nbd_request){
                       .flags = flags, .cookie = i, .offset = 4096, .length = LONG_BYTES},
                   NULL, 0);
    rig_pump();
    assert_int_equal(truncate(f->path, 1 << 20), 0);
    client_await(c, x);
}

/*
 * Where errors can be told later, the file that is cut while it is sent is no reason to end the
 * connection: the chunk is filled up, and an error names the place.
 */
static void test_file_shrinks_in_a_chunk(void **state)
{
    for (unsigned i = 0; i < 4; i++) {
        enum nbd_reply_mode mode = chunked[i & 1];
        struct exchange x = {.mode = mode};
        struct file_rig f;
        struct client c;
        unsigned padded = 0;

        setup(&f, 0);
        client_enter_mode(&c, &f.rig, mode, NULL);
        cut_in_the_middle(&f, &c, &x, i & 2 ? NBD_CMD_FLAG_DF : 0);
        /* Those that had begun were promised whole; those that came later need not promise. */
        for (unsigned k = 0; k < 8; k++) {
            struct answer *a = &x.answers[k];

            padded += a->error && a->covered == LONG_BYTES;
            if (a->data) /* what was sent and cut before it was taken may be zeroes by then */
                assert_memory_equal(a->data, f.contents + 4096, (1 << 20) - 4096);
            if (a->error && a->data)
                assert_non_null(strstr(answer_log(a), "; error EIO at "));
            if (a->error && a->covered == LONG_BYTES)
                assert_non_null(strstr(a->text, "shorter"));
        }
        assert_in_range(padded, 1, 8);
        client_expect_log(&c, mode, &(struct nbd_request){.length = 1 << 20},
                          "data 0+1048576; none done");
        exchange_free(&x);
        client_free(&c);
        teardown(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_storage_reused),
        cmocka_unit_test(test_file_shrinks),
        cmocka_unit_test(test_chunked_reads),
        cmocka_unit_test(test_sparse_file),
        cmocka_unit_test(test_file_shrinks_in_a_chunk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
