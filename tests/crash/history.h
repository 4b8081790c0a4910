/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What was asked of a disk and what was answered, and from that: what it may hold after a power
 * cut.  Each sector of 512 bytes has its last durable value or one that was written later; its size
 * and its snapshots are those of the last change of them that had returned, or of a later one.
 *
 * A dirty bitmap that can be used says "dirty" at least of what differs from the disk as it was
 * when the bitmap was made or cleared last.
 *
 * Points in time are numbers of records of the recorder.
 */
#ifndef EVNBD_TESTS_CRASH_HISTORY_H
#define EVNBD_TESTS_CRASH_HISTORY_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SECTOR_SIZE 512
#define SNAPSHOTS_MAX 8
#define BITMAPS_MAX 4
#define HISTORY_NAME_MAX 16

/* What a snapshot holds, or the disk held when a bitmap was clean. Never changes. */
struct saved {
    char name[HISTORY_NAME_MAX];
    uint64_t size;
    uint8_t *data;
};

/* The snapshots that an image has, in its order, and its bitmaps. */
struct world {
    unsigned count;
    const struct saved *snapshots[SNAPSHOTS_MAX];
    unsigned bitmap_count;
    const struct saved *bitmaps[BITMAPS_MAX];
};

enum {
    EVENT_FLUSH = 1 << 0,   /* what had returned before it began is durable when it returns */
    EVENT_DURABLE = 1 << 1, /* so is its own change */
    EVENT_PARTIAL = 1 << 2, /* it changes parts of sectors, at its edges */
    EVENT_NEVER = 1 << 3,   /* it may happen or not: never what a sector must hold */
    EVENT_SIZE = 1 << 4,    /* the size of the disk changes */
    EVENT_WORLD = 1 << 5,   /* the snapshots or bitmaps change */
    EVENT_SHARES = 1 << 6,  /* so does what clusters are shared with snapshots */
};

struct history;

/*
 * The disk holds `size` bytes at `data`, all durable; so does the `snapshot`, if not NULL, and the
 * `bitmap`, if not NULL, is clean.
 */
struct history *history_new(const uint8_t *data, uint64_t size, const char *snapshot,
                            const char *bitmap);
void history_free(struct history *history);

/*
 * Something is asked for now: sectors [first, first + count) of `disk` are as they are to become.
 * Returns the event, for history_returned.
 */
size_t history_began(struct history *history, unsigned flags, const uint8_t *disk, uint64_t first,
                     uint64_t count);
/* Of the event that began last. */
void history_resizes(struct history *history, uint64_t size);
void history_changes_world(struct history *history, const struct world *world);
/* It was answered; `error`: it was refused, and has changed nothing. */
void history_returned(struct history *history, size_t event, bool error);

/* What the disk holds now, under a name, for worlds; freed with the history. */
const struct saved *history_save(struct history *history, const char *name, const uint8_t *disk,
                                 uint64_t size);

/* A number that changes with what is promised at that point. */
uint64_t history_promises(const struct history *history, size_t point);

/* Whether something with EVENT_SHARES is cut off there. */
bool history_in_verb(const struct history *history, size_t point);

/* Whether the disk may have that size after a cut at that point. */
bool history_allows_size(const struct history *history, size_t point, uint64_t size);
/*
 * Whether it may hold `seen`; else *ret_sector is one that may not.  `garbage`: sectors whose
 * change was not durable may hold anything.
 */
bool history_allows(const struct history *history, size_t point, bool garbage, const uint8_t *seen,
                    uint64_t size, uint64_t *ret_sector);
/* The worlds that the image may have; `index` from 0; NULL: no more. */
const struct world *history_world(const struct history *history, size_t point, size_t index);

#endif
