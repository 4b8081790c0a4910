/* SPDX-License-Identifier: BSD-3-Clause */
/* Asks the kernel about a file or device, by ioctl and in sysfs. */
#include "blockcore/protocol/file_probe.h"

#include "base/checked.h"
#include "base/size.h"
#include "base/sys.h"

#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

/* Where nothing is known of the disk below: what every disk takes. */
#define DIRECT_ALIGNMENT_USUAL 4096

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

/* Reads a sysfs file of the device, or of the disk it is a partition of. False: there is none. */
static bool sysfs_read(dev_t device, const char *file, char *text, size_t size)
{
    static const char *const places[] = {"", "../"}; /* a partition has no queue of its own */

    for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
        const struct iovec iov = {text, size - 1};
        char path[128];
        ssize_t n;
        int fd;

        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s%s", major(device), minor(device),
                 places[i], file);
        fd = sys->openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
        if (fd < 0)
            continue;
        n = sys->preadv(fd, &iov, 1, 0, 0);
        sys->close(fd);
        if (n <= 0)
            continue;
        text[n] = 0;
        text[strcspn(text, "\n")] = 0;
        return true;
    }
    return false;
}

uint32_t file_direct_alignment(dev_t device)
{
    char text[32];
    uint64_t block;

    /* A block too large costs a read-modify-write here and there, one too small fails. */
    if (!sysfs_read(device, "queue/logical_block_size", text, sizeof(text)) ||
        number_parse(text, 65536, &block) < 0 || !is_power_of_two(block))
        return DIRECT_ALIGNMENT_USUAL;
    return (uint32_t)max_u64(block, 512);
}

bool file_rotational(dev_t device)
{
    char text[8];

    return sysfs_read(device, "queue/rotational", text, sizeof(text)) && text[0] == '1';
}
