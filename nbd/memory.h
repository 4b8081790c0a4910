/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Accounts of the memory that requests in flight hold: one for all connections, a share for each.
 *
 * A share may always grow to NBD_SHARE_FLOOR, and to NBD_CONNECTION_BYTES_MAX at most.  In between
 * it may be as large as what is left for all: the more is in use, the less a single client gets,
 * and something is always left for the next one.  When not enough is left, a share that holds
 * nothing gets the reserve, one at a time: any first request gets through in the end.  A client
 * that is over its limit is not read from.
 *
 * So all together is at most NBD_SERVER_BYTES_MAX, one request of NBD_PAYLOAD_MAX bytes, and
 * NBD_SHARE_FLOOR for each client.
 */
#ifndef EVNBD_NBD_MEMORY_H
#define EVNBD_NBD_MEMORY_H

#include "base/list.h"

#define NBD_SHARE_FLOOR (UINT64_C(1) << 20)

struct reactor_deferred;

struct nbd_memory {
    uint64_t used;
    struct list waiting;             /* shares that wait until others give back */
    const struct nbd_share *reserve; /* that has taken more than was left, until it holds nothing */
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
