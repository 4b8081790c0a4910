/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/buffer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define MIB ((size_t)1 << 20)

static int pool_is_clean(void **state)
{
    (void)state;
    assert_int_equal(buffer_bytes_used(), 0);
    buffer_pool_trim();
    assert_int_equal(buffer_bytes_pooled(), 0);
    return 0;
}

static void buffers_are_aligned_and_writable(void **state)
{
    static const size_t lengths[] = {0,    1,           511,     4095,        4096,
                                     4097, 8192,        12345,   65536,       65537,
                                     MIB,  4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 32 * MIB};

    (void)state;
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        void *buffer = buffer_get(lengths[i]);

        assert_non_null(buffer);
        assert_int_equal((uintptr_t)buffer % BUFFER_ALIGN, 0);
        memset(buffer, 0xa5, lengths[i]);
        assert_true(buffer_bytes_used() >= lengths[i]);
        buffer_put(buffer, lengths[i]);
        assert_int_equal(buffer_bytes_used(), 0);
    }
}

static void a_buffer_is_used_again_by_lengths_of_its_class(void **state)
{
    void *first, *second;

    (void)state;
    first = buffer_get(5000);
    buffer_put(first, 5000);
    assert_int_equal(buffer_bytes_pooled(), 8192);
    second = buffer_get(8192);
    assert_ptr_equal(first, second);
    assert_int_equal(buffer_bytes_pooled(), 0);
    memset(second, 1, 8192);
    buffer_put(second, 8192);
    first = buffer_get(4096);
    assert_ptr_not_equal(first, second);
    buffer_put(first, 4096);
    assert_int_equal(buffer_bytes_pooled(), 8192 + 4096);
}

static void bytes_are_counted_by_class(void **state)
{
    void *a, *b;

    (void)state;
    a = buffer_get(1);
    b = buffer_get(4097);
    assert_int_equal(buffer_bytes_used(), 4096 + 8192);
    buffer_put(a, 1);
    assert_int_equal(buffer_bytes_used(), 8192);
    assert_int_equal(buffer_bytes_pooled(), 4096);
    buffer_put(b, 4097);
    assert_int_equal(buffer_bytes_used(), 0);
    assert_int_equal(buffer_bytes_pooled(), 4096 + 8192);
}

static void large_buffers_are_not_pooled(void **state)
{
    (void)state;
    buffer_put(buffer_get(4 * MIB), 4 * MIB);
    assert_int_equal(buffer_bytes_pooled(), 4 * MIB);
    buffer_put(buffer_get(4 * MIB + 1), 4 * MIB + 1);
    assert_int_equal(buffer_bytes_pooled(), 4 * MIB);
}

static void the_pool_is_bounded(void **state)
{
    void *buffers[64];

    (void)state;
    for (int i = 0; i < 64; i++)
        assert_non_null(buffers[i] = buffer_get(2 * MIB));
    assert_int_equal(buffer_bytes_used(), 128 * MIB);
    for (int i = 0; i < 64; i++)
        buffer_put(buffers[i], 2 * MIB);
    assert_int_equal(buffer_bytes_pooled(), 64 * MIB);
}

static void impossible_lengths_give_null(void **state)
{
    (void)state;
    assert_null(buffer_get(SIZE_MAX));
    assert_null(buffer_get(SIZE_MAX - BUFFER_ALIGN));
    assert_null(buffer_get(SIZE_MAX / 2));
    buffer_put(NULL, 4096);
    buffer_put(NULL, SIZE_MAX);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, pool_is_clean)
    const struct CMUnitTest tests[] = {
        TEST(buffers_are_aligned_and_writable),
        TEST(a_buffer_is_used_again_by_lengths_of_its_class),
        TEST(bytes_are_counted_by_class),
        TEST(large_buffers_are_not_pooled),
        TEST(the_pool_is_bounded),
        TEST(impossible_lengths_give_null),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
