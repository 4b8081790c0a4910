/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages on stderr.  A line is put together in memory and written with one call, so that lines of
 * several processes on one stderr do not mix.  Failure to write is ignored: there is nobody to
 * tell. errno is kept, so that logging may stand between a failed call and the use of its errno.
 */
#include "base/log.h"

#include "base/checked.h"
#include "base/error.h"
#include "base/size.h"
#include "base/sys.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048

static struct {
    const char *program;
    enum log_level level;
    bool journal;
} state = {.program = NULL, .level = LOG_LEVEL_WARNING};

static const int journal_priority[] = {
    [LOG_LEVEL_ERROR] = 3,
    [LOG_LEVEL_WARNING] = 4,
    [LOG_LEVEL_INFO] = 6,
    [LOG_LEVEL_DEBUG] = 7,
};

/* Whether stderr is the stream that JOURNAL_STREAM ("device:inode") names. */
static bool stderr_is_journal(void)
{
    const char *text = getenv("JOURNAL_STREAM");
    const char *colon = text ? strchr(text, ':') : NULL;
    uint64_t device, inode;
    char number[24];
    struct stat st;

    if (!colon || (size_t)(colon - text) >= sizeof(number))
        return false;
    memcpy(number, text, (size_t)(colon - text));
    number[colon - text] = '\0';
    if (number_parse(number, UINT64_MAX, &device) < 0 ||
        number_parse(colon + 1, UINT64_MAX, &inode) < 0)
        return false;
    if (sys->fstat(STDERR_FILENO, &st) < 0)
        return false;
    return st.st_dev == device && st.st_ino == inode;
}

void log_init(const char *program, enum log_level level)
{
    state.program = program;
    state.level = level;
    state.journal = stderr_is_journal();
}

bool log_enabled(enum log_level level)
{
    return level <= state.level;
}

void log_line(enum log_level level, const char *format, va_list args)
{
    char text[2 * LINE_MAX_BYTES]; /* longer than the line, which marks a cut */
    char line[LINE_MAX_BYTES];
    int saved_errno = errno;
    size_t used;

    if (!log_enabled(level))
        return;
    vsnprintf(text, sizeof(text), format, args);
    if (state.journal)
        snprintf(line, sizeof(line), "<%d>", journal_priority[level]);
    else
        snprintf(line, sizeof(line),
                 "%s: ", state.program ? state.program : program_invocation_short_name);
    used = strlen(line);
    error_printable(line + used, sizeof(line) - 1 - used, text, strlen(text));
    used = strlen(line);
    line[used] = '\n';
    fwrite(line, 1, used + 1, stderr);
    errno = saved_errno;
}

#define LOG_DEFINE(name, level)                                                                    \
    void log_##name(const char *format, ...)                                                       \
    {                                                                                              \
        va_list args;                                                                              \
                                                                                                   \
        va_start(args, format);                                                                    \
        log_line(level, format, args);                                                             \
        va_end(args);                                                                              \
    }
LOG_DEFINE(error, LOG_LEVEL_ERROR)
LOG_DEFINE(warning, LOG_LEVEL_WARNING)
LOG_DEFINE(info, LOG_LEVEL_INFO)
LOG_DEFINE(debug, LOG_LEVEL_DEBUG)
