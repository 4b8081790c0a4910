/* SPDX-License-Identifier: BSD-3-Clause */
/* Nodes by options, in simulated time: for the tests of filters. */
#ifndef EVNBD_TESTS_FILTER_STAGE_H
#define EVNBD_TESTS_FILTER_STAGE_H

#include "blockcore/node.h"

#include <stddef.h>

#define STAGE_DISK_BYTES (1024 * 1024)

/*
 * For cmocka: a new directory, which is the working one, with disk.raw of STAGE_DISK_BYTES, whose
 * byte n is stage_byte(n), and in simulated time.
 */
int stage_setup(void **state);
int stage_teardown(void **state);

uint8_t stage_byte(uint64_t offset);

/* Opens the options and runs fn(node) in a coroutine. Dies when they are refused. */
void stage_play(const char *options, unsigned flags, void (*fn)(struct node *node));

/* The options must be refused with the error, and a message that says `words`. */
void stage_refused(const char *options, unsigned flags, int error, const char *words);

/* Milliseconds since the play began. */
int64_t stage_ms(void);

/* Reads, and compares with the disk as it was made. Returns the error. */
int stage_read(struct node *node, uint64_t offset, size_t length);
/* Writes `length` times `byte`. Returns the error. */
int stage_write(struct node *node, uint64_t offset, size_t length, uint8_t byte);

#endif
