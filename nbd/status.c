/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * BLOCK_STATUS: the extents of each context that was asked for, neighbors with the same flags
 * merged.
 *
 * The answer is bounded in three ways, so that an image of millions of extents costs nobody but its
 * client anything: extents told, questions asked to collect them, and time.  Where a bound is met
 * the answer ends early, but never empty; the client goes on from there with its next request.
 */
#include "base/checked.h"
#include "nbd/connection.h"
#include "nbd/job.h"
#include "nbd/reply.h"
#include "nbd/slice.h"

#include <errno.h>

/* Questions for one context; there are many when neighbors merge. */
#define STEPS_MAX 65536
/* What has been collected in this time is sent. */
#define COLLECT_NS INT64_C(200000000)
/* Extents are rarely smaller, so that a short range needs room for few. */
#define EXTENT_BYTES_USUAL 512

static unsigned extents_max(const struct nbd_request *request)
{
    uint64_t usual = request->length / EXTENT_BYTES_USUAL + 2;

    if (request->flags & NBD_CMD_FLAG_REQ_ONE)
        return 1;
    return (unsigned)min_u64(usual, NBD_REPLY_EXTENTS_MAX);
}

size_t nbd_status_bytes(const struct nbd_request *request)
{
    return extents_max(request) * sizeof(struct nbd_extent);
}

struct collection {
    struct nbd_extent *extents;
    unsigned count, max;
};

/* Adds the next extent; false: it has no place. */
static bool add(struct collection *found, const struct nbd_extent *next)
{
    if (found->count > 0 && found->extents[found->count - 1].flags == next->flags) {
        found->extents[found->count - 1].length += next->length;
        return true;
    }
    if (found->count == found->max)
        return false;
    found->extents[found->count++] = *next;
    return true;
}

/*
 * Collects what a context tells of the range.  An error behind the first extent is for later.
 * -ESHUTDOWN: nobody waits for it any more.
 */
static int collect(struct nbd_job *job, unsigned context, struct nbd_slice *slice,
                   struct collection *found)
{
    const struct nbd_connection *c = job->connection;
    uint64_t at = job->request.offset, end = at + job->request.length;
    int64_t limit = sys->monotonic_ns() + COLLECT_NS;

    found->count = 0;
    for (unsigned step = 0; at < end && step < STEPS_MAX; step++) {
        struct nbd_extent next;
        int r;

        if (nbd_connection_gives_up(c))
            return -ESHUTDOWN;
        r = nbd_context_next(c->nbd_export, context, at, end - at, &next);
        if (r < 0)
            return found->count > 0 ? 0 : r;
        if (!add(found, &next) || sys->monotonic_ns() > limit)
            break;
        at += next.length;
        nbd_slice_step(slice);
    }
    return 0;
}

static void answer(struct nbd_job *job)
{
    struct nbd_connection *c = job->connection;
    const struct nbd_request *request = &job->request;
    uint64_t left = request->contexts;
    struct collection found = {(struct nbd_extent *)job->buffer, 0, extents_max(request)};
    struct nbd_slice slice;

    nbd_slice_begin(&slice);
    for (; left; left &= left - 1) {
        unsigned context = (unsigned)__builtin_ctzll(left);
        int r;

        /* Many requests for many contexts would else pile up for a peer that does not read. */
        nbd_connection_await_room(c);
        if (c->dead)
            return;
        r = collect(job, context, &slice, &found);
        if (r < 0) {
            nbd_reply_errno(c, request, r);
            return;
        }
        nbd_reply_status(c, request, context, found.extents, found.count, (left & (left - 1)) == 0);
    }
}

/* One after the other for each client: a hundred of them side by side would leave others little. */
void nbd_status_run(struct nbd_job *job)
{
    struct co_mutex *mutex = &job->connection->status_mutex;

    co_mutex_lock(mutex);
    answer(job);
    co_mutex_unlock(mutex);
}
