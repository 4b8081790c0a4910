/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The worker pool.
 *
 * A job goes through three lists: `pending` (loop's thread only) until the reactor's submit step
 * hands over all of them under one lock; `queue`, from which workers take; and `done`, which the
 * reap step empties.  The event descriptor is readable exactly while `done` is not empty (both
 * change under the lock), so that the loop wakes once for each batch and never for nothing.
 *
 * Threads are joined: a slot whose thread has ended by itself is joined when the slot is needed
 * again, or in the end.  Only a thread with a job that may never end is left behind by the end of
 * the pool; its slot is taken again when it has ended, by whatever pool there is then.
 */
#include "base/worker.h"

#include "base/coroutine.h"
#include "base/log.h"
#include "base/reactor.h"
#include "base/sanitize.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define IDLE_SECONDS 10

/* Modules of PAM and of the C library's name service run here. */
#if defined(SANITIZE_ADDRESS) || defined(SANITIZE_THREAD)
#define STACK_SIZE ((size_t)1 << 20)
#else
#define STACK_SIZE ((size_t)512 << 10)
#endif

enum slot_state { SLOT_FREE, SLOT_RUNNING, SLOT_ENDED };

struct slot {
    pthread_t thread;
    enum slot_state state;
    bool hangs;     /* it runs a job that may never end */
    bool abandoned; /* ... for which the pool did not wait when it was stopped */
};

static struct {
    /* Of the loop's thread. */
    struct list pending;
    struct reactor_source source;
    struct reactor_fd *watch;
    int event_fd;
    bool started, warned;

    /* Under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct list queue, done;
    unsigned queued, waiting, threads;
    bool stopping;
    struct slot slots[WORKER_THREADS_MAX];
    atomic_bool any_done; /* read without the lock, to leave it alone in most turns */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void pool_lock(void)
{
    pthread_mutex_lock(&pool.lock);
}

static void pool_unlock(void)
{
    pthread_mutex_unlock(&pool.lock);
}

/* Puts a job that has run on the done list. With the lock held. */
static void finish(struct worker_job *job)
{
    uint64_t one = 1;

    if (list_empty(&pool.done)) {
        ssize_t n = write(pool.event_fd, &one, sizeof(one));
        assert(n == sizeof(one));
        (void)n;
    }
    list_append(&pool.done, &job->link);
    atomic_store(&pool.any_done, true);
}

/* The next job, or NULL when this thread is to end. With the lock held. */
static struct worker_job *next_job(void)
{
    struct timespec until;
    int r = 0;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IDLE_SECONDS;
    pool.waiting++;
    while (list_empty(&pool.queue) && !pool.stopping && r != ETIMEDOUT)
        r = pthread_cond_timedwait(&pool.work, &pool.lock, &until);
    pool.waiting--;
    if (list_empty(&pool.queue))
        return NULL;
    pool.queued--;
    return list_entry(list_pop(&pool.queue), struct worker_job, link);
}

/* Runs a job without the lock. Returns whether there still is a pool that wants to know. */
static bool run_unlocked(struct slot *slot, struct worker_job *job)
{
    slot->hangs = job->may_hang;
    pool_unlock();
    job->run(job);
    pool_lock();
    slot->hangs = false;
    return !slot->abandoned;
}

static void *worker_main(void *arg)
{
    struct slot *slot = arg;
    struct worker_job *job;

    pool_lock();
    while ((job = next_job())) {
        if ((!job->may_hang || !pool.stopping) && !run_unlocked(slot, job))
            break;
        finish(job);
    }
    if (!slot->abandoned)
        pool.threads--;
    slot->state = slot->abandoned ? SLOT_FREE : SLOT_ENDED;
    slot->abandoned = false;
    pool_unlock();
    return NULL;
}

static struct slot *find_slot(void)
{
    for (unsigned i = 0; i < WORKER_THREADS_MAX; i++) {
        if (pool.slots[i].state != SLOT_RUNNING)
            return &pool.slots[i];
    }
    return NULL;
}

/* Starts the thread of a slot, with signals blocked except those that an instruction raises. */
static int create_thread(struct slot *slot)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
    pthread_attr_t attr;
    sigset_t block, old;
    int r;

    sigfillset(&block);
    for (unsigned i = 0; i < ARRAY_SIZE(faults); i++)
        sigdelset(&block, faults[i]);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    pthread_sigmask(SIG_SETMASK, &block, &old);
    r = pthread_create(&slot->thread, &attr, worker_main, slot);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (r == 0)
        pthread_setname_np(slot->thread, "worker");
    return -r;
}

/* One more thread, if there may be one. With the lock held. Returns 0 or negative errno. */
static int add_thread(void)
{
    struct slot *slot = find_slot();
    int r;

    if (!slot)
        return -EAGAIN;
    if (slot->state == SLOT_ENDED)
        pthread_join(slot->thread, NULL);
    slot->state = SLOT_FREE;
    r = create_thread(slot);
    if (r < 0)
        return r;
    slot->state = SLOT_RUNNING;
    pool.threads++;
    return 0;
}

/* Without a single thread the jobs are done here and now. With the lock held. */
static void run_queue_here(void)
{
    struct list *node;

    while ((node = list_pop(&pool.queue))) {
        struct worker_job *job = list_entry(node, struct worker_job, link);

        pool.queued--;
        job->run(job);
        finish(job);
    }
}

/* As many threads as there are jobs that no waiting thread will take. With the lock held. */
static void provide_threads(void)
{
    int r = 0;

    for (unsigned want = pool.queued; want > pool.waiting && r == 0; want--)
        r = add_thread();
    if (pool.threads > 0)
        return;
    if (!pool.warned)
        log_warning("no worker thread can be started (%s); its work is done on the main thread, "
                    "which other clients wait for meanwhile",
                    strerror(-r));
    pool.warned = true;
    run_queue_here();
}

static void worker_source_submit(struct reactor_source *source)
{
    unsigned count = 0;

    (void)source;
    if (list_empty(&pool.pending))
        return;
    list_for_each(node, &pool.pending) count++;
    pool_lock();
    list_splice(&pool.queue, &pool.pending);
    pool.queued += count;
    provide_threads();
    for (unsigned i = 0; i < count && i < pool.waiting; i++)
        pthread_cond_signal(&pool.work);
    pool_unlock();
}

static bool worker_source_reap(struct reactor_source *source)
{
    struct list done, *node;
    uint64_t value;

    (void)source;
    if (!atomic_load(&pool.any_done))
        return false;
    list_init(&done);
    pool_lock();
    list_splice(&done, &pool.done);
    atomic_store(&pool.any_done, false);
    if (read(pool.event_fd, &value, sizeof(value)) < 0)
        value = 0;
    pool_unlock();
    while ((node = list_pop(&done))) {
        struct worker_job *job = list_entry(node, struct worker_job, link);
        job->done(job);
    }
    return true;
}

/* Only wakes the loop: the turn that follows reaps. */
static void on_event(void *arg, unsigned events)
{
    (void)arg, (void)events;
}

int worker_start(struct error *error)
{
    pthread_condattr_t attr;

    pool.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pool.event_fd < 0)
        return error_set_errno(error, errno,
                               "cannot create an event descriptor for worker threads");
    pool.watch = reactor_fd_new(pool.event_fd, REACTOR_READ, on_event, NULL);
    if (!pool.watch) {
        close(pool.event_fd);
        return error_set(error, ENOMEM, "out of memory while preparing worker threads");
    }
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&pool.work, &attr);
    pthread_condattr_destroy(&attr);
    list_init(&pool.pending);
    list_init(&pool.queue);
    list_init(&pool.done);
    pool.source =
        (struct reactor_source){.submit = worker_source_submit, .reap = worker_source_reap};
    reactor_source_add(&pool.source);
    pool.stopping = false;
    pool.started = true;
    return 0;
}

void worker_submit(struct worker_job *job)
{
    assert(pool.started && "worker_submit outside of reactor_init and reactor_fini");
    job->link = (struct list){0};
    list_append(&pool.pending, &job->link);
}

/* Lets the threads empty the queue and waits for their ends. */
static void join_threads(void)
{
    pool_lock();
    pool.stopping = true;
    pthread_cond_broadcast(&pool.work);
    for (unsigned i = 0; i < WORKER_THREADS_MAX; i++) {
        struct slot *slot = &pool.slots[i];

        if (slot->state == SLOT_FREE || slot->abandoned)
            continue;
        if (slot->hangs) {
            pthread_detach(slot->thread);
            slot->abandoned = true;
            pool.threads--;
            continue;
        }
        pool_unlock();
        pthread_join(slot->thread, NULL);
        pool_lock();
        slot->state = SLOT_FREE;
    }
    pool.stopping = false;
    pool_unlock();
}

void worker_stop(void)
{
    if (!pool.started)
        return;
    do {
        worker_source_submit(&pool.source);
        join_threads();
    } while (worker_source_reap(&pool.source) || !list_empty(&pool.pending));
    reactor_source_remove(&pool.source);
    reactor_fd_free(pool.watch);
    close(pool.event_fd);
    pthread_cond_destroy(&pool.work);
    pool.started = false;
}

struct worker_call {
    struct worker_job job;
    int (*fn)(void *arg);
    void *arg;
    int result;
    struct coroutine *waiter;
};

static void call_run(struct worker_job *job)
{
    struct worker_call *call = container_of(job, struct worker_call, job);

    call->result = call->fn(call->arg);
}

static void call_done(struct worker_job *job)
{
    coroutine_wake(container_of(job, struct worker_call, job)->waiter);
}

int co_run_in_worker(int (*fn)(void *arg), void *arg)
{
    struct worker_call call = {
        .job = {.run = call_run, .done = call_done},
        .fn = fn,
        .arg = arg,
        .waiter = coroutine_self(),
    };

    worker_submit(&call.job);
    coroutine_suspend();
    return call.result;
}
