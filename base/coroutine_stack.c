/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory of coroutine stacks.
 *
 * A mapping is one guard page and the stack above it.  The kernel gives pages when they are first
 * written, so a stack costs what it used at its deepest.  That depth is found without a fill
 * pattern, which would make every page resident: fresh pages read as zeroes, and stacks are never
 * moved or cleared, so everything below the lowest byte that is not zero was never written (or was
 * written with zeroes only, which is near enough for a high-water mark).
 */
#include "base/coroutine_stack.h"

#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef HAVE_VALGRIND
#include <valgrind/memcheck.h>
#include <valgrind/valgrind.h>
#endif
#ifdef SANITIZE_ADDRESS
#include <sanitizer/asan_interface.h>
/* Redzones around every variable make frames several times larger. */
#define STACK_SIZE ((size_t)256 << 10)
#else
#define STACK_SIZE ((size_t)64 << 10)
#endif

static size_t guard_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

int coroutine_stack_map(struct coroutine_stack *stack)
{
    size_t guard = guard_size();
    char *map = mmap(NULL, guard + STACK_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

    if (map == MAP_FAILED)
        return -ENOMEM;
    if (mprotect(map, guard, PROT_NONE) < 0) {
        munmap(map, guard + STACK_SIZE);
        return -ENOMEM;
    }
    stack->base = map + guard;
    stack->size = STACK_SIZE;
#ifdef HAVE_VALGRIND
    stack->valgrind_id = VALGRIND_STACK_REGISTER(stack->base, stack->base + stack->size);
#endif
    return 0;
}

void coroutine_stack_unmap(const struct coroutine_stack *stack)
{
    size_t guard = guard_size();

#ifdef HAVE_VALGRIND
    VALGRIND_STACK_DEREGISTER(stack->valgrind_id);
#endif
    munmap(stack->base - guard, guard + stack->size);
}

void coroutine_stack_forget(const struct coroutine_stack *stack)
{
#ifdef SANITIZE_ADDRESS
    ASAN_UNPOISON_MEMORY_REGION(stack->base, stack->size);
#else
    (void)stack;
#endif
}

#ifdef EVNBD_RELEASE

size_t coroutine_stack_depth(const struct coroutine_stack *stack)
{
    (void)stack;
    return 0;
}

#else

NO_ASAN size_t coroutine_stack_depth(const struct coroutine_stack *stack)
{
    const uint64_t *word = (const uint64_t *)(const void *)stack->base;
    const uint64_t *end = word + stack->size / sizeof(*word);

#ifdef HAVE_VALGRIND
    VALGRIND_DISABLE_ERROR_REPORTING;
#endif
    while (word < end && *word == 0)
        word++;
#ifdef HAVE_VALGRIND
    VALGRIND_ENABLE_ERROR_REPORTING;
#endif
    return (size_t)(end - word) * sizeof(*word);
}

#endif
