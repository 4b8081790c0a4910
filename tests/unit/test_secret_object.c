/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Secrets of the command line: where they come from and how they are written.  What is encrypted
 * here was made by `openssl enc -aes-256-cbc -a -K ... -iv ...`, without padding (-nopad) where it
 * has to be wrong.
 */
#include "tls/secret_object.h"

#include "base/checked.h"
#include "config.h"
#include "tests/support/support.h"

#include <errno.h>
#include <linux/keyctl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#define KEY "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
#define IV "8ODQwLCgkIBwYFBAMCAQAA=="

static int setup(void **state)
{
    *state = test_dir_make();
    return 0;
}

static int teardown(void **state)
{
    test_dir_remove(*state);
    return 0;
}

/* Makes one secret `s` with the key `k` there; its bytes are `wanted`, or the message says so. */
static void check_secret(const struct secret_object *object, const void *wanted, size_t length,
                         const char *says)
{
    static const struct secret_object key = {.data = (char *)(uintptr_t)KEY,
                                             .format = SECRET_BASE64};
    struct secret_store store;
    const struct secret *found;
    struct error error = {""};
    int r;

    secret_store_init(&store);
    assert_int_equal(secret_object_load(&key, "k", &store, &error), 0);
    r = secret_object_load(object, "s", &store, &error);
    found = secret_store_find(&store, "s");
    if (says) {
        assert_true(r < 0);
        if (!strstr(error.text, says))
            fail_msg("'%s' instead of '%s'", error.text, says);
        assert_null(found);
    } else {
        if (r < 0)
            fail_msg("%s", error.text);
        assert_int_equal(found->length, length);
        assert_memory_equal(found->data, wanted, length);
    }
    secret_store_fini(&store);
}

struct row {
    const char *name;
    struct secret_object object;
    const char *wanted;
    size_t length;
    const char *says;
};

#define TEXT(text) .data = (char *)(uintptr_t)(text)
#define BASE64(text) TEXT(text), .format = SECRET_BASE64
#define WRAPPED(text) BASE64(text), .keyid = (char *)(uintptr_t) "k", .iv = (char *)(uintptr_t)IV

static void test_text(void **state)
{
    static const struct row rows[] = {
        {"raw", {TEXT("pass word\n")}, "pass word\n", 10, NULL},
        {"empty", {TEXT("")}, "", 0, NULL},
        {"base64", {BASE64("cGFz\ncw==\n")}, "pass", 4, NULL},
        {"NUL in base64", {BASE64("AAEA")}, "\0\1\0", 3, NULL},
        {"bad base64", {BASE64("cGFz!")}, NULL, 0, "Base64 of its data contains invalid"},
        {"cut base64", {BASE64("cGFzc")}, NULL, 0, "Base64 of its data contains invalid"},
        {"nothing", {.format = SECRET_RAW}, NULL, 0, "Either 'file' or 'data' must be provided"},
        {"both", {TEXT("a"), .file = (char *)(uintptr_t) "b"}, NULL, 0, "mutually exclusive"},
        {"no file",
         {.file = (char *)(uintptr_t) "/nonexistent/secret"},
         NULL,
         0,
         "Could not open '/nonexistent/secret': No such file"},
        {"iv without key", {TEXT("a"), .iv = (char *)(uintptr_t)IV}, NULL, 0, "with 'keyid'"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        check_secret(&rows[i].object, rows[i].wanted, rows[i].length, rows[i].says);
}

static void test_files(void **state)
{
    char *path = test_path(*state, "secret");
    struct secret_object object = {.file = path};
    char *large = calloc(1, 2 * SECRET_BYTES_MAX + 1);

    test_file_write(path, "a\0b\n", 4);
    check_secret(&object, "a\0b\n", 4, NULL);
    test_file_write(path, large, SECRET_BYTES_MAX);
    check_secret(&object, large, SECRET_BYTES_MAX, NULL);
    test_file_write(path, large, SECRET_BYTES_MAX + 1);
    check_secret(&object, NULL, 0, "at most");
    test_file_write(path, large, 2 * SECRET_BYTES_MAX + 1);
    check_secret(&object, NULL, 0, "has more than");
    object.format = SECRET_BASE64;
    test_file_write(path, "cGFzcw==\n", 9);
    check_secret(&object, "pass", 4, NULL);
    free(large);
    free(path);
}

static void test_wrapped(void **state)
{
    static const uint8_t raw[] = {0x7e, 0x87, 0x92, 0x9f, 0xae, 0x07, 0x01, 0x2c, 0x81, 0x0d, 0x8c,
                                  0x1d, 0xc5, 0x55, 0x9c, 0x84, 0xe1, 0xb3, 0xee, 0x77, 0x27, 0xd9,
                                  0x0b, 0x1e, 0x04, 0x58, 0x2f, 0xac, 0x30, 0xea, 0xbc, 0x95};
    static const struct row rows[] = {
        {"short", {WRAPPED("olv6sA0xpASqo/PxLkTQ9w==")}, "correct horse", 13, NULL},
        {"empty", {WRAPPED("bcL6bJ1IOEkpCdz03UmQlw==")}, "", 0, NULL},
        {"whole block",
         {WRAPPED("foeSn64HASyBDYwdxVWchOGz7ncn2QseBFgvrDDqvJU=")},
         "0123456789abcdef",
         16,
         NULL},
        {"no padding", {WRAPPED("EOrRL4QgkklgrryWvwo6Qg==")}, NULL, 0, "Incorrect padding"},
        {"padding 0", {WRAPPED("TvqdbgY8jkqtsFCxTuZvNg==")}, NULL, 0, "Incorrect padding"},
        {"padding 17", {WRAPPED("Zzm9lbsM4g7b2AN1XpaGuw==")}, NULL, 0, "Incorrect padding"},
        {"mixed padding", {WRAPPED("XUMGWBQ2PetAU+S494XFaQ==")}, NULL, 0, "Incorrect padding"},
        {"no block", {WRAPPED("")}, NULL, 0, "Length 0 of the encrypted data must be"},
        {"half a block", {WRAPPED("olv6sA0xpAQ=")}, NULL, 0, "Length 8 of the encrypted data"},
    };
    char *path = test_path(*state, "wrapped");
    const struct secret_object file = {
        .file = path, .keyid = (char *)(uintptr_t) "k", .iv = (char *)(uintptr_t)IV};

#ifndef HAVE_GNUTLS
    test_skip("this build is without GnuTLS, which decrypts secrets");
#endif
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
        check_secret(&rows[i].object, rows[i].wanted, rows[i].length, rows[i].says);
    test_file_write(path, raw, sizeof(raw));
    check_secret(&file, "0123456789abcdef", 16, NULL);
    free(path);
}

static void test_bad_keys(void **state)
{
    struct secret_object object = {WRAPPED("olv6sA0xpASqo/PxLkTQ9w==")};

    object.keyid = (char *)(uintptr_t) "none";
    check_secret(&object, NULL, 0, "No secret with id 'none'");
    object.keyid = (char *)(uintptr_t) "s"; /* itself */
    check_secret(&object, NULL, 0, "No secret with id 's'");
    object.keyid = (char *)(uintptr_t) "k";
    object.iv = NULL;
    check_secret(&object, NULL, 0, "IV is required to decrypt secret");
    object.iv = (char *)(uintptr_t) "AAAA";
    check_secret(&object, NULL, 0, "IV should be 16 bytes in length not 3");
    object.iv = (char *)(uintptr_t) "!";
    check_secret(&object, NULL, 0, "Base64 of its iv contains invalid");
}

static void test_short_key(void **state)
{
    struct secret_object object = {WRAPPED("olv6sA0xpASqo/PxLkTQ9w==")};
    struct secret_store store;
    struct error error = {""};

    secret_store_init(&store);
    assert_int_equal(secret_store_add(&store, "k", "short", 5, &error), 0);
    assert_int_equal(secret_object_load(&object, "s", &store, &error), -EINVAL);
    assert_string_equal(error.text, "Key should be 32 bytes in length, but 'k' has 5");
    secret_store_fini(&store);
}

static void test_keyring(void **state)
{
    struct secret_object object = {.in_keyring = true};
    long serial =
        syscall(SYS_add_key, "user", "evnbd-test", "in the ring", 11, KEY_SPEC_PROCESS_KEYRING);

    check_secret(&object, NULL, 0, "'serial' must be the number of a key");
    object.serial = (uint64_t)INT32_MAX + 1;
    check_secret(&object, NULL, 0, "'serial' must be the number of a key");
    object.serial = INT32_MAX;
    check_secret(&object, NULL, 0, "Unable to read the key with the serial number 2147483647");
    if (serial < 0) {
        test_skip("there is no keyring here: %s", strerror(errno));
    }
    object.serial = (uint64_t)serial;
    check_secret(&object, "in the ring", 11, NULL);
}

static void test_fini(void **state)
{
    struct secret_object object = {.data = strdup("pass"), .keyid = strdup("k")};

    secret_object_fini(&object);
    assert_null(object.data);
    secret_object_fini(&object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),      cmocka_unit_test(test_files),
        cmocka_unit_test(test_wrapped),   cmocka_unit_test(test_bad_keys),
        cmocka_unit_test(test_short_key), cmocka_unit_test(test_keyring),
        cmocka_unit_test(test_fini),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
