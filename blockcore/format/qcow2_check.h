/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The check of qcow2, private to its files.
 *
 *     qcow2_check.c            the order of the whole, reports, the header's dirty and corrupt bits
 *     qcow2_check_metadata.c   references by header, tables, snapshots
 *     qcow2_check_bitmaps.c    references by bitmaps
 *     qcow2_check_l1.c         references by L1 tables: which L2 tables there are
 *     qcow2_check_l2.c         references by L2 tables: data
 *     qcow2_check_refcounts.c  comparing and setting refcounts, copied bits
 *     qcow2_check_rebuild.c    a new refcount structure
 *     qcow2_check_snapshots.c  a new snapshot table
 *     qcow2_counts.c           the counts
 *
 * First all metadata is counted, then data: so what an entry points to by mistake is known.  Every
 * table is visited once, however many entries lead to it, and holes of the file are not read:
 * time grows with the data in the file, whatever its entries say.
 *
 * Order of repairs on disk: entries lose their references (a crash leaks), flush; refcounts are set
 * to what is counted, or a new refcount structure is written behind everything and then switched
 * to, flush; copied bits, flush; a new snapshot table, if need be, with a switch of its own; and
 * when nothing is wrong any more, the header's dirty and corrupt bits.  Cut off anywhere, a new
 * repair starts over.
 */
#ifndef EVNBD_BLOCKCORE_FORMAT_QCOW2_CHECK_H
#define EVNBD_BLOCKCORE_FORMAT_QCOW2_CHECK_H

#include "blockcore/block.h"
#include "blockcore/check.h"
#include "blockcore/format/qcow2_counts.h"
#include "blockcore/format/qcow2_disk.h"
#include "blockcore/table_cache.h"

struct qcow2_check {
    struct node *file;
    struct qcow2_header *header; /* follows what is changed on disk */
    struct block_check *check;
    unsigned cluster_bits;
    uint64_t cluster_size;
    uint64_t file_size; /* when the check began */
    uint8_t *table;     /* one cluster */
    struct qcow2_counts counts;

    uint64_t *reftable;    /* offsets of refcount blocks */
    uint8_t *block_states; /* enum check_block of each of them */
    uint64_t reftable_entries;
    unsigned refblock_bits;        /* log2 of the entries of a refcount block */
    struct table_cache *refblocks; /* while copied bits are checked */
    bool rebuild;                  /* the refcount structure cannot be repaired in place */
    bool incomplete;               /* not all references were found: nothing may be given back */
    bool fix_copied;               /* copied bits are corrected */
    /* Of the result: what is repaired when the refcount structure is rebuilt. */
    uint64_t rebuild_corruptions, rebuild_leaks;
    uint64_t used_end; /* host clusters up to the last one in use */

    uint64_t snapshots_length;     /* bytes of the snapshot table */
    uint32_t snapshots_incomplete; /* its entries that are to be completed */
};

enum check_block {
    CHECK_BLOCK_ABSENT, /* all its refcounts are 0 */
    CHECK_BLOCK_GOOD,
    CHECK_BLOCK_UNKNOWN, /* the entry is broken: its refcounts are not known */
};

/* An L1 table. */
struct check_l1 {
    uint64_t offset, entries;
    bool active;
};

/*
 * Called for each entry that is not 0; a changed *value is written back.  Returns negative errno to
 * end the walk.
 */
typedef int check_l1_visit(struct qcow2_check *c, const struct check_l1 *l1, uint64_t index,
                           uint64_t *value);

/* qcow2_check.c */
/* Runs the whole check on the image whose header (fixed fields and extensions) is given. */
int qcow2_check_run(struct node *file, struct qcow2_header *header, struct block_check *check,
                    struct error *error);
static inline bool qcow2_check_fixes(const struct qcow2_check *c)
{
    return c->check->fix & CHECK_FIX_ERRORS;
}
/* A corruption that has just been repaired, or not; counts and reports it. */
__attribute__((format(printf, 3, 4))) void qcow2_check_corruption(struct qcow2_check *c, bool fixed,
                                                                  const char *format, ...);
/* A corruption that a rebuild of the refcount structure repairs. */
__attribute__((format(printf, 2, 3))) void qcow2_check_for_rebuild(struct qcow2_check *c,
                                                                   const char *format, ...);
/* Something that cannot be examined: now not all references can be known. */
__attribute__((format(printf, 2, 3))) void qcow2_check_unknown(struct qcow2_check *c,
                                                               const char *format, ...);
/* Reports only. */
__attribute__((format(printf, 2, 3))) void qcow2_check_say(struct qcow2_check *c,
                                                           const char *format, ...);

enum check_table { CHECK_TABLE_READ, CHECK_TABLE_ZERO, CHECK_TABLE_FAILED };
/* Reads a cluster into c->table, zeroes behind the file's end; ZERO: it is a hole, not read. */
enum check_table qcow2_check_read(struct qcow2_check *c, uint64_t offset);
/* Whether the file ends a cluster or more before the range does: then nothing can be there. */
bool qcow2_check_beyond(const struct qcow2_check *c, uint64_t offset, uint64_t length);
/* Whether a cluster of the range holds metadata. */
bool qcow2_check_is_metadata(const struct qcow2_check *c, uint64_t offset, uint64_t length);
/* Marks the first of them as used for something else, too. */
void qcow2_check_overlap(struct qcow2_check *c, uint64_t offset, uint64_t length);
/* First cluster of the range, and how many it touches. `length` is not 0. */
uint64_t qcow2_check_span(const struct qcow2_check *c, uint64_t offset, uint64_t length,
                          uint64_t *ret_count);

/* qcow2_check_metadata.c */
/* Counts all but L2 tables and data; gives the L1 tables, the active one first (to be freed). */
int qcow2_check_metadata(struct qcow2_check *c, struct check_l1 **ret, size_t *ret_count);
/* Counts the refcount blocks; L2 tables have been counted, and win where they overlap. */
int qcow2_check_refblocks(struct qcow2_check *c);

/* qcow2_check_bitmaps.c */
/* Counts directory, tables and data of the bitmaps, which the header has. */
int qcow2_check_bitmaps(struct qcow2_check *c);

/* qcow2_check_l1.c */
int qcow2_check_walk_l1(struct qcow2_check *c, const struct check_l1 *l1, check_l1_visit *visit);
check_l1_visit qcow2_check_count_table;

/* qcow2_check_l2.c */
check_l1_visit qcow2_check_count_data;

/* qcow2_check_refcounts.c */
/* Compares, and sets refcounts in place unless the whole structure is to be rebuilt. */
int qcow2_check_refcounts(struct qcow2_check *c);
int qcow2_check_copied(struct qcow2_check *c, const struct check_l1 *active);

/* qcow2_check_snapshots.c */
/* Completes the entries that were found incomplete, if everything else is right by now. */
int qcow2_check_complete_snapshots(struct qcow2_check *c);

/* qcow2_check_rebuild.c */
int qcow2_check_rebuild(struct qcow2_check *c);

#endif
