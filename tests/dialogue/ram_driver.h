/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A protocol driver for tests: a disk in memory, which can be slow, and can fail.
 *
 * A slow disk keeps every call waiting until the test releases it, in any order.
 */
#ifndef EVNBD_TESTS_RAM_DRIVER_H
#define EVNBD_TESTS_RAM_DRIVER_H

#include "blockcore/node.h"

struct ram_disk {
    uint8_t *data;
    uint64_t size;
    bool slow;
    int read_error, write_error, flush_error, zero_error; /* negative errno, or 0 */
    /* Calls that have begun, and the flags of the last zeroing. */
    unsigned reads, writes, zeroes, discards, flushes;
    unsigned zero_flags;
    struct list waiting; /* calls that wait, in order of arrival */
    unsigned waiting_count;
};

extern const struct driver driver_ram;
/* NULL-terminated: the ram driver, and a format that is known by the bytes "RAMFMT" at 512. */
extern const struct driver *const ram_drivers[];

void ram_disk_init(struct ram_disk *disk, uint64_t size);
void ram_disk_fini(struct ram_disk *disk);
/* Opens the disk as a node; in a coroutine. `flags` are NODE_*. Dies on failure. */
struct node *ram_disk_open(struct ram_disk *disk, unsigned flags);
/* Lets the call go on that came as the index-th of those that wait. */
void ram_disk_release(struct ram_disk *disk, unsigned index);
void ram_disk_release_all(struct ram_disk *disk);

#endif
