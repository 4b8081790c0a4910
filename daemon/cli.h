/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A program's command line as a table: one row an option.  Parsing (by getopt_long, so that
 * prefixes and order behave as users know them), the help text and the list for completion all come
 * from the rows.  Nothing here knows which program it serves.
 */
#ifndef EVNBD_DAEMON_CLI_H
#define EVNBD_DAEMON_CLI_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CLI_ROWS_MAX 64

/* What an option does with its target, a member of the struct that is filled. */
enum cli_kind {
    CLI_FLAG,     /* bool: set to true */
    CLI_CONSTANT, /* int: set to `constant` */
    CLI_STRING,   /* const char *: points into argv */
    CLI_NUMBER,   /* uint64_t: number_parse() up to `max` */
    CLI_SIZE,     /* uint64_t: size_parse() */
    CLI_WORD,     /* int: the value of one of `words` */
    CLI_LIST,     /* struct cli_list: one item more */
};

struct cli_word {
    const char *name; /* NULL ends the list */
    int value;
};

struct cli_list {
    const char **items; /* the items point into argv */
    size_t count;
};

struct cli_row {
    const char *name;     /* long name; NULL ends the table */
    char letter;          /* short name; 0: none */
    bool hidden;          /* not in the help */
    bool file_only;       /* for configuration files, not on the command line; it is hidden too */
    bool exact;           /* its long name cannot be abbreviated, nor do others' see it */
    const char *argument; /* what the help calls its argument; NULL: it takes none */
    enum cli_kind kind;
    size_t offset; /* of the target */
    int constant;
    uint64_t max;
    const struct cli_word *words;
    void (*suggest)(FILE *out); /* values worth trying, separated by commas, if `words` has none */
    const char *invalid;  /* start of the message about a bad value, up to its opening quote */
    const char *expected; /* end of that message, what would be right; NULL: the words */
    /*
     * May be given once, together with the other rows that have the same target: how the message
     * about it names them.  NULL: may be repeated.
     */
    const char *once;
    unsigned group;
    unsigned scopes; /* where a configuration file may say it, bits of the program's; 0: nowhere */
    const char *help;
    /* Called after the target was set; 1 ends parsing there, negative errno with `error` fails. */
    int (*after)(void *target, const struct cli_row *row, struct error *error);
};

/* An option that another program of this command line has, and this one not yet. */
struct cli_later {
    const char *name; /* long name; NULL ends the table */
    char letter;      /* 0: none */
};

/* A program's command line. */
struct cli {
    const char *synopsis; /* what follows the program name in the usage; a line for each form */
    const char *summary;  /* one sentence */
    const struct cli_row *rows;
    const struct cli_later *later; /* they count where a name is abbreviated */
    const char *later_of;          /* the other program's name */
    const char *const *groups;     /* titles by group number; NULL ends */
    /* Called for each option of the command line, before its target is set; may be NULL. */
    void (*given)(void *target, const struct cli_row *row);
};

/*
 * Fills the struct at `target` from argv (which is put in order: options first).  *ret_first is the
 * index of the first argument that is no option.  *ret_hint tells that pointing to --help is in
 * place.  Returns 0, -EINVAL or -ENOMEM; whatever it returns, cli_release() afterwards.
 */
int cli_parse(const struct cli *cli, void *target, int argc, char **argv, int *ret_first,
              bool *ret_hint, struct error *error);

/* For setting one by one what a part of a configuration file says; zeroed but for the first three.
 */
struct cli_setter {
    const struct cli *cli;
    void *target;
    unsigned scope; /* one bit: rows that have it in `scopes` are known */
    bool seen[CLI_ROWS_MAX];
};

/*
 * Sets the option of this long name, which may not be abbreviated, in setter->target as the command
 * line would; `value` is kept by reference.  Flags take yes or no; what is no list can be set once.
 * Returns 0, -EINVAL or -ENOMEM with a sentence.
 */
int cli_set(struct cli_setter *setter, const char *name, const char *value, struct error *error);

/* Frees the lists in `target`. */
void cli_release(const struct cli *cli, void *target);

/* The help text, at most 80 columns wide. */
void cli_print_help(const struct cli *cli, const char *program, FILE *out);

/*
 * One option a line, separated by tabs: --name, -letter, ARGUMENT, words or suggestions (separated
 * by commas).
 */
void cli_print_options(const struct cli *cli, FILE *out);

#endif
