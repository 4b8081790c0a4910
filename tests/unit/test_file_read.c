/* SPDX-License-Identifier: BSD-3-Clause */
/* Small files as a whole: sizes around the limit, pipes, and each failing call. */
#include "base/file_read.h"

#include "tests/support/fault.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int setup(void **state)
{
    *state = test_dir_make();
    return 0;
}

static int teardown(void **state)
{
    test_dir_remove(*state);
    return 0;
}

static void test_sizes(void **state)
{
    char *path = test_path(*state, "file");
    struct error error = {""};
    uint8_t *data;
    size_t length;

    test_file_write(path, "12345678", 8);
    for (size_t max = 8; max < 10; max++) {
        assert_int_equal(file_read(path, max, &data, &length, &error), 0);
        assert_int_equal(length, 8);
        assert_memory_equal(data, "12345678", 9);
        free(data);
    }
    assert_int_equal(file_read(path, 7, &data, &length, &error), -EFBIG);
    assert_non_null(strstr(error.text, "has more than 7 bytes"));
    test_file_write(path, "", 0);
    assert_int_equal(file_read(path, 0, &data, &length, &error), 0);
    assert_int_equal(length, 0);
    free(data);
    free(path);
}

static void test_pipe(void **state)
{
    char path[32];
    struct error error = {""};
    uint8_t *data;
    size_t length;
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    assert_int_equal(write(fds[1], "secret", 6), 6);
    close(fds[1]);
    snprintf(path, sizeof(path), "/dev/fd/%d", fds[0]);
    assert_int_equal(file_read(path, 100, &data, &length, &error), 0);
    assert_int_equal(length, 6);
    assert_memory_equal(data, "secret", 6);
    free(data);
    close(fds[0]);
}

static void test_missing(void **state)
{
    struct error error = {""};
    uint8_t *data;
    size_t length;
    char *path = test_path(*state, "none");

    assert_int_equal(file_read(path, 10, &data, &length, &error), -ENOENT);
    assert_non_null(strstr(error.text, "/none': No such file"));
    assert_int_equal(file_read(*state, 10, &data, &length, &error), -EISDIR);
    assert_non_null(strstr(error.text, "Could not read"));
    free(path);
}

static void test_faults(void **state)
{
    char *path = test_path(*state, "file");
    struct error error = {""};
    uint8_t *data;
    size_t length;
    unsigned k;

    test_file_write(path, "12345678", 8);
    fault_install();
    for (k = 1;; k++) {
        int r;

        fault_arm(&(struct fault_plan){.calls = FAULT_FILE, .nth = k, .error = EIO});
        r = file_read(path, 100, &data, &length, &error);
        if (!fault_fired())
            break;
        assert_int_equal(r, -EIO);
    }
    assert_true(k > 2);
    free(data);
    for (int error_number = 0; error_number <= EINTR; error_number += EINTR) {
        fault_arm(&(struct fault_plan){.calls = FAULT_PREADV, .nth = 1, .error = error_number});
        assert_int_equal(file_read(path, 100, &data, &length, &error), 0);
        assert_true(fault_fired());
        assert_int_equal(length, 8);
        assert_memory_equal(data, "12345678", 8);
        free(data);
    }
    fault_remove();
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_pipe),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_faults),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
