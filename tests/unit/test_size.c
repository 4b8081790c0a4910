/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes and numbers as people, and those who mean harm, write them. */
#include "base/size.h"

#include "base/checked.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What a failed call must leave alone. */
#define UNTOUCHED UINT64_C(0x5555)

static const struct {
    const char *text;
    uint64_t size;
} good_sizes[] = {
    {"0", 0},
    {"1", 1},
    {"512", 512},
    {"010", 10}, /* decimal: leading zeroes mean nothing here */
    {"512b", 512},
    {"512B", 512},
    {"1k", KIB},
    {"1K", KIB},
    {"64k", 64 * KIB},
    {"1m", MIB},
    {"1M", MIB},
    {"10G", 10 * GIB},
    {"10g", 10 * GIB},
    {"3T", 3 * TIB},
    {"3t", 3 * TIB},
    {"2P", 2048 * TIB},
    {"2p", 2048 * TIB},
    {"1E", (uint64_t)1 << 60},
    {"1e", (uint64_t)1 << 60},
    {"7E", (uint64_t)7 << 60},
    {"0E", 0},
    {"1.5k", 1536},
    {"1.50000000000000000000000000k", 1536},
    {"0.5G", GIB / 2},
    {"1.0", 1},
    {"1.000b", 1},
    {"0.0009765625k", 1},
    {"2.25M", 2 * MIB + 256 * KIB},
    {"7.5E", (uint64_t)15 << 59},
    {"0.000003814697265625E", (uint64_t)1 << 42},
    {"0x0", 0},
    {"0x10", 16},
    {"0XfF", 255},
    {"0xE", 14}, /* no suffix after hexadecimal */
    {"0x1b", 27},
    {"0x7fffffffffffffff", OFFSET_MAX},
    {"9223372036854775807", OFFSET_MAX},
    {"9223372036854775807b", OFFSET_MAX},
    {"0000000000000000000000000000000000000000001k", KIB},
    {"9007199254740991k", OFFSET_MAX - 1023},
};

static void test_size_good(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(good_sizes); i++) {
        uint64_t size = UNTOUCHED;
        int r = size_parse(good_sizes[i].text, &size);

        if (r != 0 || size != good_sizes[i].size)
            fail_msg("'%s' gives %d, %" PRIu64, good_sizes[i].text, r, size);
    }
}

static const struct {
    const char *text;
    int result;
} bad_sizes[] = {
    /* no number, or not only a number */
    {"", -EINVAL},
    {" ", -EINVAL},
    {"k", -EINVAL},
    {".", -EINVAL},
    {".5k", -EINVAL},
    {"1.", -EINVAL},
    {"1.k", -EINVAL},
    {"1..5k", -EINVAL},
    {"1.5.5k", -EINVAL},
    {"-1", -EINVAL},
    {"-0", -EINVAL},
    {"+1", -EINVAL},
    {" 1", -EINVAL},
    {"1 ", -EINVAL},
    {"1\n", -EINVAL},
    {"1 k", -EINVAL},
    {"1kk", -EINVAL},
    {"1kB", -EINVAL},
    {"1KiB", -EINVAL},
    {"1Z", -EINVAL},
    {"1x", -EINVAL},
    {"1,5k", -EINVAL},
    {"1k,", -EINVAL},
    {"2^64", -EINVAL},
    {"1e3", -EINVAL},
    {"7.5e1", -EINVAL},
    {"1e999", -EINVAL},
    {"1E+3", -EINVAL},
    {"nan", -EINVAL},
    {"inf", -EINVAL},
    {"infinity", -EINVAL},
    {"0x", -EINVAL},
    {"0X", -EINVAL},
    {"0x-1", -EINVAL},
    {"0x 1", -EINVAL},
    {"0x0x1", -EINVAL},
    {"0x1k", -EINVAL},
    {"0x1.8", -EINVAL},
    {"0x1p3", -EINVAL},
    {"x10", -EINVAL},
    {"0b1", -EINVAL},
    {"\xd9\xa1", -EINVAL}, /* an Arabic one */
    {"1\xff", -EINVAL},
    /* fractions of a byte */
    {"1.5", -EINVAL},
    {"1.5b", -EINVAL},
    {"0.1k", -EINVAL},
    {"1.1M", -EINVAL},
    {"0.0001k", -EINVAL},
    {"0.0000000000000000001E", -EINVAL},
    {"0.999999999999999999999999999999E", -EINVAL},
    {"1.00000000000000000000000000000001E", -EINVAL},
    /* too large */
    {"8E", -ERANGE},
    {"9E", -ERANGE},
    {"16E", -ERANGE},
    {"8.5E", -ERANGE},
    {"15.5E", -ERANGE},
    {"9223372036854775808", -ERANGE},
    {"9007199254740992k", -ERANGE},
    {"18446744073709551615", -ERANGE},
    {"18446744073709551616", -ERANGE},
    {"18446744073709551617k", -ERANGE},
    {"36028797018963969k", -ERANGE},
    {"99999999999999999999999999999999999999", -ERANGE},
    {"0x8000000000000000", -ERANGE},
    {"0xffffffffffffffff", -ERANGE},
    {"0x10000000000000000", -ERANGE},
    /* too large does not hide that it is no number */
    {"99999999999999999999999999999999999999z", -EINVAL},
    {"0xfffffffffffffffffffffg", -EINVAL},
};

static void test_size_bad(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(bad_sizes); i++) {
        uint64_t size = UNTOUCHED;
        int r = size_parse(bad_sizes[i].text, &size);

        if (r != bad_sizes[i].result || size != UNTOUCHED)
            fail_msg("'%s' gives %d, %" PRIu64, bad_sizes[i].text, r, size);
    }
}

static void test_number(void **state)
{
    static const struct {
        const char *text;
        uint64_t max;
        int result;
        uint64_t number;
    } rows[] = {
        {"0", 0, 0, 0},
        {"00", 0, 0, 0},
        {"1", 0, -ERANGE, 0},
        {"65535", 65535, 0, 65535},
        {"65536", 65535, -ERANGE, 0},
        {"010", 100, 0, 8},
        {"0777", 1000, 0, 511},
        {"08", 100, -EINVAL, 0},
        {"0x1f", 100, 0, 31},
        {"0X1F", 100, 0, 31},
        {"0x", 100, -EINVAL, 0},
        {"0xg", 100, -EINVAL, 0},
        {"18446744073709551615", UINT64_MAX, 0, UINT64_MAX},
        {"0xffffffffffffffff", UINT64_MAX, 0, UINT64_MAX},
        {"01777777777777777777777", UINT64_MAX, 0, UINT64_MAX},
        {"18446744073709551616", UINT64_MAX, -ERANGE, 0},
        {"0x10000000000000000", UINT64_MAX, -ERANGE, 0},
        {"02000000000000000000000", UINT64_MAX, -ERANGE, 0},
        {"1844674407370955161500", UINT64_MAX, -ERANGE, 0},
        {"18446744073709551616x", UINT64_MAX, -EINVAL, 0},
        {"", UINT64_MAX, -EINVAL, 0},
        {"-1", UINT64_MAX, -EINVAL, 0},
        {"-0", UINT64_MAX, -EINVAL, 0},
        {"+1", UINT64_MAX, -EINVAL, 0},
        {" 1", UINT64_MAX, -EINVAL, 0},
        {"1 ", UINT64_MAX, -EINVAL, 0},
        {"1k", UINT64_MAX, -EINVAL, 0},
        {"2M", UINT64_MAX, -EINVAL, 0},
        {"1e3", UINT64_MAX, -EINVAL, 0},
        {"1.0", UINT64_MAX, -EINVAL, 0},
        {"a", UINT64_MAX, -EINVAL, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        uint64_t number = UNTOUCHED;
        int r = number_parse(rows[i].text, rows[i].max, &number);

        if (r != rows[i].result || number != (r == 0 ? rows[i].number : UNTOUCHED))
            fail_msg("'%s' gives %d, %" PRIu64, rows[i].text, r, number);
    }
}

static void test_format(void **state)
{
    static const struct {
        uint64_t size;
        const char *text;
    } rows[] = {
        {0, "0 B"},
        {1, "1 B"},
        {512, "512 B"},
        {999, "999 B"},
        {1000, "0.977 KiB"},
        {1023, "0.999 KiB"},
        {KIB, "1 KiB"},
        {1536, "1.5 KiB"},
        {64 * KIB, "64 KiB"},
        {999 * KIB + 511, "999 KiB"},
        {999 * KIB + 512, "0.976 MiB"},
        {MIB + MIB / 2, "1.5 MiB"},
        {4 * MIB, "4 MiB"},
        {10 * GIB, "10 GiB"},
        {GIB + GIB / 3, "1.33 GiB"},
        {2 * TIB, "2 TiB"},
        {3 * 1024 * TIB, "3 PiB"},
        {OFFSET_MAX, "8 EiB"},
        {UINT64_MAX, "16 EiB"},
    };
    char small[4];

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        char out[16];

        assert_ptr_equal(size_format(out, sizeof(out), rows[i].size), out);
        if (strcmp(out, rows[i].text) != 0)
            fail_msg("%" PRIu64 " is written '%s' instead of '%s'", rows[i].size, out,
                     rows[i].text);
    }
    assert_string_equal(size_format(small, sizeof(small), 10 * GIB), "10 ");
}

/* Any size that is printed in bytes is read back. */
static void test_round_trip(void **state)
{
    for (int bit = 0; bit < 63; bit++) {
        for (int delta = -1; delta <= 1; delta++) {
            uint64_t size = ((uint64_t)1 << bit) + (uint64_t)(int64_t)delta;
            uint64_t parsed = UNTOUCHED;
            char text[32];

            snprintf(text, sizeof(text), "%" PRIu64, size);
            assert_int_equal(size_parse(text, &parsed), 0);
            assert_int_equal(parsed, size);
            snprintf(text, sizeof(text), "0x%" PRIx64, size);
            assert_int_equal(size_parse(text, &parsed), 0);
            assert_int_equal(parsed, size);
            assert_int_equal(number_parse(text, UINT64_MAX, &parsed), 0);
            assert_int_equal(parsed, size);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_size_good),  cmocka_unit_test(test_size_bad),
        cmocka_unit_test(test_number),     cmocka_unit_test(test_format),
        cmocka_unit_test(test_round_trip),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
