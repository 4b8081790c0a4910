/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects of the command line: values to objects, their order, messages, help. */
#include "daemon/objects.h"

#include "base/checked.h"
#include "config.h"
#include "tests/support/support.h"
#include "tls/authz.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VALUES_MAX 4
#define KEY "secret,id=k,format=base64,data=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
#define IV "iv=8ODQwLCgkIBwYFBAMCAQAA=="

static struct cli_list list_of(const char *const *values)
{
    struct cli_list list = {.items = (const char **)(uintptr_t)values};

    while (list.count < VALUES_MAX && values[list.count])
        list.count++;
    return list;
}

static struct objects *make(const char *const *values)
{
    const struct cli_list list = list_of(values);
    struct objects *objects;
    struct error error = {""};

    if (objects_new(&list, &objects, &error) < 0)
        fail_msg("%s: %s", values[0], error.text);
    return objects;
}

#define MAKE(...) make((const char *const[VALUES_MAX + 1]){__VA_ARGS__})

static void test_none(void **state)
{
    struct objects *objects = MAKE(NULL);
    struct error error = {""};

    assert_null(secret_store_find(objects_secrets(objects), "a"));
    assert_null(objects_authz(objects, "a", &error));
    assert_string_equal(error.text, "No authorization with id 'a'");
    objects_free(objects);
    objects_free(NULL);
}

static void assert_secret(const struct objects *objects, const char *id, const char *wanted)
{
    const struct secret *secret = secret_store_find(objects_secrets(objects), id);

    assert_non_null(secret);
    assert_string_equal((const char *)secret->data, wanted);
}

static void test_secrets(void **state)
{
    struct objects *objects =
        MAKE("secret,id=a,data=pass,,word", "qom-type=secret,data=cGFzcw==,format=base64,id=b-1._",
             "{\"qom-type\": \"secret\", \"id\": \"c\", \"data\": \"x\"}",
             "json:{\"qom-type\": \"secret\", \"id\": \"d\", \"data\": \"y\"}");

    assert_secret(objects, "a", "pass,word");
    assert_secret(objects, "b-1._", "pass");
    assert_secret(objects, "c", "x");
    assert_secret(objects, "d", "y");
    objects_free(objects);
}

/* What a secret is encrypted with may come behind it. */
static void test_order(void **state)
{
    struct objects *objects;

#ifndef HAVE_GNUTLS
    test_skip("this build is without GnuTLS, which decrypts secrets");
#endif
    objects = MAKE("authz-simple,id=z,identity=x",
                   "secret,id=a,format=base64,data=olv6sA0xpASqo/PxLkTQ9w==,keyid=k," IV, KEY);
    assert_secret(objects, "a", "correct horse");
    objects_free(objects);
}

static void test_authorizations(void **state)
{
    struct objects *objects =
        MAKE("authz-simple,id=one,identity=CN=a,,O=b",
             "authz-list,id=two,policy=deny,rules.0.match=CN=*,rules.0.policy=allow,"
             "rules.0.format=glob",
             "secret,id=three,data=x");
    struct error error = {""};

    assert_true(authz_allows(objects_authz(objects, "one", NULL), "CN=a,O=b"));
    assert_false(authz_allows(objects_authz(objects, "one", NULL), "CN=a"));
    assert_true(authz_allows(objects_authz(objects, "two", NULL), "CN=a"));
    assert_null(objects_authz(objects, "three", &error));
    assert_string_equal(error.text, "Object with id 'three' is not an authorization");
    objects_free(objects);
}

static void test_refused(void **state)
{
    static const struct {
        const char *values[VALUES_MAX + 1];
        const char *says;
    } rows[] = {
        {{""}, "Parameter 'qom-type' is missing"},
        {{"bogus,id=a"},
         "Parameter 'qom-type' does not accept value 'bogus'; types of objects: authz-list, "},
        {{"secret"}, "Parameter 'id' is missing"},
        {{"secret,data=x"}, "Parameter 'id' is missing"},
        {{"secret,id=9a,data=x"}, "Parameter 'id' expects an identifier"},
        {{"secret,id=,data=x"}, "Parameter 'id' expects an identifier"},
        {{"secret,id=a/b,data=x"}, "Parameter 'id' expects an identifier"},
        {{"secret,id=a\xc3\xa4,data=x"}, "Parameter 'id' expects an identifier"},
        {{"secret,id=a,id=b,data=x"}, "Option 'id' is given twice"},
        {{"secret,id=a,data=x", "authz-simple,id=a,identity=x"},
         "there are two objects with the id 'a'"},
        {{"secret,id=a"}, "Object 'a': Either 'file' or 'data' must be provided"},
        {{"secret,id=a,data=x,date=1"},
         "Object 'a': Option 'date' is unknown: did you mean 'data'? Options of secret: data, "},
        {{"secret,id=a,data=x,format=hex"},
         "Object 'a': Option 'format' of secret must be one of raw, base64, not 'hex'"},
        {{"secret,id=a,data=x,keyid=none," IV}, "Object 'a': No secret with id 'none'"},
        {{"secret,id=a,data=x,keyid=a," IV}, "Object 'a': the secrets that it is encrypted with"},
        {{"secret,id=a,data=x,keyid=b," IV, "secret,id=b,data=x,keyid=a," IV},
         "Object 'a': the secrets that it is encrypted with need each other"},
        {{"secret,id=a,data=x,keyid=b," IV, "authz-simple,id=b,identity=x"},
         "Object 'a': No secret with id 'b'"},
        {{"secret_keyring,id=a"}, "Object 'a': Parameter 'serial' is missing"},
        {{"secret_keyring,id=a,serial=-1"}, "Object 'a': Option 'serial' of secret_keyring must"},
        {{"secret_keyring,id=a,serial=1,data=x"}, "Object 'a': Option 'data' is unknown"},
        {{"authz-simple,id=a"}, "Object 'a': Parameter 'identity' is missing"},
        {{"authz-list-file,id=a"}, "Object 'a': Parameter 'filename' is missing"},
        {{"authz-list-file,id=a,filename=/nonexistent/f"},
         "Object 'a': Unable to access the rules '/nonexistent/f': No such file"},
        {{"authz-pam,id=a"}, "Object 'a': Parameter 'service' is missing"},
        {{"authz-list,id=a,policy=maybe"}, "Object 'a': Option 'policy' of an authorization list"},
        {{"{\"qom-type\": \"secret\""}, "The object's properties are not valid JSON"},
        {{"{\"qom-type\": 1, \"id\": \"a\"}"}, "Option 'qom-type' of an object must be text"},
        /* A slip in the last is found before the file of the first is read. */
        {{"secret,id=a,file=/nonexistent/f", "bogus,id=b"}, "Parameter 'qom-type' does not"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        const struct cli_list list = list_of(rows[i].values);
        struct objects *objects;
        struct error error = {""};

        assert_true(objects_new(&list, &objects, &error) < 0);
        if (strncmp(error.text, rows[i].says, strlen(rows[i].says)) != 0)
            fail_msg("'%s': %s", rows[i].values[0], error.text);
    }
}

static char *help_of(const char *value)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    assert_true(objects_help_wanted(value));
    objects_print_help(value, out);
    fclose(out);
    return text;
}

static void test_help(void **state)
{
    static const char *const types[] = {"authz-list",   "authz-list-file", "authz-pam",
                                        "authz-simple", "secret",          "secret_keyring"};
    char *all = help_of("help"), *unknown = help_of("bogus,help"), *one;

    assert_string_equal(all, unknown);
    assert_int_equal(strncmp(all, "List of user creatable objects:\n", 32), 0);
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        char value[64];

        snprintf(value, sizeof(value), "\n  %s\n", types[i]);
        assert_non_null(strstr(all, value));
        snprintf(value, sizeof(value), "%s,help", types[i]);
        one = help_of(value);
        assert_int_equal(strncmp(one, types[i], strlen(types[i])), 0);
        assert_non_null(strchr(one, '='));
        free(one);
    }
    one = help_of("secret,help");
    assert_non_null(strstr(one, "secret options:\n  data=TEXT "));
    free(one);
    free(all);
    free(unknown);
    assert_false(objects_help_wanted("secret,id=help"));
    assert_false(objects_help_wanted("secret,id=a"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_none),    cmocka_unit_test(test_secrets),
        cmocka_unit_test(test_order),   cmocka_unit_test(test_authorizations),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_help),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
