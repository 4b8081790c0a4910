/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where clients come from, so that what one of them may take can be limited: an IPv4 address (also
 * one mapped into IPv6), the network of 64 bits of an IPv6 address, or the user of a Unix socket's
 * peer.  Peers that cannot be told apart count as one.
 */
#ifndef EVNBD_NBD_ORIGIN_H
#define EVNBD_NBD_ORIGIN_H

#include "base/list.h"

#include <stdint.h>
#include <sys/socket.h>

#define NBD_ORIGIN_BUCKETS 256

struct nbd_origin_key {
    uint8_t bytes[9]; /* the kind, and what tells apart within it */
};

struct nbd_origin {
    struct list link;
    struct nbd_origin_key key;
    unsigned handshakes, clients; /* connections before and in transmission */
};

/* Those that have connections. Lists, by a hash of the key. */
struct nbd_origins {
    struct list buckets[NBD_ORIGIN_BUCKETS];
    uint64_t seed; /* of the hash */
};

/* From a peer's address; `uid` counts for Unix sockets. */
struct nbd_origin_key nbd_origin_key(const struct sockaddr_storage *address, uint32_t uid);

void nbd_origins_init(struct nbd_origins *origins);
/* The entry of the key, with one handshake more; NULL: out of memory. */
struct nbd_origin *nbd_origins_enter(struct nbd_origins *origins, const struct nbd_origin_key *key);
/* A handshake of it has led to transmission. */
void nbd_origin_promote(struct nbd_origin *origin);
/* A connection of it has ended; frees the entry with its last. */
void nbd_origin_leave(struct nbd_origin *origin, bool was_client);

#endif
