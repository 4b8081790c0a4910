/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Range locks of a node: shared for data I/O on mapped storage, exclusive for what changes the
 * mapping.  Two requests that touch one cluster under allocation never race, and storage is never
 * given to somebody else while a read or a write of it is on its way.
 *
 * Waiters are served in order of arrival where ranges overlap.  Coroutines only.
 */
#ifndef EVNBD_BLOCKCORE_RANGE_LOCK_H
#define EVNBD_BLOCKCORE_RANGE_LOCK_H

#include "base/colock.h"

struct range_locks {
    struct list held;    /* shared and exclusive, in no order */
    struct list waiting; /* in order of arrival */
    unsigned exclusive;  /* held or waiting exclusive locks: 0 makes shared ones free of search */
};

/* Lives on the stack of its holder. */
struct range_lock {
    struct list link;
    uint64_t offset, length;
    bool exclusive;
    struct coroutine *waiter;
};

void range_locks_init(struct range_locks *locks);
/* Whether a shared lock on the range would be had at once. */
bool range_lock_is_free(const struct range_locks *locks, uint64_t offset, uint64_t length);
void range_lock_shared(struct range_locks *locks, struct range_lock *lock, uint64_t offset,
                       uint64_t length);
void range_lock_exclusive(struct range_locks *locks, struct range_lock *lock, uint64_t offset,
                          uint64_t length);
void range_unlock(struct range_locks *locks, struct range_lock *lock);

#endif
