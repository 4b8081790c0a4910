/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/sim/toy_format.h"

#include "blockcore/block.h"
#include "tests/support/support.h"

#include <errno.h>
#include <stdlib.h>

enum cluster_state { CLUSTER_ABSENT, CLUSTER_ZERO, CLUSTER_DATA, CLUSTER_ENCODED };

struct cluster {
    enum cluster_state state;
    uint64_t host; /* number of the host cluster, for DATA and ENCODED */
};

struct toy {
    uint64_t size; /* option */
    unsigned clusters;
    struct cluster *map;
    unsigned host_max;
    bool *host_used;
    struct prng prng;
};

static const struct option_row toy_options[] = {
    {"size", OPTION_SIZE, offsetof(struct toy, size), NULL, "size of the disk"},
    {0},
};

static int toy_open(struct node *node, struct node_open *open, struct error *error)
{
    struct toy *toy = node->state;
    int err;

    toy->size = 1 << 20;
    err = options_take(open->options, toy_options, toy, "toy", error);
    if (err == 0)
        err = node_open_file(node, open, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, error);
    if (err == 0)
        err = node_open_backing(node, open, NULL, 0, NULL, error);
    if (err < 0)
        return err;
    node->size = toy->size;
    node->cluster_size = TOY_CLUSTER;
    toy->clusters = div_round_up(toy->size, TOY_CLUSTER);
    toy->host_max = 4 * toy->clusters;
    toy->map = calloc(toy->clusters, sizeof(*toy->map));
    toy->host_used = calloc(toy->host_max, sizeof(*toy->host_used));
    toy->prng = prng_of(test_seed());
    return 0;
}

static void toy_close(struct node *node)
{
    struct toy *toy = node->state;

    free(toy->map);
    free(toy->host_used);
}

/* Lets others run, sometimes. */
static void linger(struct toy *toy)
{
    while (coroutine_self() && prng_percent(&toy->prng, 40))
        coroutine_yield();
}

static int toy_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    static const enum extent_kind kinds[] = {EXTENT_ABSENT, EXTENT_ZERO, EXTENT_DATA,
                                             EXTENT_ENCODED};
    struct toy *toy = node->state;
    const struct cluster *c = &toy->map[offset / TOY_CLUSTER];
    uint64_t within = offset % TOY_CLUSTER;

    linger(toy);
    *ret = (struct extent){
        .kind = kinds[c->state],
        .flags = c->state == CLUSTER_DATA ? EXTENT_WRITABLE : 0,
        .length = min_u64(length, TOY_CLUSTER - within),
    };
    if (c->state >= CLUSTER_DATA) {
        ret->child = node->file;
        ret->child_offset = c->host * TOY_CLUSTER + (c->state == CLUSTER_DATA ? within : 0);
        ret->unit_offset = offset - within;
        ret->unit_length = ret->encoded_length = TOY_CLUSTER;
    }
    return 0;
}

static int toy_decode(struct node *node, const struct extent *extent, void *out)
{
    uint8_t *bytes = out;
    int err;

    linger(node->state);
    err = block_read(extent->child, out, TOY_CLUSTER, extent->child_offset);
    for (int i = 0; i < TOY_CLUSTER; i++)
        bytes[i] ^= 0xff;
    return err;
}

static int toy_allocate(struct node *node, uint64_t offset, uint64_t length, struct allocation *ret)
{
    struct toy *toy = node->state;
    unsigned first = prng_below(&toy->prng, toy->host_max), n = 0;

    if (!is_aligned(offset | length, TOY_CLUSTER) || length == 0)
        test_die("toy: allocate is called with a range that is not whole clusters");
    linger(toy);
    for (unsigned tries = 0; toy->host_used[first]; tries++) {
        if (tries == toy->host_max)
            return -ENOSPC;
        first = (first + 1) % toy->host_max;
    }
    while (n < length / TOY_CLUSTER && first + n < toy->host_max && !toy->host_used[first + n])
        toy->host_used[first + n++] = true;
    *ret = (struct allocation){
        .offset = offset,
        .length = (uint64_t)n * TOY_CLUSTER,
        .child = node->file,
        .child_offset = (uint64_t)first * TOY_CLUSTER,
        .cookie = {first, n},
    };
    return 0;
}

static void release(struct toy *toy, struct cluster *c)
{
    if (c->state < CLUSTER_DATA)
        return;
    if (!toy->host_used[c->host])
        test_die("toy: a cluster is given back twice");
    toy->host_used[c->host] = false;
}

static int toy_commit(struct node *node, struct allocation *a)
{
    struct toy *toy = node->state;

    linger(toy);
    for (unsigned i = 0; i < a->cookie[1]; i++) {
        struct cluster *c = &toy->map[a->offset / TOY_CLUSTER + i];

        if (c->state == CLUSTER_DATA)
            test_die("toy: a cluster that can be written in place was allocated again");
        release(toy, c);
        *c = (struct cluster){CLUSTER_DATA, a->cookie[0] + i};
    }
    return 0;
}

static void toy_abort(struct node *node, struct allocation *a)
{
    struct toy *toy = node->state;

    linger(toy);
    for (unsigned i = 0; i < a->cookie[1]; i++)
        toy->host_used[a->cookie[0] + i] = false;
}

static int set_all(struct node *node, uint64_t offset, uint64_t length, enum cluster_state state)
{
    struct toy *toy = node->state;

    if (!is_aligned(offset, TOY_CLUSTER) ||
        (!is_aligned(length, TOY_CLUSTER) && offset + length != node->size))
        test_die("toy: a range that is not whole clusters is zeroed or discarded");
    linger(toy);
    for (uint64_t i = offset / TOY_CLUSTER; i * TOY_CLUSTER < offset + length; i++) {
        release(toy, &toy->map[i]);
        toy->map[i].state = state;
    }
    linger(toy);
    return 0;
}

static int toy_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    (void)flags;
    return set_all(node, offset, length, CLUSTER_ZERO);
}

static int toy_discard(struct node *node, uint64_t offset, uint64_t length)
{
    return set_all(node, offset, length, CLUSTER_ZERO);
}

unsigned toy_clusters_used(const struct node *node)
{
    const struct toy *toy = node->state;
    unsigned used = 0;

    for (unsigned i = 0; i < toy->host_max; i++)
        used += toy->host_used[i];
    return used;
}

unsigned toy_clusters_mapped(const struct node *node)
{
    const struct toy *toy = node->state;
    unsigned mapped = 0;

    for (unsigned i = 0; i < toy->clusters; i++)
        mapped += toy->map[i].state >= CLUSTER_DATA;
    return mapped;
}

void toy_encode(struct node *node, uint64_t offset)
{
    struct toy *toy = node->state;
    struct cluster *c = &toy->map[offset / TOY_CLUSTER];

    if (c->state == CLUSTER_DATA)
        c->state = CLUSTER_ENCODED;
}

const struct driver driver_toy = {
    .name = "toy",
    .kind = DRIVER_FORMAT,
    .state_size = sizeof(struct toy),
    .options = toy_options,
    .open = toy_open,
    .close = toy_close,
    .map = toy_map,
    .decode = toy_decode,
    .allocate = toy_allocate,
    .commit = toy_commit,
    .abort = toy_abort,
    .zero = toy_zero,
    .discard = toy_discard,
};
