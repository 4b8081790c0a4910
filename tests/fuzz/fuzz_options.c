/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: option text, parsed with and without an implied key, then taken by rows of every
 * type. Besides not crashing, a refusal has a message, taken values keep what their types promise,
 * and a tree whose texts are UTF-8 means the same when it is written as json: and read again.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/options.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const words[] = {"off", "metadata", "full", NULL};

struct target {
    char *name;
    bool lazy;
    uint64_t number;
    uint64_t size;
    int mode;
    json_t *file;
    bool direct;
};

static const struct option_row rows[] = {
    {"name", OPTION_STRING, offsetof(struct target, name), NULL, "text"},
    {"lazy", OPTION_BOOL, offsetof(struct target, lazy), NULL, "bool"},
    {"number", OPTION_NUMBER, offsetof(struct target, number), NULL, "number"},
    {"size", OPTION_SIZE, offsetof(struct target, size), NULL, "size"},
    {"mode", OPTION_ENUM, offsetof(struct target, mode), words, "word"},
    {"file", OPTION_TREE, offsetof(struct target, file), NULL, "tree"},
    {"cache.direct", OPTION_BOOL, offsetof(struct target, direct), NULL, "bool"},
    {NULL},
};

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void check_error(int r, const struct error *error)
{
    require(r == 0 ? error->text[0] == '\0' : error->text[0] != '\0');
    require(bytes_are_utf8(error->text, strlen(error->text)));
}

/* Writes the tree as json: text and reads that again. */
static void check_round_trip(json_t *tree)
{
    char *dump = json_dumps(tree, JSON_COMPACT);
    char *text = NULL;
    json_t *again = NULL;
    size_t length;

    if (!dump)
        return; /* a value that is not UTF-8 */
    length = strlen(dump) + strlen("json:");
    text = malloc(length + 1);
    require(text != NULL);
    strcpy(stpcpy(text, "json:"), dump);
    if (length <= MIB) {
        require(options_parse(text, NULL, &again, NULL) == 0);
        require(json_equal(tree, again));
    }
    json_decref(again);
    free(text);
    free(dump);
}

static void take(json_t *tree)
{
    struct target target = {.mode = 0};
    struct error error = {.text = ""};
    int r = options_take(tree, rows, &target, "fuzz", &error);

    check_error(r, &error);
    require(target.mode >= 0 && target.mode <= 2);
    require(target.size <= OFFSET_MAX);
    if (r == 0) {
        r = options_finish(tree, rows, "fuzz", &error);
        check_error(r, &error);
        require((r == 0) == (json_object_size(tree) == 0));
    }
    options_release(rows, &target);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const implied_keys[] = {NULL, "name", "file.filename"};
    char *text = malloc(size + 1);

    require(text != NULL);
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(implied_keys); i++) {
        struct error error = {.text = ""};
        json_t *tree = NULL;
        int r = options_parse(text, implied_keys[i], &tree, &error);

        check_error(r, &error);
        if (r < 0)
            continue;
        check_round_trip(tree);
        take(tree);
        json_decref(tree);
    }
    free(text);
    return 0;
}
