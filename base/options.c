/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The text of options into trees.  Both text forms end in insert_value(), which walks a dotted
 * path, makes the objects on the way and refuses what is there already; it is the one place that
 * nests and that limits depth.
 *
 * Values from key=value text are kept as the bytes that were given, which need not be UTF-8: file
 * names are not.  Keys are UTF-8.  Names and values are escaped and cut before they go into
 * messages.
 */
#include "base/options.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX MIB
#define DEPTH_MAX 64
#define SHOWN_MAX 80 /* a name or value in a message */

struct parser {
    const char *next;
    const char *implied_key; /* NULL once the first word is read */
    json_t *tree;
    struct error *error;
};

static int out_of_memory(struct error *error)
{
    return error_set(error, ENOMEM, "Out of memory reading options");
}

static const char *shown(char out[SHOWN_MAX], const char *text, size_t length)
{
    return error_escape(out, SHOWN_MAX, text, length);
}

/* The object under `name` in `tree`, made if it is not there. */
static int enter_object(json_t **tree, const char *name, size_t length, struct error *error)
{
    json_t *child = json_object_getn(*tree, name, length);
    char text[SHOWN_MAX];

    if (!child) {
        child = json_object();
        if (json_object_setn_new(*tree, name, length, child) < 0)
            return out_of_memory(error);
    } else if (!json_is_object(child)) {
        return error_set(error, EINVAL, "Option '%s' is given as a value and as a parent of others",
                         shown(text, name, length));
    }
    *tree = child;
    return 0;
}

static int insert_members(json_t *tree, json_t *members, int depth, struct error *error);

/* Puts a value, or the members of an object, under the last part of a path, a key at `depth`. */
static int insert_leaf(json_t *tree, const char *name, json_t *value, int depth,
                       struct error *error)
{
    json_t *old = json_object_get(tree, name);
    char text[SHOWN_MAX];
    int r;

    if (json_is_object(value)) {
        r = enter_object(&tree, name, strlen(name), error);
        return r < 0 ? r : insert_members(tree, value, depth + 1, error);
    }
    if (json_is_object(old))
        return error_set(error, EINVAL, "Option '%s' is given as a value and as a parent of others",
                         shown(text, name, strlen(name)));
    if (old)
        return error_set(error, EINVAL, "Option '%s' is given twice",
                         shown(text, name, strlen(name)));
    return json_object_set(tree, name, value) < 0 ? out_of_memory(error) : 0;
}

static int array_nesting(json_t *value);

static int deepest_member(json_t *members)
{
    int deepest = 0;
    const char *key;
    json_t *member;

    json_object_foreach(members, key, member)
    {
        int nesting = array_nesting(member);

        deepest = nesting > deepest ? nesting : deepest;
    }
    return deepest;
}

/*
 * How many levels a value that is inside an array, or is one, adds.  parse_json() has limited the
 * depth of this recursion.
 */
static int array_nesting(json_t *value)
{
    int deepest = 0;
    json_t *member;
    size_t i;

    if (json_is_object(value))
        return 1 + deepest_member(value);
    if (!json_is_array(value))
        return 0;
    json_array_foreach(value, i, member)
    {
        int nesting = array_nesting(member);

        deepest = nesting > deepest ? nesting : deepest;
    }
    return 1 + deepest;
}

/* Puts `value` at the dotted `path`, whose first part is a key of `tree` at `depth`. */
static int insert_value(json_t *tree, const char *path, json_t *value, int depth,
                        struct error *error)
{
    /* The keys of an object are looked at when they are put in. */
    int nesting = json_is_object(value) ? 1 : array_nesting(value);
    const char *part = path;
    char text[SHOWN_MAX];

    if (!bytes_are_utf8(path, strlen(path)))
        return error_set(error, EINVAL, "Option name '%s' is not UTF-8",
                         shown(text, path, strlen(path)));
    for (;; depth++) {
        size_t length = strcspn(part, ".");
        int r;

        if (length == 0)
            return error_set(error, EINVAL, "Option name '%s' is empty or has an empty part",
                             shown(text, path, strlen(path)));
        if (depth + nesting > DEPTH_MAX)
            return error_set(error, EINVAL, "Option '%s' nests deeper than %d levels",
                             shown(text, path, strlen(path)), DEPTH_MAX);
        if (part[length] == '\0')
            return insert_leaf(tree, part, value, depth, error);
        r = enter_object(&tree, part, length, error);
        if (r < 0)
            return r;
        part += length + 1;
    }
}

static int insert_members(json_t *tree, json_t *members, int depth, struct error *error)
{
    const char *key;
    json_t *value;

    json_object_foreach(members, key, value)
    {
        int r = insert_value(tree, key, value, depth, error);

        if (r < 0)
            return r;
    }
    return 0;
}

/* Checks the nesting of JSON text before the parser, which recurses, sees it. */
static bool json_too_deep(const char *text)
{
    bool in_string = false;
    int depth = 0;

    for (; *text; text++) {
        if (in_string && *text == '\\' && text[1])
            text++;
        else if (*text == '"')
            in_string = !in_string;
        else if (!in_string && (*text == '{' || *text == '['))
            depth++;
        else if (!in_string && (*text == '}' || *text == ']'))
            depth--;
        if (depth > DEPTH_MAX)
            return true;
    }
    return false;
}

/* Where memory ran out the library mostly says nothing at all. */
static int refuse_json(const json_error_t *json_error, const char *what, struct error *error)
{
    if (json_error->text[0] == '\0' || json_error_code(json_error) == json_error_out_of_memory)
        return out_of_memory(error);
    return error_set(error, EINVAL, "%s are not valid JSON: %s (line %d, column %d)", what,
                     json_error->text, json_error->line, json_error->column);
}

static int parse_json(const char *text, const char *what, json_t *tree, struct error *error)
{
    json_error_t json_error;
    json_t *parsed;
    int r;

    if (json_too_deep(text))
        return error_set(error, EINVAL, "%s nest deeper than %d levels", what, DEPTH_MAX);
    parsed = json_loads(text, JSON_REJECT_DUPLICATES, &json_error);
    if (!parsed)
        return refuse_json(&json_error, what, error);
    if (json_is_object(parsed))
        r = insert_members(tree, parsed, 1, error);
    else
        r = error_set(error, EINVAL, "%s must be one object, '{...}'", what);
    json_decref(parsed);
    return r;
}

/* Where the value at `text` ends: at a single comma or the end of the text. */
static const char *value_end(const char *text)
{
    while (*text && (*text != ',' || text[1] == ','))
        text += *text == ',' ? 2 : 1;
    return text;
}

/* Reads a value; leaves `next` at its end. */
static json_t *read_value(struct parser *p)
{
    const char *from = p->next;
    const char *end = value_end(from);
    char *text = malloc((size_t)(end - from) + 1);
    size_t length = 0;
    json_t *value;

    if (!text)
        return NULL;
    while (from < end) {
        text[length++] = *from;
        from += *from == ',' ? 2 : 1;
    }
    p->next = end;
    value = json_stringn_nocheck(text, length);
    free(text);
    return value;
}

/* Reads "key=value", "key" or the value of the implied key. */
static int parse_word(struct parser *p)
{
    size_t length = strcspn(p->next, "=,");
    bool has_value = p->next[length] == '=';
    json_t *value;
    char *key;
    int r;

    if (!has_value && p->implied_key) {
        key = strdup(p->implied_key);
        value = read_value(p);
    } else {
        key = strndup(p->next, length);
        p->next += length + has_value;
        value = has_value ? read_value(p) : json_true();
    }
    p->implied_key = NULL;
    r = key && value ? insert_value(p->tree, key, value, 1, p->error) : out_of_memory(p->error);
    free(key);
    json_decref(value);
    return r;
}

static int parse_words(struct parser *p)
{
    while (*p->next) {
        int r = parse_word(p);

        if (r < 0)
            return r;
        if (*p->next == ',')
            p->next++;
    }
    return 0;
}

/* Whether the tree is to be had; drops it if not. */
static int give_tree(json_t *tree, int r, json_t **ret)
{
    if (r < 0)
        json_decref(tree);
    else
        *ret = tree;
    return r;
}

int options_parse_json(const char *text, const char *what, json_t **ret, struct error *error)
{
    json_t *tree;

    if (strnlen(text, TEXT_MAX + 1) > TEXT_MAX)
        return error_set(error, EINVAL, "%s are longer than 1 MiB", what);
    tree = json_object();
    if (!tree)
        return out_of_memory(error);
    return give_tree(tree, parse_json(text, what, tree, error), ret);
}

int options_parse(const char *text, const char *implied_key, json_t **ret, struct error *error)
{
    struct parser p = {.next = text, .implied_key = implied_key, .error = error};

    if (strncmp(text, "json:", 5) == 0)
        return options_parse_json(text + 5, "The 'json:' options", ret, error);
    if (strnlen(text, TEXT_MAX + 1) > TEXT_MAX)
        return error_set(error, EINVAL, "The options are longer than 1 MiB");
    p.tree = json_object();
    if (!p.tree)
        return out_of_memory(error);
    return give_tree(p.tree, parse_words(&p), ret);
}
