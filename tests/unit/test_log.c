/* SPDX-License-Identifier: BSD-3-Clause */
/* Log lines, read back from a file that stands in for stderr. */
#include "base/log.h"

#include "base/checked.h"
#include "base/sys.h"
#include "tests/support/support.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static struct {
    char *dir;
    char *path;
    int stderr_copy;
} capture;

static int capture_begin(void **state)
{
    int fd;

    capture.dir = test_dir_make();
    capture.path = test_path(capture.dir, "log");
    fd = open(capture.path, O_CREAT | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
    capture.stderr_copy = dup(STDERR_FILENO);
    if (fd < 0 || capture.stderr_copy < 0 || dup2(fd, STDERR_FILENO) < 0)
        test_die("cannot redirect stderr");
    close(fd);
    unsetenv("JOURNAL_STREAM");
    return 0;
}

static int capture_end(void **state)
{
    dup2(capture.stderr_copy, STDERR_FILENO);
    close(capture.stderr_copy);
    free(capture.path);
    test_dir_remove(capture.dir);
    unsetenv("JOURNAL_STREAM");
    return 0;
}

/* Compares all that was logged since the last call. */
static void assert_logged(const char *expected)
{
    size_t size;
    uint8_t *data = test_file_read(capture.path, &size);

    assert_int_equal(ftruncate(STDERR_FILENO, 0), 0);
    if (size != strlen(expected) || memcmp(data, expected, size) != 0)
        fail_msg("logged '%.*s' instead of '%s'", (int)size, (char *)data, expected);
    free(data);
}

static void log_at_all_levels(void)
{
    log_error("e %d", 1);
    log_warning("w %d", 2);
    log_info("i %d", 3);
    log_debug("d %d", 4);
}

/* Runs first: nothing has called log_init. */
static void test_default(void **state)
{
    char expected[256];

    log_at_all_levels();
    snprintf(expected, sizeof(expected), "%s: e 1\n%s: w 2\n", program_invocation_short_name,
             program_invocation_short_name);
    assert_logged(expected);
}

static void test_levels(void **state)
{
    static const char *const expected[] = {
        "p: e 1\n",
        "p: e 1\np: w 2\n",
        "p: e 1\np: w 2\np: i 3\n",
        "p: e 1\np: w 2\np: i 3\np: d 4\n",
    };

    for (int level = LOG_LEVEL_ERROR; level <= LOG_LEVEL_DEBUG; level++) {
        log_init("p", (enum log_level)level);
        for (int other = LOG_LEVEL_ERROR; other <= LOG_LEVEL_DEBUG; other++)
            assert_int_equal(log_enabled((enum log_level)other), other <= level);
        log_at_all_levels();
        assert_logged(expected[level]);
    }
}

static void test_one_clean_line(void **state)
{
    log_init("p", LOG_LEVEL_INFO);
    log_info("two\nlines \x1b[1m %s", "and \xff");
    assert_logged("p: two\\x0alines \\x1b[1m and \\xff\n");
    log_info("%s", "");
    assert_logged("p: \n");
}

static void test_long_line(void **state)
{
    char *text = malloc(10001);
    size_t size;
    uint8_t *data;

    assert_non_null(text);
    memset(text, 'x', 10000);
    text[10000] = '\0';
    log_init("p", LOG_LEVEL_INFO);
    log_info("%s", text);
    data = test_file_read(capture.path, &size);
    assert_true(size > 1000 && size < 10000);
    assert_memory_equal(data, "p: xxx", 6);
    assert_memory_equal(data + size - 5, "x...\n", 5);
    free(data);
    free(text);
}

static void test_errno_is_kept(void **state)
{
    log_init("p", LOG_LEVEL_INFO);
    close(STDERR_FILENO); /* writing fails */
    errno = EDOM;
    log_info("text");
    assert_int_equal(errno, EDOM);
}

static void set_journal_stream(const char *prefix, dev_t device, ino_t inode, const char *suffix)
{
    char value[128];

    snprintf(value, sizeof(value), "%s%" PRIu64 ":%" PRIu64 "%s", prefix, (uint64_t)device,
             (uint64_t)inode, suffix);
    setenv("JOURNAL_STREAM", value, 1);
}

static void test_journal(void **state)
{
    struct stat st;

    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    set_journal_stream("", st.st_dev, st.st_ino, "");
    log_init("p", LOG_LEVEL_DEBUG);
    log_at_all_levels();
    assert_logged("<3>e 1\n<4>w 2\n<6>i 3\n<7>d 4\n");
    set_journal_stream("", st.st_dev, st.st_ino + 1, "");
    log_init("p", LOG_LEVEL_ERROR);
    log_at_all_levels();
    assert_logged("p: e 1\n");
    set_journal_stream("", st.st_dev + 1, st.st_ino, "");
    log_init("p", LOG_LEVEL_ERROR);
    log_at_all_levels();
    assert_logged("p: e 1\n");
}

static void test_journal_bad_variable(void **state)
{
    static const char *const values[] = {
        "",
        ":",
        "1",
        "1:",
        ":1",
        "a:b",
        "-1:-1",
        "1:2:3",
        "99999999999999999999999:1",
        "1:99999999999999999999999",
        "000000000000000000000000000000000000000000000000001:1",
    };
    struct stat st;

    for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
        setenv("JOURNAL_STREAM", values[i], 1);
        log_init("p", LOG_LEVEL_ERROR);
        log_error("text");
        assert_logged("p: text\n");
    }
    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    set_journal_stream(" ", st.st_dev, st.st_ino, "");
    log_init("p", LOG_LEVEL_ERROR);
    log_error("text");
    assert_logged("p: text\n");
    set_journal_stream("", st.st_dev, st.st_ino, " ");
    log_init("p", LOG_LEVEL_ERROR);
    log_error("text");
    assert_logged("p: text\n");
}

static int failing_fstat(int fd, struct stat *st)
{
    return -EIO;
}

static void test_journal_stat_fails(void **state)
{
    struct sys failing = *sys;
    const struct sys *real = sys;
    struct stat st;

    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    set_journal_stream("", st.st_dev, st.st_ino, "");
    failing.fstat = failing_fstat;
    sys = &failing;
    log_init("p", LOG_LEVEL_ERROR);
    sys = real;
    log_error("text");
    assert_logged("p: text\n");
}

int main(void)
{
#define CAPTURED(test) cmocka_unit_test_setup_teardown(test, capture_begin, capture_end)
    const struct CMUnitTest tests[] = {
        CAPTURED(test_default),
        CAPTURED(test_levels),
        CAPTURED(test_one_clean_line),
        CAPTURED(test_long_line),
        CAPTURED(test_errno_is_kept),
        CAPTURED(test_journal),
        CAPTURED(test_journal_bad_variable),
        CAPTURED(test_journal_stat_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
