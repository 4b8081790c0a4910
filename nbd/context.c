/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Metadata contexts as data: one row for each kind, with what it takes to offer, name and compute
 * it.
 *
 * Numbers: each kind owns a fixed range of them, a single one but for bitmaps, whose numbers follow
 * the order in which they were added to the export.  Nothing here is kept between calls, so a
 * client that walks a changing disk sees what is there when it asks.
 */
#include "nbd/context.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "blockcore/block.h"

#include <errno.h>
#include <string.h>

struct kind {
    const char *space; /* namespace with its colon */
    const char *leaf;  /* the rest of the name; ending in a colon: a bitmap's name follows */
    unsigned first;    /* number */
    unsigned (*count)(const struct nbd_export *nbd_export);
    int (*next)(const struct nbd_export *nbd_export, unsigned index, uint64_t offset,
                uint64_t length, struct nbd_extent *ret);
};

static unsigned always(const struct nbd_export *nbd_export)
{
    (void)nbd_export;
    return 1;
}

static unsigned if_depth(const struct nbd_export *nbd_export)
{
    return nbd_export->allocation_depth;
}

static unsigned bitmaps(const struct nbd_export *nbd_export)
{
    return nbd_export->bitmap_count;
}

static int next_allocation(const struct nbd_export *nbd_export, unsigned index, uint64_t offset,
                           uint64_t length, struct nbd_extent *ret)
{
    struct block_status status;
    int r = block_get_status(nbd_export->node, offset, length, &status);

    (void)index;
    if (r < 0)
        return r;
    ret->length = status.length;
    ret->flags = (status.flags & STATUS_DATA ? 0 : NBD_STATE_HOLE) |
                 (status.flags & STATUS_ZERO ? NBD_STATE_ZERO : 0);
    return 0;
}

static int next_depth(const struct nbd_export *nbd_export, unsigned index, uint64_t offset,
                      uint64_t length, struct nbd_extent *ret)
{
    struct block_status status;
    int r = block_get_status(nbd_export->node, offset, length, &status);

    (void)index;
    if (r < 0)
        return r;
    ret->length = status.length;
    ret->flags = status.depth;
    return 0;
}

static int next_dirty(const struct nbd_export *nbd_export, unsigned index, uint64_t offset,
                      uint64_t length, struct nbd_extent *ret)
{
    struct block_bitmap_extent extent;
    int r = block_bitmap_next(nbd_export->bitmaps[index], offset, length, &extent);

    if (r < 0)
        return r;
    ret->length = extent.length;
    ret->flags = extent.dirty ? NBD_STATE_DIRTY : 0;
    return 0;
}

/* In the order of their numbers. */
static const struct kind kinds[] = {
    {"base:", "allocation", 0, always, next_allocation},
    {"qemu:", "allocation-depth", 1, if_depth, next_depth},
    {"qemu:", "dirty-bitmap:", 2, bitmaps, next_dirty},
};
_Static_assert(2 + NBD_EXPORT_BITMAPS_MAX == NBD_CONTEXTS_MAX, "every bitmap has its number");
_Static_assert(sizeof("qemu:dirty-bitmap:") + BLOCK_BITMAP_NAME_MAX <= NBD_STRING_MAX,
               "every name is a string of the protocol");

static uint64_t kind_set(const struct kind *kind, const struct nbd_export *nbd_export)
{
    unsigned count = kind->count(nbd_export);

    return ((UINT64_C(1) << count) - 1) << kind->first;
}

static bool is_bitmap(const struct kind *kind)
{
    return kind->next == next_dirty;
}

uint64_t nbd_context_all(const struct nbd_export *nbd_export)
{
    uint64_t set = 0;

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        set |= kind_set(&kinds[i], nbd_export);
    return set;
}

static const struct kind *kind_of(unsigned context)
{
    size_t i = ARRAY_SIZE(kinds) - 1;

    while (context < kinds[i].first)
        i--;
    return &kinds[i];
}

static size_t append(char *out, size_t length, const char *text)
{
    size_t n = strlen(text);

    memcpy(out + length, text, n);
    return length + n;
}

size_t nbd_context_name(const struct nbd_export *nbd_export, unsigned context, char *out)
{
    const struct kind *kind = kind_of(context);
    size_t length = append(out, append(out, 0, kind->space), kind->leaf);

    if (is_bitmap(kind))
        length = append(out, length, nbd_export->bitmaps[context - kind->first]->name);
    return length;
}

/* Takes `text` off the front of a query. */
static bool take_prefix(struct byte_reader *query, const char *text)
{
    size_t length = strlen(text);

    if (query->left < length || memcmp(query->data, text, length) != 0)
        return false;
    return byte_reader_skip(query, length);
}

static uint64_t query_bitmap(const struct kind *kind, const struct nbd_export *nbd_export,
                             const struct byte_reader *name)
{
    for (unsigned i = 0; i < nbd_export->bitmap_count; i++) {
        const char *candidate = nbd_export->bitmaps[i]->name;

        if (strlen(candidate) == name->left && memcmp(candidate, name->data, name->left) == 0)
            return UINT64_C(1) << (kind->first + i);
    }
    return 0;
}

static uint64_t query_kind(const struct kind *kind, const struct nbd_export *nbd_export,
                           struct byte_reader query, bool list)
{
    if (!take_prefix(&query, kind->space))
        return 0;
    if (query.left == 0)
        return list ? kind_set(kind, nbd_export) : 0;
    if (!take_prefix(&query, kind->leaf))
        return 0;
    if (query.left == 0)
        return list || !is_bitmap(kind) ? kind_set(kind, nbd_export) : 0;
    return is_bitmap(kind) ? query_bitmap(kind, nbd_export, &query) : 0;
}

uint64_t nbd_context_query(const struct nbd_export *nbd_export, const void *query, size_t length,
                           bool list)
{
    uint64_t set = 0;

    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        set |= query_kind(&kinds[i], nbd_export, byte_reader_of(query, length), list);
    return set;
}

int nbd_context_next(const struct nbd_export *nbd_export, unsigned context, uint64_t offset,
                     uint64_t length, struct nbd_extent *ret)
{
    const struct kind *kind = kind_of(context);

    return kind->next(nbd_export, context - kind->first, offset, length, ret);
}
