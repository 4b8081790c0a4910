/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The payload of a WRITE on its way.
 *
 * The buffer has room for all of it, but memory that nothing was received into costs nothing, so a
 * job is charged with what has come and a step ahead: a client pays for its promises with bytes.
 * When memory is short, what has come of a payload is written out before more of it is received.
 * So every WRITE goes on with NBD_PAYLOAD_STEP bytes, which each share has, and a client that stops
 * in the middle of a payload holds no more than that when others need it.
 *
 * A payload has to go on: a timer looks once in a while how much has come.
 */
#include "base/buffer.h"
#include "base/coroutine.h"
#include "nbd/connection.h"
#include "nbd/job.h"
#include "nbd/reply.h"

#include <errno.h>
#include <string.h>

/* Further steps are larger, so that much is received at once. */
#define GROWTH_BYTES (4 << 20)
/* A part that is written by itself ends at a multiple of this. */
#define PART_ALIGN (64 * 1024)

_Static_assert(PART_ALIGN < NBD_PAYLOAD_STEP, "a part might be empty");

/* ---- Payloads that do not go on ---- */

static void on_payload_due(struct reactor_timer *timer);

static void look_again(struct nbd_connection *c)
{
    reactor_timer_start(&c->payload_due, c->stopping ? NBD_STOP_STALL_NS : NBD_STALL_NS,
                        on_payload_due);
}

static void on_payload_due(struct reactor_timer *timer)
{
    struct nbd_connection *c = container_of(timer, struct nbd_connection, payload_due);
    uint64_t seen = c->payload_seen;

    if (!c->receiving && !c->discard)
        return;
    c->payload_seen = 0;
    look_again(c);
    if (c->stopping && seen == 0)
        nbd_connection_cut(c, "the client did not go on with a payload when the server shut down");
    else if (!c->stopping && seen < NBD_STALL_BYTES)
        nbd_connection_cut(c, "less than %d KiB of a payload came in %d s", NBD_STALL_BYTES / 1024,
                           (int)(NBD_STALL_NS / 1000000000));
}

static void expect_more(struct nbd_connection *c)
{
    c->payload_seen = NBD_STALL_BYTES; /* it has all of the time until the timer's next look */
    if (c->payload_due.heap_index == 0)
        look_again(c);
}

void nbd_payload_hurry(struct nbd_connection *c)
{
    c->payload_seen = 0;
    look_again(c);
}

void nbd_payload_discard(struct nbd_connection *c, uint64_t bytes)
{
    c->discard = bytes;
    if (bytes > 0)
        expect_more(c);
}

/* ---- Parts ---- */

/* Still to come. */
static uint64_t left_of(const struct nbd_job *job)
{
    return job->request.length - job->written - job->received;
}

static struct nbd_job *stop_receiving(struct nbd_connection *c)
{
    struct nbd_job *job = c->receiving;

    c->receiving = NULL;
    list_remove(&c->payload_link);
    return job;
}

/*
 * After a part was written: what came behind it moves to the start of the buffer, or of another one
 * that takes no memory yet.
 */
static int renew_buffer(struct nbd_job *job, size_t part)
{
    uint8_t *old = job->buffer;
    size_t old_bytes = job->buffer_bytes, length = job->request.length - job->written;
    bool ok;

    if (job->charged <= NBD_PAYLOAD_STEP) {
        memmove(old, old + part, job->received);
        nbd_job_uncharge(job, job->charged - min_u64(length, job->charged));
        return 0;
    }
    ok = nbd_job_get_buffer(job, length);
    if (ok)
        memcpy(job->buffer, old + part, job->received);
    buffer_put(old, old_bytes);
    nbd_job_uncharge(job, job->charged - min_u64(length, NBD_PAYLOAD_STEP));
    return ok ? 0 : -ENOMEM;
}

static void end_part(struct nbd_job *job, size_t part, size_t rest, int r)
{
    struct nbd_connection *c = job->connection;

    job->written += part;
    job->received = rest;
    c->writing = NULL;
    reactor_defer(&c->turn);
    if (r == 0) {
        c->bytes_written += part;
        r = renew_buffer(job, part);
    }
    if (r == 0 && !c->input_closed) {
        c->receiving = job;
        expect_more(c);
        return;
    }
    if (!c->input_closed) {
        nbd_reply_errno(c, &job->request, r);
        nbd_payload_discard(c, left_of(job));
    }
    nbd_job_free(job);
}

static void part_main(void *arg)
{
    struct nbd_job *job = arg;
    uint64_t begin = job->request.offset + job->written;
    size_t all = job->received, part = align_down(begin + all, PART_ALIGN) - begin;
    int r;

    coroutine_set_owner(job->connection);
    job->received = part;
    r = nbd_command_run(job);
    end_part(job, part, all - part, r);
}

/* Nothing is received until it is done. */
static void write_part(struct nbd_connection *c)
{
    struct nbd_job *job = stop_receiving(c);
    int r;

    c->writing = job;
    c->paused = true;
    r = coroutine_start(part_main, job);
    if (r < 0)
        end_part(job, 0, job->received, r);
}

/* All that there was room for has come. */
static void widen(struct nbd_connection *c, struct nbd_job *job)
{
    uint64_t more = min_u64(left_of(job), GROWTH_BYTES);

    if (!nbd_share_may_take(&c->share, more)) {
        write_part(c);
        return;
    }
    nbd_job_charge(job, more);
    if (!list_linked(&c->payload_link))
        list_append(&c->owner->payloads, &c->payload_link);
}

void nbd_payloads_give_way(struct nbd_connection_owner *owner)
{
    struct list *node;

    while ((node = list_pop(&owner->payloads)))
        write_part(list_entry(node, struct nbd_connection, payload_link));
}

/* ---- Receiving ---- */

void nbd_payload_begin(struct nbd_connection *c, struct nbd_job *job)
{
    c->receiving = job;
    expect_more(c);
}

uint8_t *nbd_payload_room(const struct nbd_connection *c, size_t *ret_length, bool *ret_all)
{
    struct nbd_job *job = c->receiving;
    uint64_t left = job ? left_of(job) : 0;

    *ret_length = job ? min_u64(left, job->charged - job->received) : 0;
    *ret_all = *ret_length == left;
    return job ? job->buffer + job->received : NULL;
}

void nbd_payload_take(struct nbd_connection *c, size_t length)
{
    struct nbd_job *job = c->receiving;

    job->received += length;
    c->payload_seen += length;
    if (left_of(job) == 0)
        nbd_job_start(stop_receiving(c));
    else if (job->received == job->charged)
        widen(c, job);
}

void nbd_payload_drop(struct nbd_connection *c)
{
    c->discard = 0;
    if (c->receiving)
        nbd_job_free(stop_receiving(c));
}
