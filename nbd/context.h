/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Metadata contexts: what BLOCK_STATUS can tell of an export.
 * NBD protocol, "Metadata querying"; QEMU's own are described in its "QEMU NBD protocol support".
 *
 * Every export numbers its contexts from 0, the same for all clients as long as it lives; the
 * number is the context's id on the wire and its bit in a set.
 *
 *   base:allocation           always
 *   qemu:allocation-depth     exports with allocation_depth
 *   qemu:dirty-bitmap:NAME    one for each exported bitmap
 */
#ifndef EVNBD_NBD_CONTEXT_H
#define EVNBD_NBD_CONTEXT_H

#include "nbd/export.h"
#include "nbd/wire.h"

#include <stddef.h>

/* Numbers are below this, so that a set of contexts fits a word. */
#define NBD_CONTEXTS_MAX 64

/* Flags of extents. */
enum {
    NBD_STATE_HOLE = 1 << 0,  /* base:allocation */
    NBD_STATE_ZERO = 1 << 1,  /* base:allocation */
    NBD_STATE_DIRTY = 1 << 0, /* qemu:dirty-bitmap */
};

struct nbd_extent {
    uint64_t length; /* bytes, at least 1 */
    uint64_t flags;  /* fits 32 bits with all contexts that there are */
};

/* The set of all contexts of the export: a bit for each number in use. */
uint64_t nbd_context_all(const struct nbd_export *nbd_export);

/* The full name; `out` has room for NBD_STRING_MAX bytes. Returns its length (no NUL is put). */
size_t nbd_context_name(const struct nbd_export *nbd_export, unsigned context, char *out);

/*
 * The contexts that a client's query names.  For a list ("base:" and the like are wildcards), or
 * for a selection (exact names only). A query that nothing here understands names none.
 */
uint64_t nbd_context_query(const struct nbd_export *nbd_export, const void *query, size_t length,
                           bool list);

/*
 * What the context tells of the first bytes of a range inside the export: ret->length is at most
 * `length`.  Neighbors may have the same flags; who wants them merged merges.  In a coroutine; may
 * wait. Returns 0 or negative errno.
 */
int nbd_context_next(const struct nbd_export *nbd_export, unsigned context, uint64_t offset,
                     uint64_t length, struct nbd_extent *ret);

#endif
