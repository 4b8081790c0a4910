/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Slices of time, for coroutines that go on for long without ever having to wait: after each slice
 * the others have their turn.
 */
#ifndef EVNBD_NBD_SLICE_H
#define EVNBD_NBD_SLICE_H

#include "base/coroutine.h"
#include "base/sys.h"

#define NBD_SLICE_NS 250000

struct nbd_slice {
    int64_t began_ns;
};

static inline void nbd_slice_begin(struct nbd_slice *slice)
{
    slice->began_ns = sys->monotonic_ns();
}

/* To be called between steps. Yields when the slice is over. */
static inline void nbd_slice_step(struct nbd_slice *slice)
{
    if (sys->monotonic_ns() - slice->began_ns < NBD_SLICE_NS)
        return;
    coroutine_yield();
    nbd_slice_begin(slice);
}

#endif
