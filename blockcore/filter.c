/* SPDX-License-Identifier: BSD-3-Clause */
/* The data engine's part of filters: passing on. See filter.h. */
#include "blockcore/filter.h"

#include "blockcore/engine.h"

#include <errno.h>

/* Whether the node is the image, or the backing file of one, and no part of a format. */
static bool is_image(const struct node *node, const struct node_open *open)
{
    unsigned filters = 0;

    for (; filters < open->file_depth; filters++) {
        node = node->parent;
        if (node->driver->kind != DRIVER_FILTER)
            return false;
    }
    return true;
}

static int check_file(const struct node *node, const struct node_open *open, struct error *error)
{
    const json_t *file = json_object_get(open->options, "file");

    if (open->given_file || !is_image(node, open) || json_object_get(file, "driver"))
        return 0;
    return error_set(error, EINVAL,
                     "the driver '%s' needs to know the driver of its 'file': file.driver=raw, or "
                     "the format of the image",
                     node->driver->name);
}

int filter_open_file(struct node *node, struct node_open *open, struct error *error)
{
    unsigned shared = open->shared;
    int err = check_file(node, open, error);

    if (err < 0)
        return err;
    /* As for a raw image: two writers of one disk would destroy it. */
    if ((open->flags & NODE_WRITABLE) && !(open->flags & NODE_SHARE_WRITE))
        shared &= ~(unsigned)PERM_WRITE;
    err = node_open_file(node, open, open->perm, shared, error);
    if (err < 0)
        return err;
    node->size = node->file->size;
    node->rotational = node->file->rotational;
    return 0;
}

int filter_resize_file(struct node *file, uint64_t size)
{
    int err;

    if (!is_filter(file))
        return file->driver->resize ? file->driver->resize(file, size, NULL) : -ENOTSUP;
    err = filter_resize_file(file->file, size);
    file->size = file->file->size;
    return err;
}

int filter_before(struct node *node, enum block_operation operation, uint64_t offset,
                  uint64_t length)
{
    return node->driver->before ? node->driver->before(node, operation, offset, length) : 0;
}

int filter_read(struct node *node, struct vec vec, uint64_t offset)
{
    int err = filter_before(node, OPERATION_READ, offset, vec.length);

    if (err < 0)
        return err;
    return node->driver->preadv ? engine_transfer(node->driver->preadv, node, &vec, offset)
                                : engine_read_child(node->file, vec, offset);
}

/* What must be counted is counted last, when nothing can send the request to a coroutine. */
int filter_read_nowait(struct node *node, void *buffer, size_t length, uint64_t offset)
{
    const struct iovec iov = {buffer, length};
    int err = -EAGAIN;

    if (node->driver->preadv_nowait)
        err = node->driver->preadv_nowait(node, &iov, 1, offset);
    else if (!node->driver->preadv)
        err = block_read_nowait(node->file, buffer, length, offset);
    return err == 0 ? filter_before(node, OPERATION_READ, offset, length) : err;
}

/* After a change: a file may have grown. */
static int changed(struct node *node, uint64_t offset, uint64_t length, int err)
{
    node->size = node->file->size;
    if (node->driver->after)
        node->driver->after(node, offset, length);
    return err;
}

int filter_write(struct node *node, struct vec vec, uint64_t offset)
{
    int err = filter_before(node, OPERATION_WRITE, offset, vec.length);

    if (err < 0)
        return err;
    err = node->driver->pwritev ? engine_transfer(node->driver->pwritev, node, &vec, offset)
                                : engine_write_child(node->file, vec, offset);
    return changed(node, offset, vec.length, err);
}

int filter_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    int err = filter_before(node, OPERATION_ZERO, offset, length);

    if (err < 0)
        return err;
    return changed(node, offset, length, engine_zero_child(node->file, offset, length, flags));
}

int filter_discard(struct node *node, uint64_t offset, uint64_t length)
{
    int err = filter_before(node, OPERATION_DISCARD, offset, length);

    if (err < 0)
        return err;
    return changed(node, offset, length, engine_discard_child(node->file, offset, length));
}
