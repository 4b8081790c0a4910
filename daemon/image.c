/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From the words of the command line to an open node.  With --offset, that is a raw node over the
 * disk that skips its start.
 */
#include "daemon/image.h"

#include "base/io.h"
#include "blockcore/drivers.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct cache_flags {
    unsigned flags;
    bool write_through;
} cache_modes[] = {
    [CACHE_WRITEBACK] = {0, false},          [CACHE_WRITETHROUGH] = {0, true},
    [CACHE_NONE] = {NODE_NO_CACHE, false},   [CACHE_DIRECTSYNC] = {NODE_NO_CACHE, true},
    [CACHE_UNSAFE] = {NODE_NO_FLUSH, false},
};

struct block_context image_context(const struct arguments *arguments)
{
    static const struct io_engine *const engines[] = {
        [AIO_BEST] = NULL,
        [AIO_THREADS] = &io_engine_threads,
        [AIO_NATIVE] = NULL,
        [AIO_IO_URING] = &io_engine_uring,
    };

    return (struct block_context){
        .drivers = block_drivers,
        .engine = engines[arguments->aio],
    };
}

bool image_write_through(const struct arguments *arguments)
{
    return cache_modes[arguments->cache].write_through;
}

static unsigned open_flags(const struct arguments *arguments)
{
    unsigned flags = cache_modes[arguments->cache].flags;

    if (!arguments->read_only)
        flags |= NODE_WRITABLE;
    if (arguments->discard)
        flags |= NODE_UNMAP;
    return flags;
}

static int refuse_offset(uint64_t offset, uint64_t size, struct error *error)
{
    return error_set(error, EINVAL,
                     "Offset (%" PRIu64 ") cannot be greater than size of the containing file "
                     "(%" PRIu64 ")",
                     offset, size);
}

/* Says which image could not be opened, once: what went wrong may name it already. */
static void name_image(const char *image, struct error *error)
{
    static const char cannot[] = "cannot open ";
    char quoted[ERROR_TEXT_MAX];
    char *text = error->text, *name = text;
    size_t length;

    snprintf(quoted, sizeof(quoted), "'%s'", image);
    length = strlen(quoted);
    if (!strncmp(text, cannot, strlen(cannot)))
        name += strlen(cannot);
    if (!strncmp(name, quoted, length) && (name != text || name[length] == ':')) {
        memmove(text, name, strlen(name) + 1);
        error_prefix(error, "Failed to open ");
    } else if (strstr(text, quoted)) {
        error_prefix(error, "Failed to open the image: ");
    } else {
        error_prefix(error, "Failed to open %s: ", quoted);
    }
}

int image_open(const struct block_context *context, const struct arguments *arguments,
               struct node **ret, bool *ret_guessed_raw, struct error *error)
{
    uint64_t offset = arguments->offset;
    struct node *disk;
    int err = node_open_image(context, arguments->image, arguments->format, NULL,
                              open_flags(arguments), &disk, ret_guessed_raw, error);

    if (err == 0 && offset > disk->size) {
        err = refuse_offset(offset, disk->size, error);
        node_unref(disk);
        return err;
    }
    if (err == 0 && offset > 0)
        err = node_open_window(context, disk, offset, &disk, error);
    if (err < 0) {
        name_image(arguments->image, error);
        return err;
    }
    *ret = disk;
    return 0;
}
