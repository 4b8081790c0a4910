/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Byte readers and writers, cut at every length: buffers are allocated at their exact size, so that
 * AddressSanitizer sees a step too far.
 */
#include "base/bytes.h"

#include "base/checked.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_orders(void **state)
{
    uint8_t buffer[9] = {0};

    put_be64(buffer + 1, 0x0102030405060708);
    assert_memory_equal(buffer, "\0\1\2\3\4\5\6\7\10", 9);
    assert_int_equal(get_be64(buffer + 1), 0x0102030405060708);
    assert_int_equal(get_be32(buffer + 1), 0x01020304);
    assert_int_equal(get_be16(buffer + 1), 0x0102);
    assert_int_equal(get_le64(buffer + 1), 0x0807060504030201);
    assert_int_equal(get_le32(buffer + 1), 0x04030201);
    assert_int_equal(get_le16(buffer + 1), 0x0201);
    put_le64(buffer + 1, 0x0102030405060708);
    assert_memory_equal(buffer, "\0\10\7\6\5\4\3\2\1", 9);
    put_le32(buffer + 1, 0xa1a2a3a4);
    put_le16(buffer + 5, 0xb1b2);
    assert_memory_equal(buffer, "\0\xa4\xa3\xa2\xa1\xb2\xb1\2\1", 9);
    put_be32(buffer + 1, 0xa1a2a3a4);
    put_be16(buffer + 5, 0xb1b2);
    assert_memory_equal(buffer, "\0\xa1\xa2\xa3\xa4\xb1\xb2\2\1", 9);
}

static void test_reader(void **state)
{
    uint8_t data[40];
    struct byte_reader r = byte_reader_of(data, sizeof(data));

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)i;
    assert_int_equal(byte_reader_u8(&r), 0x00);
    assert_int_equal(byte_reader_be16(&r), 0x0102);
    assert_int_equal(byte_reader_be32(&r), 0x03040506);
    assert_int_equal(byte_reader_be64(&r), 0x0708090a0b0c0d0e);
    assert_int_equal(byte_reader_le16(&r), 0x100f);
    assert_int_equal(byte_reader_le32(&r), 0x14131211);
    assert_int_equal(byte_reader_le64(&r), 0x1c1b1a1918171615);
    assert_true(byte_reader_skip(&r, 3));
    assert_ptr_equal(byte_reader_take(&r, 8), data + 32);
    assert_false(r.failed);
    assert_int_equal(r.left, 0);
    assert_non_null(byte_reader_take(&r, 0));
    assert_true(byte_reader_skip(&r, 0));
    assert_false(byte_reader_skip(&r, 1));
    assert_true(r.failed);
}

/* A header of mixed fields, 30 bytes. Returns whether all of it was there. */
static bool read_header(struct byte_reader *r, uint64_t *sum)
{
    *sum = byte_reader_u8(r);
    *sum += byte_reader_be16(r);
    *sum += byte_reader_be32(r);
    *sum += byte_reader_be64(r);
    *sum += byte_reader_le16(r);
    *sum += byte_reader_le32(r);
    *sum += byte_reader_le64(r);
    byte_reader_skip(r, 1);
    return !r->failed;
}

#define HEADER_SIZE 30

static void test_reader_cut(void **state)
{
    uint64_t sum;

    for (size_t length = 0; length <= HEADER_SIZE; length++) {
        uint8_t *data = malloc(length ? length : 1);
        struct byte_reader r = byte_reader_of(length ? data : NULL, length);

        assert_non_null(data);
        memset(data, 0xff, length);
        if (read_header(&r, &sum) != (length == HEADER_SIZE))
            fail_msg("a header of %zu bytes is taken for one of %d", length, HEADER_SIZE);
        free(data);
    }
}

static void test_reader_failure_sticks(void **state)
{
    static const uint8_t data[4] = {1, 2, 3, 4};
    struct byte_reader r = byte_reader_of(data, sizeof(data));

    assert_int_equal(byte_reader_be64(&r), 0);
    assert_true(r.failed);
    assert_int_equal(byte_reader_u8(&r), 0);
    assert_null(byte_reader_take(&r, 0));
    assert_false(byte_reader_skip(&r, 0));
    assert_int_equal(r.left, 4);

    r = byte_reader_of(data, sizeof(data));
    assert_null(byte_reader_take(&r, SIZE_MAX));
    assert_true(r.failed);
    assert_int_equal(r.left, 4);
}

static void test_writer(void **state)
{
    static const uint8_t expected[] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a,
                                       0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 'e',  'v',  0,    0,    0};
    uint8_t data[sizeof(expected)];
    struct byte_writer w = byte_writer_of(data, sizeof(data));

    memset(data, 0xee, sizeof(data));
    byte_writer_u8(&w, 0x01);
    byte_writer_be16(&w, 0x0203);
    byte_writer_be32(&w, 0x04050607);
    byte_writer_be64(&w, 0x08090a0b0c0d0e0f);
    byte_writer_put(&w, "ev", 2);
    byte_writer_put(&w, NULL, 0);
    byte_writer_zero(&w, 3);
    byte_writer_zero(&w, 0);
    assert_false(w.failed);
    assert_int_equal(w.left, 0);
    assert_memory_equal(data, expected, sizeof(expected));
}

/* What does not fit is dropped whole, and so is what follows, even if it would fit. */
static void test_writer_full(void **state)
{
    uint8_t *data = malloc(5);
    struct byte_writer w = byte_writer_of(data, 5);

    assert_non_null(data);
    memset(data, 0xee, 5);
    byte_writer_be32(&w, 0x01020304);
    byte_writer_be16(&w, 0x0506);
    assert_true(w.failed);
    byte_writer_u8(&w, 0x07);
    byte_writer_zero(&w, 1);
    byte_writer_put(&w, "x", 1);
    byte_writer_be64(&w, 1);
    assert_memory_equal(data, "\1\2\3\4\xee", 5);
    w = byte_writer_of(data, 5);
    byte_writer_zero(&w, SIZE_MAX);
    assert_true(w.failed);
    free(data);
    w = byte_writer_of(NULL, 0);
    byte_writer_u8(&w, 1);
    assert_true(w.failed);
}

/* Every length around the block size, with the one byte that is not zero at every place. */
static void test_zero(void **state)
{
    uint8_t *data;

    assert_true(bytes_are_zero(NULL, 0));
    for (size_t length = 1; length <= 600; length += length < 20 || length > 500 ? 1 : 17) {
        data = calloc(1, length);
        assert_non_null(data);
        assert_true(bytes_are_zero(data, length));
        for (size_t at = 0; at < length; at++) {
            data[at] = (uint8_t)(1 << at % 8);
            if (bytes_are_zero(data, length))
                fail_msg("byte %zu of %zu is overlooked", at, length);
            if (!bytes_are_zero(data, at) || !bytes_are_zero(data + at + 1, length - at - 1))
                fail_msg("what is around byte %zu of %zu is not zero", at, length);
            data[at] = 0;
        }
        free(data);
    }
}

static const struct {
    const char *text;
    size_t length;
    bool valid;
} utf8_rows[] = {
    {"", 0, true},
    {"plain", 5, true},
    {"a\0b", 3, false},
    {"\x7f", 1, true},
    {"\x80", 1, false},
    {"\xbf", 1, false},
    {"\xc2\x80", 2, true},
    {"\xc2", 1, false},
    {"\xc2\xc2", 2, false},
    {"\xc0\x80", 2, false}, /* overlong NUL */
    {"\xc1\xbf", 2, false},
    {"\xdf\xbf", 2, true},
    {"\xe0\xa0\x80", 3, true},
    {"\xe0\x9f\xbf", 3, false}, /* overlong */
    {"\xe2\x82\xac", 3, true},
    {"\xe2\x82", 2, false},
    {"\xe2\x82"
     "a",
     3, false},
    {"\xed\x9f\xbf", 3, true},
    {"\xed\xa0\x80", 3, false}, /* surrogates */
    {"\xed\xbf\xbf", 3, false},
    {"\xee\x80\x80", 3, true},
    {"\xef\xbf\xbf", 3, true},
    {"\xf0\x90\x80\x80", 4, true},
    {"\xf0\x8f\xbf\xbf", 4, false}, /* overlong */
    {"\xf0\x9f\x98\x80!", 5, true},
    {"\xf0\x9f\x98", 3, false},
    {"\xf4\x8f\xbf\xbf", 4, true},
    {"\xf4\x90\x80\x80", 4, false}, /* above U+10FFFF */
    {"\xf5\x80\x80\x80", 4, false},
    {"\xfe", 1, false},
    {"\xff\xff", 2, false},
    {"good\xff", 5, false},
};

static void test_utf8(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(utf8_rows); i++) {
        /* An exact copy, so that looking past the end is seen. */
        char *text = malloc(utf8_rows[i].length ? utf8_rows[i].length : 1);

        assert_non_null(text);
        memcpy(text, utf8_rows[i].text, utf8_rows[i].length);
        if (bytes_are_utf8(text, utf8_rows[i].length) != utf8_rows[i].valid)
            fail_msg("row %zu: valid is not %d", i, utf8_rows[i].valid);
        free(text);
    }
    assert_int_equal(bytes_utf8_sequence("", 0), 0);
    assert_int_equal(bytes_utf8_sequence("ab", 2), 1);
    assert_int_equal(bytes_utf8_sequence("\xc3\xa9x", 3), 2);
    assert_int_equal(bytes_utf8_sequence("\xe2\x82\xacx", 4), 3);
    assert_int_equal(bytes_utf8_sequence("\xf0\x9f\x98\x80x", 5), 4);
    assert_int_equal(bytes_utf8_sequence("\xf0\x9f\x98\x80x", 3), 0);
}

static void test_hex_digit(void **state)
{
    static const char digits[] = "0123456789abcdefABCDEF";

    for (int c = 0; c < 256; c++) {
        const char *at = c ? strchr(digits, c) : NULL;
        int value = at ? (int)(at - digits) : -1;

        assert_int_equal(bytes_hex_digit((uint8_t)c), value < 16 ? value : value - 6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders),     cmocka_unit_test(test_reader),
        cmocka_unit_test(test_reader_cut), cmocka_unit_test(test_reader_failure_sticks),
        cmocka_unit_test(test_writer),     cmocka_unit_test(test_writer_full),
        cmocka_unit_test(test_zero),       cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_hex_digit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
