/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine when storage runs out.  What was answered must find its room when it is written
 * back later: room is made for tables when they are made, and a request that finds no room is tried
 * again once a format has given back what earlier requests had freed.
 */
#include "blockcore/engine.h"

#include <errno.h>

static int reserve_here(struct node *node, uint64_t offset, uint64_t length)
{
    struct range_lock lock;
    int err;

    if (!node->driver->reserve)
        return -EOPNOTSUPP;
    range_lock_shared(&node->locks, &lock, offset, length); /* see protocol_write */
    err = node->driver->reserve(node, offset, length);
    range_unlock(&node->locks, &lock);
    node->write_generation++;
    return err;
}

int block_reserve(struct node *node, uint64_t offset, uint64_t length)
{
    int err = 0;

    if (is_protocol(node))
        return reserve_here(node, offset, length);
    if (is_filter(node)) {
        err = block_reserve(node->file, offset, length);
        node->size = node->file->size;
        return err;
    }
    if (!range_within(offset, length, node->size))
        return -ENOSPC;
    while (length > 0 && err == 0) {
        struct extent e;

        err = node->driver->map(node, offset, length, &e);
        if (err < 0)
            return err;
        if (e.kind != EXTENT_DATA || !(e.flags & EXTENT_WRITABLE))
            return -EOPNOTSUPP;
        err = block_reserve(e.child, e.child_offset, e.length);
        offset += e.length;
        length -= e.length;
    }
    return err;
}

bool engine_reclaim(struct node *node, int64_t err, uint64_t generation)
{
    if (err != -ENOSPC || !node->driver->reclaim)
        return false;
    /* Of several requests that found no room, one does it for all. */
    if (node->reclaim_generation == generation && node->driver->reclaim(node) == 0)
        node->reclaim_generation++;
    return node->reclaim_generation != generation;
}
