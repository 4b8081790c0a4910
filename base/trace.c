/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Trace points: the switches, and one line of text an event: time, point, text.
 *
 * The output stays open until the program ends.  A configuration is worked out in a copy of the
 * switches and takes effect only when all of it was good.
 */
#include "base/trace.h"

#include "base/log.h"
#include "base/options.h"
#include "base/sys.h"

#include <ctype.h>
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES 1024
#define PATTERN_MAX 256 /* far longer than any name */

bool trace_on[TRACE_POINT_COUNT];

/* NULL: stderr. */
static FILE *trace_file;

static const struct {
    const char *name;
    const char *help;
} points[] = {
#define TRACE_POINT(name, help) {#name, help},
#include "base/trace_points.h"
#undef TRACE_POINT
};

struct trace_settings {
    char *enable;
    char *events;
    char *file;
};

static const struct option_row trace_rows[] = {
    {"enable", OPTION_STRING, offsetof(struct trace_settings, enable), NULL,
     "pattern of the trace points to switch on"},
    {"events", OPTION_STRING, offsetof(struct trace_settings, events), NULL,
     "file with a pattern a line"},
    {"file", OPTION_STRING, offsetof(struct trace_settings, file), NULL,
     "where trace lines are appended"},
    {NULL},
};

void trace_write(enum trace_point point, const char *format, ...)
{
    char text[LINE_MAX_BYTES];
    char line[LINE_MAX_BYTES];
    int saved_errno = errno;
    int64_t now_us = sys->realtime_ns() / 1000;
    FILE *out = trace_file ? trace_file : stderr;
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    error_printable(line, sizeof(line), text, strlen(text));
    fprintf(out, "%" PRId64 ".%06" PRId64 " %s %s\n", now_us / 1000000, now_us % 1000000,
            points[point].name, line);
    errno = saved_errno;
}

void trace_list(FILE *out)
{
    for (int i = 0; i < TRACE_POINT_COUNT; i++)
        fprintf(out, "%-20s %s\n", points[i].name, points[i].help);
}

/* One that matches nothing costs a trace, not the service: it is only warned about. */
static void enable_pattern(bool *on, const char *pattern, const char *where)
{
    char name[PATTERN_MAX];
    bool found = false;

    for (int i = 0; strlen(pattern) < PATTERN_MAX && i < TRACE_POINT_COUNT; i++) {
        if (fnmatch(pattern, points[i].name, 0) == 0)
            on[i] = found = true;
    }
    if (!found)
        log_warning("warning: %sno trace point matches '%s'; '-T help' lists them", where,
                    error_escape(name, sizeof(name), pattern, strlen(pattern)));
}

/* A pattern in line `number` of an events file. */
static void enable_event(bool *on, const char *pattern, const char *path, int number)
{
    char where[256], name[200];

    snprintf(where, sizeof(where), "line %d of '%s': ", number,
             error_escape(name, sizeof(name), path, strlen(path)));
    enable_pattern(on, pattern, where);
}

/* The pattern in a line of an events file, without blanks and comment; "" when there is none. */
static char *line_pattern(char *line)
{
    char *end;

    line[strcspn(line, "#")] = '\0';
    while (isspace((unsigned char)*line))
        line++;
    end = line + strlen(line);
    while (end > line && isspace((unsigned char)end[-1]))
        end--;
    *end = '\0';
    return line;
}

static int open_stream(const char *path, int flags, const char *mode, FILE **ret,
                       struct error *error)
{
    FILE *stream;
    int fd;

    do
        fd = sys->openat(AT_FDCWD, path, flags | O_CLOEXEC | O_NOCTTY, 0644);
    while (fd == -EINTR);
    if (fd < 0)
        return error_set_errno(error, -fd, "Cannot open the trace file '%s'", path);
    stream = fdopen(fd, mode);
    if (!stream) {
        sys->close(fd);
        return error_set(error, ENOMEM, "Out of memory opening the trace file '%s'", path);
    }
    *ret = stream;
    return 0;
}

static int enable_events(bool *on, const char *path, struct error *error)
{
    char line[PATTERN_MAX + 2];
    FILE *stream;
    int number = 0;
    int r = open_stream(path, O_RDONLY, "r", &stream, error);

    if (r < 0)
        return r;
    while (r == 0 && fgets(line, sizeof(line), stream)) {
        char *pattern;

        number++;
        if (!strchr(line, '\n') && !feof(stream)) {
            r = error_set(error, EINVAL, "Line %d of '%s' is too long or has a NUL byte", number,
                          path);
            break;
        }
        pattern = line_pattern(line);
        if (*pattern)
            enable_event(on, pattern, path, number);
    }
    if (r == 0 && ferror(stream))
        r = error_set_errno(error, errno, "Cannot read the trace events in '%s'", path);
    fclose(stream);
    return r;
}

static int apply(const struct trace_settings *settings, struct error *error)
{
    bool on[TRACE_POINT_COUNT];
    FILE *stream;
    int r = 0;

    memcpy(on, trace_on, sizeof(on));
    if (settings->enable)
        enable_pattern(on, settings->enable, "");
    if (settings->events)
        r = enable_events(on, settings->events, error);
    if (r == 0 && settings->file) {
        r = open_stream(settings->file, O_WRONLY | O_CREAT | O_APPEND, "a", &stream, error);
        if (r == 0) {
            setvbuf(stream, NULL, _IOLBF, 0);
            if (trace_file)
                fclose(trace_file);
            trace_file = stream;
        }
    }
    if (r == 0)
        memcpy(trace_on, on, sizeof(on));
    return r;
}

int trace_configure(const char *argument, struct error *error)
{
    struct trace_settings settings = {0};
    json_t *tree;
    int r = options_parse(argument, "enable", &tree, error);

    if (r == 0) {
        r = options_take(tree, trace_rows, &settings, "-T", error);
        if (r == 0)
            r = options_finish(tree, trace_rows, "-T", error);
        json_decref(tree);
    }
    if (r == 0)
        r = apply(&settings, error);
    options_release(trace_rows, &settings);
    return r;
}
