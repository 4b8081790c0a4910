/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps of nodes: finding them, and reading within their bounds.  The bitmaps themselves
 * are the drivers'.
 */
#include "blockcore/bitmap.h"

#include "base/checked.h"
#include "blockcore/node.h"

#include <errno.h>
#include <string.h>

struct block_bitmap *block_bitmap_get(struct node *node, size_t index)
{
    return node->driver->bitmap ? node->driver->bitmap(node, index) : NULL;
}

static struct block_bitmap *find_in(struct node *node, const char *name)
{
    struct block_bitmap *bitmap;

    for (size_t i = 0; (bitmap = block_bitmap_get(node, i)); i++) {
        if (strcmp(bitmap->name, name) == 0)
            return bitmap;
    }
    return NULL;
}

int block_bitmap_find(struct node *node, const char *name, struct block_bitmap **ret,
                      struct error *error)
{
    struct block_bitmap *bitmap = NULL;
    char shown[80];

    for (struct node *at = node; at && !bitmap; at = at->backing)
        bitmap = find_in(at, name);
    if (bitmap && !bitmap->unusable) {
        *ret = bitmap;
        return 0;
    }
    error_escape(shown, sizeof(shown), name, strlen(name));
    if (!bitmap)
        return error_set(error, ENOENT, "Bitmap '%s' is not found", shown);
    return error_set(error, EINVAL, "Bitmap '%s' cannot be used: %s", shown, bitmap->unusable);
}

int block_bitmap_next(struct block_bitmap *bitmap, uint64_t offset, uint64_t length,
                      struct block_bitmap_extent *ret)
{
    int r;

    if (offset >= bitmap->size) {
        *ret = (struct block_bitmap_extent){.length = length};
        return 0;
    }
    length = min_u64(length, bitmap->size - offset);
    r = bitmap->ops->next(bitmap, offset, length, ret);
    if (r < 0)
        return r;
    if (ret->length == 0) /* no reader would ever come to an end */
        return -EIO;
    ret->length = min_u64(ret->length, length);
    return 0;
}
