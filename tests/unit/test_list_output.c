/* SPDX-License-Identifier: BSD-3-Clause */
/* evnbd --list: what is known of a server, as text and as JSON. */
#include "daemon/list.h"

#include "nbd/wire.h"

#include <errno.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct nbd_remote_export *add(struct nbd_remote *remote, const char *name, size_t length)
{
    assert_int_equal(nbd_remote_add_export(remote, name, length), 0);
    return &remote->exports[remote->export_count - 1];
}

static void set(struct nbd_remote *remote, struct nbd_text *text, const char *value)
{
    assert_int_equal(nbd_remote_set_text(remote, text, value, strlen(value)), 0);
}

static void examine(struct nbd_remote_export *e, uint64_t size, uint16_t flags)
{
    e->examined = true;
    e->size = size;
    e->flags = flags;
}

/* The example of the reference page of qemu-nbd, and an export of which only the name is known. */
static void known_server(struct nbd_remote *remote)
{
    struct nbd_remote_export *e = add(remote, "foo", 3);

    remote->protocol = NBD_PROTOCOL_FIXED_NEWSTYLE;
    remote->structured_replies = remote->extended_headers = true;
    set(remote, &e->description, "my desc");
    examine(e, 4194304, 0xded);
    e->block_min = 1;
    e->block_preferred = 4096;
    e->block_max = 33554432;
    assert_int_equal(nbd_remote_add_context(remote, e, "base:allocation", 15), 0);
    assert_int_equal(nbd_remote_add_context(remote, e, "qemu:allocation-depth", 21), 0);
    e = add(remote, "", 0);
    set(remote, &e->info_description, "not in the list");
    assert_int_equal(nbd_remote_set_problem(remote, e, "it is locked"), 0);
}

static char *text_of(const struct nbd_remote *remote)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    list_print_text(remote, out);
    fclose(out);
    return text;
}

static void assert_text(const struct nbd_remote *remote, const char *wanted)
{
    char *text = text_of(remote);

    assert_string_equal(text, wanted);
    free(text);
}

static void test_text(void **state)
{
    struct nbd_remote remote = {0};

    known_server(&remote);
    assert_text(&remote, "exports available: 2\n"
                         " export: 'foo'\n"
                         "  description: my desc\n"
                         "  size:  4194304\n"
                         "  flags: 0xded ( flush fua trim zeroes df multi cache fast-zero )\n"
                         "  min block: 1\n"
                         "  opt block: 4096\n"
                         "  max block: 33554432\n"
                         "  transaction size: 64-bit\n"
                         "  available meta contexts: 2\n"
                         "   base:allocation\n"
                         "   qemu:allocation-depth\n"
                         " export: ''\n"
                         "  transaction size: 64-bit\n");
    nbd_remote_fini(&remote);
    assert_text(&remote, "exports available: 0\n");
}

static void test_flags(void **state)
{
    struct nbd_remote remote = {0};

    examine(add(&remote, "all", 3), 1, 0xffff);
    examine(add(&remote, "none", 4), 0, 1);
    examine(add(&remote, "old", 3), 512, 0);
    assert_text(&remote,
                "exports available: 3\n"
                " export: 'all'\n"
                "  size:  1\n"
                "  flags: 0xffff ( readonly flush fua rotational trim zeroes df multi resize cache "
                "fast-zero block-status-payload )\n"
                "  transaction size: 32-bit\n"
                " export: 'none'\n"
                "  size:  0\n"
                "  flags: 0x1 ( )\n"
                "  transaction size: 32-bit\n"
                " export: 'old'\n"
                "  transaction size: 32-bit\n");
    nbd_remote_fini(&remote);
}

static void test_words_follow_the_protocol(void **state)
{
    assert_null(list_flag_word(0));
    assert_string_equal(list_flag_word(1), "readonly");
    for (unsigned bit = 0; bit < 16; bit++)
        if (1U << bit == NBD_FLAG_BLOCK_STATUS_PAYLOAD)
            assert_string_equal(list_flag_word(bit), "block-status-payload");
    assert_null(list_flag_word(13));
    assert_null(list_flag_word(200));
}

/* Whatever a server says, a terminal sees no control byte and no half character. */
static void test_texts_are_made_safe(void **state)
{
    struct nbd_remote remote = {0};
    struct nbd_remote_export *e = add(&remote, "a\0b\x1b[31m'\"\\\xff\xc3\xa9", 14);

    assert_int_equal(nbd_remote_set_text(&remote, &e->description, "x\ny\xc2\x9b", 5), 0);
    assert_int_equal(nbd_remote_add_context(&remote, e, "c\x07", 2), 0);
    assert_text(&remote, "exports available: 1\n"
                         " export: 'a\\x00b\\x1b[31m'\"\\\\xff\xc3\xa9'\n"
                         "  description: x\\x0ay\\xc2\\x9b\n"
                         "  transaction size: 32-bit\n"
                         "  available meta contexts: 1\n"
                         "   c\\x07\n");
    nbd_remote_fini(&remote);
}

/* The longest name of the worst bytes is shown to its end. */
static void test_longest_name(void **state)
{
    struct nbd_remote remote = {0};
    char *name = malloc(NBD_STRING_MAX), *text;

    assert_non_null(name);
    memset(name, 7, NBD_STRING_MAX);
    add(&remote, name, NBD_STRING_MAX);
    free(name);
    text = text_of(&remote);
    assert_int_equal(strlen(text), strlen("exports available: 1\n export: ''\n"
                                          "  transaction size: 32-bit\n") +
                                       4 * NBD_STRING_MAX);
    free(text);
    nbd_remote_fini(&remote);
}

/* ---- JSON ---- */

static json_t *json_of(const struct nbd_remote *remote)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    json_error_t error;
    json_t *json;

    assert_non_null(out);
    assert_int_equal(list_print_json(remote, out, NULL), 0);
    fclose(out);
    for (const char *p = text; *p; p++)
        assert_true(*p == '\n' || (*p >= 0x20 && *p < 0x7f));
    json = json_loads(text, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!json)
        fail_msg("%s: %s", error.text, text);
    free(text);
    return json;
}

static void assert_json(const struct nbd_remote *remote, const char *wanted)
{
    json_t *got = json_of(remote), *parsed = json_loads(wanted, 0, NULL);

    assert_non_null(parsed);
    if (!json_equal(got, parsed)) {
        json_dumpf(got, stderr, JSON_INDENT(2));
        fail_msg("is not %s", wanted);
    }
    json_decref(got);
    json_decref(parsed);
}

static void test_json(void **state)
{
    struct nbd_remote remote = {0};

    known_server(&remote);
    assert_json(
        &remote,
        "{\"protocol\": \"newstyle-fixed\", \"structured-replies\": true, \"exports\": ["
        "{\"name\": \"foo\", \"description\": \"my desc\", \"size\": 4194304, \"flags\": 3565,"
        " \"flag-words\": [\"flush\", \"fua\", \"trim\", \"zeroes\", \"df\", \"multi\", \"cache\","
        "  \"fast-zero\"], \"min-block\": 1, \"opt-block\": 4096, \"max-block\": 33554432,"
        " \"transaction-size\": 64, \"contexts\": [\"base:allocation\", "
        "\"qemu:allocation-depth\"]},"
        "{\"name\": \"\", \"description\": \"not in the list\", \"transaction-size\": 64,"
        " \"contexts\": [], \"problem\": \"it is locked\"}]}");
    nbd_remote_fini(&remote);
    assert_json(&remote, "{\"protocol\": \"oldstyle\", \"structured-replies\": false,"
                         " \"exports\": []}");
}

static void test_json_numbers(void **state)
{
    struct nbd_remote remote = {.protocol = NBD_PROTOCOL_NEWSTYLE};
    struct nbd_remote_export *e = add(&remote, "x", 1);

    examine(e, INT64_MAX, 0);
    e->block_min = 512;
    e->block_preferred = 65536;
    e->block_max = UINT32_MAX;
    assert_json(&remote,
                "{\"protocol\": \"newstyle\", \"structured-replies\": false, \"exports\": ["
                "{\"name\": \"x\", \"size\": 9223372036854775807, \"flags\": 0,"
                " \"flag-words\": [], \"min-block\": 512, \"opt-block\": 65536,"
                " \"max-block\": 4294967295, \"transaction-size\": 32, \"contexts\": []}]}");
    nbd_remote_fini(&remote);
}

static const char *string_in(json_t *json, size_t i, const char *key)
{
    return json_string_value(
        json_object_get(json_array_get(json_object_get(json, "exports"), i), key));
}

/* UTF-8 comes back as it was, control characters included; what is none has its bytes told. */
static void test_json_texts(void **state)
{
    struct nbd_remote remote = {0};
    struct nbd_remote_export *e = add(&remote, "caf\xc3\xa9 \x1b\"\\", 9);
    json_t *json;

    set(&remote, &e->canonical_name, "\xf0\x9f\x92\xbe");
    add(&remote, "\xff'x", 3);
    add(&remote, "a\0b", 3);
    json = json_of(&remote);
    assert_string_equal(string_in(json, 0, "name"), "caf\xc3\xa9 \x1b\"\\");
    assert_string_equal(string_in(json, 0, "canonical-name"), "\xf0\x9f\x92\xbe");
    assert_string_equal(string_in(json, 1, "name"), "\\xff\\'x");
    assert_string_equal(string_in(json, 2, "name"), "a\\x00b");
    json_decref(json);
    nbd_remote_fini(&remote);
}

/* jansson's allocations fail one after the other. */
static unsigned allocations_left;

static void *failing_malloc(size_t size)
{
    if (allocations_left == 0)
        return NULL;
    allocations_left--;
    return malloc(size);
}

static void test_json_out_of_memory(void **state)
{
    struct nbd_remote remote = {0};
    struct error error;
    unsigned k = 0;
    int err;

    known_server(&remote);
    do {
        FILE *out = fopen("/dev/null", "w");

        assert_non_null(out);
        error.text[0] = '\0';
        allocations_left = k++;
        json_set_alloc_funcs(failing_malloc, free);
        err = list_print_json(&remote, out, &error);
        json_set_alloc_funcs(malloc, free);
        fclose(out);
        assert_true(err == 0 || (err == -ENOMEM && error.text[0]));
    } while (err < 0);
    assert_true(k > 20);
    nbd_remote_fini(&remote);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_words_follow_the_protocol),
        cmocka_unit_test(test_texts_are_made_safe),
        cmocka_unit_test(test_longest_name),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_json_numbers),
        cmocka_unit_test(test_json_texts),
        cmocka_unit_test(test_json_out_of_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
