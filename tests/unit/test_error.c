/* SPDX-License-Identifier: BSD-3-Clause */
/* Error texts: what is in them, what is kept out, and how they are cut. */
#include "base/error.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_set(void **state)
{
    struct error error = {.text = ""};

    assert_int_equal(error_set(&error, EINVAL, "Field %d of '%s' is odd", 7, "x"), -EINVAL);
    assert_string_equal(error.text, "Field 7 of 'x' is odd");
    assert_int_equal(error_set_errno(&error, ENOENT, "Cannot open '%s'", "a"), -ENOENT);
    assert_string_equal(error.text, "Cannot open 'a': No such file or directory");
    error_prefix(&error, "Node %d: ", 3);
    assert_string_equal(error.text, "Node 3: Cannot open 'a': No such file or directory");
    /* The old text may be an argument of the new one. */
    error_set(&error, EIO, "<%s>", error.text);
    assert_string_equal(error.text, "<Node 3: Cannot open 'a': No such file or directory>");
    error.text[0] = '\0';
    error_prefix(&error, "alone");
    assert_string_equal(error.text, "alone");
}

static void test_without_text(void **state)
{
    assert_int_equal(error_set(NULL, EPERM, "%s", "text"), -EPERM);
    assert_int_equal(error_set_errno(NULL, EIO, "%s", "text"), -EIO);
    error_prefix(NULL, "%s", "text");
}

static void test_unknown_errno(void **state)
{
    struct error error;

    assert_int_equal(error_set_errno(&error, 98765, "Odd"), -98765);
    assert_non_null(strstr(error.text, "98765"));
}

static void test_made_printable(void **state)
{
    struct error error;

    error_set(&error, EINVAL, "name '%s'", "a\n\x1b[31m\x7f\\b\xff\xc3\xa9\xc2\x9b");
    assert_string_equal(error.text, "name 'a\\x0a\\x1b[31m\\x7f\\b\\xff\xc3\xa9\\xc2\\x9b'");
}

static void test_cut(void **state)
{
    static const size_t lengths[] = {1022, 1023, 1024, 1025, 2047, 2048, 2049, 100000};
    struct error error;

    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        char *long_text = malloc(lengths[i] + 1);

        assert_non_null(long_text);
        memset(long_text, 'x', lengths[i]);
        long_text[lengths[i]] = '\0';
        error_set(&error, EINVAL, "%s", long_text);
        if (lengths[i] < ERROR_TEXT_MAX) {
            assert_string_equal(error.text, long_text);
        } else {
            assert_int_equal(strlen(error.text), ERROR_TEXT_MAX - 1);
            assert_string_equal(error.text + ERROR_TEXT_MAX - 5, "x...");
        }
        error_prefix(&error, "%s", long_text);
        assert_string_equal(error.text + ERROR_TEXT_MAX - 5, "x...");
        error_set_errno(&error, EIO, "%s", long_text);
        assert_string_equal(error.text + ERROR_TEXT_MAX - 5, "x...");
        free(long_text);
    }
}

static void test_escape(void **state)
{
    static const struct {
        const char *text;
        size_t length;
        size_t room;
        const char *escaped;
        const char *printable;
    } rows[] = {
        {"", 0, 16, "", ""},
        {"name", 4, 5, "name", "name"},
        {"names", 5, 5, "n...", "n..."},
        {"name", 4, 4, "...", "..."},
        {"name", 4, 3, "..", ".."},
        {"name", 4, 1, "", ""},
        {"a'b\"c\\", 6, 32, "a\\'b\"c\\\\", "a'b\"c\\"},
        {"ab'c''", 6, 8, "ab\\'...", "ab'c''"},
        {"a\0b", 3, 16, "a\\x00b", "a\\x00b"},
        {"\t\r\n", 3, 16, "\\x09\\x0d\\x0a", "\\x09\\x0d\\x0a"},
        {"\xe2\x82\xac", 3, 4, "\xe2\x82\xac", "\xe2\x82\xac"},
        {"\xe2\x82\xac", 3, 3, "..", ".."},
        {"\xe2\x82", 2, 16, "\\xe2\\x82", "\\xe2\\x82"},
        {"ab\xe2\x82\xac", 5, 5, "a...", "a..."}, /* a sequence is never cut */
        {"\n\n", 2, 8, "\\x0a...", "\\x0a..."},
        {"\n\n", 2, 7, "...", "..."},
        /* Direction: the first and the last of each range are escaped, their neighbors are not. */
        {"\xd8\x9c", 2, 16, "\\xd8\\x9c", "\\xd8\\x9c"},
        {"\xe2\x80\x8d\xe2\x80\x90", 6, 16, "\xe2\x80\x8d\xe2\x80\x90", "\xe2\x80\x8d\xe2\x80\x90"},
        {"\xe2\x80\x8e", 3, 16, "\\xe2\\x80\\x8e", "\\xe2\\x80\\x8e"},
        {"\xe2\x80\x8f", 3, 16, "\\xe2\\x80\\x8f", "\\xe2\\x80\\x8f"},
        {"\xe2\x80\xa7\xe2\x80\xaf", 6, 16, "\xe2\x80\xa7\xe2\x80\xaf", "\xe2\x80\xa7\xe2\x80\xaf"},
        {"\xe2\x80\xa8", 3, 16, "\\xe2\\x80\\xa8", "\\xe2\\x80\\xa8"},
        {"\xe2\x80\xae", 3, 16, "\\xe2\\x80\\xae", "\\xe2\\x80\\xae"},
        {"\xe2\x81\xa5\xe2\x81\xaa", 6, 16, "\xe2\x81\xa5\xe2\x81\xaa", "\xe2\x81\xa5\xe2\x81\xaa"},
        {"\xe2\x81\xa6", 3, 16, "\\xe2\\x81\\xa6", "\\xe2\\x81\\xa6"},
        {"\xe2\x81\xa9", 3, 16, "\\xe2\\x81\\xa9", "\\xe2\\x81\\xa9"},
        {"\xef\xbb\xbf", 3, 16, "\\xef\\xbb\\xbf", "\\xef\\xbb\\xbf"},
        {"\xc2\x85\xc2\xa0", 4, 16, "\\xc2\\x85\xc2\xa0", "\\xc2\\x85\xc2\xa0"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        char *out = malloc(rows[i].room);

        assert_non_null(out);
        assert_ptr_equal(error_escape(out, rows[i].room, rows[i].text, rows[i].length), out);
        if (strcmp(out, rows[i].escaped) != 0)
            fail_msg("row %zu: '%s' instead of '%s'", i, out, rows[i].escaped);
        error_printable(out, rows[i].room, rows[i].text, rows[i].length);
        if (strcmp(out, rows[i].printable) != 0)
            fail_msg("row %zu: '%s' instead of '%s'", i, out, rows[i].printable);
        free(out);
    }
    error_escape(NULL, 0, "name", 4);
}

/* All pairs of bytes, in all rooms: the result is terminated, fits, and is clean UTF-8. */
static void test_escape_any_bytes(void **state)
{
    for (unsigned pair = 0; pair < 0x10000; pair++) {
        uint8_t text[3] = {(uint8_t)(pair >> 8), (uint8_t)pair, 'x'};
        size_t room = 1 + pair % 14;
        char out[16];

        memset(out, '#', sizeof(out));
        error_escape(out, room, text, sizeof(text));
        assert_true(strlen(out) < room);
        assert_int_equal(out[room], '#');
        assert_true(bytes_are_utf8(out, strlen(out)));
        for (const char *p = out; *p; p++)
            assert_true((unsigned char)*p >= 0x20 && *p != 0x7f &&
                        (*p != '\'' || (p > out && p[-1] == '\\')));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_without_text),
        cmocka_unit_test(test_unknown_errno),
        cmocka_unit_test(test_made_printable),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_escape),
        cmocka_unit_test(test_escape_any_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
