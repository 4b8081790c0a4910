/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The I/O engine that works everywhere: each operation is a job of the worker pool.
 *
 * The operation, its vectors and buffers belong to the coroutine that waits; the worker touches
 * nothing else, and hands the operation back through the pool's completion on the loop's thread.
 */
#include "base/coroutine.h"
#include "base/io.h"
#include "base/sys.h"

void io_op_run(struct io_op *op)
{
    switch (op->kind) {
    case IO_READ:
        op->result = sys->preadv(op->fd, op->iov, op->iovcnt, op->offset, 0);
        break;
    case IO_WRITE:
        op->result = sys->pwritev(op->fd, op->iov, op->iovcnt, op->offset, 0);
        break;
    case IO_FDATASYNC:
        op->result = sys->fdatasync(op->fd);
        break;
    case IO_FALLOCATE:
        op->result = sys->fallocate(op->fd, op->mode, op->offset, op->length);
        break;
    }
}

static void run_job(struct worker_job *job)
{
    io_op_run(container_of(job, struct io_op, job));
}

static void job_done(struct worker_job *job)
{
    coroutine_wake(container_of(job, struct io_op, job)->waiter);
}

static int threads_start(struct error *error)
{
    return 0; /* the pool starts its threads on demand */
}

static void threads_stop(void)
{
}

static void threads_submit(struct io_op *op)
{
    op->job.run = run_job;
    op->job.done = job_done;
    worker_submit(&op->job);
}

const struct io_engine io_engine_threads = {
    .name = "threads",
    .start = threads_start,
    .stop = threads_stop,
    .submit = threads_submit,
};
