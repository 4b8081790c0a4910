/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a power cut can leave of recorded changes to a few files: after each record everything, or
 * the last write torn at 512 bytes; and before each sync any of the changes since the last one
 * lost, sizes without data, and data without sizes.  An fdatasync covers its own file.
 *
 * A sector that was being written may also hold garbage, where a device or a file system can leave
 * that: in what only holds data, and behind the file's durable end.  Metadata that is overwritten
 * in place cannot be kept from that without a journal; its sectors are old or new.
 */
#ifndef EVNBD_TESTS_CRASH_CUT_H
#define EVNBD_TESTS_CRASH_CUT_H

#include "tests/support/recorder.h"

#define CUT_FILES 2

struct cut_state {
    uint64_t number;       /* from 1; the same records give the same states */
    const char *kind;      /* for people */
    size_t point;          /* records that had happened, or might have */
    size_t unsynced;       /* of them: changes that no sync covers */
    bool garbage;          /* in sectors that were being written */
    struct content *files; /* CUT_FILES */
};

struct cut_job {
    const struct record *records;
    size_t count;
    const struct content *before; /* CUT_FILES: what the files held before the first record */
    int numbers[CUT_FILES];       /* the recorder's number of each; negative: not in the records */
    bool data_only[CUT_FILES];    /* no metadata in it */
    unsigned subsets;             /* states with lost changes, before each sync at most */
    uint64_t seed;                /* which, when there are more */
    /* Whether the state of that number is to be built. NULL: all. */
    bool (*wants)(void *arg, uint64_t number);
    /* The files may be changed. Return false to stop. */
    bool (*visit)(void *arg, const struct cut_state *state);
    void *arg;
};

/* Returns how many states there are (or were, when it was stopped). */
uint64_t cut_all(const struct cut_job *job);

#endif
