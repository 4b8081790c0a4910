/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The one event loop of the process, on libev.  All state belongs to the thread that runs it.
 *
 * Work is done in turns.  A turn, run before the loop sleeps: run ready coroutines; run what was
 * deferred (connections send their replies, one gathered send each); submit I/O; reap completions;
 * again while there is more (bounded, so that sockets and timers are looked at); then free what was
 * marked for destruction.  If work is left, the loop does not sleep.
 */
#ifndef EVNBD_BASE_REACTOR_H
#define EVNBD_BASE_REACTOR_H

#include "base/error.h"
#include "base/list.h"

/* Also makes the process ignore SIGPIPE: a peer that goes away is an error of one connection. */
int reactor_init(struct error *error);
/* Stops workers and I/O engines and frees the loop. Nothing may be registered any more. */
void reactor_fini(void);

/* Runs the loop until reactor_stop(). */
void reactor_run(void);
void reactor_stop(void);

/*
 * One round of the loop: waits for events if `may_wait` and nothing is ready, handles them, and
 * runs a turn.  For tests, and for running a coroutine to its end before the loop is started.
 */
void reactor_poll(bool may_wait);

/* Runs fn(arg) in a coroutine and the loop until it has returned; not from within a coroutine. */
int reactor_run_coroutine(int (*fn)(void *arg), void *arg);

/* Milestones of the loop, for tests and metrics. */
uint64_t reactor_turns(void);

enum { REACTOR_READ = 1, REACTOR_WRITE = 2 };

/* Watches a descriptor; level-triggered. The callback runs on the loop's stack. */
struct reactor_fd;
struct reactor_fd *reactor_fd_new(int fd, unsigned events,
                                  void (*callback)(void *arg, unsigned events), void *arg);
void reactor_fd_set(struct reactor_fd *watch, unsigned events); /* 0: paused */
void reactor_fd_free(struct reactor_fd *watch); /* NULL is fine; also in a callback */

/* Timers, on sys->monotonic_ns(). Embedded; zeroed is idle. */
struct reactor_timer {
    void (*callback)(struct reactor_timer *timer);
    int64_t due_ns;
    unsigned heap_index; /* 1-based; 0: idle */
};
void reactor_timer_start(struct reactor_timer *timer, int64_t delay_ns,
                         void (*callback)(struct reactor_timer *timer));
void reactor_timer_stop(struct reactor_timer *timer); /* an idle one is fine */

/*
 * When the first timer is due, on sys->monotonic_ns(); false when none runs.  For simulators: a
 * turn runs what is due by that clock, so setting it forward and polling is all that is needed.
 */
bool reactor_next_timer(int64_t *ret_due_ns);

/* Signals, handled on the loop's stack. One watcher a signal number. Returns 0 or -ENOMEM. */
int reactor_signal(int signum, void (*callback)(void *arg, int signum), void *arg);

/* Runs once, in this turn, after the coroutines that are ready now. Queued twice, it runs once. */
struct reactor_deferred {
    struct list link;
    void (*run)(struct reactor_deferred *deferred);
};
void reactor_defer(struct reactor_deferred *deferred);
void reactor_defer_cancel(struct reactor_deferred *deferred);

/* Runs at the end of the turn: where objects free themselves that may be on the call stack now. */
void reactor_destroy_later(struct reactor_deferred *deferred);

/*
 * A source of completions (an I/O engine, the worker pool), asked in every turn.
 * submit: hands over what was queued, with one system call if it can.
 * reap: takes completions without waiting, wakes their coroutines, returns whether there were any.
 * Descriptors that become readable on completions are watched by the source itself, with
 * reactor_fd.
 */
struct reactor_source {
    struct list link;
    void (*submit)(struct reactor_source *source);
    bool (*reap)(struct reactor_source *source);
};
void reactor_source_add(struct reactor_source *source);
void reactor_source_remove(struct reactor_source *source);

/* For coroutines: wait for a descriptor or for time. */
/* Returns the events that are ready, or -ETIMEDOUT; timeout_ns < 0 waits for ever. */
int co_wait_fd(int fd, unsigned events, int64_t timeout_ns);
void co_sleep(int64_t ns);

#endif
