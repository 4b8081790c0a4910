/* SPDX-License-Identifier: BSD-3-Clause */
/* A second opinion on images: qemu-img check. */
#ifndef EVNBD_TESTS_CRASH_QEMU_CHECK_H
#define EVNBD_TESTS_CRASH_QEMU_CHECK_H

#include <stdbool.h>
#include <stddef.h>

/* Whether there is a qemu-img. */
bool qemu_check_possible(void);

/*
 * Checks the image in the directory, which may be changed; `arguments` as of image_qemu_arguments.
 * Whether it has leaks at most; else
 * `text` gets the first line that tells otherwise.
 */
bool qemu_check(const char *directory, const char *arguments, char *text, size_t size);

#endif
