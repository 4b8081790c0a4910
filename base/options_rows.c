/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Rows of known options: taking their values out of a tree, messages about values and names that
 * are not right, and the help text, all from the rows.
 */
#include "base/options.h"

#include "base/size.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SHOWN_MAX 80 /* a name or value in a message */

/* A value as it goes into a message: "'text'", "12", "an object". */
static const char *shown_value(char out[SHOWN_MAX], const json_t *value)
{
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "an array", [JSON_REAL] = "a fraction",
        [JSON_TRUE] = "true",        [JSON_FALSE] = "false",    [JSON_NULL] = "null",
    };
    char text[SHOWN_MAX - 2];

    if (json_is_string(value)) {
        error_escape(text, sizeof(text), json_string_value(value), json_string_length(value));
        snprintf(out, SHOWN_MAX, "'%s'", text);
    } else if (json_is_integer(value)) {
        snprintf(out, SHOWN_MAX, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else {
        snprintf(out, SHOWN_MAX, "%s", kinds[json_typeof(value)]);
    }
    return out;
}

static void join_words(char *out, size_t size, const char *const *words, const char *separator)
{
    size_t used = 0;

    out[0] = '\0';
    for (; *words && used < size; words++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? separator : "", *words);
}

/* What a value of the row would have to be, for the message that refuses another. */
static const char *wanted(char *out, size_t size, const struct option_row *row)
{
    char words[256];

    switch (row->type) {
    case OPTION_BOOL:
        return "on or off";
    case OPTION_NUMBER:
        return "a number that is not negative";
    case OPTION_SIZE:
        return "a size in bytes, such as 65536, 64k or 1.5G";
    case OPTION_ENUM:
        join_words(words, sizeof(words), row->words, ", ");
        snprintf(out, size, "one of %s", words);
        return out;
    case OPTION_TREE:
        return "a group of options or the name of a node";
    case OPTION_LIST:
        return "a list, whose items are numbered from 0 on";
    case OPTION_STRING:
        break;
    }
    return "text";
}

/* The text of a value, or NULL when it is not text or has a NUL inside. */
static const char *text_of(const json_t *value)
{
    const char *text = json_string_value(value);

    return text && strlen(text) == json_string_length(value) ? text : NULL;
}

static int word_index(const char *const *words, const char *text)
{
    for (int i = 0; words[i]; i++) {
        if (strcmp(words[i], text) == 0)
            return i;
    }
    return -EINVAL;
}

static int take_string(const json_t *value, char **target)
{
    const char *text = text_of(value);
    char *copy;

    if (!text)
        return -EINVAL;
    copy = strdup(text);
    if (!copy)
        return -ENOMEM;
    free(*target);
    *target = copy;
    return 0;
}

static int take_bool(const json_t *value, bool *target)
{
    static const char *const words[] = {"off", "on", "no", "yes", "false", "true", NULL};
    const char *text = text_of(value);
    int index;

    if (json_is_boolean(value)) {
        *target = json_is_true(value);
        return 0;
    }
    index = text ? word_index(words, text) : -EINVAL;
    if (index < 0)
        return -EINVAL;
    *target = index % 2;
    return 0;
}

static int take_integer(const json_t *value, enum option_type type, uint64_t *target)
{
    const char *text = text_of(value);

    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        *target = (uint64_t)json_integer_value(value);
        return 0;
    }
    if (!text)
        return -EINVAL;
    return type == OPTION_SIZE ? size_parse(text, target) : number_parse(text, UINT64_MAX, target);
}

static int take_enum(const json_t *value, const char *const *words, int *target)
{
    const char *text = text_of(value);
    int index = text ? word_index(words, text) : -EINVAL;

    if (index < 0)
        return -EINVAL;
    *target = index;
    return 0;
}

static int take_tree(json_t *value, json_t **target)
{
    if (!json_is_object(value) && !text_of(value))
        return -EINVAL;
    json_decref(*target);
    *target = json_incref(value);
    return 0;
}

/* An object with the keys 0, 1, 2 ... as an array; NULL: it is none, or out of memory. */
static json_t *array_of(json_t *object)
{
    json_t *array = json_array();
    size_t count = json_object_size(object);

    for (size_t i = 0; array && i < count; i++) {
        char key[24];
        json_t *item;

        snprintf(key, sizeof(key), "%zu", i);
        item = json_object_get(object, key);
        if (!item || json_array_append(array, item) < 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static int take_list(json_t *value, json_t **target)
{
    json_t *array = json_is_object(value) ? array_of(value) : json_incref(value);

    if (!json_is_array(array)) {
        if (array)
            json_decref(array);
        return -EINVAL;
    }
    json_decref(*target);
    *target = array;
    return 0;
}

static int take_value(json_t *value, const struct option_row *row, void *target)
{
    void *field = (char *)target + row->offset;

    switch (row->type) {
    case OPTION_STRING:
        return take_string(value, field);
    case OPTION_BOOL:
        return take_bool(value, field);
    case OPTION_NUMBER:
    case OPTION_SIZE:
        return take_integer(value, row->type, field);
    case OPTION_ENUM:
        return take_enum(value, row->words, field);
    case OPTION_TREE:
        return take_tree(value, field);
    case OPTION_LIST:
        return take_list(value, field);
    }
    return -EINVAL;
}

static json_t *find_value(json_t *tree, const char *path)
{
    const char *dot;

    for (; tree && (dot = strchr(path, '.')); path = dot + 1)
        tree = json_object_getn(tree, path, (size_t)(dot - path));
    return json_object_get(tree, path);
}

/* Deletes the value at `path` and the objects on the way that are empty then. */
static void delete_value(json_t *tree, const char *path)
{
    const char *dot = strchr(path, '.');
    json_t *child;

    if (!dot) {
        json_object_del(tree, path);
        return;
    }
    child = json_object_getn(tree, path, (size_t)(dot - path));
    delete_value(child, dot + 1);
    if (json_object_size(child) == 0)
        json_object_deln(tree, path, (size_t)(dot - path));
}

static int refuse_value(const json_t *value, const struct option_row *row, int err,
                        const char *what, struct error *error)
{
    char text[SHOWN_MAX];
    char words[300];

    if (err == -ENOMEM)
        return error_set(error, ENOMEM, "Out of memory taking the options of %s", what);
    if (err == -ERANGE)
        return error_set(error, EINVAL, "Option '%s' of %s is too large: %s", row->name, what,
                         shown_value(text, value));
    return error_set(error, EINVAL, "Option '%s' of %s must be %s, not %s", row->name, what,
                     wanted(words, sizeof(words), row), shown_value(text, value));
}

int options_take(json_t *tree, const struct option_row *rows, void *target, const char *what,
                 struct error *error)
{
    for (const struct option_row *row = rows; row->name; row++) {
        json_t *value = find_value(tree, row->name);
        int r;

        if (!value)
            continue;
        r = take_value(value, row, target);
        if (r < 0)
            return refuse_value(value, row, r, what, error);
        delete_value(tree, row->name);
    }
    return 0;
}

#define NAME_MAX_COMPARED 32

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* How many letters to insert, drop or change to make one name of the other (Levenshtein). */
static int name_distance(const char *a, const char *b)
{
    int row[NAME_MAX_COMPARED + 1];
    int b_length = (int)strlen(b);

    if (strlen(a) > NAME_MAX_COMPARED || b_length > NAME_MAX_COMPARED)
        return NAME_MAX_COMPARED;
    for (int j = 0; j <= b_length; j++)
        row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];

        row[0] = i;
        for (int j = 1; j <= b_length; j++) {
            int above = row[j];

            row[j] = min_int(min_int(above, row[j - 1]) + 1, diagonal + (a[i - 1] != b[j - 1]));
            diagonal = above;
        }
    }
    return row[b_length];
}

/* The known name that `name` is most likely meant to be, or NULL. */
static const char *similar_name(const struct option_row *rows, const char *name)
{
    const char *best = NULL;
    int best_distance = 3;

    for (; rows->name; rows++) {
        int distance = name_distance(name, rows->name);

        if (distance < best_distance && distance < (int)strlen(rows->name)) {
            best = rows->name;
            best_distance = distance;
        }
    }
    return best;
}

static void join_names(char *out, size_t size, const struct option_row *rows)
{
    size_t used = 0;

    out[0] = '\0';
    for (; rows->name && used < size; rows++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "", rows->name);
}

/* Writes the dotted path of the first value in `tree`, which is not empty. */
static void first_path(char *out, size_t size, json_t *tree)
{
    size_t used = 0;

    out[0] = '\0';
    while (json_object_size(tree) > 0 && used < size) {
        void *first = json_object_iter(tree);

        used += (size_t)snprintf(out + used, size - used, "%s%s", used ? "." : "",
                                 json_object_iter_key(first));
        tree = json_object_iter_value(first);
    }
}

int options_finish(json_t *tree, const struct option_row *rows, const char *what,
                   struct error *error)
{
    char path[256];
    char text[SHOWN_MAX];
    char names[640];
    const char *similar;

    if (json_object_size(tree) == 0)
        return 0;
    first_path(path, sizeof(path), tree);
    error_escape(text, sizeof(text), path, strlen(path));
    if (!rows->name)
        return error_set(error, EINVAL, "Option '%s' is unknown: %s takes no options", text, what);
    join_names(names, sizeof(names), rows);
    similar = similar_name(rows, path);
    if (similar)
        return error_set(error, EINVAL,
                         "Option '%s' is unknown: did you mean '%s'? Options of %s: %s", text,
                         similar, what, names);
    return error_set(error, EINVAL, "Option '%s' is unknown. Options of %s: %s", text, what, names);
}

void options_release(const struct option_row *rows, void *target)
{
    for (; rows->name; rows++) {
        void *field = (char *)target + rows->offset;

        if (rows->type == OPTION_STRING) {
            free(*(char **)field);
            *(char **)field = NULL;
        } else if (rows->type == OPTION_TREE || rows->type == OPTION_LIST) {
            json_decref(*(json_t **)field);
            *(json_t **)field = NULL;
        }
    }
}

void options_print(FILE *out, const struct option_row *rows)
{
    static const char *const types[] = {
        [OPTION_STRING] = "TEXT", [OPTION_BOOL] = "on|off", [OPTION_NUMBER] = "NUMBER",
        [OPTION_SIZE] = "SIZE",   [OPTION_ENUM] = "",       [OPTION_TREE] = "NODE",
        [OPTION_LIST] = "LIST",
    };
    char left[512];
    char words[256];

    for (; rows->name; rows++) {
        const char *type = types[rows->type];

        if (rows->type == OPTION_ENUM) {
            join_words(words, sizeof(words), rows->words, "|");
            type = words;
        }
        snprintf(left, sizeof(left), "%s=%s", rows->name, type);
        fprintf(out, "  %-32s %s\n", left, rows->help ? rows->help : "");
    }
}
