/* SPDX-License-Identifier: BSD-3-Clause */
/* The turn, apart from the event loop that calls it. Used by reactor.c only. */
#ifndef EVNBD_BASE_REACTOR_TURN_H
#define EVNBD_BASE_REACTOR_TURN_H

#include "base/reactor.h"

void reactor_turn_init(void);
/* Timers that still run become idle. */
void reactor_turn_fini(void);

/* One turn. Returns whether there was anything to do. */
bool reactor_turn(void);

/* Whether the last turn was cut short: the loop must not sleep. */
bool reactor_turn_left_work(void);

#endif
