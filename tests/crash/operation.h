/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The operations of crash workloads.  Each tells the history what it is to change before it begins,
 * and that it has returned.  The table begins with those that may run at the same time.
 */
#ifndef EVNBD_TESTS_CRASH_OPERATION_H
#define EVNBD_TESTS_CRASH_OPERATION_H

#include "tests/crash/history.h"
#include "tests/crash/image.h"
#include "tests/support/support.h"

struct run {
    const struct image_row *row;
    struct history *history;
    struct node *node;
    uint8_t *model; /* WORKLOAD_ROOM * row->bytes; zeroes behind the disk's end */
    uint64_t size;
    struct world world;
    unsigned names; /* given to snapshots and bitmaps so far */
    uint64_t hot;   /* where many operations go */
    struct prng prng;
};

/* One operation on its way. */
struct step {
    struct run *run;
    const struct operation *operation;
    uint64_t offset, length;
    uint64_t seed;
    struct error error;
};

enum {
    OP_TOGETHER = 1 << 0, /* it may run with others */
    OP_QCOW2 = 1 << 1,    /* raw images have nothing of the kind */
    OP_WORKER = 1 << 2,   /* it leaves what worker threads decode: no run is quite as another */
};

struct operation {
    const char *name;
    int (*run)(struct step *step);
    unsigned flags;
    uint64_t length; /* bytes; 0: a cluster */
    unsigned arg;
};

/* By number, and by name (`length` bytes of it); NULL: there is none. */
const struct operation *operation_get(size_t index);
const struct operation *operation_find(const char *name, size_t length);

/* verb.c: what changes more than data.  One that is refused has changed nothing. */
int op_resize_grow(struct step *step);
int op_resize_shrink(struct step *step);
int op_snapshot_create(struct step *step);
int op_snapshot_delete(struct step *step);
int op_snapshot_apply(struct step *step);
int op_bitmap_add(struct step *step);
int op_bitmap_clear(struct step *step);
int op_bitmap_remove(struct step *step);

#endif
