/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps: which parts of a disk were written since some point in time, by name.
 *
 * The driver whose image holds bitmaps embeds struct block_bitmap in its own state; they live as
 * long as the node is open, or until they are removed.
 *
 * A bitmap never says "clean" of what was written while it was enabled.  It may say "dirty" of
 * more: what a write touches counts as a whole bit, and where so many bits are set that memory for
 * them runs out, they are taken together.
 */
#ifndef EVNBD_BLOCKCORE_BITMAP_H
#define EVNBD_BLOCKCORE_BITMAP_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct block_bitmap;
struct dirty_set;
struct node;

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
    /*
     * For changes; NULL: the format has none.  The core has checked what block_bitmap_* below say
     * and keeps writers of the node away.
     */
    int (*remove)(struct block_bitmap *bitmap, struct error *error); /* frees it, too */
    int (*clear)(struct block_bitmap *bitmap, struct error *error);
    int (*set_enabled)(struct block_bitmap *bitmap, bool enabled, struct error *error);
    /* `bits` has as many bits as the bitmap. */
    int (*merge)(struct block_bitmap *bitmap, const struct dirty_set *bits, struct error *error);
};

struct block_bitmap {
    const struct block_bitmap_ops *ops;
    struct node *node;    /* whose bitmap it is */
    const char *name;     /* UTF-8 without NUL, 1 to BLOCK_BITMAP_NAME_MAX bytes, if it is usable */
    uint64_t granularity; /* bytes that one bit stands for; power of two */
    uint64_t size;        /* bytes of the disk that it covers */
    bool enabled;         /* what is written is recorded */
    const char *unusable; /* NULL, or why it cannot be used: "it was not saved properly" */
};

#define BLOCK_BITMAP_NAME_MAX 1023
#define BLOCK_BITMAP_GRANULARITY_MIN UINT64_C(512)
#define BLOCK_BITMAP_GRANULARITY_MAX (UINT64_C(2) << 30)
/* What the enabled bitmaps of an image may take in memory, and what a merge may. */
#define BLOCK_BITMAP_MEMORY_MAX (64u << 20)

/* The bitmap `index` of this node itself, in the image's order; NULL: there are no more. */
struct block_bitmap *block_bitmap_get(struct node *node, size_t index);

/* The bitmap of that name of this node itself, usable or not, or NULL. */
struct block_bitmap *block_bitmap_get_named(struct node *node, const char *name);

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

/*
 * Changes.  The node is writable, nobody exports the bitmap; in a coroutine.  They return 0, or
 * negative errno with a sentence: -EROFS, -ENOTSUP (the format, or this image of it, has no
 * bitmaps), -EINVAL (a bitmap that is not usable, or what is said below), -EIO, -ENOSPC...  What
 * they did is in the file when they return, but for bits of an enabled bitmap, which are saved when
 * the node is closed.  A crash before that leaves the bitmap inconsistent, never wrong.
 */

/*
 * Adds a bitmap without dirty bits.  `granularity`: a power of two from 512 bytes to 2 GiB, or 0
 * for the format's choice.  -EEXIST: the name is taken.
 */
int block_bitmap_add(struct node *node, const char *name, uint64_t granularity, bool enabled,
                     struct error *error);
/* Removes and frees it. Also one that is not usable. */
int block_bitmap_remove(struct block_bitmap *bitmap, struct error *error);
int block_bitmap_clear(struct block_bitmap *bitmap, struct error *error);
int block_bitmap_set_enabled(struct block_bitmap *bitmap, bool enabled, struct error *error);
/* Adds what is dirty in `source`, of the same node or another whose disk has the same size. */
int block_bitmap_merge(struct block_bitmap *source, struct block_bitmap *target,
                       struct error *error);

#endif
