/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Trace points: named events, off by default, switched on by glob (`-T 'nbd_*'`).
 *
 * All trace points of the program are listed in base/trace_points.h as one X-macro row each, so
 * that
 * `-T help` can print them.  A point that is off costs one load and one branch:
 *
 *     TRACE(nbd_request, "cookie %" PRIx64 " offset %" PRIu64, cookie, offset);
 */
#ifndef EVNBD_BASE_TRACE_H
#define EVNBD_BASE_TRACE_H

#include "base/error.h"

#include <stdbool.h>
#include <stdio.h>

enum trace_point {
#define TRACE_POINT(name, help) TRACE_##name,
#include "base/trace_points.h"
#undef TRACE_POINT
    TRACE_POINT_COUNT
};

extern bool trace_on[TRACE_POINT_COUNT];

#define TRACE(name, ...)                                                                           \
    do {                                                                                           \
        if (__builtin_expect(trace_on[TRACE_##name], 0))                                           \
            trace_write(TRACE_##name, __VA_ARGS__);                                                \
    } while (0)

__attribute__((format(printf, 2, 3))) void trace_write(enum trace_point point, const char *format,
                                                       ...);

/*
 * Applies one -T argument: "[[enable=]PATTERN][,events=FILE][,file=FILE]".  FILE of `events` holds
 * a pattern a line ('#' begins a comment); `file` is where trace lines go (default stderr), opened
 * for appending.  A pattern that matches no point is warned about.  Returns 0 or negative errno
 * with `error` set, and then nothing has changed.
 */
int trace_configure(const char *argument, struct error *error);

/* Prints the names of all points with their help, one a line. */
void trace_list(FILE *out);

#endif
