/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The first cluster, written anew: header, extensions, name of the backing file.
 *
 * A write is whole or not at all only within 512 bytes.  So the header's sector is what switches:
 * first all that it is going to speak of is written behind it, where the old one has nothing; then
 * the sector, whose extensions end in it; and when that is durable, the names of features, which do
 * not fit into it and are of no consequence, are written and added.
 *
 * Only where the extensions that matter do not fit into the first 512 bytes, or the cluster has no
 * room for the names of both backing files, everything is written at once.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define SECTOR 512
#define V3_LENGTH 112 /* of a header that had none of version 3 */

struct rewrite {
    struct qcow2 *q;
    const struct qcow2_first *wanted;
    uint8_t *old, *new; /* clusters */
    size_t old_end;     /* where the old extensions end */
    size_t name_at;     /* of the new name */
};

static uint32_t header_length(const struct rewrite *r)
{
    if (r->wanted->version < 3)
        return QCOW2_V2_HEADER_LENGTH;
    return r->q->header.version < 3 ? V3_LENGTH : r->q->header.header_length;
}

static void put_fields(const struct rewrite *r, struct byte_writer *w)
{
    const struct qcow2_header *h = &r->q->header;
    const char *name = r->wanted->backing_name;

    byte_writer_be32(w, QCOW2_MAGIC);
    byte_writer_be32(w, r->wanted->version);
    byte_writer_be64(w, name ? r->name_at : 0);
    byte_writer_be32(w, name ? (uint32_t)strlen(name) : 0);
    byte_writer_be32(w, h->cluster_bits);
    byte_writer_be64(w, h->size);
    byte_writer_be32(w, h->crypt_method);
    byte_writer_be32(w, h->l1_size);
    byte_writer_be64(w, h->l1_offset);
    byte_writer_be64(w, h->reftable_offset);
    byte_writer_be32(w, h->reftable_clusters);
    byte_writer_be32(w, h->snapshots);
    byte_writer_be64(w, h->snapshots_offset);
}

static void put_v3_fields(const struct rewrite *r, struct byte_writer *w)
{
    const struct qcow2_header *h = &r->q->header;
    uint32_t length = header_length(r);

    byte_writer_be64(w, r->wanted->incompatible);
    byte_writer_be64(w, r->wanted->compatible);
    byte_writer_be64(w, r->wanted->autoclear);
    byte_writer_be32(w, h->refcount_order);
    byte_writer_be32(w, length);
    /* What is not known here stays. */
    if (h->version >= 3)
        byte_writer_put(w, r->old + QCOW2_V3_HEADER_LENGTH, length - QCOW2_V3_HEADER_LENGTH);
    else
        byte_writer_zero(w, length - QCOW2_V3_HEADER_LENGTH);
}

/* Whether an extension of the old header is kept as it is. */
static bool kept(const struct rewrite *r, uint32_t type)
{
    if (type == QCOW2_EXT_BACKING_FORMAT || type == QCOW2_EXT_FEATURE_TABLE)
        return false;
    if (type == QCOW2_EXT_DATA_FILE && r->wanted->data_file)
        return false;
    return type != QCOW2_EXT_BITMAPS || (r->wanted->autoclear & QCOW2_AUTOCLEAR_BITMAPS);
}

static void put_extensions(const struct rewrite *r, struct byte_writer *w)
{
    const char *format = r->wanted->backing_format, *data_file = r->wanted->data_file;
    struct byte_reader reader = qcow2_extensions(r->old, r->q->cluster_size, &r->q->header);
    struct qcow2_extension ext;

    if (r->wanted->backing_name && format)
        qcow2_put_extension(w, QCOW2_EXT_BACKING_FORMAT, format, strlen(format));
    if (data_file)
        qcow2_put_extension(w, QCOW2_EXT_DATA_FILE, data_file, strlen(data_file));
    while (qcow2_extension_next(&reader, &ext) > 0) {
        if (kept(r, ext.type))
            qcow2_put_extension(w, ext.type, ext.data, ext.length);
    }
}

/* Puts it all into r->new; returns where the extensions end, or 0 when it does not fit. */
static size_t compose(const struct rewrite *r, bool with_names)
{
    struct byte_writer w = byte_writer_of(r->new, r->q->cluster_size);
    const char *name = r->wanted->backing_name;
    size_t end;

    memset(r->new, 0, r->q->cluster_size);
    put_fields(r, &w);
    if (r->wanted->version >= 3)
        put_v3_fields(r, &w);
    put_extensions(r, &w);
    if (with_names)
        qcow2_put_feature_table(&w);
    byte_writer_zero(&w, 8); /* no more of them */
    end = w.failed ? 0 : (size_t)(w.data - r->new);
    if (end > 0 && name && r->name_at > 0) {
        if (r->name_at < end || !range_within(r->name_at, strlen(name), r->q->cluster_size))
            return 0;
        memcpy(r->new + r->name_at, name, strlen(name));
    }
    return end;
}

/* Where the old extensions end, their end mark included. */
static size_t old_extensions_end(const struct rewrite *r)
{
    struct byte_reader reader = qcow2_extensions(r->old, r->q->cluster_size, &r->q->header);
    struct qcow2_extension ext;

    while (qcow2_extension_next(&reader, &ext) > 0)
        ;
    return (size_t)(reader.data - r->old);
}

/* A place behind `end` for the new name; away from the old one, if there is room. */
static size_t place_name(const struct rewrite *r, size_t end)
{
    struct qcow2_piece old = r->q->header.backing_name;
    size_t length = strlen(r->wanted->backing_name), cluster = r->q->cluster_size;
    size_t at = align_up(max_u64(end, r->old_end), 8);

    if (old.offset >= end && old.length == length &&
        memcmp(r->old + old.offset, r->wanted->backing_name, length) == 0)
        return old.offset;
    if (old.offset == 0)
        return at + length <= cluster ? at : end;
    if (ranges_overlap(at, length, old.offset, old.length))
        at = align_up(old.offset + old.length, 8);
    return at + length <= cluster ? at : end;
}

/* Writes the sectors of r->new behind the first that differ from `before`, durably. */
static int write_behind(const struct rewrite *r, const uint8_t *before)
{
    size_t length = r->q->cluster_size - SECTOR;
    int err;

    if (memcmp(r->new + SECTOR, before + SECTOR, length) == 0)
        return 0;
    err = block_write(r->q->file, r->new + SECTOR, length, SECTOR, 0);
    return err < 0 ? err : block_flush(r->q->file);
}

static int write_first(const struct rewrite *r, size_t length)
{
    int err = qcow2_switch(r->q, 0, r->new, length);

    return err < 0 ? err : block_flush(r->q->file);
}

/* The name first, with all else as it was; then the header's sector. r->new is without names. */
static int write_switch(const struct rewrite *r, uint8_t *middle)
{
    uint8_t *core = r->new;
    struct rewrite step = *r;
    int err;

    memcpy(middle, r->old, r->q->cluster_size);
    if (r->wanted->backing_name)
        memcpy(middle + r->name_at, core + r->name_at, strlen(r->wanted->backing_name));
    step.new = middle;
    err = write_behind(&step, r->old);
    return err < 0 ? err : write_first(r, SECTOR);
}

static int write_all(struct rewrite *r, bool with_names)
{
    size_t cluster = r->q->cluster_size, end = compose(r, false);
    uint8_t *middle;
    int err;

    if (end > SECTOR || cluster == SECTOR) {
        compose(r, with_names);
        return write_first(r, cluster);
    }
    middle = buffer_get(cluster);
    if (!middle)
        return -ENOMEM;
    err = write_switch(r, middle);
    if (err == 0) {
        compose(r, with_names);
        err = write_behind(r, middle);
    }
    if (err == 0)
        err = write_first(r, SECTOR);
    buffer_put(middle, cluster);
    return err;
}

/* Finds the layout: with the names of features, if there is room for them. */
static int plan(struct rewrite *r, bool *with_names, struct error *error)
{
    *with_names = r->wanted->version >= 3 && r->q->cluster_size > SECTOR;
    for (;;) {
        size_t end;

        r->name_at = 0;
        end = compose(r, *with_names);
        if (end > 0 && r->wanted->backing_name)
            r->name_at = place_name(r, end);
        if (end > 0 && compose(r, *with_names) > 0)
            return 0;
        if (!*with_names)
            return error_set(error, EINVAL,
                             "the names of backing file and data file do not fit into the first "
                             "cluster of %" PRIu64 " bytes",
                             r->q->cluster_size);
        *with_names = false;
    }
}

static int rewrite(struct rewrite *r, struct error *error)
{
    struct qcow2 *q = r->q;
    size_t length = min_u64(q->cluster_size, q->file->size);
    bool with_names;
    int err;

    memset(r->old, 0, q->cluster_size);
    err = block_read(q->file, r->old, length, 0);
    if (err < 0)
        return error_set_errno(error, -err, "cannot read the first cluster of %s",
                               node_name(q->node));
    r->old_end = old_extensions_end(r);
    err = plan(r, &with_names, error);
    if (err < 0)
        return err;
    err = write_all(r, with_names);
    if (err < 0)
        return error_set_errno(error, -err, "cannot write the first cluster of %s",
                               node_name(q->node));
    err = qcow2_header_parse(r->new, q->cluster_size, &q->header, error);
    return err < 0 ? err
                   : qcow2_header_parse_extensions(r->new, q->cluster_size, &q->header, error);
}

int qcow2_first_write(struct qcow2 *q, const struct qcow2_first *first, struct error *error)
{
    struct rewrite r = {.q = q, .wanted = first};
    int err;

    r.old = buffer_get(q->cluster_size);
    r.new = buffer_get(q->cluster_size);
    err = r.old && r.new ? rewrite(&r, error) : error_set(error, ENOMEM, "out of memory");
    buffer_put(r.old, q->cluster_size);
    buffer_put(r.new, q->cluster_size);
    return err;
}
