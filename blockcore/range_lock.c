/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Range locks: a list of what is held and a queue of what waits.
 *
 * A lock is granted when nothing that is held, and nothing that waits in front of it, overlaps it
 * in a way that excludes it; so a stream of shared locks cannot starve an exclusive one.  Granting
 * moves the lock to the held list before its coroutine runs, so nobody can come in between.
 */
#include "blockcore/range_lock.h"

#include <assert.h>

void range_locks_init(struct range_locks *locks)
{
    list_init(&locks->held);
    list_init(&locks->waiting);
    locks->exclusive = 0;
}

static bool excludes(const struct range_lock *a, uint64_t offset, uint64_t length, bool exclusive)
{
    return (exclusive || a->exclusive) && ranges_overlap(a->offset, a->length, offset, length);
}

/* Whether a lock in `list`, up to `end`, excludes the range. */
static bool list_excludes(const struct list *list, const struct list *end, uint64_t offset,
                          uint64_t length, bool exclusive)
{
    for (const struct list *it = list->next; it != list && it != end; it = it->next) {
        if (excludes(list_entry(it, struct range_lock, link), offset, length, exclusive))
            return true;
    }
    return false;
}

bool range_lock_is_free(const struct range_locks *locks, uint64_t offset, uint64_t length)
{
    if (locks->exclusive == 0)
        return true;
    return !list_excludes(&locks->held, NULL, offset, length, false) &&
           !list_excludes(&locks->waiting, NULL, offset, length, false);
}

static void acquire(struct range_locks *locks, struct range_lock *lock, bool is_free)
{
    if (lock->exclusive)
        locks->exclusive++;
    if (is_free) {
        list_append(&locks->held, &lock->link);
        return;
    }
    lock->waiter = coroutine_self();
    list_append(&locks->waiting, &lock->link);
    coroutine_suspend();
}

void range_lock_shared(struct range_locks *locks, struct range_lock *lock, uint64_t offset,
                       uint64_t length)
{
    *lock = (struct range_lock){.offset = offset, .length = length};
    acquire(locks, lock, range_lock_is_free(locks, offset, length));
}

void range_lock_exclusive(struct range_locks *locks, struct range_lock *lock, uint64_t offset,
                          uint64_t length)
{
    *lock = (struct range_lock){.offset = offset, .length = length, .exclusive = true};
    acquire(locks, lock,
            !list_excludes(&locks->held, NULL, offset, length, true) &&
                !list_excludes(&locks->waiting, NULL, offset, length, true));
}

void range_unlock(struct range_locks *locks, struct range_lock *lock)
{
    assert(list_linked(&lock->link));
    list_remove(&lock->link);
    if (lock->exclusive)
        locks->exclusive--;
    list_for_each_safe(it, next, &locks->waiting)
    {
        struct range_lock *w = list_entry(it, struct range_lock, link);

        if (list_excludes(&locks->held, NULL, w->offset, w->length, w->exclusive) ||
            list_excludes(&locks->waiting, it, w->offset, w->length, w->exclusive))
            continue;
        list_remove(it);
        list_append(&locks->held, it);
        coroutine_wake(w->waiter);
    }
}
