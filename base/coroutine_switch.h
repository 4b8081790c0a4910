/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing from one stack to another; used by coroutine.c only.
 *
 * On x86-64 and AArch64 a switch is a few instructions (coroutine_switch.S).  Elsewhere, or with
 * EVNBD_COROUTINE_UCONTEXT defined, it is swapcontext(3), which also saves the signal mask and so
 * costs two system calls.
 */
#ifndef EVNBD_BASE_COROUTINE_SWITCH_H
#define EVNBD_BASE_COROUTINE_SWITCH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if ((defined(__x86_64__) && !defined(__ILP32__)) || defined(__aarch64__)) &&                      \
    !defined(EVNBD_COROUTINE_UCONTEXT)

struct coroutine_context {
    void *sp;
};

/* Leaves the stack in use, noting where in *ret_sp, and goes on at `sp` of another. */
void coroutine_switch_stacks(void **ret_sp, void *sp);
/* Where a new stack starts: never called from C. */
void coroutine_first_frame(void);

/* Words of the frame that coroutine_switch_stacks pops: index 0 is the lowest address. */
#if defined(__x86_64__)
enum { FRAME_WORDS = 8, FRAME_ENTRY = 4, FRAME_ARG = 3, FRAME_RETURN = 7 };
#else
enum { FRAME_WORDS = 22, FRAME_ENTRY = 2, FRAME_ARG = 3, FRAME_RETURN = 1 };
#endif

/* Prepares a stack ([stack, stack + size), 16-byte aligned) on which entry(arg) is to run. */
static inline void coroutine_context_init(struct coroutine_context *context, void *stack,
                                          size_t size, void (*entry)(void *), void *arg)
{
    uintptr_t *frame = (uintptr_t *)((char *)stack + size) - FRAME_WORDS;

    memset(frame, 0, FRAME_WORDS * sizeof(*frame));
    frame[FRAME_ENTRY] = (uintptr_t)entry;
    frame[FRAME_ARG] = (uintptr_t)arg;
    frame[FRAME_RETURN] = (uintptr_t)coroutine_first_frame;
    /* The floating-point modes of the starter. */
#if defined(__x86_64__)
    uint32_t mxcsr;
    uint16_t x87_control;
    __asm__("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(x87_control));
    frame[0] = mxcsr | (uintptr_t)x87_control << 32;
#else
    __asm__("mrs %0, fpcr" : "=r"(frame[20]));
#endif
    context->sp = frame;
}

static inline void coroutine_context_switch(struct coroutine_context *from,
                                            const struct coroutine_context *to)
{
    coroutine_switch_stacks(&from->sp, to->sp);
}

#else

#include <stdlib.h>
#include <ucontext.h>

struct coroutine_context {
    ucontext_t uc;
    void (*entry)(void *arg);
    void *arg;
};

/* makecontext passes ints, so the pointer comes in two halves. */
static inline void coroutine_context_entry(unsigned high, unsigned low)
{
    struct coroutine_context *context = (void *)(uintptr_t)((uint64_t)high << 32 | low);

    context->entry(context->arg);
    abort();
}

static inline void coroutine_context_init(struct coroutine_context *context, void *stack,
                                          size_t size, void (*entry)(void *), void *arg)
{
    uint64_t address = (uintptr_t)context;

    context->entry = entry;
    context->arg = arg;
    if (getcontext(&context->uc) < 0)
        abort();
    context->uc.uc_stack.ss_sp = stack;
    context->uc.uc_stack.ss_size = size;
    context->uc.uc_link = NULL;
    makecontext(&context->uc, (void (*)(void))coroutine_context_entry, 2, (unsigned)(address >> 32),
                (unsigned)address);
}

static inline void coroutine_context_switch(struct coroutine_context *from,
                                            struct coroutine_context *to)
{
    if (swapcontext(&from->uc, &to->uc) < 0)
        abort();
}

#endif

#endif
