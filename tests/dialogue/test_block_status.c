/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * BLOCK_STATUS over a connection: extents of every context, their sums, and the bounds of what one
 * request can cost.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "tests/dialogue/layer_driver.h"
#include "tests/dialogue/rig.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BOTH "base:allocation qemu:allocation-depth"
#define PAGE 4096

static const enum nbd_reply_mode chunked[] = {NBD_MODE_STRUCTURED, NBD_MODE_EXTENDED};

struct row {
    uint64_t offset, length;
    uint16_t flags;
    uint64_t contexts; /* that must be told */
    const char *log;
};

static void check_rows(const struct rig_options *options, const char *contexts,
                       const struct row *rows, size_t count)
{
    for (size_t m = 0; m < ARRAY_SIZE(chunked); m++) {
        struct rig rig;
        struct client c;

        rig_init(&rig, options);
        client_enter_mode(&c, &rig, chunked[m], contexts);
        for (size_t i = 0; i < count; i++) {
            const struct nbd_request request = {.command = NBD_CMD_BLOCK_STATUS,
                                                .flags = rows[i].flags,
                                                .cookie = i,
                                                .offset = rows[i].offset,
                                                .length = rows[i].length,
                                                .contexts = rows[i].contexts};

            client_expect_log(&c, chunked[m], &request, rows[i].log);
        }
        client_free(&c);
        rig_fini(&rig);
        assert_int_equal(buffer_bytes_used(), 0);
    }
}

static void test_one_context(void **state)
{
    static const struct row rows[] = {
        {0, 5 * PAGE, 0, 1, "status 0: 4096:0 8192:3 8192:0 done"},
        {0, 1 << 20, NBD_CMD_FLAG_REQ_ONE, 1, "status 0: 4096:0 done"},
        {PAGE, 1 << 19, NBD_CMD_FLAG_REQ_ONE, 1, "status 0: 8192:3 done"},
        {PAGE + 1, PAGE, NBD_CMD_FLAG_REQ_ONE, 1, "status 0: 4096:3 done"},
        {PAGE + 1, 2 * PAGE, 0, 1, "status 0: 8191:3 1:0 done"},
        {PAGE - 1, 2, 0, 1, "status 0: 1:0 1:3 done"},
        {PAGE, 1, 0, 1, "status 0: 1:3 done"},
        {(1 << 20) - 1, 1, 0, 1, "status 0: 1:0 done"},
        {0, 0, 0, 1, "error EINVAL done"},
        {1 << 20, 1, 0, 1, "error EINVAL done"},
        {1, 1 << 20, 0, 1, "error EINVAL done"},
        {UINT64_MAX, 1, 0, 1, "error EINVAL done"},
        {0, 512, NBD_CMD_FLAG_DF, 1, "error EINVAL done"},
        {0, 512, NBD_CMD_FLAG_FUA, 1, "status 0: 512:0 done"},
    };
    const struct rig_options options = {.size = 1 << 20, .layout = "dhhd", .unit = PAGE};

    check_rows(&options, "base:allocation", rows, ARRAY_SIZE(rows));
}

/* Every context has its own extents, merged for itself. */
static void test_several_contexts(void **state)
{
    static const struct row rows[] = {
        {0, 6 * PAGE, 0, 3,
         "status 0: 8192:0 4096:3 12288:0; status 1: 4096:1 4096:2 4096:1 4096:2 8192:1 done"},
        {0, 6 * PAGE, NBD_CMD_FLAG_REQ_ONE, 3, "status 0: 8192:0; status 1: 4096:1 done"},
        {6 * PAGE, 2 * PAGE, 0, 3, "status 0: 8192:3; status 1: 8192:2 done"},
    };
    static const struct row bitmap[] = {
        {0, 8 * PAGE, 0, 4, "status 2: 4096:0 8192:1 20480:0 done"},
        {PAGE, PAGE, 0, 4, "status 2: 4096:1 done"},
    };
    struct layer_bitmap today = {.name = "today", .granularity = PAGE, .bits = ".##....."};
    struct ram_disk disk;
    struct layer base = {.size = 6 * PAGE, .unit = PAGE, .map = "zddddz", .disk = &disk};
    struct layer top = {.size = 8 * PAGE,
                        .unit = PAGE,
                        .map = "d.z.dd..",
                        .disk = &disk,
                        .backing = &base,
                        .bitmaps = &today,
                        .bitmap_count = 1};
    const struct rig_options options = {.layer = &top, .allocation_depth = true, .bitmap = "today"};

    ram_disk_init(&disk, 8 * PAGE);
    check_rows(&options, BOTH, rows, ARRAY_SIZE(rows));
    check_rows(&options, "qemu:dirty-bitmap:today", bitmap, ARRAY_SIZE(bitmap));
    ram_disk_fini(&disk);
}

/* What is behind an error is left to the next request, which gets the error. */
static void test_errors(void **state)
{
    static const struct row rows[] = {
        {0, 4 * PAGE, 0, 3, "status 0: 8192:0; status 1: 8192:1 done"},
        {2 * PAGE, 2 * PAGE, 0, 3, "error EIO done"},
        {3 * PAGE, PAGE, 0, 3, "status 0: 4096:3; status 1: 4096:1 done"},
    };
    struct ram_disk disk;
    struct layer layer = {.size = 4 * PAGE, .unit = PAGE, .map = "dd!z", .disk = &disk};
    const struct rig_options options = {.layer = &layer, .allocation_depth = true};

    ram_disk_init(&disk, 4 * PAGE);
    check_rows(&options, BOTH, rows, ARRAY_SIZE(rows));
    ram_disk_fini(&disk);
}

/*
 * CVE-2025-47711: an extent that is longer than 32 bits can tell.  CVE-2025-47712: a length that
 * wraps when it is rounded up to blocks.
 */
static void test_near_4_gib(void **state)
{
    static const struct row rows[] = {
        {0, UINT32_MAX, 0, 1, "status 0: 4294967295:3 done"},
        {1, UINT32_MAX, NBD_CMD_FLAG_REQ_ONE, 1, "status 0: 4294967295:3 done"},
        {UINT32_MAX, UINT32_MAX, 0, 1, "status 0: 4294967295:3 done"},
        {(UINT64_C(1) << 32) + 511, UINT32_MAX - 1, 0, 1, "status 0: 4294967294:3 done"},
        {(UINT64_C(1) << 43) - UINT32_MAX, UINT32_MAX, 0, 1, "status 0: 4294967295:3 done"},
        {(UINT64_C(1) << 43) - UINT32_MAX + 1, UINT32_MAX, 0, 1, "error EINVAL done"},
    };
    static const struct row data[] = {
        {0, UINT32_MAX, 0, 1, "status 0: 4294967295:0 done"},
        {UINT32_MAX - 7, UINT32_MAX, 0, 1, "status 0: 4294967295:0 done"},
    };
    struct rig_options options = {
        .size = UINT64_C(1) << 43, .pattern = true, .layout = "h", .unit = UINT64_C(1) << 50};

    check_rows(&options, "base:allocation", rows, ARRAY_SIZE(rows));
    options.layout = NULL;
    check_rows(&options, "base:allocation", data, ARRAY_SIZE(data));
}

/* ---- Bounds ---- */

/* Asks for the status from `offset` to the end. Returns the bytes told. */
static uint64_t ask(struct client *c, enum nbd_reply_mode mode, uint16_t flags, uint64_t offset,
                    uint64_t size, unsigned *ret_extents)
{
    uint64_t length, limit = mode == NBD_MODE_EXTENDED ? UINT64_MAX : UINT32_MAX;
    struct exchange x;

    exchange_init(&x, mode);
    client_ask(c, &x,
               &(struct nbd_request){.command = NBD_CMD_BLOCK_STATUS,
                                     .flags = flags,
                                     .offset = offset,
                                     .length = min_u64(size - offset, limit),
                                     .contexts = 1},
               NULL, 0);
    client_await(c, &x);
    assert_int_equal(x.answers[0].error, NBD_SUCCESS);
    *ret_extents = x.answers[0].extents;
    length = x.answers[0].told_length;
    exchange_free(&x);
    return length;
}

/* A million extents, data and holes in turn, all told in as many replies as it takes. */
static void test_a_million_extents(void **state)
{
    const uint64_t size = UINT64_C(4) << 30;
    const struct rig_options options = {
        .size = size, .pattern = true, .layout = "dh", .unit = PAGE};

    for (size_t m = 0; m < ARRAY_SIZE(chunked); m++) {
        uint64_t at = 0, total = 0;
        struct rig rig;
        struct client c;
        unsigned extents;

        rig_init(&rig, &options);
        client_enter_mode(&c, &rig, chunked[m], "base:allocation");
        assert_int_equal(ask(&c, chunked[m], NBD_CMD_FLAG_REQ_ONE, PAGE, size, &extents), PAGE);
        assert_int_equal(extents, 1);
        assert_true(rig.disk.maps < 10);
        while (at < size) {
            uint64_t told = ask(&c, chunked[m], 0, at, size, &extents);

            assert_in_range(extents, 1, 8192);
            assert_int_equal(told, (uint64_t)extents * PAGE);
            at += told;
            total += extents;
        }
        assert_int_equal(at, size);
        assert_int_equal(total, 1 << 20);
        client_free(&c);
        rig_fini(&rig);
    }
}

/* Extents that merge are not looked at without end either. */
static void test_merging_without_end(void **state)
{
    enum { UNITS = 200000 };
    char *map = malloc(UNITS + 1);
    struct ram_disk disk;
    struct layer base = {.size = UNITS * 512, .unit = UNITS * 512, .map = "d", .disk = &disk};
    struct layer top = {.size = UNITS * 512, .unit = 512, .disk = &disk, .backing = &base};
    const struct rig_options options = {.layer = &top};
    struct rig rig;
    struct client c;
    unsigned extents;
    uint64_t told, at = 0;

    assert_non_null(map);
    for (size_t i = 0; i < UNITS; i++)
        map[i] = i % 2 ? '.' : 'd';
    top.map = map;
    ram_disk_init_pattern(&disk, UNITS * 512);
    rig_init(&rig, &options);
    client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, "base:allocation");
    for (unsigned asked = 0; at < top.size; asked++) {
        unsigned before = top.maps;

        told = ask(&c, NBD_MODE_EXTENDED, 0, at, top.size, &extents);
        assert_int_equal(extents, 1);
        assert_true(told > 0);
        assert_true(top.maps - before < 200000);
        assert_true(asked < 1000);
        at += told;
    }
    client_free(&c);
    rig_fini(&rig);
    ram_disk_fini(&disk);
    free(map);
}

/* A clock that goes on each time somebody looks at it. */
static const struct sys *inner;
static struct sys ticking;
static int64_t now = 1000000000, tick_ns;

static int64_t tick(void)
{
    return now += tick_ns;
}

static void start_ticking(int64_t ns)
{
    tick_ns = ns;
    inner = sys;
    ticking = *sys;
    ticking.monotonic_ns = tick;
    sys = &ticking;
}

/* While a client has a disk of 2^28 extents looked at, another one does not wait for it. */
static void test_slices(void **state)
{
    const uint64_t size = UINT64_C(1) << 40;
    const struct rig_options options = {
        .size = size, .pattern = true, .layout = "dh", .unit = PAGE};
    struct exchange slow, quick;
    struct rig rig;
    struct client a, b;

    start_ticking(100000);
    rig_init(&rig, &options);
    client_enter_mode(&a, &rig, NBD_MODE_EXTENDED, "base:allocation");
    client_enter_mode(&b, &rig, NBD_MODE_STRUCTURED, NULL);
    exchange_init(&slow, NBD_MODE_EXTENDED);
    exchange_init(&quick, NBD_MODE_STRUCTURED);
    client_ask(
        &a, &slow,
        &(struct nbd_request){.command = NBD_CMD_BLOCK_STATUS, .length = size, .contexts = 1}, NULL,
        0);
    client_ask(&b, &quick, &(struct nbd_request){.length = 512}, NULL, 0);
    client_await(&b, &quick);
    assert_int_equal(slow.done, 0);
    assert_int_equal(a.in.length, 0);
    client_await(&a, &slow);
    /* Time was up before the bound of the extents was met. */
    assert_in_range(slow.answers[0].extents, 100, 8000);
    exchange_free(&slow);
    exchange_free(&quick);
    client_free(&a);
    client_free(&b);
    rig_fini(&rig);
    sys = inner;
}

/* Of a hundred that wait for each other, those that a stop finds after a second are given up. */
static void test_stop(void **state)
{
    enum { REQUESTS = 100 };
    const uint64_t size = UINT64_C(1) << 40;
    const struct rig_options options = {
        .size = size, .pattern = true, .layout = "dh", .unit = PAGE};
    unsigned given_up = 0;
    struct exchange x;
    struct rig rig;
    struct client c;

    start_ticking(100000);
    rig_init(&rig, &options);
    client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, "base:allocation");
    exchange_init(&x, NBD_MODE_EXTENDED);
    for (uint64_t i = 0; i < REQUESTS; i++)
        client_ask(&c, &x,
                   &(struct nbd_request){
                       .command = NBD_CMD_BLOCK_STATUS, .cookie = i, .length = size, .contexts = 1},
                   NULL, 0);
    rig_pump();
    nbd_server_stop(rig.server, 100 * RIG_LIMIT_NS);
    client_await(&c, &x);
    for (size_t i = 0; i < REQUESTS; i++)
        given_up += x.answers[i].error == NBD_ESHUTDOWN;
    assert_in_range(given_up, REQUESTS / 2, REQUESTS);
    exchange_free(&x);
    client_free(&c);
    rig_fini(&rig);
    sys = inner;
}

/* A client that has reset its connection is not worked for any more. */
static void test_gone_in_the_middle(void **state)
{
    struct ram_disk disk;
    char map[5001];
    struct layer layer = {.size = 5000 * 512, .unit = 512, .map = map, .disk = &disk};
    const struct rig_options options = {.layer = &layer};
    struct exchange x;
    struct rig rig;
    struct client c;

    start_ticking(10000);
    for (size_t i = 0; i < 5000; i++)
        map[i] = i % 2 ? 'z' : 'd';
    map[5000] = '\0';
    ram_disk_init(&disk, layer.size);
    rig_init(&rig, &options);
    client_enter_mode(&c, &rig, NBD_MODE_STRUCTURED, "base:allocation");
    exchange_init(&x, NBD_MODE_STRUCTURED);
    client_ask(&c, &x, &(struct nbd_request){.cookie = 1, .length = 512}, NULL, 0);
    rig_pump(); /* with an answer that is never read, closing is a reset */
    client_ask(
        &c, &x,
        &(struct nbd_request){.command = NBD_CMD_BLOCK_STATUS, .length = layer.size, .contexts = 1},
        NULL, 0);
    client_free(&c);
    rig_await_no_clients(&rig);
    assert_in_range(layer.maps, 10, 5000);
    exchange_free(&x);
    rig_fini(&rig);
    ram_disk_fini(&disk);
    sys = inner;
    assert_int_equal(buffer_bytes_used(), 0);
}

/* A client asks for far more than it reads: what is ready for it stays bounded, and then comes. */
static void test_deaf_client(void **state)
{
    enum { REQUESTS = 120, EXTENTS = 8192 };
    const struct rig_options options = {.size = UINT64_C(1) << 30,
                                        .pattern = true,
                                        .layout = "dh",
                                        .unit = PAGE,
                                        .allocation_depth = true};

    start_ticking(1000); /* slices end, so that requests are in flight side by side */
    for (int reads = 0; reads < 2; reads++) {
        struct exchange x;
        struct rig rig;
        struct client c;

        rig_init(&rig, &options);
        client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, BOTH);
        exchange_init(&x, NBD_MODE_EXTENDED);
        for (unsigned i = 0; i < REQUESTS; i++) {
            client_ask(&c, &x,
                       &(struct nbd_request){.command = NBD_CMD_BLOCK_STATUS,
                                             .cookie = i,
                                             .length = (uint64_t)EXTENTS * PAGE,
                                             .contexts = 3},
                       NULL, 0);
        }
        for (int i = 0; i < 100; i++)
            rig_pump();
        /* Each has a buffer of 128 KiB for its extents until it is answered. */
        assert_in_range(buffer_bytes_used(), 1, (REQUESTS << 17) + (5 << 20));
        assert_int_equal(x.done, 0);
        if (reads)
            client_await(&c, &x);
        client_free(&c);
        rig_await_no_clients(&rig);
        exchange_free(&x);
        rig_fini(&rig);
        assert_int_equal(buffer_bytes_used(), 0);
    }
    sys = inner;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_context),
        cmocka_unit_test(test_several_contexts),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_near_4_gib),
        cmocka_unit_test(test_a_million_extents),
        cmocka_unit_test(test_merging_without_end),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_gone_in_the_middle),
        cmocka_unit_test(test_deaf_client),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
