/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The raw format: guest byte n is file byte offset + n.  It keeps no tables: its map passes every
 * range on to the file, where the core reads, writes, zeroes and finds holes.
 */
#include "base/checked.h"
#include "blockcore/drivers.h"
#include "blockcore/node.h"
#include "blockcore/resize.h"

#include <errno.h>
#include <inttypes.h>

#define SIZE_UNSET UINT64_MAX

struct raw {
    uint64_t offset; /* bytes */
    uint64_t size;   /* bytes; SIZE_UNSET: to the end of the file */
};

static const struct option_row raw_options[] = {
    {"offset", OPTION_SIZE, offsetof(struct raw, offset), NULL,
     "byte of the file at which the disk begins"},
    {"size", OPTION_SIZE, offsetof(struct raw, size), NULL,
     "bytes of the disk, to the end of the file when not given"},
    {0},
};

static int raw_open(struct node *node, struct node_open *open, struct error *error)
{
    struct raw *raw = node->state;
    unsigned perm = PERM_CONSISTENT_READ, shared = PERM_ALL & ~(unsigned)PERM_RESIZE;
    int err;

    raw->size = SIZE_UNSET;
    err = options_take(open->options, raw_options, raw, "driver 'raw'", error);
    if (err < 0)
        return err;
    if (open->flags & NODE_WRITABLE) {
        perm |= PERM_WRITE;
        if (!(open->flags & NODE_SHARE_WRITE))
            shared &= ~(unsigned)PERM_WRITE;
    }
    err = node_open_file(node, open, perm, shared, error);
    if (err < 0)
        return err;
    if (raw->offset > node->file->size)
        return error_set(error, EINVAL,
                         "Offset (%" PRIu64 ") cannot be greater than size of the containing file "
                         "(%" PRIu64 ")",
                         raw->offset, node->file->size);
    node->size = node->file->size - raw->offset;
    if (raw->size != SIZE_UNSET) {
        if (raw->size > node->size)
            return error_set(error, EINVAL,
                             "the size %" PRIu64 " asked for at offset %" PRIu64
                             " passes the end of %s, which has %" PRIu64 " bytes",
                             raw->size, raw->offset, node_name(node), node->file->size);
        node->size = raw->size;
    }
    return 0;
}

static int raw_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    const struct raw *raw = node->state;

    *ret = (struct extent){
        .kind = EXTENT_DATA,
        .flags = EXTENT_WRITABLE,
        .length = length,
        .child = node->file,
        .child_offset = raw->offset + offset,
    };
    return 0;
}

static int raw_resize(struct node *node, uint64_t size, struct error *error)
{
    const struct raw *raw = node->state;
    struct block_resize resize = {.shrink = true};

    if (raw->size != SIZE_UNSET)
        return error_set(error, ENOTSUP, "the size of %s is fixed by the option 'size'",
                         node_name(node));
    if (add_overflows(raw->offset, size, &resize.size))
        return error_set(error, EFBIG, "the size is %" PRIu64 " bytes, it must be below 2^63",
                         size);
    return block_resize(node->file, &resize, error);
}

const struct driver driver_raw = {
    .name = "raw",
    .kind = DRIVER_FORMAT,
    .state_size = sizeof(struct raw),
    .options = raw_options,
    .open = raw_open,
    .map = raw_map,
    .resize = raw_resize,
};
