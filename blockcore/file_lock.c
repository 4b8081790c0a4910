/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image locks.  All that is held are read locks, so holders never block each other by holding; who
 * comes first locks its own bytes and then asks whether a write lock on the bytes that matter would
 * be refused.  Two who come at once may both fail, but never both win.
 *
 * The locks of a process that was killed last until the kernel has ended its I/O: who is refused
 * tries again for a moment.
 */
#include "blockcore/file_lock.h"

#include "base/reactor.h"
#include "base/sys.h"
#include "blockcore/node.h"

#include <errno.h>
#include <string.h>

#define LOCK_PERM_BASE 100
#define LOCK_UNSHARED_BASE 200

#define RETRIES 20
#define RETRY_NS INT64_C(10000000)

static const struct {
    unsigned perm;
    const char *name;
} permissions[] = {
    {PERM_CONSISTENT_READ, "consistent read"},
    {PERM_WRITE, "write"},
    {PERM_WRITE_UNCHANGED, "write unchanged"},
    {PERM_RESIZE, "resize"},
};

static int lock_call(int fd, int command, short type, unsigned byte, struct flock *lock)
{
    int err;

    do {
        *lock = (struct flock){
            .l_type = type,
            .l_whence = SEEK_SET,
            .l_start = byte,
            .l_len = 1,
        };
        err = sys->fcntl_lock(fd, command, lock);
    } while (err == -EINTR);
    return err;
}

static int set_locks(int fd, short type, unsigned perm, unsigned shared)
{
    struct flock lock;

    for (unsigned i = 0; i < ARRAY_SIZE(permissions); i++) {
        int err = 0;

        if (perm & permissions[i].perm)
            err = lock_call(fd, F_OFD_SETLK, type, LOCK_PERM_BASE + i, &lock);
        if (err == 0 && !(shared & permissions[i].perm))
            err = lock_call(fd, F_OFD_SETLK, type, LOCK_UNSHARED_BASE + i, &lock);
        if (err < 0)
            return err;
    }
    return 0;
}

/* 0: nobody holds the byte; -EAGAIN: somebody does. */
static int test_byte(int fd, unsigned byte)
{
    struct flock lock;
    int err = lock_call(fd, F_OFD_GETLK, F_WRLCK, byte, &lock);

    if (err < 0)
        return err;
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

static int test_locks(int fd, unsigned perm, unsigned shared, const char *name, struct error *error)
{
    for (unsigned i = 0; i < ARRAY_SIZE(permissions); i++) {
        const char *mode = "";
        int err = 0;

        if (perm & permissions[i].perm)
            err = test_byte(fd, LOCK_UNSHARED_BASE + i);
        if (err == 0 && !(shared & permissions[i].perm)) {
            err = test_byte(fd, LOCK_PERM_BASE + i);
            mode = "shared ";
        }
        if (err == -EAGAIN)
            return error_set(error, EAGAIN,
                             "Failed to get %s\"%s\" lock: another process is using the image '%s'",
                             mode, permissions[i].name, name);
        if (err < 0)
            return error_set_errno(error, -err, "cannot test the image locks of '%s'", name);
    }
    return 0;
}

static int try_lock(int fd, unsigned perm, unsigned shared, const char *name, struct error *error)
{
    int err = set_locks(fd, F_RDLCK, perm, shared);

    if (err < 0)
        error_set_errno(error, -err,
                        "cannot lock the image '%s'; locking=off in the options of its file node "
                        "opens it without locks",
                        name);
    else
        err = test_locks(fd, perm, shared, name, error);
    if (err < 0)
        set_locks(fd, F_UNLCK, perm, shared);
    return err;
}

int file_lock(int fd, unsigned perm, unsigned shared, const char *name, struct error *error)
{
    int err = try_lock(fd, perm, shared, name, error);

    /* In between nothing is held, or two who come at once would fail both. */
    for (unsigned i = 0; i < RETRIES && err == -EAGAIN; i++) {
        co_sleep(RETRY_NS);
        err = try_lock(fd, perm, shared, name, error);
    }
    return err;
}
