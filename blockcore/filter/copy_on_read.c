/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The filter `copy-on-read`: what is read from a backing file is kept in the image above it, so
 * that it is fetched once.  A copy that fails, for want of space say, is no reason to fail the
 * read.
 */
#include "base/iov.h"
#include "base/log.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/filter.h"

#include <errno.h>
#include <string.h>

struct copier {
    bool told; /* that copies fail */
};

static int copier_open(struct node *node, struct node_open *open, struct error *error)
{
    int err = filter_open_file(node, open, error);

    if (err < 0)
        return err;
    if (!filter_bottom(node->file)->driver->allocate)
        return error_set(error, EINVAL,
                         "the driver 'copy-on-read' needs an image with a backing file below it, "
                         "such as file.driver=qcow2; %s is of format '%s'",
                         node_name(node), filter_bottom(node->file)->driver->name);
    if (!node_writable(node))
        return error_set(error, EROFS,
                         "the driver 'copy-on-read' writes to %s, which is opened read-only: leave "
                         "out --read-only, or the driver",
                         node_name(node));
    return 0;
}

static int copier_preadv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct copier *copier = node->state;
    int err = block_copy_up(filter_bottom(node->file), offset, iov_length(iov, iovcnt));

    if (err < 0 && !copier->told) {
        copier->told = true;
        log_warning("warning: what is read cannot be copied to %s: %s", node_name(node),
                    strerror(-err));
    }
    return block_readv(node->file, iov, iovcnt, offset);
}

static int copier_preadv_nowait(struct node *node, const struct iovec *iov, int iovcnt,
                                uint64_t offset)
{
    size_t length = iov_length(iov, iovcnt);
    int own = block_is_own(filter_bottom(node->file), offset, length);

    if (own <= 0)
        return -EAGAIN;
    return iovcnt == 1 ? block_read_nowait(node->file, iov[0].iov_base, length, offset) : -EAGAIN;
}

const struct driver driver_copy_on_read = {
    .name = "copy-on-read",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct copier),
    .open = copier_open,
    .preadv = copier_preadv,
    .preadv_nowait = copier_preadv_nowait,
};
