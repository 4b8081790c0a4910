/* SPDX-License-Identifier: BSD-3-Clause */
/* Open-file-description locks of one simulated file: byte ranges, shared or exclusive. */
#ifndef EVNBD_TESTS_SIM_LOCKS_H
#define EVNBD_TESTS_SIM_LOCKS_H

#include "base/list.h"

#include <fcntl.h>

/* `owner` is the descriptor. Returns 0, -EAGAIN when another owner is in the way, or -EINVAL. */
int sim_locks_set(struct list *locks, int owner, const struct flock *lock);

/* As F_OFD_GETLK: puts the first lock that is in the way into *lock, or sets l_type to F_UNLCK. */
int sim_locks_get(const struct list *locks, int owner, struct flock *lock);

/* Drops all locks of the owner; owner -1: of everybody. */
void sim_locks_drop(struct list *locks, int owner);

#endif
