/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The I/O engine on io_uring: one ring for the process.
 *
 * An operation waits in `queued` until the turn's submission, which moves as many as the completion
 * ring can hold into the submission ring and enters the kernel once.  Operations in the submission
 * ring that the kernel has not taken yet are also in `staged`, in the same order, so that they can
 * be failed if it never will (which leaves the ring unusable: `broken`).  When the kernel is short
 * of memory the submission is tried again after a moment.
 *
 * The ring's descriptor is watched by the reactor, only to end its sleep: completions are taken in
 * the turn.  Completion work of the kernel waits for this thread's next system call (COOP_TASKRUN)
 * and ends its sleep; a flag in shared memory tells the turn when such work is there. DEFER_TASKRUN
 * would not do: such work does not make the ring's descriptor readable, and an event descriptor,
 * which it does, costs a read each time.
 */
#include "base/io.h"
#include "config.h"

#include <errno.h>

#ifdef HAVE_LIBURING

#include "base/coroutine.h"
#include "base/log.h"
#include "base/reactor.h"

#include <assert.h>
#include <liburing.h>
#include <string.h>

#define RING_ENTRIES 256
#define REAP_MAX 64
#define RETRY_NS INT64_C(1000000)
#define SINGLE_VECTOR_MAX (1 * GIB)

static struct uring {
    struct io_uring ring;
    struct reactor_source source;
    struct reactor_fd *watch;
    struct reactor_timer retry;
    struct list queued;
    struct list staged;
    unsigned in_kernel;
    unsigned capacity; /* of the completion ring: never more operations than that are under way */
    int broken;        /* negative errno: the kernel refuses the ring for good */
} uring;

static void prepare(struct io_uring_sqe *sqe, struct io_op *op)
{
    bool single = op->iovcnt == 1 && op->iov->iov_len <= SINGLE_VECTOR_MAX;

    switch (op->kind) {
    case IO_READ:
        if (single)
            io_uring_prep_read(sqe, op->fd, op->iov->iov_base, (unsigned)op->iov->iov_len,
                               op->offset);
        else
            io_uring_prep_readv(sqe, op->fd, op->iov, (unsigned)op->iovcnt, op->offset);
        break;
    case IO_WRITE:
        if (single)
            io_uring_prep_write(sqe, op->fd, op->iov->iov_base, (unsigned)op->iov->iov_len,
                                op->offset);
        else
            io_uring_prep_writev(sqe, op->fd, op->iov, (unsigned)op->iovcnt, op->offset);
        break;
    case IO_FDATASYNC:
        io_uring_prep_fsync(sqe, op->fd, IORING_FSYNC_DATASYNC);
        break;
    case IO_FALLOCATE:
        io_uring_prep_fallocate(sqe, op->fd, op->mode, (off_t)op->offset, (off_t)op->length);
        break;
    }
    io_uring_sqe_set_data(sqe, op);
}

/* Fills the submission ring. Returns whether there is something to submit. */
static bool stage(struct uring *u)
{
    struct io_uring_sqe *sqe;
    struct io_op *op;

    if (u->broken)
        return false;
    while (!list_empty(&u->queued) && u->in_kernel + io_uring_sq_ready(&u->ring) < u->capacity) {
        sqe = io_uring_get_sqe(&u->ring);
        if (!sqe)
            break;
        op = list_entry(list_pop(&u->queued), struct io_op, link);
        list_append(&u->staged, &op->link);
        prepare(sqe, op);
    }
    return io_uring_sq_ready(&u->ring) > 0;
}

static void fail_all(struct list *ops, int err)
{
    struct list *node;
    struct io_op *op;

    while ((node = list_pop(ops))) {
        op = list_entry(node, struct io_op, link);
        op->result = err;
        coroutine_wake(op->waiter);
    }
}

static void retry_submit(struct reactor_timer *timer)
{
    /* The turn after this timer submits. */
}

static void submit_failed(struct uring *u, int err)
{
    if (err == -EAGAIN || err == -EBUSY || err == -EINTR || err == -ENOMEM) {
        reactor_timer_start(&u->retry, RETRY_NS, retry_submit);
        return;
    }
    log_error("io_uring no longer takes operations: %s; file I/O fails until a restart",
              strerror(-err));
    u->broken = err;
    fail_all(&u->staged, err);
    fail_all(&u->queued, err);
}

static void uring_source_submit(struct reactor_source *source)
{
    struct uring *u = container_of(source, struct uring, source);
    int taken;

    if (u->broken)
        fail_all(&u->queued, u->broken);
    while (stage(u)) {
        taken = io_uring_submit(&u->ring);
        if (taken <= 0) {
            submit_failed(u, taken < 0 ? taken : -EAGAIN);
            return;
        }
        for (int i = 0; i < taken; i++)
            list_pop(&u->staged);
        u->in_kernel += (unsigned)taken;
    }
}

static bool uring_source_reap(struct reactor_source *source)
{
    struct uring *u = container_of(source, struct uring, source);
    struct io_uring_cqe *cqes[REAP_MAX];
    struct io_op *op;
    unsigned n;

    if (u->in_kernel == 0)
        return false;
    n = io_uring_peek_batch_cqe(&u->ring, cqes, REAP_MAX);
    for (unsigned i = 0; i < n; i++) {
        op = io_uring_cqe_get_data(cqes[i]);
        op->result = cqes[i]->res;
        coroutine_wake(op->waiter);
    }
    io_uring_cq_advance(&u->ring, n);
    u->in_kernel -= n;
    return n > 0;
}

static void ring_readable(void *arg, unsigned events)
{
    /* The turn before the next sleep reaps. */
}

/* The best set of flags that this kernel takes. Returns 0 or negative errno. */
static int ring_init(struct uring *u)
{
    static const unsigned flag_sets[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SINGLE_ISSUER,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    int r = -EINVAL;

    for (size_t i = 0; i < ARRAY_SIZE(flag_sets) && r == -EINVAL; i++) {
        struct io_uring_params params = {.flags = flag_sets[i]};

        r = io_uring_queue_init_params(RING_ENTRIES, &u->ring, &params);
        u->capacity = params.cq_entries;
    }
    return r;
}

static bool ring_has_operations(struct uring *u)
{
    static const int needed[] = {IORING_OP_READ,   IORING_OP_WRITE, IORING_OP_READV,
                                 IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE};
    struct io_uring_probe *probe = io_uring_get_probe_ring(&u->ring);
    bool all = probe != NULL;

    for (size_t i = 0; i < ARRAY_SIZE(needed) && all; i++)
        all = io_uring_opcode_supported(probe, needed[i]);
    io_uring_free_probe(probe);
    return all;
}

static int uring_start(struct error *error)
{
    struct uring *u = &uring;
    int r;

    *u = (struct uring){.source = {.submit = uring_source_submit, .reap = uring_source_reap}};
    list_init(&u->queued);
    list_init(&u->staged);
    r = ring_init(u);
    if (r < 0)
        return error_set(error, ENOSYS,
                         "io_uring cannot be used here (its setup failed: %s). The sysctl "
                         "kernel.io_uring_disabled or the rules of a container may forbid it; the "
                         "engine \"threads\" works everywhere.",
                         strerror(-r));
    if (!ring_has_operations(u)) {
        io_uring_queue_exit(&u->ring);
        return error_set(error, ENOSYS,
                         "The io_uring of this kernel is too old (it lacks fallocate); use the "
                         "engine \"threads\".");
    }
    u->watch = reactor_fd_new(u->ring.ring_fd, REACTOR_READ, ring_readable, u);
    if (!u->watch) {
        io_uring_queue_exit(&u->ring);
        return error_set(error, ENOMEM, "Out of memory while starting io_uring.");
    }
    reactor_source_add(&u->source);
    return 0;
}

static void uring_stop(void)
{
    struct uring *u = &uring;

    assert(u->in_kernel == 0 && list_empty(&u->queued) && list_empty(&u->staged));
    reactor_timer_stop(&u->retry);
    reactor_source_remove(&u->source);
    reactor_fd_free(u->watch);
    io_uring_queue_exit(&u->ring);
}

static void uring_submit(struct io_op *op)
{
    list_append(&uring.queued, &op->link);
}

#else

static int uring_start(struct error *error)
{
    return error_set(error, ENOSYS,
                     "This program was built without io_uring; use the engine \"threads\".");
}

static void uring_stop(void)
{
}

static void uring_submit(struct io_op *op)
{
}

#endif

const struct io_engine io_engine_uring = {
    .name = "io_uring",
    .start = uring_start,
    .stop = uring_stop,
    .submit = uring_submit,
};
