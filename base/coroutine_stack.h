/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Stacks of coroutines, and what the checkers have to be told about them; used by coroutine.c only.
 */
#ifndef EVNBD_BASE_COROUTINE_STACK_H
#define EVNBD_BASE_COROUTINE_STACK_H

#include "base/sanitize.h"

#include <stddef.h>

struct coroutine_stack {
    char *base; /* lowest usable byte; the page below faults */
    size_t size;
    unsigned valgrind_id;
};

/* Zero-filled memory from the kernel, of which only pages that are used become resident. */
int coroutine_stack_map(struct coroutine_stack *stack);
void coroutine_stack_unmap(const struct coroutine_stack *stack);

/* Bytes from the deepest byte that was ever written to the top; 0 in release builds. */
size_t coroutine_stack_depth(const struct coroutine_stack *stack);

/* The coroutine on it has ended and another one will use it: drops what checkers know about it. */
void coroutine_stack_forget(const struct coroutine_stack *stack);

/*
 * AddressSanitizer is told before and after every switch.  `fake` is where the fake stack of the
 * one that is left is kept; NULL when that one has ended.  Functions that switch are NO_ASAN: a
 * frame of theirs on a fake stack would be gone when they go on.
 */
#ifdef SANITIZE_ADDRESS
#include <sanitizer/common_interface_defs.h>
#define NO_ASAN __attribute__((no_sanitize_address, noinline))

static inline void coroutine_switch_begins(void **fake, const void *stack, size_t size)
{
    __sanitizer_start_switch_fiber(fake, stack, size);
}

static inline void coroutine_switch_ends(void *fake, const void **old_stack, size_t *old_size)
{
    __sanitizer_finish_switch_fiber(fake, old_stack, old_size);
}
#else
#define NO_ASAN

static inline void coroutine_switch_begins(void **fake, const void *stack, size_t size)
{
    (void)fake, (void)stack, (void)size;
}

static inline void coroutine_switch_ends(void *fake, const void **old_stack, size_t *old_size)
{
    (void)fake, (void)old_stack, (void)old_size;
}
#endif

#endif
