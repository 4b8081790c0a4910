/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A share of time for work that others should not have to wait for: credit grows with the time that
 * passes, up to a limit, and what the work has taken is paid with it.  Times in nanoseconds of one
 * clock.
 */
#ifndef EVNBD_NBD_PACE_H
#define EVNBD_NBD_PACE_H

#include <stdint.h>

struct nbd_pace {
    int64_t share;  /* one `share`-th of the time */
    int64_t burst;  /* the most that can be saved up */
    int64_t credit; /* negative: too much was taken */
    int64_t seen;   /* the time up to which credit was given */
};

static inline struct nbd_pace nbd_pace_of(int64_t share, int64_t burst, int64_t now)
{
    return (struct nbd_pace){.share = share, .burst = burst, .credit = burst, .seen = now};
}

/* 0: work may be done now; else after so much time. */
static inline int64_t nbd_pace_wait(struct nbd_pace *pace, int64_t now)
{
    int64_t earned = (now - pace->seen) / pace->share;

    pace->credit = earned < pace->burst - pace->credit ? pace->credit + earned : pace->burst;
    pace->seen += earned * pace->share;
    return pace->credit > 0 ? 0 : (1 - pace->credit) * pace->share;
}

static inline void nbd_pace_spend(struct nbd_pace *pace, int64_t taken)
{
    pace->credit -= taken;
}

#endif
