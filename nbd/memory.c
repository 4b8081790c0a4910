/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory accounts.  Nothing is allocated here: takers ask first, then tell what they took and gave
 * back.  A share that waits for others is woken at every give, in the order of waiting, and asks
 * again; waiting happens only when clients are greedy, so waking all is cheap enough and misses
 * none.
 */
#include "nbd/memory.h"

#include "base/reactor.h"
#include "nbd/server.h"

#include <assert.h>

void nbd_memory_init(struct nbd_memory *memory)
{
    memory->used = 0;
    list_init(&memory->waiting);
}

void nbd_share_init(struct nbd_share *share, struct nbd_memory *memory,
                    struct reactor_deferred *wake)
{
    *share = (struct nbd_share){.memory = memory, .wake = wake};
}

void nbd_share_fini(struct nbd_share *share)
{
    assert(share->used == 0 && "memory of a connection that ends is not given back");
    list_remove(&share->link);
}

bool nbd_share_is_full(const struct nbd_share *share, uint64_t bytes)
{
    return share->used + bytes > NBD_CONNECTION_BYTES_MAX;
}

static bool fits(const struct nbd_share *share, uint64_t bytes)
{
    const struct nbd_memory *memory = share->memory;
    uint64_t wanted = share->used + bytes;

    if (wanted <= NBD_SHARE_FLOOR)
        return true;
    if (nbd_share_is_full(share, bytes))
        return false;
    return wanted + memory->used <= NBD_SERVER_BYTES_MAX;
}

bool nbd_share_may_take(struct nbd_share *share, uint64_t bytes)
{
    if (fits(share, bytes)) {
        list_remove(&share->link);
        return true;
    }
    if (!list_linked(&share->link))
        list_append(&share->memory->waiting, &share->link);
    return false;
}

bool nbd_share_is_short(const struct nbd_share *share, uint64_t bytes)
{
    return bytes > NBD_SHARE_FLOOR &&
           share->memory->used - share->used + bytes > NBD_SERVER_BYTES_MAX;
}

bool nbd_share_is_over(const struct nbd_share *share)
{
    return share->used > NBD_SHARE_FLOOR && share->memory->used > NBD_SERVER_BYTES_MAX;
}

void nbd_share_take(struct nbd_share *share, uint64_t bytes)
{
    share->used += bytes;
    share->memory->used += bytes;
}

void nbd_share_give(struct nbd_share *share, uint64_t bytes)
{
    struct list *node;

    if (bytes == 0)
        return;
    share->used -= bytes;
    share->memory->used -= bytes;
    while ((node = list_pop(&share->memory->waiting)))
        reactor_defer(list_entry(node, struct nbd_share, link)->wake);
}
