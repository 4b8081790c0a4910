/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading a small file: room for the most that is taken, filled until the file ends. */
#include "base/file_read.h"

#include "base/secret.h"
#include "base/sys.h"

#include <errno.h>
#include <stdlib.h>

#define CURRENT_POSITION UINT64_MAX /* pipes have no other */

/* Bytes read, `room` if there are at least so many, or negative errno. */
static ssize_t fill(int fd, uint8_t *data, size_t room)
{
    size_t used = 0;

    while (used < room) {
        const struct iovec iov = {data + used, room - used};
        ssize_t n = sys->preadv(fd, &iov, 1, CURRENT_POSITION, 0);

        if (n == -EINTR)
            continue;
        if (n < 0)
            return n;
        if (n == 0)
            break;
        used += (size_t)n;
    }
    return (ssize_t)used;
}

int file_read(const char *path, size_t max, uint8_t **ret, size_t *ret_length, struct error *error)
{
    int fd = sys->openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NOCTTY, 0);
    uint8_t *data;
    ssize_t n;

    if (fd < 0)
        return error_set_errno(error, -fd, "Could not open '%s'", path);
    data = malloc(max + 2);
    n = data ? fill(fd, data, max + 1) : -ENOMEM;
    sys->close(fd);
    if (n >= 0 && (size_t)n <= max) {
        data[n] = 0;
        *ret = data;
        *ret_length = (size_t)n;
        return 0;
    }
    secret_wipe(data, n > 0 ? (size_t)n : 0);
    free(data);
    if (n < 0)
        return error_set_errno(error, (int)-n, "Could not read '%s'", path);
    return error_set(error, EFBIG, "'%s' has more than %zu bytes", path, max);
}
