/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The seam: every call that touches files, sockets, clocks and randomness goes through this table,
 * so that tests can put fault injection, a recorder or a simulated machine behind it.
 *
 * All entries return a negative errno instead of setting errno.  They may be called from worker
 * threads.  EINTR is retried by the callers that can (see base/io.h), so that an injector may
 * return it anywhere.
 */
#ifndef EVNBD_BASE_SYS_H
#define EVNBD_BASE_SYS_H

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

struct sys {
    /* Files. `flags` of preadv and pwritev are RWF_*. */
    int (*openat)(int dirfd, const char *path, int flags, mode_t mode);
    /* RESOLVE_* in `resolve`. */
    int (*openat2)(int dirfd, const char *path, int flags, uint64_t resolve);
    ssize_t (*readlinkat)(int dirfd, const char *path, char *buffer, size_t size);
    int (*memfd)(const char *name, unsigned flags); /* memfd_create */
    int (*close)(int fd);
    int (*fstat)(int fd, struct stat *st);
    int (*fstatat)(int dirfd, const char *path, struct stat *st, int flags);
    ssize_t (*preadv)(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags);
    ssize_t (*pwritev)(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags);
    int (*fdatasync)(int fd);
    int (*fallocate)(int fd, int mode, uint64_t offset, uint64_t length);
    int (*ftruncate)(int fd, uint64_t length);
    int64_t (*lseek)(int fd, uint64_t offset, int whence);
    int (*ioctl)(int fd, unsigned long request, void *arg);
    int (*fcntl_lock)(int fd, int cmd, struct flock *lock);
    int (*flock)(int fd, int operation);
    int (*unlinkat)(int dirfd, const char *path, int flags);

    /* Sockets. */
    int (*socket)(int domain, int type, int protocol);
    int (*bind)(int fd, const struct sockaddr *addr, socklen_t addrlen);
    int (*listen)(int fd, int backlog);
    int (*connect)(int fd, const struct sockaddr *addr, socklen_t addrlen);
    int (*accept)(int fd, struct sockaddr *addr, socklen_t *addrlen, int flags);
    int (*getsockname)(int fd, struct sockaddr *addr, socklen_t *addrlen);
    int (*getpeername)(int fd, struct sockaddr *addr, socklen_t *addrlen);
    int (*getsockopt)(int fd, int level, int name, void *value, socklen_t *length);
    int (*setsockopt)(int fd, int level, int name, const void *value, socklen_t length);
    int (*shutdown)(int fd, int how);
    ssize_t (*recvmsg)(int fd, struct msghdr *msg, int flags);
    ssize_t (*sendmsg)(int fd, const struct msghdr *msg, int flags);
    ssize_t (*sendfile)(int out_fd, int in_fd, uint64_t offset, size_t length);

    /* Clocks (nanoseconds) and randomness. */
    int64_t (*monotonic_ns)(void);
    int64_t (*realtime_ns)(void);
    int (*random)(void *buffer, size_t length);
};

extern const struct sys sys_posix;

/* The table in use: &sys_posix unless a test put another one there before anything was opened. */
extern const struct sys *sys;

#endif
