/* SPDX-License-Identifier: BSD-3-Clause */
/* Socket activation: the environment that a service manager sets up, sd_listen_fds(3). */
#include "systemd/activation.h"

#include "base/size.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_DESCRIPTOR 3

static int take_descriptor(int fd, struct error *error)
{
    int flags = fcntl(fd, F_GETFD);

    if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) < 0)
        return error_set_errno(error, errno,
                               "Socket activation failed: invalid file descriptor fd = %d", fd);
    return 0;
}

/* Whether the variables are meant for this process and not for one that started it. */
static bool meant_for_us(void)
{
    const char *pid = getenv("LISTEN_PID");
    uint64_t number;

    return pid && number_parse(pid, INT32_MAX, &number) == 0 && number == (uint64_t)getpid();
}

static int take(const char *fds, struct activation *ret, struct error *error)
{
    uint64_t count;

    if (number_parse(fds, ACTIVATION_MAX, &count) < 0 || count == 0)
        return error_set(error, EINVAL,
                         "Socket activation failed: LISTEN_FDS is '%s'; the number of passed "
                         "sockets, 1 to %d, is needed",
                         fds, ACTIVATION_MAX);
    for (int i = 0; i < (int)count; i++) {
        int err = take_descriptor(FIRST_DESCRIPTOR + i, error);

        if (err < 0)
            return err;
    }
    *ret = (struct activation){FIRST_DESCRIPTOR, (unsigned)count};
    return 0;
}

int activation_take(struct activation *ret, struct error *error)
{
    const char *fds = getenv("LISTEN_FDS");
    int err = 0;

    *ret = (struct activation){0};
    if (fds && meant_for_us())
        err = take(fds, ret, error);
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return err;
}
