/* SPDX-License-Identifier: BSD-3-Clause */
/* Base64: the vectors of RFC 4648, white space, and what is refused. */
#include "base/base64.h"

#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void test_good(void **state)
{
    static const struct {
        const char *text, *bytes;
        size_t length;
    } rows[] = {
        {"", "", 0},
        {"Zg==", "f", 1},
        {"Zm8=", "fo", 2},
        {"Zm9v", "foo", 3},
        {"Zm9vYg==", "foob", 4},
        {"Zm9vYmE=", "fooba", 5},
        {"Zm9vYmFy", "foobar", 6},
        {"AP+/+A==", "\0\xff\xbf\xf8", 4},
        {" Zm\r\n9v\tYg =\n=\n", "foob", 4},
        {"\n", "", 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        uint8_t out[BASE64_BYTES_MAX(32)];
        size_t length;

        assert_int_equal(base64_decode(rows[i].text, strlen(rows[i].text), out, &length), 0);
        assert_int_equal(length, rows[i].length);
        assert_memory_equal(out, rows[i].bytes, length);
    }
}

static void test_bad(void **state)
{
    static const char *const rows[] = {
        "Z",     "Zg",       "Zg=",  "Zg===",  "Z===",    "====", "Zm9vYg==Zm9v",
        "Zm9v=", "Zm9v!m9v", "Zm=v", "Zm9-bw", "Zm9\x80", "=",    "Zg==Z",
    };
    uint8_t out[BASE64_BYTES_MAX(32)];
    size_t length;

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        assert_int_equal(base64_decode(rows[i], strlen(rows[i]), out, &length), -EINVAL);
    assert_int_equal(base64_decode("Zm9\0", 4, out, &length), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
