/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files of pre-shared keys: every line is checked, so that a typing error is found at the start.
 *
 * The keys lie where they were parsed; what is sorted are pointers to them, so that no copies are
 * left behind.
 */
#include "tls/psk_table.h"

#include "base/bytes.h"
#include "base/secret.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the shortest good line: a name, the colon, a key. */
#define LINE_MIN (1 + 1 + 2 * PSK_KEY_MIN)

/* What is wrong with the line, or NULL and it is in *ret. */
static const char *parse_line(struct psk_key *ret, const uint8_t *line, size_t length)
{
    const uint8_t *colon = memrchr(line, ':', length);
    size_t name = colon ? (size_t)(colon - line) : 0, digits = length - name - 1;

    if (!colon || name == 0)
        return "it is not of the form NAME:KEY";
    if (name > PSK_NAME_MAX)
        return "the user name is longer than 128 bytes";
    if (!bytes_are_utf8(line, name))
        return "the user name is not UTF-8 text";
    if (digits % 2 != 0 || digits < (size_t)2 * PSK_KEY_MIN || digits > (size_t)2 * PSK_KEY_MAX)
        return "the key must have 16 to 128 hexadecimal digits, an even number of them";
    for (size_t i = 0; i < digits; i++) {
        int digit = bytes_hex_digit(colon[1 + i]);

        if (digit < 0)
            return "the key has a character that is no hexadecimal digit";
        ret->key[i / 2] = (uint8_t)(ret->key[i / 2] << 4 | digit);
    }
    memcpy(ret->name, line, name);
    ret->name[name] = 0;
    ret->name_length = name;
    ret->length = digits / 2;
    return NULL;
}

/* ---- Lines ---- */

struct lines {
    const uint8_t *text;
    size_t left;
    unsigned number; /* of the line that was given last */
};

/* The next line that should have a key. False: there is none. */
static bool next_line(struct lines *lines, const uint8_t **ret, size_t *ret_length)
{
    while (lines->left > 0) {
        const uint8_t *line = lines->text, *end = memchr(line, '\n', lines->left);
        size_t n = end ? (size_t)(end - line) : lines->left, step = end ? n + 1 : n;

        lines->text += step;
        lines->left -= step;
        lines->number++;
        if (n > 0 && line[n - 1] == '\r')
            n--;
        if (n == 0 || line[0] == '#')
            continue;
        *ret = line;
        *ret_length = n;
        return true;
    }
    return false;
}

/* At least as many as can be taken. */
static size_t count_keys(struct lines lines)
{
    const uint8_t *line;
    size_t count = 0, length;

    while (next_line(&lines, &line, &length))
        count += length >= LINE_MIN;
    return count;
}

static int bad_line(const char *path, unsigned line, const char *wrong, struct error *error)
{
    return error_set(error, EINVAL, "Line %u of the pre-shared keys '%s' cannot be used: %s", line,
                     path, wrong);
}

/* The table has room for what count_keys() says, and for one line that is wrong. */
static int parse_lines(struct psk_table *table, const char *path, struct lines lines,
                       struct error *error)
{
    const uint8_t *line;
    size_t length;

    while (next_line(&lines, &line, &length)) {
        struct psk_key *key = &table->keys[table->count];
        const char *wrong = parse_line(key, line, length);

        key->line = lines.number;
        table->by_name[table->count++] = key;
        if (wrong)
            return bad_line(path, lines.number, wrong, error);
    }
    if (table->count == 0)
        return error_set(error, EINVAL,
                         "There is no key in '%s': a line NAME:KEY is needed for each user, with "
                         "the key in hexadecimal (psktool makes them)",
                         path);
    return 0;
}

/* ---- Order ---- */

static int compare_names(const void *a, size_t a_length, const void *b, size_t b_length)
{
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);

    return order ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_keys(const void *a, const void *b)
{
    const struct psk_key *x = *(struct psk_key *const *)a, *y = *(struct psk_key *const *)b;
    int order = compare_names(x->name, x->name_length, y->name, y->name_length);

    return order ? order : (x->line > y->line) - (x->line < y->line);
}

/* Sorts, and finds the first line whose user has a key already. */
static int sort(struct psk_table *table, const char *path, struct error *error)
{
    unsigned twice = 0;

    qsort(table->by_name, table->count, sizeof(struct psk_key *), compare_keys);
    for (size_t i = 1; i < table->count; i++) {
        const struct psk_key *a = table->by_name[i - 1], *b = table->by_name[i];

        if (compare_names(a->name, a->name_length, b->name, b->name_length) == 0 &&
            (twice == 0 || b->line < twice))
            twice = b->line;
    }
    return twice ? bad_line(path, twice, "the user has a key already", error) : 0;
}

int psk_table_parse(struct psk_table *ret, const char *path, const uint8_t *text, size_t length,
                    struct error *error)
{
    const struct lines lines = {.text = text, .left = length};
    size_t room = count_keys(lines) + 1;
    int err = 0;

    *ret = (struct psk_table){
        .keys = calloc(room, sizeof(*ret->keys)),
        .by_name = calloc(room, sizeof(struct psk_key *)),
    };
    if (!ret->keys || !ret->by_name)
        err = error_set_errno(error, ENOMEM, "Could not read the keys in '%s'", path);
    if (err == 0)
        err = parse_lines(ret, path, lines, error);
    if (err == 0)
        err = sort(ret, path, error);
    if (err < 0)
        psk_table_fini(ret);
    return err;
}

void psk_table_fini(struct psk_table *table)
{
    secret_wipe(table->keys, table->count * sizeof(*table->keys));
    free(table->keys);
    free(table->by_name);
    *table = (struct psk_table){0};
}

const struct psk_key *psk_table_find(const struct psk_table *table, const void *name, size_t length)
{
    size_t low = 0, high = table->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct psk_key *key = table->by_name[middle];
        int order = compare_names(name, length, key->name, key->name_length);

        if (order == 0)
            return key;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}
