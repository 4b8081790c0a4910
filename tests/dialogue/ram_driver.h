/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A protocol driver for tests: a disk in memory, which can be slow, and can fail.
 *
 * A slow disk keeps every call waiting until the test releases it, in any order.
 *
 * A disk with a layout has holes, which its map tells, until something is written: then all is
 * data.  One without data can be of any size: it reads as RAM_PATTERN but for its holes, and is not
 * changed by zeroing.
 */
#ifndef EVNBD_TESTS_RAM_DRIVER_H
#define EVNBD_TESTS_RAM_DRIVER_H

#include "blockcore/node.h"

#define RAM_PATTERN 0xd5

struct ram_disk {
    uint8_t *data; /* or NULL */
    uint64_t size;
    const char *layout; /* 'd' data or 'h' hole, a unit each, repeated to the end; NULL: all data */
    uint64_t unit;      /* bytes */
    uint64_t bad_offset, bad_length; /* reading any of this fails with EIO */
    bool slow;
    int read_error, write_error, flush_error, zero_error; /* negative errno, or 0 */
    /* Calls that have begun, and the flags of the last zeroing. */
    unsigned reads, writes, zeroes, discards, flushes, maps;
    unsigned zero_flags;
    const void *writer;  /* on whose behalf the last write is (coroutine_owner) */
    uint64_t changed;    /* bytes zeroed and discarded */
    struct list waiting; /* calls that wait, in order of arrival */
    unsigned waiting_count;
};

extern const struct driver driver_ram;
/* NULL-terminated: ram, raw, and a format that is known by the bytes "RAMFMT" at 512. */
extern const struct driver *const ram_drivers[];

void ram_disk_init(struct ram_disk *disk, uint64_t size);
/* Without data; writing to it fails. */
void ram_disk_init_pattern(struct ram_disk *disk, uint64_t size);
void ram_disk_fini(struct ram_disk *disk);
/* Gives the disk a layout and clears its holes. */
void ram_disk_set_layout(struct ram_disk *disk, const char *layout, uint64_t unit);
/* Opens the disk as a raw image; in a coroutine. `flags` are NODE_*. Dies on failure. */
struct node *ram_disk_open(struct ram_disk *disk, unsigned flags);
/* Lets the call go on that came as the index-th of those that wait. */
void ram_disk_release(struct ram_disk *disk, unsigned index);
void ram_disk_release_all(struct ram_disk *disk);

#endif
