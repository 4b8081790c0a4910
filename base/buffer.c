/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pooled I/O buffers.
 *
 * Size classes are powers of two from 4 KiB to 4 MiB; what is larger is not pooled.  A pooled
 * buffer holds the link of its class's list in its first bytes.  The pool as a whole has a limit,
 * beyond which buffers are freed when they are given back.
 *
 * Under AddressSanitizer a pooled buffer is poisoned, and so is the part of a buffer beyond what
 * was asked for.
 */
#include "base/buffer.h"

#include "base/checked.h"
#include "base/sanitize.h"

#include <stdlib.h>

#ifdef SANITIZE_ADDRESS
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, length) ((void)(at), (void)(length))
#define ASAN_UNPOISON_MEMORY_REGION(at, length) ((void)(at), (void)(length))
#endif

#define CLASS_COUNT 11 /* 4 KiB << 0 .. 4 KiB << 10 */
#define POOL_BYTES_MAX ((size_t)64 << 20)

struct pooled {
    struct pooled *next;
};

static struct {
    struct pooled *free[CLASS_COUNT];
    size_t used, pooled;
} pool;

static size_t class_size(unsigned class)
{
    return (size_t)BUFFER_ALIGN << class;
}

/* The smallest class that holds `length` bytes; CLASS_COUNT when none does. */
static unsigned class_of(size_t length)
{
    unsigned class = 0;

    while (class < CLASS_COUNT && class_size(class) < length)
        class ++;
    return class;
}

/* Memory that a buffer of `length` bytes takes. */
static size_t capacity_of(size_t length)
{
    unsigned class = class_of(length);

    return class < CLASS_COUNT ? class_size(class) : align_up(length, BUFFER_ALIGN);
}

static void *pool_take(unsigned class)
{
    struct pooled *buffer;

    if (class == CLASS_COUNT || !pool.free[class])
        return NULL;
    buffer = pool.free[class];
    ASAN_UNPOISON_MEMORY_REGION(buffer, class_size(class));
    pool.free[class] = buffer->next;
    pool.pooled -= class_size(class);
    return buffer;
}

void *buffer_get(size_t length)
{
    void *buffer;
    size_t capacity;

    if (length > OFFSET_MAX - BUFFER_ALIGN)
        return NULL;
    capacity = capacity_of(length);
    buffer = pool_take(class_of(length));
    if (!buffer)
        buffer = aligned_alloc(BUFFER_ALIGN, capacity);
    if (!buffer)
        return NULL;
    ASAN_POISON_MEMORY_REGION((char *)buffer + length, capacity - length);
    pool.used += capacity;
    return buffer;
}

void buffer_put(void *buffer, size_t length)
{
    size_t capacity = capacity_of(length);
    unsigned class = class_of(length);
    struct pooled *pooled = buffer;

    if (!buffer)
        return;
    pool.used -= capacity;
    ASAN_UNPOISON_MEMORY_REGION(buffer, capacity);
    if (class == CLASS_COUNT || pool.pooled + capacity > POOL_BYTES_MAX) {
        free(buffer);
        return;
    }
    pooled->next = pool.free[class];
    pool.free[class] = pooled;
    pool.pooled += capacity;
    /* The link stays readable: the leak checker follows no pointers in poisoned memory. */
    ASAN_POISON_MEMORY_REGION(pooled + 1, capacity - sizeof(*pooled));
}

void buffer_pool_trim(void)
{
    for (unsigned class = 0; class < CLASS_COUNT; class ++) {
        void *buffer;

        while ((buffer = pool_take(class)))
            free(buffer);
    }
}

size_t buffer_bytes_used(void)
{
    return pool.used;
}

size_t buffer_bytes_pooled(void)
{
    return pool.pooled;
}
