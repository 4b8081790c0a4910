/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Option trees: what `key=value,key.sub=value` strings and `json:{...}` both become.
 *
 * A tree is a jansson object: nested objects for dotted keys, strings for values that came from the
 * key=value form, any JSON type from the json: form.  Consumers take what they know out of the tree
 * by rows; what is left over is an error that names the key and lists what would be right.
 */
#ifndef EVNBD_BASE_OPTIONS_H
#define EVNBD_BASE_OPTIONS_H

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/*
 * Parses `text` into a new tree (the caller drops it with json_decref).
 * "json:{...}" is JSON, whose dotted keys nest too.  Otherwise a list of key=value separated by
 * commas (one comma at the end is let pass); ",," in a value is a comma; "a.b=c" nests; a word
 * without "=" is the value of `implied_key` when it comes first and implied_key is not NULL, else
 * the boolean on ("key" = on, "nokey" = off is not known).
 * A key given twice, an empty key, or a key that is both a value and a parent is an error, and so
 * is text of more than 1 MiB or nesting of more than 64 levels. Returns 0, or -EINVAL/-ENOMEM with
 * `error` set.
 */
int options_parse(const char *text, const char *implied_key, json_t **ret, struct error *error);

/*
 * Parses text that is one JSON object, as the "json:" form does.  `what` names the text at the
 * start of messages, in the plural ("The rules in 'FILE'").
 */
int options_parse_json(const char *text, const char *what, json_t **ret, struct error *error);

enum option_type {
    OPTION_STRING,
    OPTION_BOOL,
    OPTION_NUMBER,
    OPTION_SIZE,
    OPTION_ENUM,
    OPTION_TREE,
    OPTION_LIST
};

/* One known key of a tree. Arrays of rows end with a row whose name is NULL. */
struct option_row {
    const char *name; /* may be dotted: "cache.direct" */
    enum option_type type;
    size_t offset;            /* offsetof the target in the consumer's struct */
    const char *const *words; /* OPTION_ENUM: NULL-terminated; the target is an int index */
    const char *help;         /* one line, without a full stop */
};

/*
 * Moves the values of known keys out of `tree` into the struct at `target`:
 * OPTION_STRING: char * (allocated, owned by the target, an old value is freed);
 * OPTION_BOOL: bool (on/off, yes/no, true/false, JSON booleans);
 * OPTION_NUMBER and OPTION_SIZE: uint64_t (number_parse, size_parse, JSON integers >= 0);
 * OPTION_ENUM: int;
 * OPTION_TREE: json_t * (a new reference to an object, or to a string that names a node; an old one
 * is dropped);
 * OPTION_LIST: json_t * (a new reference to an array; the key=value form writes one as an object
 * with the keys 0, 1, 2 ...). Keys not in the tree leave their target alone.  `what` names the
 * consumer in messages ("driver 'qcow2'").  Returns 0 or -EINVAL/-ENOMEM; the target needs
 * options_release in either case.
 */
int options_take(json_t *tree, const struct option_row *rows, void *target, const char *what,
                 struct error *error);

/*
 * 0 when `tree` is empty, else -EINVAL naming the first key that is left, the known name that it
 * resembles if there is one, and all known names.
 */
int options_finish(json_t *tree, const struct option_row *rows, const char *what,
                   struct error *error);

/* Frees the strings and trees that options_take put into `target` and sets them to NULL. */
void options_release(const struct option_row *rows, void *target);

/* Prints the rows for "help" arguments: name, type and help, one a line. */
void options_print(FILE *out, const struct option_row *rows);

#endif
