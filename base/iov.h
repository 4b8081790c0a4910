/* SPDX-License-Identifier: BSD-3-Clause */
/* Vectors of buffers. */
#ifndef EVNBD_BASE_IOV_H
#define EVNBD_BASE_IOV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

size_t iov_length(const struct iovec *iov, int iovcnt);

/*
 * Fills `out` (room for `out_max` vectors) with the bytes [offset, offset + length) of iov, which
 * must have them.  Returns the number of vectors used, or -EINVAL when out_max is too small (iovcnt
 * is always enough) or the vectors end too early.
 */
int iov_slice(struct iovec *out, int out_max, const struct iovec *iov, int iovcnt, size_t offset,
              size_t length);

void iov_fill(const struct iovec *iov, int iovcnt, size_t offset, size_t length, uint8_t byte);
/* Copies between vectors and a flat buffer, from `offset` of the vectors on. */
void iov_to_buffer(void *out, const struct iovec *iov, int iovcnt, size_t offset, size_t length);
void iov_from_buffer(const struct iovec *iov, int iovcnt, size_t offset, const void *data,
                     size_t length);
bool iov_is_zero(const struct iovec *iov, int iovcnt, size_t offset, size_t length);

#endif
