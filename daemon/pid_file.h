/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The pid file: the process number in decimal and a newline, mode 0600.  A POSIX write lock on it
 * lasts as long as the process, which tells a live file from one left behind.
 */
#ifndef EVNBD_DAEMON_PID_FILE_H
#define EVNBD_DAEMON_PID_FILE_H

#include "base/error.h"

struct pid_file {
    char *path; /* absolute; NULL: there is none */
    int fd;
};

/*
 * Creates or takes over the file at `path`.  Fails with -EBUSY, leaving it alone, when a process
 * that lives holds it.  After fork(): locks are not inherited.
 */
int pid_file_create(struct pid_file *file, const char *path, struct error *error);

/* Removes the file, if it still is the one that was created. Does nothing the second time. */
void pid_file_remove(struct pid_file *file);

#endif
