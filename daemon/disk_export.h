/* SPDX-License-Identifier: BSD-3-Clause */
/* An image that is served, and the export by which clients see it. */
#ifndef EVNBD_DAEMON_DISK_EXPORT_H
#define EVNBD_DAEMON_DISK_EXPORT_H

#include "base/list.h"
#include "blockcore/block.h"
#include "daemon/image.h"
#include "daemon/security.h"
#include "nbd/export.h"

struct disk_export {
    struct list link;
    const struct arguments *arguments; /* what to serve, and how; the caller's */
    struct block_context context;
    struct export_access access;
    struct node *node;
    struct image_place place;
    struct nbd_export *nbd_export;
};

/* All that a server has. */
struct disk_exports {
    struct list list; /* struct disk_export */
    const struct arguments
        *common; /* of the server; the same as of an export: it is its only one */
    const struct security *security;
    struct nbd_exports *exports; /* what clients are told of */
};

/* All but the list is the caller's, and outlives it. */
void disk_exports_init(struct disk_exports *disks, const struct arguments *common,
                       const struct security *security, struct nbd_exports *exports);

/*
 * Opens an image as `arguments` say, which outlive it, and puts its export before clients.  In a
 * coroutine.  Negative errno with a sentence; what was opened is closed with the others.
 */
int disk_exports_add(struct disk_exports *disks, const struct arguments *arguments,
                     struct error *error);

/* Tells of what the operator may not have meant. */
void disk_export_warn(const struct disk_export *disk);

/*
 * Takes all exports away, which no client uses any more, and closes the images; what clients have
 * written is written back first, if there were any: `served`.  In a coroutine.  Goes on when one
 * cannot be written back: negative errno with a sentence about the first of these.
 */
int disk_exports_close(struct disk_exports *disks, bool served, struct error *error);

#endif
