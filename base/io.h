/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File I/O for coroutines, over two engines: io_uring and threads (base/worker.h).
 *
 * What is in the page cache is answered without leaving the loop: reads are first tried with
 * RWF_NOWAIT, and small writes to a buffered file are done in place while such writes are quick (a
 * write that took long, because the kernel throttles, sends the following ones to the engine for a
 * while).  All calls retry EINTR and continue after short transfers.
 */
#ifndef EVNBD_BASE_IO_H
#define EVNBD_BASE_IO_H

#include "base/error.h"
#include "base/list.h"
#include "base/worker.h"

#include <sys/types.h>
#include <sys/uio.h>

struct coroutine;

enum io_kind { IO_READ, IO_WRITE, IO_FDATASYNC, IO_FALLOCATE };

/* One operation in an engine's hands. */
struct io_op {
    struct list link;
    enum io_kind kind;
    int fd;
    const struct iovec *iov;
    int iovcnt;
    uint64_t offset;
    uint64_t length; /* IO_FALLOCATE */
    int mode;        /* IO_FALLOCATE: FALLOC_FL_* */
    int64_t result;  /* bytes, 0, or negative errno */
    struct coroutine *waiter;
    struct worker_job job; /* for the threads engine */
};

/* Does the operation here and now, through `sys`, and sets result. For engines. */
void io_op_run(struct io_op *op);

struct io_engine {
    const char *name;
    /* Called when the first file is opened with it, and after the last was closed. */
    int (*start)(struct error *error);
    void (*stop)(void);
    /* Takes the operation; when it has ended, sets result and wakes the waiter. */
    void (*submit)(struct io_op *op);
};

extern const struct io_engine io_engine_threads;
/* Works only in the process that started it: fork before the first file is opened. */
extern const struct io_engine
    io_engine_uring; /* start fails with -ENOSYS where it is not to be had */

/* A file under an engine. Embedded in its owner. */
struct io_file {
    int fd;
    const struct io_engine *engine;
    bool direct;             /* O_DIRECT: never tried without the engine */
    bool nowait_read;        /* RWF_NOWAIT reads work here, as far as known */
    bool nowait_write;       /* RWF_NOWAIT writes work here, as far as known */
    int64_t write_inline_ns; /* time from which writes may be done in place again; monotonic */
};

/*
 * Takes an open descriptor (not owned: the caller closes it after io_file_fini).
 * `engine` NULL: io_uring where it works, else threads.  Returns 0 or negative errno with `error`.
 */
int io_file_init(struct io_file *file, int fd, bool direct, const struct io_engine *engine,
                 struct error *error);
void io_file_fini(struct io_file *file);

/*
 * Reads at `offset` until the vectors are full or the file ends.
 * Returns the number of bytes read (short only at the end of the file) or negative errno.
 * `iovcnt` is at most IOV_MAX (1024).
 */
ssize_t io_readv(struct io_file *file, const struct iovec *iov, int iovcnt, uint64_t offset);

/*
 * As io_readv, but never waits and may be called on the loop's stack: -EAGAIN when the bytes are
 * not all in the page cache (or end before the vectors are full).
 */
ssize_t io_readv_nowait(struct io_file *file, const struct iovec *iov, int iovcnt, uint64_t offset);

/* Writes all bytes. Returns 0 or negative errno (then any part may have been written). */
int io_writev(struct io_file *file, const struct iovec *iov, int iovcnt, uint64_t offset);

int io_fdatasync(struct io_file *file);

/* fallocate(2). Returns 0 or negative errno, -EOPNOTSUPP where the file system cannot. */
int io_fallocate(struct io_file *file, int mode, uint64_t offset, uint64_t length);

#endif
