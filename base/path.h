/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of files. */
#ifndef EVNBD_BASE_PATH_H
#define EVNBD_BASE_PATH_H

/*
 * The path from the root on: for files that are used again after the process has left its
 * directory.  Links and ".." stay as they are.  Allocated; NULL: out of memory, or the current
 * directory is gone.
 */
char *path_absolute(const char *path);

#endif
