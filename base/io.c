/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File I/O for coroutines: the part that is the same for all engines.
 *
 * A transfer walks its vectors with a cursor.  Each step hands the kernel either the rest of a
 * vector that was transferred in part, or all vectors from the next one on; so nothing is copied or
 * allocated, and the common case of one complete transfer is one call.
 *
 * The page cache is tried first, on the loop's own thread: reads with RWF_NOWAIT; writes with
 * RWF_NOWAIT where the file system takes it, else plainly when they cover whole pages, which the
 * page cache takes without reading the disk.  A plain write can still be held up when too much is
 * dirty, so its time is taken: after a slow one the engine gets the writes for a while.
 *
 * An operation lives on the stack of the coroutine that waits for it.  Engines are started by the
 * first file that uses them and stopped with the last.
 */
#include "base/io.h"
#include "base/coroutine.h"
#include "base/iov.h"
#include "base/sys.h"
#include "base/trace.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

#define ENGINES_MAX 8

#define INLINE_WRITE_ALIGN 4096
#define INLINE_WRITE_MAX (256 * KIB)
#define INLINE_WRITE_SLOW_NS INT64_C(1000000)
#define INLINE_WRITE_PAUSE_NS INT64_C(100000000)

/* O_DIRECT ends a transfer within such a block only where the file ends. */
#define DIRECT_BLOCK 512

static struct engine_use {
    const struct io_engine *engine;
    unsigned files;
} engine_uses[ENGINES_MAX];

static struct engine_use *engine_use_find(const struct io_engine *engine)
{
    for (size_t i = 0; i < ENGINES_MAX; i++) {
        if (engine_uses[i].engine == engine)
            return &engine_uses[i];
    }
    return NULL;
}

static int engine_get(const struct io_engine *engine, struct error *error)
{
    struct engine_use *use = engine_use_find(engine);
    int r;

    if (!use)
        use = engine_use_find(NULL);
    if (!use)
        return error_set(error, EMFILE, "More than %d I/O engines are in use.", ENGINES_MAX);
    if (use->files == 0) {
        r = engine->start(error);
        if (r < 0)
            return r;
    }
    use->engine = engine;
    use->files++;
    return 0;
}

static void engine_put(const struct io_engine *engine)
{
    struct engine_use *use = engine_use_find(engine);

    assert(use && use->files > 0);
    if (--use->files > 0)
        return;
    engine->stop();
    use->engine = NULL;
}

int io_file_init(struct io_file *file, int fd, bool direct, const struct io_engine *engine,
                 struct error *error)
{
    int r;

    *file = (struct io_file){
        .fd = fd, .direct = direct, .nowait_read = !direct, .nowait_write = !direct};
    /* io_uring goes around the seam, so it is never chosen while something else stands there. */
    if (!engine && sys == &sys_posix && engine_get(&io_engine_uring, NULL) == 0) {
        file->engine = &io_engine_uring;
        return 0;
    }
    if (!engine)
        engine = &io_engine_threads;
    r = engine_get(engine, error);
    if (r == 0)
        file->engine = engine;
    return r;
}

void io_file_fini(struct io_file *file)
{
    if (!file->engine)
        return;
    engine_put(file->engine);
    file->engine = NULL;
}

/* Where a transfer stands: `skip` bytes into iov[0]; all earlier vectors are done. */
struct cursor {
    const struct iovec *iov;
    int iovcnt;
    size_t skip;
    size_t left; /* bytes */
    uint64_t offset;
};

static struct cursor cursor_of(const struct iovec *iov, int iovcnt, uint64_t offset)
{
    return (struct cursor){
        .iov = iov, .iovcnt = iovcnt, .left = iov_length(iov, iovcnt), .offset = offset};
}

static bool cursor_valid(const struct cursor *c)
{
    return range_within(c->offset, c->left, OFFSET_MAX);
}

static void cursor_advance(struct cursor *c, size_t n)
{
    assert(n <= c->left);
    c->left -= n;
    c->offset += n;
    c->skip += n;
    while (c->iovcnt > 0 && c->skip >= c->iov->iov_len) {
        c->skip -= c->iov->iov_len;
        c->iov++;
        c->iovcnt--;
    }
}

/* The vectors of the next step; `rest` is room for one. */
static const struct iovec *cursor_step(const struct cursor *c, struct iovec *rest, int *ret_iovcnt)
{
    if (c->skip == 0) {
        *ret_iovcnt = c->iovcnt;
        return c->iov;
    }
    *rest = (struct iovec){.iov_base = (char *)c->iov->iov_base + c->skip,
                           .iov_len = c->iov->iov_len - c->skip};
    *ret_iovcnt = 1;
    return rest;
}

static const char *const kind_names[] = {[IO_READ] = "read",
                                         [IO_WRITE] = "write",
                                         [IO_FDATASYNC] = "fdatasync",
                                         [IO_FALLOCATE] = "fallocate"};

static int64_t run_in_engine(struct io_file *file, struct io_op *op)
{
    const struct io_engine *engine = file->engine;

    op->waiter = coroutine_self();
    assert(op->waiter);
    for (;;) {
        TRACE(file_io, "%s descriptor %d offset %" PRIu64 " engine %s", kind_names[op->kind],
              op->fd, op->offset, engine->name);
        engine->submit(op);
        coroutine_suspend();
        if (op->result == -EAGAIN && engine != &io_engine_threads)
            engine = &io_engine_threads; /* io_uring says so where a plain call would wait */
        else if (op->result != -EINTR)
            return op->result;
    }
}

/* One step by the engine: bytes moved, or negative errno. */
static ssize_t transfer_step(struct io_file *file, enum io_kind kind, struct cursor *c)
{
    struct iovec rest;
    struct io_op op = {.kind = kind, .fd = file->fd, .offset = c->offset};
    int64_t n;

    op.iov = cursor_step(c, &rest, &op.iovcnt);
    n = run_in_engine(file, &op);
    if (n > 0)
        cursor_advance(c, (size_t)n);
    return n;
}

/* One step out of the page cache: bytes, 0 when nothing could be had at once, or negative errno. */
static ssize_t read_cached(struct io_file *file, struct cursor *c)
{
    struct iovec rest;
    int iovcnt;
    const struct iovec *iov = cursor_step(c, &rest, &iovcnt);
    ssize_t n;

    if (!file->nowait_read)
        return 0;
    do
        n = sys->preadv(file->fd, iov, iovcnt, c->offset, RWF_NOWAIT);
    while (n == -EINTR);
    if (n > 0)
        cursor_advance(c, (size_t)n);
    if (n == -EOPNOTSUPP)
        file->nowait_read = false;
    return n == -EOPNOTSUPP || n == -EAGAIN ? 0 : n;
}

ssize_t io_readv(struct io_file *file, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct cursor c = cursor_of(iov, iovcnt, offset);
    size_t length = c.left;
    ssize_t n;

    assert(coroutine_self());
    if (!cursor_valid(&c))
        return -EINVAL;
    if (length == 0)
        return 0;
    /* Some kernels return 0 here before the end of the file: only the engine's 0 is believed. */
    n = read_cached(file, &c);
    if (n < 0)
        return n;
    while (c.left > 0) {
        n = transfer_step(file, IO_READ, &c);
        if (n < 0)
            return n;
        if (n == 0 || (file->direct && !is_aligned(c.offset, DIRECT_BLOCK)))
            break;
    }
    return (ssize_t)(length - c.left);
}

ssize_t io_readv_nowait(struct io_file *file, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct cursor c = cursor_of(iov, iovcnt, offset);
    size_t length = c.left;
    ssize_t n;

    if (!cursor_valid(&c))
        return -EINVAL;
    while (c.left > 0) {
        n = read_cached(file, &c);
        if (n < 0)
            return n;
        if (n == 0)
            return -EAGAIN;
    }
    return (ssize_t)length;
}

/* One attempt with RWF_NOWAIT: bytes, or 0 when the write has to be done in another way. */
static ssize_t write_nowait(struct io_file *file, const struct iovec *iov, int iovcnt,
                            uint64_t offset)
{
    ssize_t n = sys->pwritev(file->fd, iov, iovcnt, offset, RWF_NOWAIT);

    if (n == -EOPNOTSUPP)
        file->nowait_write = false;
    return n == -EOPNOTSUPP || n == -EAGAIN || n == -EINTR ? 0 : n;
}

/* One plain write on the loop's thread, if such writes have been quick lately. */
static ssize_t write_plainly(struct io_file *file, const struct iovec *iov, int iovcnt,
                             uint64_t offset)
{
    int64_t start = sys->monotonic_ns(), end;
    ssize_t n;

    if (start < file->write_inline_ns)
        return 0;
    n = sys->pwritev(file->fd, iov, iovcnt, offset, 0);
    end = sys->monotonic_ns();
    if (end - start > INLINE_WRITE_SLOW_NS)
        file->write_inline_ns = end + INLINE_WRITE_PAUSE_NS;
    return n == -EINTR || n == -EAGAIN ? 0 : n;
}

/* Writes into the page cache what goes there without waiting. Returns 0 or negative errno. */
static int write_cached(struct io_file *file, struct cursor *c)
{
    ssize_t n = 0;

    if (file->direct || c->left > INLINE_WRITE_MAX)
        return 0;
    if (file->nowait_write)
        n = write_nowait(file, c->iov, c->iovcnt, c->offset);
    if (!file->nowait_write && is_aligned(c->offset | c->left, INLINE_WRITE_ALIGN))
        n = write_plainly(file, c->iov, c->iovcnt, c->offset);
    if (n < 0)
        return (int)n;
    cursor_advance(c, (size_t)n);
    return 0;
}

int io_writev(struct io_file *file, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct cursor c = cursor_of(iov, iovcnt, offset);
    ssize_t n;
    int r;

    assert(coroutine_self());
    if (!cursor_valid(&c))
        return -EINVAL;
    if (c.left == 0)
        return 0;
    r = write_cached(file, &c);
    if (r < 0)
        return r;
    while (c.left > 0) {
        n = transfer_step(file, IO_WRITE, &c);
        if (n < 0)
            return (int)n;
        if (n == 0)
            return -EIO; /* a write that makes no progress would go on for ever */
    }
    return 0;
}

int io_fdatasync(struct io_file *file)
{
    struct io_op op = {.kind = IO_FDATASYNC, .fd = file->fd};

    return (int)run_in_engine(file, &op);
}

int io_fallocate(struct io_file *file, int mode, uint64_t offset, uint64_t length)
{
    struct io_op op = {
        .kind = IO_FALLOCATE, .fd = file->fd, .mode = mode, .offset = offset, .length = length};

    if (!range_within(offset, length, OFFSET_MAX))
        return -EINVAL;
    return (int)run_in_engine(file, &op);
}
