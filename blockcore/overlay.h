/* SPDX-License-Identifier: BSD-3-Clause */
/* A temporary image above another: what is written is kept there, and lost when it is closed. */
#ifndef EVNBD_BLOCKCORE_OVERLAY_H
#define EVNBD_BLOCKCORE_OVERLAY_H

#include "blockcore/node.h"

struct overlay_place {
    const char *directory; /* of the file, which has no name in there; NULL: in memory */
    uint64_t bytes_max;    /* of the file, its tables included; what passes them gives -ENOSPC */
};

/*
 * Opens a qcow2 image of the size of `base`, new and writable, which shows `base` where nothing was
 * written.  Only NODE_UNMAP of `flags` counts.  Takes the reference to `base`, also on failure.
 */
int node_open_overlay(const struct block_context *context, struct node *base,
                      const struct overlay_place *place, unsigned flags, struct node **ret,
                      struct error *error);

#endif
