/* SPDX-License-Identifier: BSD-3-Clause */
/* Range locks: exclusion in random mixes, order of arrival, and that nobody starves. */
#include "base/reactor.h"
#include "blockcore/range_lock.h"
#include "tests/support/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define UNITS 16
#define ACTORS 12

static struct range_locks locks;
static unsigned shared_in[UNITS], exclusive_in[UNITS];
static unsigned order[8], order_count;

static void enter(uint64_t offset, uint64_t length, bool exclusive)
{
    for (uint64_t i = offset; i < offset + length; i++) {
        assert_int_equal(exclusive_in[i], 0);
        if (exclusive)
            assert_int_equal(shared_in[i], 0);
        exclusive_in[i] += exclusive;
        shared_in[i] += !exclusive;
    }
}

static void leave(uint64_t offset, uint64_t length, bool exclusive)
{
    for (uint64_t i = offset; i < offset + length; i++) {
        exclusive_in[i] -= exclusive;
        shared_in[i] -= !exclusive;
    }
}

static int run_random(void *arg)
{
    struct prng prng = prng_of(test_seed() + (uintptr_t)arg);

    for (unsigned i = 0; i < 300; i++) {
        uint64_t offset = prng_below(&prng, UNITS), length = 1 + prng_below(&prng, UNITS - offset);
        bool exclusive = prng_percent(&prng, 30);
        struct range_lock lock;

        if (exclusive)
            range_lock_exclusive(&locks, &lock, offset, length);
        else
            range_lock_shared(&locks, &lock, offset, length);
        enter(offset, length, exclusive);
        for (unsigned n = prng_below(&prng, 3); n > 0; n--)
            coroutine_yield();
        leave(offset, length, exclusive);
        range_unlock(&locks, &lock);
    }
    return 0;
}

static int run_all(void *arg)
{
    struct co_group group;

    co_group_init(&group);
    for (uintptr_t i = 0; i < ACTORS; i++)
        co_group_start(&group, run_random, (void *)i);
    return co_group_wait(&group);
}

static void test_exclusion(void **state)
{
    range_locks_init(&locks);
    assert_int_equal(test_run(run_all, NULL), 0);
    assert_true(list_empty(&locks.held));
    assert_true(list_empty(&locks.waiting));
    assert_int_equal(locks.exclusive, 0);
}

static void run_exclusive(void *arg)
{
    struct range_lock lock;

    range_lock_exclusive(&locks, &lock, 0, 4);
    order[order_count++] = 2;
    range_unlock(&locks, &lock);
}

static void run_late_shared(void *arg)
{
    struct range_lock lock;

    range_lock_shared(&locks, &lock, 2, 1);
    order[order_count++] = 3;
    range_unlock(&locks, &lock);
}

/* A shared lock that comes after a waiting exclusive one must not overtake it. */
static int run_order(void *arg)
{
    struct range_lock first, apart;

    range_lock_shared(&locks, &first, 0, 8);
    coroutine_start(run_exclusive, NULL);
    coroutine_yield();
    assert_false(range_lock_is_free(&locks, 3, 1));
    assert_true(range_lock_is_free(&locks, 4, 1));
    coroutine_start(run_late_shared, NULL);
    range_lock_shared(&locks, &apart, 8, 1); /* nobody waits for that */
    coroutine_yield();
    order[order_count++] = 1;
    range_unlock(&locks, &first);
    range_unlock(&locks, &apart);
    while (order_count < 3)
        coroutine_yield();
    return 0;
}

static void test_order(void **state)
{
    range_locks_init(&locks);
    order_count = 0;
    assert_int_equal(test_run(run_order, NULL), 0);
    assert_int_equal(order[0], 1);
    assert_int_equal(order[1], 2);
    assert_int_equal(order[2], 3);
    assert_int_equal(locks.exclusive, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exclusion),
        cmocka_unit_test(test_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
