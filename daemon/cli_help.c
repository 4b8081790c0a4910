/* SPDX-License-Identifier: BSD-3-Clause */
/* The help text and the list for completion, from the rows of a command line. */
#include "daemon/cli.h"

#include <string.h>

#define HELP_WIDTH 79
#define HELP_COLUMN 30 /* where the explanations start */

static int print_indent(FILE *out, int column)
{
    return fprintf(out, "\n%*s", column, "") - 1;
}

/* Prints the words of `text` from `column` on; lines after the first start at `indent`. */
static void print_wrapped(FILE *out, const char *text, int column, int indent)
{
    bool line_start = true;

    while (*text) {
        int length = (int)strcspn(text, " ");

        if (!line_start && column + 1 + length > HELP_WIDTH) {
            column = print_indent(out, indent);
            line_start = true;
        }
        column += fprintf(out, "%s%.*s", line_start ? "" : " ", length, text);
        line_start = false;
        text += length;
        text += *text == ' ';
    }
    fputc('\n', out);
}

static void print_row(const struct cli_row *row, FILE *out)
{
    int column = row->letter ? fprintf(out, "  -%c, ", row->letter) : fprintf(out, "      ");

    column += fprintf(out, "--%s", row->name);
    if (row->argument)
        column += fprintf(out, "=%s", row->argument);
    if (column + 2 > HELP_COLUMN)
        column = print_indent(out, HELP_COLUMN);
    else
        column += fprintf(out, "%*s", HELP_COLUMN - column, "");
    print_wrapped(out, row->help, column, HELP_COLUMN);
}

static void print_usage(const char *synopsis, const char *program, FILE *out)
{
    const char *start = "Usage:";

    while (*synopsis) {
        int length = (int)strcspn(synopsis, "\n");

        fprintf(out, "%-6s %s %.*s\n", start, program, length, synopsis);
        synopsis += length;
        synopsis += *synopsis == '\n';
        start = "  or:";
    }
}

static void print_later(const struct cli *cli, FILE *out)
{
    char text[1024];
    size_t used = 0;

    if (!cli->later->name)
        return;
    fprintf(out, "\nOptions of %s that are not supported yet:\n", cli->later_of);
    for (const struct cli_later *it = cli->later; it->name && used < sizeof(text); it++) {
        used += (size_t)snprintf(text + used, sizeof(text) - used, "--%s", it->name);
        if (it->letter && used < sizeof(text))
            used += (size_t)snprintf(text + used, sizeof(text) - used, " (-%c)", it->letter);
        if (it[1].name && used < sizeof(text))
            used += (size_t)snprintf(text + used, sizeof(text) - used, ", ");
    }
    print_wrapped(out, text, fprintf(out, "  "), 2);
}

void cli_print_help(const struct cli *cli, const char *program, FILE *out)
{
    print_usage(cli->synopsis, program, out);
    print_wrapped(out, cli->summary, 0, 0);
    for (unsigned group = 0; cli->groups[group]; group++) {
        fprintf(out, "\n%s:\n", cli->groups[group]);
        for (const struct cli_row *row = cli->rows; row->name; row++)
            if (row->group == group && !row->hidden)
                print_row(row, out);
    }
    print_later(cli, out);
}

void cli_print_options(const struct cli *cli, FILE *out)
{
    for (const struct cli_row *row = cli->rows; row->name; row++) {
        if (row->hidden)
            continue;
        fprintf(out, "--%s\t", row->name);
        if (row->letter)
            fprintf(out, "-%c", row->letter);
        fprintf(out, "\t%s\t", row->argument ? row->argument : "");
        for (const struct cli_word *w = row->words; w && w->name; w++)
            fprintf(out, "%s%s", w == row->words ? "" : ",", w->name);
        if (row->suggest)
            row->suggest(out);
        fputc('\n', out);
    }
}
