/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * I/O buffers: aligned to 4096 bytes (fit for O_DIRECT), pooled by size class so that the request
 * path rarely calls malloc.  Loop thread only.
 */
#ifndef EVNBD_BASE_BUFFER_H
#define EVNBD_BASE_BUFFER_H

#include <stddef.h>

#define BUFFER_ALIGN 4096

/* At least `length` bytes (contents undefined), or NULL. */
void *buffer_get(size_t length);

/* Gives back what buffer_get(length) returned, with the same length. NULL is fine. */
void buffer_put(void *buffer, size_t length);

/* Frees what is pooled. Called when the loop has been idle, and by reactor_fini(). */
void buffer_pool_trim(void);

/* Bytes in buffers that are handed out now, and that are pooled. */
size_t buffer_bytes_used(void);
size_t buffer_bytes_pooled(void);

#endif
