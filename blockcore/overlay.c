/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Temporary overlays.  The file has no name, from the start where the file system can do that, so
 * that nothing is left behind however the process ends.  Nothing is ever made durable: nobody will
 * read it.  No image names the base as its backing file; the nodes are linked by hand.
 */
#include "blockcore/overlay.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/sys.h"
#include "blockcore/create.h"
#include "blockcore/drivers.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NAME_TRIES 16

/* A file that has a name for a moment, for file systems without O_TMPFILE. */
static int open_and_unlink(const char *directory)
{
    int fd = -EEXIST;

    for (int i = 0; i < NAME_TRIES && fd == -EEXIST; i++) {
        uint64_t number;
        char *path;
        int err = sys->random(&number, sizeof(number));

        if (err < 0)
            return err;
        if (asprintf(&path, "%s/evnbd-overlay-%016" PRIx64, directory, number) < 0)
            return -ENOMEM;
        fd = sys->openat(AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd >= 0)
            sys->unlinkat(AT_FDCWD, path, 0);
        free(path);
    }
    return fd;
}

static int open_file(const struct overlay_place *place)
{
    int fd;

    if (!place->directory)
        return sys->memfd("evnbd-overlay", MFD_CLOEXEC);
    do {
        fd = sys->openat(AT_FDCWD, place->directory, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    } while (fd == -EINTR);
    /* EISDIR: a kernel or file system that takes it for the opening of a directory. */
    return fd == -EOPNOTSUPP || fd == -EISDIR ? open_and_unlink(place->directory) : fd;
}

/* The file as a node. */
static int open_node(const struct block_context *context, const struct overlay_place *place,
                     unsigned flags, struct node **ret, struct error *error)
{
    struct node_descriptor descriptor = {.fd = open_file(place), .bytes_max = place->bytes_max};
    char *name;
    int err;

    if (descriptor.fd < 0 && !place->directory)
        return error_set_errno(error, -descriptor.fd, "cannot get memory for it");
    if (descriptor.fd < 0)
        return error_set_errno(error, -descriptor.fd,
                               "cannot make a file in '%s' (TMPDIR names the directory)",
                               place->directory);
    if (asprintf(&name, "temporary overlay in %s", place->directory ? place->directory : "memory") <
        0) {
        sys->close(descriptor.fd);
        return error_set(error, ENOMEM, "out of memory");
    }
    descriptor.name = name;
    err = node_open_descriptor(context, &descriptor, flags, ret, error);
    free(name);
    return err;
}

static int create(const struct block_context *context, struct node *file, uint64_t size,
                  struct error *error)
{
    json_t *options = json_pack("{s:I}", "size", (json_int_t)size);
    int err = options ? block_create_in(context, driver_qcow2.name, file, options, error)
                      : error_set(error, ENOMEM, "out of memory");

    json_decref(options);
    return err;
}

/* The image in `file`, whose reference is taken. */
static int open_image(const struct block_context *context, struct node *file, struct node **ret,
                      struct error *error)
{
    json_t *tree = json_pack("{s:s, s:n}", "driver", driver_qcow2.name, "backing");
    int err = node_open_above(context, tree, file, ret, error);

    json_decref(tree);
    return err;
}

int node_open_overlay(const struct block_context *context, struct node *base,
                      const struct overlay_place *place, unsigned flags, struct node **ret,
                      struct error *error)
{
    struct node *file, *node = NULL;
    int err;

    flags = (flags & NODE_UNMAP) | NODE_WRITABLE | NODE_NO_FLUSH | NODE_TEMPORARY;
    err = open_node(context, place, flags, &file, error);
    if (err == 0) {
        err = create(context, file, base->size, error);
        if (err < 0)
            node_unref(file);
    }
    if (err == 0)
        err = open_image(context, file, &node, error);
    if (err < 0) {
        node_unref(base);
        error_prefix(error, "cannot make a temporary overlay: ");
        return err;
    }
    node->backing = base;
    base->parent = node;
    node->detect_zeroes = base->detect_zeroes;
    node->size = base->size; /* the format counts in sectors */
    *ret = node;
    return 0;
}
