/* SPDX-License-Identifier: BSD-3-Clause */
/* What a file or device is like: type, size, alignment, spinning or not. For protocol/file.c. */
#ifndef EVNBD_BLOCKCORE_PROTOCOL_FILE_PROBE_H
#define EVNBD_BLOCKCORE_PROTOCOL_FILE_PROBE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* "a directory", "a FIFO"...: for messages. */
const char *file_type_name(mode_t mode);

/* Bytes of a block device. 0 or negative errno. */
int file_device_size(int fd, uint64_t *ret);
bool file_device_read_only(int fd);

/*
 * What offset, length and memory of direct I/O on the block device, or on files of a file system
 * that is on it, must be multiples of: a power of two, at least 512.
 */
uint32_t file_direct_alignment(dev_t device);

/* Whether the block device `device`, or the one below that partition, spins. False when unknown. */
bool file_rotational(dev_t device);

#endif
