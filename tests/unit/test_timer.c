/* SPDX-License-Identifier: BSD-3-Clause */
/* The timer heap, and timers of the reactor on a simulated clock. */
#include "base/coroutine.h"
#include "base/reactor.h"
#include "base/timer_heap.h"
#include "tests/support/sim_clock.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)

/* ---- The heap ---- */

enum { TIMERS = 300 };

static void assert_in_order(struct timer_heap *heap, unsigned expected)
{
    int64_t last = INT64_MIN;
    struct reactor_timer *timer;

    while ((timer = timer_heap_first(heap))) {
        assert_true(timer->due_ns >= last);
        last = timer->due_ns;
        timer_heap_remove(heap, timer);
        assert_int_equal(timer->heap_index, 0);
        expected--;
    }
    assert_int_equal(expected, 0);
}

static void the_heap_gives_timers_in_order(void **state)
{
    static struct reactor_timer timers[TIMERS];
    struct prng prng = prng_of(test_seed());
    struct timer_heap heap = {0};

    (void)state;
    for (unsigned round = 0; round < 50; round++) {
        unsigned count = 1 + (unsigned)prng_below(&prng, TIMERS), left = count;

        for (unsigned i = 0; i < count; i++) {
            timers[i].due_ns = (int64_t)prng_below(&prng, round % 2 ? 10 : 100000);
            assert_int_equal(timer_heap_add(&heap, &timers[i]), 0);
        }
        for (unsigned i = 0; i < count; i++) {
            if (!prng_percent(&prng, 30))
                continue;
            timer_heap_remove(&heap, &timers[i]);
            timer_heap_remove(&heap, &timers[i]);
            left--;
        }
        assert_in_order(&heap, left);
    }
    assert_null(timer_heap_first(&heap));
    timer_heap_fini(&heap);
}

static void what_is_left_in_the_heap_becomes_idle(void **state)
{
    struct reactor_timer timers[3] = {0};
    struct timer_heap heap = {0};

    (void)state;
    for (int i = 0; i < 3; i++)
        timer_heap_add(&heap, &timers[i]);
    timer_heap_fini(&heap);
    for (int i = 0; i < 3; i++)
        assert_int_equal(timers[i].heap_index, 0);
    timer_heap_fini(&heap);
}

/* ---- Timers of the reactor ---- */

static int start_reactor(void **state)
{
    (void)state;
    sim_clock_install();
    return reactor_init(NULL);
}

static int stop_reactor(void **state)
{
    (void)state;
    reactor_fini();
    sim_clock_remove();
    return 0;
}

struct entry {
    struct reactor_timer timer;
    char name;
    struct entry *stops;
};

static char trail[64];

static void note(char name)
{
    size_t length = strlen(trail);

    assert_true(length + 1 < sizeof(trail));
    trail[length] = name;
    trail[length + 1] = 0;
}

static void on_entry(struct reactor_timer *timer)
{
    struct entry *entry = container_of(timer, struct entry, timer);

    assert_int_equal(timer->heap_index, 0);
    note(entry->name);
    if (entry->stops)
        reactor_timer_stop(&entry->stops->timer);
}

/* A poll with the clock where it is; nothing waits. */
static void poll_now(void)
{
    reactor_poll(false);
}

static void timers_run_when_they_are_due_and_not_before(void **state)
{
    struct entry a = {.name = 'a'}, b = {.name = 'b'}, c = {.name = 'c'};
    int64_t due;

    (void)state;
    trail[0] = 0;
    assert_false(reactor_next_timer(&due));
    reactor_timer_start(&b.timer, 2 * SECOND, on_entry);
    reactor_timer_start(&a.timer, 1 * SECOND, on_entry);
    reactor_timer_start(&c.timer, 3 * SECOND, on_entry);
    assert_true(reactor_next_timer(&due));
    assert_int_equal(due, sim_clock_now() + SECOND);
    poll_now();
    assert_string_equal(trail, "");
    sim_clock_advance(SECOND - 1);
    poll_now();
    assert_string_equal(trail, "");
    sim_clock_advance(1);
    poll_now();
    assert_string_equal(trail, "a");
    sim_clock_advance(100 * SECOND);
    poll_now();
    assert_string_equal(trail, "abc");
    assert_false(reactor_next_timer(&due));
}

static void timers_can_be_stopped_and_set_anew(void **state)
{
    struct entry c = {.name = 'c'}, b = {.name = 'b', .stops = &c}, a = {.name = 'a'};

    (void)state;
    trail[0] = 0;
    reactor_timer_stop(&a.timer);
    reactor_timer_start(&a.timer, SECOND, on_entry);
    reactor_timer_start(&a.timer, 4 * SECOND, on_entry);
    reactor_timer_start(&b.timer, 2 * SECOND, on_entry);
    reactor_timer_start(&c.timer, 2 * SECOND + 1, on_entry);
    sim_clock_advance(3 * SECOND);
    poll_now();
    assert_string_equal(trail, "b");
    sim_clock_advance(SECOND);
    poll_now();
    assert_string_equal(trail, "ba");
    reactor_timer_start(&a.timer, 0, on_entry);
    reactor_timer_stop(&a.timer);
    poll_now();
    assert_string_equal(trail, "ba");
}

static unsigned restarts;

static void restart_at_once(struct reactor_timer *timer)
{
    restarts++;
    reactor_timer_start(timer, 0, restart_at_once);
}

static void a_timer_that_is_always_due_does_not_hold_the_loop(void **state)
{
    struct reactor_timer timer = {0};
    unsigned before;

    (void)state;
    restarts = 0;
    reactor_timer_start(&timer, 0, restart_at_once);
    poll_now();
    assert_in_range(restarts, 1, 100);
    before = restarts;
    poll_now();
    assert_true(restarts > before);
    reactor_timer_stop(&timer);
}

static void delays_may_be_negative_or_endless(void **state)
{
    struct entry past = {.name = 'p'}, never = {.name = 'n'};
    int64_t due;

    (void)state;
    trail[0] = 0;
    reactor_timer_start(&never.timer, INT64_MAX, on_entry);
    reactor_timer_start(&past.timer, INT64_MIN, on_entry);
    poll_now();
    assert_string_equal(trail, "p");
    assert_true(reactor_next_timer(&due));
    assert_true(due > sim_clock_now() + 1000000 * SECOND);
    reactor_timer_stop(&never.timer);
}

/* ---- Waiting in coroutines, in simulated time ---- */

static int sleep_sum(void *arg)
{
    int64_t begin = sim_clock_now();

    (void)arg;
    co_sleep(0);
    assert_int_equal(sim_clock_now(), begin);
    co_sleep(3600 * SECOND);
    assert_int_equal(sim_clock_now(), begin + 3600 * SECOND);
    return 17;
}

static void sleeping_takes_exactly_so_long(void **state)
{
    (void)state;
    sim_clock_install();
    assert_int_equal(sim_clock_run(sleep_sum, NULL), 17);
    sim_clock_remove();
}

static int wait_for_pipe(void *arg)
{
    int *fds = arg;
    int64_t begin = sim_clock_now();

    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ, 5 * SECOND), -ETIMEDOUT);
    assert_int_equal(sim_clock_now(), begin + 5 * SECOND);
    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ, 0), -ETIMEDOUT);
    assert_int_equal(co_wait_fd(fds[1], REACTOR_WRITE, 5 * SECOND), REACTOR_WRITE);
    assert_int_equal(write(fds[1], "x", 1), 1);
    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ, 5 * SECOND), REACTOR_READ);
    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ, 0), REACTOR_READ);
    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ, -1), REACTOR_READ);
    assert_int_equal(sim_clock_now(), begin + 5 * SECOND);
    return 0;
}

static void waiting_for_a_descriptor_can_time_out(void **state)
{
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    sim_clock_install();
    assert_int_equal(sim_clock_run(wait_for_pipe, fds), 0);
    sim_clock_remove();
    close(fds[0]);
    close(fds[1]);
}

/* ---- On the real clock ---- */

static int sleep_a_little(void *arg)
{
    (void)arg;
    for (int i = 0; i < 5; i++)
        co_sleep(SECOND / 500);
    return 3;
}

static void timers_end_the_sleep_of_the_loop(void **state)
{
    (void)state;
    assert_int_equal(test_run(sleep_a_little, NULL), 3);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start_reactor, stop_reactor)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_heap_gives_timers_in_order),
        cmocka_unit_test(what_is_left_in_the_heap_becomes_idle),
        TEST(timers_run_when_they_are_due_and_not_before),
        TEST(timers_can_be_stopped_and_set_anew),
        TEST(a_timer_that_is_always_due_does_not_hold_the_loop),
        TEST(delays_may_be_negative_or_endless),
        cmocka_unit_test(sleeping_takes_exactly_so_long),
        cmocka_unit_test(waiting_for_a_descriptor_can_time_out),
        cmocka_unit_test(timers_end_the_sleep_of_the_loop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
