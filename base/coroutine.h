/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Stackful coroutines: code that waits looks like code that blocks.
 *
 * Coroutines run on the loop's thread only and never resume each other: waking one puts it on the
 * ready list, which the reactor drains (coroutine_run_ready).  Stacks are pooled, with a guard page
 * below each, and announced to AddressSanitizer and valgrind.
 */
#ifndef EVNBD_BASE_COROUTINE_H
#define EVNBD_BASE_COROUTINE_H

#include "base/list.h"

struct coroutine;
typedef void coroutine_fn(void *arg);

/*
 * Starts `fn(arg)` in a new coroutine.  Called on the loop's own stack it runs at once, until it
 * first waits or returns; called in a coroutine it is put on the ready list.
 * Returns 0 or -ENOMEM (nothing was started).
 */
int coroutine_start(coroutine_fn *fn, void *arg);

/* The running coroutine, or NULL on the loop's own stack. */
struct coroutine *coroutine_self(void);

/*
 * On whose behalf the running coroutine works: anything that tells clients apart, NULL at first.
 * What a coroutine starts has the same owner.
 */
void coroutine_set_owner(const void *owner);
const void *coroutine_owner(void);

/* Leaves the running coroutine until coroutine_wake() is called for it. */
void coroutine_suspend(void);

/* Puts a suspended coroutine on the ready list. Must not be called twice for one suspension. */
void coroutine_wake(struct coroutine *co);

/* Goes to the end of the ready list and lets the others run. */
void coroutine_yield(void);

/*
 * Runs coroutines that are ready: at most those that were ready on entry, and no more of them once
 * the monotonic clock has come to `until_ns` (INT64_MAX: never).  For the reactor.
 * Returns true when more are ready.
 */
bool coroutine_run_ready(int64_t until_ns);
bool coroutine_any_ready(void);

/* Number of coroutines that have started and not ended. */
unsigned coroutine_count(void);

/* Deepest use of a stack since the start, bytes; 0 in release builds, where it is not measured. */
size_t coroutine_stack_high_water(void);

/* Frees the pooled stacks. */
void coroutine_pool_trim(void);

#endif
