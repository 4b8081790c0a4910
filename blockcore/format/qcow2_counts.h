/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References counted by host cluster, for the check of qcow2.
 *
 * Sparse: memory grows with the clusters that are referenced, about one and a half bytes each,
 * never with the size of a file or with the numbers that an image names.
 */
#ifndef EVNBD_BLOCKCORE_FORMAT_QCOW2_COUNTS_H
#define EVNBD_BLOCKCORE_FORMAT_QCOW2_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Marks of a cluster. */
enum {
    COUNT_FIXED = 0x80,   /* metadata with exactly one reference: header, tables, refcount blocks */
    COUNT_TABLE = 0x40,   /* an L2 table */
    COUNT_SEEN = 0x20,    /* the L2 table was visited */
    COUNT_OVERLAP = 0x10, /* also used for something else, which is not counted */
    COUNT_MARKS = 0xf0,
};

#define COUNTS_PER_CHUNK 64

struct counts_chunk {
    uint64_t index; /* first cluster / COUNTS_PER_CHUNK */
    uint8_t cells[COUNTS_PER_CHUNK];
};

struct counts_large {
    uint64_t cluster, count; /* count 0: free */
};

struct qcow2_counts {
    struct counts_chunk *chunks;
    size_t used, max;
    uint32_t *hash; /* number of a chunk plus 1; 0: free */
    size_t hash_max;
    struct counts_large *large; /* hash of the counts that do not fit into a cell */
    size_t large_used, large_max;
};

void qcow2_counts_fini(struct qcow2_counts *counts);
/* Adds `n` references and the marks. 0 or -ENOMEM. */
int qcow2_counts_add(struct qcow2_counts *counts, uint64_t cluster, uint64_t n, unsigned marks);
uint64_t qcow2_counts_get(const struct qcow2_counts *counts, uint64_t cluster);
unsigned qcow2_counts_marks(const struct qcow2_counts *counts, uint64_t cluster);
/* First cluster of [first, end) that has a mark, else `end`. */
uint64_t qcow2_counts_find(const struct qcow2_counts *counts, uint64_t first, uint64_t end);
/* The cluster has been counted. */
void qcow2_counts_set_marks(struct qcow2_counts *counts, uint64_t cluster, unsigned marks);
/* Forgets the cluster. */
void qcow2_counts_clear(struct qcow2_counts *counts, uint64_t cluster);
/* Puts the chunks in order of index. */
void qcow2_counts_sort(struct qcow2_counts *counts);

#endif
