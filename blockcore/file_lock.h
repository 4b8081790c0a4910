/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image locks, as QEMU shares them with other programs: OFD read locks on single bytes of the file.
 * Byte 100 + i is locked by who holds permission i, byte 200 + i by who does not share it.
 */
#ifndef EVNBD_BLOCKCORE_FILE_LOCK_H
#define EVNBD_BLOCKCORE_FILE_LOCK_H

#include "base/error.h"

/*
 * Takes the locks for `perm` and `shared` (PERM_*) on `fd`, for as long as the descriptor is open.
 * `name` is for the message.  Returns 0, -EAGAIN when another process stands against it, for a
 * fifth of a second, or another negative errno; then no lock is held.  In a coroutine.
 */
int file_lock(int fd, unsigned perm, unsigned shared, const char *name, struct error *error);

#endif
