/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages of servers. A script that cannot be read ends the test program. */
#include "tests/dialogue/answers.h"

#include "base/bytes.h"
#include "base/error.h"
#include "tests/support/support.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORDS_MAX 8

/* ---- Scripts ---- */

struct statement {
    char *words[WORDS_MAX + 1];
    size_t count;
};

static uint64_t number(const struct statement *s, size_t i)
{
    char *end;
    uint64_t n;

    if (i >= s->count)
        test_die("'%s' in a script lacks its number %zu", s->words[0], i);
    n = strtoull(s->words[i], &end, 0);
    if (*end)
        test_die("'%s' in a script is not a number", s->words[i]);
    return n;
}

/* Appends a word with its %XX decoded; none is empty. */
static void put_text(struct message *m, const struct statement *s, size_t i)
{
    const char *from = i < s->count && strcmp(s->words[i], "-") != 0 ? s->words[i] : "";

    for (; *from; from++) {
        char digits[3] = "";

        if (*from == '%') {
            memcpy(digits, from + 1, 2);
            message_fill(m, (uint8_t)strtoul(digits, NULL, 16), 1);
            from += 2;
        } else {
            message_bytes(m, from, 1);
        }
    }
}

static void put_reply(struct message *m, uint32_t option, uint32_t type, const struct message *data)
{
    message_u64(m, NBD_OPTION_REPLY_MAGIC);
    message_u32(m, option);
    message_u32(m, type);
    message_u32(m, (uint32_t)data->length);
    message_bytes(m, data->data, data->length);
}

static void greeting(struct message *m, const struct statement *s)
{
    message_u64(m, NBD_MAGIC);
    message_u64(m, NBD_OPTION_MAGIC);
    message_u16(m, (uint16_t)number(s, 1));
}

static void oldstyle(struct message *m, const struct statement *s)
{
    message_u64(m, NBD_MAGIC);
    message_u64(m, NBD_OLDSTYLE_MAGIC);
    message_u64(m, number(s, 1));
    message_u32(m, (uint32_t)number(s, 2));
    message_fill(m, 0, 124);
}

static void default_export(struct message *m, const struct statement *s)
{
    message_u64(m, number(s, 1));
    message_u16(m, (uint16_t)number(s, 2));
    if (s->count > 3)
        message_fill(m, 0, number(s, 3));
}

static void head(struct message *m, const struct statement *s)
{
    message_u64(m, NBD_OPTION_REPLY_MAGIC);
    for (size_t i = 1; i <= 3; i++)
        message_u32(m, (uint32_t)number(s, i));
}

static void ack(struct message *m, const struct statement *s)
{
    put_reply(m, (uint32_t)number(s, 1), NBD_REP_ACK, &(struct message){0});
}

static void error_reply(struct message *m, const struct statement *s)
{
    struct message data = {0};

    put_text(&data, s, 3);
    put_reply(m, (uint32_t)number(s, 1), NBD_REPLY_ERROR_BIT + (uint32_t)number(s, 2), &data);
    message_free(&data);
}

static void server(struct message *m, const struct statement *s)
{
    struct message name = {0}, data = {0};

    put_text(&name, s, 1);
    message_u32(&data, (uint32_t)name.length);
    message_bytes(&data, name.data, name.length);
    put_text(&data, s, 2);
    put_reply(m, NBD_OPT_LIST, NBD_REP_SERVER, &data);
    message_free(&name);
    message_free(&data);
}

static void export_info(struct message *m, const struct statement *s)
{
    struct message data = {0};

    message_u16(&data, NBD_INFO_EXPORT);
    message_u64(&data, number(s, 1));
    message_u16(&data, (uint16_t)number(s, 2));
    put_reply(m, NBD_OPT_INFO, NBD_REP_INFO, &data);
    message_free(&data);
}

static void sizes_info(struct message *m, const struct statement *s)
{
    struct message data = {0};

    message_u16(&data, NBD_INFO_BLOCK_SIZE);
    for (size_t i = 1; i <= 3; i++)
        message_u32(&data, (uint32_t)number(s, i));
    put_reply(m, NBD_OPT_INFO, NBD_REP_INFO, &data);
    message_free(&data);
}

static void text_info(struct message *m, const struct statement *s)
{
    struct message data = {0};

    message_u16(&data, (uint16_t)number(s, 1));
    put_text(&data, s, 2);
    put_reply(m, NBD_OPT_INFO, NBD_REP_INFO, &data);
    message_free(&data);
}

static void context(struct message *m, const struct statement *s)
{
    struct message data = {0};

    message_u32(&data, (uint32_t)number(s, 1));
    put_text(&data, s, 2);
    put_reply(m, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, &data);
    message_free(&data);
}

static void fill(struct message *m, const struct statement *s)
{
    message_fill(m, (uint8_t)number(s, 2), number(s, 1));
}

static void bytes(struct message *m, const struct statement *s)
{
    put_text(m, s, 1);
}

static const struct verb {
    const char *name;
    void (*put)(struct message *m, const struct statement *s);
} verbs[] = {
    {"greeting", greeting},
    {"oldstyle", oldstyle},
    {"default", default_export},
    {"head", head},
    {"ack", ack},
    {"error", error_reply},
    {"server", server},
    {"export", export_info},
    {"sizes", sizes_info},
    {"text", text_info},
    {"context", context},
    {"fill", fill},
    {"bytes", bytes},
};

static void put_statement(struct message *m, const struct statement *s)
{
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
        if (strcmp(verbs[i].name, s->words[0]) == 0) {
            verbs[i].put(m, s);
            return;
        }
    }
    test_die("a script has the unknown statement '%s'", s->words[0]);
}

void answers_script(struct message *m, const char *script)
{
    char *text = strdup(script), *next = text, *part;

    if (!text)
        test_die("out of memory for a script");
    while ((part = strsep(&next, ";"))) {
        struct statement s = {.count = 0};
        char *word;

        while ((word = strsep(&part, " "))) {
            if (*word && s.count < WORDS_MAX)
                s.words[s.count++] = word;
        }
        if (s.count > 0)
            put_statement(m, &s);
    }
    free(text);
}

/* ---- Texts ---- */

static FILE *text_open(char **ret, size_t *ret_length)
{
    FILE *out = open_memstream(ret, ret_length);

    if (!out)
        test_die("out of memory for a text");
    return out;
}

static void print_bytes(FILE *out, const void *data, size_t length)
{
    char shown[4 * NBD_STRING_MAX + 1];

    fprintf(out, "'%s'", error_escape(shown, sizeof(shown), data, length));
}

static void print_named(FILE *out, struct byte_reader *data)
{
    uint32_t length = byte_reader_be32(data);
    const uint8_t *name = byte_reader_take(data, length);

    if (name)
        print_bytes(out, name, length);
}

static void print_info(FILE *out, struct byte_reader *data)
{
    unsigned count;

    print_named(out, data);
    count = byte_reader_be16(data);
    while (count-- > 0 && !data->failed)
        fprintf(out, " %u", byte_reader_be16(data));
}

static void print_option(FILE *out, struct byte_reader *said)
{
    uint64_t magic = byte_reader_be64(said);
    uint32_t option = byte_reader_be32(said), length = byte_reader_be32(said);
    const uint8_t *data = byte_reader_take(said, length);
    struct byte_reader inside;

    fprintf(out, "%s", nbd_option_name(option));
    if (magic != NBD_OPTION_MAGIC || !data) {
        fprintf(out, "\nBAD");
        said->failed = true;
        return;
    }
    inside = byte_reader_of(data, length);
    if (option == NBD_OPT_INFO) {
        fputc(' ', out);
        print_info(out, &inside);
    } else if (option == NBD_OPT_LIST_META_CONTEXT) {
        fputc(' ', out);
        print_named(out, &inside);
        fprintf(out, " %" PRIu32, byte_reader_be32(&inside));
    }
    if (inside.failed || inside.left > 0)
        fprintf(out, "\nBAD");
}

static bool is_request(const struct byte_reader *said)
{
    return said->left == NBD_REQUEST_BYTES && get_be32(said->data) == NBD_REQUEST_MAGIC;
}

char *asked_text(const uint8_t *said, size_t length)
{
    struct byte_reader reader = byte_reader_of(said, length);
    char *text;
    size_t text_length;
    FILE *out = text_open(&text, &text_length);

    if (length > 0 && !is_request(&reader))
        fprintf(out, "flags %" PRIu32, byte_reader_be32(&reader));
    while (reader.left > 0 && !reader.failed) {
        if (reader.left < length)
            fprintf(out, "; ");
        if (is_request(&reader)) {
            fprintf(out, "request %s", nbd_command_name(get_be16(reader.data + 6)));
            byte_reader_skip(&reader, NBD_REQUEST_BYTES);
        } else {
            print_option(out, &reader);
        }
    }
    fclose(out);
    return text;
}

static void print_text(FILE *out, const char *before, const struct nbd_text *text)
{
    if (!text->data)
        return;
    fprintf(out, " %s", before);
    print_bytes(out, text->data, text->length);
}

static void print_export(FILE *out, const struct nbd_remote_export *e)
{
    fprintf(out, ";");
    print_text(out, "", &e->name);
    print_text(out, "", &e->description);
    print_text(out, "as ", &e->canonical_name);
    print_text(out, "told ", &e->info_description);
    if (e->examined)
        fprintf(out, " %" PRIu64 " 0x%x", e->size, e->flags);
    if (e->block_min)
        fprintf(out, " %" PRIu32 "/%" PRIu32 "/%" PRIu32, e->block_min, e->block_preferred,
                e->block_max);
    for (size_t i = 0; i < e->context_count; i++)
        fprintf(out, "%s%s%s", i == 0 ? " {" : " ", e->contexts[i].data,
                i + 1 == e->context_count ? "}" : "");
    if (e->problem)
        fprintf(out, " problem (%s)", e->problem);
}

char *remote_text(const struct nbd_remote *remote)
{
    static const char *const protocols[] = {"oldstyle", "newstyle", "fixed"};
    char *text;
    size_t length;
    FILE *out = text_open(&text, &length);

    fprintf(out, "%s%s%s", protocols[remote->protocol], remote->extended_headers ? " extended" : "",
            remote->structured_replies ? " structured" : "");
    for (size_t i = 0; i < remote->export_count; i++)
        print_export(out, &remote->exports[i]);
    fclose(out);
    return text;
}
