/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dialogues of the client that lists exports inside of TLS: what it says and learns on either side
 * of STARTTLS, and servers, or somebody before them, that would talk it out of TLS.  Each is
 * replayed whole, byte by byte, and cut in two at every place.
 */
#include "base/checked.h"
#include "tests/dialogue/client_session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#define ASKED "flags 3; STARTTLS"
#define AGREED "greeting 3; ack 5;"

struct dialogue {
    const char *outside; /* what the server says before TLS, */
    const char *inside;  /* ... and in it; NULL: it does not come to that */
    const char *asked;
    const char *learned;
    const char *reason; /* why it fails; NULL: it does not */
};

static const struct dialogue dialogues[] = {
    {AGREED, "ack 11; server a b; ack 3; export 5 1; ack 6; context 0 q:r; ack 9",
     ASKED "; EXTENDED_HEADERS; LIST; INFO 'a' 1 2 3; LIST_META_CONTEXT 'a' 0; ABORT",
     "fixed extended structured; 'a' 'b' 5 0x1 {q:r}", NULL},
    {AGREED, "error 11 1; error 8 1; ack 3",
     ASKED "; EXTENDED_HEADERS; STRUCTURED_REPLY; LIST; ABORT", "fixed", NULL},
    {"greeting 1; ack 5", "error 11 1; error 8 1; error 3 5",
     "flags 1; STARTTLS; EXTENDED_HEADERS; STRUCTURED_REPLY; LIST; ABORT", "fixed",
     "wants TLS first (ERR_TLS_REQD)"},
    /* No TLS, no list. */
    {"greeting 3; error 5 1 no", NULL, ASKED "; ABORT", "fixed",
     "the server does not support TLS (ERR_UNSUP): no"},
    {"greeting 3; error 5 2", NULL, ASKED "; ABORT", "fixed",
     "the server refuses to use TLS (ERR_POLICY)"},
    {"greeting 3; error 5 7", NULL, ASKED "; ABORT", "fixed", "refuses to use TLS (ERR_SHUTDOWN)"},
    {"oldstyle 5 1", NULL, "", "oldstyle", "does not support TLS: it speaks an older dialect"},
    {"greeting 0; default 5 1 124", NULL, "", "oldstyle", "it speaks an older dialect"},
    {"greeting 2; default 5 1", NULL, "", "oldstyle", "it speaks an older dialect"},
    /* What is not an answer to STARTTLS. */
    {"greeting 3; ack 11", NULL, ASKED, "fixed",
     "answers option 11 (EXTENDED_HEADERS), but was asked STARTTLS"},
    {"greeting 3; server a; ack 5", NULL, ASKED, "fixed", "but was asked STARTTLS"},
    {"greeting 3; head 5 1 1; bytes x", NULL, ASKED, "fixed", "with a reply of type 1 (ACK)"},
    {"greeting 3; head 5 2 0", NULL, ASKED, "fixed", "with a reply of type 2 (SERVER)"},
    /* Words that somebody put behind the server's consent. */
    {AGREED "error 11 1; error 8 1; server evil; ack 3", NULL, ASKED, "fixed",
     "between its consent to TLS and TLS"},
    {AGREED "fill 1 0x16", NULL, ASKED, "fixed", "between its consent to TLS and TLS"},
};

/* As session_run() does it, but what is `outside` has to be used up before TLS begins. */
static void feed(struct session *s, const struct message *m, size_t cut, size_t step)
{
    for (size_t at = 0, end = cut; at < m->length && !session_ended(s);
         at = end, end += step ? step : m->length) {
        if (end > m->length)
            end = m->length;
        session_feed(s, m->data + at, end - at);
    }
}

static void check_run(const struct dialogue *d, const struct message *outside,
                      const struct message *inside, size_t cut, size_t step)
{
    struct session s;

    session_init(&s);
    s.client.tls = true;
    feed(&s, outside, min_u64(cut, outside->length), step);
    if (d->inside) {
        assert_int_equal(s.client.state, NBD_CLIENT_STARTTLS);
        assert_int_equal(s.kept.length, 0);
        nbd_client_secured(&s.client);
        session_feed(&s, NULL, 0);
        message_bytes(&s.said, s.client.output, s.client.output_length);
        s.client.output_length = 0;
        feed(&s, inside, min_u64(cut, inside->length), step);
    }
    assert_int_equal(s.client.state, d->reason ? NBD_CLIENT_FAILED : NBD_CLIENT_DONE);
    if (d->reason)
        assert_reason(&s, d->reason);
    assert_asked(&s, d->asked);
    assert_learned(&s, d->learned);
    session_fini(&s);
}

static void check_dialogue(const struct dialogue *d)
{
    struct message outside = {0}, inside = {0};

    answers_script(&outside, d->outside);
    if (d->inside)
        answers_script(&inside, d->inside);
    check_run(d, &outside, &inside, SIZE_MAX, 0);
    check_run(d, &outside, &inside, 1, 1);
    for (size_t cut = 1; cut < outside.length + inside.length; cut++)
        check_run(d, &outside, &inside, cut, 0);
    message_free(&outside);
    message_free(&inside);
}

static void test_dialogues(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(dialogues); i++)
        check_dialogue(&dialogues[i]);
}

static void expect_hang_up(const char *script, bool secured, const char *reason)
{
    struct message m = {0};
    struct session s;

    answers_script(&m, script);
    session_init(&s);
    s.client.tls = true;
    session_feed(&s, m.data, m.length);
    if (secured)
        nbd_client_secured(&s.client);
    nbd_client_hang_up(&s.client);
    assert_int_equal(s.client.state, NBD_CLIENT_FAILED);
    assert_reason(&s, reason);
    session_fini(&s);
    message_free(&m);
}

static void test_hang_up(void **state)
{
    expect_hang_up("greeting 3", false, "when asked for STARTTLS");
    expect_hang_up(AGREED, false, "in the TLS handshake");
    expect_hang_up(AGREED, true, "right after the TLS handshake");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dialogues),
        cmocka_unit_test(test_hang_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
