/* SPDX-License-Identifier: BSD-3-Clause */
/* Authorizers that answer at once, later, or never, asked about clients of fake_tls.h. */
#include "base/bytes.h"
#include "base/reactor.h"
#include "nbd/access.h"
#include "tests/dialogue/fake_tls.h"
#include "tests/dialogue/rig.h"
#include "tests/support/sim_clock.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)
/* The greeting, the acknowledgment of STARTTLS and FAKE_WELCOME. */
#define BEFORE_BYTES (18 + NBD_OPTION_REPLY_HEADER_BYTES + sizeof(FAKE_WELCOME) - 1)

struct fixture {
    struct rig rig;
    struct fake_tls tls;
    struct nbd_access access;
    struct nbd_authorizer authorizer;
    int now; /* what is answered at once; -EINPROGRESS: later */
    unsigned asked, forgotten;
    char name[20]; /* that was asked about */
    nbd_answered *answered;
    void *answered_arg;
};

static int ask(void *arg, const char *name, nbd_answered *answered, void *answered_arg,
               void **ret_question)
{
    struct fixture *f = arg;

    f->asked++;
    strncpy(f->name, name, sizeof(f->name) - 1);
    f->answered = answered;
    f->answered_arg = answered_arg;
    *ret_question = f;
    return f->now;
}

static void forget(void *question)
{
    struct fixture *f = question;

    f->forgotten++;
}

static void fixture_init(struct fixture *f, int now)
{
    struct rig_options options = {.size = 1 << 20, .tls = &f->tls.table};

    sim_clock_install();
    *f = (struct fixture){.now = now};
    f->authorizer = (struct nbd_authorizer){.arg = f, .ask = ask, .forget = forget};
    fake_tls_init(&f->tls, true);
    f->tls.name = "alice";
    rig_init(&f->rig, &options);
    nbd_access_init(&f->access);
    f->access.authorizer = &f->authorizer;
    f->rig.nbd_export->access = &f->access;
}

static void fixture_fini(struct fixture *f)
{
    rig_fini(&f->rig);
    nbd_access_fini(&f->access);
    sim_clock_remove();
}

/* The TLS handshake, and the options of the script inside, pipelined. */
static void enter(struct client *c, struct fixture *f, const char *script)
{
    struct message m = {0};

    client_connect(c, &f->rig);
    client_send_script(c, "flags 3; option 5");
    assert_true(client_receive(c, BEFORE_BYTES - (sizeof(FAKE_WELCOME) - 1)));
    client_send(c, FAKE_HELLO, strlen(FAKE_HELLO));
    message_script(&m, script);
    fake_tls_invert(m.data, m.length);
    client_send_message(c, &m);
    message_free(&m);
    assert_true(client_receive(c, BEFORE_BYTES));
}

/* The type of the first reply inside. */
static uint32_t first_reply(struct client *c)
{
    uint8_t *reply;

    assert_true(client_receive(c, BEFORE_BYTES + NBD_OPTION_REPLY_HEADER_BYTES));
    reply = c->in.data + BEFORE_BYTES;
    fake_tls_invert(reply, NBD_OPTION_REPLY_HEADER_BYTES);
    return get_be32(reply + 12);
}

static void test_at_once(void **state)
{
    static const uint32_t replies[] = {NBD_REP_ERR_POLICY, NBD_REP_INFO};

    for (int yes = 0; yes < 2; yes++) {
        struct fixture f;
        struct client c;

        fixture_init(&f, yes);
        enter(&c, &f, "list; info disk; go disk");
        assert_int_equal(f.asked, 1);
        assert_string_equal(f.name, "alice");
        client_free(&c);
        enter(&c, &f, "go disk");
        assert_int_equal(first_reply(&c), replies[yes]);
        assert_int_equal(f.asked, 2);
        client_free(&c);
        fixture_fini(&f);
        assert_int_equal(f.forgotten, 0);
    }
}

static void test_later(void **state)
{
    static const uint32_t replies[] = {NBD_REP_ERR_POLICY, NBD_REP_INFO};

    for (int yes = 0; yes < 2; yes++) {
        struct fixture f;
        struct client c;

        fixture_init(&f, -EINPROGRESS);
        enter(&c, &f, "go disk");
        assert_false(client_receive(&c, BEFORE_BYTES + 1));
        assert_false(c.closed);
        f.answered(f.answered_arg, yes);
        assert_int_equal(first_reply(&c), replies[yes]);
        assert_int_equal(f.asked, 1);
        client_free(&c);
        fixture_fini(&f);
        assert_int_equal(f.forgotten, 0);
    }
}

/* The time limit of the handshake stands still meanwhile: the client gets its answer. */
static void test_never(void **state)
{
    struct fixture f;
    struct client c, other;
    int64_t start;

    fixture_init(&f, -EINPROGRESS);
    enter(&c, &f, "go disk");
    rig_pump();
    sim_clock_advance(RIG_LIMIT_NS - SECOND);
    f.now = 1;
    enter(&other, &f, "go disk");
    assert_int_equal(first_reply(&other), NBD_REP_INFO);
    start = sim_clock_now();
    while (!client_receive(&c, BEFORE_BYTES + NBD_OPTION_REPLY_HEADER_BYTES) &&
           sim_clock_now() - start < 5 * SECOND)
        sim_clock_poll();
    assert_int_equal(first_reply(&c), NBD_REP_ERR_POLICY);
    assert_int_equal(f.forgotten, 1);
    client_free(&other);
    client_free(&c);
    fixture_fini(&f);
}

/* Nobody's descriptor is ready when the credentials have been read again. */
static void test_tls_that_begins_later(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f, 1);
    f.tls.laters = 3;
    client_connect(&c, &f.rig);
    client_send_script(&c, "flags 3; option 5");
    client_send(&c, FAKE_HELLO, strlen(FAKE_HELLO));
    assert_false(client_receive(&c, BEFORE_BYTES));
    for (int i = 0; i < 100 && !client_receive(&c, BEFORE_BYTES); i++)
        sim_clock_poll();
    assert_true(client_receive(&c, BEFORE_BYTES));
    assert_int_equal(f.tls.laters, 0);
    client_free(&c);
    fixture_fini(&f);
}

static void test_stop(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f, -EINPROGRESS);
    enter(&c, &f, "go disk");
    rig_pump();
    nbd_server_stop(f.rig.server, RIG_LIMIT_NS);
    client_expect_close(&c);
    assert_int_equal(f.forgotten, 1);
    client_free(&c);
    fixture_fini(&f);
}

/* Whom nobody knows is refused, and nobody is asked about. */
static void test_no_name(void **state)
{
    struct fixture f;
    struct client c;

    fixture_init(&f, 1);
    f.tls.name = NULL;
    enter(&c, &f, "go disk");
    assert_int_equal(first_reply(&c), NBD_REP_ERR_POLICY);
    assert_int_equal(f.asked, 0);
    client_free(&c);
    fixture_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_at_once), cmocka_unit_test(test_later),
        cmocka_unit_test(test_never),   cmocka_unit_test(test_tls_that_begins_later),
        cmocka_unit_test(test_stop),    cmocka_unit_test(test_no_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
