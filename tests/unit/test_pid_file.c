/* SPDX-License-Identifier: BSD-3-Clause */
/* The pid file: content, lock, relative names, and the failure of each of its calls in turn. */
#include "daemon/pid_file.h"

#include "tests/support/fault.h"
#include "tests/support/support.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
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

static void assert_holds_pid(const char *path)
{
    char wanted[32];
    size_t size;
    uint8_t *data = test_file_read(path, &size);

    snprintf(wanted, sizeof(wanted), "%d\n", (int)getpid());
    assert_int_equal(size, strlen(wanted));
    assert_memory_equal(data, wanted, size);
    free(data);
}

static void test_create_and_remove(void **state)
{
    char *path = test_path(*state, "pid");
    struct pid_file file;
    struct error error = {""};
    struct stat st;

    test_file_write(path, "left behind, and longer than a number\n", 38);
    assert_int_equal(pid_file_create(&file, path, &error), 0);
    assert_holds_pid(path);
    pid_file_remove(&file);
    assert_int_equal(stat(path, &st), -1);
    pid_file_remove(&file);

    assert_int_equal(pid_file_create(&file, path, &error), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    pid_file_remove(&file);
    free(path);
}

/* The name is resolved when the file is made, not when it is removed. */
static void test_relative(void **state)
{
    char *path = test_path(*state, "pid");
    char *before = getcwd(NULL, 0);
    struct pid_file file;
    struct error error = {""};
    struct stat st;

    assert_int_equal(chdir(*state), 0);
    assert_int_equal(pid_file_create(&file, "pid", &error), 0);
    assert_int_equal(chdir("/"), 0);
    assert_holds_pid(path);
    pid_file_remove(&file);
    assert_int_equal(stat(path, &st), -1);
    assert_int_equal(chdir(before), 0);
    free(before);
    free(path);
}

/* Returns the error that another process gets. */
static int create_elsewhere(const char *path)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        struct pid_file file;

        _exit(-pid_file_create(&file, path, NULL));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return -WEXITSTATUS(status);
}

static void test_locked(void **state)
{
    char *path = test_path(*state, "pid");
    struct pid_file file;
    struct error error = {""};

    assert_int_equal(pid_file_create(&file, path, &error), 0);
    assert_int_equal(create_elsewhere(path), -EBUSY);
    assert_holds_pid(path);
    pid_file_remove(&file);
    assert_int_equal(create_elsewhere(path), 0);
    free(path);
}

static void test_replaced_is_not_removed(void **state)
{
    char *path = test_path(*state, "pid");
    struct pid_file file;
    struct error error = {""};
    struct stat st;

    assert_int_equal(pid_file_create(&file, path, &error), 0);
    assert_int_equal(unlink(path), 0);
    test_file_write(path, "other\n", 6);
    pid_file_remove(&file);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 6);
    free(path);
}

static void test_no_regular_file(void **state)
{
    char *path = test_path(*state, "fifo");
    struct pid_file file;
    struct error error = {""};

    assert_int_equal(mkfifo(path, 0600), 0);
    assert_true(pid_file_create(&file, path, &error) < 0);
    assert_non_null(strstr(error.text, path));
    pid_file_remove(&file);
    assert_true(pid_file_create(&file, *state, &error) < 0);
    pid_file_remove(&file);
    free(path);
}

/* Whatever fails is told, or does not matter; and the file can be made afterwards. */
static void test_every_call_fails(void **state)
{
    char *path = test_path(*state, "pid");
    unsigned failed = 0;

    fault_install();
    for (unsigned k = 1;; k++) {
        struct pid_file file;
        struct error error = {""};
        int err;

        fault_arm(&(struct fault_plan){.calls = FAULT_FILE, .nth = k, .error = EIO});
        err = pid_file_create(&file, path, &error);
        if (!fault_fired()) {
            assert_int_equal(err, 0);
            pid_file_remove(&file);
            break;
        }
        fault_arm(&(struct fault_plan){0});
        if (err < 0) {
            failed++;
            assert_non_null(strstr(error.text, path));
            assert_null(file.path);
        } else {
            assert_holds_pid(path);
        }
        pid_file_remove(&file);
    }
    fault_remove();
    assert_true(failed >= 5);
    free(path);
}

static void test_interrupted_and_short_writes(void **state)
{
    char *path = test_path(*state, "pid");
    struct pid_file file;
    struct error error = {""};

    fault_install();
    fault_arm(&(struct fault_plan){.calls = FAULT_PWRITEV, .nth = 1, .error = EINTR});
    assert_int_equal(pid_file_create(&file, path, &error), 0);
    assert_true(fault_fired());
    assert_holds_pid(path);
    pid_file_remove(&file);

    fault_arm(&(struct fault_plan){.calls = FAULT_PWRITEV, .nth = 1, .short_to = 1});
    assert_int_equal(pid_file_create(&file, path, &error), -ENOSPC);
    assert_true(fault_fired());
    fault_remove();
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create_and_remove, setup, teardown),
        cmocka_unit_test_setup_teardown(test_relative, setup, teardown),
        cmocka_unit_test_setup_teardown(test_locked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_replaced_is_not_removed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_regular_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_call_fails, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interrupted_and_short_writes, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
