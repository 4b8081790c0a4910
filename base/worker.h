/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A small pool of threads for system calls that have no asynchronous form and for CPU-heavy work.
 * Workers see buffers, never state.  Threads are started on demand and end after 10 s without work.
 */
#ifndef EVNBD_BASE_WORKER_H
#define EVNBD_BASE_WORKER_H

#include "base/error.h"
#include "base/list.h"

#define WORKER_THREADS_MAX 32

struct worker_job {
    struct list link;
    /*
     * Nobody knows whether it ever ends.  worker_stop() does not wait for it then: one that runs is
     * left to itself, and done() is not called; one that is queued is done without having run.
     */
    bool may_hang;
    void (*run)(struct worker_job *job);  /* in a worker thread */
    void (*done)(struct worker_job *job); /* on the loop's thread, afterwards */
};

/* Makes the pool ready, without a thread yet. Called by reactor_init(). */
int worker_start(struct error *error);

/* Queues a job; both callbacks are set by the caller, who owns the job until `done` is called. */
void worker_submit(struct worker_job *job);

/* Runs fn(arg) in a worker; the coroutine waits. Returns what fn returns. */
int co_run_in_worker(int (*fn)(void *arg), void *arg);

/* Waits for queued jobs, ends the threads. Called by reactor_fini(). */
void worker_stop(void);

#endif
