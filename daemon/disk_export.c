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

/* Whether a client may come a second time while it is there. */
static bool takes_several(const struct arguments *a, const struct arguments *common)
{
    return a->shared != 1 && common->shared != 1 && common->address_limit != 1;
}

/* What the server does for its only export, each of many does for itself. */
static void set_limits(struct nbd_export *e, const struct arguments *a)
{
    e->clients_max = (unsigned)a->shared;
    e->needs_tls = a->tls == TLS_USE_REQUIRE;
}

static int make_export(struct disk_export *disk, const struct arguments *common,
                       struct error *error)
{
    const struct arguments *a = disk->arguments;
    struct nbd_export *e =
        nbd_export_new(a->export_name, a->description, disk->node,
                       a->read_only || !node_writable(disk->node), takes_several(a, common));

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
    if (a != common)
        set_limits(e, a);
    return add_contexts(e, a, error);
}

void disk_exports_init(struct disk_exports *disks, const struct arguments *common,
                       const struct security *security, struct nbd_exports *exports)
{
    *disks = (struct disk_exports){.common = common, .security = security, .exports = exports};
    list_init(&disks->list);
}

static int open_disk(struct disk_exports *disks, struct disk_export *disk, struct error *error)
{
    const struct arguments *a = disk->arguments;
    int err = security_access(disks->security, a, &disk->access, error);

    if (err == 0)
        err = image_open(&disk->context, a, &disk->node, &disk->place, error);
    if (err == 0)
        err = make_export(disk, disks->common, error);
    if (err < 0)
        return err;
    list_append(&disks->exports->list, &disk->nbd_export->link);
    if (!*a->export_name)
        disks->exports->default_export = disk->nbd_export;
    return 0;
}

int disk_exports_add(struct disk_exports *disks, const struct arguments *arguments,
                     struct error *error)
{
    struct disk_export *disk = calloc(1, sizeof(*disk));

    if (!disk)
        return error_set(error, ENOMEM, "Could not make the export: out of memory");
    disk->arguments = arguments;
    disk->context = image_context(arguments, disks->security->objects);
    list_append(&disks->list, &disk->link);
    return open_disk(disks, disk, error);
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

static int close_disk(struct disk_export *disk, bool served, struct error *error)
{
    int err = 0;

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

int disk_exports_close(struct disk_exports *disks, bool served, struct error *error)
{
    int first = 0;

    while (!list_empty(&disks->list)) {
        struct disk_export *disk = list_entry(disks->list.next, struct disk_export, link);
        int err = close_disk(disk, served, first < 0 ? NULL : error);

        if (first == 0)
            first = err;
        list_remove(&disk->link);
        free(disk);
    }
    return first;
}
