/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Accounts of the memory that requests in flight hold: one for all connections, a share for each.
 *
 * A share may always grow to NBD_SHARE_FLOOR, and to NBD_CONNECTION_BYTES_MAX at most.  In between
 * it may be as large as what is left for all: the more is in use, the less a single client gets,
 * and something is always left for the next one.  A client that is over its limit is not read from.
 */
#ifndef EVNBD_NBD_MEMORY_H
#define EVNBD_NBD_MEMORY_H

#include "base/list.h"

#define NBD_SHARE_FLOOR (UINT64_C(1) << 20)

struct reactor_deferred;

struct nbd_memory {
    uint64_t used;
    struct list waiting; /* shares that wait until others give back */
};

struct nbd_share {
    struct nbd_memory *memory;
    uint64_t used;
    struct list link;              /* in memory->waiting */
    struct reactor_deferred *wake; /* run when a share that waits should try again */
};

void nbd_memory_init(struct nbd_memory *memory);
void nbd_share_init(struct nbd_share *share, struct nbd_memory *memory,
                    struct reactor_deferred *wake);
/* All must have been given back. */
void nbd_share_fini(struct nbd_share *share);

/* Whether `bytes` more may be taken. False: the share waits, and its `wake` is run when it may
 * help. */
bool nbd_share_may_take(struct nbd_share *share, uint64_t bytes);
void nbd_share_take(struct nbd_share *share, uint64_t bytes);
void nbd_share_give(struct nbd_share *share, uint64_t bytes);

#endif
