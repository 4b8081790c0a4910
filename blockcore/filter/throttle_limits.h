/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Limits of throughput as leaky buckets; pure functions.  What is done goes into a bucket that
 * leaks as fast as the limit says; while more is in it than it holds, nothing may be done.  So a
 * request of any size is let go at once when the bucket is not too full, and those behind it wait.
 */
#ifndef EVNBD_BLOCKCORE_FILTER_THROTTLE_LIMITS_H
#define EVNBD_BLOCKCORE_FILTER_THROTTLE_LIMITS_H

#include "base/error.h"
#include "base/options.h"

enum throttle_direction { THROTTLE_READ, THROTTLE_WRITE, THROTTLE_DIRECTIONS };

enum {
    THROTTLE_BPS_TOTAL,
    THROTTLE_BPS_READ,
    THROTTLE_BPS_WRITE,
    THROTTLE_IOPS_TOTAL,
    THROTTLE_IOPS_READ,
    THROTTLE_IOPS_WRITE,
    THROTTLE_BUCKETS,
};

/* One limit, as the user gives it; 0: not given. */
struct throttle_limit {
    uint64_t rate;         /* bytes or requests a second */
    uint64_t burst;        /* the same, while a burst lasts */
    uint64_t burst_length; /* seconds */
};

struct throttle_config {
    struct throttle_limit limits[THROTTLE_BUCKETS];
    uint64_t iops_size; /* bytes that count as one request in larger ones; 0: any */
};

struct throttle_bucket {
    double level;       /* what is in it: bytes or requests */
    double burst_level; /* the same of the bucket that leaks as fast as a burst may be */
};

struct throttle_limits {
    struct throttle_config config;
    struct throttle_bucket buckets[THROTTLE_BUCKETS];
    int64_t leaked_ns; /* the time up to which they have leaked */
};

extern const struct option_row throttle_options[]; /* for a struct throttle_config */

/* Takes the options, and those of the names with x- in front; refuses what makes no sense. */
int throttle_take(json_t *options, struct throttle_config *ret, struct error *error);

/* Whether anything limits requests of this direction. */
bool throttle_is_limited(const struct throttle_limits *limits, enum throttle_direction direction);

/* Lets the buckets leak up to `now_ns`, which never goes back. */
void throttle_leak(struct throttle_limits *limits, int64_t now_ns);

/* Nanoseconds from leaked_ns on until a request may be done, or is to ask again; 0: now. */
int64_t throttle_wait_ns(const struct throttle_limits *limits, enum throttle_direction direction);

/* Counts a request. */
void throttle_count(struct throttle_limits *limits, enum throttle_direction direction,
                    uint64_t bytes);

#endif
