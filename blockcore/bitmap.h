/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps: which parts of a disk were written since some point in time, by name.
 *
 * The driver whose image holds bitmaps embeds struct block_bitmap in its own state; they live as
 * long as the node is open.
 */
#ifndef EVNBD_BLOCKCORE_BITMAP_H
#define EVNBD_BLOCKCORE_BITMAP_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct node;
struct block_bitmap;

struct block_bitmap_extent {
    uint64_t length; /* bytes, at least 1 */
    bool dirty;
};

struct block_bitmap_ops {
    /*
     * A first part of [offset, offset + length), which is inside of bitmap->size and not empty, in
     * one state.  ret->length may be more than was asked for. In a coroutine; may wait. Returns 0
     * or negative errno.
     */
    int (*next)(struct block_bitmap *bitmap, uint64_t offset, uint64_t length,
                struct block_bitmap_extent *ret);
};

struct block_bitmap {
    const struct block_bitmap_ops *ops;
    const char *name;     /* UTF-8 without NUL, 1 to BLOCK_BITMAP_NAME_MAX bytes */
    uint64_t granularity; /* bytes that one bit stands for; power of two */
    uint64_t size;        /* bytes of the disk that it covers */
    const char *unusable; /* NULL, or why it cannot be read: "it was not saved properly" */
};

#define BLOCK_BITMAP_NAME_MAX 1023

/* The bitmap `index` of this node itself, in the image's order; NULL: there are no more. */
struct block_bitmap *block_bitmap_get(struct node *node, size_t index);

/*
 * The usable bitmap of that name in the node or, when it has none, in the nearest of its backing
 * nodes that has. Returns 0, or -ENOENT or -EINVAL with a sentence.
 */
int block_bitmap_find(struct node *node, const char *name, struct block_bitmap **ret,
                      struct error *error);

/*
 * The state at `offset`: a first part of the range, ret->length <= length, at least 1. Past the end
 * of the bitmap all is clean. In a coroutine.
 */
int block_bitmap_next(struct block_bitmap *bitmap, uint64_t offset, uint64_t length,
                      struct block_bitmap_extent *ret);

#endif
