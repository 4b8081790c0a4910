/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Wait queue, mutex and group of coroutines.
 *
 * Waiters are nodes on the stacks of the coroutines that wait, so waiting takes no memory.  A mutex
 * that is let go belongs to the first waiter from that moment on, before that one runs.
 */
#include "base/colock.h"

#include <assert.h>
#include <stdlib.h>

struct co_waiter {
    struct list link;
    struct coroutine *co;
};

void co_queue_init(struct co_queue *queue)
{
    list_init(&queue->waiters);
}

bool co_queue_empty(const struct co_queue *queue)
{
    return list_empty(&queue->waiters);
}

void co_queue_wait(struct co_queue *queue)
{
    struct co_waiter waiter = {.co = coroutine_self()};

    list_append(&queue->waiters, &waiter.link);
    coroutine_suspend();
}

/* Takes the first waiter off the queue and wakes it; NULL when there is none. */
static struct coroutine *wake_first(struct co_queue *queue)
{
    struct list *node = list_pop(&queue->waiters);
    struct coroutine *co;

    if (!node)
        return NULL;
    co = list_entry(node, struct co_waiter, link)->co;
    coroutine_wake(co);
    return co;
}

bool co_queue_wake_one(struct co_queue *queue)
{
    return wake_first(queue) != NULL;
}

void co_queue_wake_all(struct co_queue *queue)
{
    while (wake_first(queue))
        ;
}

void co_mutex_init(struct co_mutex *mutex)
{
    mutex->owner = NULL;
    co_queue_init(&mutex->queue);
}

void co_mutex_lock(struct co_mutex *mutex)
{
    struct coroutine *self = coroutine_self();

    assert(self && "only a coroutine can lock a mutex");
    assert(mutex->owner != self && "locked twice by one coroutine");
    if (!mutex->owner)
        mutex->owner = self;
    else
        co_queue_wait(&mutex->queue);
    assert(mutex->owner == self);
}

void co_mutex_unlock(struct co_mutex *mutex)
{
    assert(mutex->owner && mutex->owner == coroutine_self() && "unlocked by another coroutine");
    mutex->owner = wake_first(&mutex->queue);
}

struct co_group_job {
    struct co_group *group;
    int (*fn)(void *arg);
    void *arg;
};

void co_group_init(struct co_group *group)
{
    *group = (struct co_group){0};
}

static void note_result(struct co_group *group, int result)
{
    if (result < 0 && group->result == 0)
        group->result = result;
}

static void group_main(void *arg)
{
    struct co_group_job job = *(struct co_group_job *)arg;

    free(arg);
    note_result(job.group, job.fn(job.arg));
    job.group->running--;
    if (job.group->running == 0 && job.group->waiter)
        coroutine_wake(job.group->waiter);
}

void co_group_start(struct co_group *group, int (*fn)(void *arg), void *arg)
{
    struct co_group_job *job = malloc(sizeof(*job));

    if (job) {
        *job = (struct co_group_job){.group = group, .fn = fn, .arg = arg};
        group->running++;
        if (coroutine_start(group_main, job) == 0)
            return;
        group->running--;
        free(job);
    }
    note_result(group, fn(arg));
}

int co_group_wait(struct co_group *group)
{
    int result;

    if (group->running > 0) {
        group->waiter = coroutine_self();
        coroutine_suspend();
        group->waiter = NULL;
    }
    result = group->result;
    group->result = 0;
    return result;
}
