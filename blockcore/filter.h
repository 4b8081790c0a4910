/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Filters: nodes that show what their file shows, byte for byte, and do something about the
 * requests on the way.  See "Filters" in docs/architecture.md.
 *
 * A filter that maps (driver->map) is a format without tables to the core, and the core goes on
 * with its child by itself.  All other filters pass requests on, with the functions here; these
 * are what is meant by "filter" below.
 */
#ifndef EVNBD_BLOCKCORE_FILTER_H
#define EVNBD_BLOCKCORE_FILTER_H

#include "blockcore/node.h"

static inline bool is_filter(const struct node *node)
{
    return node->driver->kind == DRIVER_FILTER && !node->driver->map;
}

/* The node whose bytes a chain of filters shows; the node itself when it is none. */
static inline struct node *filter_bottom(const struct node *node)
{
    while (is_filter(node))
        node = node->file;
    return (struct node *)(uintptr_t)node;
}

/*
 * For the open of filters, mapping ones too: opens the child "file" with what the node above the
 * filter needs, and takes its size.  A child that is no part of a format has to name its driver: a
 * file would show the bytes of the image, not of the disk in it.
 */
int filter_open_file(struct node *node, struct node_open *open, struct error *error);

/*
 * For formats: makes their file, which may be below filters, `size` bytes long.  -ENOTSUP: it
 * cannot be.
 */
int filter_resize_file(struct node *file, uint64_t size);

#endif
