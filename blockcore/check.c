/* SPDX-License-Identifier: BSD-3-Clause */
/* Checking images: what does not depend on the format. See check.h. */
#include "blockcore/check.h"

#include "blockcore/block.h"

#include <errno.h>

int block_check(struct node *node, struct block_check *check, struct error *error)
{
    int err;

    check->result = (struct block_check_result){0};
    if (!node->driver->check)
        return error_set(error, ENOTSUP, "%s: images of format '%s' cannot be checked",
                         node_name(node), node->driver->name);
    if (check->fix && !(node->flags & NODE_REPAIR))
        return error_set(error, EROFS, "%s was not opened to be repaired", node_name(node));
    /* What is in the file is what is checked. */
    if (node_writable(node)) {
        err = block_flush(node);
        if (err < 0)
            return error_set_errno(error, -err, "cannot flush %s", node_name(node));
    }
    return node->driver->check(node, check, error);
}
