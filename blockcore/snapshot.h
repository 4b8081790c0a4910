/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Internal snapshots: states of a disk that its image keeps, by number and name.
 *
 * All functions run in a coroutine.  Those that change the image may be called while the node
 * serves requests: they wait for what is under way, hold the whole disk meanwhile, and are durable
 * when they return.  Cut off at any moment, an image has leaked clusters at worst, and its disk and
 * snapshots are those from before or from after.
 */
#ifndef EVNBD_BLOCKCORE_SNAPSHOT_H
#define EVNBD_BLOCKCORE_SNAPSHOT_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

struct node;

/* Longest name of a new snapshot, in bytes: other programs cut what is longer. */
#define BLOCK_SNAPSHOT_NAME_MAX 255

#define BLOCK_SNAPSHOT_ICOUNT_NONE UINT64_MAX

struct block_snapshot {
    const char *id;         /* as the image says, in practice a decimal number */
    const char *name;       /* any bytes; need not be unique */
    uint64_t vm_state_size; /* bytes of a machine's memory that belong to it */
    uint32_t date_seconds;  /* since 1970 */
    uint32_t date_nanoseconds;
    uint64_t vm_clock; /* how long the machine had run, nanoseconds */
    uint64_t icount;   /* instructions that it had run, or BLOCK_SNAPSHOT_ICOUNT_NONE */
    uint64_t disk_size;
};

/* What an image has, in its order. */
struct block_snapshots {
    struct block_snapshot *items;
    size_t count;
    char *text; /* the bytes of ids and names */
};

/*
 * Which snapshot is meant: that with this id, with this name, or with both; or, with `any`, that
 * with this id or, when there is none, the first one with this name.
 */
struct block_snapshot_choice {
    char *id, *name; /* allocated, or NULL */
    char *any;
};

/*
 * What the driver of a format does, NULL where it cannot.  The core has locked the whole disk and
 * flushed the node, which is writable (load: read-only, and idle).  `index` is in list's order.
 */
struct block_snapshot_ops {
    /* The core frees *ret, also on failure. */
    int (*list)(struct node *node, struct block_snapshots *ret, struct error *error);
    int (*create)(struct node *node, const struct block_snapshot *snapshot, struct error *error);
    int (*apply)(struct node *node, size_t index, struct error *error);
    int (*remove)(struct node *node, size_t index, struct error *error);
    int (*load)(struct node *node, size_t index, struct error *error);
};

/*
 * The snapshots of the image that `node` is; block_snapshots_fini in any case.  -ENOTSUP when the
 * format has none.
 */
int block_snapshots_list(struct node *node, struct block_snapshots *ret, struct error *error);
void block_snapshots_fini(struct block_snapshots *snapshots);

/*
 * Reads a choice as command lines have it: "snapshot.id=..,snapshot.name=.." (one of them, or
 * both), else all of it is an id or a name.  block_snapshot_choice_fini in any case.
 */
int block_snapshot_choice_parse(const char *text, struct block_snapshot_choice *ret,
                                struct error *error);
void block_snapshot_choice_fini(struct block_snapshot_choice *choice);

/*
 * Keeps what the disk holds now, with the time of the system's clock and an id that is one above
 * the largest number in use.
 */
int block_snapshot_create(struct node *node, const char *name, struct error *error);
/* Gives the disk back what it held, its size included. The snapshot stays. */
int block_snapshot_apply(struct node *node, const struct block_snapshot_choice *choice,
                         struct error *error);
int block_snapshot_delete(struct node *node, const struct block_snapshot_choice *choice,
                          struct error *error);
/* Lets the node, which is read-only and not in use yet, show the snapshot, in its own size. */
int block_snapshot_load(struct node *node, const struct block_snapshot_choice *choice,
                        struct error *error);

#endif
