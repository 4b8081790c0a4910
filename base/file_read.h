/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Small files as a whole, before clients are served: a pipe whose other end is slow holds
 * everything up.  Blocking, and through the seam.
 */
#ifndef EVNBD_BASE_FILE_READ_H
#define EVNBD_BASE_FILE_READ_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/*
 * Reads all of the file (or pipe) at `path`, at most `max` bytes, into new memory with a 0 byte
 * after it, which does not count.  It was never moved, so that who wipes it has wiped every copy.
 * Returns 0, or negative errno (-EFBIG: it is longer) with a sentence that names the file.
 */
int file_read(const char *path, size_t max, uint8_t **ret, size_t *ret_length, struct error *error);

#endif
