/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A histogram of times in nanoseconds: 64 buckets for every power of two, so that a percentile is
 * right to 1.6 % at any scale and adding costs a few instructions.
 */
#ifndef EVNBD_BENCH_LATENCY_H
#define EVNBD_BENCH_LATENCY_H

#include <stdint.h>

#define LATENCY_SUB_BITS 6
#define LATENCY_BUCKETS ((64 - LATENCY_SUB_BITS + 1) << LATENCY_SUB_BITS)

struct latency {
    uint64_t total;
    uint64_t counts[LATENCY_BUCKETS];
};

static inline void latency_add(struct latency *latency, uint64_t ns)
{
    unsigned bucket = (unsigned)ns;
    if (ns >> LATENCY_SUB_BITS) {
        unsigned shift = 63 - (unsigned)__builtin_clzll(ns) - LATENCY_SUB_BITS;
        bucket = (shift << LATENCY_SUB_BITS) + (unsigned)(ns >> shift);
    }
    latency->counts[bucket]++;
    latency->total++;
}

/* The middle of the bucket in which the given share (0 to 1) of all times ends; 0 when empty. */
static inline double latency_percentile_us(const struct latency *latency, double share)
{
    uint64_t left = (uint64_t)(share * (double)latency->total);
    for (unsigned bucket = 0; bucket < LATENCY_BUCKETS; bucket++) {
        if (latency->counts[bucket] <= left) {
            left -= latency->counts[bucket];
            continue;
        }
        if (bucket < 2u << LATENCY_SUB_BITS)
            return bucket / 1000.0;
        unsigned shift = (bucket >> LATENCY_SUB_BITS) - 1;
        unsigned mantissa = bucket - (shift << LATENCY_SUB_BITS);
        return ((double)mantissa + 0.5) * (double)(UINT64_C(1) << shift) / 1000.0;
    }
    return 0;
}

#endif
