/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty bitmaps of a qcow2 image, private to the driver.
 *
 *     qcow2_bitmap_disk.c       directory entries and tables: pure parsing and checking
 *     qcow2_bitmap_load.c       the directory at open, and what the guard must know
 *     qcow2_bitmap.c            reading; recording what is written; the in_use flags
 *     qcow2_bitmap_store.c      bits into the file: at close, and for merge and clear
 *     qcow2_bitmap_edit.c       add, remove, clear, enable, disable, merge
 *     qcow2_bitmap_resize.c     another size of the disk
 *     qcow2_bitmap_directory.c  a new directory, and the header extension that names it
 *
 * What is in the file is read when it is asked for, in small pieces.  In memory are the directory,
 * and for each enabled bitmap a set of the bits that were set since the image was opened
 * (dirty_set.h); all sets of an image share BLOCK_BITMAP_MEMORY_MAX.
 *
 * Order on disk.  Before the first change of an image its enabled bitmaps are marked in_use,
 * durably (qcow2_bitmaps_begin, by qcow2_begin_change).  Data and tables of a bitmap change only
 * while it is in_use: refcounts that went up are durable before a table names the clusters, and
 * what a table named before is given back once the table is durable.  The flag goes last, when all
 * is durable. So a crash leaves a bitmap inconsistent, which everybody can see, or as it was.
 *
 * A directory changes in place only by flags (4 bytes) of entries.  Else a new one is written and,
 * when it is durable, the header names it.
 *
 * Enabled bitmaps that cannot be used are marked in_use too, and stay so.
 *
 * Locks: all runs under q->lock, but for qcow2_track's common case, which never waits.
 */
#ifndef EVNBD_BLOCKCORE_FORMAT_QCOW2_BITMAP_H
#define EVNBD_BLOCKCORE_FORMAT_QCOW2_BITMAP_H

#include "blockcore/bitmap.h"
#include "blockcore/dirty_set.h"
#include "blockcore/format/qcow2.h"
#include "blockcore/format/qcow2_bitmap_disk.h"

#define BITMAP_WINDOW_BYTES 4096
#define BITMAP_WINDOW_ENTRIES 64

struct qcow2_bitmap {
    struct block_bitmap bitmap;
    struct qcow2 *q;
    struct qcow2_bitmap_entry entry; /* as it is on disk now; name and extra are allocated */
    uint64_t at;                     /* of the entry in the directory, bytes */
    bool owns_clusters;              /* its table is sound: what it names can be given back */
    bool claimed;                    /* we have marked it in_use, and it is ours to clear that */
    bool tracked;                    /* and it records what is written */
    struct dirty_set dirty;          /* set since the image was opened, and not in the file yet */
};

/* Pieces of a bitmap as they are in the file, read last. */
struct qcow2_bitmap_window {
    const struct qcow2_bitmap *entries_of, *bytes_of; /* NULL: nothing */
    uint64_t first_entry, first_byte;
    uint64_t entries[BITMAP_WINDOW_ENTRIES]; /* host order */
    uint8_t bytes[BITMAP_WINDOW_BYTES];
    uint8_t now[BITMAP_WINDOW_BYTES]; /* with what is in memory */
};

struct qcow2_bitmaps {
    struct qcow2_bitmap **list; /* in the order of the directory */
    size_t count;
    struct dirty_budget budget;
    struct qcow2_bitmap_window window;
};

static inline struct qcow2_bitmap *qcow2_bitmap_of(struct block_bitmap *bitmap)
{
    return container_of(bitmap, struct qcow2_bitmap, bitmap);
}

static inline uint64_t qcow2_bitmap_bits(const struct qcow2_bitmap *b)
{
    return div_round_up(b->bitmap.size, b->bitmap.granularity);
}

/* What the pure functions need to know of the image now. */
struct qcow2_bitmap_disk qcow2_bitmap_disk(const struct qcow2 *q);

/* qcow2_bitmap_load.c */
/* A bitmap of the entry, whose name and extra data are copied. NULL: out of memory. */
struct qcow2_bitmap *qcow2_bitmap_new(struct qcow2 *q, const struct qcow2_bitmap_entry *entry);
void qcow2_bitmap_free(struct qcow2_bitmap *b);
/* Makes q->bitmaps if there is none. 0 or -ENOMEM. */
int qcow2_bitmaps_prepare(struct qcow2 *q);

/* qcow2_bitmap.c */
/* The bits from `bit` on that are alike: *ret_end is the first that may not be. */
int qcow2_bitmap_next_bits(struct qcow2_bitmap *b, uint64_t bit, uint64_t *ret_end,
                           bool *ret_dirty);
extern const struct block_bitmap_ops qcow2_bitmap_ops;
/* Before the bitmap's bits change in the file: marks it in_use, durably. */
int qcow2_bitmap_claim(struct qcow2_bitmap *b);
/* Makes it record: enabled and in_use with one write, durably. */
int qcow2_bitmap_enable_in_use(struct qcow2_bitmap *b);
/* They are right again: gives it these flags, without in_use, after all else is durable. */
int qcow2_bitmap_release(struct qcow2_bitmap *b, uint32_t flags);
/* Writes what was recorded and releases all that are claimed; logs what fails. Takes the lock. */
void qcow2_bitmaps_save(struct qcow2 *q);

/* qcow2_bitmap_store.c */
/* The table as it is in the file, host order, to be freed. */
int qcow2_bitmap_read_table(struct qcow2_bitmap *b, uint64_t **ret);
/* Adds the bits to what the file has. The bitmap is claimed. Not durable yet. */
int qcow2_bitmap_store(struct qcow2_bitmap *b, const struct dirty_set *bits);
/* No bit is set in the file. The bitmap is claimed. Durable. */
int qcow2_bitmap_wipe(struct qcow2_bitmap *b);
/* Gives back the clusters of the data, and of the table. Nothing on disk names them any more. */
int qcow2_bitmap_free_clusters(struct qcow2_bitmap *b, const uint64_t *table, bool with_table);

/* qcow2_bitmap_edit.c */
/* Makes a table of entry->table_size that says that nothing is dirty; sets its offset. */
int qcow2_bitmap_make_table(struct qcow2 *q, struct qcow2_bitmap_entry *entry);
int qcow2_bitmap_remove(struct block_bitmap *bitmap, struct error *error);
int qcow2_bitmap_clear(struct block_bitmap *bitmap, struct error *error);
int qcow2_bitmap_set_enabled(struct block_bitmap *bitmap, bool enabled, struct error *error);
int qcow2_bitmap_merge(struct block_bitmap *bitmap, const struct dirty_set *bits,
                       struct error *error);

/* qcow2_bitmap_directory.c */
/* Takes `count` clusters side by side, which the guard knows from then on. */
int qcow2_bitmap_clusters_alloc(struct qcow2 *q, uint64_t count, uint64_t *ret_offset);
/* Gives back clusters that a crash may find named, once what was changed before is durable. */
int qcow2_bitmap_clusters_free(struct qcow2 *q, uint64_t offset, uint64_t count);
/* Gives back clusters that nothing has ever named. */
void qcow2_bitmap_clusters_undo(struct qcow2 *q, uint64_t offset, uint64_t count);
/*
 * Writes a directory of the listed bitmaps and puts it into force, durably; none: the image has no
 * bitmaps any more.  Sets their `at`.  What was allocated or written for them is durable, too.
 */
int qcow2_bitmap_directory_write(struct qcow2 *q, struct qcow2_bitmap *const *list, size_t count,
                                 struct error *error);

#endif
