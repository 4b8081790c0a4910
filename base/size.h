/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef EVNBD_BASE_SIZE_H
#define EVNBD_BASE_SIZE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Parses a byte count: decimal digits with an optional fraction and an optional suffix b, k, M, G,
 * T, P or E (either case, powers of 1024), or a hexadecimal number with 0x and no suffix.  Nothing
 * may follow.  A fraction (at most 18 digits) must give a whole number of bytes: "1.5k", not
 * "1.1k". Returns 0, -EINVAL (not such a number, negative, trailing text) or -ERANGE (above
 * OFFSET_MAX).
 */
int size_parse(const char *text, uint64_t *ret);

/*
 * Parses an unsigned number as C writes it (decimal, 0x hexadecimal, 0 octal), no suffix, nothing
 * before or after.  Returns 0, -EINVAL or -ERANGE (does not fit, or above `max`).
 */
int number_parse(const char *text, uint64_t max, uint64_t *ret);

/*
 * Writes `size` for a person with three significant digits, as qemu-img prints sizes: "512 B",
 * "10 GiB", "1.5 MiB", "0.977 KiB" (1000 bytes).  Returns `out`; 16 bytes are enough.
 */
char *size_format(char *out, size_t out_size, uint64_t size);

#endif
