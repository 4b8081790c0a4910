/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The event loop.
 *
 * All work is done in turns (base/reactor_turn.h), which the loop's one prepare watcher runs before
 * it looks at descriptors; callbacks of descriptors and signals only queue work for the next turn,
 * or do little themselves.  When a turn was cut short the idle watcher keeps the loop from
 * sleeping.
 *
 * Timers are in a heap of our own, on the clock of the seam; libev gets one timer for the first.
 */
#include "base/reactor.h"

#include "base/buffer.h"
#include "base/coroutine.h"
#include "base/log.h"
#include "base/reactor_turn.h"
#include "base/sys.h"
#include "base/worker.h"

#include <assert.h>
#include <errno.h>
#include <ev.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* With more than this pooled, memory is given back when there were few turns in so many seconds. */
#define TRIM_BYTES ((size_t)2 << 20)
#define TRIM_SECONDS 2.0
#define TRIM_TURNS 64

/* Far in the future, seconds since 1970. */
#define NEVER 1e12

#define NO_TIMER INT64_MAX

struct reactor_signal_watch {
    ev_signal signal;
    void (*callback)(void *arg, int signum);
    void *arg;
};

struct reactor_fd {
    ev_io io;
    void (*callback)(void *arg, unsigned events);
    void *arg;
};

static struct {
    struct ev_loop *loop;
    ev_prepare prepare;
    ev_idle idle;   /* active: do not sleep */
    ev_timer timer; /* for the first of ours */
    ev_timer trim;
    ev_periodic never;
    int64_t timer_due; /* what `timer` is set for, or NO_TIMER */
    struct reactor_signal_watch *signals[NSIG];
    uint64_t turns_at_trim;
    bool polling, stopped;
} reactor;

/* ---- Before the loop sleeps ---- */

/* Sets libev's timer for our first one. */
static void arm_timer(void)
{
    int64_t due = NO_TIMER, delay;

    reactor_next_timer(&due);
    if (due == reactor.timer_due)
        return;
    reactor.timer_due = due;
    ev_timer_stop(reactor.loop, &reactor.timer);
    if (due == NO_TIMER)
        return;
    delay = due - sys->monotonic_ns();
    ev_now_update(reactor.loop);
    /* A little late rather than early, which would wake the loop for nothing. */
    ev_timer_set(&reactor.timer, delay > 0 ? (double)delay * 1e-9 + 1e-6 : 0.0, 0.0);
    ev_timer_start(reactor.loop, &reactor.timer);
}

static void arm_trim(void)
{
    if (ev_is_active(&reactor.trim) || buffer_bytes_pooled() < TRIM_BYTES)
        return;
    reactor.turns_at_trim = reactor_turns();
    ev_now_update(reactor.loop);
    ev_timer_set(&reactor.trim, TRIM_SECONDS, 0.0);
    ev_timer_start(reactor.loop, &reactor.trim);
}

static void prepare_sleep(void)
{
    if (reactor_turn_left_work())
        ev_idle_start(reactor.loop, &reactor.idle);
    else
        ev_idle_stop(reactor.loop, &reactor.idle);
    arm_timer();
    arm_trim();
}

static void on_prepare(struct ev_loop *loop, ev_prepare *watch, int revents)
{
    (void)loop, (void)watch, (void)revents;
    if (!reactor.polling)
        reactor_turn();
    prepare_sleep();
}

static void on_idle(struct ev_loop *loop, ev_idle *watch, int revents)
{
    (void)loop, (void)watch, (void)revents;
}

/* The timers themselves run in the turn that follows. */
static void on_timer(struct ev_loop *loop, ev_timer *watch, int revents)
{
    (void)loop, (void)watch, (void)revents;
    reactor.timer_due = NO_TIMER;
}

/* Gives pooled memory back, unless there is traffic: then the next sleep sets the timer again. */
static void on_trim(struct ev_loop *loop, ev_timer *watch, int revents)
{
    (void)loop, (void)watch, (void)revents;
    if (reactor_turns() - reactor.turns_at_trim > TRIM_TURNS)
        return;
    buffer_pool_trim();
    coroutine_pool_trim();
    malloc_trim(0);
}

static void on_never(struct ev_loop *loop, ev_periodic *watch, int revents)
{
    (void)loop, (void)watch, (void)revents;
}

/* ---- Life of the loop ---- */

/* libev would abort: what it cannot go on without is an end with a message, not a crash. */
static void on_system_error(const char *text)
{
    log_error("the event loop cannot go on: %s: %s", text, strerror(errno));
    _exit(1);
}

static void start_watchers(void)
{
    ev_prepare_init(&reactor.prepare, on_prepare);
    ev_prepare_start(reactor.loop, &reactor.prepare);
    ev_idle_init(&reactor.idle, on_idle);
    ev_init(&reactor.timer, on_timer);
    ev_init(&reactor.trim, on_trim);
    /*
     * Without a periodic watcher libev wakes every minute to see whether the clock was set; with
     * one the kernel tells it.
     */
    ev_periodic_init(&reactor.never, on_never, NEVER, 0.0, NULL);
    ev_periodic_start(reactor.loop, &reactor.never);
}

int reactor_init(struct error *error)
{
    int r;

    assert(!reactor.loop && "reactor_init called twice");
    signal(SIGPIPE, SIG_IGN);
    memset(&reactor, 0, sizeof(reactor));
    reactor_turn_init();
    reactor.timer_due = NO_TIMER;
    ev_set_syserr_cb(on_system_error);
    reactor.loop = ev_loop_new(EVFLAG_NOENV | EVBACKEND_EPOLL | EVBACKEND_POLL);
    if (!reactor.loop)
        return error_set_errno(error, errno ? errno : ENOMEM, "cannot create the event loop");
    start_watchers();
    r = worker_start(error);
    if (r < 0)
        reactor_fini();
    return r;
}

static void free_signals(void)
{
    for (int signum = 0; signum < NSIG; signum++)
        reactor_signal(signum, NULL, NULL);
}

void reactor_fini(void)
{
    if (!reactor.loop)
        return;
    while (reactor_turn())
        ;
    worker_stop();
    while (reactor_turn())
        ;
    assert(coroutine_count() == 0 && "a coroutine still waits for something");
    free_signals();
    reactor_turn_fini();
    ev_loop_destroy(reactor.loop);
    reactor.loop = NULL;
    coroutine_pool_trim();
    buffer_pool_trim();
}

void reactor_run(void)
{
    while (!reactor.stopped)
        ev_run(reactor.loop, 0);
    reactor.stopped = false;
}

void reactor_stop(void)
{
    reactor.stopped = true;
    ev_break(reactor.loop, EVBREAK_ALL);
}

void reactor_poll(bool may_wait)
{
    bool any = reactor_turn();

    reactor.polling = true;
    ev_run(reactor.loop, may_wait && !any ? EVRUN_ONCE : EVRUN_NOWAIT);
    reactor.polling = false;
    reactor_turn();
}

struct main_call {
    int (*fn)(void *arg);
    void *arg;
    int result;
    bool returned;
};

static void main_call_run(void *arg)
{
    struct main_call *call = arg;

    call->result = call->fn(call->arg);
    call->returned = true;
}

int reactor_run_coroutine(int (*fn)(void *arg), void *arg)
{
    struct main_call call = {.fn = fn, .arg = arg};
    int r = coroutine_start(main_call_run, &call);

    if (r < 0)
        return r;
    assert(!coroutine_self() && "the loop is run from inside a coroutine");
    while (!call.returned)
        reactor_poll(true);
    return call.result;
}

/* ---- Descriptors ---- */

static void on_fd(struct ev_loop *loop, ev_io *io, int revents)
{
    struct reactor_fd *watch = container_of(io, struct reactor_fd, io);
    unsigned events = 0;

    (void)loop;
    if (revents & EV_READ)
        events |= REACTOR_READ;
    if (revents & EV_WRITE)
        events |= REACTOR_WRITE;
    if (revents & EV_ERROR)
        events |= REACTOR_READ | REACTOR_WRITE;
    watch->callback(watch->arg, events);
}

static int ev_events(unsigned events)
{
    return (events & REACTOR_READ ? EV_READ : 0) | (events & REACTOR_WRITE ? EV_WRITE : 0);
}

static void fd_watch_start(struct reactor_fd *watch, int fd, unsigned events,
                           void (*callback)(void *arg, unsigned events), void *arg)
{
    watch->callback = callback;
    watch->arg = arg;
    ev_io_init(&watch->io, on_fd, fd, ev_events(events));
    if (events)
        ev_io_start(reactor.loop, &watch->io);
}

struct reactor_fd *reactor_fd_new(int fd, unsigned events,
                                  void (*callback)(void *arg, unsigned events), void *arg)
{
    struct reactor_fd *watch = malloc(sizeof(*watch));

    if (watch)
        fd_watch_start(watch, fd, events, callback, arg);
    return watch;
}

void reactor_fd_set(struct reactor_fd *watch, unsigned events)
{
    int wanted = ev_events(events);

    if (ev_is_active(&watch->io)) {
        if ((watch->io.events & (EV_READ | EV_WRITE)) == wanted)
            return;
        ev_io_stop(reactor.loop, &watch->io);
    }
    if (!wanted)
        return;
    ev_io_modify(&watch->io, wanted);
    ev_io_start(reactor.loop, &watch->io);
}

void reactor_fd_free(struct reactor_fd *watch)
{
    if (!watch)
        return;
    ev_io_stop(reactor.loop, &watch->io);
    free(watch);
}

/* ---- Signals ---- */

static void on_signal(struct ev_loop *loop, ev_signal *signal, int revents)
{
    struct reactor_signal_watch *watch = container_of(signal, struct reactor_signal_watch, signal);

    (void)loop, (void)revents;
    watch->callback(watch->arg, signal->signum);
}

static void drop_signal(struct reactor_signal_watch *watch)
{
    ev_signal_stop(reactor.loop, &watch->signal);
    free(watch);
}

int reactor_signal(int signum, void (*callback)(void *arg, int signum), void *arg)
{
    struct reactor_signal_watch **slot = &reactor.signals[signum];

    if (!callback) {
        if (*slot)
            drop_signal(*slot);
        *slot = NULL;
        return 0;
    }
    if (!*slot) {
        *slot = malloc(sizeof(**slot));
        if (!*slot)
            return -ENOMEM;
        ev_signal_init(&(*slot)->signal, on_signal, signum);
        ev_signal_start(reactor.loop, &(*slot)->signal);
    }
    (*slot)->callback = callback;
    (*slot)->arg = arg;
    return 0;
}

/* ---- Waiting in coroutines ---- */

struct fd_wait {
    struct reactor_fd watch;
    struct reactor_timer timer;
    struct coroutine *waiter;
    int result;
};

static void fd_wait_end(struct fd_wait *wait, int result)
{
    ev_io_stop(reactor.loop, &wait->watch.io);
    reactor_timer_stop(&wait->timer);
    wait->result = result;
    coroutine_wake(wait->waiter);
}

static void fd_wait_ready(void *arg, unsigned events)
{
    fd_wait_end(arg, (int)events);
}

/* Timers come before descriptors in a busy loop, so what is ready by now still counts. */
static void fd_wait_timeout(struct reactor_timer *timer)
{
    struct fd_wait *wait = container_of(timer, struct fd_wait, timer);
    int wanted = wait->watch.io.events;
    struct pollfd pollfd = {.fd = wait->watch.io.fd};
    unsigned events = 0;

    pollfd.events = (short)((wanted & EV_READ ? POLLIN : 0) | (wanted & EV_WRITE ? POLLOUT : 0));
    if (pollfd.events && poll(&pollfd, 1, 0) > 0) {
        bool broken = pollfd.revents & (POLLERR | POLLHUP | POLLNVAL);

        events |= wanted & EV_READ && (broken || pollfd.revents & POLLIN) ? REACTOR_READ : 0;
        events |= wanted & EV_WRITE && (broken || pollfd.revents & POLLOUT) ? REACTOR_WRITE : 0;
    }
    fd_wait_end(wait, events ? (int)events : -ETIMEDOUT);
}

int co_wait_fd(int fd, unsigned events, int64_t timeout_ns)
{
    struct fd_wait wait = {.waiter = coroutine_self()};

    fd_watch_start(&wait.watch, fd, events, fd_wait_ready, &wait);
    if (timeout_ns >= 0)
        reactor_timer_start(&wait.timer, timeout_ns, fd_wait_timeout);
    coroutine_suspend();
    return wait.result;
}
