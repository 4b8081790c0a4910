/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Structured replies, and what extended ones have in common with them: which chunks answer which
 * request, whatever the disk is like.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/reactor.h"
#include "tests/dialogue/rig.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DISK_BYTES 1048576
#define UNIT 65536

static const enum nbd_reply_mode chunked[] = {NBD_MODE_STRUCTURED, NBD_MODE_EXTENDED};

/* A disk with no byte of zero but in its holes. */
static void start(struct rig *rig, struct client *c, enum nbd_reply_mode mode,
                  const struct rig_options *options)
{
    struct prng prng = prng_of(test_seed());

    rig_init(rig, options);
    for (uint64_t i = 0; rig->disk.data && i < options->size; i++)
        rig->disk.data[i] = (uint8_t)(1 + prng_below(&prng, 255));
    if (options->layout)
        ram_disk_set_layout(&rig->disk, options->layout, options->unit);
    client_enter_mode(c, rig, mode, NULL);
}

static void stop(struct rig *rig, struct client *c)
{
    client_free(c);
    rig_fini(rig);
}

/* ---- Tables ---- */

struct row {
    uint16_t command, flags;
    uint64_t offset, length;
    const char *log;
    uint64_t payload;
};

static void check_rows(const struct rig_options *options, enum nbd_reply_mode mode,
                       const struct row *rows, size_t count)
{
    struct rig rig;
    struct client c;

    start(&rig, &c, mode, options);
    for (size_t i = 0; i < count; i++) {
        const struct nbd_request request = {.cookie = i + 1,
                                            .command = rows[i].command,
                                            .flags = rows[i].flags,
                                            .offset = rows[i].offset,
                                            .length = rows[i].length,
                                            .payload = rows[i].payload};

        client_expect_log(&c, mode, &request, rows[i].log);
    }
    stop(&rig, &c);
}

static void test_reads(void **state)
{
    static const struct row rows[] = {
        /* In one piece, on the loop's stack. */
        {NBD_CMD_READ, 0, 0, 4096, "data 0+4096 done"},
        {NBD_CMD_READ, 0, 7, 1, "data 7+1 done"},
        {NBD_CMD_READ, 0, 65536, 4096, "hole 65536+4096 done"},
        {NBD_CMD_READ, 0, 65536, 65536, "hole 65536+65536 done"},
        {NBD_CMD_READ, 0, 65535, 65536, "data 65535+65536 done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_FUA, DISK_BYTES - 1, 1, "data 1048575+1 done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 65535, 2, "data 65535+2 done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 65536, 2, "hole 65536+2 done"},
        /* In parts. */
        {NBD_CMD_READ, 0, 0, 65537, "data 0+65536; hole 65536+1 done"},
        {NBD_CMD_READ, 0, 65536, 131072, "hole 65536+131072 done"},
        {NBD_CMD_READ, 0, 100, 262144 - 100,
         "data 100+65436; hole 65536+131072; data 196608+65536 done"},
        {NBD_CMD_READ, 0, 196608, 131072, "data 196608+131072 done"},
        {NBD_CMD_READ, 0, 131073, 65536 + 262143,
         "hole 131073+65535; data 196608+131072; hole 327680+131072 done"},
        /* Not to be fragmented. */
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 262144, "data 0+262144 done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 65536, 131072, "hole 65536+131072 done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, DISK_BYTES, "data 0+1048576 done"},
        /* Nothing, and what is refused. */
        {NBD_CMD_READ, 0, 0, 0, "none done"},
        {NBD_CMD_READ, 0, DISK_BYTES, 0, "none done"},
        {NBD_CMD_READ, 0, DISK_BYTES, 1, "error EINVAL done"},
        {NBD_CMD_READ, 0, UINT64_MAX - 511, 1024, "error EINVAL done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_REQ_ONE, 0, 1, "error EINVAL done"},
        {NBD_CMD_READ, 1 << 15, 0, 1, "error EINVAL done"},
    };
    const struct rig_options options = {.size = DISK_BYTES, .layout = "dhhd", .unit = UNIT};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++)
        check_rows(&options, chunked[i], rows, ARRAY_SIZE(rows));
}

/* Success without data needs no chunk, but has one where all headers are extended. */
static void test_other_commands(void **state)
{
    static const struct row rows[] = {
        {NBD_CMD_WRITE, 0, 0, 512, "simple done", 512},
        {NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 3, 1, "simple done", 1},
        {NBD_CMD_WRITE, 0, 0, 0, "simple done"},
        {NBD_CMD_FLUSH, 0, 0, 0, "simple done"},
        {NBD_CMD_TRIM, 0, 0, 4096, "simple done"},
        {NBD_CMD_CACHE, 0, 0, 4096, "simple done"},
        {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 0, 4096, "simple done"},
        {NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 4096, "simple done"},
        {NBD_CMD_WRITE, 0, DISK_BYTES, 5, "error ENOSPC done", 5},
        {NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 0, 100, "error EINVAL done", 100},
        {NBD_CMD_WRITE_ZEROES, 0, DISK_BYTES, 5, "error ENOSPC done"},
        {NBD_CMD_TRIM, 0, DISK_BYTES, 5, "error EINVAL done"},
        {NBD_CMD_CACHE, 0, DISK_BYTES, 5, "error EINVAL done"},
        {NBD_CMD_BLOCK_STATUS, 0, 0, 512, "error EINVAL done"},
        {NBD_CMD_RESIZE, 0, 0, 512, "error EINVAL done"},
        {UINT16_MAX, 0, 0, 512, "error EINVAL done"},
    };
    const struct rig_options options = {.size = DISK_BYTES};
    struct row extended[ARRAY_SIZE(rows)];

    check_rows(&options, NBD_MODE_STRUCTURED, rows, ARRAY_SIZE(rows));
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        extended[i] = rows[i];
        if (strcmp(rows[i].log, "simple done") == 0)
            extended[i].log = "none done";
    }
    check_rows(&options, NBD_MODE_EXTENDED, extended, ARRAY_SIZE(extended));
}

static void test_read_only(void **state)
{
    static const struct row rows[] = {
        {NBD_CMD_WRITE, 0, 0, 512, "error EPERM done", 512},
        {NBD_CMD_TRIM, 0, 0, 512, "error EPERM done"},
        {NBD_CMD_WRITE_ZEROES, 0, 0, 512, "error EPERM done"},
        {NBD_CMD_READ, 0, 0, 512, "data 0+512 done"},
    };
    const struct rig_options options = {.size = DISK_BYTES, .read_only = true};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++)
        check_rows(&options, chunked[i], rows, ARRAY_SIZE(rows));
}

/* Larger reads than the largest payload are refused, with a hint to try smaller ones. */
static void test_large_reads(void **state)
{
    static const struct row rows[] = {
        {NBD_CMD_READ, 0, 0, 32 << 20, "hole 0+33554432 done"},
        {NBD_CMD_READ, 0, 0, (32 << 20) + 1, "error EOVERFLOW done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, (32 << 20) + 1, "error EOVERFLOW done"},
        {NBD_CMD_READ, 0, 1 << 30, UINT32_MAX, "error EOVERFLOW done"},
        {NBD_CMD_READ, 0, (UINT64_C(8) << 30) - 1, UINT32_MAX, "error EINVAL done"},
    };
    const struct rig_options options = {
        .size = UINT64_C(8) << 30, .pattern = true, .layout = "h", .unit = UINT64_C(1) << 40};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++)
        check_rows(&options, chunked[i], rows, ARRAY_SIZE(rows));
}

/* Zeroes that are data on the disk need not be sent either. */
static void test_zeroes_in_data(void **state)
{
    const struct rig_options options = {.size = 16 << 20};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++) {
        struct rig rig;
        struct client c;

        start(&rig, &c, chunked[i], &options);
        memset(rig.disk.data + 4096, 0, 8192);
        memset(rig.disk.data + (4 << 20), 0, 4 << 20);
        client_expect_log(&c, chunked[i], &(struct nbd_request){.offset = 4096, .length = 8192},
                          "hole 4096+8192 done");
        client_expect_log(&c, chunked[i], &(struct nbd_request){.offset = 4096, .length = 8193},
                          "data 4096+8193 done");
        client_expect_log(&c, chunked[i], &(struct nbd_request){.offset = 0, .length = 16 << 20},
                          "data 0+4194304; hole 4194304+4194304; data 8388608+4194304; "
                          "data 12582912+4194304 done");
        stop(&rig, &c);
    }
}

/* ---- The same bytes as on the disk ---- */

/* One read, of which all bytes must be right. */
static void ask_random(struct client *c, struct exchange *x, struct prng *prng, uint64_t size)
{
    static const uint32_t lengths[] = {1, 512, 4096, 65536, 65537, 200000, 1 << 20};
    uint64_t length = 1 + prng_below(prng, lengths[prng_below(prng, ARRAY_SIZE(lengths))]);

    client_ask(c, x,
               &(struct nbd_request){.command = NBD_CMD_READ,
                                     .flags = prng_percent(prng, 20) ? NBD_CMD_FLAG_DF : 0,
                                     .cookie = prng_next(prng),
                                     .offset = prng_below(prng, size - length + 1),
                                     .length = length},
               NULL, 0);
}

static void check_contents(const struct rig *rig, const struct exchange *x)
{
    for (size_t i = 0; i < x->count; i++) {
        const struct answer *a = &x->answers[i];

        assert_int_equal(a->error, NBD_SUCCESS);
        assert_memory_equal(a->data, rig->disk.data + a->request.offset, a->request.length);
    }
}

static void check_random_reads(enum nbd_reply_mode mode, const char *layout, uint64_t unit,
                               bool slow)
{
    const struct rig_options options = {.size = 3 << 20, .layout = layout, .unit = unit};
    struct prng prng = prng_of(test_seed() + unit);
    struct rig rig;
    struct client c;

    start(&rig, &c, mode, &options);
    for (int round = 0; round < 4; round++) {
        struct exchange x;

        exchange_init(&x, mode);
        rig.disk.slow = slow;
        for (int i = 0; i < 25; i++)
            ask_random(&c, &x, &prng, options.size);
        for (int i = 0; i < 40 && slow; i++) {
            rig_pump();
            if (rig.disk.waiting_count > 0) /* in another order than they came */
                ram_disk_release(&rig.disk, rig.disk.waiting_count - 1);
        }
        rig.disk.slow = false;
        ram_disk_release_all(&rig.disk);
        client_await(&c, &x);
        check_contents(&rig, &x);
        exchange_free(&x);
    }
    stop(&rig, &c);
}

static void test_contents(void **state)
{
    static const char *const layouts[] = {"d", "h", "dh", "dhhhhdddh"};
    static const uint64_t units[] = {512, 4096, 65536};

    for (size_t i = 0; i < ARRAY_SIZE(layouts) * ARRAY_SIZE(units) * 4; i++)
        check_random_reads(chunked[i & 1], layouts[i / 4 % ARRAY_SIZE(layouts)],
                           units[i / 4 / ARRAY_SIZE(layouts)], i & 2);
}

/* ---- Failures ---- */

/* What can be read is sent, what cannot is named, and the connection goes on. */
static void test_failing_half_way(void **state)
{
    static const struct row rows[] = {
        {NBD_CMD_READ, 0, 0, 524288,
         "data 0+65536; hole 65536+131072; data 196608+65536; data 262144+4096; "
         "data 266240+4096; error EIO at 270336 done"},
        {NBD_CMD_READ, 0, 262144, 16384,
         "data 262144+4096; data 266240+4096; error EIO at 270336 done"},
        {NBD_CMD_READ, 0, 270336, 700, "error EIO at 270336 done"},
        {NBD_CMD_READ, 0, 266240, 5000, "data 266240+4096; error EIO at 270336 done"},
        {NBD_CMD_READ, 0, 271000, 1, "error EIO at 271000 done"},
        {NBD_CMD_READ, 0, 271001, 4096, "data 271001+4096 done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 524288, "error EIO done"},
        {NBD_CMD_READ, NBD_CMD_FLAG_DF, 270336, 65536, "error EIO done"},
        {NBD_CMD_READ, 0, 0, 131072, "data 0+65536; hole 65536+65536 done"},
    };
    const struct rig_options options = {.size = DISK_BYTES, .layout = "dhhd", .unit = UNIT};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++) {
        struct rig rig;
        struct client c;

        start(&rig, &c, chunked[i], &options);
        rig.disk.bad_offset = 271000;
        rig.disk.bad_length = 1;
        for (size_t k = 0; k < ARRAY_SIZE(rows); k++)
            client_expect_log(&c, chunked[i],
                              &(struct nbd_request){.flags = rows[k].flags,
                                                    .cookie = k,
                                                    .offset = rows[k].offset,
                                                    .length = rows[k].length},
                              rows[k].log);
        stop(&rig, &c);
    }
}

static void expect_text(struct client *c, enum nbd_reply_mode mode,
                        const struct nbd_request *request, const char *part)
{
    struct exchange x;

    exchange_init(&x, mode);
    client_ask(c, &x, request, NULL, 0);
    client_await(c, &x);
    assert_int_not_equal(x.answers[0].error, NBD_SUCCESS);
    if (!strstr(x.answers[0].text, part))
        fail_msg("the text '%s' does not say '%s'", x.answers[0].text, part);
    exchange_free(&x);
}

static void test_texts(void **state)
{
    const struct rig_options options = {.size = DISK_BYTES};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++) {
        enum nbd_reply_mode mode = chunked[i];
        struct rig rig;
        struct client c;

        start(&rig, &c, mode, &options);
        expect_text(&c, mode, &(struct nbd_request){.offset = DISK_BYTES, .length = 1},
                    "past the end");
        rig.disk.read_error = -EIO;
        expect_text(&c, mode, &(struct nbd_request){.offset = 4096, .length = 1},
                    "READ of export 'disk' failed at byte 4096: Input/output error");
        rig.disk.zero_error = -ENOTSUP;
        expect_text(&c, mode,
                    &(struct nbd_request){.command = NBD_CMD_WRITE_ZEROES,
                                          .flags = NBD_CMD_FLAG_FAST_ZERO,
                                          .length = 512},
                    "would not be fast");
        rig.disk.flush_error = -EIO;
        client_expect_log(&c, mode,
                          &(struct nbd_request){.command = NBD_CMD_WRITE_ZEROES, .length = 512},
                          mode == NBD_MODE_EXTENDED ? "none done" : "simple done");
        expect_text(&c, mode, &(struct nbd_request){.command = NBD_CMD_FLUSH},
                    "FLUSH of export 'disk' failed");
        stop(&rig, &c);
    }
}

/* ---- Life ---- */

static void test_flags(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter_mode(&c, &rig, NBD_MODE_SIMPLE, NULL);
    assert_int_equal(c.flags, rig.nbd_export->flags);
    client_free(&c);
    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++) {
        client_enter_mode(&c, &rig, chunked[i], NULL);
        assert_int_equal(c.flags, rig.nbd_export->flags | NBD_FLAG_SEND_DF);
        client_free(&c);
        client_enter_mode(&c, &rig, chunked[i], "base:allocation");
        assert_int_equal(c.flags, rig.nbd_export->flags | NBD_FLAG_SEND_DF |
                                      (i ? NBD_FLAG_BLOCK_STATUS_PAYLOAD : 0));
        client_free(&c);
    }
    rig_fini(&rig);
}

/* Requests that come while the server stops are refused with a sentence; what runs is answered. */
static void test_stopping(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++) {
        struct rig rig;
        struct client c;
        struct exchange x;

        rig_init(&rig, NULL);
        client_enter_mode(&c, &rig, chunked[i], NULL);
        exchange_init(&x, chunked[i]);
        rig.disk.slow = true;
        client_ask(&c, &x, &(struct nbd_request){.cookie = 1, .length = 100000}, NULL, 0);
        rig_pump();
        nbd_server_stop(rig.server, RIG_LIMIT_NS);
        client_ask(&c, &x,
                   &(struct nbd_request){.command = NBD_CMD_WRITE, .cookie = 2, .length = 5},
                   "hello", 5);
        client_ask(&c, &x, &(struct nbd_request){.cookie = 3, .length = 1}, NULL, 0);
        rig_pump();
        rig.disk.slow = false;
        ram_disk_release_all(&rig.disk);
        client_await(&c, &x);
        assert_string_equal(answer_log(&x.answers[0]), "hole 0+100000 done");
        assert_string_equal(answer_log(&x.answers[1]), "error ESHUTDOWN done");
        assert_string_equal(answer_log(&x.answers[2]), "error ESHUTDOWN done");
        assert_non_null(strstr(x.answers[2].text, "shutting down"));
        client_expect_close(&c);
        exchange_free(&x);
        stop(&rig, &c);
    }
}

/* A client that asks for much and takes nothing holds no more memory than its share. */
static void test_unread_parts(void **state)
{
    const struct rig_options options = {
        .size = 64 << 20, .pattern = true, .layout = "dddh", .unit = 512 << 10};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++) {
        struct rig rig;
        struct client c;
        struct exchange x;

        rig_init(&rig, &options);
        client_enter_mode(&c, &rig, chunked[i], NULL);
        exchange_init(&x, chunked[i]);
        for (uint64_t n = 0; n < 12; n++)
            client_ask(&c, &x, &(struct nbd_request){.cookie = n, .length = 30 << 20}, NULL, 0);
        rig_pump();
        assert_in_range(buffer_bytes_used(), 20 << 20, NBD_CONNECTION_BYTES_MAX + (40 << 20));
        client_await(&c, &x);
        for (uint64_t n = 0; n < 12; n++)
            assert_int_equal(x.answers[n].covered, 30 << 20);
        exchange_free(&x);
        stop(&rig, &c);
        assert_int_equal(buffer_bytes_used(), 0);
    }
}

/* A client that goes away in the middle leaves nothing behind. */
static void test_gone_in_the_middle(void **state)
{
    const struct rig_options options = {.size = 8 << 20, .layout = "dh", .unit = UNIT};

    for (size_t i = 0; i < ARRAY_SIZE(chunked); i++) {
        struct rig rig;
        struct client c;
        struct exchange x;

        start(&rig, &c, chunked[i], &options);
        exchange_init(&x, chunked[i]);
        rig.disk.slow = true;
        for (uint64_t n = 0; n < 5; n++)
            client_ask(&c, &x, &(struct nbd_request){.cookie = n, .length = 8 << 20}, NULL, 0);
        rig_pump();
        assert_int_equal(rig.disk.waiting_count, 5);
        client_free(&c);
        rig_pump();
        rig.disk.slow = false;
        ram_disk_release_all(&rig.disk);
        rig_await_no_clients(&rig);
        /* The walks ended with the connection, not at the end of what was asked for. */
        assert_true(rig.disk.reads < 5 * 20);
        exchange_free(&x);
        rig_fini(&rig);
        assert_int_equal(buffer_bytes_used(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_other_commands),
        cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_large_reads),
        cmocka_unit_test(test_zeroes_in_data),
        cmocka_unit_test(test_contents),
        cmocka_unit_test(test_failing_half_way),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_stopping),
        cmocka_unit_test(test_unread_parts),
        cmocka_unit_test(test_gone_in_the_middle),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
