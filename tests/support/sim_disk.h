/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A simulated disk behind the seam.  Every path below "/sim/" names a file in memory; all other
 * paths, descriptors and sockets go to the table below.  Together with io_engine_sim everything
 * that happens depends on the seed only.
 *
 * Chance, as configured: transfers are cut short, calls end with EINTR, RWF_NOWAIT finds less in
 * the page cache than was asked.  For the k-th call failing put fault.h on top.
 *
 * Power cut: of the changes to each file since its last fdatasync, and of the writes that
 * io_engine_sim has not done yet, any are lost or torn at 512 bytes, as the seed says.  From then
 * on every call on a simulated file ends with -EIO, until the power is back; descriptors from
 * before stay dead.  File names are durable at once.
 */
#ifndef EVNBD_TESTS_SIM_DISK_H
#define EVNBD_TESTS_SIM_DISK_H

#include "tests/support/support.h"

struct sim_disk_config {
    uint64_t seed;
    uint64_t capacity; /* bytes in allocated blocks of all files, then ENOSPC; 0: no limit */
    unsigned short_percent;
    unsigned eintr_percent;
    unsigned uncached_percent;
};

/* Also seeds io_engine_sim. */
void sim_disk_install(const struct sim_disk_config *config);
/* Frees all files. Dies when one is open still: a leak. */
void sim_disk_remove(void);

/* Makes or replaces a file, durably. `data` NULL: zeroes, not allocated. */
void sim_disk_create(const char *path, const void *data, uint64_t size);

/* The same with a content, holes and all; and what a reader sees now, as a content. */
struct content;
void sim_disk_restore(const char *path, const struct content *content);
void sim_disk_copy(const char *path, struct content *ret);

/* What a reader sees now, allocated; dies when there is no such file. */
uint8_t *sim_disk_content(const char *path, size_t *ret_size);

void sim_disk_power_cut(uint64_t seed);
void sim_disk_power_on(void);

/* Number of open descriptors, to find leaks. */
unsigned sim_disk_open_count(void);

#endif
