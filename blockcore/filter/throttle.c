/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The filter `throttle`: so many bytes and requests a second, no more.
 *
 * Reads and writes wait in two queues, which take turns where a limit is for both.  Within one,
 * clients are served fairly, whatever each of them asks for at once: a request is sorted in behind
 * its client's last one, by the sum of what that client has waiting (start-time fair queueing).
 */
#include "base/reactor.h"
#include "base/sys.h"
#include "blockcore/drivers.h"
#include "blockcore/filter.h"
#include "blockcore/filter/throttle_limits.h"

#include <errno.h>

/* What a request is worth besides its bytes, when clients are compared. */
#define REQUEST_BYTES 4096

struct waiter {
    struct list link;
    struct coroutine *coroutine;
    const void *owner; /* the client */
    uint64_t bytes;
    uint64_t tag; /* the queue is in the order of these */
    bool admitted;
};

struct queue {
    struct list waiters;
    uint64_t tag; /* of the last one that was let go */
};

struct throttle {
    struct throttle_limits limits;
    struct queue queues[THROTTLE_DIRECTIONS];
    enum throttle_direction next; /* whose turn it is */
    struct reactor_timer timer;
    bool stopped; /* the program ends: there are no limits any more */
};

static int throttle_open(struct node *node, struct node_open *open, struct error *error)
{
    struct throttle *t = node->state;
    int err = throttle_take(open->options, &t->limits.config, error);

    if (err < 0)
        return err;
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++)
        list_init(&t->queues[i].waiters);
    t->limits.leaked_ns = sys->monotonic_ns();
    node->sees_reads = throttle_is_limited(&t->limits, THROTTLE_READ);
    return filter_open_file(node, open, error);
}

static void throttle_close(struct node *node)
{
    struct throttle *t = node->state;

    reactor_timer_stop(&t->timer);
}

/* Lets all go that wait, which may be for hours. */
static void throttle_stop(struct node *node)
{
    struct throttle *t = node->state;

    t->stopped = true;
    reactor_timer_stop(&t->timer);
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++) {
        struct list *link;

        while ((link = list_pop(&t->queues[i].waiters)))
            coroutine_wake(list_entry(link, struct waiter, link)->coroutine);
    }
}

static struct waiter *first(const struct queue *queue)
{
    return list_empty(&queue->waiters) ? NULL
                                       : list_entry(queue->waiters.next, struct waiter, link);
}

/* Sorts a request in. */
static void enqueue(struct queue *queue, struct waiter *waiter)
{
    uint64_t last = queue->tag;
    struct list *at;

    list_for_each(it, &queue->waiters)
    {
        const struct waiter *other = list_entry(it, struct waiter, link);

        if (other->owner == waiter->owner)
            last = other->tag;
    }
    waiter->tag = last + waiter->bytes + REQUEST_BYTES;
    for (at = queue->waiters.prev; at != &queue->waiters; at = at->prev) {
        if (list_entry(at, struct waiter, link)->tag <= waiter->tag)
            break;
    }
    list_insert(&waiter->link, at);
}

/* Lets one request go, if there is one that may: from the queue whose turn it is, or the other. */
static bool admit_one(struct throttle *t)
{
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++) {
        enum throttle_direction direction = (t->next + i) % THROTTLE_DIRECTIONS;
        struct queue *queue = &t->queues[direction];
        struct waiter *waiter = first(queue);

        if (!waiter || throttle_wait_ns(&t->limits, direction) > 0)
            continue;
        list_remove(&waiter->link);
        throttle_count(&t->limits, direction, waiter->bytes);
        queue->tag = waiter->tag;
        t->next = (direction + 1) % THROTTLE_DIRECTIONS;
        waiter->admitted = true;
        if (waiter->coroutine != coroutine_self())
            coroutine_wake(waiter->coroutine);
        return true;
    }
    return false;
}

static void on_timer(struct reactor_timer *timer);

static void dispatch(struct throttle *t)
{
    int64_t wait = INT64_MAX;

    throttle_leak(&t->limits, sys->monotonic_ns());
    while (admit_one(t))
        ;
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++) {
        int64_t own = first(&t->queues[i]) ? throttle_wait_ns(&t->limits, i) : INT64_MAX;

        wait = own < wait ? own : wait;
    }
    if (wait < INT64_MAX)
        reactor_timer_start(&t->timer, wait, on_timer);
}

static void on_timer(struct reactor_timer *timer)
{
    dispatch(container_of(timer, struct throttle, timer));
}

/* Whether a request can go without waiting; then it is counted. */
static bool admit_at_once(struct throttle *t, enum throttle_direction direction, uint64_t bytes)
{
    for (unsigned i = 0; i < THROTTLE_DIRECTIONS; i++) {
        if (first(&t->queues[i]))
            return false; /* nobody overtakes */
    }
    throttle_leak(&t->limits, sys->monotonic_ns());
    if (throttle_wait_ns(&t->limits, direction) > 0)
        return false;
    throttle_count(&t->limits, direction, bytes);
    return true;
}

static int throttle_before(struct node *node, enum block_operation operation, uint64_t offset,
                           uint64_t length)
{
    struct throttle *t = node->state;
    enum throttle_direction direction =
        operation == OPERATION_READ ? THROTTLE_READ : THROTTLE_WRITE;
    struct waiter waiter = {.coroutine = coroutine_self(), .bytes = length};

    if (operation == OPERATION_FLUSH || t->stopped || !throttle_is_limited(&t->limits, direction) ||
        admit_at_once(t, direction, length))
        return 0;
    if (!waiter.coroutine)
        return -EAGAIN;
    waiter.owner = coroutine_owner();
    enqueue(&t->queues[direction], &waiter);
    dispatch(t);
    if (!waiter.admitted)
        coroutine_suspend();
    return 0;
}

const struct driver driver_throttle = {
    .name = "throttle",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct throttle),
    .options = throttle_options,
    .open = throttle_open,
    .close = throttle_close,
    .stop = throttle_stop,
    .before = throttle_before,
};
