/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Making images: what does not depend on the format.
 *
 * The file is emptied only when the driver has judged all options, and when the image lock is had:
 * somebody else's image in use is never cut.
 */
#include "blockcore/create.h"

#include "base/sys.h"
#include "blockcore/block.h"
#include "blockcore/engine.h"
#include "blockcore/open.h"
#include "blockcore/path.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>

const char *const preallocation_words[] = {"off", "metadata", "falloc", "full", NULL};

static int find_format(const struct block_context *context, const char *format,
                       const struct driver **ret, struct error *error)
{
    *ret = driver_find(context->drivers, format);
    if (!*ret || (*ret)->kind != DRIVER_FORMAT)
        return open_unknown_driver(context->drivers, format, true, error);
    return 0;
}

/* Opens the backing file: it must be there, and may give the size. */
static int look_at_backing(const struct block_context *context, const char *filename,
                           json_t *options, struct error *error)
{
    const char *backing = json_string_value(json_object_get(options, "backing_file"));
    const char *format = json_string_value(json_object_get(options, "backing_fmt"));
    struct node *node;
    char *path;
    int err;

    if (!backing)
        return 0;
    if (!format)
        return error_set(error, EINVAL,
                         "a backing file needs its format (backing_fmt): guessing "
                         "it is not safe");
    err = path_beside(filename, backing, strlen(backing), &path, error);
    if (err < 0)
        return err;
    err = node_open_image(context, path, format, NULL, 0, &node, NULL, error);
    free(path);
    if (err < 0) {
        error_prefix(error, "cannot open the backing file: ");
        return err;
    }
    if (!json_object_get(options, "size"))
        json_object_set_new(options, "size", json_integer((json_int_t)node->size));
    node_unref(node);
    return 0;
}

static int create(const struct block_create_target *target, const char *format, json_t *options,
                  struct error *error)
{
    const struct driver *driver;
    json_t *copy;
    int err = find_format(target->context, format, &driver, error);

    if (err < 0)
        return err;
    if (!driver->create)
        return error_set(error, ENOTSUP, "images of format '%s' cannot be created", driver->name);
    copy = options ? json_deep_copy(options) : json_object();
    err = copy ? 0 : error_set(error, ENOMEM, "out of memory");
    if (err == 0 && target->filename)
        err = look_at_backing(target->context, target->filename, copy, error);
    if (err == 0)
        err = driver->create(target, copy, error);
    json_decref(copy);
    return err;
}

int block_create(const struct block_context *context, const char *format, const char *filename,
                 json_t *options, struct error *error)
{
    const struct block_create_target target = {.context = context, .filename = filename};

    return create(&target, format, options, error);
}

int block_create_in(const struct block_context *context, const char *format, struct node *file,
                    json_t *options, struct error *error)
{
    const struct block_create_target target = {.context = context, .file = file};

    return create(&target, format, options, error);
}

int block_measure(const struct block_context *context, const char *format, json_t *options,
                  struct block_measure *ret, struct error *error)
{
    const struct driver *driver;
    json_t *copy;
    int err = find_format(context, format, &driver, error);

    if (err < 0)
        return err;
    if (!driver->measure)
        return error_set(error, ENOTSUP, "the size of images of format '%s' cannot be told",
                         driver->name);
    copy = options ? json_deep_copy(options) : json_object();
    err = copy ? driver->measure(copy, ret, error) : error_set(error, ENOMEM, "out of memory");
    json_decref(copy);
    return err;
}

/* Makes the file if there is none. */
static int touch(const char *filename, struct error *error)
{
    int fd;

    do {
        fd = sys->openat(AT_FDCWD, filename, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
                         0644);
    } while (fd == -EINTR);
    if (fd < 0)
        return error_set_errno(error, -fd, "cannot create '%s'", filename);
    sys->close(fd);
    return 0;
}

/* Advice to the file system, while the file is empty: what it does not know is no error. */
static void give_hints(const struct block_create_target *target, int fd)
{
    struct fsxattr attributes;
    int flags = 0;

    if (target->nocow && sys->ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NOCOW_FL;
        sys->ioctl(fd, FS_IOC_SETFLAGS, &flags);
    }
    if (target->extent_size_hint > 0 && sys->ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0) {
        attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attributes.fsx_extsize = target->extent_size_hint;
        sys->ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
}

static int open_empty(const struct block_create_target *target, struct node **ret,
                      struct error *error)
{
    const char *filename = target->filename;
    struct node *node;
    json_t *tree;
    int err = touch(filename, error);

    if (err < 0)
        return err;
    tree = json_object();
    if (!tree || json_object_set_new(tree, "filename", json_string_nocheck(filename)) < 0) {
        json_decref(tree);
        return error_set(error, ENOMEM, "out of memory");
    }
    err = node_open_tree(target->context, tree, NODE_WRITABLE, &node, error);
    json_decref(tree);
    if (err < 0)
        return err;
    if (node->identity.inode != 0) /* a regular file */
        err = node->driver->resize(node, 0, error);
    if (err == 0 && node->identity.inode != 0 && node->driver->descriptor)
        give_hints(target, node->driver->descriptor(node));
    if (err < 0)
        node_unref(node);
    else
        *ret = node;
    return err;
}

int block_create_file(const struct block_create_target *target, struct node **ret,
                      struct error *error)
{
    if (target->filename)
        return open_empty(target, ret, error);
    *ret = node_ref(target->file);
    return 0;
}

int block_preallocate(struct node *file, uint64_t start, uint64_t end, enum preallocation mode)
{
    if (mode == PREALLOCATION_FULL)
        return write_zero_data(file, start, end - start);
    if (mode == PREALLOCATION_FALLOC)
        return engine_zero_child(file, start, end - start, 0);
    if (file->size >= end)
        return 0;
    return filter_resize_file(file, end);
}
