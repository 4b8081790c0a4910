/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checking and repairing images.
 *
 * Any open node can be checked.  Opened with NODE_CHECK, so can images that are too broken to be
 * used; nothing is read from such a node.  To repair, open it with NODE_REPAIR: the same, and its
 * file is writable.  After a repair the node is stale: close it, and open it again.
 */
#ifndef EVNBD_BLOCKCORE_CHECK_H
#define EVNBD_BLOCKCORE_CHECK_H

#include "base/error.h"

#include <stdint.h>

struct node;

enum {
    CHECK_FIX_LEAKS = 1 << 0,  /* give back clusters that nothing uses */
    CHECK_FIX_ERRORS = 1 << 1, /* everything else; what cannot be saved is cut off, and said */
};

/* What was found, and is still so: what was repaired is in the `fixed` fields only. */
struct block_check_result {
    uint64_t corruptions, corruptions_fixed; /* contradictions that endanger data */
    uint64_t leaks, leaks_fixed;             /* clusters taken and not used: only space is lost */
    uint64_t check_errors;                   /* places that could not be examined */
    uint64_t total_clusters;                 /* of the disk */
    uint64_t allocated_clusters;             /* guest clusters that have storage */
    uint64_t fragmented_clusters;            /* of them: not where the one before ends */
    uint64_t compressed_clusters;            /* of them */
    uint64_t image_end_offset;               /* where the last used cluster of the file ends */
};

/* One check: in: what to fix and who is told; out: the result. */
struct block_check {
    unsigned fix;                                /* CHECK_FIX_* */
    void (*report)(void *arg, const char *text); /* one finding, a sentence; NULL: nobody asks */
    void *report_arg;
    struct block_check_result result;
};

/*
 * Checks the image that `node` is.  In a coroutine.  Returns 0 when it was examined, whatever was
 * found, or -ENOTSUP (the format has no check), -EROFS (repairs need NODE_REPAIR), -EIO, -ENOMEM...
 * with a sentence.
 */
int block_check(struct node *node, struct block_check *check, struct error *error);

#endif
