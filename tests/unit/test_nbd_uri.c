/* SPDX-License-Identifier: BSD-3-Clause */
/* URIs of servers: what they say, and what is wrong with those that are refused. */
#include "base/nbd_uri.h"

#include "base/checked.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct good {
    const char *text;
    struct nbd_uri wanted;
};

static const struct good goods[] = {
    {"nbd://host", {.address = {.host = "host"}}},
    {"nbd://host/", {.address = {.host = "host"}}},
    {"nbd://host:1234/", {.address = {.host = "host", .port = "1234"}}},
    {"nbd://host:/", {.address = {.host = "host"}}},
    {"nbd://", {.tls = false}},
    {"nbd:///disk", {.export_name = "disk"}},
    {"nbd://:1234", {.address = {.port = "1234"}}},
    {"nbd://127.0.0.1:nbd/a/b",
     {.address = {.host = "127.0.0.1", .port = "nbd"}, .export_name = "a/b"}},
    {"nbd://[::1]", {.address = {.host = "::1"}}},
    {"nbd://[fe80::1%25eth0]:7/x",
     {.address = {.host = "fe80::1%eth0", .port = "7"}, .export_name = "x"}},
    {"nbd://host/%E2%82%ac%3f%2F?", {.address = {.host = "host"}, .export_name = "\xe2\x82\xac?/"}},
    {"nbds://alice@host/?tls-psk-file=/k%26k&tls-hostname=h",
     {.tls = true,
      .address = {.host = "host"},
      .user = "alice",
      .tls_psk_file = "/k&k",
      .tls_hostname = "h"}},
    {"nbds://a%40b@host", {.tls = true, .address = {.host = "host"}, .user = "a@b"}},
    {"nbds://host?tls-certificates=a=b",
     {.tls = true, .address = {.host = "host"}, .tls_certificates = "a=b"}},
    {"nbd+unix:///?socket=/run/s", {.address = {.socket = "/run/s"}}},
    {"nbd+unix:///disk?socket=/a%20b", {.address = {.socket = "/a b"}, .export_name = "disk"}},
    {"nbds+unix://bob@/?&socket=s&&tls-psk-file=k&",
     {.tls = true, .address = {.socket = "s"}, .user = "bob", .tls_psk_file = "k"}},
};

static void assert_same(const char *text, const char *what, const char *got, const char *wanted)
{
    if (!got != !wanted || (got && strcmp(got, wanted) != 0))
        fail_msg("%s: %s is '%s' instead of '%s'", text, what, got ? got : "(none)",
                 wanted ? wanted : "(none)");
}

static void check_good(const struct good *g)
{
    struct error error = {""};
    struct nbd_uri uri;

    if (nbd_uri_parse(&uri, g->text, &error) != 0)
        fail_msg("%s: %s", g->text, error.text);
    assert_true(nbd_uri_is(g->text));
    assert_int_equal(uri.tls, g->wanted.tls);
    assert_same(g->text, "the socket", uri.address.socket, g->wanted.address.socket);
    assert_same(g->text, "the host", uri.address.host, g->wanted.address.host);
    assert_same(g->text, "the port", uri.address.port, g->wanted.address.port);
    assert_same(g->text, "the user", uri.user, g->wanted.user);
    assert_same(g->text, "the export", uri.export_name, g->wanted.export_name);
    assert_same(g->text, "tls-certificates", uri.tls_certificates, g->wanted.tls_certificates);
    assert_same(g->text, "tls-psk-file", uri.tls_psk_file, g->wanted.tls_psk_file);
    assert_same(g->text, "tls-hostname", uri.tls_hostname, g->wanted.tls_hostname);
    nbd_uri_fini(&uri);
    assert_null(uri.storage);
    nbd_uri_fini(&uri);
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
        {"", "has to begin with nbd://"},
        {"http://host", "Invalid URI 'http://host': it has to begin with nbd://"},
        {"nbd:host:10809", "has to begin with nbd://"},
        {"NBD://host", "has to begin with nbd://"},
        {"nbd://host/%", "two hexadecimal digits"},
        {"nbd://host/%4", "two hexadecimal digits"},
        {"nbd://host/%4g", "two hexadecimal digits"},
        {"nbd://host/%4\x11", "two hexadecimal digits"},
        {"nbd://host/a%00b", "not 00"},
        {"nbd://ho%zzst", "two hexadecimal digits"},
        {"nbd://%@host", "two hexadecimal digits"},
        {"nbd://host/#part", "'#' has no meaning here"},
        {"nbd://::1/", "as in [::1]:10809"},
        {"nbd://[::1", "as in [::1]:10809"},
        {"nbd://[::1]x", "as in [::1]:10809"},
        {"nbd://host/?socket=/s", "'socket' goes with nbd+unix:"},
        {"nbds://host/?socket=/s", "'socket' goes with nbds+unix:"},
        {"nbd+unix:///", "the socket is missing: write nbd+unix:///?socket=PATH"},
        {"nbd+unix:///?socket", "'socket' needs a value"},
        {"nbd+unix:///?socket=", "'socket' needs a value"},
        {"nbd+unix:///?socket=/a&socket=/b", "'socket' is there twice"},
        {"nbd+unix://host/?socket=/a", "a Unix socket has no host"},
        {"nbds://host/?tls-psk=k", "the parameter 'tls-psk' is not known"},
        {"nbds://host/?=k", "the parameter '' is not known"},
        {"nbd://host/?\x1b[2J", "the parameter '\\x1b[2J' is not known"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(bads); i++) {
        struct error error = {""};
        struct nbd_uri uri;

        assert_int_equal(nbd_uri_parse(&uri, bads[i].text, &error), -EINVAL);
        if (!strstr(error.text, bads[i].said))
            fail_msg("'%s' is not in '%s'", bads[i].said, error.text);
        assert_null(uri.storage);
    }
}

/* Every beginning of a URI that has everything, in memory of its exact size: none reads beyond. */
static void test_cut_anywhere(void **state)
{
    static const char whole[] =
        "nbds://u%41@[::1]:10809/e%42?tls-certificates=%43&tls-hostname=h&tls-psk-file=f";

    for (size_t length = 0; length < sizeof(whole); length++) {
        char *text = strndup(whole, length);
        struct error error;
        struct nbd_uri uri;

        assert_non_null(text);
        nbd_uri_parse(&uri, text, &error);
        nbd_uri_fini(&uri);
        free(text);
    }
}

static void test_is(void **state)
{
    assert_true(nbd_uri_is("nbds+unix://"));
    assert_false(nbd_uri_is("nbd:"));
    assert_false(nbd_uri_is("disk.img"));
    assert_false(nbd_uri_is("file:nbd://"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_is),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
