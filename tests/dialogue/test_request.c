/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests as data: coding, and the judgement of every command with every flag at every boundary,
 * against an independent statement of the protocol's rules.
 */
#include "nbd/request.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define MAX NBD_PAYLOAD_MAX
#define RW_FLAGS                                                                                   \
    (NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |           \
     NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO | NBD_FLAG_SEND_CACHE)
#define RO_FLAGS                                                                                   \
    (NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |           \
     NBD_FLAG_SEND_CACHE)

static struct nbd_export export_of(uint64_t size, bool read_only)
{
    return (struct nbd_export){.size = size,
                               .flags = read_only ? RO_FLAGS : RW_FLAGS,
                               .block_min = 1,
                               .block_preferred = 4096,
                               .block_max = MAX,
                               .read_only = read_only};
}

static const struct nbd_session simple = {.mode = NBD_MODE_SIMPLE};

static uint32_t check_in(const struct nbd_session *session, const struct nbd_export *e,
                         const struct nbd_request *request)
{
    const char *why = NULL;
    uint32_t error = nbd_request_check(request, e, session, &why);

    /* An error has its sentence, success has none. */
    assert_true((error != NBD_SUCCESS) == (why != NULL));
    return error;
}

static uint32_t check(const struct nbd_export *e, uint16_t command, uint16_t flags, uint64_t offset,
                      uint64_t length)
{
    return check_in(&simple, e,
                    &(struct nbd_request){
                        .command = command, .flags = flags, .offset = offset, .length = length});
}

/* ---- The table of all combinations ---- */

static bool command_is(uint16_t command, const char *names)
{
    char name[32];

    snprintf(name, sizeof(name), " %s ", nbd_command_name(command));
    return strstr(names, name) != NULL;
}

/* Flags that a client may set. `contexts`: some were selected. */
static uint16_t valid_flags(bool read_only, enum nbd_reply_mode mode, bool contexts,
                            uint16_t command)
{
    uint16_t valid = NBD_CMD_FLAG_FUA;

    if (command == NBD_CMD_READ && mode != NBD_MODE_SIMPLE)
        valid |= NBD_CMD_FLAG_DF;
    if (command == NBD_CMD_WRITE_ZEROES)
        valid |= NBD_CMD_FLAG_NO_HOLE | (read_only ? 0 : NBD_CMD_FLAG_FAST_ZERO);
    if (command == NBD_CMD_BLOCK_STATUS)
        valid |= NBD_CMD_FLAG_REQ_ONE;
    if (mode == NBD_MODE_EXTENDED &&
        (command == NBD_CMD_WRITE || (command == NBD_CMD_BLOCK_STATUS && contexts)))
        valid |= NBD_CMD_FLAG_PAYLOAD_LEN;
    return valid;
}

/* The protocol's rules, written a second time: the first one that fails names the error. */
static uint32_t rule(const struct nbd_request *r, bool read_only, uint64_t size,
                     enum nbd_reply_mode mode, bool contexts)
{
    uint16_t valid = valid_flags(read_only, mode, contexts, r->command);

    if (!command_is(r->command, " READ WRITE DISC FLUSH TRIM CACHE WRITE_ZEROES BLOCK_STATUS "))
        return NBD_EINVAL;
    if ((r->flags | valid) != valid)
        return NBD_EINVAL;
    if (read_only && command_is(r->command, " WRITE TRIM WRITE_ZEROES "))
        return NBD_EPERM;
    if (command_is(r->command, " FLUSH DISC "))
        return NBD_SUCCESS;
    if (r->command == NBD_CMD_WRITE && mode == NBD_MODE_EXTENDED &&
        !(r->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
        return NBD_EINVAL;
    if (r->command == NBD_CMD_BLOCK_STATUS && (!contexts || r->length == 0))
        return NBD_EINVAL;
    if (r->offset > size || r->length > size - r->offset)
        return command_is(r->command, " WRITE WRITE_ZEROES ") ? NBD_ENOSPC : NBD_EINVAL;
    if (r->length > MAX && r->command == NBD_CMD_READ)
        return NBD_EOVERFLOW;
    if (r->length > MAX && r->command == NBD_CMD_WRITE)
        return NBD_EINVAL;
    return NBD_SUCCESS;
}

/* Every command with every flag, at every boundary of the export. Returns the number of cases. */
static unsigned long check_session(uint64_t size, enum nbd_reply_mode mode, bool contexts)
{
    const uint64_t offsets[] = {
        0, 1, size - 1, size, size + 1, size / 2, UINT64_C(1) << 63, UINT64_MAX - 511, UINT64_MAX};
    const uint64_t lengths[] = {
        0, 1, 512, size & UINT32_MAX, MAX, (uint64_t)MAX + 1, UINT32_MAX, size, UINT64_MAX};
    size_t length_count = ARRAY_SIZE(lengths) - (mode == NBD_MODE_EXTENDED ? 0 : 2);
    unsigned long cases = 0;

    for (unsigned bits = 0; bits < 16 * 2 * 128; bits++) {
        bool read_only = bits & 16;
        const struct nbd_export e = export_of(size, read_only);
        const struct nbd_session session = {
            .mode = mode, .selected_of = &e, .selected = contexts ? 5 : 0};

        for (size_t i = 0; i < ARRAY_SIZE(offsets) * length_count; i++) {
            const struct nbd_request request = {.command = bits & 15,
                                                .flags = bits >> 5,
                                                .offset = offsets[i / length_count],
                                                .length = lengths[i % length_count],
                                                .contexts = contexts};
            uint32_t expected = rule(&request, read_only, size, mode, contexts);

            if (check_in(&session, &e, &request) != expected)
                fail_msg("mode %d, %s flags 0x%x: not %s", mode, nbd_command_name(request.command),
                         request.flags, nbd_error_name(expected));
            cases++;
        }
    }
    return cases;
}

static void test_all_combinations(void **state)
{
    static const uint64_t sizes[] = {0,        1, 511, 4096, (uint64_t)MAX + 1, UINT64_C(5) << 30,
                                     INT64_MAX};
    unsigned long cases = 0;

    for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
        cases += check_session(sizes[s], NBD_MODE_SIMPLE, false);
        cases += check_session(sizes[s], NBD_MODE_STRUCTURED, false);
        cases += check_session(sizes[s], NBD_MODE_STRUCTURED, true);
        cases += check_session(sizes[s], NBD_MODE_EXTENDED, false);
        cases += check_session(sizes[s], NBD_MODE_EXTENDED, true);
    }
    assert_true(cases > 1000000);
}

/* The rows that the protocol's history has taught, spelled out. */
static void test_boundaries(void **state)
{
    const struct nbd_export rw = export_of(1 << 30, false), ro = export_of(1 << 30, true);
    const uint64_t end = 1 << 30;

    assert_int_equal(check(&rw, NBD_CMD_READ, 0, end + 1, 0), NBD_EINVAL);
    assert_int_equal(check(&rw, NBD_CMD_READ, 0, end, 1), NBD_EINVAL);
    assert_int_equal(check(&rw, NBD_CMD_READ, 0, end, 0), NBD_SUCCESS);
    assert_int_equal(check(&rw, NBD_CMD_READ, 0, UINT64_MAX - 511, 1024), NBD_EINVAL);
    assert_int_equal(check(&rw, NBD_CMD_READ, 0, 0, MAX), NBD_SUCCESS);
    assert_int_equal(check(&rw, NBD_CMD_READ, 0, 0, MAX + 1), NBD_EOVERFLOW);
    assert_int_equal(check(&rw, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512), NBD_EINVAL);
    assert_int_equal(check(&rw, NBD_CMD_WRITE, 0, end - 1, 2), NBD_ENOSPC);
    assert_int_equal(check(&rw, NBD_CMD_WRITE, 0, UINT64_C(1) << 63, 512), NBD_ENOSPC);
    assert_int_equal(check(&ro, NBD_CMD_WRITE, 0, 0, 512), NBD_EPERM);
    assert_int_equal(check(&ro, NBD_CMD_WRITE, 0, end, 512), NBD_EPERM);
    assert_int_equal(check(&ro, NBD_CMD_TRIM, 0, 0, 512), NBD_EPERM);
    assert_int_equal(check(&ro, NBD_CMD_WRITE_ZEROES, 0, 0, 512), NBD_EPERM);
    assert_int_equal(check(&ro, NBD_CMD_READ, NBD_CMD_FLAG_FUA, 0, 512), NBD_SUCCESS);
    assert_int_equal(check(&rw, NBD_CMD_TRIM, 0, end - 512, 1024), NBD_EINVAL);
    assert_int_equal(check(&rw, NBD_CMD_WRITE_ZEROES, 0, end - 512, 1024), NBD_ENOSPC);
    assert_int_equal(check(&rw, NBD_CMD_BLOCK_STATUS, 0, 0, 512), NBD_EINVAL);
    assert_int_equal(check(&rw, UINT16_MAX, 0, 0, 512), NBD_EINVAL);
}

/* What an export does not offer is refused although the command is known. */
static void test_not_offered(void **state)
{
    struct nbd_export e = export_of(4096, false);

    e.flags = NBD_FLAG_HAS_FLAGS;
    assert_int_equal(check(&e, NBD_CMD_READ, 0, 0, 1), NBD_SUCCESS);
    assert_int_equal(check(&e, NBD_CMD_WRITE, 0, 0, 1), NBD_SUCCESS);
    assert_int_equal(check(&e, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&e, NBD_CMD_FLUSH, 0, 0, 0), NBD_EINVAL);
    assert_int_equal(check(&e, NBD_CMD_TRIM, 0, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&e, NBD_CMD_CACHE, 0, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&e, NBD_CMD_WRITE_ZEROES, 0, 0, 1), NBD_EINVAL);
    e.flags |= NBD_FLAG_SEND_WRITE_ZEROES;
    assert_int_equal(check(&e, NBD_CMD_WRITE_ZEROES, 0, 0, 1), NBD_SUCCESS);
    assert_int_equal(check(&e, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 0, 1), NBD_EINVAL);
}

static void test_alignment(void **state)
{
    struct nbd_export e = export_of(8192, false);

    e.block_min = 512;
    assert_int_equal(check(&e, NBD_CMD_READ, 0, 512, 1024), NBD_SUCCESS);
    assert_int_equal(check(&e, NBD_CMD_READ, 0, 513, 512), NBD_EINVAL);
    assert_int_equal(check(&e, NBD_CMD_WRITE, 0, 512, 1), NBD_EINVAL);
    assert_int_equal(check(&e, NBD_CMD_FLUSH, 0, 3, 5), NBD_SUCCESS);
}

/* Contexts that were selected of another export are of no use. */
static void test_contexts_of_another_export(void **state)
{
    const struct nbd_export a = export_of(4096, false), b = export_of(4096, false);
    const struct nbd_session session = {
        .mode = NBD_MODE_STRUCTURED, .selected_of = &a, .selected = 1};
    const struct nbd_request request = {
        .command = NBD_CMD_BLOCK_STATUS, .length = 512, .contexts = 1};

    assert_int_equal(check_in(&session, &a, &request), NBD_SUCCESS);
    assert_int_equal(check_in(&session, &b, &request), NBD_EINVAL);
}

/* ---- Coding ---- */

static void test_coding(void **state)
{
    static const uint8_t wire[NBD_REQUEST_BYTES] = {
        0x25, 0x60, 0x95, 0x13, 0x00, 0x11, 0x00, 0x06, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0xfa,
        0xf9, 0xf8, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x80, 0x00, 0x00, 0x01};
    uint8_t again[NBD_REQUEST_BYTES];
    struct nbd_request request;

    assert_true(nbd_request_decode(NBD_MODE_SIMPLE, wire, &request));
    assert_int_equal(request.flags, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_FAST_ZERO);
    assert_int_equal(request.command, NBD_CMD_WRITE_ZEROES);
    assert_true(request.cookie == UINT64_C(0xfffefdfcfbfaf9f8));
    assert_true(request.offset == UINT64_C(0x0102030405060708));
    assert_int_equal(request.length, 0x80000001);
    nbd_request_encode(again, &request);
    assert_memory_equal(again, wire, sizeof(wire));
}

static void test_wrong_magic(void **state)
{
    uint8_t wire[NBD_REQUEST_BYTES] = {0x25, 0x60, 0x95, 0x13};
    struct nbd_request request;

    assert_true(nbd_request_decode(NBD_MODE_SIMPLE, wire, &request));
    for (unsigned bit = 0; bit < 32; bit++) {
        wire[bit / 8] ^= 1 << bit % 8;
        assert_false(nbd_request_decode(NBD_MODE_SIMPLE, wire, &request));
        wire[bit / 8] ^= 1 << bit % 8;
    }
    put_be32(wire, 0x21e41c71); /* extended headers, which were not negotiated */
    assert_false(nbd_request_decode(NBD_MODE_SIMPLE, wire, &request));
    put_be32(wire, 0x12560953); /* the first protocol's */
    assert_false(nbd_request_decode(NBD_MODE_SIMPLE, wire, &request));
}

static void test_extended_coding(void **state)
{
    static const uint8_t wire[NBD_EXTENDED_REQUEST_BYTES] = {
        0x21, 0xe4, 0x1c, 0x71, 0x00, 0x21, 0x00, 0x01, 0xff, 0xfe, 0xfd,
        0xfc, 0xfb, 0xfa, 0xf9, 0xf8, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06,
        0x07, 0x08, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01};
    uint8_t again[sizeof(wire)];
    struct nbd_request request;

    assert_int_equal(nbd_request_bytes(NBD_MODE_STRUCTURED), NBD_REQUEST_BYTES);
    assert_int_equal(nbd_request_bytes(NBD_MODE_EXTENDED), sizeof(wire));
    assert_true(nbd_request_decode(NBD_MODE_EXTENDED, wire, &request));
    assert_int_equal(request.flags, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_PAYLOAD_LEN);
    assert_int_equal(request.command, NBD_CMD_WRITE);
    assert_true(request.cookie == UINT64_C(0xfffefdfcfbfaf9f8));
    assert_true(request.offset == UINT64_C(0x0102030405060708));
    assert_true(request.length == UINT64_C(0x8000000000000001));
    assert_true(request.payload == request.length);
    nbd_request_encode_extended(again, &request);
    assert_memory_equal(again, wire, sizeof(wire));
    assert_false(nbd_request_decode(NBD_MODE_STRUCTURED, wire, &request));
}

/* Bytes behind the header: of a WRITE, or by the flag. */
static void test_payload(void **state)
{
    for (unsigned bits = 0; bits < 3 * 2 * 10; bits++) {
        enum nbd_reply_mode mode = bits % 3;
        struct nbd_request request = {.command = bits / 6,
                                      .flags = bits / 3 % 2 ? NBD_CMD_FLAG_PAYLOAD_LEN : 0,
                                      .length = 77};
        bool payload =
            mode == NBD_MODE_EXTENDED ? request.flags != 0 : request.command == NBD_CMD_WRITE;
        uint8_t wire[NBD_EXTENDED_REQUEST_BYTES];

        if (mode == NBD_MODE_EXTENDED)
            nbd_request_encode_extended(wire, &request);
        else
            nbd_request_encode(wire, &request);
        assert_true(nbd_request_decode(mode, wire, &request));
        assert_int_equal(request.payload, payload ? 77 : 0);
    }
}

static void test_filter_sizes(void **state)
{
    for (uint64_t payload = 0; payload < 400; payload++) {
        struct nbd_request request = {.command = NBD_CMD_BLOCK_STATUS, .payload = payload};
        bool good = payload >= 8 && payload <= 8 + 64 * 4 && payload % 4 == 0;

        assert_int_equal(nbd_request_filter_bytes(&request), good ? payload : 0);
        request.command = NBD_CMD_WRITE;
        assert_int_equal(nbd_request_filter_bytes(&request), 0);
    }
    assert_int_equal(nbd_request_filter_bytes(&(struct nbd_request){.command = NBD_CMD_BLOCK_STATUS,
                                                                    .payload = UINT64_C(1) << 63}),
                     0);
}

static void test_filters(void **state)
{
    static const struct {
        uint64_t selected;
        uint32_t ids[4];
        unsigned count;
        uint64_t contexts;
    } rows[] = {
        {7, {0}, 1, 1},       {7, {2, 0}, 2, 5},
        {7, {2, 1, 0}, 3, 7}, {7, {0}, 0, 0},
        {7, {3}, 1, 0},       {7, {1, 3}, 2, 0},
        {7, {1, 1}, 2, 0},    {6, {0}, 1, 0},
        {0, {0}, 1, 0},       {7, {64}, 1, 0},
        {7, {65}, 1, 0},      {7, {UINT32_MAX}, 1, 0},
        {7, {0x100}, 1, 0},   {UINT64_MAX, {63}, 1, UINT64_C(1) << 63},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct nbd_request request = {.command = NBD_CMD_BLOCK_STATUS,
                                      .payload = 8 + 4 * rows[i].count};
        uint8_t payload[24];

        put_be64(payload, UINT64_C(0x123456789abc));
        for (unsigned k = 0; k < 4; k++)
            put_be32(payload + 8 + 4 * (size_t)k, rows[i].ids[k]);
        nbd_request_take_filter(&request, payload, rows[i].selected);
        assert_true(request.length == UINT64_C(0x123456789abc));
        assert_true(request.contexts == rows[i].contexts);
        assert_int_equal(request.payload, 0);
    }
}

static void test_errors_of_errno(void **state)
{
    static const int table[][2] = {
        {0, NBD_SUCCESS},
        {-EPERM, NBD_EPERM},
        {-EROFS, NBD_EPERM},
        {-EACCES, NBD_EPERM},
        {-EIO, NBD_EIO},
        {-ENOMEM, NBD_ENOMEM},
        {-EINVAL, NBD_EINVAL},
        {-ENOSPC, NBD_ENOSPC},
        {-EDQUOT, NBD_ENOSPC},
        {-EFBIG, NBD_ENOSPC},
        {-EOVERFLOW, NBD_EOVERFLOW},
        {-ENOTSUP, NBD_ENOTSUP},
        {-EOPNOTSUPP, NBD_ENOTSUP},
        {-ESHUTDOWN, NBD_ESHUTDOWN},
        {-EBADF, NBD_EIO},
        {-ETIMEDOUT, NBD_EIO},
        {-ENOENT, NBD_EIO},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++)
        assert_int_equal(nbd_error_from_errno(table[i][0]), table[i][1]);
}

static void test_names(void **state)
{
    assert_string_equal(nbd_command_name(NBD_CMD_WRITE_ZEROES), "WRITE_ZEROES");
    assert_string_equal(nbd_command_name(99), "unknown");
    assert_string_equal(nbd_option_name(NBD_OPT_GO), "GO");
    assert_string_equal(nbd_option_name(0), "unknown");
    assert_string_equal(nbd_option_reply_name(NBD_REP_ERR_POLICY), "ERR_POLICY");
    assert_string_equal(nbd_option_reply_name(99), "unknown");
    assert_string_equal(nbd_info_name(NBD_INFO_BLOCK_SIZE), "BLOCK_SIZE");
    assert_string_equal(nbd_info_name(99), "unknown");
    assert_string_equal(nbd_error_name(NBD_ENOSPC), "ENOSPC");
    assert_string_equal(nbd_error_name(2), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_combinations),
        cmocka_unit_test(test_boundaries),
        cmocka_unit_test(test_not_offered),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_coding),
        cmocka_unit_test(test_contexts_of_another_export),
        cmocka_unit_test(test_extended_coding),
        cmocka_unit_test(test_payload),
        cmocka_unit_test(test_filter_sizes),
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_wrong_magic),
        cmocka_unit_test(test_errors_of_errno),
        cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
