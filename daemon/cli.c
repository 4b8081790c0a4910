/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Parsing by table.  getopt_long does the splitting; it is kept silent, and what it found wrong is
 * told in its own well-known words through the error, so that there is one place that prints.
 * Rows without a letter are known to getopt by a number above every letter.
 */
#include "daemon/cli.h"

#include "base/size.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_LONG_ONLY 256
#define FIRST_LATER 1024

struct parser {
    const struct cli *cli;
    void *target;
    char **argv;
    struct option longs[CLI_ROWS_MAX + 1];
    char shorts[2 * CLI_ROWS_MAX + 2];
    bool seen[CLI_ROWS_MAX];
    struct error *error;
};

static int row_value(const struct cli *cli, const struct cli_row *row)
{
    return row->letter ? row->letter : FIRST_LONG_ONLY + (int)(row - cli->rows);
}

static const struct cli_row *row_by_value(const struct cli *cli, int value)
{
    for (const struct cli_row *row = cli->rows; row->name; row++)
        if (row_value(cli, row) == value)
            return row;
    return NULL;
}

/* The option that getopt looks at next, "--name" or "--name=value"; "" when there is none. */
static const char *next_option(char **argv)
{
    for (char **word = argv + (optind > 0 ? optind : 1); *word; word++)
        if ((*word)[0] == '-' && (*word)[1])
            return *word;
    return "";
}

static bool spells(const char *word, const char *name)
{
    size_t length = strlen(name);

    return !strncmp(word, "--", 2) && !strncmp(word + 2, name, length) &&
           (!word[2 + length] || word[2 + length] == '=');
}

/* The later rows are there so that a name that abbreviates one of them means no other. */
static size_t add_later(struct parser *p, size_t n)
{
    const struct cli_later *later = p->cli->later;

    for (size_t i = 0; later[i].name; i++, n++)
        p->longs[n] = (struct option){
            .name = later[i].name,
            .has_arg = optional_argument,
            .val = FIRST_LATER + (int)i,
        };
    return n;
}

/* getopt's two tables. An exact row is in them for the word that spells it out. */
static void parser_tables(struct parser *p)
{
    const char *word = next_option(p->argv);
    char *next_short = p->shorts;
    size_t n = 0;

    *next_short++ = ':';
    for (const struct cli_row *row = p->cli->rows; row->name; row++) {
        if (row->file_only || (row->exact && !spells(word, row->name)))
            continue;
        p->longs[n] = (struct option){
            .name = row->name,
            .has_arg = row->argument ? required_argument : no_argument,
            .val = row_value(p->cli, row),
        };
        n++;
        if (!row->letter)
            continue;
        *next_short++ = row->letter;
        if (row->argument)
            *next_short++ = ':';
    }
    *next_short = '\0';
    n = add_later(p, n);
    p->longs[n] = (struct option){.name = NULL};
}

/* The options that `word` ("--na" or "--na=value") abbreviates, as the message lists them. */
static unsigned list_candidates(const struct parser *p, const char *word, char *out, size_t room)
{
    size_t length = strcspn(word + 2, "=");
    unsigned found = 0;

    *out = '\0';
    for (const struct option *o = p->longs; o->name; o++) {
        size_t used = strlen(out);

        if (strncmp(o->name, word + 2, length) != 0)
            continue;
        found++;
        snprintf(out + used, room - used, " '--%s'", o->name);
    }
    return found;
}

static int later_option(const struct parser *p, const struct cli_later *later)
{
    return error_set(p->error, EINVAL, "the option '--%s' is not supported yet", later->name);
}

static int unknown_option(const struct parser *p, const char *word, bool *ret_hint)
{
    char candidates[512];
    const struct cli_row *row = optopt ? row_by_value(p->cli, optopt) : NULL;

    for (const struct cli_later *it = p->cli->later; optopt && it->name; it++) {
        if (it->letter != optopt)
            continue;
        *ret_hint = false;
        return later_option(p, it);
    }
    if (row)
        return error_set(p->error, EINVAL, "option '--%s' doesn't allow an argument", row->name);
    if (optopt)
        return error_set(p->error, EINVAL, "invalid option -- '%c'", optopt);
    if (list_candidates(p, word, candidates, sizeof(candidates)) > 1)
        return error_set(p->error, EINVAL, "option '%s' is ambiguous; possibilities:%s", word,
                         candidates);
    return error_set(p->error, EINVAL, "unrecognized option '%s'", word);
}

static int missing_argument(const struct parser *p, const char *word)
{
    const struct cli_row *row = row_by_value(p->cli, optopt);

    if (row && !strncmp(word, "--", 2))
        return error_set(p->error, EINVAL, "option '--%s' requires an argument", row->name);
    return error_set(p->error, EINVAL, "option requires an argument -- '%c'", optopt);
}

static int check_once(struct parser *p, const struct cli_row *row)
{
    const struct cli_row *rows = p->cli->rows;

    if (row->once) {
        for (size_t i = 0; rows[i].name; i++)
            if (p->seen[i] && rows[i].offset == row->offset)
                return error_set(p->error, EINVAL, "%s can only be specified once", row->once);
    }
    p->seen[row - rows] = true;
    return 0;
}

static int bad_value(const struct parser *p, const struct cli_row *row, const char *value)
{
    char words[256] = "";
    size_t used = 0;

    if (row->expected && row->max == 0)
        return error_set(p->error, EINVAL, "%s%s': %s", row->invalid, value, row->expected);
    if (row->expected)
        return error_set(p->error, EINVAL, "%s%s': %s; at most %" PRIu64, row->invalid, value,
                         row->expected, row->max);
    for (const struct cli_word *w = row->words; w->name && used < sizeof(words); w++) {
        const char *separator = w == row->words ? "" : w[1].name ? ", " : " or ";

        used += (size_t)snprintf(words + used, sizeof(words) - used, "%s%s", separator, w->name);
    }
    return error_set(p->error, EINVAL, "%s%s': use %s", row->invalid, value, words);
}

static int set_word(const struct parser *p, const struct cli_row *row, const char *value)
{
    int *target = (int *)((char *)p->target + row->offset);

    for (const struct cli_word *w = row->words; w->name; w++)
        if (!strcmp(w->name, value)) {
            *target = w->value;
            return 0;
        }
    return bad_value(p, row, value);
}

static int add_item(const struct parser *p, const struct cli_row *row, const char *value)
{
    struct cli_list *list = (struct cli_list *)((char *)p->target + row->offset);
    const char **items = reallocarray(list->items, list->count + 1, sizeof(*items));

    if (!items)
        return error_set(p->error, ENOMEM, "out of memory");
    items[list->count++] = value;
    list->items = items;
    return 0;
}

static int set_target(const struct parser *p, const struct cli_row *row, const char *value)
{
    void *target = (char *)p->target + row->offset;

    switch (row->kind) {
    case CLI_FLAG:
        *(bool *)target = true;
        return 0;
    case CLI_CONSTANT:
        *(int *)target = row->constant;
        return 0;
    case CLI_STRING:
        *(const char **)target = value;
        return 0;
    case CLI_NUMBER:
        return number_parse(value, row->max, target) < 0 ? bad_value(p, row, value) : 0;
    case CLI_SIZE:
        return size_parse(value, target) < 0 ? bad_value(p, row, value) : 0;
    case CLI_WORD:
        return set_word(p, row, value);
    case CLI_LIST:
        return add_item(p, row, value);
    }
    return -EINVAL;
}

static int apply_row(struct parser *p, const struct cli_row *row, const char *value)
{
    int ret = check_once(p, row);

    if (ret == 0)
        ret = set_target(p, row, value);
    if (ret == 0 && row->after)
        ret = row->after(p->target, row, p->error);
    return ret;
}

static int apply_given(struct parser *p, const struct cli_row *row, const char *value)
{
    if (p->cli->given)
        p->cli->given(p->target, row);
    return apply_row(p, row, value);
}

int cli_parse(const struct cli *cli, void *target, int argc, char **argv, int *ret_first,
              bool *ret_hint, struct error *error)
{
    struct parser p = {.cli = cli, .target = target, .argv = argv, .error = error};
    int value, ret = 0;

    *ret_hint = false;
    opterr = 0;
    optind = 0; /* starts getopt anew, whatever an earlier call left */
    while (ret == 0) {
        parser_tables(&p);
        value = getopt_long(argc, argv, p.shorts, p.longs, NULL);
        if (value == -1)
            break;
        *ret_hint = value == '?' || value == ':';
        if (value >= FIRST_LATER)
            ret = later_option(&p, &cli->later[value - FIRST_LATER]);
        else if (value == '?')
            ret = unknown_option(&p, argv[optind - 1], ret_hint);
        else if (value == ':')
            ret = missing_argument(&p, argv[optind - 1]);
        else
            ret = apply_given(&p, row_by_value(cli, value), optarg);
    }
    *ret_first = optind;
    return ret < 0 ? ret : 0;
}

static const struct cli_row *row_in_scope(const struct cli_setter *setter, const char *name)
{
    for (const struct cli_row *row = setter->cli->rows; row->name; row++)
        if ((row->scopes & setter->scope) && !strcmp(row->name, name))
            return row;
    return NULL;
}

static int unknown_setting(const struct cli_setter *setter, const char *name, struct error *error)
{
    char known[ERROR_TEXT_MAX / 2] = "", shown[64];
    size_t used = 0;

    for (const struct cli_row *row = setter->cli->rows; row->name && used < sizeof(known); row++)
        if (row->scopes & setter->scope)
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s",
                                     used > 0 ? ", " : "", row->name);
    return error_set(error, EINVAL, "'%s' is unknown here; there are: %s",
                     error_escape(shown, sizeof(shown), name, strlen(name)), known);
}

static int set_flag(const struct parser *p, const struct cli_row *row, const char *value)
{
    bool *target = (bool *)((char *)p->target + row->offset);
    char shown[64];

    if (strcmp(value, "yes") != 0 && strcmp(value, "no") != 0)
        return error_set(p->error, EINVAL, "'%s' is '%s': use yes or no", row->name,
                         error_escape(shown, sizeof(shown), value, strlen(value)));
    *target = *value == 'y';
    return *target && row->after ? row->after(p->target, row, p->error) : 0;
}

int cli_set(struct cli_setter *setter, const char *name, const char *value, struct error *error)
{
    const struct cli_row *row = row_in_scope(setter, name);
    struct parser p = {.cli = setter->cli, .target = setter->target, .error = error};
    bool *seen;
    int ret;

    if (!row)
        return unknown_setting(setter, name, error);
    seen = &setter->seen[row - setter->cli->rows];
    if (*seen && row->kind != CLI_LIST)
        return error_set(error, EINVAL, "'%s' was set before: it can have one value", name);
    *seen = true;
    ret = row->kind == CLI_FLAG ? set_flag(&p, row, value) : apply_row(&p, row, value);
    if (ret > 0)
        return error_set(error, EINVAL, "'%s' cannot be '%s' in a file", name, value);
    return ret;
}

void cli_release(const struct cli *cli, void *target)
{
    for (const struct cli_row *row = cli->rows; row->name; row++) {
        struct cli_list *list = (struct cli_list *)((char *)target + row->offset);

        if (row->kind != CLI_LIST)
            continue;
        free(list->items);
        *list = (struct cli_list){0};
    }
}
