/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Vectors, compared with the flat buffer that they stand for, for every offset and length.  Each
 * vector is allocated at its exact size, so that AddressSanitizer sees a step too far.
 */
#include "base/iov.h"

#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Empty vectors at the ends and in between. */
static const size_t sizes[] = {0, 1, 5, 0, 0, 8, 3, 0};
#define COUNT ((int)ARRAY_SIZE(sizes))
#define TOTAL 17

struct vectors {
    struct iovec iov[ARRAY_SIZE(sizes)];
};

static int setup(void **state)
{
    struct vectors *v = calloc(1, sizeof(*v));
    uint8_t byte = 1;

    if (!v)
        return -1;
    for (int i = 0; i < COUNT; i++) {
        uint8_t *data = sizes[i] ? malloc(sizes[i]) : NULL;

        if (sizes[i] && !data)
            return -1;
        for (size_t k = 0; k < sizes[i]; k++)
            data[k] = byte++;
        v->iov[i] = (struct iovec){.iov_base = data, .iov_len = sizes[i]};
    }
    *state = v;
    return 0;
}

static int teardown(void **state)
{
    struct vectors *v = *state;

    for (int i = 0; i < COUNT; i++)
        free(v->iov[i].iov_base);
    free(v);
    return 0;
}

static void assert_content(const struct iovec *iov, int iovcnt, const uint8_t *expected,
                           size_t length)
{
    size_t at = 0;

    for (int i = 0; i < iovcnt; i++) {
        const uint8_t *data = iov[i].iov_base;

        for (size_t k = 0; k < iov[i].iov_len; k++, at++) {
            assert_true(at < length);
            assert_int_equal(data[k], expected[at]);
        }
    }
    assert_int_equal(at, length);
}

static void fill_flat(uint8_t flat[TOTAL])
{
    for (int i = 0; i < TOTAL; i++)
        flat[i] = (uint8_t)(i + 1);
}

static void test_length(void **state)
{
    struct vectors *v = *state;

    assert_int_equal(iov_length(v->iov, COUNT), TOTAL);
    assert_int_equal(iov_length(v->iov, 0), 0);
    assert_int_equal(iov_length(NULL, 0), 0);
    assert_int_equal(iov_length(v->iov, 1), 0);
}

static void test_slice(void **state)
{
    struct vectors *v = *state;
    uint8_t flat[TOTAL];

    fill_flat(flat);
    for (size_t offset = 0; offset <= TOTAL; offset++) {
        for (size_t length = 0; offset + length <= TOTAL; length++) {
            struct iovec out[ARRAY_SIZE(sizes)];
            int n = iov_slice(out, COUNT, v->iov, COUNT, offset, length);

            assert_true(n >= 0 && n <= 4);
            assert_content(out, n, flat + offset, length);
            for (int i = 0; i < n; i++)
                assert_true(out[i].iov_len > 0);
            if (n > 0)
                assert_int_equal(iov_slice(out, n - 1, v->iov, COUNT, offset, length), -EINVAL);
            assert_int_equal(iov_slice(out, n, v->iov, COUNT, offset, length), n);
        }
    }
}

static void test_slice_beyond_end(void **state)
{
    struct vectors *v = *state;
    struct iovec out[ARRAY_SIZE(sizes)];

    assert_int_equal(iov_slice(out, COUNT, v->iov, COUNT, 0, TOTAL + 1), -EINVAL);
    assert_int_equal(iov_slice(out, COUNT, v->iov, COUNT, TOTAL, 1), -EINVAL);
    assert_int_equal(iov_slice(out, COUNT, v->iov, COUNT, SIZE_MAX, 1), -EINVAL);
    assert_int_equal(iov_slice(out, COUNT, v->iov, COUNT, 1, SIZE_MAX), -EINVAL);
    assert_int_equal(iov_slice(out, COUNT, v->iov, 0, 0, 1), -EINVAL);
    assert_int_equal(iov_slice(out, 0, NULL, 0, 0, 0), 0);
}

static void test_fill(void **state)
{
    struct vectors *v = *state;

    for (size_t offset = 0; offset <= TOTAL; offset++) {
        for (size_t length = 0; offset + length <= TOTAL; length++) {
            uint8_t expected[TOTAL] = {0};

            memset(expected + offset, 0xaa, length);
            iov_fill(v->iov, COUNT, 0, TOTAL, 0);
            iov_fill(v->iov, COUNT, offset, length, 0xaa);
            assert_content(v->iov, COUNT, expected, TOTAL);
        }
    }
}

static void test_to_buffer(void **state)
{
    struct vectors *v = *state;
    uint8_t flat[TOTAL];

    fill_flat(flat);
    for (size_t offset = 0; offset <= TOTAL; offset++) {
        for (size_t length = 0; offset + length <= TOTAL; length++) {
            uint8_t *out = malloc(length ? length : 1);

            assert_non_null(out);
            iov_to_buffer(out, v->iov, COUNT, offset, length);
            assert_memory_equal(out, flat + offset, length);
            free(out);
        }
    }
}

static void test_from_buffer(void **state)
{
    struct vectors *v = *state;
    uint8_t flat[TOTAL];

    fill_flat(flat);
    for (size_t offset = 0; offset <= TOTAL; offset++) {
        for (size_t length = 0; offset + length <= TOTAL; length++) {
            uint8_t expected[TOTAL] = {0};

            memcpy(expected + offset, flat, length);
            iov_fill(v->iov, COUNT, 0, TOTAL, 0);
            iov_from_buffer(v->iov, COUNT, offset, flat, length);
            assert_content(v->iov, COUNT, expected, TOTAL);
        }
    }
}

static void test_is_zero(void **state)
{
    struct vectors *v = *state;

    assert_true(iov_is_zero(NULL, 0, 0, 0));
    for (size_t at = 0; at < TOTAL; at++) {
        iov_fill(v->iov, COUNT, 0, TOTAL, 0);
        assert_true(iov_is_zero(v->iov, COUNT, 0, TOTAL));
        iov_fill(v->iov, COUNT, at, 1, 0x80);
        for (size_t offset = 0; offset <= TOTAL; offset++) {
            for (size_t length = 0; offset + length <= TOTAL; length++) {
                bool inside = at >= offset && at < offset + length;

                assert_int_equal(iov_is_zero(v->iov, COUNT, offset, length), !inside);
            }
        }
    }
}

int main(void)
{
#define WITH_VECTORS(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_VECTORS(test_length),           WITH_VECTORS(test_slice),
        WITH_VECTORS(test_slice_beyond_end), WITH_VECTORS(test_fill),
        WITH_VECTORS(test_to_buffer),        WITH_VECTORS(test_from_buffer),
        WITH_VECTORS(test_is_zero),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
