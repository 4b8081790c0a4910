/* SPDX-License-Identifier: BSD-3-Clause */
/* The worker pool. */
#include "base/worker.h"

#include "base/coroutine.h"
#include "base/reactor.h"
#include "tests/support/support.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

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

struct square {
    struct worker_job job;
    unsigned number, result;
    pthread_t ran_in;
};

static unsigned done_count;

static void run_square(struct worker_job *job)
{
    struct square *square = container_of(job, struct square, job);

    square->result = square->number * square->number;
    square->ran_in = pthread_self();
}

static pthread_t loop_thread;

static void square_done(struct worker_job *job)
{
    assert_true(pthread_equal(pthread_self(), loop_thread));
    assert_false(list_linked(&job->link));
    done_count++;
}

static void submit_squares(struct square *squares, unsigned count)
{
    loop_thread = pthread_self();
    done_count = 0;
    for (unsigned i = 0; i < count; i++) {
        squares[i] = (struct square){.job = {.run = run_square, .done = square_done}, .number = i};
        worker_submit(&squares[i].job);
    }
}

static void jobs_run_in_threads_and_end_on_the_loop(void **state)
{
    static struct square squares[500];

    (void)state;
    for (int round = 0; round < 3; round++) {
        submit_squares(squares, ARRAY_SIZE(squares));
        while (done_count < ARRAY_SIZE(squares))
            reactor_poll(true);
        for (unsigned i = 0; i < ARRAY_SIZE(squares); i++) {
            assert_int_equal(squares[i].result, i * i);
            assert_false(pthread_equal(squares[i].ran_in, loop_thread));
        }
    }
}

static void ending_waits_for_queued_jobs(void **state)
{
    static struct square squares[100];

    (void)state;
    submit_squares(squares, ARRAY_SIZE(squares));
    worker_stop();
    assert_int_equal(done_count, ARRAY_SIZE(squares));
    worker_stop();
}

struct stuck {
    struct worker_job job;
    int fds[2];
    atomic_bool ran;
    unsigned done;
};

/* Until the other end sends a byte, which then sees that this end is closed. */
static void run_stuck(struct worker_job *job)
{
    struct stuck *stuck = container_of(job, struct stuck, job);
    char byte;

    atomic_store(&stuck->ran, true);
    (void)!read(stuck->fds[0], &byte, 1);
    close(stuck->fds[0]);
}

static void stuck_done(struct worker_job *job)
{
    container_of(job, struct stuck, job)->done++;
}

static void ending_does_not_wait_for_what_may_never_end(void **state)
{
    static struct stuck stuck;
    struct square square;

    (void)state;
    stuck = (struct stuck){.job = {.run = run_stuck, .done = stuck_done, .may_hang = true}};
    assert_int_equal(pipe(stuck.fds), 0);
    worker_submit(&stuck.job);
    while (!atomic_load(&stuck.ran))
        reactor_poll(false);
    submit_squares(&square, 1);
    worker_stop();
    assert_int_equal(done_count, 1);
    assert_int_equal(stuck.done, 0);
    assert_int_equal(write(stuck.fds[1], "", 1), 1);

    /* What ended when the pool was gone does not get into the next one. */
    assert_int_equal(worker_start(NULL), 0);
    submit_squares(&square, 1);
    while (done_count < 1)
        reactor_poll(true);
    assert_int_equal(stuck.done, 0);
    assert_int_equal(poll(&(struct pollfd){.fd = stuck.fds[1]}, 1, -1), 1);
    close(stuck.fds[1]);
}

struct chain {
    struct worker_job job;
    unsigned left;
};

static void run_chain(struct worker_job *job)
{
    container_of(job, struct chain, job)->left--;
}

static void chain_done(struct worker_job *job)
{
    if (container_of(job, struct chain, job)->left > 0)
        worker_submit(job);
    else
        reactor_stop();
}

static void a_job_may_be_queued_again_when_it_is_done(void **state)
{
    struct chain chain = {.job = {.run = run_chain, .done = chain_done}, .left = 100};

    (void)state;
    worker_submit(&chain.job);
    reactor_run();
    assert_int_equal(chain.left, 0);
    chain.left = 5;
    worker_submit(&chain.job);
    worker_stop();
    assert_int_equal(chain.left, 0);
}

static pthread_barrier_t barrier;

static int meet(void *arg)
{
    pthread_barrier_wait(&barrier);
    return -*(int *)arg;
}

static unsigned met;

static void meet_in_worker(void *arg)
{
    assert_int_equal(co_run_in_worker(meet, arg), -*(int *)arg);
    met++;
}

/* The barrier opens only when all jobs are under way at the same time. */
static void coroutines_wait_for_workers_in_parallel(void **state)
{
    int numbers[WORKER_THREADS_MAX];

    (void)state;
    met = 0;
    pthread_barrier_init(&barrier, NULL, WORKER_THREADS_MAX);
    for (int i = 0; i < WORKER_THREADS_MAX; i++) {
        numbers[i] = i;
        assert_int_equal(coroutine_start(meet_in_worker, &numbers[i]), 0);
    }
    while (met < WORKER_THREADS_MAX)
        reactor_poll(true);
    pthread_barrier_destroy(&barrier);
}

static int count_unblocked(void *arg)
{
    sigset_t set;

    (void)arg;
    pthread_sigmask(SIG_BLOCK, NULL, &set);
    return !sigismember(&set, SIGTERM) + !sigismember(&set, SIGINT) + !sigismember(&set, SIGCHLD) +
           !sigismember(&set, SIGUSR1) + !sigismember(&set, SIGPIPE);
}

static int all_work(void *arg)
{
    return co_run_in_worker(count_unblocked, arg);
}

static void workers_take_no_signals(void **state)
{
    sigset_t before, after;

    (void)state;
    pthread_sigmask(SIG_BLOCK, NULL, &before);
    assert_int_equal(reactor_run_coroutine(all_work, NULL), 0);
    pthread_sigmask(SIG_BLOCK, NULL, &after);
    for (int signum = 1; signum < NSIG; signum++)
        assert_int_equal(sigismember(&before, signum), sigismember(&after, signum));
}

static void the_pool_starts_again_after_its_end(void **state)
{
    (void)state;
    for (int i = 0; i < 10; i++)
        assert_int_equal(test_run(all_work, NULL), 0);
}

static int is_loop_thread(void *arg)
{
    return pthread_equal(*(pthread_t *)arg, pthread_self()) ? 7 : -1;
}

static int run_here(void *arg)
{
    int r = co_run_in_worker(is_loop_thread, arg);

    return r == 7 ? co_run_in_worker(is_loop_thread, arg) : r;
}

/* A user that may not have another task cannot start threads; the work is done anyway. */
static int without_threads(void *arg)
{
    struct rlimit none = {0, 0};

    if (geteuid() == 0 && setuid(65534) < 0)
        return 3;
    if (setrlimit(RLIMIT_NPROC, &none) < 0)
        return 4;
    return run_here(arg);
}

static void without_threads_the_loop_does_the_work(void **state)
{
    int status;
    pid_t pid;

    (void)state;
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        pthread_t self = pthread_self();

        close(STDERR_FILENO);
        if (reactor_init(NULL) < 0)
            _exit(2);
        _exit(reactor_run_coroutine(without_threads, &self));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, start_reactor, stop_reactor)
    const struct CMUnitTest tests[] = {
        TEST(jobs_run_in_threads_and_end_on_the_loop),
        TEST(ending_waits_for_queued_jobs),
        TEST(ending_does_not_wait_for_what_may_never_end),
        TEST(a_job_may_be_queued_again_when_it_is_done),
        TEST(coroutines_wait_for_workers_in_parallel),
        TEST(workers_take_no_signals),
        cmocka_unit_test(the_pool_starts_again_after_its_end),
        cmocka_unit_test(without_threads_the_loop_does_the_work),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
