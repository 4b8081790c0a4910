/* SPDX-License-Identifier: BSD-3-Clause */
/* Coroutines without a loop: the test is the loop. */
#include "base/coroutine.h"

#include <alloca.h>
#include <errno.h>
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
    assert_false(coroutine_any_ready());
    assert_null(coroutine_self());
    coroutine_pool_trim();
    return 0;
}

static void drain(void)
{
    for (int i = 0; i < 10000 && coroutine_run_ready(INT64_MAX); i++)
        ;
    assert_false(coroutine_any_ready());
}

static struct coroutine *waiting;

static void note_and_wait(void *arg)
{
    struct coroutine *self = coroutine_self();

    assert_non_null(self);
    note(*(char *)arg);
    waiting = self;
    coroutine_suspend();
    assert_ptr_equal(self, coroutine_self());
    note((char)(*(char *)arg + 'A' - 'a'));
}

static void started_on_the_loop_it_runs_until_it_waits(void **state)
{
    char name = 'a';

    (void)state;
    assert_int_equal(coroutine_start(note_and_wait, &name), 0);
    assert_string_equal(trail, "a");
    assert_int_equal(coroutine_count(), 1);
    assert_null(coroutine_self());
    assert_false(coroutine_any_ready());
    coroutine_wake(waiting);
    assert_string_equal(trail, "a");
    assert_true(coroutine_any_ready());
    assert_false(coroutine_run_ready(INT64_MAX));
    assert_string_equal(trail, "aA");
}

static void note_only(void *arg)
{
    note(*(char *)arg);
}

static void start_two(void *arg)
{
    static char names[] = "xy";

    (void)arg;
    assert_int_equal(coroutine_start(note_only, &names[0]), 0);
    assert_int_equal(coroutine_start(note_only, &names[1]), 0);
    note('s');
}

static void started_in_a_coroutine_it_becomes_ready(void **state)
{
    (void)state;
    assert_int_equal(coroutine_start(start_two, NULL), 0);
    assert_string_equal(trail, "s");
    assert_int_equal(coroutine_count(), 2);
    drain();
    assert_string_equal(trail, "sxy");
}

static void yield_three_times(void *arg)
{
    for (int i = 0; i < 3; i++) {
        note(*(char *)arg);
        coroutine_yield();
    }
}

static void yielding_takes_turns_and_a_pass_is_bounded(void **state)
{
    char a = 'a', b = 'b';

    (void)state;
    coroutine_start(yield_three_times, &a);
    coroutine_start(yield_three_times, &b);
    assert_string_equal(trail, "ab");
    assert_true(coroutine_run_ready(INT64_MAX));
    assert_string_equal(trail, "abab");
    assert_true(coroutine_run_ready(INT64_MAX));
    assert_string_equal(trail, "ababab");
    assert_false(coroutine_run_ready(INT64_MAX));
    assert_string_equal(trail, "ababab");
}

static void note_one(void *arg)
{
    note(*(const char *)arg);
}

static void start_three(void *arg)
{
    char *names = arg;

    for (int i = 0; i < 3; i++)
        coroutine_start(note_one, names + i);
}

/* When the time is over at once, one still gets its turn, and no more. */
static void a_pass_ends_when_its_time_is_over(void **state)
{
    char names[] = "xyz";

    (void)state;
    coroutine_start(start_three, names);
    assert_true(coroutine_run_ready(0));
    assert_string_equal(trail, "x");
    assert_true(coroutine_run_ready(0));
    assert_string_equal(trail, "xy");
    assert_false(coroutine_run_ready(0));
    assert_string_equal(trail, "xyz");
}

struct step {
    unsigned *sum;
    unsigned add;
    struct coroutine *co;
};

/* Its variables, and pointers to them from outside, must survive the wait. */
static void add_after_wait(void *arg)
{
    struct step *step = arg;
    volatile unsigned copies[64];

    for (unsigned i = 0; i < ARRAY_SIZE(copies); i++)
        copies[i] = step->add + i;
    step->co = coroutine_self();
    coroutine_suspend();
    for (unsigned i = 0; i < ARRAY_SIZE(copies); i++)
        assert_int_equal(copies[i], step->add + i);
    *step->sum += copies[0];
}

static void many_wait_at_once_and_stacks_are_used_again(void **state)
{
    enum { COUNT = 1000 };
    static struct step steps[COUNT];
    unsigned sum = 0;

    (void)state;
    for (unsigned round = 0; round < 3; round++) {
        sum = 0;
        for (unsigned i = 0; i < COUNT; i++) {
            steps[i] = (struct step){.sum = &sum, .add = i};
            assert_int_equal(coroutine_start(add_after_wait, &steps[i]), 0);
        }
        assert_int_equal(coroutine_count(), COUNT);
        for (unsigned i = 0; i < COUNT; i++)
            coroutine_wake(steps[(i * 7) % COUNT].co);
        drain();
        assert_int_equal(sum, COUNT * (COUNT - 1) / 2);
        assert_int_equal(coroutine_count(), 0);
    }
}

static void the_pool_gives_the_last_stack_first(void **state)
{
    static char names[] = "abc";
    struct coroutine *first, *second;

    (void)state;
    coroutine_start(note_and_wait, &names[0]);
    first = waiting;
    coroutine_start(note_and_wait, &names[1]);
    second = waiting;
    assert_ptr_not_equal(first, second);
    coroutine_wake(first);
    coroutine_wake(second);
    drain();
    coroutine_start(note_and_wait, &names[2]);
    assert_ptr_equal(waiting, second);
    coroutine_wake(waiting);
    drain();
    assert_string_equal(trail, "abABcC");
}

/* Also by what sums come to: x86 has two units, each with a mode of its own. */
static void assert_rounds(int mode)
{
    volatile double one = 1, tiny = 1e-30, sum = one + tiny;
    volatile long double long_one = 1, long_tiny = 1e-30L, long_sum = long_one + long_tiny;

    assert_int_equal(fegetround(), mode);
    assert_true((sum > 1) == (mode == FE_UPWARD));
    assert_true((long_sum > 1) == (mode == FE_UPWARD));
}

static void round_up(void *arg)
{
    (void)arg;
    assert_rounds(FE_TONEAREST);
    fesetround(FE_UPWARD);
    waiting = coroutine_self();
    coroutine_suspend();
    assert_rounds(FE_UPWARD);
    note('u');
    fesetround(FE_TONEAREST);
}

static void floating_point_modes_belong_to_the_coroutine(void **state)
{
    (void)state;
    coroutine_start(round_up, NULL);
    assert_rounds(FE_TONEAREST);
    coroutine_wake(waiting);
    drain();
    assert_string_equal(trail, "u");
    assert_rounds(FE_TONEAREST);
}

struct sum {
    unsigned long seed;
    double result;
};

/* More live values than there are registers that a call may destroy. */
static void sum_up_with_yields(void *arg)
{
    struct sum *sum = arg;
    unsigned long a = sum->seed, b = a * 3, c = b * 5, d = c * 7, e = d * 11, f = e * 13;
    double x = (double)a / 3, y = x / 7;

    for (int i = 0; i < 50; i++) {
        coroutine_yield();
        a += b, b += c, c += d, d += e, e += f, f += a;
        x += y;
    }
    sum->result = x + (double)(a ^ b ^ c ^ d ^ e ^ f);
}

static void registers_survive_switches(void **state)
{
    struct sum alone[8], together[8];

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(alone); i++) {
        alone[i] = together[i] = (struct sum){.seed = 1000 + i};
        coroutine_start(sum_up_with_yields, &alone[i]);
        drain();
    }
    for (unsigned i = 0; i < ARRAY_SIZE(together); i++)
        coroutine_start(sum_up_with_yields, &together[i]);
    drain();
    for (unsigned i = 0; i < ARRAY_SIZE(together); i++)
        assert_true(together[i].result == alone[i].result && alone[i].result > 0);
}

static void use_stack(void *arg)
{
    size_t size = *(size_t *)arg;
    volatile char *bytes = alloca(size);

    bytes[0] = 1;
    bytes[size - 1] = 1;
}

static void the_deepest_use_of_a_stack_is_known(void **state)
{
    size_t deep = 20000, shallow = 100, high;

    (void)state;
    coroutine_start(use_stack, &shallow);
    coroutine_start(use_stack, &deep);
    coroutine_start(use_stack, &shallow);
    high = coroutine_stack_high_water();
#ifdef EVNBD_RELEASE
    assert_int_equal(high, 0);
#else
    assert_true(high >= deep);
    coroutine_pool_trim();
    assert_int_equal(coroutine_stack_high_water(), high);
#endif
}

/* Runs fn in a child; what it wrote to stderr goes to `text`. Returns its wait status. */
static int in_child(void (*fn)(void), char *text, size_t text_size)
{
    int fds[2], status;
    size_t length = 0;
    ssize_t n;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fds[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        signal(SIGSEGV, SIG_DFL);
        fn();
        _exit(0);
    }
    close(fds[1]);
    while ((n = read(fds[0], text + length, text_size - 1 - length)) > 0)
        length += (size_t)n;
    text[length] = 0;
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void assert_aborts(void (*fn)(void), const char *words)
{
    static char text[1 << 16];
    int status = in_child(fn, text, sizeof(text));

    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
    assert_non_null(strstr(text, words));
}

static void wake_twice(void)
{
    static char name = 'a';

    coroutine_start(note_and_wait, &name);
    coroutine_wake(waiting);
    coroutine_wake(waiting);
}

static void suspend_outside(void)
{
    coroutine_suspend();
}

static void programming_errors_abort_with_a_message(void **state)
{
    (void)state;
    assert_aborts(wake_twice, "woken twice");
    assert_aborts(suspend_outside, "only a coroutine can suspend");
}

static int recurse(volatile char *above, int levels)
{
    volatile char frame[512];

    frame[0] = above[0];
    return levels == 0 ? 0 : recurse(frame, levels - 1) + frame[0];
}

static void run_out_of_stack(void *arg)
{
    volatile char start[1] = {0};

    (void)arg;
    recurse(start, 1 << 20);
}

static void overflow_stack(void)
{
    coroutine_start(run_out_of_stack, NULL);
}

static void running_out_of_stack_hits_the_guard_page(void **state)
{
    static char text[1 << 16];
    int status;

    (void)state;
    status = in_child(overflow_stack, text, sizeof(text));
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, clear_trail, all_ended)
    const struct CMUnitTest tests[] = {
        TEST(a_pass_ends_when_its_time_is_over),
        TEST(started_on_the_loop_it_runs_until_it_waits),
        TEST(started_in_a_coroutine_it_becomes_ready),
        TEST(yielding_takes_turns_and_a_pass_is_bounded),
        TEST(many_wait_at_once_and_stacks_are_used_again),
        TEST(the_pool_gives_the_last_stack_first),
        TEST(floating_point_modes_belong_to_the_coroutine),
        TEST(registers_survive_switches),
        TEST(the_deepest_use_of_a_stack_is_known),
        TEST(programming_errors_abort_with_a_message),
        TEST(running_out_of_stack_hits_the_guard_page),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
