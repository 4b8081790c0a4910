/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading files of credentials and rules, and finding out that they have changed. */
#include "tls/files.h"

#include "base/secret.h"
#include "base/sys.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Coarser than the clock of any file system: a file that was changed so long ago and is changed
 * again gets another time. */
#define SETTLED_NS INT64_C(2000000000)

static struct tls_stamp stamp_of(const struct stat *st)
{
    return (struct tls_stamp){
        .device = st->st_dev,
        .inode = st->st_ino,
        .size = (uint64_t)st->st_size,
        .modified_ns = st->st_mtim.tv_sec * INT64_C(1000000000) + st->st_mtim.tv_nsec,
        .changed_ns = st->st_ctim.tv_sec * INT64_C(1000000000) + st->st_ctim.tv_nsec,
    };
}

/* Never waits: a fifo in the place of the file is opened, and refused as no regular file. */
static int open_file(const struct tls_file *file, struct stat *st)
{
    int fd, r;

    do {
        fd = sys->openat(AT_FDCWD, file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
    } while (fd == -EINTR);
    if (fd < 0)
        return fd;
    r = sys->fstat(fd, st);
    if (r == 0)
        return fd;
    sys->close(fd);
    return r;
}

/* Exactly `length` bytes from the start. */
static int read_all(int fd, uint8_t *data, size_t length)
{
    size_t done = 0;

    while (done < length) {
        struct iovec iov = {.iov_base = data + done, .iov_len = length - done};
        ssize_t n = sys->preadv(fd, &iov, 1, done, 0);

        if (n == -EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? (int)n : -ENODATA;
        done += (size_t)n;
    }
    return 0;
}

static int read_opened(struct tls_file *file, int fd, const struct stat *st, struct error *error)
{
    size_t length = (size_t)st->st_size;
    int r;

    if (!S_ISREG(st->st_mode))
        return error_set(error, EINVAL, "%s '%s' is not a regular file", file->label, file->path);
    if (st->st_size > TLS_FILE_BYTES_MAX)
        return error_set(error, EFBIG, "%s '%s' has more than %d bytes", file->label, file->path,
                         TLS_FILE_BYTES_MAX);
    file->data = malloc(length + 1);
    if (!file->data)
        return error_set_errno(error, ENOMEM, "Could not read %s '%s'", file->label, file->path);
    file->length = length;
    r = read_all(fd, file->data, length);
    if (r < 0) {
        tls_file_drop(file);
        return error_set_errno(error, -r, "Could not read %s '%s'", file->label, file->path);
    }
    file->data[length] = 0;
    return 0;
}

static void set_stamp(struct tls_file *file, struct tls_stamp stamp)
{
    file->stamp = stamp;
    file->settled = sys->realtime_ns() - stamp.changed_ns > SETTLED_NS;
}

int tls_file_read(struct tls_file *file, struct error *error)
{
    struct stat st;
    int fd, r;

    fd = open_file(file, &st);
    if (fd == -ENOENT)
        set_stamp(file, (struct tls_stamp){0});
    else if (fd < 0)
        tls_file_restamp(file);
    if (fd == -ENOENT && !file->needed)
        return 0;
    if (fd < 0)
        return error_set_errno(error, -fd, "Unable to access %s '%s'", file->label, file->path);
    set_stamp(file, stamp_of(&st));
    file->mode = st.st_mode;
    r = read_opened(file, fd, &st, error);
    sys->close(fd);
    return r;
}

bool tls_file_is_secret(const struct tls_file *file, struct error *error)
{
    if (!file->secret || !(file->mode & (S_IRGRP | S_IWGRP | S_IROTH | S_IWOTH)))
        return true;
    error_set(error, EACCES,
              "%s '%s' is open to other users (mode %03o); chmod 600 keeps it secret", file->label,
              file->path, file->mode & 0777U);
    return false;
}

bool tls_file_is_lack(int err)
{
    return err == -EMFILE || err == -ENFILE || err == -ENOMEM;
}

/* Takes no descriptor, of which there may be none left. False: out of memory, nobody knows. */
static bool stamp_now(const struct tls_file *file, struct tls_stamp *ret)
{
    struct stat st;
    int r = sys->fstatat(AT_FDCWD, file->path, &st, 0);

    if (tls_file_is_lack(r))
        return false;
    *ret = r < 0 ? (struct tls_stamp){0} : stamp_of(&st);
    return true;
}

bool tls_file_was_there(const struct tls_file *file)
{
    const struct tls_stamp none = {0};

    return memcmp(&file->stamp, &none, sizeof(none)) != 0;
}

bool tls_file_changed(const struct tls_file *file)
{
    struct tls_stamp now;

    return stamp_now(file, &now) && memcmp(&now, &file->stamp, sizeof(now)) != 0;
}

void tls_file_restamp(struct tls_file *file)
{
    struct tls_stamp now;

    if (stamp_now(file, &now))
        set_stamp(file, now);
}

void tls_file_drop(struct tls_file *file)
{
    secret_wipe(file->data, file->length);
    free(file->data);
    file->data = NULL;
    file->length = 0;
}
