/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps of qcow2 on disk: directory entries and bitmap tables.
 *
 * Pure functions over bytes: nothing here does I/O or keeps state.  All input is untrusted.
 */
#ifndef EVNBD_BLOCKCORE_FORMAT_QCOW2_BITMAP_DISK_H
#define EVNBD_BLOCKCORE_FORMAT_QCOW2_BITMAP_DISK_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    QCOW2_BITMAP_FIXED = 24,    /* bytes of a directory entry before its variable parts */
    QCOW2_BITMAP_AT_FLAGS = 12, /* where in the entry its flags are: u32 */
    QCOW2_BITMAP_DIRTY_TRACKING = 1,
    QCOW2_BITMAP_GRANULARITY_MIN = 9, /* log2 */
    QCOW2_BITMAP_GRANULARITY_MAX = 31,
};

#define QCOW2_BITMAP_TABLE_MAX (UINT64_C(1) << 27)  /* entries */
#define QCOW2_BITMAP_DATA_MAX (UINT64_C(512) << 20) /* bytes */

/* Flags of a directory entry. */
#define QCOW2_BITMAP_IN_USE (1u << 0) /* it was not saved since the disk was changed */
#define QCOW2_BITMAP_AUTO (1u << 1)   /* enabled: every change of the disk is recorded */
#define QCOW2_BITMAP_EXTRA_COMPATIBLE (1u << 2)
#define QCOW2_BITMAP_FLAGS_KNOWN 7u

/* An entry of the directory. The pointers are into what was parsed; they may be NULL when empty. */
struct qcow2_bitmap_entry {
    uint64_t table_offset;
    uint32_t table_size; /* entries */
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    uint16_t name_length;
    uint32_t extra_length;
    const uint8_t *extra;
    const char *name; /* without NUL */
};

/* What an image is, as far as its bitmaps depend on it. */
struct qcow2_bitmap_disk {
    uint64_t size; /* of the disk, bytes */
    unsigned cluster_bits;
    uint64_t file_size;
};

/* Reads entry number `index`, with which `data` begins; -EINVAL when it does not fit. */
int qcow2_bitmap_entry_parse(const uint8_t *data, size_t length, unsigned index,
                             struct qcow2_bitmap_entry *ret, struct error *error);
/* Bytes of the entry, with its padding. */
uint64_t qcow2_bitmap_entry_size(const struct qcow2_bitmap_entry *entry);
/* Writes it; `out` has room for its size. */
void qcow2_bitmap_entry_write(uint8_t *out, const struct qcow2_bitmap_entry *entry);

/* Why the bitmap cannot be used, a part of a sentence; NULL: nothing in its entry speaks against.
 */
const char *qcow2_bitmap_entry_problem(const struct qcow2_bitmap_entry *entry,
                                       const struct qcow2_bitmap_disk *disk);

/* Whether its table can be read: aligned, within the file and the format's limits. */
bool qcow2_bitmap_table_sane(const struct qcow2_bitmap_entry *entry,
                             const struct qcow2_bitmap_disk *disk);

/* Entries that the table of a bitmap has; `granularity_bits` is legal. */
uint64_t qcow2_bitmap_table_needed(const struct qcow2_bitmap_disk *disk, unsigned granularity_bits);
/* Log2 of the granularity of a bitmap that nobody gave one. */
unsigned qcow2_bitmap_granularity_default(unsigned cluster_bits);

/* Values of a table entry that name no cluster: all bits are 0, or 1. */
#define QCOW2_BITMAP_ALL_ZEROES UINT64_C(0)
#define QCOW2_BITMAP_ALL_ONES UINT64_C(1)

/* Whether a table entry is one of them, or names a cluster that the file can have. */
bool qcow2_bitmap_value_valid(uint64_t value, const struct qcow2_bitmap_disk *disk);

#endif
