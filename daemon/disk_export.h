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

/*
 * Opens the image and puts its export into `exports`, as `arguments` say; these, `security` and
 * `exports` outlive it.  In a coroutine.  Negative errno with a sentence; disk_export_close() in
 * any case.
 */
int disk_export_open(struct disk_export *disk, const struct arguments *arguments,
                     const struct security *security, struct nbd_exports *exports,
                     struct error *error);

/*
 * The same with a new one, which is put at the end of `disks` (struct disk_export), opened or not.
 */
int disk_exports_add(struct list *disks, const struct arguments *arguments,
                     const struct security *security, struct nbd_exports *exports,
                     struct error *error);

/* Tells of what the operator may not have meant. */
void disk_export_warn(const struct disk_export *disk);

/*
 * Takes the export away, which no client uses any more, and closes the image; what clients have
 * written is written back first, if there were any: `served`.  In a coroutine.  A zeroed one is
 * fine.  Negative errno with a sentence when it could not be written back.
 */
int disk_export_close(struct disk_export *disk, bool served, struct error *error);

/*
 * The same for all in the list, which is empty then.  Goes on when one could not be written back;
 * `error` is about the first of these.
 */
int disk_exports_close(struct list *disks, bool served, struct error *error);

#endif
