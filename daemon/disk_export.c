/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/disk_export.h"

#include "base/log.h"
#include "blockcore/drivers.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/* What clients may ask about the disk besides its contents. */
static int add_contexts(struct nbd_export *e, const struct arguments *a, struct error *error)
{
    int err = 0;

    e->allocation_depth = a->allocation_depth;
    for (size_t i = 0; i < a->bitmaps.count && err == 0; i++)
        err = nbd_export_add_bitmap(e, a->bitmaps.items[i], error);
    return err;
}

/* What the command line and the options of the image ask for. */
static void set_detect_zeroes(struct nbd_export *e, const struct arguments *a)
{
    enum node_detect_zeroes own = e->node->detect_zeroes;

    e->detect_zeroes = a->detect_zeroes != DETECT_ZEROES_OFF || own != NODE_DETECT_ZEROES_OFF;
    e->detect_zeroes_unmap =
        a->detect_zeroes == DETECT_ZEROES_UNMAP || own == NODE_DETECT_ZEROES_UNMAP;
}

static int make_export(struct disk_export *disk, struct error *error)
{
    const struct arguments *a = disk->arguments;
    struct nbd_export *e = nbd_export_new(a->export_name, a->description, disk->node,
                                          a->read_only || !node_writable(disk->node),
                                          a->shared != 1 && a->address_limit != 1);

    if (!e)
        return error_set(error, ENOMEM, "Could not make the export: out of memory");
    disk->nbd_export = e;
    set_detect_zeroes(e, a);
    e->write_through = image_write_through(a);
    if (disk->place.guessed_raw && !image_has_overlay(a)) {
        e->header_node = disk->place.disk;
        e->header_offset = disk->place.offset;
    }
    e->probe_drivers = block_drivers;
    e->access = &disk->access.rules;
    return add_contexts(e, a, error);
}

int disk_export_open(struct disk_export *disk, const struct arguments *arguments,
                     const struct security *security, struct nbd_exports *exports,
                     struct error *error)
{
    int err;

    *disk = (struct disk_export){
        .arguments = arguments,
        .context = image_context(arguments, security->objects),
    };
    err = security_access(security, arguments, &disk->access, error);
    if (err == 0)
        err = image_open(&disk->context, arguments, &disk->node, &disk->place, error);
    if (err == 0)
        err = make_export(disk, error);
    if (err < 0)
        return err;
    list_append(&exports->list, &disk->nbd_export->link);
    if (!*arguments->export_name)
        exports->default_export = disk->nbd_export;
    return 0;
}

int disk_exports_add(struct list *disks, const struct arguments *arguments,
                     const struct security *security, struct nbd_exports *exports,
                     struct error *error)
{
    struct disk_export *disk = calloc(1, sizeof(*disk));
    int err;

    if (!disk)
        return error_set(error, ENOMEM, "Could not make the export: out of memory");
    err = disk_export_open(disk, arguments, security, exports, error);
    list_append(disks, &disk->link);
    return err;
}

static void warn_about_probing(const struct disk_export *disk)
{
    const struct arguments *a = disk->arguments;

    if (!disk->place.guessed_raw || a->read_only || image_has_overlay(a))
        return;
    log_warning("WARNING: Image format was not specified for '%s' and probing guessed raw.",
                a->image);
    log_warning(
        "         A client of a raw image could make it look like another format, so writes "
        "that would do that are refused.");
    log_warning("         Say --format=raw to allow them.");
}

void disk_export_warn(const struct disk_export *disk)
{
    const struct arguments *a = disk->arguments;

    warn_about_probing(disk);
    if (a->offset > 0 && disk->node->size == 0)
        log_warning("warning: the offset %" PRIu64 " is where '%s' ends: the export has 0 bytes",
                    a->offset, a->image);
}

int disk_export_close(struct disk_export *disk, bool served, struct error *error)
{
    int err = 0;

    if (!disk->arguments)
        return 0;
    if (served && node_writable(disk->node) && !(disk->node->flags & NODE_TEMPORARY)) {
        err = block_flush(disk->node);
        if (err < 0)
            error_set_errno(error, -err, "Failed to flush '%s' at the end", disk->arguments->image);
    }
    nbd_export_free(disk->nbd_export);
    node_unref(disk->node);
    nbd_access_fini(&disk->access.rules);
    return err;
}

int disk_exports_close(struct list *disks, bool served, struct error *error)
{
    int first = 0;

    while (!list_empty(disks)) {
        struct disk_export *disk = list_entry(disks->next, struct disk_export, link);
        int err = disk_export_close(disk, served, first < 0 ? NULL : error);

        if (first == 0)
            first = err;
        list_remove(&disk->link);
        free(disk);
    }
    return first;
}
