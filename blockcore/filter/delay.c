/* SPDX-License-Identifier: BSD-3-Clause */
/* The filter `delay`: requests wait for a while first, so that users can test slow storage. */
#include "base/reactor.h"
#include "blockcore/drivers.h"
#include "blockcore/filter.h"

#include <errno.h>
#include <inttypes.h>

#define DELAY_MAX_MS 3600000
#define NS_PER_MS 1000000

struct delay {
    uint64_t ms[OPERATIONS]; /* options */
    struct list sleepers;
    bool stopped; /* the program ends: nothing waits any more */
};

struct sleeper {
    struct list link;
    struct reactor_timer timer;
    struct coroutine *coroutine;
};

#define ROW(operation, name, what)                                                                 \
    {                                                                                              \
        name, OPTION_NUMBER, offsetof(struct delay, ms) + (operation) * sizeof(uint64_t), NULL,    \
            "milliseconds that each " what " waits first"                                          \
    }

static const struct option_row delay_options[] = {
    ROW(OPERATION_READ, "read-ms", "read"),    ROW(OPERATION_WRITE, "write-ms", "write"),
    ROW(OPERATION_ZERO, "zero-ms", "zeroing"), ROW(OPERATION_DISCARD, "discard-ms", "discard"),
    ROW(OPERATION_FLUSH, "flush-ms", "flush"), {0},
};

static int delay_open(struct node *node, struct node_open *open, struct error *error)
{
    struct delay *delay = node->state;
    int err;

    list_init(&delay->sleepers);
    err = options_take(open->options, delay_options, delay, "driver 'delay'", error);
    if (err < 0)
        return err;
    for (unsigned i = 0; i < OPERATIONS; i++) {
        if (delay->ms[i] > DELAY_MAX_MS)
            return error_set(error, EINVAL,
                             "the option '%s' of driver 'delay' is %" PRIu64
                             " milliseconds, it must be at most %d",
                             delay_options[i].name, delay->ms[i], DELAY_MAX_MS);
    }
    node->sees_reads = delay->ms[OPERATION_READ] > 0;
    return filter_open_file(node, open, error);
}

static void wake(struct sleeper *sleeper)
{
    list_remove(&sleeper->link);
    reactor_timer_stop(&sleeper->timer);
    coroutine_wake(sleeper->coroutine);
}

static void on_timer(struct reactor_timer *timer)
{
    wake(container_of(timer, struct sleeper, timer));
}

static void delay_stop(struct node *node)
{
    struct delay *delay = node->state;

    delay->stopped = true;
    list_for_each_safe(it, next, &delay->sleepers) wake(list_entry(it, struct sleeper, link));
}

static int delay_before(struct node *node, enum block_operation operation, uint64_t offset,
                        uint64_t length)
{
    struct delay *delay = node->state;
    struct sleeper sleeper = {.coroutine = coroutine_self()};

    if (delay->ms[operation] == 0 || delay->stopped)
        return 0;
    if (!sleeper.coroutine)
        return -EAGAIN;
    list_append(&delay->sleepers, &sleeper.link);
    reactor_timer_start(&sleeper.timer, (int64_t)delay->ms[operation] * NS_PER_MS, on_timer);
    coroutine_suspend();
    return 0;
}

const struct driver driver_delay = {
    .name = "delay",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct delay),
    .options = delay_options,
    .open = delay_open,
    .stop = delay_stop,
    .before = delay_before,
};
