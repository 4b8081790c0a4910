/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Jobs: requests that may wait, each in a coroutine.  Inside of nbd/.
 *
 *   job.c      their memory and their end
 *   command.c  commands that are answered without data
 *   read.c     READ
 *   status.c   BLOCK_STATUS
 */
#ifndef EVNBD_NBD_JOB_H
#define EVNBD_NBD_JOB_H

#include "nbd/memory.h"
#include "nbd/request.h"

struct nbd_connection;

struct nbd_job {
    struct list link; /* among the owner's free ones */
    struct nbd_connection *connection;
    struct nbd_request request;
    uint8_t *buffer; /* of buffer_bytes, or NULL */
    size_t buffer_bytes;
    uint64_t charged; /* to the connection's share, the buffer included */
    /* Of a WRITE's payload: so much is in the buffer; so much was written before, in parts. */
    size_t received;
    uint64_t written;
};

/* What a WRITE is charged with when it begins, see payload.c; every share has that. */
#define NBD_PAYLOAD_STEP NBD_SHARE_FLOOR

/* What a READ reads at once while memory is short, see read.c. */
#define NBD_NARROW_PART (256 * 1024)

/* What the request may need of the connection's share of memory, to begin. */
uint64_t nbd_job_memory(const struct nbd_request *request);

/*
 * A job, charged with nbd_job_memory(), and with a buffer of that size if `buffer_bytes` is not 0.
 * NULL: out of memory.
 */
struct nbd_job *nbd_job_new(struct nbd_connection *c, const struct nbd_request *request,
                            size_t buffer_bytes);
void nbd_job_free(struct nbd_job *job);
/* Gives a job its buffer later; it is charged for it already. False: out of memory. */
bool nbd_job_get_buffer(struct nbd_job *job, size_t bytes);
/* The buffer, which the caller takes over; the job is no longer charged with it. */
uint8_t *nbd_job_take_buffer(struct nbd_job *job);
void nbd_job_charge(struct nbd_job *job, uint64_t bytes);
/* Gives up to `bytes` of what the job is charged with back. */
void nbd_job_uncharge(struct nbd_job *job, uint64_t bytes);
/* Runs it; it answers and frees itself. */
void nbd_job_start(struct nbd_job *job);

/*
 * read.c: answers a READ now if it need not wait, else starts a job.  With c->narrow, which is
 * reset when it has ended, it takes no more memory than a few small parts.
 */
void nbd_read_start(struct nbd_connection *c, const struct nbd_request *request);
/*
 * command.c, in the coroutine of a job: runs it, or the part of a WRITE that is in the buffer.
 * Returns 0 or the negative errno to answer.
 */
int nbd_command_run(struct nbd_job *job);
/* In the coroutine of a job: run and answer. */
void nbd_read_run(struct nbd_job *job);
void nbd_status_run(struct nbd_job *job);
/* Bytes that a BLOCK_STATUS collects its extents in. */
size_t nbd_status_bytes(const struct nbd_request *request);

#endif
