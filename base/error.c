/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Error texts.  A text is formatted into a local buffer first, so that the old text may be among
 * the arguments, and then copied with everything made printable: messages quote names from outside
 * and end up on terminals and in logs.
 */
#include "base/error.h"

#include "base/bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Longer than the text, so that a cut is seen by the copy, which marks it. */
#define FORMAT_MAX (2 * ERROR_TEXT_MAX)

#define SHOWN_MAX 5 /* a sequence of UTF-8, or \xNN */

/*
 * Characters that take up no room but change how their neighbors are shown: marks, embeddings,
 * overrides and isolates of direction (U+061C, U+200E, U+200F, U+202A to U+202E, U+2066 to U+2069),
 * separators of lines and paragraphs (U+2028, U+2029), and the byte order mark (U+FEFF).
 */
static bool reorders(const uint8_t *text, size_t n)
{
    if (n == 2)
        return text[0] == 0xd8 && text[1] == 0x9c;
    if (n != 3)
        return false;
    if (text[0] == 0xe2 && text[1] == 0x80)
        return text[2] == 0x8e || text[2] == 0x8f || (text[2] >= 0xa8 && text[2] <= 0xae);
    if (text[0] == 0xe2 && text[1] == 0x81)
        return text[2] >= 0xa6 && text[2] <= 0xa9;
    return text[0] == 0xef && text[1] == 0xbb && text[2] == 0xbf;
}

/* The length of the sequence at `text` that can be shown as it is, 0 when it must be escaped. */
static size_t printable_sequence(const uint8_t *text, size_t length)
{
    size_t n = bytes_utf8_sequence(text, length);

    if (n == 1 && (text[0] < 0x20 || text[0] == 0x7f))
        return 0;
    if (n == 2 && text[0] == 0xc2 && text[1] < 0xa0)
        return 0; /* the C1 controls; some terminals obey them */
    return reorders(text, n) ? 0 : n;
}

/*
 * Writes the sequence at `text` into `shown`: as it is, behind a backslash where it would end the
 * quotes or begin an escape, or as \xNN.  Returns the bytes of `text` that it took.
 */
static size_t show_sequence(char shown[SHOWN_MAX], const uint8_t *text, size_t length, bool quoted)
{
    size_t n = printable_sequence(text, length);

    if (n == 0)
        snprintf(shown, SHOWN_MAX, "\\x%02x", text[0]);
    else if (n == 1 && quoted && (text[0] == '\'' || text[0] == '\\'))
        snprintf(shown, SHOWN_MAX, "\\%c", text[0]);
    else
        snprintf(shown, SHOWN_MAX, "%.*s", (int)n, (const char *)text);
    return n ? n : 1;
}

static char *escape(char *out, size_t out_size, const uint8_t *text, size_t length, bool quoted)
{
    size_t used = 0;
    size_t safe = 0; /* where "..." still fits */

    if (out_size == 0)
        return out;
    while (length > 0) {
        char shown[SHOWN_MAX];
        size_t n = show_sequence(shown, text, length, quoted);
        size_t width = strlen(shown);

        if (width > out_size - 1 - used) {
            size_t dots = out_size - 1 - safe < 3 ? out_size - 1 - safe : 3;

            memcpy(out + safe, "...", dots);
            used = safe + dots;
            break;
        }
        memcpy(out + used, shown, width);
        used += width;
        text += n;
        length -= n;
        if (used + 3 < out_size)
            safe = used;
    }
    out[used] = '\0';
    return out;
}

char *error_escape(char *out, unsigned long out_size, const void *text, unsigned long length)
{
    return escape(out, out_size, text, length, true);
}

char *error_printable(char *out, unsigned long out_size, const void *text, unsigned long length)
{
    return escape(out, out_size, text, length, false);
}

static void set_text(struct error *error, const char *text)
{
    error_printable(error->text, sizeof(error->text), text, strlen(text));
}

int error_set(struct error *error, int err, const char *format, ...)
{
    char text[FORMAT_MAX];
    va_list args;

    if (!error)
        return -err;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    set_text(error, text);
    return -err;
}

/* Appends to a text in `size` bytes; what does not fit is dropped. */
__attribute__((format(printf, 3, 4))) static void append(char *text, size_t size,
                                                         const char *format, ...)
{
    size_t used = strlen(text);
    va_list args;

    va_start(args, format);
    vsnprintf(text + used, size - used, format, args);
    va_end(args);
}

int error_set_errno(struct error *error, int err, const char *format, ...)
{
    char text[FORMAT_MAX];
    char buffer[128];
    va_list args;

    if (!error)
        return -err;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    append(text, sizeof(text), ": %s", strerror_r(err, buffer, sizeof(buffer)));
    set_text(error, text);
    return -err;
}

void error_prefix(struct error *error, const char *format, ...)
{
    char text[FORMAT_MAX];
    va_list args;

    if (!error)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    append(text, sizeof(text), "%s", error->text);
    set_text(error, text);
}
