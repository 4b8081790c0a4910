/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Going to the background.  The parent stays until the child says that it serves, or has ended, so
 * that its exit status is the truth.
 */
#ifndef EVNBD_DAEMON_DAEMONIZE_H
#define EVNBD_DAEMON_DAEMONIZE_H

#include "base/error.h"

#include <stdbool.h>

struct daemonize {
    bool forked;  /* this is the child of daemonize_fork() */
    int ready_fd; /* child: where the parent listens */
};

/*
 * Makes sure that descriptors 0, 1 and 2 are open, so that no image or socket becomes one of them.
 * A closed one becomes one that fails when used as what it is.
 */
int daemonize_standard_fds(struct error *error);

/*
 * Forks.  Child: returns 0.  Parent: returns 1 when the child is ready (exit with success), or
 * negative errno when it has ended before; `error` has text only if the child could not tell why.
 */
int daemonize_fork(struct daemonize *daemonize, struct error *error);

/*
 * In the child: leaves the session, the directory and the standard streams (stderr is kept if
 * `keep_stderr`), then tells the parent.  Does nothing when not forked.
 */
int daemonize_ready(struct daemonize *daemonize, bool keep_stderr, struct error *error);

#endif
