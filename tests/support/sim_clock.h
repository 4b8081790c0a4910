/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A simulated clock behind the seam: time stands still while anything is ready and then jumps to
 * the reactor's next timer, so that hours of time-outs pass in no time, the same in every run.
 *
 * Descriptors and worker threads are real.  Time does not wait for a worker that is busy, so tests
 * that need both use io_engine_sync or io_engine_sim.
 */
#ifndef EVNBD_TESTS_SIM_CLOCK_H
#define EVNBD_TESTS_SIM_CLOCK_H

#include <stdint.h>

/* Starts at an arbitrary fixed time. Before reactor_init. */
void sim_clock_install(void);
void sim_clock_remove(void);

int64_t sim_clock_now(void);
/* Sets the clock forward, as work that takes time does. */
void sim_clock_advance(int64_t ns);

/* One step of the loop: does what is ready; if nothing is, goes to the next timer. */
void sim_clock_poll(void);

/* As test_run (support.h), in simulated time. */
int sim_clock_run(int (*fn)(void *arg), void *arg);

#endif
