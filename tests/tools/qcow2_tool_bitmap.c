/* SPDX-License-Identifier: BSD-3-Clause */
/* The commands of qcow2_tool for dirty bitmaps. */
#include "tests/tools/qcow2_tool.h"

#include "blockcore/bitmap.h"
#include "blockcore/node.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int print_dirty(struct block_bitmap *bitmap, struct error *error)
{
    struct block_bitmap_extent extent;
    const char *comma = "";

    for (uint64_t at = 0; at < bitmap->size; at += extent.length) {
        int err = block_bitmap_next(bitmap, at, bitmap->size - at, &extent);

        if (err < 0)
            return error_set_errno(error, -err, "cannot read the bitmap at %" PRIu64, at);
        if (extent.dirty)
            printf("%s[%" PRIu64 ", %" PRIu64 "]", comma, at, extent.length);
        if (extent.dirty)
            comma = ", ";
    }
    return 0;
}

int run_bitmap_list(char **arguments, struct error *error)
{
    struct block_bitmap *bitmap;
    struct node *node;
    int err = open_image(arguments[0], NODE_NO_DATA, false, &node, error);

    if (err < 0)
        return err;
    for (size_t i = 0; (bitmap = block_bitmap_get(node, i)) && err == 0; i++) {
        printf("{\"name\": \"%s\", \"granularity\": %" PRIu64
               ", \"enabled\": %s, \"unusable\": \"%s\", \"dirty\": [",
               bitmap->name, bitmap->granularity, bitmap->enabled ? "true" : "false",
               bitmap->unusable ? bitmap->unusable : "");
        err = bitmap->unusable ? 0 : print_dirty(bitmap, error);
        printf("]}\n");
    }
    node_unref(node);
    return err;
}

int run_bitmap_add(char **arguments, struct error *error)
{
    struct node *node;
    int err = open_image(arguments[0], NODE_WRITABLE | NODE_NO_DATA, false, &node, error);

    if (err < 0)
        return err;
    err = block_bitmap_add(node, arguments[1], strtoull(arguments[2], NULL, 0),
                           strcmp(arguments[3], "enabled") == 0, error);
    node_unref(node);
    return err;
}

/* What the command does with the bitmap; `other` is the last argument's, if there is one. */
typedef int bitmap_change(struct block_bitmap *bitmap, struct block_bitmap *other,
                          struct error *error);

static int change_remove(struct block_bitmap *bitmap, struct block_bitmap *other,
                         struct error *error)
{
    return block_bitmap_remove(bitmap, error);
}

static int change_clear(struct block_bitmap *bitmap, struct block_bitmap *other,
                        struct error *error)
{
    return block_bitmap_clear(bitmap, error);
}

static int change_enable(struct block_bitmap *bitmap, struct block_bitmap *other,
                         struct error *error)
{
    return block_bitmap_set_enabled(bitmap, true, error);
}

static int change_disable(struct block_bitmap *bitmap, struct block_bitmap *other,
                          struct error *error)
{
    return block_bitmap_set_enabled(bitmap, false, error);
}

static int change_bitmap(char **arguments, const char *other, bitmap_change *change,
                         struct error *error)
{
    struct block_bitmap *bitmap = NULL, *target = NULL;
    struct node *node;
    int err = open_image(arguments[0], NODE_WRITABLE | NODE_NO_DATA, true, &node, error);

    if (err < 0)
        return err;
    if (other)
        err = block_bitmap_find(node, other, &target, error);
    if (err == 0 && change == change_remove)
        bitmap = block_bitmap_get_named(node, arguments[1]);
    if (err == 0 && !bitmap)
        err = block_bitmap_find(node, arguments[1], &bitmap, error);
    if (err == 0)
        err = change(bitmap, target, error);
    node_unref(node);
    return err;
}

int run_bitmap_remove(char **arguments, struct error *error)
{
    return change_bitmap(arguments, NULL, change_remove, error);
}

int run_bitmap_clear(char **arguments, struct error *error)
{
    return change_bitmap(arguments, NULL, change_clear, error);
}

int run_bitmap_enable(char **arguments, struct error *error)
{
    return change_bitmap(arguments, NULL, change_enable, error);
}

int run_bitmap_disable(char **arguments, struct error *error)
{
    return change_bitmap(arguments, NULL, change_disable, error);
}

int run_bitmap_merge(char **arguments, struct error *error)
{
    return change_bitmap(arguments, arguments[2], block_bitmap_merge, error);
}
