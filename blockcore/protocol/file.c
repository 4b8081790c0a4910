/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Protocols `file` and `host_device`: regular files and block devices of this machine.
 *
 * node->size is the end of the file as this process knows it.  A read that ends short of it means
 * that somebody has cut the file: an error.  What lies past it reads as zeroes, and writes there
 * let a regular file grow.
 */
#include "base/io.h"
#include "base/iov.h"
#include "base/sys.h"
#include "base/trace.h"
#include "base/worker.h"
#include "blockcore/drivers.h"
#include "blockcore/file_lock.h"
#include "blockcore/node.h"
#include "blockcore/protocol/file_probe.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>

enum file_aio { FILE_AIO_THREADS, FILE_AIO_NATIVE, FILE_AIO_IO_URING, FILE_AIO_DEFAULT };

static const char *const aio_words[] = {"threads", "native", "io_uring", NULL};

struct file {
    char *filename; /* option */
    char *beneath;  /* option */
    bool locking;   /* option */
    int aio;        /* option: enum file_aio */
    int fd;
    uint64_t bytes_max; /* the file cannot be larger */
    struct io_file io;
    bool io_ready;
    bool block_device;
    dev_t device; /* itself, or where its file system is */
    /* What the file system was found not to do. */
    bool no_zero_range, no_punch, no_reserve;
    /* A run of data that map found, and that this process has not punched since. */
    uint64_t data_start, data_end;
};

static const struct option_row file_options[] = {
    {"filename", OPTION_STRING, offsetof(struct file, filename), NULL, "path of the file"},
    {"beneath", OPTION_STRING, offsetof(struct file, beneath), NULL,
     "directory that the file has to be in, which no link in its path may leave"},
    {"locking", OPTION_BOOL, offsetof(struct file, locking), NULL,
     "take image locks, so that no other program uses the image in a way that harms"},
    {"aio", OPTION_ENUM, offsetof(struct file, aio), aio_words, "engine for its I/O"},
    {0},
};

/* Opens the file from the directory that it has to be in, without following links. */
static int open_beneath(const struct file *file, int mode)
{
    size_t length = strlen(file->beneath);
    int dirfd, fd;

    while (length > 0 && file->beneath[length - 1] == '/')
        length--;
    if (strncmp(file->filename, file->beneath, length) != 0 || file->filename[length] != '/')
        return -EXDEV;
    dirfd = sys->openat(AT_FDCWD, file->beneath, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (dirfd < 0)
        return dirfd;
    fd = sys->openat2(dirfd, file->filename + length + 1, mode,
                      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS);
    sys->close(dirfd);
    return fd;
}

static int open_descriptor(struct file *file, unsigned flags, struct error *error)
{
    /* O_NONBLOCK: a FIFO must be refused, not waited for. */
    int mode = O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

    mode |= flags & NODE_WRITABLE ? O_RDWR : O_RDONLY;
    if (flags & NODE_NO_CACHE)
        mode |= O_DIRECT;
    do {
        file->fd = file->beneath ? open_beneath(file, mode)
                                 : sys->openat(AT_FDCWD, file->filename, mode, 0);
    } while (file->fd == -EINTR);
    if (file->fd >= 0)
        return 0;
    if (file->beneath && (file->fd == -ENOSYS || file->fd == -ELOOP || file->fd == -EXDEV))
        return error_set_errno(error, -file->fd, "cannot open '%s' from within '%s'%s",
                               file->filename, file->beneath,
                               file->fd == -ENOSYS ? " (Linux 5.6 can do that)" : "");
    if (file->fd == -EINVAL && (flags & NODE_NO_CACHE))
        return error_set(error, EINVAL,
                         "cannot open '%s': its file system has no direct I/O, which cache modes "
                         "none and directsync need",
                         file->filename);
    if ((file->fd == -EACCES || file->fd == -EROFS) && (flags & NODE_WRITABLE))
        return error_set_errno(error, -file->fd,
                               "cannot open '%s' for writing (--read-only does without)",
                               file->filename);
    return error_set_errno(error, -file->fd, "cannot open '%s'", file->filename);
}

static int check_type(struct node *node, struct file *file, struct error *error)
{
    struct stat st;
    int err = sys->fstat(file->fd, &st);

    if (err < 0)
        return error_set_errno(error, -err, "cannot stat '%s'", file->filename);
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
        return error_set(error, EINVAL, "'%s' is %s; an image is a regular file or a block device",
                         file->filename, file_type_name(st.st_mode));
    file->block_device = S_ISBLK(st.st_mode);
    if (file->block_device != (node->driver == &driver_host_device))
        return error_set(error, EINVAL, "'%s' is %s: use driver '%s'", file->filename,
                         file_type_name(st.st_mode),
                         file->block_device ? driver_host_device.name : driver_file.name);
    file->device = file->block_device ? st.st_rdev : st.st_dev;
    node->rotational = file_rotational(file->device);
    node->size = (uint64_t)st.st_size;
    if (file->block_device)
        return node_set_identity(node, st.st_rdev, 0, error);
    return node_set_identity(node, st.st_dev, st.st_ino, error);
}

static int open_limits(struct node *node, struct file *file, unsigned flags, struct error *error)
{
    int err;

    if (file->block_device) {
        err = file_device_size(file->fd, &node->size);
        if (err < 0)
            return error_set_errno(error, -err, "cannot get the size of '%s'", file->filename);
        if ((flags & NODE_WRITABLE) && file_device_read_only(file->fd))
            return error_set(error, EROFS, "'%s' is a read-only device; use --read-only",
                             file->filename);
    }
    node->request_alignment = 1;
    if (flags & NODE_NO_CACHE)
        node->request_alignment = file_direct_alignment(file->device);
    return 0;
}

/* The file that the node is, by its name or as it was handed over. */
static int take_options(struct node *node, struct node_open *open, struct error *error)
{
    const struct node_descriptor *given = open->given_descriptor;
    struct file *file = node->state;
    int err;

    open->given_descriptor = NULL;
    file->fd = given ? given->fd : -1;
    file->bytes_max = given ? given->bytes_max : OFFSET_MAX;
    file->locking = true;
    file->aio = FILE_AIO_DEFAULT;
    err = options_take(open->options, file_options, file, "a file", error);
    if (err < 0)
        return err;
    if (!given && (!file->filename || !*file->filename))
        return error_set(error, EINVAL, "a file node needs 'filename', the path of an image");
    if (file->aio == FILE_AIO_NATIVE && !(open->flags & NODE_NO_CACHE))
        return error_set(error, EINVAL,
                         "aio=native was specified, but it requires cache.direct=on, which was not "
                         "specified");
    node->filename = strdup(given ? given->name : file->filename);
    return node->filename ? 0 : error_set(error, ENOMEM, "out of memory");
}

static const struct io_engine *engine_of(const struct file *file, const struct node_open *open)
{
    if (file->aio == FILE_AIO_DEFAULT)
        return open->context->engine;
    if (file->aio == FILE_AIO_NATIVE)
        return NULL;
    return file->aio == FILE_AIO_THREADS ? &io_engine_threads : &io_engine_uring;
}

static int file_open(struct node *node, struct node_open *open, struct error *error)
{
    struct file *file = node->state;
    int err = take_options(node, open, error);

    if (err < 0)
        return err;
    if (file->fd < 0)
        err = open_descriptor(file, open->flags, error);
    if (err == 0)
        err = check_type(node, file, error);
    if (err == 0)
        err = open_limits(node, file, open->flags, error);
    if (err == 0 && file->locking && !(open->flags & NODE_NO_LOCK))
        err = file_lock(file->fd, open->perm, open->shared, file->filename, error);
    if (err == 0)
        err = io_file_init(&file->io, file->fd, open->flags & NODE_NO_CACHE, engine_of(file, open),
                           error);
    file->io_ready = err == 0;
    return err;
}

static void file_close(struct node *node)
{
    struct file *file = node->state;

    if (file->io_ready)
        io_file_fini(&file->io);
    if (file->fd >= 0)
        sys->close(file->fd);
    options_release(file_options, file);
}

static int file_preadv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct file *file = node->state;
    size_t length = iov_length(iov, iovcnt);
    uint64_t size = node->size;
    ssize_t n = io_readv(&file->io, iov, iovcnt, offset);

    TRACE(file_io, "%s read offset %" PRIu64 " length %zu: %zd", node_name(node), offset, length,
          n);
    if (n < 0)
        return (int)n;
    if ((size_t)n == length)
        return 0;
    /* Cut while it was open; but while this read waited, a write may have let it grow. */
    if (offset + (size_t)n < min_u64(size, node->size))
        return -EIO;
    iov_fill(iov, iovcnt, (size_t)n, length - (size_t)n, 0);
    return 0;
}

static int file_preadv_nowait(struct node *node, const struct iovec *iov, int iovcnt,
                              uint64_t offset)
{
    struct file *file = node->state;
    ssize_t n = io_readv_nowait(&file->io, iov, iovcnt, offset);

    if (n < 0)
        return (int)n;
    return (size_t)n == iov_length(iov, iovcnt) ? 0 : -EAGAIN;
}

/* Whether the file may reach as far. */
static int check_end(const struct file *file, uint64_t offset, uint64_t length)
{
    if (!range_within(offset, length, OFFSET_MAX))
        return -EFBIG;
    return range_within(offset, length, file->bytes_max) ? 0 : -ENOSPC;
}

static int file_pwritev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct file *file = node->state;
    size_t length = iov_length(iov, iovcnt);
    int err;

    err = check_end(file, offset, length);
    if (err < 0)
        return err;
    err = io_writev(&file->io, iov, iovcnt, offset);
    TRACE(file_io, "%s write offset %" PRIu64 " length %zu: %d", node_name(node), offset, length,
          err);
    if (err == 0)
        node->size = max_u64(node->size, offset + length);
    return err;
}

/* Behind the last data is a hole; but where the file was cut, reading must fail. */
static void map_without_data(const struct node *node, uint64_t offset, struct extent *ret)
{
    const struct file *file = node->state;
    struct stat st;
    uint64_t end;

    ret->kind = EXTENT_ZERO;
    if (offset >= node->size || sys->fstat(file->fd, &st) < 0)
        return;
    end = (uint64_t)st.st_size;
    if (end >= node->size)
        return;
    if (offset >= end)
        ret->kind = EXTENT_DATA;
    ret->length = min_u64(ret->length, (offset >= end ? node->size : end) - offset);
}

/*
 * Holes of a regular file read as zeroes.  The last run of data is remembered, since looking for
 * its end may take long: some file systems look at every page.  When others punch holes into it,
 * it is still right to call them data.
 */
static int file_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    struct file *file = node->state;
    int64_t data, hole;

    *ret = (struct extent){.kind = EXTENT_DATA, .length = length};
    if (file->block_device)
        return 0;
    if (offset >= file->data_start && offset < file->data_end) {
        ret->length = min_u64(length, file->data_end - offset);
        return 0;
    }
    data = sys->lseek(file->fd, offset, SEEK_DATA);
    if (data == -ENXIO) { /* no data from here to the end */
        map_without_data(node, offset, ret);
        return 0;
    }
    if (data < 0)
        return 0; /* the file system cannot tell */
    if ((uint64_t)data > offset) {
        ret->kind = EXTENT_ZERO;
        ret->length = min_u64(length, (uint64_t)data - offset);
        return 0;
    }
    hole = sys->lseek(file->fd, offset, SEEK_HOLE);
    if (hole > 0 && (uint64_t)hole > offset) {
        file->data_start = offset;
        file->data_end = (uint64_t)hole;
        ret->length = min_u64(length, (uint64_t)hole - offset);
    }
    return 0;
}

static void forget_data(struct file *file)
{
    file->data_start = file->data_end = 0;
}

/* What the kernel says when a file system or device lacks a mode of fallocate. */
static bool unsupported(int err)
{
    return err == -EOPNOTSUPP || err == -ENOSYS || err == -EINVAL || err == -ENOTTY;
}

static int punch(struct file *file, uint64_t offset, uint64_t length)
{
    int err;

    if (file->no_punch)
        return -EOPNOTSUPP;
    err = io_fallocate(&file->io, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    forget_data(file);
    if (!unsupported(err))
        return err;
    file->no_punch = true;
    return -EOPNOTSUPP;
}

static int zero_range(struct file *file, uint64_t offset, uint64_t length, bool fast)
{
    int err;

    if (!file->no_zero_range) {
        err = io_fallocate(&file->io, FALLOC_FL_ZERO_RANGE, offset, length);
        forget_data(file); /* what is reserved and never written may count as a hole */
        if (!unsupported(err))
            return err;
        file->no_zero_range = true;
    }
    if (file->block_device || fast)
        return -EOPNOTSUPP;
    /* The same in two steps: nothing there, then storage for it, which may be filled by hand. */
    err = punch(file, offset, length);
    if (err == 0)
        err = io_fallocate(&file->io, 0, offset, length);
    return unsupported(err) ? -EOPNOTSUPP : err;
}

static int file_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct file *file = node->state;
    uint64_t end = offset + length;
    int err = check_end(file, offset, length);

    if (err < 0)
        return err;
    err = -EOPNOTSUPP;
    if (file->block_device && end > node->size)
        return -ENOSPC;
    if ((flags & ZERO_MAY_UNMAP) && end <= node->size)
        err = punch(file, offset, length);
    /* A device that cannot zero by itself has the kernel write zeroes: not fast. */
    if (err == -EOPNOTSUPP && !(file->block_device && (flags & ZERO_FAST)))
        err = zero_range(file, offset, length, flags & ZERO_FAST);
    if (err == 0)
        node->size = max_u64(node->size, end);
    return err;
}

/* A device has all of its storage, as far as anybody can tell. */
static int file_reserve(struct node *node, uint64_t offset, uint64_t length)
{
    struct file *file = node->state;
    int err = check_end(file, offset, length);

    if (err < 0 || file->block_device)
        return err;
    if (file->no_reserve)
        return -EOPNOTSUPP;
    err = io_fallocate(&file->io, 0, offset, length);
    if (unsupported(err)) {
        file->no_reserve = true;
        return -EOPNOTSUPP;
    }
    if (err == 0)
        node->size = max_u64(node->size, offset + length);
    return err;
}

struct discard_job {
    int fd;
    uint64_t range[2];
};

static int discard_device(void *arg)
{
    struct discard_job *job = arg;

    return sys->ioctl(job->fd, BLKDISCARD, job->range);
}

static int file_discard(struct node *node, uint64_t offset, uint64_t length)
{
    struct file *file = node->state;
    struct discard_job job = {file->fd, {offset, length}};
    int err = punch(file, offset, length);

    if (err != -EOPNOTSUPP || !file->block_device)
        return err;
    err = co_run_in_worker(discard_device, &job);
    return unsupported(err) ? -EOPNOTSUPP : err;
}

static int file_flush(struct node *node)
{
    struct file *file = node->state;

    return io_fdatasync(&file->io);
}

static int file_resize(struct node *node, uint64_t size, struct error *error)
{
    struct file *file = node->state;
    int err;

    if (file->block_device)
        return error_set(error, ENOTSUP, "%s is a device: its size is fixed", node_name(node));
    err = check_end(file, size, 0);
    if (err == 0) {
        do {
            err = sys->ftruncate(file->fd, size);
        } while (err == -EINTR);
    }
    if (err < 0)
        return error_set_errno(error, -err, "cannot make %s %" PRIu64 " bytes long",
                               node_name(node), size);
    node->size = size;
    node->write_generation++;
    forget_data(file);
    return 0;
}

static int file_descriptor(struct node *node)
{
    const struct file *file = node->state;

    return file->fd;
}

#define FILE_FUNCTIONS                                                                             \
    .kind = DRIVER_PROTOCOL, .state_size = sizeof(struct file), .options = file_options,           \
    .open = file_open, .close = file_close, .map = file_map, .zero = file_zero,                    \
    .discard = file_discard, .flush = file_flush, .reserve = file_reserve, .resize = file_resize,  \
    .preadv = file_preadv, .pwritev = file_pwritev, .preadv_nowait = file_preadv_nowait,           \
    .descriptor = file_descriptor

const struct driver driver_file = {.name = "file", FILE_FUNCTIONS};
const struct driver driver_host_device = {.name = "host_device", FILE_FUNCTIONS};
