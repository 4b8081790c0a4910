/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The simulated disk.  A file has two contents: what readers see, and what is on the platter; and
 * the list of changes between them.  fdatasync applies the list to the platter; a power cut applies
 * what chance leaves of it, and readers then see the platter.
 *
 * Descriptors are numbers far above those of the kernel.  One lock is held in every call, as
 * workers may call too.
 */
#include "tests/support/sim_disk.h"

#include "base/iov.h"
#include "base/sys.h"
#include "tests/support/sim_engine.h"
#include "tests/support/sim_file.h"
#include "tests/support/sim_locks.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "/sim/"
#define FD_BASE (1 << 20)
#define FDS_MAX 1024
#define DEVICE 0x51d
#define DIRECT_ALIGN 512
#define SENDFILE_MAX 65536

struct sim_fd {
    struct sim_file *file; /* NULL: free */
    int flags;
    unsigned boot;
};

static struct sim_disk {
    const struct sys *inner;
    struct sys table;
    struct sim_disk_config config;
    struct prng prng;
    pthread_mutex_t lock;
    struct list files;
    struct sim_fd fds[FDS_MAX];
    unsigned fds_open;
    unsigned boot; /* counts power cuts */
    bool off;
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool is_sim_path(const char *path)
{
    return strncmp(path, PREFIX, strlen(PREFIX)) == 0;
}

static bool is_sim_fd(int fd)
{
    return fd >= FD_BASE;
}

/* Takes the lock and finds what is open as `fd`. On failure the lock is not held. */
static int enter(int fd, struct sim_fd **ret)
{
    struct sim_fd *slot;

    pthread_mutex_lock(&disk.lock);
    slot = fd < FD_BASE + FDS_MAX ? &disk.fds[fd - FD_BASE] : NULL;
    if (slot && slot->file && !disk.off && slot->boot == disk.boot) {
        *ret = slot;
        return 0;
    }
    pthread_mutex_unlock(&disk.lock);
    return slot && slot->file ? -EIO : -EBADF;
}

/* As enter, for calls that a signal may interrupt. */
static int enter_slow(int fd, struct sim_fd **ret)
{
    int r = enter(fd, ret);

    if (r == 0 && prng_percent(&disk.prng, disk.config.eintr_percent)) {
        pthread_mutex_unlock(&disk.lock);
        return -EINTR;
    }
    return r;
}

static int64_t leave(int64_t result)
{
    pthread_mutex_unlock(&disk.lock);
    return result;
}

static bool writable(const struct sim_fd *slot)
{
    return (slot->flags & O_ACCMODE) != O_RDONLY;
}

/* Blocks that may still be allocated. */
static uint64_t blocks_free(void)
{
    uint64_t used = 0, all = disk.config.capacity / CONTENT_BLOCK;

    if (disk.config.capacity == 0)
        return UINT64_MAX;
    list_for_each(node, &disk.files) used += list_entry(node, struct sim_file, link)->seen.blocks;
    return used < all ? all - used : 0;
}

static int open_file(const char *path, int flags)
{
    struct sim_file *file = sim_file_find(&disk.files, path);
    int i = 0;

    if (disk.off)
        return -EIO;
    if (!file && !(flags & O_CREAT))
        return -ENOENT;
    if (file && (flags & O_CREAT) && (flags & O_EXCL))
        return -EEXIST;
    if (flags & O_DIRECTORY)
        return -ENOTDIR;
    while (i < FDS_MAX && disk.fds[i].file)
        i++;
    if (i == FDS_MAX)
        return -EMFILE;
    if (!file)
        file = sim_file_new(&disk.files, path);
    else if (flags & O_TRUNC)
        sim_file_change(file, change_size(0));
    disk.fds[i] = (struct sim_fd){.file = file, .flags = flags, .boot = disk.boot};
    disk.fds_open++;
    file->opens++;
    return FD_BASE + i;
}

static int sim_openat(int dirfd, const char *path, int flags, mode_t mode)
{
    if (!is_sim_path(path))
        return disk.inner->openat(dirfd, path, flags, mode);
    pthread_mutex_lock(&disk.lock);
    return (int)leave(open_file(path, flags));
}

static int sim_close(int fd)
{
    struct sim_fd *slot = is_sim_fd(fd) ? &disk.fds[fd - FD_BASE] : NULL;
    struct sim_file *file;

    if (!slot)
        return disk.inner->close(fd);
    pthread_mutex_lock(&disk.lock);
    file = slot->file;
    if (!file)
        test_die("sim_disk: descriptor %d is closed twice", fd);
    sim_locks_drop(&file->locks, fd);
    slot->file = NULL;
    disk.fds_open--;
    if (--file->opens == 0 && !file->path)
        sim_file_free(file);
    return (int)leave(0);
}

static int sim_fstat(int fd, struct stat *st)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->fstat(fd, st);
    r = enter(fd, &slot);
    if (r < 0)
        return r;
    *st = (struct stat){.st_dev = DEVICE,
                        .st_ino = slot->file->ino,
                        .st_mode = S_IFREG | 0644,
                        .st_nlink = slot->file->path ? 1 : 0,
                        .st_size = (off_t)slot->file->seen.size,
                        .st_blksize = CONTENT_BLOCK,
                        .st_blocks = (blkcnt_t)(slot->file->seen.blocks * (CONTENT_BLOCK / 512))};
    return (int)leave(0);
}

/* O_DIRECT: the offset, every address and every length must be aligned. */
static bool direct_fits(const struct sim_fd *slot, const struct iovec *iov, int iovcnt,
                        uint64_t offset)
{
    if (!(slot->flags & O_DIRECT))
        return true;
    for (int i = 0; i < iovcnt; i++)
        offset |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    return is_aligned(offset, DIRECT_ALIGN);
}

/*
 * How much of a transfer is done in this call: all, less by chance, or -EAGAIN.  What is cut stays
 * aligned for O_DIRECT.
 */
static int64_t transfer_length(const struct sim_fd *slot, uint64_t length, int flags)
{
    unsigned cut_percent = disk.config.short_percent;

    if (length == 0 || flags & ~RWF_NOWAIT)
        return length == 0 ? 0 : -EOPNOTSUPP;
    if (flags & RWF_NOWAIT && prng_percent(&disk.prng, disk.config.uncached_percent)) {
        if (prng_percent(&disk.prng, 50))
            return -EAGAIN;
        cut_percent = 100;
    }
    if (!prng_percent(&disk.prng, cut_percent))
        return (int64_t)length;
    if (slot->flags & O_DIRECT)
        return (int64_t)(DIRECT_ALIGN * (1 + prng_below(&disk.prng, length / DIRECT_ALIGN)));
    return (int64_t)(1 + prng_below(&disk.prng, length));
}

static int64_t read_file(const struct sim_fd *slot, const struct iovec *iov, int iovcnt,
                         uint64_t offset, int flags)
{
    const struct content *seen = &slot->file->seen;
    uint64_t left = offset < seen->size ? seen->size - offset : 0;
    int64_t n;

    if (!direct_fits(slot, iov, iovcnt, offset) || offset > OFFSET_MAX)
        return -EINVAL;
    if ((slot->flags & O_ACCMODE) == O_WRONLY)
        return -EBADF;
    n = transfer_length(slot, iov_length(iov, iovcnt), flags);
    if (n > 0) {
        n = (int64_t)min_u64((uint64_t)n, left);
        iov_from_buffer(iov, iovcnt, 0, seen->data + (n ? offset : 0), (size_t)n);
    }
    return n;
}

static ssize_t sim_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->preadv(fd, iov, iovcnt, offset, flags);
    r = enter_slow(fd, &slot);
    return r < 0 ? r : leave(read_file(slot, iov, iovcnt, offset, flags));
}

/* The change shortened to what the disk has room for. */
static int64_t fit_write(const struct content *seen, struct change *change)
{
    uint64_t room = blocks_free();

    while (change->length > 0 && content_blocks_needed(seen, change) > room) {
        uint64_t end = align_down(change->offset + change->length - 1, CONTENT_BLOCK);

        change->length = end > change->offset ? end - change->offset : 0;
    }
    return change->length > 0 ? (int64_t)change->length : -ENOSPC;
}

static int64_t write_file(const struct sim_fd *slot, const struct iovec *iov, int iovcnt,
                          uint64_t offset, int flags)
{
    struct change *change;
    int64_t n;

    if (!writable(slot))
        return -EBADF;
    if (!direct_fits(slot, iov, iovcnt, offset) || offset > OFFSET_MAX)
        return -EINVAL;
    n = transfer_length(slot, iov_length(iov, iovcnt), flags);
    if (n <= 0)
        return n;
    if (!range_within(offset, (uint64_t)n, CONTENT_MAX))
        return -EFBIG;
    change = change_write(iov, iovcnt, offset, (uint64_t)n);
    n = fit_write(&slot->file->seen, change);
    if (n > 0)
        sim_file_change(slot->file, change);
    else
        free(change);
    return n;
}

static ssize_t sim_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->pwritev(fd, iov, iovcnt, offset, flags);
    r = enter_slow(fd, &slot);
    return r < 0 ? r : leave(write_file(slot, iov, iovcnt, offset, flags));
}

static int sim_fdatasync(int fd)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->fdatasync(fd);
    r = enter_slow(fd, &slot);
    if (r < 0)
        return r;
    sim_file_sync(slot->file);
    return (int)leave(0);
}

static int fallocate_file(const struct sim_fd *slot, int mode, uint64_t offset, uint64_t length)
{
    struct change *change;

    if (!writable(slot))
        return -EBADF;
    if (length == 0 || offset > OFFSET_MAX || length > OFFSET_MAX)
        return -EINVAL;
    if (!range_within(offset, length, CONTENT_MAX))
        return -EFBIG;
    if (mode == FALLOC_FL_PUNCH_HOLE || !(change = change_fallocate(mode, offset, length)))
        return -EOPNOTSUPP; /* a hole is punched with KEEP_SIZE only */
    if (content_blocks_needed(&slot->file->seen, change) > blocks_free()) {
        free(change);
        return -ENOSPC;
    }
    sim_file_change(slot->file, change);
    return 0;
}

static int sim_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->fallocate(fd, mode, offset, length);
    r = enter_slow(fd, &slot);
    return r < 0 ? r : (int)leave(fallocate_file(slot, mode, offset, length));
}

static int sim_ftruncate(int fd, uint64_t length)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->ftruncate(fd, length);
    r = enter_slow(fd, &slot);
    if (r < 0)
        return r;
    if (!writable(slot) || length > CONTENT_MAX)
        return (int)leave(writable(slot) ? -EFBIG : -EINVAL);
    sim_file_change(slot->file, change_size(length));
    return (int)leave(0);
}

static int64_t seek_file(const struct sim_fd *slot, uint64_t offset, int whence)
{
    const struct content *seen = &slot->file->seen;
    uint64_t found;

    if (whence == SEEK_END)
        return (int64_t)(seen->size + offset);
    if (whence != SEEK_DATA && whence != SEEK_HOLE)
        return -EINVAL;
    if (offset >= seen->size)
        return -ENXIO;
    found = content_seek(seen, offset, whence == SEEK_DATA);
    return whence == SEEK_DATA && found == seen->size ? -ENXIO : (int64_t)found;
}

static int64_t sim_lseek(int fd, uint64_t offset, int whence)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->lseek(fd, offset, whence);
    r = enter(fd, &slot);
    return r < 0 ? r : leave(seek_file(slot, offset, whence));
}

static int sim_ioctl(int fd, unsigned long request, void *arg)
{
    return is_sim_fd(fd) ? -ENOTTY : disk.inner->ioctl(fd, request, arg);
}

static int lock_file(const struct sim_fd *slot, int fd, int cmd, struct flock *lock)
{
    if (cmd == F_OFD_GETLK)
        return sim_locks_get(&slot->file->locks, fd, lock);
    if (cmd != F_OFD_SETLK)
        return -EINVAL;
    if (lock->l_type == F_WRLCK && !writable(slot))
        return -EBADF;
    return sim_locks_set(&slot->file->locks, fd, lock);
}

static int sim_fcntl_lock(int fd, int cmd, struct flock *lock)
{
    struct sim_fd *slot;
    int r;

    if (!is_sim_fd(fd))
        return disk.inner->fcntl_lock(fd, cmd, lock);
    r = enter(fd, &slot);
    return r < 0 ? r : (int)leave(lock_file(slot, fd, cmd, lock));
}

static int unlink_file(const char *path)
{
    struct sim_file *file = disk.off ? NULL : sim_file_find(&disk.files, path);

    if (!file)
        return disk.off ? -EIO : -ENOENT;
    sim_file_unlink(file);
    return 0;
}

static int sim_unlinkat(int dirfd, const char *path, int flags)
{
    if (!is_sim_path(path))
        return disk.inner->unlinkat(dirfd, path, flags);
    pthread_mutex_lock(&disk.lock);
    return (int)leave(unlink_file(path));
}

static ssize_t sim_sendfile(int out_fd, int in_fd, uint64_t offset, size_t length)
{
    static uint8_t buffer[SENDFILE_MAX];
    struct iovec iov = {.iov_base = buffer, .iov_len = min_u64(length, SENDFILE_MAX)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (!is_sim_fd(in_fd))
        return disk.inner->sendfile(out_fd, in_fd, offset, length);
    n = sim_preadv(in_fd, &iov, 1, offset, 0);
    if (n <= 0)
        return n;
    iov.iov_len = (size_t)n;
    return disk.inner->sendmsg(out_fd, &msg, MSG_NOSIGNAL);
}

void sim_disk_install(const struct sim_disk_config *config)
{
    if (disk.inner)
        test_die("sim_disk_install: installed already");
    disk.inner = sys;
    disk.config = *config;
    disk.prng = prng_of(config->seed);
    sim_engine_seed(prng_next(&disk.prng));
    list_init(&disk.files);
    disk.table = *sys;
    disk.table.openat = sim_openat;
    disk.table.close = sim_close;
    disk.table.fstat = sim_fstat;
    disk.table.preadv = sim_preadv;
    disk.table.pwritev = sim_pwritev;
    disk.table.fdatasync = sim_fdatasync;
    disk.table.fallocate = sim_fallocate;
    disk.table.ftruncate = sim_ftruncate;
    disk.table.lseek = sim_lseek;
    disk.table.ioctl = sim_ioctl;
    disk.table.fcntl_lock = sim_fcntl_lock;
    disk.table.unlinkat = sim_unlinkat;
    disk.table.sendfile = sim_sendfile;
    sys = &disk.table;
}

void sim_disk_remove(void)
{
    if (sys != &disk.table)
        test_die("sim_disk_remove: another table stands above");
    if (disk.fds_open > 0)
        test_die("sim_disk_remove: %u descriptors are open", disk.fds_open);
    list_for_each_safe(node, next, &disk.files)
        sim_file_free(list_entry(node, struct sim_file, link));
    sys = disk.inner;
    disk.inner = NULL;
    disk.off = false;
}

void sim_disk_create(const char *path, const void *data, uint64_t size)
{
    struct sim_file *file = sim_file_find(&disk.files, path);
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};

    if (!is_sim_path(path) || size > CONTENT_MAX)
        test_die("sim_disk_create: \"%s\" is not below %s, or too large", path, PREFIX);
    if (!file)
        file = sim_file_new(&disk.files, path);
    sim_file_change(file, change_size(0));
    if (data)
        sim_file_change(file, change_write(&iov, 1, 0, size));
    else
        sim_file_change(file, change_size(size));
    sim_file_sync(file);
}

uint8_t *sim_disk_content(const char *path, size_t *ret_size)
{
    struct sim_file *file = sim_file_find(&disk.files, path);
    uint8_t *copy = file ? malloc(file->seen.size + 1) : NULL;

    if (!copy)
        test_die("sim_disk_content: no file \"%s\", or no memory", path);
    memcpy(copy, file->seen.data, file->seen.size);
    *ret_size = file->seen.size;
    return copy;
}

void sim_disk_restore(const char *path, const struct content *content)
{
    struct sim_file *file = sim_file_find(&disk.files, path);

    if (!file)
        file = sim_file_new(&disk.files, path);
    changes_free(&file->changes);
    content_copy(&file->seen, content);
    content_copy(&file->durable, content);
}

void sim_disk_copy(const char *path, struct content *ret)
{
    struct sim_file *file = sim_file_find(&disk.files, path);

    if (!file)
        test_die("sim_disk_copy: no file \"%s\"", path);
    content_copy(ret, &file->seen);
}

/* A write that was on its way may have reached the platter too. */
static void add_pending(const struct io_op *op)
{
    uint64_t length = op->kind == IO_WRITE ? iov_length(op->iov, op->iovcnt) : 0;
    struct sim_fd *slot = is_sim_fd(op->fd) ? &disk.fds[op->fd - FD_BASE] : NULL;

    if (slot && slot->file && length > 0 && range_within(op->offset, length, CONTENT_MAX))
        list_append(&slot->file->changes,
                    &change_write(op->iov, op->iovcnt, op->offset, length)->link);
}

void sim_disk_power_cut(uint64_t seed)
{
    struct prng prng = prng_of(seed);

    pthread_mutex_lock(&disk.lock);
    if (!disk.off)
        sim_engine_visit(add_pending);
    disk.off = true;
    disk.boot++;
    list_for_each(node, &disk.files)
        sim_file_power_cut(list_entry(node, struct sim_file, link), &prng);
    pthread_mutex_unlock(&disk.lock);
}

void sim_disk_power_on(void)
{
    disk.off = false;
}

unsigned sim_disk_open_count(void)
{
    return disk.fds_open;
}
