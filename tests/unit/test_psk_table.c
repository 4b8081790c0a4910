/* SPDX-License-Identifier: BSD-3-Clause */
/* Files of pre-shared keys. */
#include "tls/psk_table.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define KEY "00112233445566778899aabbCCDDEEFF"

static int parse(struct psk_table *table, const char *text, struct error *error)
{
    /* Not terminated, so that reading past the end is seen. */
    size_t length = strlen(text);
    uint8_t *copy = malloc(length ? length : 1);
    int err;

    assert_non_null(copy);
    memcpy(copy, text, length);
    err = psk_table_parse(table, "keys", copy, length, error);
    free(copy);
    return err;
}

static void test_good(void **state)
{
    static const uint8_t key[] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
                                  0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    struct psk_table table;
    struct error error = {""};

    assert_int_equal(
        parse(&table, "# users\n\nalice:" KEY "\r\nbob:0123456789abcdef\nc:d:" KEY, &error), 0);
    assert_int_equal(table.count, 3);
    assert_non_null(psk_table_find(&table, "alice", 5));
    assert_int_equal(psk_table_find(&table, "alice", 5)->length, 16);
    assert_memory_equal(psk_table_find(&table, "alice", 5)->key, key, 16);
    assert_int_equal(psk_table_find(&table, "bob", 3)->length, 8);
    assert_string_equal(psk_table_find(&table, "c:d", 3)->name, "c:d");
    assert_null(psk_table_find(&table, "alice", 4));
    assert_null(psk_table_find(&table, "alice\0", 6));
    assert_null(psk_table_find(&table, "", 0));
    psk_table_fini(&table);
    psk_table_fini(&table);
}

static void test_bad(void **state)
{
    static const struct {
        const char *text, *says;
    } table[] = {
        {"", "no key in 'keys'"},
        {"# nobody\n\n", "no key in 'keys'"},
        {"alice\n", "Line 1 of the pre-shared keys 'keys' cannot be used: it is not of the form"},
        {"\n:" KEY "\n", "Line 2"},
        {"alice:" KEY "\nalice:" KEY "\n", "Line 2 of the pre-shared keys 'keys' cannot be used: "
                                           "the user has a key already"},
        {"carol:" KEY "\nbob:" KEY "\nbob:" KEY "\nalice:" KEY "\nalice:" KEY "\ncarol:" KEY "\n",
         "Line 3"},
        {"alice:" KEY "0\n", "an even number"},
        {"alice:\n", "16 to 128 hexadecimal digits"},
        {"alice:00112233445566\n", "16 to 128 hexadecimal digits"},
        {"alice:" KEY KEY KEY KEY "00\n", "16 to 128 hexadecimal digits"},
        {"alice:00112233445566778899aabbCCDDEEFG\n", "no hexadecimal digit"},
        {"alice: " KEY " \n", "no hexadecimal digit"},
        {"al\xff:" KEY "\n", "not UTF-8"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
        struct psk_table keys;
        struct error error = {""};

        assert_int_equal(parse(&keys, table[i].text, &error), -EINVAL);
        if (!strstr(error.text, table[i].says))
            fail_msg("'%s' does not say '%s'", error.text, table[i].says);
        assert_null(strstr(error.text, "00112233"));
        assert_null(keys.keys);
    }
}

static void test_long_name(void **state)
{
    char text[2 * PSK_NAME_MAX + 64];
    struct psk_table table;
    struct error error = {""};

    memset(text, 'a', PSK_NAME_MAX + 1);
    snprintf(text + PSK_NAME_MAX, sizeof(text) - PSK_NAME_MAX, ":%s\n", KEY);
    assert_int_equal(parse(&table, text, &error), 0);
    psk_table_fini(&table);
    snprintf(text + PSK_NAME_MAX, sizeof(text) - PSK_NAME_MAX, "a:%s\n", KEY);
    assert_int_equal(parse(&table, text, &error), -EINVAL);
    assert_non_null(strstr(error.text, "128 bytes"));
}

/*
 * A file of the greatest length, 1 MiB, with all the users that it can have: none is compared with
 * all others, nor are all keys copied for each, which would take longer than any test may.
 */
static void test_as_many_as_fit(void **state)
{
    enum { COUNT = (1 << 20) / 24 };
    char *text = malloc(COUNT * 24 + 1), name[8];
    struct psk_table table;
    struct error error = {""};

    assert_non_null(text);
    /* The factor is coprime to the count of names: they are in no order, and each is there once. */
    for (unsigned i = 0; i < COUNT; i++)
        sprintf(text + (size_t)i * 24, "%06u:%016x\n", i * 7919U % 1000000, i);
    assert_int_equal(psk_table_parse(&table, "keys", (uint8_t *)text, COUNT * 24, &error), 0);
    assert_int_equal(table.count, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        const struct psk_key *key;

        snprintf(name, sizeof(name), "%06u", i * 7919U % 1000000);
        key = psk_table_find(&table, name, 6);
        assert_non_null(key);
        assert_int_equal(get_be64(key->key), i);
        assert_int_equal(key->line, i + 1);
    }
    assert_null(psk_table_find(&table, "x", 1));
    assert_null(psk_table_find(&table, "", 0));
    psk_table_fini(&table);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_long_name),
        cmocka_unit_test(test_as_many_as_fit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
