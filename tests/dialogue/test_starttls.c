/* SPDX-License-Identifier: BSD-3-Clause */
/* Dialogues about STARTTLS: when TLS is allowed or required, and what is forgotten when it begins.
 */
#include "base/checked.h"
#include "tests/dialogue/dialogue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DISK_REPLIES "GO INFO EXPORT 1048576 0x40f; GO INFO BLOCK_SIZE 1 4096 33554432; GO ACK"

#define GREETING_BYTES 18

struct fixture {
    struct nbd_exports exports;
    struct nbd_export open, safe; /* safe: over TLS only */
};

static char open_name[] = "open", safe_name[] = "safe";

static void fixture_init(struct fixture *f)
{
    nbd_exports_init(&f->exports);
    f->open = (struct nbd_export){.name = open_name,
                                  .size = 1 << 20,
                                  .flags = 0x40f,
                                  .block_min = 1,
                                  .block_preferred = 4096,
                                  .block_max = NBD_PAYLOAD_MAX,
                                  .read_only = true};
    f->safe = f->open;
    f->safe.name = safe_name;
    f->safe.needs_tls = true;
    list_append(&f->exports.list, &f->open.link);
    list_append(&f->exports.list, &f->safe.link);
    f->exports.default_export = &f->safe;
}

static void check_table(const struct dialogue *table, size_t count)
{
    struct fixture f;

    fixture_init(&f);
    check_dialogues(&f.exports, table, count);
}

static void test_off(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; option 5; option 5 3; fill 3 0; abort",
         "greeting; STARTTLS ERR_POLICY; STARTTLS ERR_POLICY; ABORT ACK -> closed quietly"},
        /* An export that needs TLS is not had without it, whatever the server was told. */
        {"flags 3; go safe; go -; list",
         "greeting; GO ERR_TLS_REQD; GO ERR_TLS_REQD; LIST SERVER 'open'; LIST ACK"},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_allowed(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; list; info safe; structured; set safe base:allocation; go open",
         "greeting; LIST SERVER 'open'; LIST ACK; INFO ERR_TLS_REQD; STRUCTURED_REPLY ACK; "
         "SET_META_CONTEXT ERR_TLS_REQD; GO INFO EXPORT 1048576 0x48f; GO INFO BLOCK_SIZE 1 4096 "
         "33554432; GO ACK -> transmission open, 0 left, structured 0x0",
         .tls = NBD_TLS_ALLOWED},
        {"flags 3; name safe", "greeting -> closed", .tls = NBD_TLS_ALLOWED},
        {"flags 3; name -", "greeting -> closed", .tls = NBD_TLS_ALLOWED},
        {"flags 3; option 5", "greeting; STARTTLS ACK -> TLS", .tls = NBD_TLS_ALLOWED},
        {"flags 3; option 5 2; fill 2 0x41; option 5",
         "greeting; STARTTLS ERR_INVALID; STARTTLS ACK -> TLS", .tls = NBD_TLS_ALLOWED},
        /* Without fixed newstyle there is no STARTTLS. */
        {"flags 0; option 5", "greeting -> closed", .tls = NBD_TLS_ALLOWED},
        {"flags 3; option 5; abort", "greeting; STARTTLS ERR_SHUTDOWN; ABORT ACK -> closed quietly",
         .stopping = true, .tls = NBD_TLS_ALLOWED},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_required(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; list; info open; go open; go nothere; structured; option 77 3; fill 3 1; "
         "option 3 9; fill 9 2; option 5",
         "greeting; LIST ERR_TLS_REQD; INFO ERR_TLS_REQD; GO ERR_TLS_REQD; GO ERR_TLS_REQD; "
         "STRUCTURED_REPLY ERR_TLS_REQD; unknown ERR_TLS_REQD; LIST ERR_TLS_REQD; STARTTLS ACK "
         "-> TLS",
         .tls = NBD_TLS_REQUIRED},
        {"flags 3; set open base:allocation; extended; abort",
         "greeting; SET_META_CONTEXT ERR_TLS_REQD; EXTENDED_HEADERS ERR_TLS_REQD; ABORT ACK "
         "-> closed quietly",
         .tls = NBD_TLS_REQUIRED},
        {"flags 3; name open", "greeting -> closed", .tls = NBD_TLS_REQUIRED},
        {"flags 0; name open", "greeting -> closed", .tls = NBD_TLS_REQUIRED},
        /* Too long to be waited for, even to be refused. */
        {"flags 3; option 7 0xffffffff", "greeting; GO ERR_TOO_BIG -> closed",
         .tls = NBD_TLS_REQUIRED},
    };

    check_table(table, ARRAY_SIZE(table));
}

/* CVE-2021-3716 and its like: what comes behind STARTTLS must not be taken for TLS's contents. */
static void test_injection(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; option 5; structured", "greeting; STARTTLS ACK -> closed",
         .tls = NBD_TLS_ALLOWED},
        {"flags 3; option 5; option 5", "greeting; STARTTLS ACK -> closed",
         .tls = NBD_TLS_REQUIRED},
        {"flags 3; option 5; hex 16", "greeting; STARTTLS ACK -> closed", .tls = NBD_TLS_REQUIRED},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void feed_script(struct server_session *s, const char *script)
{
    struct message m = {0};

    message_script(&m, script);
    server_session_feed(s, m.data, m.length);
    message_free(&m);
}

/* Says `before` in the open, STARTTLS, and `after` inside. */
static void check_through_tls(const char *before, const char *after, const char *result)
{
    struct fixture f;
    struct server_session s;
    char *text;

    fixture_init(&f);
    server_session_init(&s, &f.exports, false, false);
    s.hs.tls = NBD_TLS_ALLOWED;
    feed_script(&s, before);
    feed_script(&s, "option 5");
    assert_int_equal(s.hs.state, NBD_HANDSHAKE_STARTTLS);
    s.said.length = GREETING_BYTES;
    nbd_handshake_secured(&s.hs);
    feed_script(&s, after);
    text = server_session_result(&s, false);
    assert_string_equal(text, result);
    free(text);
    server_session_fini(&s);
}

static void test_inside(void **state)
{
    check_through_tls("flags 3", "list; go safe",
                      "greeting; LIST SERVER 'open'; LIST SERVER 'safe'; LIST ACK; " DISK_REPLIES
                      " -> transmission safe, 0 left");
    check_through_tls(
        "flags 3", "option 5; name -",
        "greeting; STARTTLS ERR_INVALID; export 1048576 0x40f -> transmission safe, 0 left");
}

static void test_forgotten(void **state)
{
    check_through_tls("flags 3; structured; set open base:allocation", "go open",
                      "greeting; " DISK_REPLIES " -> transmission open, 0 left");
    check_through_tls("flags 3; extended", "go open",
                      "greeting; " DISK_REPLIES " -> transmission open, 0 left");
    /* Not "negotiated already", nor refused because of extended headers. */
    check_through_tls("flags 3; extended; set open base:allocation", "structured; abort",
                      "greeting; STRUCTURED_REPLY ACK; ABORT ACK -> closed quietly");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_off),      cmocka_unit_test(test_allowed),
        cmocka_unit_test(test_required), cmocka_unit_test(test_injection),
        cmocka_unit_test(test_inside),   cmocka_unit_test(test_forgotten),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
