/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages to the operator, on stderr or in the journal, one line each. */
#ifndef EVNBD_BASE_LOG_H
#define EVNBD_BASE_LOG_H

#include <stdarg.h>
#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/*
 * `program` (kept by reference) goes before each line on stderr: "evnbd: text".  Lines above
 * `level` are dropped; the default before log_init is LOG_LEVEL_WARNING.  When stderr is the
 * journal's stream (JOURNAL_STREAM names its device and inode) lines carry a "<N>" priority prefix
 * instead of the program name, as sd-daemon(3) defines.
 */
void log_init(const char *program, enum log_level level);
bool log_enabled(enum log_level level);

/* One line without a newline at the end. Control bytes in the result are made printable. */
__attribute__((format(printf, 1, 2))) void log_error(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_warning(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_info(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_debug(const char *format, ...);
/* The same, with its level and arguments as values. */
__attribute__((format(printf, 2, 0))) void log_line(enum log_level level, const char *format,
                                                    va_list args);

#endif
