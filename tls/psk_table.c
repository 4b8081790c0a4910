/* SPDX-License-Identifier: BSD-3-Clause */
/* Files of pre-shared keys: every line is checked, so that a typing error is found at the start. */
#include "tls/psk_table.h"

#include "base/bytes.h"
#include "base/secret.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

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
        int digit = hex_digit(colon[1 + i]);

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

static struct psk_key *add_key(struct psk_table *table)
{
    struct psk_key *keys = calloc(table->count + 1, sizeof(*keys));

    if (!keys)
        return NULL;
    if (table->count > 0)
        memcpy(keys, table->keys, table->count * sizeof(*keys));
    secret_wipe(table->keys, table->count * sizeof(*keys));
    free(table->keys);
    table->keys = keys;
    return &keys[table->count];
}

/* Adds the key of one line; the table is freed by the caller if that fails. */
static int take_line(struct psk_table *table, const char *path, unsigned number,
                     const uint8_t *line, size_t length, struct error *error)
{
    struct psk_key *key = add_key(table);
    const char *wrong;

    if (!key)
        return error_set_errno(error, ENOMEM, "Could not read the keys in '%s'", path);
    wrong = parse_line(key, line, length);
    if (!wrong && psk_table_find(table, key->name, key->name_length))
        wrong = "the user has a key already";
    table->count++;
    if (wrong)
        return error_set(error, EINVAL, "Line %u of the pre-shared keys '%s' cannot be used: %s",
                         number, path, wrong);
    return 0;
}

static int parse(struct psk_table *table, const char *path, const uint8_t *text, size_t length,
                 struct error *error)
{
    unsigned number = 1;
    size_t at = 0;

    for (; at < length; number++) {
        const uint8_t *line = text + at, *end = memchr(line, '\n', length - at);
        size_t n = end ? (size_t)(end - line) : length - at;
        int err;

        at += n + 1;
        if (n > 0 && line[n - 1] == '\r')
            n--;
        if (n == 0 || line[0] == '#')
            continue;
        err = take_line(table, path, number, line, n, error);
        if (err < 0)
            return err;
    }
    if (table->count == 0)
        return error_set(error, EINVAL,
                         "There is no key in '%s': a line NAME:KEY is needed for each user, with "
                         "the key in hexadecimal (psktool makes them)",
                         path);
    return 0;
}

int psk_table_parse(struct psk_table *ret, const char *path, const uint8_t *text, size_t length,
                    struct error *error)
{
    int err;

    *ret = (struct psk_table){0};
    err = parse(ret, path, text, length, error);
    if (err < 0)
        psk_table_fini(ret);
    return err;
}

void psk_table_fini(struct psk_table *table)
{
    secret_wipe(table->keys, table->count * sizeof(*table->keys));
    free(table->keys);
    *table = (struct psk_table){0};
}

const struct psk_key *psk_table_find(const struct psk_table *table, const void *name, size_t length)
{
    for (size_t i = 0; i < table->count; i++) {
        const struct psk_key *key = &table->keys[i];

        if (key->name_length == length && memcmp(key->name, name, length) == 0)
            return key;
    }
    return NULL;
}
