/* SPDX-License-Identifier: BSD-3-Clause */
/* The seam as it is in production: each entry is the system call of its name. */
#include "base/sys.h"

#include <errno.h>
#include <linux/openat2.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* What the C library returned, with errno folded in. */
static int fold(int result)
{
    return result < 0 ? -errno : result;
}

static ssize_t fold_size(ssize_t result)
{
    return result < 0 ? -errno : result;
}

static int posix_openat(int dirfd, const char *path, int flags, mode_t mode)
{
    return fold(openat(dirfd, path, flags, mode));
}

static int posix_openat2(int dirfd, const char *path, int flags, uint64_t resolve)
{
    struct open_how how = {.flags = (uint64_t)flags, .resolve = resolve};

    return fold((int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how)));
}

static ssize_t posix_readlinkat(int dirfd, const char *path, char *buffer, size_t size)
{
    return fold_size(readlinkat(dirfd, path, buffer, size));
}

static int posix_memfd(const char *name, unsigned flags)
{
    return fold(memfd_create(name, flags));
}

/* After EINTR the descriptor is gone on Linux; a second close could hit somebody else's. */
static int posix_close(int fd)
{
    int result = fold(close(fd));

    return result == -EINTR ? 0 : result;
}

static int posix_fstat(int fd, struct stat *st)
{
    return fold(fstat(fd, st));
}

static int posix_fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
    return fold(fstatat(dirfd, path, st, flags));
}

static ssize_t posix_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags)
{
    return fold_size(preadv2(fd, iov, iovcnt, (off_t)offset, flags));
}

static ssize_t posix_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                             int flags)
{
    return fold_size(pwritev2(fd, iov, iovcnt, (off_t)offset, flags));
}

static int posix_fdatasync(int fd)
{
    return fold(fdatasync(fd));
}

static int posix_fallocate_mode(int fd, int mode, uint64_t offset, uint64_t length)
{
    return fold(fallocate(fd, mode, (off_t)offset, (off_t)length));
}

static int posix_ftruncate(int fd, uint64_t length)
{
    return fold(ftruncate(fd, (off_t)length));
}

static int64_t posix_lseek(int fd, uint64_t offset, int whence)
{
    off_t result = lseek(fd, (off_t)offset, whence);

    return result < 0 ? -errno : result;
}

static int posix_ioctl(int fd, unsigned long request, void *arg)
{
    return fold(ioctl(fd, request, arg));
}

static int posix_fcntl_lock(int fd, int cmd, struct flock *lock)
{
    return fold(fcntl(fd, cmd, lock));
}

static int posix_flock(int fd, int operation)
{
    return fold(flock(fd, operation));
}

static int posix_unlinkat(int dirfd, const char *path, int flags)
{
    return fold(unlinkat(dirfd, path, flags));
}

static int posix_socket(int domain, int type, int protocol)
{
    return fold(socket(domain, type, protocol));
}

static int posix_bind(int fd, const struct sockaddr *addr, socklen_t addrlen)
{
    return fold(bind(fd, addr, addrlen));
}

static int posix_listen(int fd, int backlog)
{
    return fold(listen(fd, backlog));
}

static int posix_connect(int fd, const struct sockaddr *addr, socklen_t addrlen)
{
    return fold(connect(fd, addr, addrlen));
}

static int posix_accept(int fd, struct sockaddr *addr, socklen_t *addrlen, int flags)
{
    return fold(accept4(fd, addr, addrlen, flags));
}

static int posix_getsockname(int fd, struct sockaddr *addr, socklen_t *addrlen)
{
    return fold(getsockname(fd, addr, addrlen));
}

static int posix_getpeername(int fd, struct sockaddr *addr, socklen_t *addrlen)
{
    return fold(getpeername(fd, addr, addrlen));
}

static int posix_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    return fold(getsockopt(fd, level, name, value, length));
}

static int posix_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    return fold(setsockopt(fd, level, name, value, length));
}

static int posix_shutdown(int fd, int how)
{
    return fold(shutdown(fd, how));
}

static ssize_t posix_recvmsg(int fd, struct msghdr *msg, int flags)
{
    return fold_size(recvmsg(fd, msg, flags));
}

static ssize_t posix_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    return fold_size(sendmsg(fd, msg, flags));
}

static ssize_t posix_sendfile(int out_fd, int in_fd, uint64_t offset, size_t length)
{
    off_t position = (off_t)offset;

    return fold_size(sendfile(out_fd, in_fd, &position, length));
}

static int64_t read_clock(clockid_t clock)
{
    struct timespec ts;

    clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t posix_monotonic_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

static int64_t posix_realtime_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

static int posix_random(void *buffer, size_t length)
{
    char *at = buffer;

    while (length > 0) {
        ssize_t n = getrandom(at, length, 0);

        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            at += n;
            length -= (size_t)n;
        }
    }
    return 0;
}

const struct sys sys_posix = {
    .openat = posix_openat,
    .openat2 = posix_openat2,
    .readlinkat = posix_readlinkat,
    .memfd = posix_memfd,
    .close = posix_close,
    .fstat = posix_fstat,
    .fstatat = posix_fstatat,
    .preadv = posix_preadv,
    .pwritev = posix_pwritev,
    .fdatasync = posix_fdatasync,
    .fallocate = posix_fallocate_mode,
    .ftruncate = posix_ftruncate,
    .lseek = posix_lseek,
    .ioctl = posix_ioctl,
    .fcntl_lock = posix_fcntl_lock,
    .flock = posix_flock,
    .unlinkat = posix_unlinkat,
    .socket = posix_socket,
    .bind = posix_bind,
    .listen = posix_listen,
    .connect = posix_connect,
    .accept = posix_accept,
    .getsockname = posix_getsockname,
    .getpeername = posix_getpeername,
    .getsockopt = posix_getsockopt,
    .setsockopt = posix_setsockopt,
    .shutdown = posix_shutdown,
    .recvmsg = posix_recvmsg,
    .sendmsg = posix_sendmsg,
    .sendfile = posix_sendfile,
    .monotonic_ns = posix_monotonic_ns,
    .realtime_ns = posix_realtime_ns,
    .random = posix_random,
};

const struct sys *sys = &sys_posix;
