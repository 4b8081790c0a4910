/* SPDX-License-Identifier: BSD-3-Clause */
/* An independent reader of the server's side of the handshake. */
#include "tests/dialogue/transcript.h"

#include "base/bytes.h"
#include "base/error.h"
#include "nbd/wire.h"
#include "tests/support/support.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

struct transcript {
    FILE *out;
    struct byte_reader in;
    bool any;
};

__attribute__((format(printf, 2, 3))) static void item(struct transcript *t, const char *format,
                                                       ...)
{
    va_list args;

    if (t->any)
        fputs("; ", t->out);
    t->any = true;
    va_start(args, format);
    vfprintf(t->out, format, args);
    va_end(args);
}

static void quoted(struct transcript *t, const uint8_t *text, size_t length)
{
    char escaped[128];

    fprintf(t->out, " '%s'", error_escape(escaped, sizeof(escaped), text, length));
}

static bool printable(const uint8_t *text, size_t length)
{
    if (length == 0 || length > NBD_STRING_MAX || !bytes_are_utf8(text, length))
        return false;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < 0x20 || text[i] == 0x7f)
            return false;
    }
    return true;
}

static void server_fields(struct transcript *t, struct byte_reader *data)
{
    size_t length = byte_reader_be32(data);
    const uint8_t *name = byte_reader_take(data, length);

    if (data->failed) {
        fputs(" BAD", t->out);
        return;
    }
    quoted(t, name, length);
    if (data->left > 0)
        quoted(t, data->data, data->left);
    data->left = 0;
}

static void info_fields(struct transcript *t, struct byte_reader *data)
{
    uint16_t info = byte_reader_be16(data);

    fprintf(t->out, " %s", nbd_info_name(info));
    if (info == NBD_INFO_EXPORT) {
        fprintf(t->out, " %" PRIu64, byte_reader_be64(data));
        fprintf(t->out, " 0x%x", byte_reader_be16(data));
    } else if (info == NBD_INFO_BLOCK_SIZE) {
        for (int i = 0; i < 3; i++)
            fprintf(t->out, " %" PRIu32, byte_reader_be32(data));
    } else {
        quoted(t, data->data, data->left);
        data->left = 0;
    }
}

static void context_fields(struct transcript *t, struct byte_reader *data)
{
    fprintf(t->out, " %" PRIu32, byte_reader_be32(data));
    if (!printable(data->data, data->left))
        fputs(" BAD name", t->out);
    quoted(t, data->data, data->left);
    data->left = 0;
}

static void option_reply(struct transcript *t)
{
    uint32_t option, type, length;
    struct byte_reader data;

    byte_reader_skip(&t->in, 8);
    option = byte_reader_be32(&t->in);
    type = byte_reader_be32(&t->in);
    length = byte_reader_be32(&t->in);
    data = byte_reader_of(byte_reader_take(&t->in, length), length);
    if (t->in.failed) {
        item(t, "BAD reply cut short");
        return;
    }
    item(t, "%s %s", nbd_option_name(option), nbd_option_reply_name(type));
    if (type & NBD_REPLY_ERROR_BIT) {
        if (!printable(data.data, length))
            fputs(" BAD text", t->out);
        return;
    }
    if (type == NBD_REP_SERVER)
        server_fields(t, &data);
    else if (type == NBD_REP_INFO)
        info_fields(t, &data);
    else if (type == NBD_REP_META_CONTEXT)
        context_fields(t, &data);
    if (data.failed || data.left > 0)
        fputs(" BAD length", t->out);
}

static bool rest_is_zero(const struct byte_reader *in)
{
    return in->left == 124 && bytes_are_zero(in->data, in->left);
}

/* The size and the flags that end an EXPORT_NAME or oldstyle handshake. */
static void export_answer(struct transcript *t, const char *what, bool wide_flags)
{
    uint64_t size = byte_reader_be64(&t->in);
    uint32_t flags = wide_flags ? byte_reader_be32(&t->in) : byte_reader_be16(&t->in);

    item(t, "%s %" PRIu64 " 0x%" PRIx32, what, size, flags);
    if (rest_is_zero(&t->in))
        fputs(" zeroes", t->out);
    else if (t->in.failed || t->in.left > 0)
        fputs(" BAD length", t->out);
    t->in.left = 0;
}

static void newstyle(struct transcript *t)
{
    uint64_t magic = byte_reader_be64(&t->in), option_magic = byte_reader_be64(&t->in);
    uint16_t flags = byte_reader_be16(&t->in);

    if (t->in.failed || magic != NBD_MAGIC || option_magic != NBD_OPTION_MAGIC ||
        flags != (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
        item(t, "BAD greeting");
        return;
    }
    item(t, "greeting");
    while (t->in.left >= 8 && get_be64(t->in.data) == NBD_OPTION_REPLY_MAGIC && !t->in.failed)
        option_reply(t);
    if (t->in.left > 0)
        export_answer(t, "export", false);
}

char *transcript_of(const uint8_t *data, size_t length, bool oldstyle)
{
    struct transcript t = {.in = byte_reader_of(data, length)};
    char *text = NULL;
    size_t size;

    t.out = open_memstream(&text, &size);
    if (!t.out)
        test_die("out of memory for a transcript");
    if (!oldstyle) {
        newstyle(&t);
    } else if (length >= 16 && get_be64(data) == NBD_MAGIC &&
               get_be64(data + 8) == NBD_OLDSTYLE_MAGIC) {
        byte_reader_skip(&t.in, 16);
        export_answer(&t, "oldstyle", true);
    } else if (length > 0) {
        item(&t, "BAD greeting");
    }
    fclose(t.out);
    return text;
}
