/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dialogues of the client that lists exports, with servers of every age, with servers that break
 * the protocol, and with servers that go away.  Each is replayed whole, byte by byte, and cut in
 * two at every place; the client must say and learn the same in all of them.
 */
#include "base/checked.h"
#include "tests/dialogue/client_session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Servers that keep to the protocol ---- */

#define ASKED "flags 3; EXTENDED_HEADERS; "
#define ASKED_PLAIN ASKED "STRUCTURED_REPLY; LIST"
#define NAMES "1 2 3"

struct dialogue {
    const char *name;
    const char *script;
    const char *asked;
    const char *learned;
};

static const struct dialogue dialogues[] = {
    {"oldstyle", "oldstyle 1048576 0x16d", "request DISC", "oldstyle; '' 1048576 0x16d"},
    {"oldstyle without flags", "oldstyle 0 0", "request DISC", "oldstyle; '' 0 0x0"},
    {"oldstyle, the largest", "oldstyle 0x7fffffffffffffff 1", "request DISC",
     "oldstyle; '' 9223372036854775807 0x1"},
    {"oldstyle with reserved flags", "oldstyle 5 0xffff0003", "request DISC", "oldstyle; '' 5 0x3"},
    {"newstyle", "greeting 0; default 512 0x3 124", "flags 0; EXPORT_NAME; request DISC",
     "newstyle; '' 512 0x3"},
    {"newstyle without zeroes", "greeting 2; default 512 0x3", "flags 2; EXPORT_NAME; request DISC",
     "newstyle; '' 512 0x3"},
    {"no exports", PLAIN "ack 3", ASKED_PLAIN "; ABORT", "fixed"},
    {"fixed, with zeroes", "greeting 1; error 11 1; error 8 1; ack 3",
     "flags 1; EXTENDED_HEADERS; STRUCTURED_REPLY; LIST; ABORT", "fixed"},
    {"flags of the future", "greeting 0xffff; error 11 1; error 8 1; ack 3", ASKED_PLAIN "; ABORT",
     "fixed"},
    {"names alone", PLAIN "server a; server - text; server %e2%82%ac b; ack 3; error 6 1",
     ASKED_PLAIN "; INFO 'a' " NAMES "; ABORT", "fixed; 'a' ''; '' 'text'; '\xe2\x82\xac' 'b'"},
    {"information", PLAIN "server a b; ack 3; export 4096 0xded; sizes 512 4096 33554432; ack 6",
     ASKED_PLAIN "; INFO 'a' " NAMES "; ABORT", "fixed; 'a' 'b' 4096 0xded 512/4096/33554432"},
    {"information of every kind",
     PLAIN "server - -; ack 3; text 1 disk; text 2 about%20it; text 99 x; sizes 1 1 0xffffffff; "
           "text 1 canonical; export 0 0; text 77; ack 6",
     ASKED_PLAIN "; INFO '' " NAMES "; ABORT",
     "fixed; '' '' as 'canonical' told 'about it' 0 0x0 1/1/4294967295"},
    {"structured replies",
     STRUCTURED "server a; ack 3; export 1 1; ack 6; context 0 base:allocation; context 7 x:y; "
                "ack 9",
     ASKED_PLAIN "; INFO 'a' " NAMES "; LIST_META_CONTEXT 'a' 0; ABORT",
     "fixed structured; 'a' '' 1 0x1 {base:allocation x:y}"},
    {"structured replies without contexts", STRUCTURED "server a; ack 3; export 1 1; ack 6; ack 9",
     ASKED_PLAIN "; INFO 'a' " NAMES "; LIST_META_CONTEXT 'a' 0; ABORT",
     "fixed structured; 'a' '' 1 0x1"},
    {"contexts are not supported",
     STRUCTURED "server a; server b; ack 3; export 1 1; ack 6; error 9 1; export 2 1; ack 6",
     ASKED_PLAIN "; INFO 'a' " NAMES "; LIST_META_CONTEXT 'a' 0; INFO 'b' " NAMES "; ABORT",
     "fixed structured; 'a' '' 1 0x1; 'b' '' 2 0x1"},
    {"contexts without information",
     STRUCTURED "server a; server b; ack 3; error 6 1; context 0 q:r; ack 9; ack 9",
     ASKED_PLAIN "; INFO 'a' " NAMES "; LIST_META_CONTEXT 'a' 0; LIST_META_CONTEXT 'b' 0; ABORT",
     "fixed structured; 'a' '' {q:r}; 'b' ''"},
    {"extended headers", EXTENDED "server a; ack 3; export 1 1; ack 6; context 0 q:r; ack 9",
     ASKED "LIST; INFO 'a' " NAMES "; LIST_META_CONTEXT 'a' 0; ABORT",
     "fixed extended structured; 'a' '' 1 0x1 {q:r}"},
    {"an export that is refused",
     PLAIN "server a; server b; ack 3; export 9 9; error 6 2 keep%20out; export 1 1; ack 6",
     ASKED_PLAIN "; INFO 'a' " NAMES "; INFO 'b' " NAMES "; ABORT",
     "fixed; 'a' '' problem (the server refuses to tell more of it (ERR_POLICY): keep out); "
     "'b' '' 1 0x1"},
    {"an export that has gone", PLAIN "server a; ack 3; error 6 6", //
     ASKED_PLAIN "; INFO 'a' " NAMES "; ABORT",
     "fixed; 'a' '' problem (the server refuses to tell more of it (ERR_UNKNOWN))"},
    {"an error of the future", PLAIN "server a; ack 3; error 6 99 %1b[m",
     ASKED_PLAIN "; INFO 'a' " NAMES "; ABORT",
     "fixed; 'a' '' problem (the server refuses to tell more of it (unknown): \\x1b[m)"},
    {"contexts that are refused",
     STRUCTURED "server a; ack 3; export 1 1; ack 6; context 1 a:b; error 9 9",
     ASKED_PLAIN "; INFO 'a' " NAMES "; LIST_META_CONTEXT 'a' 0; ABORT",
     "fixed structured; 'a' '' 1 0x1 {a:b} problem (the server refuses to tell its metadata "
     "contexts (ERR_TOO_BIG))"},
    {"both are refused; the first counts", STRUCTURED "server a; ack 3; error 6 2; error 9 9",
     ASKED_PLAIN "; INFO 'a' " NAMES "; LIST_META_CONTEXT 'a' 0; ABORT",
     "fixed structured; 'a' '' problem (the server refuses to tell more of it (ERR_POLICY))"},
    {"bytes behind the end are nobody's", PLAIN "ack 3; ack 2; bytes more", //
     ASKED_PLAIN "; ABORT", "fixed"},
    {"texts that are none", PLAIN "server %00%ff%1b %0a; ack 3; export 1 1; ack 6",
     ASKED_PLAIN "; INFO '\\x00\\xff\\x1b' " NAMES "; ABORT",
     "fixed; '\\x00\\xff\\x1b' '\\x0a' 1 0x1"},
    {"the same name twice", PLAIN "server a; server a; ack 3; export 1 1; ack 6; export 2 1; ack 6",
     ASKED_PLAIN "; INFO 'a' " NAMES "; INFO 'a' " NAMES "; ABORT",
     "fixed; 'a' '' 1 0x1; 'a' '' 2 0x1"},
};

static void expect_dialogue(const struct dialogue *d, const struct message *m, size_t cut,
                            size_t step)
{
    struct session s;

    session_run(&s, m, cut, step);
    assert_string_equal(s.client.reason.text, "");
    assert_int_equal(s.client.state, NBD_CLIENT_DONE);
    assert_asked(&s, d->asked);
    assert_learned(&s, d->learned);
    session_fini(&s);
}

static void test_dialogues(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(dialogues); i++) {
        const struct dialogue *d = &dialogues[i];
        struct message m = {0};

        print_message("%s\n", d->name);
        answers_script(&m, d->script);
        expect_dialogue(d, &m, m.length, 0);
        expect_dialogue(d, &m, 1, 1);
        for (size_t cut = 1; cut < m.length; cut++)
            expect_dialogue(d, &m, cut, 0);
        message_free(&m);
    }
}

/* Wherever the server goes away, the client says so and has nothing left to send. */
static void test_server_dies_anywhere(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(dialogues); i++) {
        struct message m = {0};

        answers_script(&m, dialogues[i].script);
        for (size_t cut = 0; cut < m.length; cut++) {
            struct message part = {.data = m.data, .length = cut};
            struct session s;

            session_run(&s, &part, cut, 0);
            if (!session_ended(&s)) {
                nbd_client_hang_up(&s.client);
                assert_int_equal(s.client.state, NBD_CLIENT_FAILED);
                assert_non_null(strstr(s.client.reason.text, "the server"));
                assert_int_equal(nbd_client_input(&s.client, m.data, m.length), 0);
            }
            nbd_client_hang_up(&s.client);
            session_fini(&s);
        }
        message_free(&m);
    }
}

/* ---- Servers that break the protocol, or refuse ---- */

struct hostile {
    const char *name;
    const char *script;
    const char *reason; /* part of it */
};

static const struct hostile hostiles[] = {
    {"another protocol", "bytes SSH-2.0-OpenSSH", "this is no NBD server: it begins with 'S"},
    {"control bytes", "bytes %1b[31m", "begins with '\\x1b"},
    {"almost", "bytes NBDMAGIX", "this is no NBD server: it begins with 'N"},
    {"an unknown dialect", "bytes NBDMAGIC; fill 8 7", "magic number 0x0707070707070707"},
    {"oldstyle of 2^63 bytes", "oldstyle 0x8000000000000000 1", "9223372036854775808 bytes"},
    {"newstyle of 2^64 - 1 bytes", "greeting 2; default 0xffffffffffffffff 1",
     "18446744073709551615 bytes"},
    {"a reply with a wrong magic number", "greeting 3; fill 1 7", "wrong magic number"},
    {"a reply to another option", "greeting 3; ack 8",
     "option 8 (STRUCTURED_REPLY), but was asked "
     "EXTENDED_HEADERS"},
    {"a reply of 4 GiB", "greeting 3; head 11 1 0xffffffff", "4294967295 bytes; at most"},
    {"an error of 4 GiB", "greeting 3; head 11 0x80000001 0xffffffff", "4294967295 bytes; at most"},
    {"a reply that is a little too long", PLAIN "head 3 2 16385", "16385 bytes; at most 16384"},
    {"an acknowledgment with data", "greeting 3; head 11 1 1; fill 1 0", "type 1 (ACK) and 1 byte"},
    {"an item for what has none", "greeting 3; head 11 2 0", "type 2 (SERVER)"},
    {"a reply type of the future", PLAIN "head 3 5 0", "type 5 (unknown)"},
    {"an item of another option", PLAIN "head 3 3 12; fill 12 0", "LIST with a reply of type 3"},
    {"an item of nothing", PLAIN "head 3 2 0", "0 bytes that should hold a name of 0"},
    {"an item of 3 bytes", PLAIN "head 3 2 3; fill 3 0", "3 bytes that should hold a name"},
    {"a name that is longer than its item", PLAIN "head 3 2 5; fill 3 0; fill 1 2; fill 1 97",
     "5 bytes that should hold a name of 2"},
    {"a name of 4 GiB", PLAIN "head 3 2 9; fill 9 0xff", "a name of 4294967295"},
    {"a name of 4097 bytes", PLAIN "head 3 2 4101; fill 2 0; fill 1 0x10; fill 4098 1",
     "an export name of 4097 bytes"},
    {"a description of 4097 bytes", PLAIN "head 3 2 4101; fill 4101 0",
     "an export description of 4097 bytes"},
    {"no export lists", PLAIN "error 3 1", "does not support export lists (ERR_UNSUP)"},
    {"a secret list", PLAIN "error 3 2 go%20away",
     "refuses to list its exports (ERR_POLICY): go away"},
    {"TLS is needed", "greeting 3; error 11 5; error 8 5; error 3 5",
     "wants TLS first (ERR_TLS_REQD)"},
    {"shutting down", PLAIN "server a; error 3 7", "(ERR_SHUTDOWN)"},
    {"a refusal with control bytes", PLAIN "error 3 2 %1b]0%3b%07", "(ERR_POLICY): \\x1b]0"},
    {"information of nothing", ONE "head 6 3 0", "an item without a type about export 'a'"},
    {"information of one byte", ONE "head 6 3 1; fill 1 0", "an item without a type"},
    {"a short size", ONE "head 6 3 11; fill 11 0",
     "EXPORT of 9 bytes about export 'a'; 10 are right"},
    {"a long size", ONE "head 6 3 13; fill 13 0", "EXPORT of 11 bytes"},
    {"short block sizes", ONE "head 6 3 13; fill 1 0; fill 1 3; fill 11 0",
     "BLOCK_SIZE of 11 bytes"},
    {"long block sizes", ONE "head 6 3 15; fill 1 0; fill 1 3; fill 13 0",
     "BLOCK_SIZE of 13 bytes"},
    {"2^63 bytes", ONE "export 0x8000000000000000 1", "9223372036854775808 bytes"},
    {"2^64 - 1 bytes", ONE "export 0xffffffffffffffff 1", "18446744073709551615 bytes"},
    {"minimum 0", ONE "sizes 0 4096 4096", "minimum 0, preferred 4096"},
    {"minimum 3", ONE "sizes 3 4096 4096", "minimum 3,"},
    {"minimum 128 KiB", ONE "sizes 131072 131072 131072", "minimum 131072,"},
    {"preferred 0", ONE "sizes 1 0 4096", "preferred 0,"},
    {"preferred below the minimum", ONE "sizes 1024 512 4096", "preferred 512,"},
    {"preferred 4095", ONE "sizes 1 4095 4096", "preferred 4095,"},
    {"maximum below the preferred", ONE "sizes 1 4096 4095", "maximum 4095"},
    {"no size", ONE "sizes 1 4096 4096; ack 6", "tells of export 'a' without its size"},
    {"a canonical name of 4097 bytes", ONE "head 6 3 4099; fill 1 0; fill 1 1; fill 4097 1",
     "an export name of 4097 bytes"},
    {"a description of 4097 bytes, told", ONE "head 6 3 4099; fill 1 0; fill 1 2; fill 4097 1",
     "an export description of 4097 bytes"},
    {"a context of nothing", ONE_CONTEXTS "head 9 4 0", "in 0 bytes, without a name"},
    {"a context of 3 bytes", ONE_CONTEXTS "head 9 4 3; fill 3 1", "in 3 bytes, without a name"},
    {"a context without a name", ONE_CONTEXTS "head 9 4 4; fill 4 1", "in 4 bytes, without a name"},
    {"a context of 4097 bytes", ONE_CONTEXTS "head 9 4 4101; fill 4101 1",
     "a metadata context name of 4097 bytes"},
    {"a reply after the last", ONE "export 1 1; ack 6; ack 6", ""},
};

static void expect_hostile(const struct hostile *h, const struct message *m, size_t cut,
                           size_t step)
{
    struct session s;
    char *text;

    session_run(&s, m, cut, step);
    assert_int_equal(s.client.state, *h->reason ? NBD_CLIENT_FAILED : NBD_CLIENT_DONE);
    assert_reason(&s, h->reason);
    assert_int_equal(nbd_client_input(&s.client, m->data, m->length), 0);
    text = asked_text(s.said.data, s.said.length);
    assert_null(strstr(text, "\nBAD"));
    free(text);
    session_fini(&s);
}

static void test_hostile_servers(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(hostiles); i++) {
        const struct hostile *h = &hostiles[i];
        struct message m = {0};

        print_message("%s\n", h->name);
        answers_script(&m, h->script);
        expect_hostile(h, &m, m.length, 0);
        if (m.length < 1000)
            expect_hostile(h, &m, 1, 1);
        for (size_t cut = 1; cut < m.length; cut += m.length < 1000 ? 1 : 53)
            expect_hostile(h, &m, cut, 0);
        message_free(&m);
    }
}

/* A refusal in order is answered in order; broken protocol is not answered at all. */
static void test_farewell(void **state)
{
    struct message refusal = {0}, broken = {0};
    struct session s;

    answers_script(&refusal, PLAIN "error 3 2");
    session_run(&s, &refusal, refusal.length, 0);
    assert_asked(&s, ASKED_PLAIN "; ABORT");
    session_fini(&s);
    answers_script(&broken, PLAIN "head 3 5 0");
    session_run(&s, &broken, broken.length, 0);
    assert_asked(&s, ASKED_PLAIN);
    session_fini(&s);
    message_free(&refusal);
    message_free(&broken);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dialogues),
        cmocka_unit_test(test_server_dies_anywhere),
        cmocka_unit_test(test_hostile_servers),
        cmocka_unit_test(test_farewell),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
