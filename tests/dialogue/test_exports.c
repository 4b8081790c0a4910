/* SPDX-License-Identifier: BSD-3-Clause */
/* A server with several exports: who gets which, limits of each, and a table that is very long. */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/reactor.h"
#include "nbd/access.h"
#include "tests/dialogue/rig.h"
#include "tests/dialogue/transcript.h"
#include "tests/support/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* One more export of the rig's disk. */
static struct nbd_export *add_export(struct rig *rig, const char *name, const char *description,
                                     bool read_only, unsigned clients_max)
{
    struct nbd_export *e =
        nbd_export_new(name, description, rig->node, read_only, clients_max != 1);

    if (!e)
        test_die("out of memory for an export");
    e->clients_max = clients_max;
    list_append(&rig->exports.list, &e->link);
    return e;
}

/* Before the rig ends, when no client is left. The rig holds the node, so none is closed here. */
static void remove_exports(struct rig *rig, struct nbd_export **exports, unsigned count)
{
    rig_await_no_clients(rig);
    for (unsigned i = 0; i < count; i++)
        nbd_export_free(exports[i]);
}

/* Sends the script and checks all that comes to it from the greeting on. */
static void expect_transcript(struct client *c, const char *script, const char *expected)
{
    char *text;

    client_send_script(c, script);
    rig_pump();
    client_receive(c, SIZE_MAX);
    text = transcript_of(c->in.data, c->in.length, false);
    assert_string_equal(text, expected);
    free(text);
    c->in.length = 0;
}

static void connect_to(struct client *c, struct rig *rig, const char *script, const char *expected)
{
    client_connect(c, rig);
    expect_transcript(c, script, expected);
}

static void test_several(void **state)
{
    struct rig rig;
    struct client c;
    struct nbd_export *more[2];

    rig_init(&rig, NULL);
    more[0] = add_export(&rig, "fixed", "cannot be written", true, 0);
    more[1] = add_export(&rig, "solo", NULL, false, 1);
    connect_to(&c, &rig,
               "flags 3; list; info fixed 2; info solo; info Solo; info dis; info diskk; go fixed",
               "greeting; LIST SERVER 'disk'; LIST SERVER 'fixed' 'cannot be written'; "
               "LIST SERVER 'solo'; LIST ACK; "
               "INFO INFO EXPORT 1048576 0x50f; INFO INFO DESCRIPTION 'cannot be written'; "
               "INFO INFO BLOCK_SIZE 1 4096 33554432; INFO ACK; "
               "INFO INFO EXPORT 1048576 0xc6d; INFO INFO BLOCK_SIZE 1 4096 33554432; INFO ACK; "
               "INFO ERR_UNKNOWN; INFO ERR_UNKNOWN; INFO ERR_UNKNOWN; "
               "GO INFO EXPORT 1048576 0x50f; GO INFO BLOCK_SIZE 1 4096 33554432; GO ACK");
    client_request(&c, NBD_CMD_TRIM, 0, 1, 0, 512);
    client_expect(&c, 1, NBD_EPERM);
    client_free(&c);
    remove_exports(&rig, more, 2);
    rig_fini(&rig);
}

static void test_no_default(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    rig.exports.default_export = NULL;
    connect_to(&c, &rig, "flags 3; info -; go -; list",
               "greeting; INFO ERR_UNKNOWN; GO ERR_UNKNOWN; LIST SERVER 'disk'; LIST ACK");
    client_free(&c);
    connect_to(&c, &rig, "flags 3; name -", "greeting");
    client_expect_close(&c);
    client_free(&c);
    rig_fini(&rig);
}

/* The limit of one export does not touch the others, and who is refused may choose again. */
static void test_limit_of_an_export(void **state)
{
    struct rig rig;
    struct client first, second, old;
    struct nbd_export *more[2];

    rig_init(&rig, NULL);
    more[0] = add_export(&rig, "solo", NULL, false, 1);
    more[1] = add_export(&rig, "pair", NULL, false, 2);
    connect_to(&first, &rig, "flags 3; go solo",
               "greeting; GO INFO EXPORT 1048576 0xc6d; GO INFO BLOCK_SIZE 1 4096 33554432; "
               "GO ACK");
    assert_int_equal(more[0]->clients, 1);
    connect_to(&second, &rig, "flags 3; go solo; info solo",
               "greeting; GO ERR_POLICY; INFO INFO EXPORT 1048576 0xc6d; "
               "INFO INFO BLOCK_SIZE 1 4096 33554432; INFO ACK");
    connect_to(&old, &rig, "flags 3; name solo", "greeting");
    client_expect_close(&old);
    client_free(&old);
    connect_to(&old, &rig, "flags 3; name pair", "greeting; export 1048576 0xd6d");
    client_send_script(&second, "go pair");
    assert_true(client_receive(&second, 86));
    assert_int_equal(more[1]->clients, 2);
    client_free(&old);
    /* A place that has become free is free. */
    client_request(&first, NBD_CMD_DISC, 0, 0, 0, 0);
    client_expect_close(&first);
    client_free(&first);
    assert_int_equal(more[0]->clients, 0);
    connect_to(&first, &rig, "flags 3; go solo",
               "greeting; GO INFO EXPORT 1048576 0xc6d; GO INFO BLOCK_SIZE 1 4096 33554432; "
               "GO ACK");
    client_free(&first);
    client_free(&second);
    remove_exports(&rig, more, 2);
    rig_fini(&rig);
}

static void test_limit_of_oldstyle(void **state)
{
    const struct rig_options options = {.size = 4096, .oldstyle = true};
    struct rig rig;
    struct client first, second;

    rig_init(&rig, &options);
    rig.nbd_export->clients_max = 1;
    client_connect(&first, &rig);
    assert_true(client_receive(&first, 152));
    client_connect(&second, &rig);
    client_expect_close(&second);
    assert_int_equal(second.in.length, 0);
    client_free(&first);
    client_free(&second);
    rig_fini(&rig);
}

/* ---- Access ---- */

static void allow_user(struct nbd_access *access, uid_t uid)
{
    struct error error;
    char rule[32];

    nbd_access_init(access);
    snprintf(rule, sizeof(rule), "uid=%u", uid);
    assert_int_equal(nbd_access_add_text(access, rule, &error), 0);
}

/* What is not for a client is not listed, described or entered; and it may choose again. */
static void test_access(void **state)
{
    struct rig rig;
    struct client c;
    struct nbd_export *more[2];
    struct nbd_access mine, theirs;

    allow_user(&mine, getuid());
    allow_user(&theirs, getuid() + 1);
    rig_init(&rig, NULL);
    more[0] = add_export(&rig, "mine", NULL, true, 0);
    more[0]->access = &mine;
    more[1] = add_export(&rig, "theirs", NULL, true, 0);
    more[1]->access = &theirs;
    connect_to(&c, &rig,
               "flags 3; structured; list; info theirs; set theirs base:allocation; go theirs; "
               "go mine",
               "greeting; STRUCTURED_REPLY ACK; LIST SERVER 'disk'; LIST SERVER 'mine'; LIST ACK; "
               "INFO ERR_POLICY; SET_META_CONTEXT ERR_POLICY; GO ERR_POLICY; "
               "GO INFO EXPORT 1048576 0x58f; GO INFO BLOCK_SIZE 1 4096 33554432; GO ACK");
    assert_int_equal(more[0]->clients, 1);
    client_free(&c);
    connect_to(&c, &rig, "flags 3; name theirs", "greeting");
    client_expect_close(&c);
    client_free(&c);
    connect_to(&c, &rig, "flags 3; name mine", "greeting; export 1048576 0x50f");
    client_free(&c);
    remove_exports(&rig, more, 2);
    rig_fini(&rig);
    nbd_access_fini(&mine);
    nbd_access_fini(&theirs);
}

static void test_access_to_oldstyle(void **state)
{
    const struct rig_options options = {.size = 4096, .oldstyle = true};
    struct nbd_access theirs;
    struct rig rig;
    struct client c;

    allow_user(&theirs, getuid() + 1);
    rig_init(&rig, &options);
    rig.nbd_export->access = &theirs;
    client_connect(&c, &rig);
    client_expect_close(&c);
    assert_int_equal(c.in.length, 0);
    client_free(&c);
    rig_fini(&rig);
    nbd_access_fini(&theirs);
}

/* ---- Contexts ---- */

/* Takes a structured error chunk off. */
static uint32_t take_error_chunk(struct client *c)
{
    uint32_t length, error;

    assert_true(client_receive(c, 20));
    if (get_be32(c->in.data) == NBD_SIMPLE_REPLY_MAGIC) {
        error = get_be32(c->in.data + 4);
        c->in.length = 0;
        return error;
    }
    assert_int_equal(get_be16(c->in.data + 6) & 0x8000, 0x8000);
    length = get_be32(c->in.data + 16);
    assert_true(client_receive(c, 20 + length));
    error = get_be32(c->in.data + 20);
    c->in.length = 0;
    return error;
}

/* Contexts that were selected for one export are not those of another. */
static void test_contexts_of_another_export(void **state)
{
    struct rig rig;
    struct client c;
    struct nbd_export *fixed;

    rig_init(&rig, NULL);
    fixed = add_export(&rig, "fixed", NULL, true, 0);
    connect_to(&c, &rig, "flags 3; structured; set fixed base:allocation; go disk",
               "greeting; STRUCTURED_REPLY ACK; "
               "SET_META_CONTEXT META_CONTEXT 0 'base:allocation'; SET_META_CONTEXT ACK; "
               "GO INFO EXPORT 1048576 0xded; GO INFO BLOCK_SIZE 1 4096 33554432; GO ACK");
    client_request(&c, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 4096);
    assert_int_equal(take_error_chunk(&c), NBD_EINVAL);
    client_free(&c);
    /* The same export by its two names is one. */
    connect_to(&c, &rig, "flags 3; structured; set disk base:allocation; go -",
               "greeting; STRUCTURED_REPLY ACK; "
               "SET_META_CONTEXT META_CONTEXT 0 'base:allocation'; SET_META_CONTEXT ACK; "
               "GO INFO EXPORT 1048576 0xded; GO INFO BLOCK_SIZE 1 4096 33554432; GO ACK");
    client_request(&c, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 4096);
    assert_true(client_receive(&c, 20 + 4 + 8));
    assert_int_equal(get_be16(c.in.data + 6), NBD_REPLY_TYPE_BLOCK_STATUS);
    client_free(&c);
    remove_exports(&rig, &fixed, 1);
    rig_fini(&rig);
}

/* ---- A long table ---- */

enum { MANY = 10000, NAME = 8, DESCRIPTION = 1000, ITEM = 20 + 4 + NAME + DESCRIPTION };

static struct nbd_export *many[MANY];

static void add_many(struct rig *rig)
{
    char name[NAME + 1], description[DESCRIPTION + 1];

    memset(description, 'd', DESCRIPTION);
    description[DESCRIPTION] = '\0';
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof(name), "n%07d", i);
        many[i] = add_export(rig, name, description, true, 0);
    }
}

/* Takes one item of the list off, which must be this one. */
static void expect_item(struct client *c, size_t *at, int number)
{
    const uint8_t *item;
    char name[NAME + 1];

    if (c->in.length - *at < ITEM) {
        memmove(c->in.data, c->in.data + *at, c->in.length - *at);
        c->in.length -= *at;
        *at = 0;
        assert_true(client_receive(c, ITEM));
    }
    item = c->in.data + *at;
    snprintf(name, sizeof(name), "n%07d", number);
    assert_int_equal(get_be32(item + 12), NBD_REP_SERVER);
    assert_int_equal(get_be32(item + 16), ITEM - 20);
    assert_memory_equal(item + 24, name, NAME);
    *at += ITEM;
}

/* Ten megabytes of list for a client that does not read: the server makes only some of it. */
static void test_long_list(void **state)
{
    struct rig rig;
    struct client c, other;
    size_t at = 18 + 20 + 4 + 4; /* the greeting, and the rig's own export */

    rig_init(&rig, NULL);
    add_many(&rig);
    client_connect(&c, &rig);
    client_send_script(&c, "flags 3; list; info n0009999");
    rig_pump();
    assert_true(buffer_bytes_used() < 6 << 20);
    client_enter(&other, &rig);
    client_free(&other);
    assert_true(client_receive(&c, at));
    for (int i = 0; i < MANY; i++)
        expect_item(&c, &at, i);
    /* Then its end, and what was asked behind it. */
    memmove(c.in.data, c.in.data + at, c.in.length - at);
    c.in.length -= at;
    assert_true(client_receive(&c, 20 + 20 + 12));
    assert_int_equal(get_be32(c.in.data + 8), NBD_OPT_LIST);
    assert_int_equal(get_be32(c.in.data + 12), NBD_REP_ACK);
    assert_int_equal(get_be32(c.in.data + 28), NBD_OPT_INFO);
    client_free(&c);
    remove_exports(&rig, many, MANY);
    rig_fini(&rig);
}

/* Who leaves in the middle of the list takes it with him. */
static void test_long_list_is_left(void **state)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    add_many(&rig);
    client_connect(&c, &rig);
    client_send_script(&c, "flags 3; list; list; list");
    rig_pump();
    assert_true(client_receive(&c, 100000));
    client_free(&c);
    remove_exports(&rig, many, MANY);
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_several),
        cmocka_unit_test(test_no_default),
        cmocka_unit_test(test_limit_of_an_export),
        cmocka_unit_test(test_limit_of_oldstyle),
        cmocka_unit_test(test_access),
        cmocka_unit_test(test_access_to_oldstyle),
        cmocka_unit_test(test_contexts_of_another_export),
        cmocka_unit_test(test_long_list),
        cmocka_unit_test(test_long_list_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
