/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages of clients. A script that cannot be read ends the test program. */
#include "tests/dialogue/message.h"

#include "base/bytes.h"
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>

#define WORDS_MAX 16

void message_free(struct message *m)
{
    free(m->data);
    *m = (struct message){0};
}

static uint8_t *extend(struct message *m, size_t length)
{
    if (m->length + length > m->room) {
        m->room = 2 * (m->length + length) + 64;
        m->data = realloc(m->data, m->room);
        if (!m->data)
            test_die("out of memory for a message");
    }
    m->length += length;
    return m->data + m->length - length;
}

void message_bytes(struct message *m, const void *data, size_t length)
{
    if (length > 0)
        memcpy(extend(m, length), data, length);
}

void message_fill(struct message *m, uint8_t byte, size_t length)
{
    memset(extend(m, length), byte, length);
}

void message_u16(struct message *m, uint16_t v)
{
    put_be16(extend(m, 2), v);
}

void message_u32(struct message *m, uint32_t v)
{
    put_be32(extend(m, 4), v);
}

void message_u64(struct message *m, uint64_t v)
{
    put_be64(extend(m, 8), v);
}

void message_option(struct message *m, uint32_t option, uint32_t length)
{
    message_u64(m, NBD_OPTION_MAGIC);
    message_u32(m, option);
    message_u32(m, length);
}

void message_request(struct message *m, const struct nbd_request *request)
{
    nbd_request_encode(extend(m, NBD_REQUEST_BYTES), request);
}

void message_go(struct message *m, const char *name)
{
    message_u32(m, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    message_option(m, NBD_OPT_GO, (uint32_t)strlen(name) + 6);
    message_u32(m, (uint32_t)strlen(name));
    message_bytes(m, name, strlen(name));
    message_u16(m, 0);
}

static uint32_t number_of(const char *word)
{
    char *end;
    unsigned long n = word ? strtoul(word, &end, 0) : 0;

    if (!word || *end)
        test_die("'%s' in a script is not a number", word ? word : "");
    return (uint32_t)n;
}

/* Decodes the %XX of a word in place. Returns the length. */
static size_t unescape(char *word)
{
    size_t length = 0;

    if (strcmp(word, "-") == 0)
        return 0;
    for (const char *from = word; *from; from++) {
        char digits[3] = "";

        if (*from != '%') {
            word[length++] = *from;
            continue;
        }
        memcpy(digits, from + 1, 2);
        word[length++] = (char)strtoul(digits, NULL, 16);
        from += 2;
    }
    return length;
}

static void option_with_infos(struct message *m, uint32_t option, char **words, size_t count)
{
    size_t length = unescape(words[1]), infos = count - 2;

    message_option(m, option, (uint32_t)(length + 6 + 2 * infos));
    message_u32(m, (uint32_t)length);
    message_bytes(m, words[1], length);
    message_u16(m, (uint16_t)infos);
    for (size_t i = 2; i < count; i++)
        message_u16(m, (uint16_t)number_of(words[i]));
}

static void string(struct message *m, char *word)
{
    size_t length = unescape(word);

    message_u32(m, (uint32_t)length);
    message_bytes(m, word, length);
}

/* An export's name and queries; the length is known at the end. */
static void option_with_queries(struct message *m, uint32_t option, char **words, size_t count)
{
    size_t start;

    message_option(m, option, 0);
    start = m->length;
    string(m, words[1]);
    message_u32(m, (uint32_t)count - 2);
    for (size_t i = 2; i < count; i++)
        string(m, words[i]);
    put_be32(m->data + start - 4, (uint32_t)(m->length - start));
}

static void hex_bytes(struct message *m, const char *digits)
{
    for (; digits[0] && digits[1]; digits += 2) {
        char pair[3] = {digits[0], digits[1], '\0'};

        *extend(m, 1) = (uint8_t)strtoul(pair, NULL, 16);
    }
}

static void export_name(struct message *m, char *word)
{
    size_t length = unescape(word);

    message_option(m, NBD_OPT_EXPORT_NAME, (uint32_t)length);
    message_bytes(m, word, length);
}

/* An option that takes no data. */
static bool plain_option(struct message *m, const char *verb)
{
    static const struct {
        const char *verb;
        uint32_t option;
    } plain[] = {
        {"list", NBD_OPT_LIST},
        {"abort", NBD_OPT_ABORT},
        {"structured", NBD_OPT_STRUCTURED_REPLY},
        {"extended", NBD_OPT_EXTENDED_HEADERS},
    };

    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++) {
        if (strcmp(verb, plain[i].verb) == 0) {
            message_option(m, plain[i].option, 0);
            return true;
        }
    }
    return false;
}

static void statement(struct message *m, char **words, size_t count)
{
    const char *verb = words[0];

    if (plain_option(m, verb))
        return;
    if (strcmp(verb, "flags") == 0)
        message_u32(m, number_of(words[1]));
    else if (strcmp(verb, "option") == 0)
        message_option(m, number_of(words[1]), count > 2 ? number_of(words[2]) : 0);
    else if (strcmp(verb, "name") == 0 && count == 2)
        export_name(m, words[1]);
    else if (strcmp(verb, "listmeta") == 0 && count >= 2)
        option_with_queries(m, NBD_OPT_LIST_META_CONTEXT, words, count);
    else if (strcmp(verb, "set") == 0 && count >= 2)
        option_with_queries(m, NBD_OPT_SET_META_CONTEXT, words, count);
    else if (strcmp(verb, "info") == 0 && count >= 2)
        option_with_infos(m, NBD_OPT_INFO, words, count);
    else if (strcmp(verb, "go") == 0 && count >= 2)
        option_with_infos(m, NBD_OPT_GO, words, count);
    else if (strcmp(verb, "fill") == 0 && count == 3)
        message_fill(m, (uint8_t)number_of(words[2]), number_of(words[1]));
    else if (strcmp(verb, "hex") == 0 && count == 2)
        hex_bytes(m, words[1]);
    else
        test_die("a script has the unknown statement '%s'", verb);
}

void message_script(struct message *m, const char *script)
{
    char *text = strdup(script), *next = text, *part;

    if (!text)
        test_die("out of memory for a script");
    while ((part = strsep(&next, ";"))) {
        char *words[WORDS_MAX + 1] = {NULL}, *word;
        size_t count = 0;

        while ((word = strsep(&part, " "))) {
            if (*word && count < WORDS_MAX)
                words[count++] = word;
        }
        if (count > 0)
            statement(m, words, count);
    }
    free(text);
}
