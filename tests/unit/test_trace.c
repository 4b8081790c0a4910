/* SPDX-License-Identifier: BSD-3-Clause */
/* Trace points: which are switched on by what, and the lines that they write. */
#include "base/trace.h"

#include "base/checked.h"
#include "base/sys.h"
#include "tests/support/support.h"

#include <errno.h>
#include <fnmatch.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char *dir;

static int setup(void **state)
{
    dir = test_dir_make();
    memset(trace_on, 0, sizeof(trace_on));
    return 0;
}

static int teardown(void **state)
{
    test_dir_remove(dir);
    sys = &sys_posix;
    return 0;
}

static int64_t fixed_time(void)
{
    return INT64_C(1700000000) * 1000000000 + 42007999;
}

static const char *const names[] = {
#define TRACE_POINT(name, help) #name,
#include "base/trace_points.h"
#undef TRACE_POINT
};

/* Checks that exactly the points that match one of the patterns are on; "" matches none. */
static void assert_on(const char *pattern, const char *other)
{
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        bool wanted = fnmatch(pattern, names[i], 0) == 0 || fnmatch(other, names[i], 0) == 0;

        if (trace_on[i] != wanted)
            fail_msg("point %s is %s", names[i], wanted ? "off" : "on");
    }
}

static void configure(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void configure(const char *format, ...)
{
    struct error error = {.text = ""};
    char argument[512];
    va_list args;

    va_start(args, format);
    vsnprintf(argument, sizeof(argument), format, args);
    va_end(args);
    if (trace_configure(argument, &error) != 0)
        fail_msg("-T '%s': %s", argument, error.text);
}

/* Runs first, while lines still go to stderr. */
static void test_stderr(void **state)
{
    char *path = test_path(dir, "stderr");
    int copy = dup(STDERR_FILENO);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    struct sys clock = sys_posix;
    uint8_t *data;
    size_t size;

    clock.realtime_ns = fixed_time;
    sys = &clock;
    assert_true(copy >= 0 && fd >= 0);
    dup2(fd, STDERR_FILENO);
    configure("nbd_request");
    errno = EDOM;
    TRACE(nbd_request, "offset %d", 512);
    TRACE(nbd_reply, "off");
    assert_int_equal(errno, EDOM);
    dup2(copy, STDERR_FILENO);
    close(copy);
    close(fd);
    data = test_file_read(path, &size);
    assert_int_equal(size, strlen("1700000000.042007 nbd_request offset 512\n"));
    assert_memory_equal(data, "1700000000.042007 nbd_request offset 512\n", size);
    free(data);
    free(path);
}

static void test_patterns(void **state)
{
    assert_on("", "");
    configure("nbd_*");
    assert_on("nbd_*", "");
    configure("enable=block_[rw]*");
    assert_on("nbd_*", "block_[rw]*");
    memset(trace_on, 0, sizeof(trace_on));
    configure("file_io");
    assert_on("file_io", "");
    configure("*");
    assert_on("*", "");
}

static void test_events(void **state)
{
    static const char text[] =
        "# chosen\n\n  nbd_accept  \nblock_* # all of these\n\t\r\n#\nfile_io";
    char *path = test_path(dir, "events");

    test_file_write(path, text, strlen(text));
    configure("events=%s", path);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        bool wanted = strcmp(names[i], "nbd_accept") == 0 || strcmp(names[i], "file_io") == 0 ||
                      strncmp(names[i], "block_", 6) == 0;

        assert_int_equal(trace_on[i], wanted);
    }
    memset(trace_on, 0, sizeof(trace_on));
    configure("qcow2_free,events=%s", path);
    assert_true(trace_on[TRACE_qcow2_free] && trace_on[TRACE_nbd_accept]);
    assert_false(trace_on[TRACE_qcow2_alloc]);
    test_file_write(path, "", 0);
    configure("events=%s", path);
    free(path);
}

static void test_file(void **state)
{
    char *path = test_path(dir, "trace,file");
    struct sys clock = sys_posix;
    char *long_text = calloc(1, 5000);
    uint8_t *data;
    size_t size;

    clock.realtime_ns = fixed_time;
    sys = &clock;
    test_file_write(path, "before\n", 7);
    configure("nbd_*,file=%s/trace,,file", dir);
    TRACE(nbd_close, "reason '%s'", "a\nb");
    data = test_file_read(path, &size);
    assert_string_equal((data[size] = 0, (char *)data),
                        "before\n1700000000.042007 nbd_close reason 'a\\x0ab'\n");
    free(data);
    /* A second file takes over, a long text is cut. */
    configure("file=%s/second", dir);
    free(path);
    path = test_path(dir, "second");
    assert_non_null(long_text);
    memset(long_text, 'y', 4999);
    TRACE(nbd_close, "%s", long_text);
    data = test_file_read(path, &size);
    assert_true(size > 500 && size < 2000);
    assert_int_equal(data[size - 1], '\n');
    free(data);
    free(long_text);
    free(path);
}

static void test_refused(void **state)
{
    static const struct {
        const char *argument;
        int result;
        const char *text;
    } rows[] = {
        {"nbd_*,evnts=/x", -EINVAL, "'events'"},
        {"nbd_*,block_*", -EINVAL, "'block_*'"},
        {"enable=a,enable=b", -EINVAL, "twice"},
        {"nbd_*,file", -EINVAL, "'file'"},
        {"nbd_*,file.x=1", -EINVAL, "'file'"},
        {"nbd_*,events=/nonexistent/events", -ENOENT, "'/nonexistent/events'"},
        {"nbd_*,file=/nonexistent/trace", -ENOENT, "'/nonexistent/trace'"},
        {"nbd_*,events=/", -EISDIR, "'/'"},
        {"nbd_*,file=/", -EISDIR, "'/'"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error error = {.text = ""};
        int r = trace_configure(rows[i].argument, &error);

        if (r != rows[i].result || !strstr(error.text, rows[i].text))
            fail_msg("-T '%s' gives %d: %s", rows[i].argument, r, error.text);
        assert_on("", "");
        assert_int_equal(trace_configure(rows[i].argument, NULL), rows[i].result);
    }
}

/* What a configuration that succeeds says on stderr; freed by the caller. */
static char *warnings_of(const char *argument)
{
    char *path = test_path(dir, "warnings"), *text;
    int copy = dup(STDERR_FILENO);
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    size_t size;
    int r;

    assert_true(copy >= 0 && fd >= 0);
    dup2(fd, STDERR_FILENO);
    r = trace_configure(argument, NULL);
    dup2(copy, STDERR_FILENO);
    close(copy);
    close(fd);
    assert_int_equal(r, 0);
    text = (char *)test_file_read(path, &size);
    text[size] = '\0';
    free(path);
    return text;
}

/* Patterns without a point cost a warning and nothing else. */
static void test_unmatched(void **state)
{
    static const struct {
        const char *argument, *text;
    } rows[] = {
        {"nosuch", "warning: no trace point matches 'nosuch'; '-T help' lists them"},
        {"nbd", "no trace point matches 'nbd'"},
        {"enable=", "no trace point matches ''"},
        {"a\nb", "no trace point matches 'a\\x0ab'"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        char *text = warnings_of(rows[i].argument);

        if (!strstr(text, rows[i].text))
            fail_msg("-T '%s' says: %s", rows[i].argument, text);
        assert_on("", "");
        free(text);
    }
}

static void test_huge_pattern(void **state)
{
    char *pattern = malloc(100001), *text;

    assert_non_null(pattern);
    memset(pattern, '*', 100000);
    pattern[100000] = '\0';
    text = warnings_of(pattern);
    assert_non_null(strstr(text, "no trace point matches '***"));
    assert_on("", "");
    free(text);
    free(pattern);
}

static void test_unmatched_events(void **state)
{
    static const char data[] = "nbd_*\nnosuch\n\xff\xfe";
    char *path = test_path(dir, "events"), *text;
    char argument[512];

    test_file_write(path, data, strlen(data));
    snprintf(argument, sizeof(argument), "events=%s", path);
    text = warnings_of(argument);
    assert_non_null(strstr(text, "line 2 of '"));
    assert_non_null(strstr(text, "no trace point matches 'nosuch'"));
    assert_non_null(strstr(text, "line 3 of '"));
    assert_non_null(strstr(text, "no trace point matches '\\xff\\xfe'"));
    assert_on("nbd_*", "");
    free(text);
    free(path);
}

static void test_bad_events(void **state)
{
    static const struct {
        const char *data;
        size_t size;
        const char *text;
    } rows[] = {
        {"nbd_*\0\nblock_*\n", 15, "Line 1 of"},
        {"nbd_*\nblock_*\0\n", 15, "Line 2 of"},
    };
    char *path = test_path(dir, "events");
    char argument[512];
    char blob[5000];

    snprintf(argument, sizeof(argument), "events=%s", path);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error error = {.text = ""};

        test_file_write(path, rows[i].data, rows[i].size);
        assert_int_equal(trace_configure(argument, &error), -EINVAL);
        if (!strstr(error.text, rows[i].text))
            fail_msg("row %zu: %s", i, error.text);
        assert_on("", "");
    }
    memset(blob, '*', sizeof(blob));
    test_file_write(path, blob, sizeof(blob));
    assert_int_equal(trace_configure(argument, NULL), -EINVAL);
    assert_on("", "");
    free(path);
}

static int interrupted_opens;

static int interrupted_openat(int dirfd, const char *path, int flags, mode_t mode)
{
    return interrupted_opens-- > 0 ? -EINTR : sys_posix.openat(dirfd, path, flags, mode);
}

static void test_interrupted_open(void **state)
{
    struct sys interrupted = sys_posix;

    interrupted.openat = interrupted_openat;
    sys = &interrupted;
    interrupted_opens = 3;
    configure("file=%s/trace", dir);
    assert_int_equal(interrupted_opens, -1);
}

static void test_list(void **state)
{
    char *path = test_path(dir, "list");
    FILE *out = fopen(path, "w");
    size_t lines = 0;
    size_t size;
    char *data;

    assert_non_null(out);
    trace_list(out);
    fclose(out);
    data = (char *)test_file_read(path, &size);
    data[size] = '\0';
    for (size_t i = 0; i < size; i++)
        lines += data[i] == '\n';
    assert_int_equal(lines, ARRAY_SIZE(names));
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        assert_non_null(strstr(data, names[i]));
    assert_non_null(strstr(data, "a request was received"));
    free(data);
    free(path);
}

int main(void)
{
#define WITH_DIR(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_DIR(test_stderr),     WITH_DIR(test_patterns),
        WITH_DIR(test_events),     WITH_DIR(test_file),
        WITH_DIR(test_refused),    WITH_DIR(test_huge_pattern),
        WITH_DIR(test_unmatched),  WITH_DIR(test_unmatched_events),
        WITH_DIR(test_bad_events), WITH_DIR(test_interrupted_open),
        WITH_DIR(test_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
