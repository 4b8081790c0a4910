/* SPDX-License-Identifier: BSD-3-Clause */
/* Checked arithmetic at the edges of its types. */
#include "base/checked.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void test_add(void **state)
{
    static const struct {
        uint64_t a, b, sum;
        bool overflows;
    } rows[] = {
        {0, 0, 0, false},
        {1, 2, 3, false},
        {UINT64_MAX, 0, UINT64_MAX, false},
        {UINT64_MAX - 1, 1, UINT64_MAX, false},
        {UINT64_MAX, 1, 0, true},
        {UINT64_MAX, UINT64_MAX, 0, true},
        {OFFSET_MAX, OFFSET_MAX, UINT64_MAX - 1, false},
        {(uint64_t)1 << 63, (uint64_t)1 << 63, 0, true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        uint64_t sum;

        if (add_overflows(rows[i].a, rows[i].b, &sum) != rows[i].overflows)
            fail_msg("row %zu: overflow is not %d", i, rows[i].overflows);
        if (!rows[i].overflows)
            assert_int_equal(sum, rows[i].sum);
    }
}

static void test_mul(void **state)
{
    static const struct {
        uint64_t a, b, product;
        bool overflows;
    } rows[] = {
        {0, UINT64_MAX, 0, false},
        {1, UINT64_MAX, UINT64_MAX, false},
        {2, UINT64_MAX, 0, true},
        {(uint64_t)1 << 32, (uint64_t)1 << 32, 0, true},
        {(uint64_t)1 << 32, ((uint64_t)1 << 32) - 1, UINT64_MAX - 0xffffffff, false},
        {0xffffffff, 0xffffffff, 0xfffffffe00000001, false},
        {UINT64_MAX / 8, 8, UINT64_MAX - 7, false},
        {UINT64_MAX / 8 + 1, 8, 0, true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        uint64_t product;

        if (mul_overflows(rows[i].a, rows[i].b, &product) != rows[i].overflows)
            fail_msg("row %zu: overflow is not %d", i, rows[i].overflows);
        if (!rows[i].overflows)
            assert_int_equal(product, rows[i].product);
    }
}

static void test_range_within(void **state)
{
    static const struct {
        uint64_t offset, length, limit;
        bool within;
    } rows[] = {
        {0, 0, 0, true},
        {0, 1, 0, false},
        {0, 512, 512, true},
        {0, 513, 512, false},
        {512, 0, 512, true},
        {513, 0, 512, false},
        {511, 1, 512, true},
        {511, 2, 512, false},
        {UINT64_MAX, 1, UINT64_MAX, false},
        {UINT64_MAX, 0, UINT64_MAX, true},
        /* The sums of these wrap to something small. */
        {UINT64_MAX - 511, 1024, 4096, false},
        {1, UINT64_MAX, 4096, false},
        {4096, UINT64_MAX - 4095, 4096, false},
        {UINT64_MAX, UINT64_MAX, 4096, false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        if (range_within(rows[i].offset, rows[i].length, rows[i].limit) != rows[i].within)
            fail_msg("row %zu: within is not %d", i, rows[i].within);
    }
}

static void test_ranges_overlap(void **state)
{
    static const struct {
        uint64_t a, a_length, b, b_length;
        bool overlap;
    } rows[] = {
        {0, 10, 10, 10, false},
        {0, 11, 10, 10, true},
        {0, 100, 10, 1, true},
        {5, 5, 5, 5, true},
        {20, 10, 0, 20, false},
        {OFFSET_MAX - 1, 1, OFFSET_MAX, 1, false},
        {OFFSET_MAX - 1, 2, OFFSET_MAX, 1, true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        bool ab = ranges_overlap(rows[i].a, rows[i].a_length, rows[i].b, rows[i].b_length);
        bool ba = ranges_overlap(rows[i].b, rows[i].b_length, rows[i].a, rows[i].a_length);

        if (ab != rows[i].overlap || ba != rows[i].overlap)
            fail_msg("row %zu: overlap is not %d", i, rows[i].overlap);
    }
}

static void test_powers(void **state)
{
    assert_false(is_power_of_two(0));
    assert_false(is_power_of_two(3));
    assert_false(is_power_of_two(UINT64_MAX));
    for (int bit = 0; bit < 64; bit++)
        assert_true(is_power_of_two((uint64_t)1 << bit));
    for (int bit = 2; bit < 64; bit++)
        assert_false(is_power_of_two(((uint64_t)1 << bit) | 1));
}

static void test_align(void **state)
{
    static const struct {
        uint64_t n, align, down, up;
    } rows[] = {
        {0, 512, 0, 0},
        {1, 512, 0, 512},
        {511, 512, 0, 512},
        {512, 512, 512, 512},
        {513, 512, 512, 1024},
        {77, 1, 77, 77},
        {OFFSET_MAX, 4096, OFFSET_MAX - 4095, (uint64_t)1 << 63},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        assert_int_equal(align_down(rows[i].n, rows[i].align), rows[i].down);
        assert_int_equal(align_up(rows[i].n, rows[i].align), rows[i].up);
        assert_int_equal(is_aligned(rows[i].n, rows[i].align), rows[i].down == rows[i].n);
    }
}

static void test_divide_and_compare(void **state)
{
    assert_int_equal(div_round_up(0, 7), 0);
    assert_int_equal(div_round_up(1, 7), 1);
    assert_int_equal(div_round_up(7, 7), 1);
    assert_int_equal(div_round_up(8, 7), 2);
    assert_int_equal(div_round_up(UINT64_MAX, 1), UINT64_MAX);
    assert_int_equal(div_round_up(UINT64_MAX, 2), (uint64_t)1 << 63);
    assert_int_equal(min_u64(1, UINT64_MAX), 1);
    assert_int_equal(min_u64(UINT64_MAX, 1), 1);
    assert_int_equal(max_u64(1, UINT64_MAX), UINT64_MAX);
    assert_int_equal(max_u64(UINT64_MAX, 1), UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add),
        cmocka_unit_test(test_mul),
        cmocka_unit_test(test_range_within),
        cmocka_unit_test(test_ranges_overlap),
        cmocka_unit_test(test_powers),
        cmocka_unit_test(test_align),
        cmocka_unit_test(test_divide_and_compare),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
