/* SPDX-License-Identifier: BSD-3-Clause */
/* Exports that are taken away while the server runs. */
#include "base/bytes.h"
#include "tests/dialogue/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void on_done(void *arg)
{
    ++*(unsigned *)arg;
}

static void remove_export(struct rig *rig, bool hard, unsigned *done)
{
    assert_int_equal(nbd_server_remove_export(rig->server, rig->nbd_export, hard, on_done, done),
                     0);
    assert_int_equal(*done, 0);
}

static void end(struct rig *rig)
{
    rig->nbd_export = NULL;
    rig_fini(rig);
}

/* The type of the only reply to the only option that is sent. */
static uint32_t reply_to(struct rig *rig, const char *script)
{
    struct client c;
    uint32_t type;

    client_connect(&c, rig);
    client_send_script(&c, script);
    rig_pump();
    client_receive(&c, SIZE_MAX);
    assert_true(c.in.length >= 18 + NBD_OPTION_REPLY_HEADER_BYTES);
    type = get_be32(c.in.data + 18 + 12);
    assert_int_equal(c.in.length,
                     18 + NBD_OPTION_REPLY_HEADER_BYTES + get_be32(c.in.data + 18 + 16));
    client_free(&c);
    return type;
}

static void expect_hidden(struct rig *rig)
{
    assert_int_equal(reply_to(rig, "flags 3; list"), NBD_REP_ACK);
    assert_int_equal(reply_to(rig, "flags 3; go disk"), NBD_REP_ERR_UNKNOWN);
    assert_int_equal(reply_to(rig, "flags 3; info disk"), NBD_REP_ERR_UNKNOWN);
}

static void test_without_clients(void **state)
{
    struct rig rig;
    unsigned done = 0;

    rig_init(&rig, NULL);
    remove_export(&rig, false, &done);
    expect_hidden(&rig);
    assert_int_equal(done, 1);
    end(&rig);
}

/* Who is in may stay; nobody else comes in; when the last one has left it goes. */
static void test_soft(void **state)
{
    struct rig rig;
    struct client c, other;
    unsigned done = 0;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_enter(&other, &rig);
    remove_export(&rig, false, &done);
    expect_hidden(&rig);
    client_free(&other);
    client_request(&c, NBD_CMD_READ, 0, 1, 0, 3);
    client_expect_data(&c, 1, "\0\0\0", 3);
    client_request(&c, NBD_CMD_WRITE_ZEROES, 0, 2, 0, 512);
    client_expect(&c, 2, NBD_SUCCESS);
    rig_pump();
    assert_int_equal(done, 0);
    client_free(&c);
    rig_pump();
    assert_int_equal(done, 1);
    assert_int_equal(rig.disk.flushes, 1);
    end(&rig);
}

/* Clients are cut, and what runs is awaited; at once, or after they were waited for. */
static void test_hard(void **state)
{
    for (unsigned softly = 0; softly < 2; softly++) {
        struct rig rig;
        struct client c;
        unsigned done = 0;

        rig_init(&rig, NULL);
        client_enter(&c, &rig);
        rig.disk.slow = true;
        client_request(&c, NBD_CMD_READ, 0, 1, 0, 3);
        client_expect_silence(&c);
        if (softly) {
            remove_export(&rig, false, &done);
            client_expect_silence(&c);
        }
        remove_export(&rig, true, &done);
        client_expect_close(&c);
        rig_pump();
        assert_int_equal(done, 0);
        assert_int_equal(nbd_server_connections(rig.server), 1);
        rig.disk.slow = false;
        ram_disk_release_all(&rig.disk);
        rig_pump();
        assert_int_equal(done, 1);
        assert_int_equal(nbd_server_connections(rig.server), 0);
        client_free(&c);
        end(&rig);
    }
}

/* The server stops while an export waits for its clients: it goes first. */
static void test_stop(void **state)
{
    struct rig rig;
    struct client c;
    unsigned done = 0;

    rig_init(&rig, NULL);
    client_enter(&c, &rig);
    client_request(&c, NBD_CMD_WRITE_ZEROES, 0, 1, 0, 512);
    client_expect(&c, 1, NBD_SUCCESS);
    remove_export(&rig, false, &done);
    nbd_server_stop(rig.server, RIG_LIMIT_NS);
    rig.disk.slow = true;
    client_expect_close(&c);
    rig_pump();
    assert_int_equal(rig.disk.waiting_count, 1); /* its flush */
    assert_false(rig.stopped);
    ram_disk_release_all(&rig.disk);
    rig_pump();
    assert_int_equal(done, 1);
    assert_true(rig.stopped);
    client_free(&c);
    end(&rig);
}

/* Contexts of an export that is gone are not those of another one that comes in its place. */
static void test_selection(void **state)
{
    struct rig rig;
    struct client c;
    unsigned done = 0;
    struct nbd_export *other;

    rig_init(&rig, NULL);
    client_connect(&c, &rig);
    client_send_script(&c, "flags 3; structured; set disk base:allocation");
    rig_pump();
    remove_export(&rig, false, &done);
    rig_pump();
    assert_int_equal(done, 1);
    other = nbd_export_new("disk", NULL, rig.node, false, true);
    assert_non_null(other);
    list_append(&rig.exports.list, &other->link);
    client_send_script(&c, "go disk");
    rig_pump();
    client_receive(&c, SIZE_MAX);
    c.in.length = 0;
    client_request(&c, NBD_CMD_BLOCK_STATUS, 0, 1, 0, 512);
    assert_true(client_receive(&c, NBD_STRUCTURED_REPLY_BYTES + 4));
    assert_int_equal(get_be16(c.in.data + 6), NBD_REPLY_TYPE_ERROR);
    client_free(&c);
    rig_await_no_clients(&rig);
    rig.nbd_export = other;
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_clients),
        cmocka_unit_test(test_soft),
        cmocka_unit_test(test_hard),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_selection),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
