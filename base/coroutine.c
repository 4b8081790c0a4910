/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Coroutines: starting, suspending, the ready list and the pool.
 *
 * There are two levels only: the loop's own stack, which enters coroutines, and coroutines, which
 * always leave to the loop's stack.  A coroutine is in one state; `link` is on the ready list when
 * READY and on the pool when POOLED.
 *
 * A coroutine lives at the top of its own stack mapping, so that starting one from the pool takes
 * no memory.  When its function has returned it goes to the pool parked inside coroutine_main, and
 * the next start just lets it go on there with another function.
 */
#include "base/coroutine.h"

#include "base/coroutine_stack.h"
#include "base/coroutine_switch.h"
#include "base/sys.h"

#include <assert.h>
#include <errno.h>

#define POOL_MAX 256

enum coroutine_state { CO_POOLED, CO_READY, CO_RUNNING, CO_SUSPENDED, CO_ENDED };

struct coroutine {
    struct list link;
    enum coroutine_state state;
    coroutine_fn *fn;
    void *arg;
    const void *owner;
    struct coroutine_context context;
    struct coroutine_stack stack; /* all of the mapping, this struct included */
    void *asan_fake;
};

static struct {
    struct coroutine *running;
    struct coroutine_context loop;
    struct list ready;
    unsigned ready_count;
    unsigned alive;
    struct list pool; /* last in, first out: the warmest stack is used next */
    unsigned pooled;
    size_t color;
    size_t high_water; /* of stacks that are gone */
    void *asan_fake;
    const void *loop_stack;
    size_t loop_stack_size;
} sched = {.ready = LIST_INIT(sched.ready), .pool = LIST_INIT(sched.pool)};

static size_t usable_size(const struct coroutine *co)
{
    return (size_t)((const char *)co - co->stack.base);
}

/* From the loop's stack to a coroutine; comes back when that one suspends or ends. */
NO_ASAN static void switch_to_coroutine(struct coroutine *co)
{
    coroutine_switch_begins(&sched.asan_fake, co->stack.base, usable_size(co));
    coroutine_context_switch(&sched.loop, &co->context);
    coroutine_switch_ends(sched.asan_fake, NULL, NULL);
}

/* From a coroutine to the loop's stack; comes back when it is entered again. */
NO_ASAN static void switch_to_loop(struct coroutine *co)
{
    bool ended = co->state == CO_ENDED;

    co->asan_fake = NULL;
    coroutine_switch_begins(ended ? NULL : &co->asan_fake, sched.loop_stack, sched.loop_stack_size);
    coroutine_context_switch(&co->context, &sched.loop);
    coroutine_switch_ends(co->asan_fake, &sched.loop_stack, &sched.loop_stack_size);
}

NO_ASAN static void coroutine_main(void *arg)
{
    struct coroutine *co = arg;

    coroutine_switch_ends(NULL, &sched.loop_stack, &sched.loop_stack_size);
    for (;;) {
        co->fn(co->arg);
        co->state = CO_ENDED;
        switch_to_loop(co);
    }
}

/*
 * The struct is placed a few cache lines lower in each next stack: at one and the same offset from
 * the page's end the tops of all stacks would fight for the same few lines of the cache.
 */
static struct coroutine *coroutine_create(void)
{
    struct coroutine_stack stack = {0};
    struct coroutine *co;

    if (coroutine_stack_map(&stack) < 0)
        return NULL;
    co = (void *)(stack.base + stack.size - align_up(sizeof(*co), 64) - sched.color);
    sched.color = (sched.color + 128) % 2048;
    *co = (struct coroutine){.stack = stack};
    coroutine_context_init(&co->context, stack.base, usable_size(co), coroutine_main, co);
    return co;
}

/* Depth without the struct at the top; also sees what is in use by a suspended coroutine. */
static void measure(const struct coroutine *co)
{
    size_t above = co->stack.size - usable_size(co);
    size_t depth = coroutine_stack_depth(&co->stack);

    if (depth > above && depth - above > sched.high_water)
        sched.high_water = depth - above;
}

static void coroutine_destroy(struct coroutine *co)
{
    struct coroutine_stack stack = co->stack;

    measure(co);
    coroutine_stack_unmap(&stack);
}

static struct coroutine *pool_get(void)
{
    struct list *node = list_pop(&sched.pool);

    if (!node)
        return coroutine_create();
    sched.pooled--;
    return list_entry(node, struct coroutine, link);
}

static void pool_put(struct coroutine *co)
{
    coroutine_stack_forget(&co->stack);
    if (sched.pooled == POOL_MAX) {
        coroutine_destroy(co);
        return;
    }
    co->state = CO_POOLED;
    list_prepend(&sched.pool, &co->link);
    sched.pooled++;
}

static void make_ready(struct coroutine *co)
{
    co->state = CO_READY;
    list_append(&sched.ready, &co->link);
    sched.ready_count++;
}

static void enter(struct coroutine *co)
{
    co->state = CO_RUNNING;
    sched.running = co;
    switch_to_coroutine(co);
    sched.running = NULL;
    if (co->state == CO_ENDED) {
        sched.alive--;
        pool_put(co);
    }
}

int coroutine_start(coroutine_fn *fn, void *arg)
{
    struct coroutine *co = pool_get();

    if (!co)
        return -ENOMEM;
    co->fn = fn;
    co->arg = arg;
    co->owner = sched.running ? sched.running->owner : NULL;
    sched.alive++;
    if (sched.running)
        make_ready(co);
    else
        enter(co);
    return 0;
}

struct coroutine *coroutine_self(void)
{
    return sched.running;
}

void coroutine_set_owner(const void *owner)
{
    sched.running->owner = owner;
}

const void *coroutine_owner(void)
{
    return sched.running->owner;
}

void coroutine_suspend(void)
{
    struct coroutine *co = sched.running;

    assert(co && "only a coroutine can suspend, not the loop's own stack");
    co->state = CO_SUSPENDED;
    switch_to_loop(co);
}

void coroutine_wake(struct coroutine *co)
{
    assert(co->state == CO_SUSPENDED && "woken although it does not wait, or woken twice");
    make_ready(co);
}

void coroutine_yield(void)
{
    struct coroutine *co = sched.running;

    assert(co && "only a coroutine can yield, not the loop's own stack");
    make_ready(co);
    switch_to_loop(co);
}

bool coroutine_run_ready(int64_t until_ns)
{
    assert(!sched.running && "coroutines are run by the loop only");
    for (unsigned n = sched.ready_count; n > 0; n--) {
        struct list *node = list_pop(&sched.ready);

        sched.ready_count--;
        enter(list_entry(node, struct coroutine, link));
        if (n > 1 && until_ns != INT64_MAX && sys->monotonic_ns() >= until_ns)
            break;
    }
    return coroutine_any_ready();
}

bool coroutine_any_ready(void)
{
    return sched.ready_count > 0;
}

unsigned coroutine_count(void)
{
    return sched.alive;
}

size_t coroutine_stack_high_water(void)
{
    list_for_each(node, &sched.pool) measure(list_entry(node, struct coroutine, link));
    return sched.high_water;
}

void coroutine_pool_trim(void)
{
    struct list *node;

    while ((node = list_pop(&sched.pool)))
        coroutine_destroy(list_entry(node, struct coroutine, link));
    sched.pooled = 0;
}
