/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dirty bitmaps of nodes: finding them, reading within their bounds, and what is checked before
 * they are changed.  The bitmaps themselves are the drivers'.
 */
#include "blockcore/bitmap.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/dirty_set.h"
#include "blockcore/filter.h"
#include "blockcore/node.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct block_bitmap *block_bitmap_get(struct node *node, size_t index)
{
    return node->driver->bitmap ? node->driver->bitmap(node, index) : NULL;
}

struct block_bitmap *block_bitmap_get_named(struct node *node, const char *name)
{
    struct block_bitmap *bitmap;

    for (size_t i = 0; (bitmap = block_bitmap_get(node, i)); i++) {
        if (strcmp(bitmap->name, name) == 0)
            return bitmap;
    }
    return NULL;
}

#define MORE_MAX 40 /* ", ''" and the number of further bitmaps */

/* For messages. */
struct shown {
    char text[80];
};

static struct shown show(const char *name)
{
    struct shown shown;

    error_escape(shown.text, sizeof(shown.text), name, strlen(name));
    return shown;
}

static int check_usable(const struct block_bitmap *bitmap, struct error *error)
{
    if (!bitmap->unusable)
        return 0;
    return error_set(error, EINVAL, "Bitmap '%s' cannot be used: %s", show(bitmap->name).text,
                     bitmap->unusable);
}

/* Names the bitmaps that there are, as far as there is room. */
static int not_found(struct node *node, const char *name, struct error *error)
{
    char listed[400] = "";
    struct block_bitmap *bitmap;
    size_t used = 0, more = 0;

    for (struct node *at = node; at; at = at->backing) {
        for (size_t i = 0; (bitmap = block_bitmap_get(at, i)); i++) {
            if (used + sizeof(struct shown) + MORE_MAX > sizeof(listed))
                more++;
            else
                used += (size_t)snprintf(listed + used, sizeof(listed) - used, "%s'%s'",
                                         used > 0 ? ", " : "", show(bitmap->name).text);
        }
    }
    if (used == 0)
        return error_set(error, ENOENT, "Bitmap '%s' is not found: %s has none%s", show(name).text,
                         node_name(node), node->backing ? ", nor have its backing files" : "");
    if (more > 0)
        snprintf(listed + used, sizeof(listed) - used, " and %zu more", more);
    return error_set(error, ENOENT, "Bitmap '%s' is not found; %s%s: %s", show(name).text,
                     node_name(node), node->backing ? " and its backing files have" : " has",
                     listed);
}

int block_bitmap_find(struct node *node, const char *name, struct block_bitmap **ret,
                      struct error *error)
{
    struct block_bitmap *bitmap = NULL;
    int err;

    /* A filter shows the same bytes, so that the bitmaps of its file are about them too. */
    for (struct node *at = filter_bottom(node); at && !bitmap;
         at = at->backing ? filter_bottom(at->backing) : NULL)
        bitmap = block_bitmap_get_named(at, name);
    if (!bitmap)
        return not_found(node, name, error);
    err = check_usable(bitmap, error);
    if (err == 0)
        *ret = bitmap;
    return err;
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

static int check_writable(const struct node *node, struct error *error)
{
    if (!node_writable(node))
        return error_set(error, EROFS, "%s is not open for writing: its bitmaps cannot be changed",
                         node_name(node));
    return 0;
}

/* What all changes of a bitmap begin with: nobody writes to the node until the lock is released. */
static int begin_change(struct block_bitmap *bitmap, struct range_lock *lock, struct error *error)
{
    int err = check_writable(bitmap->node, error);

    if (err == 0 && !bitmap->ops->remove)
        err = error_set(error, ENOTSUP, "bitmaps of format '%s' cannot be changed",
                        bitmap->node->driver->name);
    if (err == 0)
        range_lock_exclusive(&bitmap->node->locks, lock, 0, OFFSET_MAX);
    return err;
}

static int check_new(struct node *node, const char *name, uint64_t granularity, struct error *error)
{
    size_t length = strlen(name);

    if (length == 0 || length > BLOCK_BITMAP_NAME_MAX)
        return error_set(error, EINVAL, "the name of a bitmap has 1 to %d bytes, not %zu",
                         BLOCK_BITMAP_NAME_MAX, length);
    if (!bytes_are_utf8(name, length))
        return error_set(error, EINVAL, "the name of a bitmap must be UTF-8, which '%s' is not",
                         show(name).text);
    if (granularity != 0 &&
        (!is_power_of_two(granularity) || granularity < BLOCK_BITMAP_GRANULARITY_MIN ||
         granularity > BLOCK_BITMAP_GRANULARITY_MAX))
        return error_set(error, EINVAL,
                         "the granularity of bitmap '%s' must be a power of two from 512 bytes to "
                         "2 GiB, not %" PRIu64,
                         show(name).text, granularity);
    if (block_bitmap_get_named(node, name))
        return error_set(error, EEXIST, "Bitmap '%s' exists already", show(name).text);
    return 0;
}

int block_bitmap_add(struct node *node, const char *name, uint64_t granularity, bool enabled,
                     struct error *error)
{
    struct range_lock lock;
    int err = check_writable(node, error);

    if (err == 0 && !node->driver->bitmap_add)
        err =
            error_set(error, ENOTSUP, "images of format '%s' have no bitmaps", node->driver->name);
    if (err < 0)
        return err;
    range_lock_exclusive(&node->locks, &lock, 0, OFFSET_MAX);
    err = check_new(node, name, granularity, error);
    if (err == 0)
        err = node->driver->bitmap_add(node, name, granularity, enabled, error);
    range_unlock(&node->locks, &lock);
    return err;
}

int block_bitmap_remove(struct block_bitmap *bitmap, struct error *error)
{
    struct node *node = bitmap->node;
    struct range_lock lock;
    int err = begin_change(bitmap, &lock, error);

    if (err < 0)
        return err;
    err = bitmap->ops->remove(bitmap, error);
    range_unlock(&node->locks, &lock);
    return err;
}

int block_bitmap_clear(struct block_bitmap *bitmap, struct error *error)
{
    struct range_lock lock;
    int err = check_usable(bitmap, error);

    if (err == 0)
        err = begin_change(bitmap, &lock, error);
    if (err < 0)
        return err;
    err = bitmap->ops->clear(bitmap, error);
    range_unlock(&bitmap->node->locks, &lock);
    return err;
}

int block_bitmap_set_enabled(struct block_bitmap *bitmap, bool enabled, struct error *error)
{
    struct range_lock lock;
    int err = check_usable(bitmap, error);

    if (err == 0)
        err = begin_change(bitmap, &lock, error);
    if (err < 0)
        return err;
    if (bitmap->enabled != enabled)
        err = bitmap->ops->set_enabled(bitmap, enabled, error);
    range_unlock(&bitmap->node->locks, &lock);
    return err;
}

/* What is dirty in `source`, as bits of the granularity of `set`. */
static int collect(struct block_bitmap *source, uint64_t granularity, struct dirty_set *set,
                   struct error *error)
{
    struct block_bitmap_extent extent;

    for (uint64_t at = 0; at < source->size; at += extent.length) {
        int err = block_bitmap_next(source, at, source->size - at, &extent);
        uint64_t first = at / granularity;

        if (err < 0)
            return error_set_errno(error, -err, "cannot read bitmap '%s'", show(source->name).text);
        if (extent.dirty)
            dirty_set_add(set, first, div_round_up(at + extent.length, granularity) - first);
        coroutine_yield();
    }
    return 0;
}

int block_bitmap_merge(struct block_bitmap *source, struct block_bitmap *target,
                       struct error *error)
{
    struct dirty_budget budget = {.max = BLOCK_BITMAP_MEMORY_MAX};
    struct range_lock lock;
    struct dirty_set set;
    int err = check_usable(source, error);

    if (err == 0)
        err = check_usable(target, error);
    if (err == 0 && source->size != target->size)
        err =
            error_set(error, EINVAL,
                      "bitmap '%s' is of a disk of %" PRIu64 " bytes and cannot be merged into "
                      "'%s', which is of one of %" PRIu64 " bytes",
                      show(source->name).text, source->size, show(target->name).text, target->size);
    if (err == 0)
        err = begin_change(target, &lock, error);
    if (err < 0)
        return err;
    dirty_set_init(&set, div_round_up(target->size, target->granularity), &budget);
    err = collect(source, target->granularity, &set, error);
    if (err == 0)
        err = target->ops->merge(target, &set, error);
    dirty_set_clear(&set);
    range_unlock(&target->node->locks, &lock);
    return err;
}
