/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Exports: the facts that a client is told, worked out once from the node.
 *
 * An export owns copies of its strings and one reference to its node.  Its size never changes while
 * it lives, so that requests can be judged without asking the node.
 */
#include "nbd/export.h"

#include "base/checked.h"
#include "base/error.h"
#include "blockcore/bitmap.h"
#include "blockcore/node.h"
#include "nbd/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void nbd_exports_init(struct nbd_exports *exports)
{
    list_init(&exports->list);
    exports->default_export = NULL;
}

static uint16_t transmission_flags(const struct node *node, bool read_only, bool multi_conn)
{
    uint16_t flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (read_only)
        flags |= NBD_FLAG_READ_ONLY;
    else
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    if (multi_conn)
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    if (node->rotational)
        flags |= NBD_FLAG_ROTATIONAL;
    return flags;
}

/* The protocol wants a power of two, at least 512 and at most the largest payload. */
static uint32_t preferred_block(const struct node *node)
{
    uint32_t preferred = 4096;

    if (node->cluster_size > preferred && is_power_of_two(node->cluster_size))
        preferred = node->cluster_size;
    return preferred < NBD_PAYLOAD_MAX ? preferred : NBD_PAYLOAD_MAX;
}

struct nbd_export *nbd_export_new(const char *name, const char *description, struct node *node,
                                  bool read_only, bool multi_conn)
{
    struct nbd_export *nbd_export = calloc(1, sizeof(*nbd_export));

    if (!nbd_export)
        return NULL;
    nbd_export->name = strdup(name);
    nbd_export->description = description ? strdup(description) : NULL;
    if (!nbd_export->name || (description && !nbd_export->description)) {
        free(nbd_export->name);
        free(nbd_export->description);
        free(nbd_export);
        return NULL;
    }
    co_mutex_init(&nbd_export->header_mutex);
    nbd_export->node = node_ref(node);
    nbd_export->size = node->size;
    nbd_export->read_only = read_only;
    nbd_export->flags = transmission_flags(node, read_only, multi_conn);
    nbd_export->block_min = 1;
    nbd_export->block_preferred = preferred_block(node);
    nbd_export->block_max = NBD_PAYLOAD_MAX;
    return nbd_export;
}

void nbd_export_free(struct nbd_export *nbd_export)
{
    if (!nbd_export)
        return;
    list_remove(&nbd_export->link);
    node_unref(nbd_export->node);
    free(nbd_export->name);
    free(nbd_export->description);
    free(nbd_export);
}

int nbd_export_add_bitmap(struct nbd_export *nbd_export, const char *name, struct error *error)
{
    struct block_bitmap *bitmap;
    char shown[80];
    int r = block_bitmap_find(nbd_export->node, name, &bitmap, error);

    if (r < 0)
        return r;
    /* It would change under a client that counts on a disk that does not. */
    if (nbd_export->read_only && bitmap->enabled && node_writable(bitmap->node))
        return error_set(error, EINVAL,
                         "Enabled bitmap '%s' cannot be exported read-only while its image is open "
                         "for writing",
                         error_escape(shown, sizeof(shown), name, strlen(name)));
    for (unsigned i = 0; i < nbd_export->bitmap_count; i++) {
        if (nbd_export->bitmaps[i] == bitmap)
            return error_set(error, EEXIST, "Bitmap '%s' was given more than once",
                             error_escape(shown, sizeof(shown), name, strlen(name)));
    }
    if (nbd_export->bitmap_count == NBD_EXPORT_BITMAPS_MAX)
        return error_set(error, ENOSPC, "Bitmap '%s' is one too many: an export can have up to %d",
                         error_escape(shown, sizeof(shown), name, strlen(name)),
                         NBD_EXPORT_BITMAPS_MAX);
    nbd_export->bitmaps[nbd_export->bitmap_count++] = bitmap;
    return 0;
}

struct nbd_export *nbd_exports_find(const struct nbd_exports *exports, const void *name,
                                    size_t length)
{
    list_for_each(it, &exports->list)
    {
        struct nbd_export *nbd_export = list_entry(it, struct nbd_export, link);

        if (strlen(nbd_export->name) == length && memcmp(nbd_export->name, name, length) == 0)
            return nbd_export;
    }
    return length == 0 ? exports->default_export : NULL;
}
