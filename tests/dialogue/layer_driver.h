/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A format driver for tests: images whose maps and dirty bitmaps are given as text, one character a
 * unit of the disk, with a backing chain. Their data is a disk in memory.
 */
#ifndef EVNBD_TESTS_LAYER_DRIVER_H
#define EVNBD_TESTS_LAYER_DRIVER_H

#include "blockcore/bitmap.h"
#include "tests/dialogue/ram_driver.h"

struct layer_bitmap {
    const char *name;
    uint64_t granularity;
    const char *bits;     /* "#" dirty, "." clean, "!" cannot be read */
    const char *unusable; /* as in struct block_bitmap */
    bool enabled;
    unsigned calls; /* to next() */
    struct block_bitmap bitmap;
};

struct layer {
    uint64_t size, unit;
    const char *map;       /* "d" data, "z" zeroes, "." nothing here, "!" cannot be read */
    struct ram_disk *disk; /* of the data, at the same offsets */
    struct layer *backing; /* or NULL */
    struct layer_bitmap *bitmaps;
    size_t bitmap_count;
    unsigned maps; /* calls of map() */
};

/* Opens the image and those behind it, for reading; in a coroutine. Dies on failure. */
struct node *layer_open(struct layer *layer);

#endif
