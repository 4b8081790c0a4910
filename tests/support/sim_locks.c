/* SPDX-License-Identifier: BSD-3-Clause */
/* Locks are kept as a list of ranges; setting one first cuts it out of the owner's others. */
#include "tests/support/sim_locks.h"

#include "tests/support/support.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct range_lock {
    struct list link;
    int owner;
    short type;          /* F_RDLCK or F_WRLCK */
    uint64_t start, end; /* end is not part of it */
};

static bool lock_range(const struct flock *lock, uint64_t *ret_start, uint64_t *ret_end)
{
    if (lock->l_whence != SEEK_SET || lock->l_start < 0 || lock->l_len < 0)
        return false;
    *ret_start = (uint64_t)lock->l_start;
    *ret_end = lock->l_len == 0 ? OFFSET_MAX : *ret_start + (uint64_t)lock->l_len;
    return true;
}

/* The first one, by its start. */
static struct range_lock *find_conflict(const struct list *locks, int owner, short type,
                                        uint64_t start, uint64_t end)
{
    struct range_lock *first = NULL;

    list_for_each(node, locks)
    {
        struct range_lock *held = list_entry(node, struct range_lock, link);

        if (held->owner != owner && held->start < end && start < held->end &&
            (held->type == F_WRLCK || type == F_WRLCK) && (!first || held->start < first->start))
            first = held;
    }
    return first;
}

static void add(struct list *locks, int owner, short type, uint64_t start, uint64_t end)
{
    struct range_lock *lock;

    if (start >= end)
        return;
    lock = calloc(1, sizeof(*lock));
    if (!lock)
        test_die("out of memory");
    lock->owner = owner;
    lock->type = type;
    lock->start = start;
    lock->end = end;
    list_prepend(locks, &lock->link);
}

static void cut_out(struct list *locks, int owner, uint64_t start, uint64_t end)
{
    list_for_each_safe(node, next, locks)
    {
        struct range_lock *held = list_entry(node, struct range_lock, link);

        if ((owner != -1 && held->owner != owner) || held->end <= start || end <= held->start)
            continue;
        /* What is left goes to the front, where this walk does not come again. */
        add(locks, held->owner, held->type, held->start, start);
        add(locks, held->owner, held->type, end, held->end);
        list_remove(&held->link);
        free(held);
    }
}

int sim_locks_set(struct list *locks, int owner, const struct flock *lock)
{
    uint64_t start, end;

    if (!lock_range(lock, &start, &end))
        return -EINVAL;
    if (lock->l_type != F_UNLCK && find_conflict(locks, owner, lock->l_type, start, end))
        return -EAGAIN;
    cut_out(locks, owner, start, end);
    if (lock->l_type != F_UNLCK)
        add(locks, owner, lock->l_type, start, end);
    return 0;
}

int sim_locks_get(const struct list *locks, int owner, struct flock *lock)
{
    struct range_lock *held;
    uint64_t start, end;

    if (!lock_range(lock, &start, &end))
        return -EINVAL;
    held = find_conflict(locks, owner, lock->l_type, start, end);
    if (!held) {
        lock->l_type = F_UNLCK;
        return 0;
    }
    lock->l_type = held->type;
    lock->l_start = (off_t)held->start;
    lock->l_len = held->end == OFFSET_MAX ? 0 : (off_t)(held->end - held->start);
    lock->l_pid = -1;
    return 0;
}

void sim_locks_drop(struct list *locks, int owner)
{
    cut_out(locks, owner, 0, OFFSET_MAX);
}
