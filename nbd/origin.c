/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table of origins.  An entry lives as long as one of its connections.  Strangers choose the
 * keys, so a hash that they could steer would make lists long: it is keyed with a random number.
 */
#include "nbd/origin.h"

#include "base/sys.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

enum kind { KIND_UNKNOWN, KIND_IPV4, KIND_IPV6, KIND_USER };

static struct nbd_origin_key key_of(enum kind kind, const void *bytes, size_t length)
{
    struct nbd_origin_key key = {.bytes = {(uint8_t)kind}};

    memcpy(key.bytes + 1, bytes, length);
    return key;
}

static struct nbd_origin_key key_of_ipv6(const struct in6_addr *address)
{
    if (IN6_IS_ADDR_V4MAPPED(address))
        return key_of(KIND_IPV4, address->s6_addr + 12, 4);
    return key_of(KIND_IPV6, address->s6_addr, 8);
}

struct nbd_origin_key nbd_origin_key(const struct sockaddr_storage *address, uint32_t uid)
{
    switch (address->ss_family) {
    case AF_INET:
        return key_of(KIND_IPV4, &((const struct sockaddr_in *)address)->sin_addr, 4);
    case AF_INET6:
        return key_of_ipv6(&((const struct sockaddr_in6 *)address)->sin6_addr);
    case AF_UNIX:
        return key_of(KIND_USER, &uid, sizeof(uid));
    default:
        return key_of(KIND_UNKNOWN, "", 0);
    }
}

void nbd_origins_init(struct nbd_origins *origins)
{
    for (size_t i = 0; i < NBD_ORIGIN_BUCKETS; i++)
        list_init(&origins->buckets[i]);
    /* Without randomness the lists may become long, which is slow and nothing worse. */
    if (sys->random(&origins->seed, sizeof(origins->seed)) < 0)
        origins->seed = 0;
}

static struct list *bucket_of(struct nbd_origins *origins, const struct nbd_origin_key *key)
{
    uint64_t hash = origins->seed;

    for (size_t i = 0; i < sizeof(key->bytes); i++) {
        hash = (hash ^ key->bytes[i]) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 29;
    }
    return &origins->buckets[hash % NBD_ORIGIN_BUCKETS];
}

static struct nbd_origin *find(const struct list *bucket, const struct nbd_origin_key *key)
{
    list_for_each(it, bucket)
    {
        struct nbd_origin *origin = list_entry(it, struct nbd_origin, link);

        if (memcmp(&origin->key, key, sizeof(*key)) == 0)
            return origin;
    }
    return NULL;
}

struct nbd_origin *nbd_origins_enter(struct nbd_origins *origins, const struct nbd_origin_key *key)
{
    struct list *bucket = bucket_of(origins, key);
    struct nbd_origin *origin = find(bucket, key);

    if (!origin) {
        origin = calloc(1, sizeof(*origin));
        if (!origin)
            return NULL;
        origin->key = *key;
        list_append(bucket, &origin->link);
    }
    origin->handshakes++;
    return origin;
}

void nbd_origin_promote(struct nbd_origin *origin)
{
    origin->handshakes--;
    origin->clients++;
}

void nbd_origin_leave(struct nbd_origin *origin, bool was_client)
{
    if (was_client)
        origin->clients--;
    else
        origin->handshakes--;
    if (origin->handshakes + origin->clients > 0)
        return;
    list_remove(&origin->link);
    free(origin);
}
