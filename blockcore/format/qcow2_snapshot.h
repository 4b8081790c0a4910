/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Internal snapshots of qcow2, private to their files.
 *
 *     qcow2_snapshot.c        the verbs: list, create, apply, remove, load
 *     qcow2_snapshot_table.c  the snapshot table and the snapshots' L1 tables
 *     qcow2_snapshot_refs.c   refcounts and copied bits of all that an L1 table reaches
 *
 * The whole disk is locked meanwhile, and so is q->lock; the node was flushed.  Order on disk:
 *
 *     create  refcounts up, L1 copy, new table | copied bits cleared | header | old table freed
 *     apply   refcounts up, new L1 table | header | refcounts of the old L1 table down
 *     remove  new table | header | copied bits set | refcounts down
 *
 * Each "|" is a flush, and the header is switched within one sector.  So refcounts are too high at
 * worst.  For a moment a cluster has the copied bit and refcount 2, when only one of its references
 * is left or has come into being: it is still owned by one table alone, so that writing in place is
 * right, and a repair of leaks mends it.
 */
#ifndef EVNBD_BLOCKCORE_FORMAT_QCOW2_SNAPSHOT_H
#define EVNBD_BLOCKCORE_FORMAT_QCOW2_SNAPSHOT_H

#include "blockcore/format/qcow2.h"

/* The table in memory. */
struct snapshot_table {
    uint8_t *data; /* as on disk */
    size_t length;
    struct qcow2_snapshot *entries; /* their id and name are in `data` */
    size_t count;
};

/* An L1 table in memory. */
struct snapshot_l1 {
    uint64_t *entries; /* host order, allocated */
    uint32_t count;
};

/* Clusters that were allocated for a table; count 0: none were needed. */
struct snapshot_place {
    uint64_t first, count;
};

/* qcow2_snapshot_table.c; `ret` is finished by the caller, also on failure. */
int qcow2_snapshots_read(struct qcow2 *q, struct snapshot_table *ret, struct error *error);
void qcow2_snapshots_fini(struct snapshot_table *table);
/* The entry number `index`, which was chosen in a table that was read before: -EINVAL, it is gone.
 */
int qcow2_snapshots_at(const struct snapshot_table *table, size_t index,
                       struct qcow2_snapshot **ret, struct error *error);
/*
 * Writes a table without the entry `skip` (or table->count: with all) and with one more (or NULL)
 * to new clusters; nothing points to it yet.
 */
int qcow2_snapshots_store(struct qcow2 *q, const struct snapshot_table *table, size_t skip,
                          const struct qcow2_snapshot *added, struct snapshot_place *ret,
                          struct error *error);
/*
 * Points the header to the new table, which is durable; the old one is freed later.  The guard
 * knows the new state.  When it fails the image takes no more changes.
 */
int qcow2_snapshots_switch(struct qcow2 *q, uint32_t count, const struct snapshot_place *place,
                           struct error *error);
/*
 * Reads the L1 table of a snapshot, with empty entries behind its own up to what its disk needs.
 * *ret_size is the size of its disk.
 */
int qcow2_snapshot_l1_read(struct qcow2 *q, const struct qcow2_snapshot *snapshot,
                           struct snapshot_l1 *ret, uint64_t *ret_size, struct error *error);
/* Writes entries without copied bits to new clusters. */
int qcow2_snapshot_l1_store(struct qcow2 *q, const struct snapshot_l1 *l1,
                            struct snapshot_place *ret);

/* qcow2_snapshot_refs.c */
/* Finds what is broken below an L1 table: then the image is marked corrupt, -EIO. */
int qcow2_refs_examine(struct qcow2 *q, const struct snapshot_l1 *l1);
/* Raises the refcounts of all that is below it: all or none. -EOVERFLOW: one is at its limit. */
int qcow2_refs_raise(struct qcow2 *q, const struct snapshot_l1 *l1);
/* Takes back qcow2_refs_raise. What cannot be taken back leaks. */
void qcow2_refs_unraise(struct qcow2 *q, const struct snapshot_l1 *l1);
/* Lowers them; nothing durable needs the references any more. Some may wait in q->pending. */
int qcow2_refs_drop(struct qcow2 *q, const struct snapshot_l1 *l1);
/* Clears the copied bits of the active tables. */
int qcow2_refs_clear_copied(struct qcow2 *q);
/*
 * Makes the copied bits of the active tables right, as they are without the references from the
 * table `leaving`, which are still counted (NULL: there is none).
 */
int qcow2_refs_set_copied(struct qcow2 *q, const struct snapshot_l1 *leaving);

#endif
