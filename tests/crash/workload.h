/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is done to an image before the power fails: a series of operations, written as their names
 * with commas between them, one after another; or "random:SEED", 1 to 64 operations of which some
 * run at the same time.
 */
#ifndef EVNBD_TESTS_CRASH_WORKLOAD_H
#define EVNBD_TESTS_CRASH_WORKLOAD_H

#include "tests/crash/history.h"
#include "tests/crash/image.h"

#define WORKLOAD_NAME_MAX 128
#define WORKLOAD_SERIES_MAX 3 /* operations in a series of the exhaustive list */

/* Of all series of up to WORKLOAD_SERIES_MAX operations that this format has: how many, and one. */
uint64_t workload_count(const struct image_row *row);
void workload_name(const struct image_row *row, uint64_t index, char *ret);
void workload_random_name(uint64_t seed, char *ret);

/*
 * Runs it, in a coroutine, on the image that is there and holds `model` (row->bytes of
 * WORKLOAD_ROOM times as many).  `seed` says where the operations go.
 */
#define WORKLOAD_ROOM 2
int workload_run(const struct image_row *row, const char *name, uint64_t seed, uint8_t *model,
                 struct history *history, struct error *error);

#endif
