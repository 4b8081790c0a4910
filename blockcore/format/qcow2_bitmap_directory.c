/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A new bitmap directory, and the header extension that names it.
 *
 * Cluster 0 is changed by writes that leave it sound, each durable before the next: the extension's
 * 24 bytes where they lie within one sector (else its autoclear bit is off meanwhile); a new
 * extension behind the last one before its type makes it one; the backing file's name, when it is
 * in the way, copied first and renamed then.
 */
#include "base/buffer.h"
#include "base/bytes.h"
#include "base/log.h"
#include "blockcore/format/qcow2_bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512
enum { EXT_HEAD = 8, EXT_BYTES = 24 };

/* A directory that is to be put into force. */
struct directory {
    uint64_t offset, size;
    uint32_t count;
};

int qcow2_bitmap_clusters_alloc(struct qcow2 *q, uint64_t count, uint64_t *ret_offset)
{
    uint64_t first;
    int err = qcow2_clusters_alloc_run(q, count, &first);

    if (err < 0)
        return err;
    if (qcow2_guard_reserve(q, count) < 0) {
        qcow2_clusters_unalloc(q, first, count);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < count; i++)
        qcow2_guard_add(q, (first + i) << q->cluster_bits, GUARD_FIXED);
    *ret_offset = first << q->cluster_bits;
    return 0;
}

static void unguard(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        qcow2_guard_remove(q, offset + (i << q->cluster_bits));
}

int qcow2_bitmap_clusters_free(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    int err = qcow2_pending_reserve(q, 1);

    if (err < 0)
        return err;
    unguard(q, offset, count);
    qcow2_pending_add(q, offset >> q->cluster_bits, count);
    return 0;
}

void qcow2_bitmap_clusters_undo(struct qcow2 *q, uint64_t offset, uint64_t count)
{
    unguard(q, offset, count);
    qcow2_clusters_unalloc(q, offset >> q->cluster_bits, count);
}

/* Writes to cluster 0, durably. */
static int write_header(struct qcow2 *q, const void *data, size_t length, uint64_t at)
{
    int err = block_write(q->file, data, length, at, 0);

    return err < 0 ? err : block_flush(q->file);
}

static int set_autoclear(struct qcow2 *q, bool on)
{
    uint64_t value = q->header.autoclear & ~QCOW2_AUTOCLEAR_BITMAPS;
    int err;

    if (on)
        value |= QCOW2_AUTOCLEAR_BITMAPS;
    if (value == q->header.autoclear)
        return 0;
    err = qcow2_patch_header(q, QCOW2_AT_AUTOCLEAR, value);
    if (err == 0)
        q->header.autoclear = value;
    return err;
}

static void make_extension(const struct directory *d, uint8_t *out)
{
    struct byte_writer w = byte_writer_of(out, EXT_BYTES);

    byte_writer_be32(&w, d->count);
    byte_writer_be32(&w, 0);
    byte_writer_be64(&w, d->size);
    byte_writer_be64(&w, d->offset);
}

static int change_extension(struct qcow2 *q, uint32_t at, const struct directory *d)
{
    uint8_t data[EXT_BYTES];
    int err = 0;

    make_extension(d, data);
    if (at / SECTOR != (at + EXT_BYTES - 1) / SECTOR)
        err = set_autoclear(q, false);
    if (err == 0)
        err = write_header(q, data, sizeof(data), at);
    return err < 0 ? err : set_autoclear(q, true);
}

/* Where the backing file's name goes when an extension is put behind the last one. */
static uint64_t new_name_offset(const struct qcow2 *q, const struct qcow2_extension_place *end)
{
    const struct qcow2_piece *name = &q->header.backing_name;
    uint64_t needed = end->at + EXT_HEAD + EXT_BYTES + EXT_HEAD;

    if (name->offset == 0 || name->offset >= needed)
        return name->offset;
    return align_up(max_u64(needed, (uint64_t)name->offset + name->length), 8);
}

static bool has_room(const struct qcow2 *q, const struct qcow2_extension_place *end)
{
    uint64_t name = new_name_offset(q, end);

    if (!end->last) /* without an end marker something else would be taken for an extension */
        return false;
    return range_within(end->at, EXT_HEAD + EXT_BYTES + EXT_HEAD, q->cluster_size) &&
           (name == 0 || range_within(name, q->header.backing_name.length, q->cluster_size));
}

static int move_name(struct qcow2 *q, const uint8_t *cluster, uint64_t to)
{
    struct qcow2_piece *name = &q->header.backing_name;
    int err;

    if (to == name->offset)
        return 0;
    err = write_header(q, cluster + name->offset, name->length, to);
    if (err == 0)
        err = qcow2_patch_header(q, QCOW2_AT_BACKING_NAME, to);
    if (err == 0)
        name->offset = (uint32_t)to;
    return err;
}

static int add_extension(struct qcow2 *q, const uint8_t *cluster,
                         const struct qcow2_extension_place *end, const struct directory *d)
{
    uint8_t body[EXT_BYTES + EXT_HEAD] = {0}, head[EXT_HEAD];
    int err = move_name(q, cluster, new_name_offset(q, end));

    make_extension(d, body);
    put_be32(head, QCOW2_EXT_BITMAPS);
    put_be32(head + 4, EXT_BYTES);
    if (err == 0)
        err = write_header(q, body, sizeof(body), end->at + EXT_HEAD);
    if (err == 0)
        err = write_header(q, head, sizeof(head), end->at);
    return err < 0 ? err : set_autoclear(q, true);
}

static int remove_extension(struct qcow2 *q, const struct qcow2_extension_place *place)
{
    uint8_t head[EXT_HEAD] = {0};
    int err = set_autoclear(q, false);

    /* Others that follow stay where they are. */
    if (!place->last) {
        put_be32(head, QCOW2_EXT_UNUSED);
        put_be32(head + 4, place->length);
    }
    return err < 0 ? err : write_header(q, head, sizeof(head), place->at);
}

/* Which of the directories is in force is not known: neither may be changed. */
static int header_failed(struct qcow2 *q, int err, struct error *error)
{
    q->corrupt = true;
    log_error("%s: writing the header failed; the image takes no more writes until it is opened "
              "again",
              node_name(q->node));
    return error_set_errno(error, -err, "cannot write the header of %s", node_name(q->node));
}

static int switch_header(struct qcow2 *q, const uint8_t *cluster, const struct directory *d,
                         struct error *error)
{
    struct qcow2_extension_place place;
    size_t length = min_u64(q->cluster_size, q->file->size);
    bool found =
        qcow2_header_find_extension(cluster, length, &q->header, QCOW2_EXT_BITMAPS, &place);
    int err = 0;

    if (found && place.length != EXT_BYTES && d->count > 0)
        return error_set(error, EINVAL, "%s has a bitmaps extension of %" PRIu32 " bytes, not 24",
                         node_name(q->node), place.length);
    if (!found && d->count > 0 && !has_room(q, &place))
        return error_set(error, ENOSPC,
                         "the first cluster of %s has no room for another header extension",
                         node_name(q->node));
    if (d->count == 0)
        err = found ? remove_extension(q, &place) : 0;
    else
        err = found ? change_extension(q, place.at + EXT_HEAD, d)
                    : add_extension(q, cluster, &place, d);
    return err < 0 ? header_failed(q, err, error) : 0;
}

static int put_into_force(struct qcow2 *q, const struct directory *d, struct error *error)
{
    uint8_t *cluster = buffer_get(q->cluster_size);
    int err = cluster ? 0 : -ENOMEM;

    if (err == 0)
        err = block_read(q->file, cluster, min_u64(q->cluster_size, q->file->size), 0);
    if (err < 0)
        error_set_errno(error, -err, "cannot read the header of %s", node_name(q->node));
    else
        err = switch_header(q, cluster, d, error);
    buffer_put(cluster, q->cluster_size);
    if (err < 0)
        return err;
    q->header.has_bitmaps = d->count > 0;
    q->header.bitmap_count = d->count;
    q->header.bitmap_directory_offset = d->offset;
    q->header.bitmap_directory_size = d->size;
    return 0;
}

/* Writes the entries to new clusters; all that was allocated is durable then. */
static int write_entries(struct qcow2 *q, struct qcow2_bitmap *const *list, struct directory *d)
{
    uint64_t clusters = div_round_up(d->size, q->cluster_size), at = 0;
    uint8_t *data = malloc(d->size);
    int err = data ? qcow2_bitmap_clusters_alloc(q, clusters, &d->offset) : -ENOMEM;

    if (err < 0) {
        free(data);
        return err;
    }
    for (uint32_t i = 0; i < d->count; i++) {
        qcow2_bitmap_entry_write(data + at, &list[i]->entry);
        at += qcow2_bitmap_entry_size(&list[i]->entry);
    }
    err = block_write(q->file, data, d->size, d->offset, 0);
    free(data);
    if (err == 0)
        err = table_cache_writeback(q->refcount_cache);
    if (err == 0)
        err = block_flush(q->file);
    if (err < 0)
        qcow2_bitmap_clusters_undo(q, d->offset, clusters);
    return err;
}

static int make_directory(struct qcow2 *q, struct qcow2_bitmap *const *list, struct directory *d,
                          struct error *error)
{
    int err;

    for (uint32_t i = 0; i < d->count; i++)
        d->size += qcow2_bitmap_entry_size(&list[i]->entry);
    if (d->size > QCOW2_BITMAP_DIRECTORY_MAX)
        return error_set(error, ENOSPC, "%s has as many bitmaps as its directory can hold",
                         node_name(q->node));
    err = d->count > 0 ? write_entries(q, list, d) : 0;
    if (err < 0)
        return error_set_errno(error, -err, "cannot write a bitmap directory of %s",
                               node_name(q->node));
    err = put_into_force(q, d, error);
    if (err < 0 && !q->corrupt && d->count > 0)
        qcow2_bitmap_clusters_undo(q, d->offset, div_round_up(d->size, q->cluster_size));
    return err;
}

int qcow2_bitmap_directory_write(struct qcow2 *q, struct qcow2_bitmap *const *list, size_t count,
                                 struct error *error)
{
    uint64_t old_offset = q->header.bitmap_directory_offset;
    uint64_t old_size = q->header.has_bitmaps ? q->header.bitmap_directory_size : 0, at = 0;
    struct directory d = {.count = (uint32_t)count};
    int err = make_directory(q, list, &d, error);

    if (err < 0)
        return err;
    for (size_t i = 0; i < count; i++) {
        list[i]->at = at;
        at += qcow2_bitmap_entry_size(&list[i]->entry);
    }
    /* What cannot be given back leaks. */
    if (old_size > 0)
        qcow2_bitmap_clusters_free(q, old_offset, div_round_up(old_size, q->cluster_size));
    return 0;
}
