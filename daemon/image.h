/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening the image that the command line asks for. */
#ifndef EVNBD_DAEMON_IMAGE_H
#define EVNBD_DAEMON_IMAGE_H

#include "blockcore/node.h"
#include "daemon/arguments.h"

struct objects;

/* The context for the chosen --aio, with these objects; both have to outlive the image. */
struct block_context image_context(const struct arguments *arguments, struct objects *objects);

/* Whether writes go to a temporary image instead of the one that was named. */
bool image_has_overlay(const struct arguments *arguments);

/* Where what was opened is in the image. */
struct image_place {
    struct node *disk; /* all of the image, which is open as long as the part is */
    uint64_t offset;   /* bytes of it before the part */
    bool guessed_raw;  /* no format was given and none was recognized */
};

/*
 * Opens the image, and of it what --offset or --partition ask for.  In a coroutine.  The caller
 * drops *ret with node_unref().
 */
int image_open(const struct block_context *context, const struct arguments *arguments,
               struct node **ret, struct image_place *ret_place, struct error *error);

/* The same, but the whole disk. ret_guessed_raw may be NULL. */
int image_open_disk(const struct block_context *context, const struct arguments *arguments,
                    struct node **ret, bool *ret_guessed_raw, struct error *error);

/* The formats that there are, separated by commas. */
void image_print_formats(FILE *out);

/* Whether every write has to be followed by a flush. */
bool image_write_through(const struct arguments *arguments);

#endif
