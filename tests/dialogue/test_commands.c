/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Commands over a connection: what they do to the disk, what is answered, and that the stream stays
 * in step after every refusal.
 */
#include "base/checked.h"
#include "tests/dialogue/rig.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Sends a WRITE with `length` bytes of `byte`. */
/* The connection still understands us. */
static void expect_in_step(struct client *c)
{
    client_request(c, NBD_CMD_FLUSH, 0, 0xabcdef, 0, 0);
    client_expect(c, 0xabcdef, NBD_SUCCESS);
}

static void test_read_and_write(void **state)
{
    static const uint32_t lengths[] = {1,      27,         28,     4096,    65535,   65536,   65537,
                                       100000, 256 * 1024, 300001, 1 << 20, 8 << 20, 32 << 20};
    const struct rig_options options = {.size = (UINT64_C(40) << 20) + 3};
    struct prng prng = prng_of(test_seed());
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    client_enter(&c, &rig);
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        uint64_t offset = prng_below(&prng, options.size - lengths[i] + 1);
        struct message m = {0};

        message_request(
            &m, &(struct nbd_request){
                    .command = NBD_CMD_WRITE, .cookie = i, .offset = offset, .length = lengths[i]});
        message_fill(&m, 0, lengths[i]);
        prng_fill(&prng, m.data + NBD_REQUEST_BYTES, lengths[i]);
        client_send(&c, m.data, m.length);
        client_expect(&c, i, NBD_SUCCESS);
        assert_memory_equal(rig.disk.data + offset, m.data + NBD_REQUEST_BYTES, lengths[i]);
        client_request(&c, NBD_CMD_READ, 0, ~i, offset, lengths[i]);
        client_expect_data(&c, ~i, m.data + NBD_REQUEST_BYTES, lengths[i]);
        message_free(&m);
    }
    client_free(&c);
    rig_fini(&rig);
}

/* The same reads when nothing is at hand and each needs a coroutine. */
static void test_slow_reads(void **state)
{
    static const uint32_t lengths[] = {1, 4096, 16384, 16385, 65536, 70000, 1 << 20};
    const struct rig_options options = {.size = 2 << 20};
    struct prng prng = prng_of(test_seed());
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    client_enter(&c, &rig);
    prng_fill(&prng, rig.disk.data, options.size);
    rig.disk.slow = true;
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        client_request(&c, NBD_CMD_READ, 0, i, 777 * i, lengths[i]);
        client_expect_silence(&c);
        ram_disk_release_all(&rig.disk);
        client_expect_data(&c, i, rig.disk.data + 777 * i, lengths[i]);
    }
    client_free(&c);
    rig_fini(&rig);
}

static void test_zeroes_and_trim(void **state)
{
    const struct rig_options options = {.size = 1 << 20, .node_flags = NODE_UNMAP};
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    memset(rig.disk.data, 0xee, options.size);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_WRITE_ZEROES, 0, 1, 101, 5000);
    client_expect(&c, 1, NBD_SUCCESS);
    assert_int_equal(rig.disk.data[100], 0xee);
    assert_int_equal(rig.disk.data[101], 0);
    assert_int_equal(rig.disk.data[5100], 0);
    assert_int_equal(rig.disk.data[5101], 0xee);
    assert_int_equal(rig.disk.zero_flags, ZERO_MAY_UNMAP);
    client_request(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 2, 0, 512);
    client_expect(&c, 2, NBD_SUCCESS);
    assert_int_equal(rig.disk.zero_flags, 0);
    client_request(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 3, 0, 512);
    client_expect(&c, 3, NBD_SUCCESS);
    assert_int_equal(rig.disk.zero_flags, ZERO_MAY_UNMAP | ZERO_FAST);
    client_request(&c, NBD_CMD_TRIM, 0, 4, 8192, 4096);
    client_expect(&c, 4, NBD_SUCCESS);
    assert_int_equal(rig.disk.discards, 1);
    assert_int_equal(rig.disk.data[8192], 0);
    client_free(&c);
    rig_fini(&rig);
}

/* ENOTSUP means one thing on the wire; without FAST_ZERO the zeroes are written. */
static void test_slow_zeroes(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    memset(rig.disk.data, 0xee, 4096);
    client_enter(&c, &rig);
    rig.disk.zero_error = -ENOTSUP;
    client_request(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 1, 0, 512);
    client_expect(&c, 1, NBD_ENOTSUP);
    assert_int_equal(rig.disk.data[0], 0xee);
    client_request(&c, NBD_CMD_WRITE_ZEROES, 0, 2, 0, 512);
    client_expect(&c, 2, NBD_SUCCESS);
    assert_int_equal(rig.disk.data[511], 0);
    assert_int_equal(rig.disk.data[512], 0xee);
    client_free(&c);
    rig_fini(&rig);
}

static void test_durability(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_write(&c, 0, 1, 0, 1, 512);
    client_expect(&c, 1, NBD_SUCCESS);
    assert_int_equal(rig.disk.flushes, 0);
    client_request(&c, NBD_CMD_FLUSH, 0, 2, 0, 0);
    client_expect(&c, 2, NBD_SUCCESS);
    assert_int_equal(rig.disk.flushes, 1);
    client_write(&c, NBD_CMD_FLAG_FUA, 3, 0, 2, 512);
    client_expect(&c, 3, NBD_SUCCESS);
    assert_int_equal(rig.disk.flushes, 2);
    client_request(&c, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA, 4, 0, 512);
    client_expect(&c, 4, NBD_SUCCESS);
    assert_int_equal(rig.disk.flushes, 3);
    /* Allowed and without meaning on what writes nothing. */
    client_request(&c, NBD_CMD_READ, NBD_CMD_FLAG_FUA, 5, 0, 4);
    client_expect_data(&c, 5, "\0\0\0\0", 4);
    client_request(&c, NBD_CMD_CACHE, NBD_CMD_FLAG_FUA, 6, 0, 512);
    client_expect(&c, 6, NBD_SUCCESS);
    assert_int_equal(rig.disk.flushes, 3);
    rig.nbd_export->write_through = true;
    client_write(&c, 0, 7, 0, 1, 512);
    client_expect(&c, 7, NBD_SUCCESS);
    assert_int_equal(rig.disk.flushes, 4);
    client_free(&c);
    rig_fini(&rig);
}

/* Every write that was answered is covered by a flush; when that fails the client is told. */
static void test_disk_errors(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    rig.disk.read_error = -EIO;
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 512);
    client_expect(&c, 1, NBD_EIO);
    client_request(&c, NBD_CMD_READ, 0, 2, 0, 1 << 20);
    client_expect(&c, 2, NBD_EIO);
    rig.disk.read_error = 0;
    rig.disk.write_error = -ENOSPC;
    client_write(&c, 0, 3, 0, 1, 512);
    client_expect(&c, 3, NBD_ENOSPC);
    rig.disk.write_error = -EIO;
    client_write(&c, 0, 4, 0, 1, 512);
    client_expect(&c, 4, NBD_EIO);
    rig.disk.write_error = 0;
    client_write(&c, 0, 5, 0, 1, 512);
    client_expect(&c, 5, NBD_SUCCESS);
    rig.disk.flush_error = -EIO;
    client_request(&c, NBD_CMD_FLUSH, 0, 6, 0, 0);
    client_expect(&c, 6, NBD_EIO);
    client_request(&c, NBD_CMD_READ, 0, 7, 0, 3);
    client_expect_data(&c, 7, "\1\1\1", 3);
    client_free(&c);
    rig_fini(&rig);
}

/* Refused payloads are skipped, of all lengths up to the bound. */
static void test_refused_writes(void **state)
{
    const struct rig_options read_only = {.size = 8192, .read_only = true};
    static const uint32_t lengths[] = {1, 28, 512, 300000, 33 << 20, 64 << 20};
    struct rig rig;
    struct client c;

    rig_init(&rig, &read_only);
    client_enter(&c, &rig);
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        client_write(&c, 0, i, 0, 0x25, lengths[i]);
        client_expect(&c, i, NBD_EPERM);
    }
    client_request(&c, NBD_CMD_TRIM, 0, 100, 0, 512);
    client_expect(&c, 100, NBD_EPERM);
    client_request(&c, NBD_CMD_WRITE_ZEROES, 0, 101, 0, 512);
    client_expect(&c, 101, NBD_EPERM);
    assert_int_equal(rig.disk.writes + rig.disk.zeroes + rig.disk.discards, 0);
    client_free(&c);
    rig_fini(&rig);
}

static void test_writes_out_of_bounds(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_write(&c, 0, 1, (1 << 20) - 100, 1, 101);
    client_expect(&c, 1, NBD_ENOSPC);
    client_write(&c, 0, 2, 1 << 20, 1, 4096);
    client_expect(&c, 2, NBD_ENOSPC);
    client_write(&c, 0, 3, UINT64_C(1) << 63, 1, 4096);
    client_expect(&c, 3, NBD_ENOSPC);
    client_write(&c, 0, 4, UINT64_MAX - 100, 1, 4096);
    client_expect(&c, 4, NBD_ENOSPC);
    client_write(&c, NBD_CMD_FLAG_DF, 5, 0, 1, 4096);
    client_expect(&c, 5, NBD_EINVAL);
    assert_int_equal(rig.disk.writes, 0);
    expect_in_step(&c);
    client_free(&c);
    rig_fini(&rig);
}

static void test_too_large(void **state)
{
    const struct rig_options options = {.size = UINT64_C(70) << 20};
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_READ, 0, 1, 0, NBD_PAYLOAD_MAX + 1);
    client_expect(&c, 1, NBD_EOVERFLOW);
    client_request(&c, NBD_CMD_READ, 0, 2, 0, 64 << 20);
    client_expect(&c, 2, NBD_EOVERFLOW);
    client_request(&c, NBD_CMD_READ, 0, 3, 0, UINT32_MAX);
    client_expect(&c, 3, NBD_EINVAL);
    client_write(&c, 0, 4, 0, 1, NBD_PAYLOAD_MAX + 1);
    client_expect(&c, 4, NBD_EINVAL);
    expect_in_step(&c);
    /* Beyond what is skipped: the error is still told, then the connection ends. */
    client_request(&c, NBD_CMD_WRITE, 0, 5, 0, (64 << 20) + 1);
    client_expect(&c, 5, NBD_EINVAL);
    client_expect_close(&c);
    client_free(&c);
    rig_fini(&rig);
}

static void test_length_zero(void **state)
{
    static const uint16_t commands[] = {NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_CACHE,
                                        NBD_CMD_WRITE_ZEROES};
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        client_request(&c, commands[i], 0, i, 1 << 20, 0);
        client_expect(&c, i, NBD_SUCCESS);
    }
    client_request(&c, NBD_CMD_READ, 0, 9, (1 << 20) + 1, 0);
    client_expect(&c, 9, NBD_EINVAL);
    assert_int_equal(rig.disk.reads + rig.disk.writes + rig.disk.zeroes, 0);
    client_free(&c);
    rig_fini(&rig);
}

static void test_unknown_commands(void **state)
{
    static const uint16_t commands[] = {
        NBD_CMD_BLOCK_STATUS, NBD_CMD_RESIZE, 9, 255, 0x7fff, 0xffff};
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
        client_request(&c, commands[i], 0, i, 0, 512);
        client_expect(&c, i, NBD_EINVAL);
    }
    for (unsigned bit = 1; bit < 16; bit++) {
        client_request(&c, NBD_CMD_READ, (uint16_t)(1U << bit), bit, 0, 512);
        client_expect(&c, bit, NBD_EINVAL);
    }
    expect_in_step(&c);
    client_free(&c);
    rig_fini(&rig);
}

static void test_detect_zeroes(void **state)
{
    const struct rig_options options = {.size = 1 << 20, .node_flags = NODE_UNMAP};
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    memset(rig.disk.data, 0xee, options.size);
    client_enter(&c, &rig);
    rig.nbd_export->detect_zeroes = true;
    client_write(&c, 0, 1, 10, 0, 1000);
    client_expect(&c, 1, NBD_SUCCESS);
    assert_int_equal(rig.disk.zeroes, 1);
    assert_int_equal(rig.disk.zero_flags, 0);
    assert_int_equal(rig.disk.writes, 0);
    assert_int_equal(rig.disk.data[9], 0xee);
    assert_int_equal(rig.disk.data[10], 0);
    rig.nbd_export->detect_zeroes_unmap = true;
    client_write(&c, 0, 2, 10, 0, 1000);
    client_expect(&c, 2, NBD_SUCCESS);
    assert_int_equal(rig.disk.zero_flags, ZERO_MAY_UNMAP);
    client_write(&c, 0, 3, 10, 1, 1000);
    client_expect(&c, 3, NBD_SUCCESS);
    assert_int_equal(rig.disk.writes, 1);
    client_free(&c);
    rig_fini(&rig);
}

/* A disk taken for raw must not become an image by what clients write. */
static void test_protected_header(void **state)
{
    struct rig rig;
    struct client c;
    struct message m = {0};

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    rig.nbd_export->header_node = rig.nbd_export->node;
    rig.nbd_export->probe_drivers = ram_drivers;
    /* The magic is at 512: in one write, and in two halves that only together are it. */
    message_request(&m, &(struct nbd_request){
                            .command = NBD_CMD_WRITE, .cookie = 1, .offset = 510, .length = 8});
    message_bytes(&m, "..RAMFMT", 8);
    client_send_message(&c, &m);
    client_expect(&c, 1, NBD_EPERM);
    message_request(&m, &(struct nbd_request){
                            .command = NBD_CMD_WRITE, .cookie = 2, .offset = 512, .length = 3});
    message_bytes(&m, "RAM", 3);
    message_request(&m, &(struct nbd_request){
                            .command = NBD_CMD_WRITE, .cookie = 3, .offset = 515, .length = 3});
    message_bytes(&m, "FMT", 3);
    client_send_message(&c, &m);
    client_expect(&c, 2, NBD_SUCCESS);
    client_expect(&c, 3, NBD_EPERM);
    assert_memory_equal(rig.disk.data + 510, "\0\0RAM\0\0\0", 8);
    /* Anything else may be written there, and the magic anywhere else. */
    client_write(&c, 0, 4, 0, 'x', 4096);
    client_expect(&c, 4, NBD_SUCCESS);
    message_request(&m, &(struct nbd_request){
                            .command = NBD_CMD_WRITE, .cookie = 5, .offset = 8192, .length = 6});
    message_bytes(&m, "RAMFMT", 6);
    client_send_message(&c, &m);
    client_expect(&c, 5, NBD_SUCCESS);
    client_request(&c, NBD_CMD_WRITE_ZEROES, 0, 6, 0, 8192);
    client_expect(&c, 6, NBD_SUCCESS);
    /* Formats that only other programs open count, too. */
    message_request(
        &m, &(struct nbd_request){.command = NBD_CMD_WRITE, .cookie = 7, .offset = 0, .length = 4});
    message_bytes(&m, "KDMV", 4);
    client_send_message(&c, &m);
    client_expect(&c, 7, NBD_EPERM);
    message_free(&m);
    client_free(&c);
    rig_fini(&rig);
}

/* Two halves of a header that are on their way at the same time. */
static void test_protected_header_race(void **state)
{
    struct rig rig;
    struct client c;
    struct message m = {0};
    uint64_t first, second;
    uint32_t errors[2];

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    rig.nbd_export->header_node = rig.nbd_export->node;
    rig.nbd_export->probe_drivers = ram_drivers;
    rig.disk.slow = true;
    for (int i = 0; i < 2; i++) {
        message_request(&m, &(struct nbd_request){.command = NBD_CMD_WRITE,
                                                  .cookie = (uint64_t)i,
                                                  .offset = 512 + 3 * (uint64_t)i,
                                                  .length = 3});
        message_bytes(&m, i ? "FMT" : "RAM", 3);
    }
    client_send_message(&c, &m);
    for (int i = 0; i < 20; i++) {
        rig_pump();
        ram_disk_release_all(&rig.disk);
    }
    errors[0] = client_reply(&c, &first, NULL, 0);
    errors[1] = client_reply(&c, &second, NULL, 0);
    assert_int_not_equal(first, second);
    assert_int_equal(errors[0] + errors[1], NBD_EPERM);
    message_free(&m);
    client_free(&c);
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_and_write),   cmocka_unit_test(test_slow_reads),
        cmocka_unit_test(test_zeroes_and_trim),  cmocka_unit_test(test_slow_zeroes),
        cmocka_unit_test(test_durability),       cmocka_unit_test(test_disk_errors),
        cmocka_unit_test(test_refused_writes),   cmocka_unit_test(test_writes_out_of_bounds),
        cmocka_unit_test(test_too_large),        cmocka_unit_test(test_length_zero),
        cmocka_unit_test(test_unknown_commands), cmocka_unit_test(test_detect_zeroes),
        cmocka_unit_test(test_protected_header), cmocka_unit_test(test_protected_header_race),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
