/* SPDX-License-Identifier: BSD-3-Clause */
/* Sets of dirty bits against an array of bytes; and what is left when memory is short. */
#include "base/checked.h"
#include "blockcore/dirty_set.h"
#include "tests/support/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BITS 200003 /* six pages of 32768 bits and a part */

static struct dirty_budget plenty = {.max = 64 << 20};

static bool bit_of(const struct dirty_set *set, uint64_t bit)
{
    uint8_t byte = 0;

    dirty_set_or(set, bit / 8 * 8, &byte, 1);
    return byte >> bit % 8 & 1;
}

static void compare(const struct dirty_set *set, const uint8_t *model)
{
    size_t length = div_round_up(BITS, 8) + 16;
    uint8_t *bytes = calloc(1, length);

    dirty_set_or(set, 0, bytes, length);
    for (uint64_t i = 0; i < length * 8; i++) {
        bool wanted = i < BITS && model[i];

        if ((bytes[i / 8] >> i % 8 & 1) != wanted)
            test_die("bit %lu should be %d", i, wanted);
    }
    free(bytes);
}

static void holds_what_was_added(void **state)
{
    struct prng prng = prng_of(test_seed());
    uint8_t *model = calloc(1, BITS);
    struct dirty_set set;

    dirty_set_init(&set, BITS, &plenty);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t first = prng_below(&prng, BITS);
        uint64_t count = prng_below(&prng, i % 5 == 0 ? BITS : 300);

        dirty_set_add(&set, first, count);
        memset(model + first, 1, min_u64(count, BITS - first));
        if (i % 10 == 9 || i < 4)
            compare(&set, model);
        if (i == 30) {
            dirty_set_clear(&set);
            memset(model, 0, BITS);
            compare(&set, model);
        }
    }
    dirty_set_clear(&set);
    assert_int_equal(plenty.used, 0);
    free(model);
}

static void finds_any(void **state)
{
    struct dirty_set set;

    dirty_set_init(&set, BITS, &plenty);
    assert_false(dirty_set_any(&set, 0, BITS + 5));
    dirty_set_add(&set, 70001, 1);
    assert_true(dirty_set_any(&set, 0, BITS + 5));
    assert_true(dirty_set_any(&set, 70000, 8));
    assert_false(dirty_set_any(&set, 0, 70000));
    assert_false(dirty_set_any(&set, 70008, BITS));
    assert_false(dirty_set_any(&set, BITS + 5, 8));
    dirty_set_add(&set, 32768, 32768); /* a whole page */
    assert_true(dirty_set_any(&set, 65528, 8));
    assert_false(dirty_set_any(&set, 32760, 8));
    dirty_set_clear(&set);
}

static void adds_another_set(void **state)
{
    struct dirty_set from, to;
    uint8_t *model = calloc(1, BITS);

    dirty_set_init(&from, BITS, &plenty);
    dirty_set_init(&to, BITS, &plenty);
    dirty_set_add(&from, 5, 3);
    dirty_set_add(&from, 65536, 32768);
    dirty_set_add(&from, BITS - 1, 1);
    dirty_set_add(&to, 7, 10);
    dirty_set_add_set(&to, &from);
    memset(model + 5, 1, 12);
    memset(model + 65536, 1, 32768);
    model[BITS - 1] = 1;
    compare(&to, model);
    dirty_set_clear(&from);
    dirty_set_clear(&to);
    free(model);
}

/* It may say too much, but never too little. */
static void loses_nothing_without_memory(void **state)
{
    for (size_t max = 0; max < 40000; max += 3000) {
        struct prng prng = prng_of(max);
        struct dirty_budget budget = {.max = max};
        struct dirty_set set;

        dirty_set_init(&set, BITS, &budget);
        for (unsigned i = 0; i < 20; i++) {
            uint64_t bit = prng_below(&prng, BITS);

            dirty_set_add(&set, bit, 1);
            assert_true(bit_of(&set, bit));
            assert_true(budget.used <= max);
        }
        prng = prng_of(max);
        for (unsigned i = 0; i < 20; i++)
            assert_true(bit_of(&set, prng_below(&prng, BITS)));
        assert_true(max == 0 ? bit_of(&set, 0) && bit_of(&set, BITS - 1) : true);
        assert_false(bit_of(&set, BITS));
        dirty_set_clear(&set);
        assert_int_equal(budget.used, 0);
        assert_false(dirty_set_any(&set, 0, BITS));
    }
}

static void finds_bits_in_bytes(void **state)
{
    static const uint8_t bytes[] = {0, 0, 0x10, 0xff, 0xff, 0x7f};

    assert_int_equal(dirty_bits_find(bytes, 0, 48, true), 20);
    assert_int_equal(dirty_bits_find(bytes, 0, 19, true), 19);
    assert_int_equal(dirty_bits_find(bytes, 21, 48, true), 24);
    assert_int_equal(dirty_bits_find(bytes, 24, 48, false), 47);
    assert_int_equal(dirty_bits_find(bytes, 25, 30, false), 30);
    assert_int_equal(dirty_bits_find(bytes, 20, 48, false), 21);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holds_what_was_added),
        cmocka_unit_test(finds_any),
        cmocka_unit_test(adds_another_set),
        cmocka_unit_test(finds_bits_in_bytes),
        cmocka_unit_test(loses_nothing_without_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
