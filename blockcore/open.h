/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files that open nodes share (open.c, open_image.c, open_options.c); not for drivers. */
#ifndef EVNBD_BLOCKCORE_OPEN_H
#define EVNBD_BLOCKCORE_OPEN_H

#include "blockcore/node.h"

#include <errno.h>

static inline int out_of_memory(struct error *error)
{
    return error_set(error, ENOMEM, "out of memory");
}

/* A tree for the file at a path, which may be any bytes. NULL: out of memory. */
json_t *open_file_tree(const char *filename);

/* The same for what a user calls a disk, which may be one of another machine ("nbd://host/"). */
json_t *open_name_tree(const struct driver *const *drivers, const char *name);

/* Refuses the name of a driver, and lists what there is: all, or formats only. */
int open_unknown_driver(const struct driver *const *drivers, const char *name, bool only_formats,
                        struct error *error);

/*
 * Puts the "driver" into a tree that has none: the format that its "file" shows.  A tree without
 * "file" is refused.  *ret_guessed_raw (may be NULL) tells that no known format matched.
 */
int open_name_driver(const struct block_context *context, json_t *tree, unsigned flags,
                     bool *ret_guessed_raw, struct error *error);

/*
 * Takes the options that nodes of all drivers have out of open->options and lets open->flags and
 * open->perm follow them.  *ret_detect_zeroes is what the node asks for.
 */
int open_common_options(struct node_open *open, enum node_detect_zeroes *ret_detect_zeroes,
                        struct error *error);

#endif
