/* SPDX-License-Identifier: BSD-3-Clause */
/* Timers in the order in which they are due: a binary heap. Used by reactor.c only. */
#ifndef EVNBD_BASE_TIMER_HEAP_H
#define EVNBD_BASE_TIMER_HEAP_H

#include "base/reactor.h"

struct timer_heap {
    struct reactor_timer **slots; /* slot i holds the timer with heap_index i + 1 */
    unsigned count, capacity;
};

/* Adds an idle timer whose due_ns is set. Returns 0 or -ENOMEM. */
int timer_heap_add(struct timer_heap *heap, struct reactor_timer *timer);
/* Takes out a timer and marks it idle; an idle one is fine. */
void timer_heap_remove(struct timer_heap *heap, struct reactor_timer *timer);
/* The timer that is due first, or NULL. */
struct reactor_timer *timer_heap_first(const struct timer_heap *heap);
/* Frees the memory; timers that are still in it become idle. */
void timer_heap_fini(struct timer_heap *heap);

#endif
