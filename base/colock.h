/* SPDX-License-Identifier: BSD-3-Clause */
/* Waiting for each other: wait queue, mutex and group for coroutines. First come, first served. */
#ifndef EVNBD_BASE_COLOCK_H
#define EVNBD_BASE_COLOCK_H

#include "base/coroutine.h"

/* A queue of coroutines that wait for something. */
struct co_queue {
    struct list waiters;
};

void co_queue_init(struct co_queue *queue);
bool co_queue_empty(const struct co_queue *queue);
/* Suspends the running coroutine until it is woken through the queue. */
void co_queue_wait(struct co_queue *queue);
/* Wakes the first waiter, if any; returns whether there was one. */
bool co_queue_wake_one(struct co_queue *queue);
void co_queue_wake_all(struct co_queue *queue);

/* Held by one coroutine at a time; handed over in order, so that nobody can overtake. */
struct co_mutex {
    struct coroutine *owner;
    struct co_queue queue;
};

void co_mutex_init(struct co_mutex *mutex);
void co_mutex_lock(struct co_mutex *mutex);
void co_mutex_unlock(struct co_mutex *mutex);

/* Fan-out: start n, wait for all, first error. Lives on the stack of the coroutine that waits. */
struct co_group {
    unsigned running;
    int result; /* first negative result */
    struct coroutine *waiter;
};

void co_group_init(struct co_group *group);
/*
 * Starts fn(arg) in a coroutine of the group; when no coroutine can be had, runs it here.
 */
void co_group_start(struct co_group *group, int (*fn)(void *arg), void *arg);
/* Waits until all have ended. Returns 0 or the first error. The group can be used again. */
int co_group_wait(struct co_group *group);

#endif
