/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The snapshot table and the snapshots' L1 tables: reading, and writing to new clusters.  Entries
 * that stay are copied as they are, with whatever extra data they have.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int out_of_memory(struct error *error)
{
    return error_set(error, ENOMEM, "out of memory");
}

void qcow2_snapshots_fini(struct snapshot_table *table)
{
    free(table->data);
    free(table->entries);
    *table = (struct snapshot_table){0};
}

static int parse_table(const struct qcow2 *q, struct snapshot_table *table, struct error *error)
{
    size_t at = 0;

    for (uint32_t i = 0; i < q->header.snapshots; i++) {
        int err = qcow2_snapshot_parse(table->data + at, table->length - at, q->cluster_bits, i,
                                       &table->entries[i], error);

        if (err < 0)
            return err;
        at += table->entries[i].entry_length;
        table->count++;
    }
    return 0;
}

int qcow2_snapshots_read(struct qcow2 *q, struct snapshot_table *ret, struct error *error)
{
    int err;

    *ret = (struct snapshot_table){.length = q->snapshots_length};
    if (q->header.snapshots == 0)
        return 0;
    ret->data = malloc(ret->length);
    ret->entries = calloc(q->header.snapshots, sizeof(*ret->entries));
    if (!ret->data || !ret->entries)
        return out_of_memory(error);
    err = block_read(q->file, ret->data, ret->length, q->header.snapshots_offset);
    if (err < 0)
        return error_set_errno(error, -err, "cannot read the snapshot table");
    return parse_table(q, ret, error);
}

int qcow2_snapshots_at(const struct snapshot_table *table, size_t index,
                       struct qcow2_snapshot **ret, struct error *error)
{
    if (index >= table->count)
        return error_set(error, EINVAL,
                         "the image has %zu snapshots now, and number %zu was chosen: something "
                         "else writes to it",
                         table->count, index + 1);
    *ret = &table->entries[index];
    return 0;
}

/* Copies all entries but one. Returns the bytes. */
static size_t copy_entries(const struct snapshot_table *table, size_t skip, uint8_t *out)
{
    size_t from = 0, to = 0;

    for (size_t i = 0; i < table->count; i++) {
        size_t length = table->entries[i].entry_length;

        if (i != skip) {
            memcpy(out + to, table->data + from, length);
            to += length;
        }
        from += length;
    }
    return to;
}

/* Writes `length` bytes, with zeroes up to the end of the last cluster, to new clusters. */
static int store(struct qcow2 *q, const void *data, size_t length, struct snapshot_place *ret)
{
    uint64_t bytes = align_up(length, q->cluster_size);
    uint8_t *padded;
    int err;

    *ret = (struct snapshot_place){0};
    if (length == 0)
        return 0;
    padded = calloc(1, bytes);
    if (!padded)
        return -ENOMEM;
    memcpy(padded, data, length);
    err = qcow2_clusters_alloc_run(q, bytes >> q->cluster_bits, &ret->first);
    if (err == 0) {
        ret->count = bytes >> q->cluster_bits;
        err = block_write(q->file, padded, bytes, ret->first << q->cluster_bits, 0);
    }
    free(padded);
    return err;
}

int qcow2_snapshots_store(struct qcow2 *q, const struct snapshot_table *table, size_t skip,
                          const struct qcow2_snapshot *added, struct snapshot_place *ret,
                          struct error *error)
{
    size_t length = 0;
    uint8_t *data = malloc(table->length + QCOW2_SNAPSHOT_ENTRY_MAX);
    int err = 0;

    *ret = (struct snapshot_place){0};
    if (!data)
        return out_of_memory(error);
    length = copy_entries(table, skip, data);
    if (added)
        length += qcow2_snapshot_write(data + length, added);
    if (length > QCOW2_SNAPSHOT_TABLE_MAX)
        err = error_set(error, EFBIG, "the snapshot table would have more than 64 MiB");
    if (err == 0) {
        err = store(q, data, length, ret);
        if (err < 0)
            error_set_errno(error, -err, "cannot write a new snapshot table");
    }
    free(data);
    return err;
}

int qcow2_snapshots_switch(struct qcow2 *q, uint32_t count, const struct snapshot_place *place,
                           struct error *error)
{
    uint64_t offset = place->count > 0 ? place->first << q->cluster_bits : 0;
    uint64_t old = q->header.snapshots_offset >> q->cluster_bits;
    uint64_t old_clusters = div_round_up(q->snapshots_length, q->cluster_size);
    uint8_t data[12];
    int err = qcow2_pending_reserve(q, 1);

    if (err < 0)
        return out_of_memory(error);
    put_be32(data, count);
    put_be64(data + 4, offset);
    err = qcow2_switch(q, QCOW2_AT_SNAPSHOTS, data, sizeof(data));
    if (err == 0)
        err = block_flush(q->file);
    if (err < 0)
        return error_set_errno(error, -err, "cannot write the header");
    q->header.snapshots = count;
    q->header.snapshots_offset = offset;
    if (old_clusters > 0)
        qcow2_pending_add(q, old, old_clusters);
    return qcow2_guard_reload(q, error);
}

/* How large the snapshot's disk is, and how many L1 entries that needs. */
static int judge_size(const struct qcow2 *q, const struct qcow2_snapshot *s, uint64_t *ret_size,
                      uint64_t *ret_entries, struct error *error)
{
    uint64_t needed;

    *ret_size = s->has_disk_size ? s->disk_size : q->header.size;
    needed = qcow2_l1_entries_needed(*ret_size, q->cluster_bits, q->entry_bits);
    if (*ret_size > OFFSET_MAX - 511 || needed > QCOW2_L1_BYTES_MAX / 8)
        return error_set(
            error, EINVAL,
            "the snapshot has a disk of %" PRIu64 " bytes, more than the format allows", *ret_size);
    *ret_entries = max_u64(needed, s->l1_size);
    return 0;
}

int qcow2_snapshot_l1_read(struct qcow2 *q, const struct qcow2_snapshot *snapshot,
                           struct snapshot_l1 *ret, uint64_t *ret_size, struct error *error)
{
    size_t bytes = (size_t)snapshot->l1_size * 8;
    uint64_t entries;
    int err = judge_size(q, snapshot, ret_size, &entries, error);

    *ret = (struct snapshot_l1){0};
    if (err < 0)
        return err;
    if (bytes > 0 && !range_within(snapshot->l1_offset, bytes, q->file->size))
        return error_set(error, EINVAL,
                         "the snapshot's L1 table is %zu bytes at offset %" PRIu64
                         ", beyond the end of the file (%" PRIu64 " bytes)",
                         bytes, snapshot->l1_offset, q->file->size);
    /* A table has one entry at least, also that of an empty disk. */
    ret->count = (uint32_t)max_u64(entries, 1);
    ret->entries = calloc(ret->count, sizeof(*ret->entries));
    if (!ret->entries)
        return out_of_memory(error);
    if (bytes > 0)
        err = block_read(q->file, ret->entries, bytes, snapshot->l1_offset);
    if (err < 0)
        return error_set_errno(error, -err, "cannot read the snapshot's L1 table");
    for (uint32_t i = 0; i < snapshot->l1_size; i++)
        ret->entries[i] = be64toh(ret->entries[i]);
    return 0;
}

int qcow2_snapshot_l1_store(struct qcow2 *q, const struct snapshot_l1 *l1,
                            struct snapshot_place *ret)
{
    uint8_t *data = malloc((size_t)l1->count * 8 + 1);
    int err;

    *ret = (struct snapshot_place){0};
    if (!data)
        return -ENOMEM;
    for (uint32_t i = 0; i < l1->count; i++)
        put_be64(data + (size_t)i * 8, l1->entries[i] & ~QCOW2_COPIED);
    err = store(q, data, (size_t)l1->count * 8, ret);
    free(data);
    return err;
}
