/* SPDX-License-Identifier: BSD-3-Clause */
/* Secrets by name. */
#include "base/secret.h"

#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_found_by_name(void **state)
{
    struct secret_store store;
    struct error error = {0};

    (void)state;
    secret_store_init(&store);
    assert_null(secret_store_find(&store, "a"));
    assert_null(secret_store_find(NULL, "a"));
    assert_int_equal(secret_store_add(&store, "a", "one\0two", 7, &error), 0);
    assert_int_equal(secret_store_add(&store, "b", NULL, 0, &error), 0);
    assert_int_equal(secret_store_find(&store, "a")->length, 7);
    assert_memory_equal(secret_store_find(&store, "a")->data, "one\0two", 8);
    assert_int_equal(secret_store_find(&store, "b")->length, 0);
    assert_null(secret_store_find(&store, "c"));
    secret_store_fini(&store);
    assert_null(secret_store_find(&store, "a"));
}

static void test_refusals(void **state)
{
    static const char large[SECRET_BYTES_MAX + 1];
    struct secret_store store;
    struct error error = {0};

    (void)state;
    secret_store_init(&store);
    assert_int_equal(secret_store_add(&store, "a", "x", 1, &error), 0);
    assert_int_equal(secret_store_add(&store, "a", "y", 1, &error), -EEXIST);
    assert_string_equal(error.text, "there are two secrets with the id 'a'");
    assert_memory_equal(secret_store_find(&store, "a")->data, "x", 1);
    assert_int_equal(secret_store_add(&store, "b", large, sizeof(large), &error), -EINVAL);
    assert_int_equal(secret_store_add(&store, "b", large, sizeof(large) - 1, &error), 0);
    secret_store_fini(&store);
}

static void test_wipe(void **state)
{
    char data[] = "passphrase";

    (void)state;
    secret_wipe(data, 4);
    assert_memory_equal(data, "\0\0\0\0phrase", 11);
    secret_wipe(NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_found_by_name),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_wipe),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
