/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The limit counts from the first line on: a timer that runs as long as a second ends it, so that
 * what was left out is told even if nothing more happens.  A cause that is not logged at the chosen
 * level costs nothing and starts no timer.
 */
#include "base/log_limit.h"

#include <stdarg.h>

#define SECOND_NS INT64_C(1000000000)

void log_limit_init(struct log_limit *limit, enum log_level level, const char *what)
{
    *limit = (struct log_limit){.level = level, .what = what};
}

static void on_second_over(struct reactor_timer *timer)
{
    log_limit_end(container_of(timer, struct log_limit, second));
}

void log_limited(struct log_limit *limit, const char *format, ...)
{
    va_list args;

    if (!log_enabled(limit->level))
        return;
    if (limit->written == 0)
        reactor_timer_start(&limit->second, SECOND_NS, on_second_over);
    if (limit->written == LOG_LIMIT_LINES) {
        limit->left_out++;
        return;
    }
    limit->written++;
    va_start(args, format);
    log_line(limit->level, format, args);
    va_end(args);
}

__attribute__((format(printf, 2, 3))) static void tell(const struct log_limit *limit,
                                                       const char *format, ...)
{
    va_list args;

    va_start(args, format);
    log_line(limit->level, format, args);
    va_end(args);
}

void log_limit_end(struct log_limit *limit)
{
    unsigned left_out = limit->left_out;

    reactor_timer_stop(&limit->second);
    limit->written = limit->left_out = 0;
    if (left_out > 0)
        tell(limit, "%u more message%s about %s within a second", left_out,
             left_out == 1 ? "" : "s", limit->what);
}
