/* SPDX-License-Identifier: BSD-3-Clause */
/* The memory accounts of connections: limits, fairness, and who is woken. */
#include "nbd/memory.h"

#include "base/reactor.h"
#include "nbd/server.h"
#include "nbd/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define SHARES 200

struct client {
    struct nbd_share share;
    struct reactor_deferred wake;
    unsigned woken;
};

static struct nbd_memory memory;
static struct client clients[SHARES];

static void on_wake(struct reactor_deferred *deferred)
{
    container_of(deferred, struct client, wake)->woken++;
}

static int setup(void **state)
{
    if (reactor_init(NULL) < 0)
        return -1;
    nbd_memory_init(&memory);
    for (int i = 0; i < SHARES; i++) {
        clients[i] = (struct client){.wake.run = on_wake};
        nbd_share_init(&clients[i].share, &memory, &clients[i].wake);
    }
    return 0;
}

static int teardown(void **state)
{
    for (int i = 0; i < SHARES; i++) {
        nbd_share_give(&clients[i].share, clients[i].share.used);
        reactor_defer_cancel(&clients[i].wake);
        nbd_share_fini(&clients[i].share);
    }
    reactor_fini();
    return memory.used == 0 ? 0 : -1;
}

/* Takes as much as it may, in pieces. */
static uint64_t be_greedy(struct client *c, uint64_t piece)
{
    while (nbd_share_may_take(&c->share, piece))
        nbd_share_take(&c->share, piece);
    return c->share.used;
}

static void test_one_client(void **state)
{
    assert_int_equal(be_greedy(&clients[0], 32 << 20), NBD_CONNECTION_BYTES_MAX);
    assert_int_equal(memory.used, NBD_CONNECTION_BYTES_MAX);
    assert_false(nbd_share_is_full(&clients[0].share, 0));
    assert_true(nbd_share_is_full(&clients[0].share, 1));
    assert_false(nbd_share_is_full(&clients[1].share, NBD_CONNECTION_BYTES_MAX));
}

/* However greedy, all stay below the limit but for the floors, and a newcomer has its floor. */
static void test_all_are_greedy(void **state)
{
    for (int i = 0; i < SHARES; i++)
        be_greedy(&clients[i], 256 << 10);
    assert_true(memory.used <= NBD_SERVER_BYTES_MAX + SHARES * NBD_SHARE_FLOOR);
    assert_true(memory.used >= NBD_SERVER_BYTES_MAX / 2);
    for (int i = 0; i < SHARES; i++)
        assert_true(clients[i].share.used >= NBD_SHARE_FLOOR);
}

/* A few greedy clients leave room for the largest request of another one. */
static void test_room_for_a_large_request(void **state)
{
    for (int i = 0; i < 3; i++)
        be_greedy(&clients[i], 8 << 20);
    assert_true(nbd_share_may_take(&clients[3].share, NBD_PAYLOAD_MAX));
}

/*
 * When others have taken everything a newcomer has its floor and is told that memory is short; not
 * so one that only has to give back itself.
 */
static void test_short(void **state)
{
    int last = 0;

    while (memory.used < NBD_SERVER_BYTES_MAX - (1 << 20) && last < SHARES - 2)
        be_greedy(&clients[last++], 512 << 10);
    assert_false(nbd_share_may_take(&clients[last].share, NBD_PAYLOAD_MAX));
    assert_true(nbd_share_may_take(&clients[last].share, NBD_SHARE_FLOOR));
    assert_true(nbd_share_is_short(&clients[last].share, NBD_PAYLOAD_MAX));
    assert_false(nbd_share_is_short(&clients[last].share, NBD_SHARE_FLOOR));
    assert_false(nbd_share_is_short(&clients[0].share, NBD_PAYLOAD_MAX));
    assert_false(nbd_share_is_over(&clients[0].share));
    nbd_share_take(&clients[last].share, 2 * NBD_SHARE_FLOOR);
    assert_true(nbd_share_is_over(&clients[last].share));
    nbd_share_give(&clients[last].share, NBD_SHARE_FLOOR);
    assert_false(nbd_share_is_over(&clients[last].share));
    nbd_share_give(&clients[0].share, NBD_CONNECTION_BYTES_MAX);
    assert_false(nbd_share_is_short(&clients[last].share, NBD_PAYLOAD_MAX));
}

static void test_waking(void **state)
{
    for (int i = 0; i < 20; i++)
        be_greedy(&clients[i], 16 << 20);
    assert_false(nbd_share_may_take(&clients[50].share, 32 << 20));
    assert_false(nbd_share_may_take(&clients[51].share, 32 << 20));
    assert_false(nbd_share_may_take(&clients[50].share, 32 << 20)); /* still one entry */
    reactor_poll(false);
    assert_int_equal(clients[50].woken, 0);
    nbd_share_give(&clients[0].share, 16 << 20);
    reactor_poll(false);
    assert_int_equal(clients[50].woken, 1);
    assert_int_equal(clients[51].woken, 1);
    /* Who does not ask again is not woken again. */
    assert_false(nbd_share_may_take(&clients[51].share, 200 << 20));
    nbd_share_give(&clients[0].share, 16 << 20);
    reactor_poll(false);
    assert_int_equal(clients[50].woken, 1);
    assert_int_equal(clients[51].woken, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_one_client, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_are_greedy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_room_for_a_large_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_short, setup, teardown),
        cmocka_unit_test_setup_teardown(test_waking, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
