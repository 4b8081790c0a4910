/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Judging what a power cut left: it opens, read-only without a change; the check finds no
 * corruption, leaks at most; it holds what the history allows; opening it for writing leaves an
 * image of which all that is true, wherever that is cut off in turn, and a second time changes
 * nothing; so does a repair, which leaves no leak either; and it can be used on.
 */
#ifndef EVNBD_TESTS_CRASH_JUDGE_H
#define EVNBD_TESTS_CRASH_JUDGE_H

#include "tests/crash/cut.h"
#include "tests/crash/history.h"
#include "tests/crash/image.h"

struct judge {
    const struct image_row *row;
    const struct history *history;
    unsigned repair_every;     /* states; of the others only opening is tried, not a repair */
    unsigned qemu_every;       /* states that qemu-img check looks at; 0: none */
    unsigned recovery_subsets; /* as cut_job.subsets, when a recovery is cut */

    /* Counted here. */
    uint64_t states, recoveries, second_opinions;
    uint64_t bitmaps;       /* compared with what had changed */
    uint64_t corrupt, lost; /* failures: the image, the data */
    char text[512];         /* of the last failure */

    /* Its own. */
    size_t point;
    bool garbage;    /* the state has some */
    bool leaky_bits; /* the last check found copied bits to be wrong */
    uint8_t *seen;
    char *directory;
};

/* In a coroutine. Whether all is well; the files may be changed. */
bool judge_state(struct judge *judge, const struct cut_state *state);
void judge_fini(struct judge *judge);

#endif
