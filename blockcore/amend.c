/* SPDX-License-Identifier: BSD-3-Clause */
/* Changing what an image was created with: what does not depend on the format. */
#include "blockcore/amend.h"

#include "base/checked.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <string.h>

static int check_writable(const struct node *node, struct error *error)
{
    if (node_writable(node))
        return 0;
    return error_set(error, EROFS, "%s is not open for writing", node_name(node));
}

int block_amend(struct node *node, json_t *options, const struct block_progress *progress,
                struct error *error)
{
    json_t *copy;
    int err = check_writable(node, error);

    if (err < 0)
        return err;
    if (!node->driver->amend)
        return error_set(error, ENOTSUP, "images of format '%s' cannot be amended",
                         node->driver->name);
    copy = json_deep_copy(options);
    if (!copy)
        return error_set(error, ENOMEM, "out of memory");
    err = node->driver->amend(node, copy, progress, error);
    json_decref(copy);
    return err;
}

int block_change_backing(struct node *node, const char *name, const char *format,
                         struct error *error)
{
    struct range_lock lock;
    int err = check_writable(node, error);

    if (err < 0)
        return err;
    if (!node->driver->change_backing)
        return error_set(error, ENOTSUP, "images of format '%s' have no backing file",
                         node->driver->name);
    if (name && !format)
        return error_set(error, EINVAL, "a backing file needs its format: guessing it is not safe");
    range_lock_exclusive(&node->locks, &lock, 0, OFFSET_MAX);
    err = node->driver->change_backing(node, name, name ? format : NULL, error);
    range_unlock(&node->locks, &lock);
    return err;
}
