/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the size of a node.
 *
 * It is safe on a node that is in use: the whole disk is locked meanwhile.  The new size is durable
 * when the call returns.  Cut off anywhere, the disk has the old size with all its content, or the
 * new one; storage behind the end of a smaller one may stay taken until the next resize or repair.
 */
#ifndef EVNBD_BLOCKCORE_RESIZE_H
#define EVNBD_BLOCKCORE_RESIZE_H

#include "blockcore/create.h"

struct block_resize {
    uint64_t size;                    /* bytes; rounded up to the format's unit */
    enum preallocation preallocation; /* of what is added; OFF for a smaller disk */
    bool shrink;                      /* a smaller size is meant: the data behind it goes */
};

/*
 * Makes the disk larger or smaller.  What is added reads as zeroes, whatever a backing file holds
 * there.  In a coroutine.  Returns 0 or negative errno with a sentence: -EROFS, -ENOTSUP (the
 * format or the image cannot), -EINVAL (not without `shrink`, or preallocation that does not go
 * with it), -EFBIG, -ENOSPC...; then the node has its old size, unless only cleaning
 * up behind a smaller one failed.
 */
int block_resize(struct node *node, const struct block_resize *resize, struct error *error);

#endif
