/* SPDX-License-Identifier: BSD-3-Clause */
/* The text of options: what tree it gives, and what is refused with which words. */
#include "base/options.h"

#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The tree of a text as compact JSON with sorted keys (allocated), or NULL when it is refused. */
static char *tree_of(const char *text, const char *implied_key, struct error *error)
{
    json_t *tree = NULL;
    char *dump;

    error->text[0] = '\0';
    if (options_parse(text, implied_key, &tree, error) < 0) {
        assert_null(tree);
        return NULL;
    }
    dump = json_dumps(tree, JSON_COMPACT | JSON_SORT_KEYS);
    assert_non_null(dump);
    json_decref(tree);
    return dump;
}

struct good_row {
    const char *text;
    const char *implied_key;
    const char *tree;
};

static void check_good(const struct good_row *rows, size_t count)
{
    struct error error;

    for (size_t i = 0; i < count; i++) {
        char *tree = tree_of(rows[i].text, rows[i].implied_key, &error);

        if (!tree || strcmp(tree, rows[i].tree) != 0)
            fail_msg("'%s' gives %s %s", rows[i].text, tree ? tree : "nothing:", error.text);
        free(tree);
    }
}

static void test_words(void **state)
{
    static const struct good_row rows[] = {
        {"", NULL, "{}"},
        {"", "file", "{}"},
        {"a=b", NULL, "{\"a\":\"b\"}"},
        {"a=b,c=d", NULL, "{\"a\":\"b\",\"c\":\"d\"}"},
        {"a=", NULL, "{\"a\":\"\"}"},
        {"a=,b=", NULL, "{\"a\":\"\",\"b\":\"\"}"},
        {"a=b=c", NULL, "{\"a\":\"b=c\"}"},
        {"a= b ", NULL, "{\"a\":\" b \"}"},
        {"a", NULL, "{\"a\":true}"},
        {"a,b=1,nofoo", NULL, "{\"a\":true,\"b\":\"1\",\"nofoo\":true}"},
        {"a=1,", NULL, "{\"a\":\"1\"}"},
        {"a,", NULL, "{\"a\":true}"},
        /* doubled commas */
        {"a=x,,y", NULL, "{\"a\":\"x,y\"}"},
        {"a=,,", NULL, "{\"a\":\",\"}"},
        {"a=,,,,", NULL, "{\"a\":\",,\"}"},
        {"a=,,,b=1", NULL, "{\"a\":\",\",\"b\":\"1\"}"},
        {"a=1,,b=2", NULL, "{\"a\":\"1,b=2\"}"},
        {"a=1,,,b=2", NULL, "{\"a\":\"1,\",\"b\":\"2\"}"},
        /* the implied key */
        {"disk.img", "file", "{\"file\":\"disk.img\"}"},
        {"disk.img,a=1", "file", "{\"a\":\"1\",\"file\":\"disk.img\"}"},
        {"a,,b,c", "file", "{\"c\":true,\"file\":\"a,b\"}"},
        {"a,,b=c", "file", "{\"file\":\"a,b=c\"}"},
        {"a=1,disk.img", "file", "{\"a\":\"1\",\"disk\":{\"img\":true}}"},
        {"a=1", "file", "{\"a\":\"1\"}"},
        {",a=1", "file", "{\"a\":\"1\",\"file\":\"\"}"},
        {"x", "file.filename", "{\"file\":{\"filename\":\"x\"}}"},
        /* not JSON: the prefix is exact */
        {"JSON:{}", NULL, "{\"JSON:{}\":true}"},
        {" json:{}", NULL, "{\" json:{}\":true}"},
        {"json={}", NULL, "{\"json\":\"{}\"}"},
        {"a=json:{}", NULL, "{\"a\":\"json:{}\"}"},
    };

    check_good(rows, ARRAY_SIZE(rows));
}

static void test_nesting(void **state)
{
    static const struct good_row rows[] = {
        {"a.b=c", NULL, "{\"a\":{\"b\":\"c\"}}"},
        {"a.b", NULL, "{\"a\":{\"b\":true}}"},
        {"a.b.c.d=1", NULL, "{\"a\":{\"b\":{\"c\":{\"d\":\"1\"}}}}"},
        {"a.b=1,a.c=2,d=3,a.e.f=4", NULL,
         "{\"a\":{\"b\":\"1\",\"c\":\"2\",\"e\":{\"f\":\"4\"}},\"d\":\"3\"}"},
        {"a=x.y", NULL, "{\"a\":\"x.y\"}"},
        {"driver=qcow2,file.driver=file,file.filename=/a,,b.img,backing.driver=raw", NULL,
         "{\"backing\":{\"driver\":\"raw\"},\"driver\":\"qcow2\","
         "\"file\":{\"driver\":\"file\",\"filename\":\"/a,b.img\"}}"},
    };

    check_good(rows, ARRAY_SIZE(rows));
}

static void test_json(void **state)
{
    static const struct good_row rows[] = {
        {"json:{}", NULL, "{}"},
        {"json: { }\n", "file", "{}"},
        {"json:{\"a\":1,\"b\":true,\"c\":null,\"d\":[1,{\"x\":2}],\"e\":\"t,,u\"}", NULL,
         "{\"a\":1,\"b\":true,\"c\":null,\"d\":[1,{\"x\":2}],\"e\":\"t,,u\"}"},
        {"json:{\"a\":{\"b\":{}}}", NULL, "{\"a\":{\"b\":{}}}"},
        {"json:{\"s\":\"[[{{\\\"\\\\\"}", NULL, "{\"s\":\"[[{{\\\"\\\\\"}"},
        {"json:{\"a.b\":1}", NULL, "{\"a\":{\"b\":1}}"},
        {"json:{\"a\":{\"b\":1},\"a.c\":2}", NULL, "{\"a\":{\"b\":1,\"c\":2}}"},
        {"json:{\"a.c\":2,\"a\":{\"b\":1}}", NULL, "{\"a\":{\"b\":1,\"c\":2}}"},
        {"json:{\"a\":{\"b.c\":1},\"a.b\":{\"d\":2}}", NULL, "{\"a\":{\"b\":{\"c\":1,\"d\":2}}}"},
        {"json:{\"n\":9223372036854775807,\"m\":-1,\"f\":1.5}", NULL,
         "{\"f\":1.5,\"m\":-1,\"n\":9223372036854775807}"},
    };

    check_good(rows, ARRAY_SIZE(rows));
}

struct bad_row {
    const char *text;
    const char *implied_key;
    const char *message; /* a part of it */
};

static void check_bad(const struct bad_row *rows, size_t count)
{
    struct error error;
    json_t *tree;

    for (size_t i = 0; i < count; i++) {
        char *dump = tree_of(rows[i].text, rows[i].implied_key, &error);

        if (dump)
            fail_msg("'%s' gives %s", rows[i].text, dump);
        if (!strstr(error.text, rows[i].message))
            fail_msg("'%s' is refused with: %s", rows[i].text, error.text);
        assert_int_equal(options_parse(rows[i].text, rows[i].implied_key, &tree, NULL), -EINVAL);
    }
}

static void test_bad_words(void **state)
{
    static const struct bad_row rows[] = {
        {"=", NULL, "Option name '' is empty"},
        {"=x", NULL, "Option name '' is empty"},
        {"=x", "file", "Option name '' is empty"},
        {",", NULL, "empty"},
        {",,", NULL, "empty"},
        {",a=1", NULL, "empty"},
        {"a,,b", NULL, "empty"},
        {"a=1,=2", NULL, "empty"},
        {".", NULL, "empty part"},
        {".a=1", NULL, "'.a'"},
        {"a.=1", NULL, "'a.'"},
        {"a..b=1", NULL, "'a..b'"},
        {"a=1,a=2", NULL, "'a' is given twice"},
        {"a,a", NULL, "'a' is given twice"},
        {"a=1,a", NULL, "'a' is given twice"},
        {"a.b=1,a.b=2", NULL, "'b' is given twice"},
        {"x,file=y", "file", "'file' is given twice"},
        {"a=1,a.b=2", NULL, "'a' is given as a value and as a parent"},
        {"a.b=1,a=2", NULL, "'a' is given as a value and as a parent"},
        {"a,a.b", NULL, "as a value and as a parent"},
        {"a.b=1,a.b.c=2", NULL, "'b' is given as a value and as a parent"},
        {"a.b.c=1,a.b=2", NULL, "'b' is given as a value and as a parent"},
        {"\xff=1", NULL, "'\\xff' is not UTF-8"},
        {"a.\xc0\x80=1", NULL, "is not UTF-8"},
        {"a\nb=1,a\nb=2", NULL, "'a\\x0ab' is given twice"},
    };

    check_bad(rows, ARRAY_SIZE(rows));
}

static void test_bad_json(void **state)
{
    static const struct bad_row rows[] = {
        {"json:", NULL, "not valid JSON"},
        {"json:{", NULL, "not valid JSON"},
        {"json:{}x", NULL, "not valid JSON"},
        {"json:{}{}", NULL, "not valid JSON"},
        {"json:{\"a\":1,}", NULL, "not valid JSON"},
        {"json:{'a':1}", NULL, "not valid JSON"},
        {"json:{a:1}", NULL, "not valid JSON"},
        {"json:{\"a\":}", NULL, "not valid JSON"},
        {"json:{\"a\":\"\\", NULL, "not valid JSON"},
        {"json:{\"a\":\"\\u12\"}", NULL, "not valid JSON"},
        {"json:{\"a\":\"\\ud800\"}", NULL, "not valid JSON"},
        {"json:{\"a\":\"\xff\"}", NULL, "not valid JSON"},
        {"json:{\"a\":\"x\ny\"}", NULL, "not valid JSON"},
        {"json:{\"a\":\"x\\u0000y\"}", NULL, "not valid JSON"},
        {"json:{\"a\\u0000b\":1}", NULL, "not valid JSON"},
        {"json:{\"a\":99999999999999999999}", NULL, "not valid JSON"},
        {"json:{\"a\":1e999}", NULL, "not valid JSON"},
        {"json:{\"a\":0x10}", NULL, "not valid JSON"},
        {"json:{\"a\":NaN}", NULL, "not valid JSON"},
        {"json:{\"a\":1,\"a\":2}", NULL, "not valid JSON"},
        {"json:{\"b\":{\"a\":1,\"a\":2}}", NULL, "not valid JSON"},
        {"json:[]", NULL, "must be one object"},
        {"json:[{}]", NULL, "must be one object"},
        {"json:1", NULL, "not valid JSON"},
        {"json:\"x\"", NULL, "not valid JSON"},
        {"json:null", NULL, "not valid JSON"},
        {"json:{\"\":1}", NULL, "empty"},
        {"json:{\".\":1}", NULL, "empty part"},
        {"json:{\"a.\":{}}", NULL, "empty part"},
        {"json:{\"a\":{\"\":1}}", NULL, "empty"},
        {"json:{\"a\":1,\"a.b\":2}", NULL, "as a value and as a parent"},
        {"json:{\"a.b\":1,\"a\":2}", NULL, "as a value and as a parent"},
        {"json:{\"a\":[],\"a.b\":2}", NULL, "as a value and as a parent"},
        {"json:{\"a\":{\"b\":1},\"a.b\":2}", NULL, "'b' is given twice"},
        {"json:{\"a.b\":1,\"a\":{\"b\":2}}", NULL, "'b' is given twice"},
    };

    check_bad(rows, ARRAY_SIZE(rows));
}

/* `head`, `count` times `piece`, `tail`: allocated. */
static char *repeated(const char *head, const char *piece, size_t count, const char *tail)
{
    size_t piece_length = strlen(piece);
    char *text = malloc(strlen(head) + count * piece_length + strlen(tail) + 1);
    char *at;

    assert_non_null(text);
    at = stpcpy(text, head);
    for (size_t i = 0; i < count; i++, at += piece_length)
        memcpy(at, piece, piece_length);
    strcpy(at, tail);
    return text;
}

static int parse_and_drop(char *text, struct error *error)
{
    json_t *tree = NULL;
    int r = options_parse(text, NULL, &tree, error);

    json_decref(tree);
    free(text);
    return r;
}

static void test_depth(void **state)
{
    static const size_t many = 200000;
    struct error error;

    assert_int_equal(parse_and_drop(repeated("", "a.", 63, "a=1"), &error), 0);
    assert_int_equal(parse_and_drop(repeated("", "a.", 64, "a=1"), &error), -EINVAL);
    assert_non_null(strstr(error.text, "deeper than 64 levels"));
    assert_int_equal(parse_and_drop(repeated("", "a.", many, "a=1"), &error), -EINVAL);
    assert_non_null(strstr(error.text, "deeper than 64 levels"));

    assert_int_equal(parse_and_drop(repeated("json:{\"a\":", "[", 63, ""), &error), -EINVAL);
    assert_non_null(strstr(error.text, "not valid JSON"));
    assert_int_equal(parse_and_drop(repeated("json:{\"a\":", "[", 64, ""), &error), -EINVAL);
    assert_non_null(strstr(error.text, "deeper than 64 levels"));
    assert_int_equal(parse_and_drop(repeated("json:", "[", many, ""), &error), -EINVAL);
    assert_non_null(strstr(error.text, "deeper than 64 levels"));
    assert_int_equal(parse_and_drop(repeated("json:", "{\"a\":", many, "1"), &error), -EINVAL);
    assert_non_null(strstr(error.text, "deeper than 64 levels"));
    /* Brackets in strings and closed ones do not count. */
    assert_int_equal(parse_and_drop(repeated("json:{\"a\":\"", "[{", many, "\"}"), &error), 0);
    assert_int_equal(parse_and_drop(repeated("json:{\"a\":[0", ",[]", many, "]}"), &error), 0);
    /* Nesting and dots count together. */
    assert_int_equal(parse_and_drop(repeated("json:{\"x\":{\"", "a.", 62, "a\":1}}"), &error), 0);
    assert_int_equal(parse_and_drop(repeated("json:{\"x\":{\"", "a.", 63, "a\":1}}"), &error),
                     -EINVAL);
    assert_non_null(strstr(error.text, "deeper than 64 levels"));
    assert_int_equal(parse_and_drop(repeated("json:{\"", "a.", 62, "a\":{}}"), &error), 0);
    assert_int_equal(parse_and_drop(repeated("json:{\"", "a.", 63, "a\":{}}"), &error), -EINVAL);
    assert_int_equal(parse_and_drop(repeated("json:{\"", "a.", 60, "a\":[{\"b\":[]}]}"), &error),
                     0);
    assert_int_equal(parse_and_drop(repeated("json:{\"", "a.", 61, "a\":[{\"b\":[]}]}"), &error),
                     -EINVAL);
    assert_non_null(strstr(error.text, "deeper than 64 levels"));
}

static void test_huge(void **state)
{
    struct error error;

    assert_int_equal(parse_and_drop(repeated("a=", "x", MIB - 2, ""), &error), 0);
    assert_int_equal(parse_and_drop(repeated("a=", "x", MIB - 1, ""), &error), -EINVAL);
    assert_non_null(strstr(error.text, "longer than 1 MiB"));
    assert_int_equal(parse_and_drop(repeated("json:{\"a\":\"", "x", MIB, "\"}"), &error), -EINVAL);
    assert_non_null(strstr(error.text, "longer than 1 MiB"));
    assert_int_equal(parse_and_drop(repeated("", "x", MIB - 2, "=1"), &error), 0);
    assert_int_equal(parse_and_drop(repeated("a=", ",", MIB - 2, ""), &error), 0);
    assert_int_equal(parse_and_drop(repeated("", "=,", MIB / 2, ""), &error), -EINVAL);
    /* A long name is cut in the message. */
    assert_int_equal(parse_and_drop(repeated("", "\n", 5000, "..=1"), &error), -EINVAL);
    assert_non_null(strstr(error.text, "\\x0a...'"));
}

/* Very many keys: done at once, although each is looked up. */
static void test_many_keys(void **state)
{
    enum { KEYS = 100000 };
    char *text = malloc(MIB + 1);
    json_t *tree = NULL;
    size_t used = 0;

    assert_non_null(text);
    for (int i = 0; i < KEYS; i++)
        used += (size_t)sprintf(text + used, "k%x=%d,", (unsigned)i, i % 10);
    assert_true(used <= MIB);
    assert_int_equal(options_parse(text, NULL, &tree, NULL), 0);
    assert_int_equal(json_object_size(tree), KEYS);
    assert_string_equal(json_string_value(json_object_get(tree, "k1869f")), "9");
    json_decref(tree);
    free(text);
}

/* File names need not be UTF-8. */
static void test_bytes_in_values(void **state)
{
    json_t *tree;
    json_t *value;

    assert_int_equal(options_parse("f=/a\xff\xfe,,\n", NULL, &tree, NULL), 0);
    value = json_object_get(tree, "f");
    assert_int_equal(json_string_length(value), 6);
    assert_memory_equal(json_string_value(value), "/a\xff\xfe,\n", 6);
    json_decref(tree);
}

/* Each text cut at each length is taken or refused, with the message for what is refused. */
static void test_cut_texts(void **state)
{
    static const char *const texts[] = {
        "driver=qcow2,file.driver=file,file.filename=/a,,b.img,lazy,cache.direct=on",
        "json:{\"driver\":\"qcow2\",\"file\":{\"filename\":\"\\u00e9\\\"x\"},\"n\":[1,-2.5e3,null]"
        "}",
    };

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        for (size_t length = 0; length <= strlen(texts[i]); length++) {
            char *text = strndup(texts[i], length);
            struct error error = {.text = ""};
            int r;

            assert_non_null(text);
            r = parse_and_drop(text, &error);
            assert_true(r == 0 || r == -EINVAL);
            assert_int_equal(r == 0, error.text[0] == '\0');
            if (length == strlen(texts[i]))
                assert_int_equal(r, 0);
            else if (i == 1 && length >= 5)
                assert_int_equal(r, -EINVAL);
        }
    }
}

static long allocations_left;

static void *failing_malloc(size_t size)
{
    return allocations_left-- > 0 ? malloc(size) : NULL;
}

/* The k-th allocation of the tree fails, for every k: refused with words, nothing leaks. */
static void test_out_of_memory(void **state)
{
    static const char *const texts[] = {
        "disk,a=1,b.c=2,b.d,e.f.g=x,,y",
        "json:{\"a\":[1,{\"b\":2.5}],\"c\":{\"d\":\"x\"},\"c.e.f\":null}",
    };

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        int r = -ENOMEM;

        for (long k = 0; r < 0; k++) {
            struct error error = {.text = ""};
            json_t *tree = NULL;

            assert_true(k < 1000);
            allocations_left = k;
            json_set_alloc_funcs(failing_malloc, free);
            r = options_parse(texts[i], "file", &tree, &error);
            json_set_alloc_funcs(malloc, free);
            /* The JSON library takes a token that it has no memory for as a bad one. */
            assert_true(r == 0 || r == -ENOMEM || (i == 1 && r == -EINVAL));
            assert_int_equal(r < 0, tree == NULL);
            assert_int_equal(r < 0, error.text[0] != '\0');
            json_decref(tree);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_bad_words),
        cmocka_unit_test(test_bad_json),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_huge),
        cmocka_unit_test(test_many_keys),
        cmocka_unit_test(test_bytes_in_values),
        cmocka_unit_test(test_cut_texts),
        cmocka_unit_test(test_out_of_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
