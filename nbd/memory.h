/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Accounts of the memory that requests in flight hold: one for all connections, a share for each.
 *
 * A share may always grow to NBD_SHARE_FLOOR, and to NBD_CONNECTION_BYTES_MAX at most.  In between
 * it may be as large as what is left for all: the more is in use, the less a single client gets,
 * and something is always left for the next one.  A client that is over its limit is not read from.
 *
 * Others may hold all of it for as long as they like, since a client may be slow to take its
 * replies.  So every request must get through with NBD_SHARE_FLOOR: a WRITE takes its payload in
 * parts then (payload.c), and a READ reads and sends one small part after the other (read.c).
 *
 * So all together is at most NBD_SERVER_BYTES_MAX, and for each client NBD_SHARE_FLOOR and a chunk
 * of its output queue.
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
/* Whether they are too many for one client, however little others hold. */
bool nbd_share_is_full(const struct nbd_share *share, uint64_t bytes);
/* Whether others hold so much that it may not take them even when it has given back all it has. */
bool nbd_share_is_short(const struct nbd_share *share, uint64_t bytes);
/* Whether it holds more than its floor while there is not enough for all. */
bool nbd_share_is_over(const struct nbd_share *share);
void nbd_share_take(struct nbd_share *share, uint64_t bytes);
void nbd_share_give(struct nbd_share *share, uint64_t bytes);

#endif
