/* SPDX-License-Identifier: BSD-3-Clause */
/* The event loop: descriptors, signals, deferred work, sources, and that nothing is slept with. */
#include "base/buffer.h"
#include "base/coroutine.h"
#include "base/reactor.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define MILLISECOND INT64_C(1000000)

static int start_reactor(void **state)
{
    (void)state;
    return reactor_init(NULL);
}

static int stop_reactor(void **state)
{
    (void)state;
    reactor_fini();
    return 0;
}

/* What happened, one letter an event. */
static char trail[256];

static void note(char event)
{
    size_t length = strlen(trail);

    assert_true(length + 1 < sizeof(trail));
    trail[length] = event;
    trail[length + 1] = 0;
}

static void make_pair(int fds[2])
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
}

static void close_pair(int fds[2])
{
    close(fds[0]);
    close(fds[1]);
}

/* ---- Descriptors ---- */

static void count_events(void *arg, unsigned events)
{
    unsigned *counts = arg;

    counts[0] += (events & REACTOR_READ) != 0;
    counts[1] += (events & REACTOR_WRITE) != 0;
}

static void descriptors_are_level_triggered_and_can_be_paused(void **state)
{
    unsigned counts[2] = {0};
    struct reactor_fd *watch;
    char byte;
    int fds[2];

    (void)state;
    make_pair(fds);
    watch = reactor_fd_new(fds[0], REACTOR_READ, count_events, counts);
    assert_non_null(watch);
    reactor_poll(false);
    assert_int_equal(counts[0], 0);
    assert_int_equal(write(fds[1], "x", 1), 1);
    reactor_poll(true);
    reactor_poll(true);
    assert_int_equal(counts[0], 2);
    assert_int_equal(counts[1], 0);

    reactor_fd_set(watch, 0);
    reactor_poll(false);
    reactor_poll(false);
    assert_int_equal(counts[0], 2);

    reactor_fd_set(watch, REACTOR_WRITE);
    reactor_poll(true);
    assert_int_equal(counts[0], 2);
    assert_int_equal(counts[1], 1);

    reactor_fd_set(watch, REACTOR_READ | REACTOR_WRITE);
    reactor_poll(true);
    assert_int_equal(counts[0], 3);
    assert_int_equal(counts[1], 2);

    assert_int_equal(read(fds[0], &byte, 1), 1);
    reactor_fd_set(watch, REACTOR_READ);
    reactor_poll(false);
    assert_int_equal(counts[0], 3);
    assert_int_equal(counts[1], 2);
    close(fds[1]);
    reactor_poll(true);
    assert_int_equal(counts[0], 4);
    reactor_fd_free(watch);
    reactor_fd_free(NULL);
    close(fds[0]);
}

static void a_watch_may_start_paused(void **state)
{
    unsigned counts[2] = {0};
    struct reactor_fd *watch;
    int fds[2];

    (void)state;
    make_pair(fds);
    watch = reactor_fd_new(fds[0], 0, count_events, counts);
    reactor_poll(false);
    assert_int_equal(counts[1], 0);
    reactor_fd_set(watch, REACTOR_WRITE);
    reactor_poll(true);
    assert_int_equal(counts[1], 1);
    reactor_fd_free(watch);
    close_pair(fds);
}

static struct reactor_fd *watches[2];
static unsigned frees;

/* Whichever comes first frees both, so the other's pending event must be forgotten. */
static void free_both(void *arg, unsigned events)
{
    (void)arg, (void)events;
    frees++;
    for (int i = 0; i < 2; i++) {
        reactor_fd_free(watches[i]);
        watches[i] = NULL;
    }
}

static void watches_may_be_freed_in_a_callback(void **state)
{
    int fds[2];

    (void)state;
    make_pair(fds);
    frees = 0;
    for (int i = 0; i < 2; i++)
        watches[i] = reactor_fd_new(fds[i], REACTOR_WRITE, free_both, NULL);
    reactor_poll(true);
    reactor_poll(false);
    assert_int_equal(frees, 1);
    close_pair(fds);
}

static void a_number_can_be_another_descriptor_later(void **state)
{
    unsigned counts[2] = {0};
    struct reactor_fd *watch;
    int fds[2];

    (void)state;
    for (int round = 1; round <= 3; round++) {
        make_pair(fds);
        watch = reactor_fd_new(fds[0], REACTOR_READ, count_events, counts);
        reactor_poll(false);
        assert_int_equal(write(fds[1], "x", 1), 1);
        reactor_poll(true);
        assert_int_equal(counts[0], round);
        reactor_fd_free(watch);
        close_pair(fds);
    }
}

static int wait_for_both(void *arg)
{
    int *fds = arg;

    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ | REACTOR_WRITE, -1), REACTOR_WRITE);
    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ, MILLISECOND), -ETIMEDOUT);
    assert_int_equal(write(fds[1], "x", 1), 1);
    assert_int_equal(co_wait_fd(fds[0], REACTOR_READ | REACTOR_WRITE, -1),
                     REACTOR_READ | REACTOR_WRITE);
    close(fds[1]);
    return co_wait_fd(fds[0], REACTOR_READ, -1);
}

static void coroutines_wait_for_descriptors(void **state)
{
    int fds[2];

    (void)state;
    make_pair(fds);
    assert_int_equal(reactor_run_coroutine(wait_for_both, fds), REACTOR_READ);
    close(fds[0]);
}

/* ---- Signals ---- */

static void on_usr1(void *arg, int signum)
{
    assert_int_equal(signum, SIGUSR1);
    note(*(char *)arg);
    reactor_stop();
}

static void signals_are_handled_by_the_loop(void **state)
{
    char first = 'a', second = 'b';

    (void)state;
    trail[0] = 0;
    assert_int_equal(reactor_signal(SIGUSR1, on_usr1, &first), 0);
    raise(SIGUSR1);
    assert_string_equal(trail, "");
    reactor_run();
    assert_string_equal(trail, "a");
    assert_int_equal(reactor_signal(SIGUSR1, on_usr1, &second), 0);
    raise(SIGUSR1);
    reactor_run();
    assert_string_equal(trail, "ab");
    assert_int_equal(reactor_signal(SIGUSR1, NULL, NULL), 0);
}

static void a_broken_pipe_is_no_signal(void **state)
{
    int fds[2];

    (void)state;
    make_pair(fds);
    close(fds[1]);
    assert_int_equal(write(fds[0], "x", 1), -1);
    assert_int_equal(errno, EPIPE);
    close(fds[0]);
}

/* ---- Deferred work ---- */

struct deferred {
    struct reactor_deferred deferred;
    char name;
    struct deferred *defers, *cancels;
};

static void on_deferred(struct reactor_deferred *deferred)
{
    struct deferred *self = container_of(deferred, struct deferred, deferred);

    note(self->name);
    if (self->defers)
        reactor_defer(&self->defers->deferred);
    self->defers = NULL;
    if (self->cancels)
        reactor_defer_cancel(&self->cancels->deferred);
}

static void deferred_work_runs_once_in_order(void **state)
{
    struct deferred c = {.deferred = {.run = on_deferred}, .name = 'c'};
    struct deferred b = {.deferred = {.run = on_deferred}, .name = 'b', .cancels = &c};
    struct deferred a = {.deferred = {.run = on_deferred}, .name = 'a', .defers = &b};
    struct deferred d = {.deferred = {.run = on_deferred}, .name = 'd', .defers = &d};

    (void)state;
    trail[0] = 0;
    reactor_defer(&a.deferred);
    reactor_defer(&a.deferred);
    reactor_defer(&b.deferred);
    reactor_defer(&c.deferred);
    reactor_defer(&d.deferred);
    reactor_poll(false);
    assert_string_equal(trail, "abdd");

    trail[0] = 0;
    reactor_defer(&c.deferred);
    reactor_defer_cancel(&c.deferred);
    reactor_defer_cancel(&c.deferred);
    reactor_poll(false);
    assert_string_equal(trail, "");
}

static void note_after_yields(void *arg)
{
    coroutine_yield();
    note('1');
    reactor_defer(arg);
    coroutine_yield();
    note('2');
}

static void deferred_work_comes_after_coroutines(void **state)
{
    struct deferred d = {.deferred = {.run = on_deferred}, .name = 'd'};

    (void)state;
    trail[0] = 0;
    coroutine_start(note_after_yields, &d.deferred);
    coroutine_start(note_after_yields, &d.deferred);
    reactor_poll(false);
    assert_int_equal(strlen(trail), 5);
    assert_ptr_equal(strchr(trail, 'd'), strrchr(trail, 'd'));
    assert_true(strchr(trail, 'd') > strrchr(trail, '1'));
}

struct object {
    struct reactor_deferred deferred;
};

static void destroy_object(struct reactor_deferred *deferred)
{
    note('X');
    free(container_of(deferred, struct object, deferred));
}

/* Marks itself for destruction while it is running, and is still there afterwards. */
static void run_object(struct reactor_deferred *deferred)
{
    deferred->run = destroy_object;
    reactor_destroy_later(deferred);
    note('x');
}

static void objects_are_destroyed_at_the_end_of_the_turn(void **state)
{
    struct object *object = calloc(1, sizeof(*object));
    struct deferred late = {.deferred = {.run = on_deferred}, .name = 'l'};
    struct deferred a = {.deferred = {.run = on_deferred}, .name = 'a', .defers = &late};

    (void)state;
    assert_non_null(object);
    trail[0] = 0;
    object->deferred.run = run_object;
    reactor_defer(&object->deferred);
    reactor_defer(&a.deferred);
    reactor_poll(false);
    assert_string_equal(trail, "xalX");
}

/* ---- Sources ---- */

/* An engine that completes in reap what was submitted before; nothing else would wake the loop. */
struct engine {
    struct reactor_source source;
    struct coroutine *queued, *submitted;
    unsigned operations;
};

static void engine_submit(struct reactor_source *source)
{
    struct engine *engine = container_of(source, struct engine, source);

    if (!engine->queued)
        return;
    assert_null(engine->submitted);
    engine->submitted = engine->queued;
    engine->queued = NULL;
}

static bool engine_reap(struct reactor_source *source)
{
    struct engine *engine = container_of(source, struct engine, source);
    struct coroutine *co = engine->submitted;

    if (!co)
        return false;
    engine->submitted = NULL;
    engine->operations++;
    coroutine_wake(co);
    return true;
}

static void operate(struct engine *engine)
{
    engine->queued = coroutine_self();
    coroutine_suspend();
}

/* Far more steps than a turn has rounds. */
static int many_operations(void *arg)
{
    for (int i = 0; i < 1000; i++)
        operate(arg);
    return 0;
}

static void no_operation_is_slept_with(void **state)
{
    struct engine engine = {.source = {.submit = engine_submit, .reap = engine_reap}};

    (void)state;
    reactor_source_add(&engine.source);
    assert_int_equal(reactor_run_coroutine(many_operations, &engine), 0);
    assert_int_equal(engine.operations, 1000);
    reactor_source_remove(&engine.source);
}

static void operate_and_stop(void *arg)
{
    many_operations(arg);
    reactor_stop();
}

static struct engine engine;

static void operate_from_timer(struct reactor_timer *timer)
{
    (void)timer;
    coroutine_start(operate_and_stop, &engine);
}

static void operate_from_destruction(struct reactor_deferred *deferred)
{
    (void)deferred;
    coroutine_start(operate_and_stop, &engine);
}

static void operate_from_descriptor(void *arg, unsigned events)
{
    (void)events;
    reactor_fd_free(*(struct reactor_fd **)arg);
    coroutine_start(operate_and_stop, &engine);
}

/* As above under reactor_run, whichever kind of callback the operation comes from. */
static void no_operation_of_a_callback_is_slept_with(void **state)
{
    struct reactor_deferred deferred = {.run = operate_from_destruction};
    struct reactor_timer timer = {0};
    struct reactor_fd *watch;
    int fds[2];

    (void)state;
    engine = (struct engine){.source = {.submit = engine_submit, .reap = engine_reap}};
    reactor_source_add(&engine.source);
    reactor_timer_start(&timer, MILLISECOND, operate_from_timer);
    reactor_run();
    assert_int_equal(engine.operations, 1000);
    reactor_destroy_later(&deferred);
    reactor_run();
    assert_int_equal(engine.operations, 2000);
    make_pair(fds);
    watch = reactor_fd_new(fds[0], REACTOR_WRITE, operate_from_descriptor, &watch);
    reactor_run();
    assert_int_equal(engine.operations, 3000);
    close_pair(fds);
    reactor_source_remove(&engine.source);
}

static struct reactor_source removed_source;

static void submit_nothing(struct reactor_source *source)
{
    (void)source;
}

static bool remove_other(struct reactor_source *source)
{
    (void)source;
    note('r');
    reactor_source_remove(&removed_source);
    return false;
}

static bool never_reaped(struct reactor_source *source)
{
    (void)source;
    note('!');
    return false;
}

static void a_source_may_be_removed_by_another(void **state)
{
    struct reactor_source source = {.submit = submit_nothing, .reap = remove_other};

    (void)state;
    trail[0] = 0;
    removed_source = (struct reactor_source){.submit = submit_nothing, .reap = never_reaped};
    reactor_source_add(&source);
    reactor_source_add(&removed_source);
    reactor_poll(false);
    assert_non_null(strchr(trail, 'r'));
    assert_null(strchr(trail, '!'));
    reactor_source_remove(&source);
}

/* ---- The loop as a whole ---- */

static void yield_for_ever(void *arg)
{
    while (*(volatile bool *)arg)
        coroutine_yield();
}

static void clear_flag(void *arg, unsigned events)
{
    (void)events;
    *(bool *)arg = false;
}

static void a_busy_coroutine_does_not_keep_descriptors_waiting(void **state)
{
    struct reactor_fd *watch;
    bool go_on = true;
    int fds[2];

    (void)state;
    make_pair(fds);
    watch = reactor_fd_new(fds[0], REACTOR_WRITE, clear_flag, &go_on);
    coroutine_start(yield_for_ever, &go_on);
    while (go_on)
        reactor_poll(true);
    while (coroutine_count() > 0)
        reactor_poll(true);
    reactor_fd_free(watch);
    close_pair(fds);
}

static void stop_in_timer(struct reactor_timer *timer)
{
    (void)timer;
    reactor_stop();
}

static void an_idle_loop_sleeps(void **state)
{
    struct reactor_timer timer = {0};
    uint64_t turns = reactor_turns();

    (void)state;
    reactor_timer_start(&timer, 50 * MILLISECOND, stop_in_timer);
    reactor_run();
    assert_in_range(reactor_turns() - turns, 1, 5);
}

static void a_stop_before_the_run_is_not_lost(void **state)
{
    (void)state;
    reactor_stop();
    reactor_run();
    reactor_stop();
    reactor_poll(false);
    reactor_run();
}

static void pooled_buffers_are_freed_when_the_loop_is_idle(void **state)
{
    struct reactor_timer timer = {0};
    size_t length = (size_t)4 << 20;
    void *buffers[2];

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_non_null(buffers[i] = buffer_get(length));
    for (int i = 0; i < 2; i++)
        buffer_put(buffers[i], length);
    reactor_timer_start(&timer, 3000 * MILLISECOND, stop_in_timer);
    reactor_run();
    assert_int_equal(buffer_bytes_pooled(), 0);
}

static unsigned open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    unsigned count = 0;

    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static int answer(void *arg)
{
    co_sleep(0);
    return *(int *)arg;
}

static void starting_and_ending_again_and_again_leaks_nothing(void **state)
{
    int number = 42;
    unsigned before;

    (void)state;
    before = open_descriptors();
    reactor_fini();
    for (int i = 0; i < 50; i++) {
        assert_int_equal(reactor_init(NULL), 0);
        assert_int_equal(reactor_run_coroutine(answer, &number), 42);
        reactor_fini();
        reactor_fini();
    }
    assert_int_equal(reactor_init(NULL), 0);
    assert_int_equal(open_descriptors(), before);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start_reactor, stop_reactor)
    const struct CMUnitTest tests[] = {
        TEST(descriptors_are_level_triggered_and_can_be_paused),
        TEST(a_watch_may_start_paused),
        TEST(watches_may_be_freed_in_a_callback),
        TEST(a_number_can_be_another_descriptor_later),
        TEST(coroutines_wait_for_descriptors),
        TEST(signals_are_handled_by_the_loop),
        TEST(a_broken_pipe_is_no_signal),
        TEST(deferred_work_runs_once_in_order),
        TEST(deferred_work_comes_after_coroutines),
        TEST(objects_are_destroyed_at_the_end_of_the_turn),
        TEST(no_operation_is_slept_with),
        TEST(no_operation_of_a_callback_is_slept_with),
        TEST(a_source_may_be_removed_by_another),
        TEST(a_busy_coroutine_does_not_keep_descriptors_waiting),
        TEST(an_idle_loop_sleeps),
        TEST(a_stop_before_the_run_is_not_lost),
        TEST(pooled_buffers_are_freed_when_the_loop_is_idle),
        TEST(starting_and_ending_again_and_again_leaks_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
