/* SPDX-License-Identifier: BSD-3-Clause */
/* Making images, and how large they can become. */
#ifndef EVNBD_BLOCKCORE_CREATE_H
#define EVNBD_BLOCKCORE_CREATE_H

#include "blockcore/node.h"

struct block_measure {
    uint64_t required;        /* bytes of a file that holds no more data than was said */
    uint64_t fully_allocated; /* bytes of a file whose whole disk was written */
};

/*
 * Makes an image of the format in the file `filename`, which is made or replaced; all its options
 * ("size" in bytes, and the format's create_options) are in `options`, not stolen.  With a
 * "backing_file" and without "size", the size is that of the backing file, whose format must be
 * said ("backing_fmt").  Returns 0 or negative errno.
 */
int block_create(const struct block_context *context, const char *format, const char *filename,
                 json_t *options, struct error *error);

/*
 * Makes an image of the format in an open, writable, empty file, which stays the caller's.  No
 * backing file is looked at.
 */
int block_create_in(const struct block_context *context, const char *format, struct node *file,
                    json_t *options, struct error *error);

/* What images with these options take; "data_size" of them is how many bytes of data there are. */
int block_measure(const struct block_context *context, const char *format, json_t *options,
                  struct block_measure *ret, struct error *error);

/* Where a new image goes. */
struct block_create_target {
    const struct block_context *context;
    const char *filename; /* or NULL */
    struct node *file;    /* without a filename: an open, empty file */
    /* For a file that is made or emptied; ignored where the file system has no such thing. */
    bool nocow;                /* it is not copied on write (Btrfs) */
    uint32_t extent_size_hint; /* bytes; 0: none (XFS) */
};

/* For drivers: gives the file for a new image, empty (a device: as it is). A new reference. */
int block_create_file(const struct block_create_target *target, struct node **ret,
                      struct error *error);

/* For drivers: the storage that preallocation asks for. */
enum preallocation {
    PREALLOCATION_OFF,
    PREALLOCATION_METADATA,
    PREALLOCATION_FALLOC,
    PREALLOCATION_FULL,
};
extern const char *const preallocation_words[];
/* Lets the file reach up to `end`: sparse, reserved, or written with zeroes, from `start` on. */
int block_preallocate(struct node *file, uint64_t start, uint64_t end, enum preallocation mode);

#endif
