/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is done in a turn: timers, deferred work, sources of completions and the rounds over them.
 *
 * A turn is rounds of the same steps until a round finds nothing to do.  It is cut short after a
 * number of rounds or some time, so that descriptors are looked at.  Submission comes after
 * everything that queues operations in a round, and completions ask for another round, so no
 * operation is queued and then slept with.
 */
#include "base/reactor_turn.h"

#include "base/coroutine.h"
#include "base/sys.h"
#include "base/timer_heap.h"

#include <assert.h>
#include <stdlib.h>

/* A turn ends after so many rounds, or this long after it began. */
#define ROUNDS_MAX 8
#define TURN_NS 2000000
/* Passes over the ready list before deferred work is done: coroutines that wake one another. */
#define PASSES_MAX 4

static struct {
    struct timer_heap timers;
    struct list deferred, destroyed, sources;
    struct list *next_source; /* of the walk over `sources`, so that any may be removed in it */
    uint64_t turns;
    bool in_turn, work_left;
} state;

void reactor_turn_init(void)
{
    list_init(&state.deferred);
    list_init(&state.destroyed);
    list_init(&state.sources);
    state.next_source = &state.sources;
    state.turns = 0;
    state.work_left = false;
}

void reactor_turn_fini(void)
{
    timer_heap_fini(&state.timers);
}

bool reactor_turn_left_work(void)
{
    return state.work_left;
}

/* Runs what is due; what these start anew waits for the next round. */
static bool run_timers(int64_t now)
{
    unsigned left = state.timers.count;
    bool any = false;

    for (; left > 0; left--) {
        struct reactor_timer *timer = timer_heap_first(&state.timers);

        if (!timer || timer->due_ns > now)
            break;
        timer_heap_remove(&state.timers, timer);
        timer->callback(timer);
        any = true;
    }
    return any;
}

static bool run_coroutines(int64_t end)
{
    if (!coroutine_any_ready())
        return false;
    for (int pass = 0; pass < PASSES_MAX && coroutine_run_ready(end); pass++) {
        if (sys->monotonic_ns() >= end)
            break;
    }
    return true;
}

static bool run_list(struct list *queue)
{
    struct list batch, *node;
    bool any = false;

    list_init(&batch);
    list_splice(&batch, queue);
    while ((node = list_pop(&batch))) {
        struct reactor_deferred *deferred = list_entry(node, struct reactor_deferred, link);

        deferred->run(deferred);
        any = true;
    }
    return any;
}

static void submit_sources(void)
{
    for (struct list *it = state.sources.next; it != &state.sources; it = state.next_source) {
        struct reactor_source *source = list_entry(it, struct reactor_source, link);

        state.next_source = it->next;
        source->submit(source);
    }
}

static bool reap_sources(void)
{
    bool any = false;

    for (struct list *it = state.sources.next; it != &state.sources; it = state.next_source) {
        struct reactor_source *source = list_entry(it, struct reactor_source, link);

        state.next_source = it->next;
        any |= source->reap(source);
    }
    return any;
}

/* Returns whether there was, or is, anything to do. */
static bool run_round(int64_t now, int64_t end)
{
    bool any = run_timers(now);

    any |= run_coroutines(end);
    any |= run_list(&state.deferred);
    submit_sources();
    any |= reap_sources();
    return any || coroutine_any_ready() || !list_empty(&state.deferred);
}

bool reactor_turn(void)
{
    int64_t now = sys->monotonic_ns();
    int64_t end = now + TURN_NS;
    bool any = false, more = true;

    assert(!state.in_turn && "the loop is run from inside a turn");
    state.in_turn = true;
    state.turns++;
    for (int round = 0; more && round < ROUNDS_MAX && now < end; round++) {
        more = run_round(now, end);
        any |= more;
        if (more)
            now = sys->monotonic_ns();
    }
    if (run_list(&state.destroyed))
        any = more = true;
    state.work_left = more;
    state.in_turn = false;
    return any;
}

uint64_t reactor_turns(void)
{
    return state.turns;
}

/* ---- Timers ---- */

void reactor_timer_start(struct reactor_timer *timer, int64_t delay_ns,
                         void (*callback)(struct reactor_timer *timer))
{
    int64_t now = sys->monotonic_ns();

    timer_heap_remove(&state.timers, timer);
    timer->callback = callback;
    if (delay_ns < 0)
        delay_ns = 0;
    timer->due_ns = delay_ns < INT64_MAX - 1 - now ? now + delay_ns : INT64_MAX - 1;
    if (timer_heap_add(&state.timers, timer) < 0)
        abort(); /* a few bytes; and a time limit that silently is none would be worse */
}

void reactor_timer_stop(struct reactor_timer *timer)
{
    timer_heap_remove(&state.timers, timer);
}

bool reactor_next_timer(int64_t *ret_due_ns)
{
    const struct reactor_timer *first = timer_heap_first(&state.timers);

    if (first)
        *ret_due_ns = first->due_ns;
    return first != NULL;
}

struct sleeper {
    struct reactor_timer timer;
    struct coroutine *waiter;
};

static void sleeper_wake(struct reactor_timer *timer)
{
    coroutine_wake(container_of(timer, struct sleeper, timer)->waiter);
}

void co_sleep(int64_t ns)
{
    struct sleeper sleeper = {.waiter = coroutine_self()};

    reactor_timer_start(&sleeper.timer, ns, sleeper_wake);
    coroutine_suspend();
}

/* ---- Deferred work and sources ---- */

void reactor_defer(struct reactor_deferred *deferred)
{
    if (!list_linked(&deferred->link))
        list_append(&state.deferred, &deferred->link);
}

void reactor_defer_cancel(struct reactor_deferred *deferred)
{
    list_remove(&deferred->link);
}

void reactor_destroy_later(struct reactor_deferred *deferred)
{
    list_remove(&deferred->link);
    list_append(&state.destroyed, &deferred->link);
}

void reactor_source_add(struct reactor_source *source)
{
    list_append(&state.sources, &source->link);
}

void reactor_source_remove(struct reactor_source *source)
{
    if (state.next_source == &source->link)
        state.next_source = source->link.next;
    list_remove(&source->link);
}
