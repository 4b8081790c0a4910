/* SPDX-License-Identifier: BSD-3-Clause */
/* Base64 with the alphabet of RFC 4648, section 4. */
#ifndef EVNBD_BASE_BASE64_H
#define EVNBD_BASE_BASE64_H

#include <stddef.h>
#include <stdint.h>

/* Bytes that `length` characters decode to, at most. */
#define BASE64_BYTES_MAX(length) ((length) / 4 * 3 + 3)

/*
 * Decodes `length` characters at `text` into `out`, which has room for BASE64_BYTES_MAX(length).
 * White space anywhere is skipped; what is left must be whole groups of four, of which the last may
 * end in one or two '='.  Returns 0, or -EINVAL with `out` in an undefined state.
 */
int base64_decode(const char *text, size_t length, uint8_t *out, size_t *ret_length);

#endif
