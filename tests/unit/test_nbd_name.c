/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of disks on NBD servers: what they say, and what is wrong with those that are refused. */
#include "blockcore/protocol/nbd.h"

#include "base/checked.h"
#include "blockcore/drivers.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TEXT(t) ((char *)(uintptr_t)(t)) /* only compared */

static const struct good {
    const char *text;
    struct nbd_options wanted;
} goods[] = {
    {"nbd://host", {.host = TEXT("host")}},
    {"nbd://", {.host = TEXT("localhost")}},
    {"nbd://host:7/a%2Fb", {.host = TEXT("host"), .port = TEXT("7"), .export_name = TEXT("a/b")}},
    {"nbd+unix:///e?socket=/s", {.path = TEXT("/s"), .export_name = TEXT("e")}},
    {"nbds://u@host/?tls-psk-file=/k",
     {.host = TEXT("host"), .tls = true, .tls_psk_file = TEXT("/k"), .tls_username = TEXT("u")}},
    {"nbds+unix:///?socket=s&tls-certificates=/d",
     {.path = TEXT("s"), .tls = true, .tls_certificates = TEXT("/d")}},
    {"nbd:host:10809", {.host = TEXT("host"), .port = TEXT("10809")}},
    {"nbd:[::1]:nbd", {.host = TEXT("::1"), .port = TEXT("nbd")}},
    {"nbd:host:1:exportname=a:b",
     {.host = TEXT("host"), .port = TEXT("1"), .export_name = TEXT("a:b")}},
    {"nbd:host:1:exportname=", {.host = TEXT("host"), .port = TEXT("1"), .export_name = TEXT("")}},
    {"nbd:unix:/a:b", {.path = TEXT("/a:b")}},
    {"nbd:unix:/s:exportname=x y", {.path = TEXT("/s"), .export_name = TEXT("x y")}},
};

static void assert_same(const char *text, const char *what, const char *got, const char *wanted)
{
    if (!got != !wanted || (got && strcmp(got, wanted) != 0))
        fail_msg("%s: %s is '%s' instead of '%s'", text, what, got ? got : "(none)",
                 wanted ? wanted : "(none)");
}

static void check_good(const struct good *g)
{
    struct nbd_options o = {0};
    struct error error = {""};

    if (nbd_name_parse(&o, g->text, &error) != 0)
        fail_msg("%s: %s", g->text, error.text);
    assert_ptr_equal(driver_of_name(block_drivers, g->text), &driver_nbd);
    assert_same(g->text, "the host", o.host, g->wanted.host);
    assert_same(g->text, "the port", o.port, g->wanted.port);
    assert_same(g->text, "the socket", o.path, g->wanted.path);
    assert_same(g->text, "the export", o.export_name, g->wanted.export_name);
    assert_same(g->text, "the key file", o.tls_psk_file, g->wanted.tls_psk_file);
    assert_same(g->text, "the certificates", o.tls_certificates, g->wanted.tls_certificates);
    assert_same(g->text, "the user", o.tls_username, g->wanted.tls_username);
    assert_int_equal(o.tls, g->wanted.tls);
    nbd_options_fini(&o);
}

static void test_good(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(goods); i++)
        check_good(&goods[i]);
}

static void test_bad(void **state)
{
    static const struct {
        const char *text, *said;
    } bads[] = {
        {"nbd:", "it is written nbd:HOST:PORT"},
        {"nbd:host", "Invalid name 'nbd:host': it is written nbd:HOST:PORT"},
        {"nbd:host:", "it is written nbd:HOST:PORT"},
        {"nbd::7", "it is written nbd:HOST:PORT"},
        {"nbd:::1:7", "an IPv6 address is written as in nbd:[::1]:10809"},
        {"nbd:unix:", "the path of the socket is missing"},
        {"nbd:unix::exportname=x", "the path of the socket is missing"},
        {"nbd+unix:///", "the socket is missing"},
        {"nbd+unix:", "Invalid URI 'nbd+unix:'"},
        {"nbd://host/?tls-psk-file=k", "goes with nbds: and nbds+unix:"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(bads); i++) {
        struct nbd_options o = {0};
        struct error error = {""};

        assert_int_equal(nbd_name_parse(&o, bads[i].text, &error), -EINVAL);
        if (!strstr(error.text, bads[i].said))
            fail_msg("'%s' is not in '%s'", bads[i].said, error.text);
        nbd_options_fini(&o);
    }
}

static void test_long_export(void **state)
{
    struct nbd_options o = {0};
    struct error error = {""};
    struct node_open open = {0};
    char name[4098];

    memset(name, 'x', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    open.options = json_pack("{s:s, s:s}", "host", "h", "export", name);
    assert_non_null(open.options);
    assert_int_equal(nbd_options_take(&o, &open, &error), -ENAMETOOLONG);
    assert_non_null(strstr(error.text, "4097 bytes, it can have 4096"));
    nbd_options_fini(&o);
    json_decref(open.options);
}

/* Every beginning of a name, in memory of its exact size: none reads beyond. */
static void test_cut_anywhere(void **state)
{
    static const char whole[] = "nbd:unix:/some/path:exportname=name";

    for (size_t length = 0; length < sizeof(whole); length++) {
        char *text = strndup(whole, length);
        struct nbd_options o = {0};
        struct error error;

        assert_non_null(text);
        nbd_name_parse(&o, text, &error);
        nbd_options_fini(&o);
        free(text);
    }
}

static void test_is_a_path(void **state)
{
    static const char *const paths[] = {"nbd", "disk.img", "./nbd:x", "/nbd://", "nb:", ""};

    for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
        assert_null(driver_of_name(block_drivers, paths[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_long_export), cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_is_a_path),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
