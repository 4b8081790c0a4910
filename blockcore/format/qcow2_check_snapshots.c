/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Snapshot table entries that do not say how large the disk was, which version 3 wants: a new table
 * with all they need takes the place of the old one, when nothing else is wrong any more.  See
 * qcow2_check.h.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A table in memory. */
struct bytes {
    uint8_t *data;
    size_t length;
};

/* Adds one entry to the new table; what is complete is kept as it is. */
static int add_entry(const struct qcow2_check *c, struct bytes *to, const struct bytes *from,
                     size_t at, uint32_t index, size_t *ret_length)
{
    struct qcow2_snapshot s;
    int err =
        qcow2_snapshot_parse(from->data + at, from->length - at, c->cluster_bits, index, &s, NULL);

    if (err < 0)
        return err;
    *ret_length = s.entry_length;
    if (s.has_disk_size) {
        memcpy(to->data + to->length, from->data + at, s.entry_length);
        to->length += s.entry_length;
        return 0;
    }
    s.disk_size = c->header->size;
    to->length += qcow2_snapshot_write(to->data + to->length, &s);
    return 0;
}

/* The new table, padded to whole clusters with zeroes; freed by the caller. */
static int make_table(const struct qcow2_check *c, const struct bytes *old, struct bytes *ret)
{
    size_t at = 0, length = 0, room = old->length + c->header->snapshots * 32 + c->cluster_size;
    int err = 0;

    *ret = (struct bytes){.data = calloc(1, room)};
    if (!ret->data)
        return -ENOMEM;
    for (uint32_t i = 0; i < c->header->snapshots && err == 0; i++) {
        err = add_entry(c, ret, old, at, i, &length);
        at += length;
    }
    return err < 0 || ret->length <= QCOW2_SNAPSHOT_TABLE_MAX ? err : -EFBIG;
}

static int read_block(struct qcow2_check *c, uint64_t block)
{
    return block_read(c->file, c->table, c->cluster_size, c->reftable[block]);
}

static int write_block(struct qcow2_check *c, uint64_t block)
{
    return block_write(c->file, c->table, c->cluster_size, c->reftable[block], 0);
}

/* First of `clusters` free ones in a row that the block in c->table describes, or `end`. */
static uint64_t find_run(const struct qcow2_check *c, uint64_t first, uint64_t end,
                         uint64_t clusters)
{
    uint64_t run = 0;

    for (uint64_t i = first; i < end; i++) {
        bool is_free = qcow2_refcount_get(c->table, i - first, c->header->refcount_order) == 0 &&
                       qcow2_counts_get(&c->counts, i) == 0;

        run = is_free ? run + 1 : 0;
        if (run == clusters)
            return i + 1 - clusters;
    }
    return end;
}

/* Takes clusters in a row, durably. -ENOSPC: no block has them. */
static int take_clusters(struct qcow2_check *c, uint64_t clusters, uint64_t *ret_first)
{
    uint64_t limit = c->file->identity.inode ? UINT64_MAX : c->file->size >> c->cluster_bits;

    for (uint64_t block = 0; block < c->reftable_entries; block++) {
        uint64_t base = block << c->refblock_bits;
        uint64_t end = min_u64(base + (UINT64_C(1) << c->refblock_bits), max_u64(limit, base));
        int err = c->block_states[block] == CHECK_BLOCK_GOOD ? read_block(c, block) : -ENOSPC;

        *ret_first = err == 0 ? find_run(c, base, end, clusters) : end;
        if (*ret_first == end)
            continue;
        for (uint64_t i = 0; i < clusters; i++)
            qcow2_refcount_set(c->table, *ret_first - base + i, c->header->refcount_order, 1);
        err = write_block(c, block);
        for (uint64_t i = 0; i < clusters && err == 0; i++)
            err = qcow2_counts_add(&c->counts, *ret_first + i, 1, COUNT_FIXED);
        return err < 0 ? err : block_flush(c->file);
    }
    return -ENOSPC;
}

/* Nothing points to the old table any more. */
static int free_clusters(struct qcow2_check *c, uint64_t first, uint64_t clusters)
{
    int err = 0;

    for (uint64_t i = first; i < first + clusters && err == 0; i++) {
        uint64_t block = i >> c->refblock_bits;

        err = read_block(c, block);
        if (err < 0)
            break;
        qcow2_refcount_set(c->table, i - (block << c->refblock_bits), c->header->refcount_order, 0);
        qcow2_counts_clear(&c->counts, i);
        err = write_block(c, block);
    }
    return err;
}

static int put_in_force(struct qcow2_check *c, const struct bytes *table)
{
    uint64_t clusters = div_round_up(table->length, c->cluster_size), first = 0;
    uint8_t header[12];
    int err = take_clusters(c, clusters, &first);

    if (err < 0)
        return err;
    err =
        block_write(c->file, table->data, clusters << c->cluster_bits, first << c->cluster_bits, 0);
    if (err == 0)
        err = block_flush(c->file);
    put_be32(header, c->header->snapshots);
    put_be64(header + 4, first << c->cluster_bits);
    if (err == 0)
        err = block_write(c->file, header, sizeof(header), QCOW2_AT_SNAPSHOTS, 0);
    if (err == 0)
        err = block_flush(c->file);
    if (err < 0)
        return err;
    c->header->snapshots_offset = first << c->cluster_bits;
    c->used_end = max_u64(c->used_end, first + clusters);
    return 0;
}

static int rewrite(struct qcow2_check *c)
{
    uint64_t offset = c->header->snapshots_offset;
    struct bytes old = {malloc(c->snapshots_length), c->snapshots_length}, table = {0};
    int err = old.data ? block_read(c->file, old.data, old.length, offset) : -ENOMEM;

    if (err == 0)
        err = make_table(c, &old, &table);
    if (err == 0)
        err = put_in_force(c, &table);
    if (err == 0)
        err =
            free_clusters(c, offset >> c->cluster_bits, div_round_up(old.length, c->cluster_size));
    free(old.data);
    free(table.data);
    return err;
}

/* Where the image ends may have changed: no leaks are left that could matter. */
static void find_end(struct qcow2_check *c)
{
    while (c->check->result.leaks == 0 && c->used_end > 0 &&
           qcow2_counts_get(&c->counts, c->used_end - 1) == 0)
        c->used_end--;
    c->check->result.image_end_offset = c->used_end << c->cluster_bits;
}

int qcow2_check_complete_snapshots(struct qcow2_check *c)
{
    const struct block_check_result *result = &c->check->result;
    int err = -EIO;

    if (c->snapshots_incomplete == 0)
        return 0;
    /* Where refcounts or references are wrong, no cluster can be trusted to be free. */
    if (result->corruptions == 0 && result->check_errors == 0 && !c->incomplete) {
        err = rewrite(c);
        if (err < 0)
            qcow2_check_say(c, "the snapshot table cannot be rewritten: %s", strerror(-err));
        find_end(c);
    }
    for (uint32_t i = 1; i <= c->snapshots_incomplete; i++)
        qcow2_check_corruption(
            c, err == 0, "%" PRIu32 " of %" PRIu32 " snapshot table entries that are incomplete", i,
            c->snapshots_incomplete);
    return 0;
}
