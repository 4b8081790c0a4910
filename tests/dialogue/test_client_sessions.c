/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sessions of the client that lists exports as a whole: how much of a server it takes, how it goes
 * on with a second connection, and our own server at the other end.
 */
#include "base/checked.h"
#include "nbd/handshake.h"
#include "tests/dialogue/client_session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Limits ---- */

/* Feeds the same message until the session ends; returns how often. */
static size_t feed_until_end(struct session *s, const struct message *m, size_t most)
{
    size_t count = 0;

    for (; count < most && !session_ended(s); count++)
        session_feed(s, m->data, m->length);
    return count;
}

static void expect_limit(const char *start, const char *item, size_t most, const char *reason)
{
    struct message begin = {0}, m = {0};
    struct session s;
    size_t count;

    answers_script(&begin, start);
    answers_script(&m, item);
    session_init(&s);
    session_feed(&s, begin.data, begin.length);
    count = feed_until_end(&s, &m, most + 10);
    assert_int_equal(s.client.state, NBD_CLIENT_FAILED);
    assert_reason(&s, reason);
    assert_true(count <= most);
    assert_true(s.remote.bytes <= NBD_REMOTE_BYTES_MAX);
    session_fini(&s);
    assert_int_equal(s.remote.bytes, 0);
    message_free(&begin);
    message_free(&m);
}

static void test_endless_list(void **state)
{
    expect_limit(PLAIN, "server a", NBD_REMOTE_EXPORTS_MAX + 1, "more than is kept");
}

static void test_endless_contexts(void **state)
{
    expect_limit(ONE_CONTEXTS, "context 1 a", NBD_REMOTE_CONTEXTS_MAX + 1, "more than is kept");
}

static void test_endless_information(void **state)
{
    expect_limit(ONE, "text 1 name", 200001, "does not come to an end");
}

static void test_memory(void **state)
{
    expect_limit(PLAIN, "head 3 2 8196; fill 2 0; fill 1 16; fill 1 0; fill 8192 65",
                 NBD_REMOTE_BYTES_MAX / 8192, "64 MiB in all");
    expect_limit(ONE_CONTEXTS, "head 9 4 4100; fill 4100 65", NBD_REMOTE_BYTES_MAX / 4096,
                 "64 MiB in all");
}

/* What replaces something gives its memory back. */
static void test_repeated_information_costs_nothing(void **state)
{
    struct message begin = {0}, m = {0};
    struct session s;
    uint64_t bytes;

    answers_script(&begin, ONE);
    answers_script(&m, "text 1 name; text 2 text");
    session_init(&s);
    session_feed(&s, begin.data, begin.length);
    session_feed(&s, m.data, m.length);
    bytes = s.remote.bytes;
    feed_until_end(&s, &m, 1000);
    assert_int_equal(s.remote.bytes, bytes);
    session_fini(&s);
    assert_int_equal(s.remote.bytes, 0);
    message_free(&begin);
    message_free(&m);
}

static void test_longest_strings(void **state)
{
    struct message m = {0};
    struct session s;

    answers_script(&m, STRUCTURED "head 3 2 8196; fill 2 0; fill 1 16; fill 1 0; fill 8192 65; "
                                  "ack 3; head 6 3 4098; fill 1 0; fill 1 1; fill 4096 66; "
                                  "export 1 1; ack 6; head 9 4 4100; fill 4100 67; ack 9");
    session_run(&s, &m, m.length, 0);
    assert_int_equal(s.client.state, NBD_CLIENT_DONE);
    assert_int_equal(s.remote.export_count, 1);
    assert_int_equal(s.remote.exports[0].name.length, NBD_STRING_MAX);
    assert_int_equal(s.remote.exports[0].description.length, NBD_STRING_MAX);
    assert_int_equal(s.remote.exports[0].canonical_name.length, NBD_STRING_MAX);
    assert_int_equal(s.remote.exports[0].contexts[0].length, NBD_STRING_MAX);
    session_fini(&s);
    message_free(&m);
}

/* ---- Several sessions ---- */

static void test_resume(void **state)
{
    struct session s = {0};

    session_again(&s, STRUCTURED "server a; server b; server c; ack 3; export 1 1; ack 6; ack 9; "
                                 "export 2 1; text 1 x; ack 6; context 1 old");
    assert_int_equal(s.client.state, NBD_CLIENT_OPTIONS);
    assert_int_equal(s.client.examined, 1);
    session_again(&s,
                  STRUCTURED "export 3 1; ack 6; context 1 new; ack 9; export 4 1; ack 6; ack 9");
    assert_int_equal(s.client.state, NBD_CLIENT_DONE);
    assert_asked(&s, "flags 3; EXTENDED_HEADERS; STRUCTURED_REPLY; INFO 'b' 1 2 3; "
                     "LIST_META_CONTEXT 'b' 0; INFO 'c' 1 2 3; LIST_META_CONTEXT 'c' 0; ABORT");
    assert_learned(&s, "fixed structured; 'a' '' 1 0x1; 'b' '' 3 0x1 {new}; 'c' '' 4 0x1");
    session_fini(&s);
}

/* A list that did not come to its end is asked for anew. */
static void test_half_a_list_is_dropped(void **state)
{
    struct session s = {0};

    session_again(&s, PLAIN "server a; server b");
    session_again(&s, PLAIN "server c; ack 3; export 1 1; ack 6");
    assert_int_equal(s.client.state, NBD_CLIENT_DONE);
    assert_learned(&s, "fixed; 'c' '' 1 0x1");
    session_fini(&s);
}

static void test_protocol_changes(void **state)
{
    static const char *const scripts[] = {"oldstyle 5 5", "greeting 2; default 5 5"};

    for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
        struct session s = {0};

        session_again(&s, PLAIN "server a; server b; ack 3; export 1 1; ack 6");
        session_again(&s, scripts[i]);
        assert_int_equal(s.client.state, NBD_CLIENT_FAILED);
        assert_reason(&s, "has changed its protocol");
        session_fini(&s);
    }
}

/* ---- Our own server at the other end ---- */

#define MANY 700

struct many {
    struct nbd_exports exports;
    struct nbd_export items[MANY];
    char names[MANY][16];
};

static void many_init(struct many *many)
{
    nbd_exports_init(&many->exports);
    for (size_t i = 0; i < MANY; i++) {
        snprintf(many->names[i], sizeof(many->names[i]), "disk%zu", i);
        many->items[i] = (struct nbd_export){.name = many->names[i],
                                             .description = many->names[MANY - 1 - i],
                                             .size = 1000 + i,
                                             .flags = 0x48f,
                                             .block_min = 1,
                                             .block_preferred = 4096,
                                             .block_max = NBD_PAYLOAD_MAX};
        list_append(&many->exports.list, &many->items[i].link);
    }
}

/* Lets the two talk until one has ended. */
static void converse(struct session *s, struct nbd_handshake *hs)
{
    size_t said = s->said.length;

    while (!session_ended(s) && hs->state != NBD_HANDSHAKE_CLOSED) {
        session_feed(s, hs->output.data, hs->output.length);
        hs->output.length = 0;
        while (said < s->said.length) {
            size_t used = nbd_handshake_input(hs, s->said.data + said, s->said.length - said);

            assert_true(used > 0 || hs->state == NBD_HANDSHAKE_CLOSED);
            said = used > 0 ? said + used : s->said.length;
        }
    }
}

/* The server allows fewer options in a session than there are exports to ask about. */
static void test_own_server(void **state)
{
    struct many *many = calloc(1, sizeof(*many));
    struct session s = {0};
    unsigned sessions = 0;

    assert_non_null(many);
    many_init(many);
    do {
        struct nbd_handshake hs;
        size_t before = s.remote.next;

        s.said.length = s.kept.length = 0;
        nbd_client_init(&s.client, &s.remote);
        nbd_handshake_init(&hs, &many->exports, NULL, false);
        nbd_handshake_start(&hs);
        converse(&s, &hs);
        nbd_handshake_fini(&hs);
        assert_true(s.remote.next > before);
        assert_true(++sessions < 5);
    } while (!session_ended(&s));
    assert_int_equal(s.client.state, NBD_CLIENT_DONE);
    assert_int_equal(s.remote.export_count, MANY);
    for (size_t i = 0; i < MANY; i++) {
        const struct nbd_remote_export *e = &s.remote.exports[i];

        assert_string_equal(e->name.data, many->names[i]);
        assert_string_equal(e->canonical_name.data, many->names[i]);
        assert_string_equal(e->description.data, many->names[MANY - 1 - i]);
        assert_true(e->examined);
        assert_int_equal(e->size, 1000 + i);
        assert_int_equal(e->block_preferred, 4096);
    }
    session_fini(&s);
    free(many);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_endless_list),
        cmocka_unit_test(test_endless_contexts),
        cmocka_unit_test(test_endless_information),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_repeated_information_costs_nothing),
        cmocka_unit_test(test_longest_strings),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_half_a_list_is_dropped),
        cmocka_unit_test(test_protocol_changes),
        cmocka_unit_test(test_own_server),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
