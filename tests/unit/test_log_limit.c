/* SPDX-License-Identifier: BSD-3-Clause */
/* Bounded logging: ten lines a second of a cause, and how many more there were. */
#include "base/log_limit.h"

#include "base/sys.h"
#include "tests/support/sim_clock.h"
#include "tests/support/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)

static struct {
    char *dir, *path;
    int stderr_copy;
} capture;

static int setup(void **state)
{
    int fd;

    capture.dir = test_dir_make();
    capture.path = test_path(capture.dir, "log");
    fd = open(capture.path, O_CREAT | O_RDWR | O_APPEND | O_CLOEXEC, 0600);
    capture.stderr_copy = dup(STDERR_FILENO);
    if (fd < 0 || dup2(fd, STDERR_FILENO) < 0)
        test_die("cannot redirect stderr");
    close(fd);
    unsetenv("JOURNAL_STREAM");
    log_init("test", LOG_LEVEL_INFO);
    sim_clock_install();
    return reactor_init(NULL);
}

static int teardown(void **state)
{
    reactor_fini();
    sim_clock_remove();
    dup2(capture.stderr_copy, STDERR_FILENO);
    close(capture.stderr_copy);
    free(capture.path);
    test_dir_remove(capture.dir);
    return 0;
}

/* Lines since the last call; the last one goes into `last`. */
static unsigned lines(char *last, size_t last_size)
{
    size_t size;
    char *data = (char *)test_file_read(capture.path, &size), *line = data;
    unsigned count = 0;

    assert_int_equal(ftruncate(STDERR_FILENO, 0), 0);
    for (char *end; (end = memchr(line, '\n', size - (size_t)(line - data))); line = end + 1) {
        snprintf(last, last_size, "%.*s", (int)(end - line), line);
        count++;
    }
    free(data);
    return count;
}

static void test_many_lines(void **state)
{
    struct log_limit limit;
    char last[100] = "";

    log_limit_init(&limit, LOG_LEVEL_INFO, "tests");
    for (int i = 0; i < 1000; i++)
        log_limited(&limit, "line %d", i);
    assert_int_equal(lines(last, sizeof(last)), LOG_LIMIT_LINES);
    assert_string_equal(last, "test: line 9");
    sim_clock_advance(SECOND);
    reactor_poll(false);
    assert_int_equal(lines(last, sizeof(last)), 1);
    assert_string_equal(last, "test: 990 more messages about tests within a second");
    /* Then it begins anew, and nothing is told of nothing. */
    log_limited(&limit, "line %s", "again");
    sim_clock_advance(SECOND);
    reactor_poll(false);
    assert_int_equal(lines(last, sizeof(last)), 1);
    assert_string_equal(last, "test: line again");
}

static void test_causes_do_not_share(void **state)
{
    struct log_limit one, two;
    char last[100];

    log_limit_init(&one, LOG_LEVEL_INFO, "one");
    log_limit_init(&two, LOG_LEVEL_WARNING, "two");
    for (int i = 0; i < 20; i++)
        log_limited(&one, "one");
    log_limited(&two, "two");
    assert_int_equal(lines(last, sizeof(last)), LOG_LIMIT_LINES + 1);
    assert_string_equal(last, "test: two");
    log_limit_end(&two);
    assert_int_equal(lines(last, sizeof(last)), 0);
    log_limit_end(&one);
    assert_int_equal(lines(last, sizeof(last)), 1);
    assert_string_equal(last, "test: 10 more messages about one within a second");
    log_limit_end(&one);
    assert_int_equal(lines(last, sizeof(last)), 0);
}

/* What is not logged at this level is not counted either, and wakes nobody. */
static void test_level(void **state)
{
    struct log_limit limit;
    char last[100];
    int64_t due;

    log_init("test", LOG_LEVEL_WARNING);
    log_limit_init(&limit, LOG_LEVEL_INFO, "tests");
    for (int i = 0; i < 20; i++)
        log_limited(&limit, "line");
    assert_false(reactor_next_timer(&due));
    log_limit_end(&limit);
    assert_int_equal(lines(last, sizeof(last)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_many_lines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_causes_do_not_share, setup, teardown),
        cmocka_unit_test_setup_teardown(test_level, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
