/* SPDX-License-Identifier: BSD-3-Clause */
/* Asks the kernel about a file or device, by ioctl, by trial, and in sysfs. */
#include "blockcore/protocol/file_probe.h"

#include "base/buffer.h"
#include "base/sys.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/sysmacros.h>

const char *file_type_name(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "a regular file";
    case S_IFBLK:
        return "a block device";
    case S_IFDIR:
        return "a directory";
    case S_IFCHR:
        return "a character device";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    default:
        return "a special file";
    }
}

int file_device_size(int fd, uint64_t *ret)
{
    return sys->ioctl(fd, BLKGETSIZE64, ret);
}

bool file_device_read_only(int fd)
{
    int read_only = 0;

    return sys->ioctl(fd, BLKROGET, &read_only) == 0 && read_only;
}

uint32_t file_direct_alignment(int fd)
{
    uint8_t *buffer = buffer_get(2 * BUFFER_ALIGN);
    uint32_t found = 0;

    if (!buffer)
        return 0;
    for (uint32_t align = 512; align <= BUFFER_ALIGN && !found; align *= 2) {
        const struct iovec iov = {buffer + align, align};
        ssize_t n;

        do {
            n = sys->preadv(fd, &iov, 1, align, 0);
        } while (n == -EINTR);
        if (n >= 0)
            found = align;
    }
    buffer_put(buffer, 2 * BUFFER_ALIGN);
    return found;
}

/* Reads the first byte of a sysfs file of the device; 0 when there is none. */
static char sysfs_byte(dev_t device, const char *file)
{
    char path[128], byte = 0;
    const struct iovec iov = {&byte, 1};
    int fd;

    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(device), minor(device), file);
    fd = sys->openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    if (sys->preadv(fd, &iov, 1, 0, 0) != 1)
        byte = 0;
    sys->close(fd);
    return byte;
}

bool file_rotational(dev_t device)
{
    char byte = sysfs_byte(device, "queue/rotational");

    if (!byte) /* a partition has no queue of its own */
        byte = sysfs_byte(device, "../queue/rotational");
    return byte == '1';
}
