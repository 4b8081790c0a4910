/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Binary heap of timers.  Invariants: no timer is due before its parent, and each timer knows its
 * slot (heap_index, 1-based), so that any of them can be taken out in logarithmic time.
 */
#include "base/timer_heap.h"

#include <errno.h>
#include <stdlib.h>

static void place(struct timer_heap *heap, unsigned index, struct reactor_timer *timer)
{
    heap->slots[index - 1] = timer;
    timer->heap_index = index;
}

static void sift_up(struct timer_heap *heap, unsigned index, struct reactor_timer *timer)
{
    while (index > 1 && heap->slots[index / 2 - 1]->due_ns > timer->due_ns) {
        place(heap, index, heap->slots[index / 2 - 1]);
        index /= 2;
    }
    place(heap, index, timer);
}

static void sift_down(struct timer_heap *heap, unsigned index, struct reactor_timer *timer)
{
    unsigned child;

    while ((child = 2 * index) <= heap->count) {
        if (child < heap->count && heap->slots[child]->due_ns < heap->slots[child - 1]->due_ns)
            child++;
        if (heap->slots[child - 1]->due_ns >= timer->due_ns)
            break;
        place(heap, index, heap->slots[child - 1]);
        index = child;
    }
    place(heap, index, timer);
}

static int grow(struct timer_heap *heap)
{
    unsigned capacity = heap->capacity ? 2 * heap->capacity : 64;
    struct reactor_timer **slots = reallocarray(heap->slots, capacity, sizeof(*slots));

    if (!slots)
        return -ENOMEM;
    heap->slots = slots;
    heap->capacity = capacity;
    return 0;
}

int timer_heap_add(struct timer_heap *heap, struct reactor_timer *timer)
{
    if (heap->count == heap->capacity && grow(heap) < 0)
        return -ENOMEM;
    heap->count++;
    sift_up(heap, heap->count, timer);
    return 0;
}

void timer_heap_remove(struct timer_heap *heap, struct reactor_timer *timer)
{
    unsigned index = timer->heap_index;
    struct reactor_timer *last;

    if (index == 0)
        return;
    timer->heap_index = 0;
    last = heap->slots[--heap->count];
    if (last == timer)
        return;
    if (index > 1 && heap->slots[index / 2 - 1]->due_ns > last->due_ns)
        sift_up(heap, index, last);
    else
        sift_down(heap, index, last);
}

struct reactor_timer *timer_heap_first(const struct timer_heap *heap)
{
    return heap->count ? heap->slots[0] : NULL;
}

void timer_heap_fini(struct timer_heap *heap)
{
    for (unsigned i = 0; i < heap->count; i++)
        heap->slots[i]->heap_index = 0;
    free(heap->slots);
    *heap = (struct timer_heap){0};
}
