/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the size of a node: what does not depend on the format.
 *
 * A format that allocates makes its tables large enough first (resize_prepare), then what the new
 * part must not show is zeroed, and preallocated if asked for, and at last the format makes the new
 * size visible (resize).  A smaller disk is the format's work alone.
 */
#include "blockcore/resize.h"

#include "base/checked.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>

/*
 * Whether the first part of a range shows anything, of this node or (if given) of the backing node;
 * *ret: how long it is.
 */
static int shows_data(struct node *node, const struct node *backing, uint64_t offset,
                      uint64_t length, uint64_t *ret)
{
    struct extent e;
    int err = node->driver->map(node, offset, length, &e);

    if (err < 0)
        return err;
    *ret = e.length;
    if (e.kind != EXTENT_ABSENT)
        return e.kind != EXTENT_ZERO;
    if (!backing || offset >= backing->size)
        return 0;
    *ret = min_u64(e.length, backing->size - offset);
    return 1;
}

/* Whole clusters by the format's means, if it has any; else, and for a part of one, by a write. */
static int zero_piece(struct node *node, uint64_t offset, uint64_t length)
{
    int err = -ENOTSUP;

    if (is_aligned(offset, node->cluster_size) && node->driver->zero)
        err = node->driver->zero(node, offset, length, ZERO_MAY_UNMAP);
    return err == -ENOTSUP ? write_zeroes_locked(node, offset, length) : err;
}

/* Zeroes what shows in [offset, end); the first cluster may be in use up to `offset`. */
static int clear(struct node *node, const struct node *backing, uint64_t offset, uint64_t end)
{
    uint64_t border = min_u64(align_up(offset, node->cluster_size), end);
    int err = 0;

    while (offset < end && err == 0) {
        uint64_t n = 0;

        err = shows_data(node, backing, offset, (offset < border ? border : end) - offset, &n);
        if (err > 0) {
            /* Whole clusters: what the backing file ends in. */
            n = min_u64(align_up(offset + n, node->cluster_size), end) - offset;
            err = zero_piece(node, offset, n);
        }
        offset += n;
        coroutine_yield();
    }
    engine_forget_decoded(node);
    return err;
}

/* The storage of one allocation, which must read as zeroes. */
static int fill_storage(const struct allocation *a, enum preallocation mode)
{
    uint64_t end = a->child_offset + a->length;

    if (mode == PREALLOCATION_METADATA && !a->reads_zero)
        return engine_zero_child(a->child, a->child_offset, a->length, ZERO_MAY_UNMAP);
    return block_preallocate(a->child, a->child_offset, end, mode);
}

/*
 * New storage of an encrypted node reads as noise, whatever is there: it is called zero, or, where
 * the format cannot do that and keep it, holds encrypted zeroes.
 */
static int hide_noise(struct node *node, const struct allocation *a)
{
    int err = -ENOTSUP;

    if (!node->encrypted)
        return 0;
    if (node->driver->zero)
        err = node->driver->zero(node, a->offset, a->length, ZERO_KEEP);
    return err == -ENOTSUP ? write_zeroes_locked(node, a->offset, a->length) : err;
}

/*
 * Gives storage to all of it.  What shares storage with bytes in front of `offset` is written: it
 * may have to be copied.
 */
static int preallocate(struct node *node, uint64_t offset, uint64_t end, enum preallocation mode)
{
    uint64_t border = min_u64(align_up(offset, node->lock_size), end);
    int err = 0;

    if (mode == PREALLOCATION_OFF)
        return 0;
    if (offset < border)
        err = write_zeroes_locked(node, offset, border - offset);
    for (offset = border; offset < end && err == 0;) {
        struct allocation a;

        err = node->driver->allocate(node, offset, end - offset, &a);
        if (err < 0)
            break;
        err = fill_storage(&a, mode);
        if (err == 0)
            err = node->driver->commit(node, &a);
        if (err < 0)
            node->driver->abort(node, &a);
        else
            err = hide_noise(node, &a);
        offset = a.offset + a.length;
        coroutine_yield();
    }
    return err;
}

static int grow_format(struct node *node, const struct block_resize *r, struct error *error)
{
    uint64_t old = node->size;
    int err;

    node->size = r->size;
    err = clear(node, node->backing, old, r->size);
    if (err < 0)
        error_set_errno(error, -err, "cannot zero what %s is to be enlarged by", node_name(node));
    if (err == 0) {
        err = preallocate(node, old, r->size, r->preallocation);
        if (err < 0)
            error_set_errno(error, -err, "cannot preallocate what %s is to be enlarged by",
                            node_name(node));
    }
    if (err == 0)
        err = node->driver->resize(node, r->size, error);
    if (err < 0)
        node->size = old;
    return err;
}

/* A format without tables: its file grows, and is filled afterwards. */
static int grow_plain(struct node *node, const struct block_resize *r, struct error *error)
{
    uint64_t old = node->size;
    int err;

    if (r->preallocation == PREALLOCATION_METADATA)
        return error_set(error, ENOTSUP,
                         "images of format '%s' have no metadata to preallocate: use off, falloc "
                         "or full",
                         node->driver->name);
    err = node->driver->resize(node, r->size, error);
    if (err < 0)
        return err;
    node->size = r->size;
    if (r->preallocation == PREALLOCATION_FULL)
        err = write_zero_data(node, old, r->size - old);
    if (r->preallocation == PREALLOCATION_FALLOC)
        err = block_zero(node, old, r->size - old, 0);
    if (err == 0)
        err = block_flush(node);
    if (err == 0)
        return 0;
    error_set_errno(error, -err, "cannot fill what %s was enlarged by", node_name(node));
    node->driver->resize(node, old, NULL);
    node->size = old;
    return err;
}

static int shrink(struct node *node, uint64_t size, struct error *error)
{
    uint64_t old = node->size;
    int err = node->driver->resize(node, size, error);

    if (err < 0)
        return err;
    /* Other programs that make it larger again may not look at what the last cluster holds. */
    if (node->driver->allocate)
        err = clear(node, NULL, size, min_u64(align_up(size, node->lock_size), old));
    node->size = size;
    engine_forget_decoded(node);
    if (err == 0)
        err = block_flush(node);
    if (err == 0 && node->driver->resize_finish)
        node->driver->resize_finish(node);
    return err < 0 ? error_set_errno(error, -err, "cannot clean up behind the new end of %s",
                                     node_name(node))
                   : 0;
}

static int change(struct node *node, const struct block_resize *r, struct error *error)
{
    int err = 0;

    if (node->driver->resize_prepare)
        err = node->driver->resize_prepare(node, r->size, error);
    if (err < 0)
        return err;
    if (r->size < node->size)
        return shrink(node, r->size, error);
    return node->driver->allocate ? grow_format(node, r, error) : grow_plain(node, r, error);
}

static int judge(const struct node *node, const struct block_resize *r, struct error *error)
{
    if (!node->driver->resize)
        return error_set(error, ENOTSUP, "images of format '%s' cannot be resized",
                         node->driver->name);
    if (!node_writable(node))
        return error_set(error, EROFS, "%s is not open for writing", node_name(node));
    if (is_protocol(node) && r->preallocation != PREALLOCATION_OFF)
        return error_set(error, ENOTSUP, "files are preallocated through the format above them");
    if (r->size >= node->size)
        return 0;
    if (!r->shrink)
        return error_set(error, EINVAL,
                         "%s has %" PRIu64 " bytes; making it smaller deletes all data behind the "
                         "new end, which must be asked for (shrink)",
                         node_name(node), node->size);
    if (r->preallocation != PREALLOCATION_OFF)
        return error_set(error, EINVAL, "preallocation does not go with making an image smaller");
    return 0;
}

int block_resize(struct node *node, const struct block_resize *resize, struct error *error)
{
    struct block_resize rounded = *resize;
    uint32_t unit = node->driver->size_unit;
    struct range_lock lock;
    int err;

    if (is_filter(node)) {
        err = block_resize(node->file, resize, error);
        node->size = node->file->size;
        return err;
    }
    if (rounded.size > OFFSET_MAX - unit)
        return error_set(error, EFBIG, "the size is %" PRIu64 " bytes, it must be below 2^63",
                         rounded.size);
    if (unit)
        rounded.size = align_up(rounded.size, unit);
    TRACE(block_resize, "%s from %" PRIu64 " to %" PRIu64, node_name(node), node->size,
          rounded.size);
    range_lock_exclusive(&node->locks, &lock, 0, OFFSET_MAX);
    err = judge(node, &rounded, error);
    if (err == 0 && rounded.size != node->size)
        err = change(node, &rounded, error);
    range_unlock(&node->locks, &lock);
    return err;
}
