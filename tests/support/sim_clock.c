/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A simulated clock.  The loop is polled without waiting; when it stays quiet for a few polls, all
 * that can happen now has happened.  Without any timer only a real event can go on, so then the
 * loop may wait.
 */
#include "tests/support/sim_clock.h"

#include "base/coroutine.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "tests/support/support.h"

#include <stdatomic.h>

#define START_NS INT64_C(1000000000000)
#define REALTIME_OFFSET_NS INT64_C(1700000000000000000)
#define QUIET_POLLS 4

static struct sim_clock {
    const struct sys *inner;
    struct sys table;
    atomic_int_fast64_t now;
    unsigned quiet;
} sim_clock;

static int64_t sim_monotonic_ns(void)
{
    return atomic_load(&sim_clock.now);
}

static int64_t sim_realtime_ns(void)
{
    return atomic_load(&sim_clock.now) + REALTIME_OFFSET_NS;
}

void sim_clock_install(void)
{
    if (sim_clock.inner)
        test_die("sim_clock_install: installed already");
    sim_clock.inner = sys;
    sim_clock.table = *sys;
    sim_clock.table.monotonic_ns = sim_monotonic_ns;
    sim_clock.table.realtime_ns = sim_realtime_ns;
    atomic_store(&sim_clock.now, START_NS);
    sys = &sim_clock.table;
}

void sim_clock_remove(void)
{
    if (sys != &sim_clock.table)
        test_die("sim_clock_remove: another table stands above");
    sys = sim_clock.inner;
    sim_clock.inner = NULL;
}

int64_t sim_clock_now(void)
{
    return sim_monotonic_ns();
}

void sim_clock_advance(int64_t ns)
{
    atomic_fetch_add(&sim_clock.now, ns);
}

/* Does not wait when what is waited for has happened. */
static void step(const bool *ended)
{
    int64_t due;

    reactor_poll(false);
    if (*ended || coroutine_any_ready()) {
        sim_clock.quiet = 0;
        return;
    }
    if (++sim_clock.quiet < QUIET_POLLS)
        return;
    sim_clock.quiet = 0;
    if (!reactor_next_timer(&due))
        reactor_poll(true);
    else if (due > sim_clock_now())
        atomic_store(&sim_clock.now, due);
}

void sim_clock_poll(void)
{
    static const bool never = false;

    step(&never);
}

struct run {
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool ended;
};

static void run_main(void *arg)
{
    struct run *run = arg;

    run->result = run->fn(run->arg);
    run->ended = true;
}

int sim_clock_run(int (*fn)(void *arg), void *arg)
{
    struct error error = {.text = ""};
    struct run run = {.fn = fn, .arg = arg};

    if (reactor_init(&error) < 0)
        test_die("the reactor does not start: %s", error.text);
    if (coroutine_start(run_main, &run) < 0)
        test_die("the coroutine does not start");
    while (!run.ended)
        step(&run.ended);
    reactor_fini();
    return run.result;
}
