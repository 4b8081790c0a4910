/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The protocol `null-co`: a disk of zeroes that forgets what is written, to measure everything
 * else with.  Without read-zeroes it reads as zeroes too, since memory that is not set may be
 * somebody else's data; it only does not say so.
 */
#include "base/iov.h"
#include "base/reactor.h"
#include "blockcore/drivers.h"
#include "blockcore/node.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define SIZE_DEFAULT GIB
#define LATENCY_MAX_NS UINT64_C(10000000000) /* 10 s, which the end of the program waits for */

struct null {
    uint64_t size, latency_ns; /* options */
    bool read_zeroes;
};

static const struct option_row null_options[] = {
    {"size", OPTION_SIZE, offsetof(struct null, size), NULL, "bytes of the disk, 1G by default"},
    {"read-zeroes", OPTION_BOOL, offsetof(struct null, read_zeroes), NULL,
     "say that the disk is all zeroes"},
    {"latency-ns", OPTION_NUMBER, offsetof(struct null, latency_ns), NULL,
     "nanoseconds that each request takes"},
    {0},
};

static int null_open(struct node *node, struct node_open *open, struct error *error)
{
    struct null *null = node->state;
    int err;

    null->size = SIZE_DEFAULT;
    err = options_take(open->options, null_options, null, "driver 'null-co'", error);
    if (err == 0 && null->latency_ns > LATENCY_MAX_NS)
        err = error_set(error, EINVAL,
                        "the option 'latency-ns' of driver 'null-co' is %" PRIu64
                        ", it must be at most %" PRIu64,
                        null->latency_ns, LATENCY_MAX_NS);
    node->size = null->size;
    node->request_alignment = 1;
    return err;
}

static int take_time(const struct null *null)
{
    if (null->latency_ns == 0)
        return 0;
    if (!coroutine_self())
        return -EAGAIN;
    co_sleep((int64_t)null->latency_ns);
    return 0;
}

static int null_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    const struct null *null = node->state;

    *ret = (struct extent){
        .kind = null->read_zeroes ? EXTENT_ZERO : EXTENT_DATA,
        .length = length,
    };
    return 0;
}

static int null_preadv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    int err = take_time(node->state);

    if (err == 0)
        iov_fill(iov, iovcnt, 0, iov_length(iov, iovcnt), 0);
    return err;
}

/* Its size is fixed. */
static int change(struct node *node, uint64_t offset, uint64_t length)
{
    return range_within(offset, length, node->size) ? take_time(node->state) : -ENOSPC;
}

static int null_pwritev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    return change(node, offset, iov_length(iov, iovcnt));
}

static int null_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    return change(node, offset, length);
}

static int null_discard(struct node *node, uint64_t offset, uint64_t length)
{
    return change(node, offset, length);
}

static int null_flush(struct node *node)
{
    return take_time(node->state);
}

#define NULL_FUNCTIONS                                                                             \
    .kind = DRIVER_PROTOCOL, .state_size = sizeof(struct null), .options = null_options,           \
    .open = null_open, .map = null_map, .zero = null_zero, .discard = null_discard,                \
    .flush = null_flush, .preadv = null_preadv, .pwritev = null_pwritev,                           \
    .preadv_nowait = null_preadv

const struct driver driver_null_co = {.name = "null-co", NULL_FUNCTIONS};
const struct driver driver_null_aio = {.name = "null-aio", NULL_FUNCTIONS};
