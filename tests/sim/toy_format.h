/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The smallest format that allocates, for tests of the data engine: 4 KiB clusters, a map in
 * memory, no metadata on the disk.  It waits a little in each call, so that requests meet in all
 * orders, and it dies when the engine breaks its contract (a cluster mapped twice, freed while in
 * use, ...).
 *
 * Options: "file", "backing", "size" (bytes; default 1 MiB).
 */
#ifndef EVNBD_TESTS_TOY_FORMAT_H
#define EVNBD_TESTS_TOY_FORMAT_H

#include "blockcore/node.h"

#define TOY_CLUSTER 4096

extern const struct driver driver_toy;

/* Clusters of the file that are mapped, or reserved by an allocation that has not ended. */
unsigned toy_clusters_used(const struct node *node);
/* Clusters that are mapped. */
unsigned toy_clusters_mapped(const struct node *node);
/* Makes the cluster with this guest offset ENCODED: decode gives its bytes inverted. */
void toy_encode(struct node *node, uint64_t offset);

#endif
