/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The path is made absolute at once: the process leaves its directory later.  The holder removes
 * its file while it has the lock, so whoever gets a lock must look whether the path still leads to
 * the file that it locked.
 */
#include "daemon/pid_file.h"

#include "base/path.h"
#include "base/sys.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TRIES 10 /* other processes may come and go meanwhile */

static bool path_leads_to(const char *path, int fd)
{
    struct stat locked, named;
    int other = sys->openat(AT_FDCWD, path, O_PATH | O_CLOEXEC, 0);
    bool same;

    if (other < 0)
        return false;
    same = sys->fstat(fd, &locked) == 0 && sys->fstat(other, &named) == 0 &&
           locked.st_dev == named.st_dev && locked.st_ino == named.st_ino;
    sys->close(other);
    return same;
}

static int check_kind(int fd, const char *path, struct error *error)
{
    struct stat st;
    int err = sys->fstat(fd, &st);

    if (err < 0)
        return error_set_errno(error, -err, "Could not look at pid file '%s'", path);
    if (!S_ISREG(st.st_mode))
        return error_set(error, EINVAL, "Could not use pid file '%s': it is not a regular file",
                         path);
    return 0;
}

/* Returns a descriptor with the lock, or negative errno; -EAGAIN: the file was just removed. */
static int open_locked(const char *path, struct error *error)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd =
        sys->openat(AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
    int err;

    if (fd < 0)
        return error_set_errno(error, -fd, "Could not create '%s'", path);
    err = check_kind(fd, path, error);
    if (err < 0) {
        sys->close(fd);
        return err;
    }
    err = sys->fcntl_lock(fd, F_SETLK, &lock);
    if (err < 0) {
        sys->close(fd);
        if (err == -EAGAIN || err == -EACCES)
            return error_set(error, EBUSY,
                             "Could not lock pid file '%s': a running process holds it", path);
        return error_set_errno(error, -err, "Could not lock pid file '%s'", path);
    }
    if (path_leads_to(path, fd))
        return fd;
    sys->close(fd);
    return error_set(error, EAGAIN, "Could not lock pid file '%s': it keeps being replaced", path);
}

static int write_pid(struct pid_file *file, struct error *error)
{
    char text[32];
    struct iovec iov = {.iov_base = text};
    ssize_t n = sys->ftruncate(file->fd, 0);

    iov.iov_len = (size_t)snprintf(text, sizeof(text), "%d\n", (int)getpid());
    if (n == 0) {
        do
            n = sys->pwritev(file->fd, &iov, 1, 0, 0);
        while (n == -EINTR);
    }
    if (n >= 0 && (size_t)n != iov.iov_len)
        n = -ENOSPC;
    return n < 0 ? error_set_errno(error, (int)-n, "Could not write pid file '%s'", file->path) : 0;
}

int pid_file_create(struct pid_file *file, const char *path, struct error *error)
{
    int err = 0;

    *file = (struct pid_file){.path = path_absolute(path), .fd = -1};
    if (!file->path)
        return error_set_errno(error, errno, "Could not create '%s'", path);
    for (int i = 0; i < TRIES; i++) {
        file->fd = open_locked(file->path, error);
        if (file->fd != -EAGAIN)
            break;
    }
    if (file->fd < 0) {
        err = file->fd;
        free(file->path);
        file->path = NULL;
        return err;
    }
    err = write_pid(file, error);
    if (err < 0)
        pid_file_remove(file);
    return err;
}

void pid_file_remove(struct pid_file *file)
{
    if (!file->path)
        return;
    if (path_leads_to(file->path, file->fd))
        sys->unlinkat(AT_FDCWD, file->path, 0);
    sys->close(file->fd);
    free(file->path);
    *file = (struct pid_file){.fd = -1};
}
