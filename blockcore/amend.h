/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing what an image was created with: features of its format, and its backing file. */
#ifndef EVNBD_BLOCKCORE_AMEND_H
#define EVNBD_BLOCKCORE_AMEND_H

#include "blockcore/node.h"

/* How far something is; of `total` parts, which change in number as it goes, `done` are. */
struct block_progress {
    void (*report)(void *arg, uint64_t done, uint64_t total); /* NULL: nobody asks */
    void *arg;
};

/*
 * Changes an image to have these options (of its format's amend_options), not stolen.  The node may
 * be in use; it goes on with the data file that it was opened with.  Options that can only be given
 * at creation are refused, and so is what the image cannot become; all of them are judged before
 * anything is changed.  Cut off anywhere, the image is sound, has the same content, and may have
 * some of the options: amend it again.  In a coroutine. Returns 0 or negative errno with a
 * sentence.
 */
int block_amend(struct node *node, json_t *options, const struct block_progress *progress,
                struct error *error);

/*
 * Records another backing file: its name (NULL: none) and its format.  Content is not touched: what
 * shows where the image has nothing is the new file's, once the image is opened again; this node
 * goes on with the old one.  In a coroutine. Returns 0 or negative errno with a sentence.
 */
int block_change_backing(struct node *node, const char *name, const char *format,
                         struct error *error);

#endif
