/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Errors of the control path: open, create, check, command line.
 *
 * A function that can fail returns 0 or a negative errno.  On control paths it also takes a
 * `struct error *` (may be NULL: the caller does not want text) and fills it in the line that finds
 * the facts.  Exactly one caller prints it.  The data path returns negative errno and nothing else.
 */
#ifndef EVNBD_BASE_ERROR_H
#define EVNBD_BASE_ERROR_H

#define ERROR_TEXT_MAX 1024

struct error {
    char text[ERROR_TEXT_MAX]; /* one or more sentences without a final newline; "" when unset */
};

/*
 * Sets the text (truncated to fit; control bytes made printable) and returns -err, so that a
 * failure is one statement: `return error_set(error, EINVAL, "...")`.  `err` is a positive errno.
 */
__attribute__((format(printf, 3, 4))) int error_set(struct error *error, int err,
                                                    const char *format, ...);

/* As error_set, and appends ": " and the system's text for `err`. */
__attribute__((format(printf, 3, 4))) int error_set_errno(struct error *error, int err,
                                                          const char *format, ...);

/* Puts text before what is there already: `prefix` + what the callee said. */
__attribute__((format(printf, 2, 3))) void error_prefix(struct error *error, const char *format,
                                                        ...);

/*
 * Writes `length` bytes of `text` as printable ASCII/UTF-8 into `out` (always terminated): control
 * bytes and invalid UTF-8 become \xNN, and single quotes and backslashes get a backslash before
 * them; what does not fit ends in "...".  For names that come from outside and stand in single
 * quotes in logs or messages.  Returns `out`.
 */
char *error_escape(char *out, unsigned long out_size, const void *text, unsigned long length);

/* As error_escape, but leaves single quotes and backslashes alone: for whole sentences. */
char *error_printable(char *out, unsigned long out_size, const void *text, unsigned long length);

#endif
