/* SPDX-License-Identifier: BSD-3-Clause */
/* Socket activation: sockets that a service manager has opened for us, sd_listen_fds(3). */
#ifndef EVNBD_SYSTEMD_ACTIVATION_H
#define EVNBD_SYSTEMD_ACTIVATION_H

#include "base/error.h"

/* More descriptors than anybody passes; a larger number is a mistake. */
#define ACTIVATION_MAX 1024

struct activation {
    int first;      /* the descriptors are first, first + 1, ... */
    unsigned count; /* 0: nothing was passed */
};

/*
 * Takes what was passed to this process: LISTEN_FDS descriptors from 3 on, if LISTEN_PID is us.
 * They are open and are made close-on-exec; the variables are removed, so that no child mistakes
 * them for its own.  Returns 0, or -EINVAL (a number that is none, 0 or above ACTIVATION_MAX) or
 * -EBADF with a sentence.  To be called before the process opens descriptors of its own.
 */
int activation_take(struct activation *ret, struct error *error);

#endif
