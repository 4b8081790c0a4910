/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * I/O engines for tests.  Both do their operations through `sys`, on the loop's thread, so that
 * faults, the recorder and the simulated disk see every one of them, in an order that only depends
 * on the seed.
 */
#ifndef EVNBD_TESTS_SIM_ENGINE_H
#define EVNBD_TESTS_SIM_ENGINE_H

#include "base/io.h"

/* Does the operation when it is submitted; its coroutine is woken in the same turn. */
extern const struct io_engine io_engine_sync;

/* Does the operations of a turn in random order, a few at a time. */
extern const struct io_engine io_engine_sim;

/* Seeds io_engine_sim. Not seeded, it uses test_seed(). */
void sim_engine_seed(uint64_t seed);

/*
 * From now on io_engine_sim holds back what syncs are submitted; false: does them and holds none
 * any more.
 */
void sim_engine_hold_syncs(bool hold);
/* Syncs that are held back. */
unsigned sim_engine_held(void);

/* Calls visit for each operation that io_engine_sim has not done yet. */
void sim_engine_visit(void (*visit)(const struct io_op *op));

#endif
