/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Jobs: requests that may wait, each in a coroutine.
 *
 * A job counts in its connection's `running` from its making to its freeing and is charged with the
 * memory that it needs, so the connection outlives it and its memory is accounted for.  Freed jobs
 * are pooled.
 */
#include "nbd/job.h"

#include "base/buffer.h"
#include "base/checked.h"
#include "base/coroutine.h"
#include "blockcore/block.h"
#include "nbd/connection.h"
#include "nbd/reply.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Jobs kept for the next requests. */
#define FREE_JOBS_MAX 256

static struct nbd_job *take_free(struct nbd_connection_owner *owner)
{
    struct list *node = list_pop(&owner->free_jobs);

    if (!node)
        return malloc(sizeof(struct nbd_job));
    owner->free_job_count--;
    return list_entry(node, struct nbd_job, link);
}

static void give_free(struct nbd_connection_owner *owner, struct nbd_job *job)
{
    if (owner->free_job_count == FREE_JOBS_MAX) {
        free(job);
        return;
    }
    owner->free_job_count++;
    list_prepend(&owner->free_jobs, &job->link);
}

void nbd_connection_owner_fini(struct nbd_connection_owner *owner)
{
    struct list *node;

    while ((node = list_pop(&owner->free_jobs)))
        free(list_entry(node, struct nbd_job, link));
    owner->free_job_count = 0;
    log_limit_end(&owner->log_entered);
    log_limit_end(&owner->log_left);
    log_limit_end(&owner->log_refused);
    log_limit_end(&owner->log_invalid);
    for (unsigned i = 0; i < ARRAY_SIZE(owner->log_failed); i++)
        log_limit_end(&owner->log_failed[i]);
    log_limit_end(&owner->log_denied);
    log_limit_end(&owner->log_unanswered);
}

uint64_t nbd_job_memory(const struct nbd_request *request)
{
    switch (request->command) {
    case NBD_CMD_READ:
        return request->length;
    case NBD_CMD_WRITE:
        return min_u64(request->length, NBD_PAYLOAD_STEP);
    case NBD_CMD_CACHE:
    case NBD_CMD_WRITE_ZEROES:
        return min_u64(request->length, BLOCK_PIECE_BYTES);
    case NBD_CMD_BLOCK_STATUS:
        return nbd_status_bytes(request);
    default:
        return 0;
    }
}

bool nbd_job_get_buffer(struct nbd_job *job, size_t bytes)
{
    job->buffer = buffer_get(bytes);
    job->buffer_bytes = bytes;
    return job->buffer;
}

struct nbd_job *nbd_job_new(struct nbd_connection *c, const struct nbd_request *request,
                            size_t buffer_bytes)
{
    struct nbd_job *job = take_free(c->owner);

    if (!job)
        return NULL;
    *job = (struct nbd_job){.connection = c,
                            .request = *request,
                            .charged = c->narrow ? NBD_NARROW_PART : nbd_job_memory(request)};
    if (buffer_bytes > 0 && !nbd_job_get_buffer(job, buffer_bytes)) {
        give_free(c->owner, job);
        return NULL;
    }
    nbd_share_take(&c->share, job->charged);
    c->running++;
    return job;
}

void nbd_job_charge(struct nbd_job *job, uint64_t bytes)
{
    job->charged += bytes;
    nbd_share_take(&job->connection->share, bytes);
}

void nbd_job_uncharge(struct nbd_job *job, uint64_t bytes)
{
    uint64_t given = min_u64(bytes, job->charged);

    job->charged -= given;
    nbd_share_give(&job->connection->share, given);
}

uint8_t *nbd_job_take_buffer(struct nbd_job *job)
{
    uint8_t *buffer = job->buffer;

    if (buffer)
        nbd_job_uncharge(job, job->buffer_bytes);
    job->buffer = NULL;
    return buffer;
}

void nbd_job_free(struct nbd_job *job)
{
    struct nbd_connection *c = job->connection;

    buffer_put(job->buffer, job->buffer_bytes);
    nbd_job_uncharge(job, job->charged);
    give_free(c->owner, job);
    c->running--;
    c->narrow = false;
    reactor_defer(&c->turn);
}

/* ---- Running ---- */

static void answer(struct nbd_job *job, int r)
{
    if (r < 0) {
        nbd_reply_errno(job->connection, &job->request, r);
        return;
    }
    if (job->request.command == NBD_CMD_WRITE) /* the parts before have been counted */
        job->connection->bytes_written += job->request.length - job->written;
    nbd_reply_done(job->connection, &job->request);
}

static void job_main(void *arg)
{
    struct nbd_job *job = arg;

    coroutine_set_owner(job->connection);
    if (job->request.command == NBD_CMD_READ)
        nbd_read_run(job);
    else if (job->request.command == NBD_CMD_BLOCK_STATUS)
        nbd_status_run(job);
    else
        answer(job, nbd_command_run(job));
    nbd_job_free(job);
}

void nbd_job_start(struct nbd_job *job)
{
    int r = coroutine_start(job_main, job);

    if (r == 0)
        return;
    nbd_reply_errno(job->connection, &job->request, r);
    nbd_job_free(job);
}
