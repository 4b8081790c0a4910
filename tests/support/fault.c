/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The fault injector.  One plan at a time; calls are counted atomically because workers call too.
 */
#include "tests/support/fault.h"

#include "base/checked.h"
#include "base/iov.h"
#include "base/sys.h"
#include "tests/support/support.h"

#include <limits.h>
#include <stdatomic.h>

static struct fault {
    const struct sys *inner;
    struct sys table;
    struct fault_plan plan;
    atomic_uint count;
    atomic_bool fired;
} fault;

/* The vectors of a cut transfer; not on the stack, which may be a coroutine's. */
static _Thread_local struct iovec cut[IOV_MAX];

void fault_arm(const struct fault_plan *plan)
{
    fault.plan = *plan;
    atomic_store(&fault.count, 0);
    atomic_store(&fault.fired, false);
}

unsigned fault_count(void)
{
    return atomic_load(&fault.count);
}

bool fault_fired(void)
{
    return atomic_load(&fault.fired);
}

/* Counts the call. Returns whether the plan hits it. */
static bool hit(enum fault_call call)
{
    const struct fault_plan *plan = &fault.plan;
    unsigned n;

    if (!(plan->calls & call))
        return false;
    n = atomic_fetch_add(&fault.count, 1) + 1;
    return plan->nth != 0 && (n == plan->nth || (plan->sticky && n > plan->nth));
}

/* The error that the call ends with, or 0: it goes through. */
static int fail(enum fault_call call)
{
    if (!hit(call) || fault.plan.error == 0)
        return 0;
    atomic_store(&fault.fired, true);
    return -fault.plan.error;
}

/*
 * As fail, for transfers of `length` bytes; *ret_length is what may be moved.  A transfer of one
 * byte cannot be cut.
 */
static int fail_or_cut(enum fault_call call, size_t length, size_t *ret_length)
{
    size_t most;

    *ret_length = length;
    if (!hit(call))
        return 0;
    if (fault.plan.error != 0) {
        atomic_store(&fault.fired, true);
        return -fault.plan.error;
    }
    most = fault.plan.short_to ? fault.plan.short_to : max_u64(length / 2, 1);
    if (most < length) {
        atomic_store(&fault.fired, true);
        *ret_length = most;
    }
    return 0;
}

#define FAULT_DEFINE(call, name, parameters, arguments)                                            \
    static int fault_##name parameters                                                             \
    {                                                                                              \
        int r = fail(call);                                                                        \
        return r ? r : fault.inner->name arguments;                                                \
    }
FAULT_DEFINE(FAULT_OPENAT, openat, (int dirfd, const char *path, int flags, mode_t mode),
             (dirfd, path, flags, mode))
FAULT_DEFINE(FAULT_FSTAT, fstat, (int fd, struct stat *st), (fd, st))
FAULT_DEFINE(FAULT_FSTATAT, fstatat, (int dirfd, const char *path, struct stat *st, int flags),
             (dirfd, path, st, flags))
FAULT_DEFINE(FAULT_FDATASYNC, fdatasync, (int fd), (fd))
FAULT_DEFINE(FAULT_FALLOCATE, fallocate, (int fd, int mode, uint64_t offset, uint64_t length),
             (fd, mode, offset, length))
FAULT_DEFINE(FAULT_FTRUNCATE, ftruncate, (int fd, uint64_t length), (fd, length))
FAULT_DEFINE(FAULT_IOCTL, ioctl, (int fd, unsigned long request, void *arg), (fd, request, arg))
FAULT_DEFINE(FAULT_LOCK, fcntl_lock, (int fd, int cmd, struct flock *lock), (fd, cmd, lock))
FAULT_DEFINE(FAULT_UNLINKAT, unlinkat, (int dirfd, const char *path, int flags),
             (dirfd, path, flags))
FAULT_DEFINE(FAULT_SOCKET, socket, (int domain, int type, int protocol), (domain, type, protocol))
FAULT_DEFINE(FAULT_BIND, bind, (int fd, const struct sockaddr *addr, socklen_t addrlen),
             (fd, addr, addrlen))
FAULT_DEFINE(FAULT_LISTEN, listen, (int fd, int backlog), (fd, backlog))
FAULT_DEFINE(FAULT_CONNECT, connect, (int fd, const struct sockaddr *addr, socklen_t addrlen),
             (fd, addr, addrlen))
FAULT_DEFINE(FAULT_ACCEPT, accept, (int fd, struct sockaddr *addr, socklen_t *addrlen, int flags),
             (fd, addr, addrlen, flags))
FAULT_DEFINE(FAULT_SETSOCKOPT, setsockopt,
             (int fd, int level, int name, const void *value, socklen_t length),
             (fd, level, name, value, length))
FAULT_DEFINE(FAULT_SHUTDOWN, shutdown, (int fd, int how), (fd, how))
FAULT_DEFINE(FAULT_RANDOM, random, (void *buffer, size_t length), (buffer, length))
#undef FAULT_DEFINE

static int64_t fault_lseek(int fd, uint64_t offset, int whence)
{
    int r = fail(FAULT_LSEEK);

    return r ? r : fault.inner->lseek(fd, offset, whence);
}

typedef ssize_t transfer_fn(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                            int flags);

static ssize_t transfer(enum fault_call call, transfer_fn *inner, int fd, const struct iovec *iov,
                        int iovcnt, uint64_t offset, int flags)
{
    size_t length = iov_length(iov, iovcnt), allowed;
    int r = fail_or_cut(call, length, &allowed);

    if (r < 0)
        return r;
    if (allowed == length)
        return inner(fd, iov, iovcnt, offset, flags);
    r = iov_slice(cut, IOV_MAX, iov, iovcnt, 0, allowed);
    return r < 0 ? r : inner(fd, cut, r, offset, flags);
}

static ssize_t fault_preadv(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags)
{
    return transfer(FAULT_PREADV, fault.inner->preadv, fd, iov, iovcnt, offset, flags);
}

static ssize_t fault_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                             int flags)
{
    return transfer(FAULT_PWRITEV, fault.inner->pwritev, fd, iov, iovcnt, offset, flags);
}

/* Replaces the vectors of *msg by the first `allowed` bytes of them. */
static int cut_message(struct msghdr *msg, size_t allowed)
{
    int n = iov_slice(cut, IOV_MAX, msg->msg_iov, (int)msg->msg_iovlen, 0, allowed);

    if (n < 0)
        return n;
    msg->msg_iov = cut;
    msg->msg_iovlen = (size_t)n;
    return 0;
}

static ssize_t fault_recvmsg(int fd, struct msghdr *msg, int flags)
{
    struct iovec *iov = msg->msg_iov;
    size_t length = iov_length(iov, (int)msg->msg_iovlen), iovlen = msg->msg_iovlen, allowed;
    ssize_t n = fail_or_cut(FAULT_RECVMSG, length, &allowed);

    if (n == 0 && allowed < length)
        n = cut_message(msg, allowed);
    if (n == 0)
        n = fault.inner->recvmsg(fd, msg, flags);
    msg->msg_iov = iov;
    msg->msg_iovlen = iovlen;
    return n;
}

static ssize_t fault_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    struct msghdr copy = *msg;
    size_t length = iov_length(msg->msg_iov, (int)msg->msg_iovlen), allowed;
    int r = fail_or_cut(FAULT_SENDMSG, length, &allowed);

    if (r == 0 && allowed < length)
        r = cut_message(&copy, allowed);
    return r < 0 ? r : fault.inner->sendmsg(fd, &copy, flags);
}

static ssize_t fault_sendfile(int out_fd, int in_fd, uint64_t offset, size_t length)
{
    size_t allowed;
    int r = fail_or_cut(FAULT_SENDFILE, length, &allowed);

    return r < 0 ? r : fault.inner->sendfile(out_fd, in_fd, offset, allowed);
}

void fault_install(void)
{
    if (fault.inner)
        test_die("fault_install: installed already");
    fault.inner = sys;
    fault.table = *sys;
    fault.table.openat = fault_openat;
    fault.table.fstat = fault_fstat;
    fault.table.fstatat = fault_fstatat;
    fault.table.preadv = fault_preadv;
    fault.table.pwritev = fault_pwritev;
    fault.table.fdatasync = fault_fdatasync;
    fault.table.fallocate = fault_fallocate;
    fault.table.ftruncate = fault_ftruncate;
    fault.table.lseek = fault_lseek;
    fault.table.ioctl = fault_ioctl;
    fault.table.fcntl_lock = fault_fcntl_lock;
    fault.table.unlinkat = fault_unlinkat;
    fault.table.socket = fault_socket;
    fault.table.bind = fault_bind;
    fault.table.listen = fault_listen;
    fault.table.connect = fault_connect;
    fault.table.accept = fault_accept;
    fault.table.setsockopt = fault_setsockopt;
    fault.table.shutdown = fault_shutdown;
    fault.table.recvmsg = fault_recvmsg;
    fault.table.sendmsg = fault_sendmsg;
    fault.table.sendfile = fault_sendfile;
    fault.table.random = fault_random;
    fault_arm(&(struct fault_plan){.calls = 0});
    sys = &fault.table;
}

void fault_remove(void)
{
    if (sys != &fault.table)
        test_die("fault_remove: another table stands above");
    sys = fault.inner;
    fault.inner = NULL;
}
