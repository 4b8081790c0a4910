/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whole sessions, from the handshake to DISC, cut at every place: however the bytes arrive, the
 * same bytes come back, and the disk is the same in the end.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/reactor.h"
#include "tests/dialogue/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DISK_BYTES 8192

static void request(struct message *m, uint16_t command, uint16_t flags, uint64_t offset,
                    uint32_t length)
{
    static uint64_t cookie;

    message_request(m, &(struct nbd_request){.command = command,
                                             .flags = flags,
                                             .cookie = ++cookie,
                                             .offset = offset,
                                             .length = length});
    if (command == NBD_CMD_WRITE)
        message_fill(m, (uint8_t)(cookie * 31), length);
}

/* Requests of every kind that is done without waiting, refused ones with their payloads among them,
 * and bytes behind the end. */
static void session(struct message *m)
{
    message_script(m, "flags 3; list; option 77 3; fill 3 0; info nodisk; go disk 3");
    request(m, NBD_CMD_WRITE, 0, 0, 40);
    request(m, NBD_CMD_READ, 0, 0, 50);
    request(m, NBD_CMD_WRITE, 0, DISK_BYTES - 1, 33);
    request(m, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, DISK_BYTES - 30, 30);
    request(m, NBD_CMD_FLUSH, 0, 0, 0);
    request(m, NBD_CMD_WRITE_ZEROES, 0, 10, 5);
    request(m, NBD_CMD_READ, 0, DISK_BYTES, 1);
    request(m, 99, 0, 0, 7);
    request(m, NBD_CMD_WRITE, 0x8000, 0, 29);
    request(m, NBD_CMD_WRITE, 0, 0, 0);
    request(m, NBD_CMD_TRIM, 0, 4096, 512);
    request(m, NBD_CMD_READ, 0, 0, 64);
    request(m, NBD_CMD_DISC, 0, 0, 0);
    message_fill(m, 0x25, 10);
}

/* Runs the session in pieces: to `cut`, then `step` bytes at a time (0: all the rest). */
static void replay(const struct message *m, size_t cut, size_t step, struct message *ret_said,
                   uint8_t *ret_disk)
{
    struct rig rig;
    struct client c;
    const struct rig_options options = {.size = DISK_BYTES};

    rig_init(&rig, &options);
    client_connect(&c, &rig);
    for (size_t at = 0, end = cut; at < m->length; at = end, end += step ? step : m->length) {
        if (end > m->length)
            end = m->length;
        /* After DISC the server may close whenever it likes. */
        client_send_some(&c, m->data + at, end - at);
        for (int i = 0; i < 3; i++)
            reactor_poll(false);
    }
    client_expect_close(&c);
    message_bytes(ret_said, c.in.data, c.in.length);
    memcpy(ret_disk, rig.disk.data, DISK_BYTES);
    client_free(&c);
    rig_fini(&rig);
}

static void expect_same(const struct message *m, size_t cut, size_t step,
                        const struct message *said, const uint8_t *disk)
{
    struct message other = {0};
    uint8_t other_disk[DISK_BYTES];

    replay(m, cut, step, &other, other_disk);
    assert_int_equal(other.length, said->length);
    assert_memory_equal(other.data, said->data, said->length);
    assert_memory_equal(other_disk, disk, DISK_BYTES);
    message_free(&other);
}

static void test_every_split(void **state)
{
    struct message m = {0}, said = {0};
    uint8_t disk[DISK_BYTES];

    session(&m);
    replay(&m, m.length, 0, &said, disk);
    /* What was said in transmission: 12 replies, and the data of two reads. */
    assert_true(said.length > 12 * 16 + 50 + 64);
    assert_int_equal(get_be32(said.data + said.length - 64 - 16), NBD_SIMPLE_REPLY_MAGIC);
    assert_int_equal(disk[9], disk[0]);
    assert_int_equal(disk[10], 0);
    assert_int_equal(disk[15], disk[0]);
    assert_int_not_equal(disk[DISK_BYTES - 1], 0);
    for (size_t cut = 1; cut < m.length; cut++)
        expect_same(&m, cut, 0, &said, disk);
    for (size_t step = 1; step < 60; step += step < 8 ? 1 : 9)
        expect_same(&m, step, step, &said, disk);
    message_free(&m);
    message_free(&said);
}

/* Thousands of requests in as few segments as the socket allows. */
static void test_many_in_one_segment(void **state)
{
    const unsigned count = 5000;
    struct rig rig;
    struct client c;
    struct message m = {0};
    uint8_t expected[16];

    rig_init(&rig, NULL);
    for (unsigned i = 0; i < 4096; i++)
        rig.disk.data[i] = (uint8_t)i;
    client_enter(&c, &rig);
    for (unsigned i = 0; i < count; i++)
        message_request(&m, &(struct nbd_request){.command = i % 3 ? NBD_CMD_READ : NBD_CMD_FLUSH,
                                                  .cookie = i,
                                                  .offset = i % 4000,
                                                  .length = i % 3 ? 16 : 0});
    client_send_message(&c, &m);
    for (unsigned i = 0; i < count; i++) {
        for (unsigned k = 0; k < 16; k++)
            expected[k] = (uint8_t)(i % 4000 + k);
        if (i % 3)
            client_expect_data(&c, i, expected, 16);
        else
            client_expect(&c, i, NBD_SUCCESS);
    }
    message_free(&m);
    client_free(&c);
    rig_fini(&rig);
}

/* Payloads are received in place: writes of mixed sizes, one behind the other, reach the disk
 * whole. */
static void test_pipelined_writes(void **state)
{
    static const uint32_t lengths[] = {300000, 5, 4096, 262144, 65536, 1, 16384, 500000, 28, 70000};
    struct rig_options options = {.size = 2 << 20};
    struct rig rig;
    struct client c;
    struct message m = {0};
    uint8_t *expected = calloc(1, options.size);
    uint64_t offset = 0;

    assert_non_null(expected);
    rig_init(&rig, &options);
    client_enter(&c, &rig);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++) {
        message_request(
            &m, &(struct nbd_request){
                    .command = NBD_CMD_WRITE, .cookie = i, .offset = offset, .length = lengths[i]});
        for (uint32_t k = 0; k < lengths[i]; k++)
            expected[offset + k] = (uint8_t)((offset + k) * 2654435761U >> 24);
        message_bytes(&m, expected + offset, lengths[i]);
        offset += lengths[i];
    }
    client_send_message(&c, &m);
    for (unsigned i = 0; i < ARRAY_SIZE(lengths); i++)
        client_expect(&c, i, NBD_SUCCESS);
    assert_memory_equal(rig.disk.data, expected, options.size);
    free(expected);
    message_free(&m);
    client_free(&c);
    rig_fini(&rig);
}

static void test_oldstyle_session(void **state)
{
    const struct rig_options options = {.size = 77, .oldstyle = true};
    struct rig rig;
    struct client c;

    rig_init(&rig, &options);
    client_connect(&c, &rig);
    assert_true(client_receive(&c, 152));
    assert_int_equal(c.in.length, 152);
    assert_int_equal(get_be64(c.in.data + 16), 77);
    assert_int_equal(get_be32(c.in.data + 24), rig.nbd_export->flags);
    c.in.length = 0;
    client_request(&c, NBD_CMD_READ, 0, 1, 76, 1);
    client_expect_data(&c, 1, "\0", 1);
    client_request(&c, NBD_CMD_DISC, 0, 0, 0, 0);
    client_expect_close(&c);
    client_free(&c);
    rig_pump();
    assert_int_equal(rig.left, 1);
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_split),
        cmocka_unit_test(test_many_in_one_segment),
        cmocka_unit_test(test_pipelined_writes),
        cmocka_unit_test(test_oldstyle_session),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
