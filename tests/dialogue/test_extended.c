/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Extended headers: lengths of 64 bits, payloads that a flag announces, and how all of them keep
 * the stream in step.  What they have in common with structured replies is in test_structured.c.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/checked.h"
#include "tests/dialogue/rig.h"
#include "tests/support/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TIB_8 (UINT64_C(8) << 40)

static const struct rig_options huge = {.size = TIB_8,
                                        .pattern = true,
                                        .layout = "h",
                                        .unit = UINT64_C(1) << 60,
                                        .node_flags = NODE_UNMAP};

/* A disk of 8 TiB that is one hole, and a client that has selected its only context. */
static void start(struct rig *rig, struct client *c)
{
    rig_init(rig, &huge);
    client_enter_mode(c, rig, NBD_MODE_EXTENDED, "base:allocation");
}

static void stop(struct rig *rig, struct client *c)
{
    client_free(c);
    rig_fini(rig);
    assert_int_equal(buffer_bytes_used(), 0);
}

static void expect(struct client *c, uint16_t command, uint16_t flags, uint64_t offset,
                   uint64_t length, const char *log)
{
    const struct nbd_request request = {.command = command,
                                        .flags = flags,
                                        .cookie = 7,
                                        .offset = offset,
                                        .length = length,
                                        .contexts = 1};

    client_expect_log(c, NBD_MODE_EXTENDED, &request, log);
}

/* A request that changes so many bytes, in however many pieces. */
static void expect_change(struct rig *rig, struct client *c, uint16_t command, uint16_t flags,
                          uint64_t offset, uint64_t length)
{
    rig->disk.changed = 0;
    expect(c, command, flags, offset, length, "none done");
    assert_true(rig->disk.changed == length);
}

/* What moves no data has no other limit than the disk. */
static void test_lengths(void **state)
{
    const uint64_t gib5 = UINT64_C(5) << 30;
    struct rig rig;
    struct client c;

    start(&rig, &c);
    expect_change(&rig, &c, NBD_CMD_WRITE_ZEROES, 0, 4096, gib5);
    expect_change(&rig, &c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, TIB_8);
    expect_change(&rig, &c, NBD_CMD_TRIM, 0, 512, gib5 + 1);
    expect(&c, NBD_CMD_BLOCK_STATUS, 0, 0, TIB_8, "status 0: 8796093022208:3 done");
    expect(&c, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 1, gib5, "status 0: 5368709120:3 done");
    expect(&c, NBD_CMD_READ, 0, 0, UINT64_C(1) << 32, "error EOVERFLOW done");
    expect(&c, NBD_CMD_READ, 0, TIB_8 - 1, UINT64_MAX, "error EINVAL done");
    expect(&c, NBD_CMD_TRIM, 0, TIB_8, 1, "error EINVAL done");
    expect(&c, NBD_CMD_WRITE_ZEROES, 0, 1, TIB_8, "error ENOSPC done");
    expect(&c, NBD_CMD_WRITE_ZEROES, 0, UINT64_MAX, UINT64_MAX, "error ENOSPC done");
    expect(&c, NBD_CMD_BLOCK_STATUS, 0, 1, TIB_8, "error EINVAL done");
    expect(&c, NBD_CMD_BLOCK_STATUS, 0, 1, 0, "error EINVAL done");
    expect(&c, NBD_CMD_FLUSH, 0, 5, UINT64_MAX, "none done");
    stop(&rig, &c);
}

/* However much is asked for, a bounded part of it is read ahead, and none of its holes. */
static void test_cache(void **state)
{
    const struct rig_options options = {
        .size = TIB_8, .pattern = true, .layout = "dhhhhhhh", .unit = 4 << 20};
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, NULL);
    expect(&c, NBD_CMD_CACHE, 0, 0, TIB_8, "none done");
    /* Two units of data in the first 64 MiB, 256 KiB at a time. */
    assert_int_equal(rig.disk.reads, 2 * 16);
    rig.disk.bad_offset = 4096;
    rig.disk.bad_length = 1;
    expect(&c, NBD_CMD_CACHE, 0, 4 << 20, 1 << 20, "none done");
    expect(&c, NBD_CMD_CACHE, 0, 0, 1 << 20, "error EIO done");
    stop(&rig, &c);
}

/* ---- Payloads ---- */

/* Sends a header as it is, with `payload` bytes behind; the answer must be the log. */
static void expect_raw(struct client *c, const struct nbd_request *request, size_t payload,
                       const char *log)
{
    uint8_t header[NBD_EXTENDED_REQUEST_BYTES];
    struct message m = {0};
    struct exchange x;

    nbd_request_encode_extended(header, request);
    message_bytes(&m, header, sizeof(header));
    message_fill(&m, 0x21, payload);
    exchange_init(&x, NBD_MODE_EXTENDED);
    exchange_expect(&x, request);
    client_send_message(c, &m);
    client_await(c, &x);
    assert_string_equal(answer_log(&x.answers[0]), log);
    exchange_free(&x);
    message_free(&m);
    expect(c, NBD_CMD_FLUSH, 0, 0, 0, "none done");
}

static void test_payload_flag(void **state)
{
    static const uint16_t none[] = {NBD_CMD_READ,
                                    NBD_CMD_FLUSH,
                                    NBD_CMD_TRIM,
                                    NBD_CMD_CACHE,
                                    NBD_CMD_WRITE_ZEROES,
                                    NBD_CMD_RESIZE,
                                    9,
                                    UINT16_MAX};
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, NULL);
    /* Without the flag a WRITE has no payload, and cannot be. */
    expect_raw(&c, &(struct nbd_request){.command = NBD_CMD_WRITE, .length = 512}, 0,
               "error EINVAL done");
    expect_raw(&c,
               &(struct nbd_request){.command = NBD_CMD_WRITE,
                                     .flags = NBD_CMD_FLAG_PAYLOAD_LEN,
                                     .offset = 3,
                                     .length = 512},
               512, "none done");
    assert_int_equal(rig.disk.data[2], 0);
    assert_int_equal(rig.disk.data[3], 0x21);
    assert_int_equal(rig.disk.data[514], 0x21);
    assert_int_equal(rig.disk.data[515], 0);
    expect_raw(&c,
               &(struct nbd_request){
                   .command = NBD_CMD_WRITE, .flags = NBD_CMD_FLAG_PAYLOAD_LEN, .length = 0},
               0, "none done");
    for (size_t i = 0; i < ARRAY_SIZE(none); i++) {
        for (size_t length = 1; length < 200000; length = 3 * length + 1)
            expect_raw(&c,
                       &(struct nbd_request){
                           .command = none[i], .flags = NBD_CMD_FLAG_PAYLOAD_LEN, .length = length},
                       length, "error EINVAL done");
    }
    assert_int_equal(rig.disk.reads + rig.disk.zeroes + rig.disk.discards, 0);
    stop(&rig, &c);
}

/* Long payloads are skipped up to a bound; one that no client means ends the connection. */
static void test_long_payloads(void **state)
{
    static const uint64_t lengths[] = {(64 << 20) + 1, UINT64_C(1) << 32, UINT64_MAX};
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, NULL);
    expect_raw(&c,
               &(struct nbd_request){
                   .command = NBD_CMD_WRITE, .flags = NBD_CMD_FLAG_PAYLOAD_LEN, .length = 64 << 20},
               64 << 20, "error ENOSPC done");
    client_free(&c);
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        struct message m = {0};

        client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, NULL);
        exchange_request(&m, NBD_MODE_EXTENDED,
                         &(struct nbd_request){.command = NBD_CMD_WRITE, .length = lengths[i]});
        client_send_message(&c, &m);
        client_expect_close(&c);
        message_free(&m);
        client_free(&c);
    }
    rig_fini(&rig);
}

/* ---- The payload of BLOCK_STATUS ---- */

struct filter {
    size_t bytes;    /* of the payload */
    uint64_t length; /* the first field of it */
    uint32_t ids[4];
    uint16_t flags;
    uint64_t contexts; /* that are told */
    const char *log;
};

static void check_filters(const char *contexts, const struct filter *rows, size_t count)
{
    const struct rig_options options = {
        .size = 1 << 20, .layout = "dh", .unit = 4096, .allocation_depth = true};
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    client_enter_mode(&c, &rig, NBD_MODE_EXTENDED, contexts);
    for (size_t i = 0; i < count; i++) {
        uint8_t payload[24];
        struct exchange x;
        struct nbd_request request = {.command = NBD_CMD_BLOCK_STATUS,
                                      .flags = rows[i].flags | NBD_CMD_FLAG_PAYLOAD_LEN,
                                      .cookie = i,
                                      .length = rows[i].bytes};

        put_be64(payload, rows[i].length);
        for (size_t k = 0; k < 4; k++)
            put_be32(payload + 8 + 4 * k, rows[i].ids[k]);
        exchange_init(&x, NBD_MODE_EXTENDED);
        client_ask(&c, &x, &request, payload, rows[i].bytes);
        x.answers[0].request.length = rows[i].length;
        x.answers[0].request.contexts = rows[i].contexts;
        client_await(&c, &x);
        assert_string_equal(answer_log(&x.answers[0]), rows[i].log);
        exchange_free(&x);
        expect(&c, NBD_CMD_FLUSH, 0, 0, 0, "none done");
    }
    stop(&rig, &c);
}

static void test_filters(void **state)
{
    static const struct filter rows[] = {
        {12, 8192, {0}, 0, 1, "status 0: 4096:0 4096:3 done"},
        {12, 8192, {1}, 0, 2, "status 1: 8192:1 done"},
        {16, 8192, {1, 0}, 0, 3, "status 0: 4096:0 4096:3; status 1: 8192:1 done"},
        {16, 8192, {0, 1}, NBD_CMD_FLAG_REQ_ONE, 3, "status 0: 4096:0; status 1: 8192:1 done"},
        {12, 1, {0}, 0, 1, "status 0: 1:0 done"},
        {8, 8192, {0}, 0, 0, "error EINVAL done"},           /* none */
        {16, 8192, {0, 0}, 0, 0, "error EINVAL done"},       /* twice */
        {12, 8192, {2}, 0, 0, "error EINVAL done"},          /* unknown */
        {16, 8192, {0, 77}, 0, 0, "error EINVAL done"},      /* one of them unknown */
        {12, 0, {0}, 0, 0, "error EINVAL done"},             /* nothing */
        {12, (1 << 20) + 1, {0}, 0, 0, "error EINVAL done"}, /* past the end */
        {12, UINT64_MAX, {0}, 0, 0, "error EINVAL done"},
        {1, 8192, {0}, 0, 0, "error EINVAL done"}, /* sizes that cannot be */
        {7, 8192, {0}, 0, 0, "error EINVAL done"},
        {13, 8192, {0}, 0, 0, "error EINVAL done"},
        {15, 8192, {0}, 0, 0, "error EINVAL done"},
        {12, 8192, {0}, NBD_CMD_FLAG_DF, 0, "error EINVAL done"},
    };
    static const struct filter one[] = {
        {12, 8192, {1}, 0, 2, "status 1: 8192:1 done"},
        {12, 8192, {0}, 0, 0, "error EINVAL done"}, /* known here, but not selected */
    };
    static const struct filter none[] = {
        {12, 8192, {0}, 0, 0, "error EINVAL done"},
    };

    check_filters("base:allocation qemu:allocation-depth", rows, ARRAY_SIZE(rows));
    check_filters("qemu:allocation-depth", one, ARRAY_SIZE(one));
    check_filters(NULL, none, ARRAY_SIZE(none));
}

/* ---- Headers of the other kind ---- */

static void expect_closed_by(enum nbd_reply_mode mode, const uint8_t *data, size_t length)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter_mode(&c, &rig, mode, NULL);
    client_send(&c, data, length);
    client_expect_close(&c);
    assert_int_equal(c.in.length, 0);
    stop(&rig, &c);
}

static void test_wrong_headers(void **state)
{
    static const uint32_t magics[] = {NBD_REQUEST_MAGIC, NBD_EXTENDED_REQUEST_MAGIC, 0x12560953,
                                      0x96744668, NBD_SIMPLE_REPLY_MAGIC};

    for (size_t i = 0; i < ARRAY_SIZE(magics); i++) {
        uint8_t header[64] = {0};

        put_be32(header, magics[i]);
        if (magics[i] != NBD_EXTENDED_REQUEST_MAGIC)
            expect_closed_by(NBD_MODE_EXTENDED, header, sizeof(header));
        if (magics[i] != NBD_REQUEST_MAGIC) {
            expect_closed_by(NBD_MODE_STRUCTURED, header, sizeof(header));
            expect_closed_by(NBD_MODE_SIMPLE, header, sizeof(header));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lengths),      cmocka_unit_test(test_cache),
        cmocka_unit_test(test_payload_flag), cmocka_unit_test(test_long_payloads),
        cmocka_unit_test(test_filters),      cmocka_unit_test(test_wrong_headers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
