/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages whose number others decide, such as those about clients: of each cause at most
 * LOG_LIMIT_LINES are written in a second, and then one that tells how many more there were.
 */
#ifndef EVNBD_BASE_LOG_LIMIT_H
#define EVNBD_BASE_LOG_LIMIT_H

#include "base/log.h"
#include "base/reactor.h"

#define LOG_LIMIT_LINES 10

/* One for each cause; embedded. `what` completes "N more messages about ...". */
struct log_limit {
    enum log_level level;
    const char *what;
    struct reactor_timer second; /* runs from the first line until its second is over */
    unsigned written, left_out;
};

/* Needs no fini unless lines were written; then log_limit_end() before the reactor ends. */
void log_limit_init(struct log_limit *limit, enum log_level level, const char *what);

/* A line as of log_info() and its like, if the limit has one left. */
__attribute__((format(printf, 2, 3))) void log_limited(struct log_limit *limit, const char *format,
                                                       ...);

/* Ends the second now: tells what was left out. */
void log_limit_end(struct log_limit *limit);

#endif
