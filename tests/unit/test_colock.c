/* SPDX-License-Identifier: BSD-3-Clause */
/* Wait queue, mutex and group. No loop is needed: the test runs the ready list. */
#include "base/colock.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* What happened, one letter an event. */
static char trail[4096];

static void note(char event)
{
    size_t length = strlen(trail);

    assert_true(length + 1 < sizeof(trail));
    trail[length] = event;
    trail[length + 1] = 0;
}

static int clear_trail(void **state)
{
    (void)state;
    trail[0] = 0;
    return 0;
}

static int all_ended(void **state)
{
    (void)state;
    assert_int_equal(coroutine_count(), 0);
    coroutine_pool_trim();
    return 0;
}

static void drain(void)
{
    for (int i = 0; i < 10000 && coroutine_run_ready(INT64_MAX); i++)
        ;
    assert_false(coroutine_any_ready());
}

static struct co_queue queue;

static void wait_in_queue(void *arg)
{
    co_queue_wait(&queue);
    note(*(char *)arg);
}

static char names[] = "abcdefgh";

static void a_queue_wakes_in_order(void **state)
{
    (void)state;
    co_queue_init(&queue);
    assert_true(co_queue_empty(&queue));
    assert_false(co_queue_wake_one(&queue));
    for (int i = 0; i < 4; i++)
        coroutine_start(wait_in_queue, &names[i]);
    assert_false(co_queue_empty(&queue));
    assert_true(co_queue_wake_one(&queue));
    assert_string_equal(trail, "");
    drain();
    assert_string_equal(trail, "a");
    co_queue_wake_all(&queue);
    assert_true(co_queue_empty(&queue));
    drain();
    assert_string_equal(trail, "abcd");
}

static struct co_mutex mutex;

static void hold_mutex(void *arg)
{
    char name = *(char *)arg;

    co_mutex_lock(&mutex);
    note(name);
    coroutine_yield();
    coroutine_yield();
    note(name);
    co_mutex_unlock(&mutex);
}

static void one_at_a_time_holds_a_mutex_in_order(void **state)
{
    (void)state;
    co_mutex_init(&mutex);
    for (int i = 0; i < 4; i++)
        coroutine_start(hold_mutex, &names[i]);
    drain();
    assert_string_equal(trail, "aabbccdd");
    assert_null(mutex.owner);
}

/* Lets go and at once wants it again: whoever waits comes first. */
static void lock_twice_in_turn(void *arg)
{
    for (int i = 0; i < 2; i++) {
        co_mutex_lock(&mutex);
        note(*(char *)arg);
        coroutine_yield();
        co_mutex_unlock(&mutex);
    }
}

static void nobody_overtakes_in_a_mutex(void **state)
{
    (void)state;
    co_mutex_init(&mutex);
    for (int i = 0; i < 3; i++)
        coroutine_start(lock_twice_in_turn, &names[i]);
    drain();
    assert_string_equal(trail, "abcabc");
}

static int yield_some_times(void *arg)
{
    int times = *(int *)arg;

    for (int i = 0; i < times; i++)
        coroutine_yield();
    note((char)('0' + times));
    return times % 2 == 0 ? -times : times;
}

static int group_result;

static void run_group(void *arg)
{
    int *times = arg;
    struct co_group group;

    co_group_init(&group);
    for (int i = 0; times[i] >= 0; i++)
        co_group_start(&group, yield_some_times, &times[i]);
    note('w');
    group_result = co_group_wait(&group);
    note('W');
    assert_int_equal(co_group_wait(&group), 0);
}

static void a_group_waits_for_all_and_has_the_first_error(void **state)
{
    static int some_fail[] = {5, 4, 1, 6, 3, -1}, none_fails[] = {5, 1, 3, -1}, none[] = {-1};

    (void)state;
    coroutine_start(run_group, some_fail);
    drain();
    assert_string_equal(trail, "w13456W");
    assert_int_equal(group_result, -4);

    trail[0] = 0;
    coroutine_start(run_group, none_fails);
    drain();
    assert_string_equal(trail, "w135W");
    assert_int_equal(group_result, 0);

    trail[0] = 0;
    coroutine_start(run_group, none);
    assert_string_equal(trail, "wW");
    assert_int_equal(group_result, 0);
}

static void use_group_twice(void *arg)
{
    static int two = 2, three = 3;
    struct co_group group;

    (void)arg;
    co_group_init(&group);
    co_group_start(&group, yield_some_times, &two);
    assert_int_equal(co_group_wait(&group), -2);
    co_group_start(&group, yield_some_times, &three);
    assert_int_equal(co_group_wait(&group), 0);
    note('W');
}

static void a_group_can_be_used_again(void **state)
{
    (void)state;
    coroutine_start(use_group_twice, NULL);
    drain();
    assert_string_equal(trail, "23W");
}

static int ran_in_caller(void *arg)
{
    if (coroutine_self() == arg)
        note('c');
    return -EIO;
}

static void group_without_memory(void *arg)
{
    struct rlimit none = {0, 0};
    struct co_group group;

    (void)arg;
    co_group_init(&group);
    if (setrlimit(RLIMIT_AS, &none) < 0)
        _exit(3);
    for (int i = 0; i < 3; i++)
        co_group_start(&group, ran_in_caller, coroutine_self());
    _exit(co_group_wait(&group) == -EIO && strcmp(trail, "ccc") == 0 ? 0 : 4);
}

static void without_stacks_a_group_runs_in_its_caller(void **state)
{
    int status;
    pid_t pid;

    (void)state;
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        coroutine_start(group_without_memory, NULL);
        _exit(5);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, clear_trail, all_ended)
    const struct CMUnitTest tests[] = {
        TEST(a_queue_wakes_in_order),      TEST(one_at_a_time_holds_a_mutex_in_order),
        TEST(nobody_overtakes_in_a_mutex), TEST(a_group_waits_for_all_and_has_the_first_error),
        TEST(a_group_can_be_used_again),   TEST(without_stacks_a_group_runs_in_its_caller),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
