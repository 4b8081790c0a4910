/* SPDX-License-Identifier: BSD-3-Clause */
/* Rows of known options: values taken, values refused, names left over, help. */
#include "base/options.h"

#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const modes[] = {"off", "metadata", "full", NULL};

struct target {
    char *name;
    bool lazy;
    uint64_t number;
    uint64_t size;
    int mode;
    json_t *file;
    bool direct;
    char *key;
};

#define ROW(name, type, field, words, help)                                                        \
    {                                                                                              \
        name, type, offsetof(struct target, field), words, help                                    \
    }

static const struct option_row rows[] = {
    ROW("name", OPTION_STRING, name, NULL, "what it is called"),
    ROW("lazy-refcounts", OPTION_BOOL, lazy, NULL, "whether to wait"),
    ROW("number", OPTION_NUMBER, number, NULL, "how many"),
    ROW("cluster_size", OPTION_SIZE, size, NULL, "how large"),
    ROW("preallocation", OPTION_ENUM, mode, modes, "how much at once"),
    ROW("file", OPTION_TREE, file, NULL, "where the bytes are"),
    ROW("cache.direct", OPTION_BOOL, direct, NULL, "past the page cache"),
    ROW("encrypt.key.id", OPTION_STRING, key, NULL, NULL),
    {NULL},
};

static json_t *parse(const char *text)
{
    struct error error;
    json_t *tree = NULL;

    if (options_parse(text, NULL, &tree, &error) < 0)
        fail_msg("'%s': %s", text, error.text);
    return tree;
}

static void test_take_all(void **state)
{
    struct target target = {.name = strdup("old")};
    json_t *tree = parse("name=n,,1,lazy-refcounts=on,number=0x10,cluster_size=64k,"
                         "preallocation=full,file.driver=file,file.filename=x,cache.direct,"
                         "encrypt.key.id=sec0");

    assert_int_equal(options_take(tree, rows, &target, "driver 'x'", NULL), 0);
    assert_int_equal(options_finish(tree, rows, "driver 'x'", NULL), 0);
    assert_int_equal(json_object_size(tree), 0);
    json_decref(tree);
    assert_string_equal(target.name, "n,1");
    assert_true(target.lazy);
    assert_int_equal(target.number, 16);
    assert_int_equal(target.size, 65536);
    assert_int_equal(target.mode, 2);
    assert_string_equal(json_string_value(json_object_get(target.file, "filename")), "x");
    assert_true(target.direct);
    assert_string_equal(target.key, "sec0");
    options_release(rows, &target);
    assert_null(target.name);
    assert_null(target.file);
    assert_null(target.key);
    options_release(rows, &target);
}

struct list_target {
    json_t *rules;
};

static const struct option_row list_rows[] = {
    {"rules", OPTION_LIST, offsetof(struct list_target, rules), NULL, "what is checked"},
    {NULL},
};

/* Both forms of a list give the same array. */
static void test_lists(void **state)
{
    static const char *const good[] = {"rules.1=b,rules.0=a", "json:{\"rules\": [\"a\", \"b\"]}"};
    static const char *const bad[] = {"rules=a",   "rules.0=a,rules.2=b", "rules.00=a",
                                      "rules.a=b", "rules.-1=a",          "json:{\"rules\": 1}"};
    struct list_target target = {0};

    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        json_t *tree = parse(good[i]);

        assert_int_equal(options_take(tree, list_rows, &target, "x", NULL), 0);
        assert_int_equal(json_object_size(tree), 0);
        assert_int_equal(json_array_size(target.rules), 2);
        assert_string_equal(json_string_value(json_array_get(target.rules, 1)), "b");
        json_decref(tree);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        json_t *tree = parse(bad[i]);
        struct error error;

        assert_int_equal(options_take(tree, list_rows, &target, "x", &error), -EINVAL);
        assert_non_null(strstr(error.text, "must be a list"));
        json_decref(tree);
    }
    assert_int_equal(json_array_size(target.rules), 2);
    options_release(list_rows, &target);
    assert_null(target.rules);
}

static void test_absent_left_alone(void **state)
{
    struct target target = {.lazy = true, .number = 5, .size = 6, .mode = 1};
    json_t *tree = parse("");

    target.name = strdup("kept");
    assert_int_equal(options_take(tree, rows, &target, "x", NULL), 0);
    assert_string_equal(target.name, "kept");
    assert_true(target.lazy);
    assert_int_equal(target.number, 5);
    assert_int_equal(target.size, 6);
    assert_int_equal(target.mode, 1);
    assert_null(target.file);
    json_decref(tree);
    options_release(rows, &target);
}

/* A second value takes the place of the first, which is freed. */
static void test_replace(void **state)
{
    struct target target = {.name = NULL};

    for (int i = 0; i < 2; i++) {
        json_t *tree = parse(i ? "name=b,file=node0" : "name=a,file.driver=null");

        assert_int_equal(options_take(tree, rows, &target, "x", NULL), 0);
        json_decref(tree);
    }
    assert_string_equal(target.name, "b");
    assert_string_equal(json_string_value(target.file), "node0");
    options_release(rows, &target);
}

static void test_good_values(void **state)
{
    static const struct {
        const char *text;
        struct target target;
    } cases[] = {
        {"lazy-refcounts", {.lazy = true}},
        {"lazy-refcounts=on", {.lazy = true}},
        {"lazy-refcounts=yes", {.lazy = true}},
        {"lazy-refcounts=true", {.lazy = true}},
        {"lazy-refcounts=off", {.lazy = false}},
        {"lazy-refcounts=no", {.lazy = false}},
        {"lazy-refcounts=false", {.lazy = false}},
        {"json:{\"lazy-refcounts\":true}", {.lazy = true}},
        {"json:{\"lazy-refcounts\":false}", {.lazy = false}},
        {"json:{\"lazy-refcounts\":\"on\"}", {.lazy = true}},
        {"number=18446744073709551615", {.number = UINT64_MAX}},
        {"json:{\"number\":0}", {.number = 0}},
        {"json:{\"number\":9223372036854775807}", {.number = INT64_MAX}},
        {"json:{\"number\":\"7\"}", {.number = 7}},
        {"cluster_size=1.5k", {.size = 1536}},
        {"json:{\"cluster_size\":65536}", {.size = 65536}},
        {"json:{\"cluster_size\":\"2M\"}", {.size = 2 * MIB}},
        {"preallocation=off", {.mode = 0}},
        {"preallocation=metadata", {.mode = 1}},
        {"json:{\"preallocation\":\"full\"}", {.mode = 2}},
        {"json:{\"cache.direct\":true}", {.direct = true}},
        {"json:{\"cache\":{\"direct\":true}}", {.direct = true}},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct target *expected = &cases[i].target;
        struct target target = {.name = NULL};
        json_t *tree = parse(cases[i].text);
        struct error error = {.text = ""};

        target.lazy = !expected->lazy && strstr(cases[i].text, "lazy");
        if (options_take(tree, rows, &target, "x", &error) != 0)
            fail_msg("'%s': %s", cases[i].text, error.text);
        if (target.lazy != expected->lazy || target.number != expected->number ||
            target.size != expected->size || target.mode != expected->mode ||
            target.direct != expected->direct)
            fail_msg("'%s' gives other values", cases[i].text);
        assert_int_equal(options_finish(tree, rows, "x", NULL), 0);
        json_decref(tree);
    }
}

static void test_bad_values(void **state)
{
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"name", "Option 'name' of driver 'd' must be text, not true"},
        {"name.x=1", "must be text, not an object"},
        {"json:{\"name\":null}", "must be text, not null"},
        {"json:{\"name\":7}", "must be text, not 7"},
        {"json:{\"name\":[]}", "must be text, not an array"},
        {"json:{\"name\":1.5}", "must be text, not a fraction"},
        {"json:{\"name\":false}", "must be text, not false"},
        {"lazy-refcounts=", "must be on or off, not ''"},
        {"lazy-refcounts=ON", "must be on or off, not 'ON'"},
        {"lazy-refcounts=1", "must be on or off, not '1'"},
        {"lazy-refcounts=on ", "must be on or off, not 'on '"},
        {"json:{\"lazy-refcounts\":1}", "must be on or off, not 1"},
        {"lazy-refcounts.a=on", "must be on or off, not an object"},
        {"number", "must be a number that is not negative, not true"},
        {"number=", "not ''"},
        {"number=-1", "not '-1'"},
        {"number=64k", "not '64k'"},
        {"number=18446744073709551616", "'number' of driver 'd' is too large: '1844"},
        {"json:{\"number\":-1}", "not -1"},
        {"json:{\"number\":1.0}", "not a fraction"},
        {"cluster_size=1e999", "must be a size in bytes, such as 65536, 64k or 1.5G, not '1e999'"},
        {"cluster_size=9E", "is too large: '9E'"},
        {"cluster_size=64q", "not '64q'"},
        {"json:{\"cluster_size\":-65536}", "not -65536"},
        {"json:{\"cluster_size\":true}", "not true"},
        {"preallocation=", "must be one of off, metadata, full, not ''"},
        {"preallocation=Full", "not 'Full'"},
        {"preallocation", "must be one of off, metadata, full, not true"},
        {"json:{\"preallocation\":1}", "not 1"},
        {"file", "must be a group of options or the name of a node, not true"},
        {"json:{\"file\":[]}", "not an array"},
        {"json:{\"file\":null}", "not null"},
        {"cache.direct=maybe", "Option 'cache.direct' of driver 'd' must be on or off"},
        {"name=a\nb,number=\x1b'x", "not '\\x1b\\'x'"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct target target = {.name = NULL};
        struct error error = {.text = ""};
        json_t *tree = parse(cases[i].text);

        if (options_take(tree, rows, &target, "driver 'd'", &error) != -EINVAL)
            fail_msg("'%s' is taken", cases[i].text);
        if (!strstr(error.text, cases[i].message))
            fail_msg("'%s' is refused with: %s", cases[i].text, error.text);
        assert_int_equal(options_take(tree, rows, &target, "driver 'd'", NULL), -EINVAL);
        json_decref(tree);
        options_release(rows, &target);
    }
}

/* The parser keeps NUL out; a tree that was made otherwise may have one. */
static void test_nul_in_value(void **state)
{
    static const char *const keys[] = {"name",         "lazy-refcounts", "number",
                                       "cluster_size", "preallocation",  "file"};

    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        struct target target = {.name = NULL};
        struct error error;
        json_t *tree = json_object();

        json_object_set_new(tree, keys[i], json_stringn("1\0x", 3));
        assert_int_equal(options_take(tree, rows, &target, "x", &error), -EINVAL);
        assert_non_null(strstr(error.text, "'1\\x00x'"));
        json_decref(tree);
        options_release(rows, &target);
    }
}

static void test_long_value(void **state)
{
    char *text = malloc(10020);
    struct target target = {.name = NULL};
    struct error error;
    json_t *tree;

    assert_non_null(text);
    strcpy(text, "number=");
    memset(text + 7, '\'', 10000);
    text[10007] = '\0';
    tree = parse(text);
    assert_int_equal(options_take(tree, rows, &target, "x", &error), -EINVAL);
    assert_non_null(strstr(error.text, "\\'...'"));
    assert_true(strlen(error.text) < 300);
    json_decref(tree);
    free(text);
}

static void test_finish(void **state)
{
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"zzz=1", "Option 'zzz' is unknown. Options of driver 'd': name, lazy-refcounts, number, "
                  "cluster_size, preallocation, file, cache.direct, encrypt.key.id"},
        {"zzz=1,yyy=2", "'zzz' is unknown"},
        {"lazy_refcounts=on", "did you mean 'lazy-refcounts'?"},
        {"cluster-size=64k", "did you mean 'cluster_size'?"},
        {"clustersize=64k", "did you mean 'cluster_size'?"},
        {"preallocaton=full", "did you mean 'preallocation'?"},
        {"cache.drect=on", "'cache.drect' is unknown: did you mean 'cache.direct'?"},
        {"help", "Option 'help' is unknown. Options of driver 'd': name"},
        {"Name=1", "did you mean 'name'?"},
        {"cache.direct=on,cache.other.x=1", "Option 'cache.other.x' is unknown"},
        {"json:{\"cache\":{}}", "Option 'cache' is unknown"},
        {"a\nb\"=1", "Option 'a\\x0ab\"' is unknown"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct target target = {.name = NULL};
        struct error error = {.text = ""};
        json_t *tree = parse(cases[i].text);

        assert_int_equal(options_take(tree, rows, &target, "driver 'd'", &error), 0);
        assert_int_equal(options_finish(tree, rows, "driver 'd'", &error), -EINVAL);
        if (!strstr(error.text, cases[i].message))
            fail_msg("'%s' is refused with: %s", cases[i].text, error.text);
        assert_int_equal(options_finish(tree, rows, "driver 'd'", NULL), -EINVAL);
        json_decref(tree);
    }
}

static void test_finish_odd(void **state)
{
    static const struct option_row none[] = {{NULL}};
    struct error error;
    char long_key[3000];
    json_t *tree = parse("a=1");

    assert_int_equal(options_take(tree, none, NULL, "filter 'f'", NULL), 0);
    assert_int_equal(options_finish(tree, none, "filter 'f'", &error), -EINVAL);
    assert_string_equal(error.text, "Option 'a' is unknown: filter 'f' takes no options");
    json_decref(tree);

    memset(long_key, 'k', sizeof(long_key) - 1);
    long_key[sizeof(long_key) - 1] = '\0';
    tree = parse(long_key);
    assert_int_equal(options_finish(tree, rows, "driver 'd'", &error), -EINVAL);
    assert_non_null(strstr(error.text, "kkk...' is unknown"));
    json_decref(tree);
}

static void test_print(void **state)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    options_print(out, rows);
    fclose(out);
    assert_string_equal(text, "  name=TEXT                        what it is called\n"
                              "  lazy-refcounts=on|off            whether to wait\n"
                              "  number=NUMBER                    how many\n"
                              "  cluster_size=SIZE                how large\n"
                              "  preallocation=off|metadata|full  how much at once\n"
                              "  file=NODE                        where the bytes are\n"
                              "  cache.direct=on|off              past the page cache\n"
                              "  encrypt.key.id=TEXT              \n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_take_all),     cmocka_unit_test(test_absent_left_alone),
        cmocka_unit_test(test_lists),        cmocka_unit_test(test_replace),
        cmocka_unit_test(test_good_values),  cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_nul_in_value), cmocka_unit_test(test_long_value),
        cmocka_unit_test(test_finish),       cmocka_unit_test(test_finish_odd),
        cmocka_unit_test(test_print),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
