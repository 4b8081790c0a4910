/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References by metadata that has exactly one: header, L1 tables, snapshot table, refcount table
 * and refcount blocks.  See qcow2_check.h.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define REFTABLE_RESERVED UINT64_C(0x1ff)

/*
 * Counts the clusters of something.  1 when it cannot be there: it passes the end of the file, or
 * something else is there.
 */
static int count_fixed(struct qcow2_check *c, uint64_t offset, uint64_t length, const char *what)
{
    uint64_t first, count;
    bool taken;
    int err = 0;

    if (length == 0)
        return 0;
    if (offset >> QCOW2_HOST_BITS || qcow2_check_beyond(c, offset, length)) {
        qcow2_check_corruption(c, false,
                               "the %s at offset %" PRIu64 " is beyond the end of the "
                               "file",
                               what, offset);
        return 1;
    }
    taken = qcow2_check_is_metadata(c, offset, length);
    if (taken) {
        qcow2_check_say(c, "the %s at offset %" PRIu64 " overlaps other metadata", what, offset);
        qcow2_check_overlap(c, offset, length);
        return 1;
    }
    first = qcow2_check_span(c, offset, length, &count);
    for (uint64_t i = 0; i < count && err == 0; i++)
        err = qcow2_counts_add(&c->counts, first + i, 1, COUNT_FIXED);
    return err;
}

/* As count_fixed; what cannot be there has references that are not known. */
static int count_table(struct qcow2_check *c, uint64_t offset, uint64_t length, const char *what)
{
    int err = count_fixed(c, offset, length, what);

    if (err > 0)
        c->incomplete = true;
    return err;
}

/* Reads a small structure. False: reported. */
static bool read_bytes(struct qcow2_check *c, void *data, size_t length, uint64_t offset,
                       const char *what)
{
    if (range_within(offset, length, c->file_size) &&
        block_read(c->file, data, length, offset) == 0)
        return true;
    qcow2_check_unknown(c, "the %s at offset %" PRIu64 " cannot be read", what, offset);
    return false;
}

/* Adds the L1 table of a snapshot, whose entry begins with `entry`. */
static int count_snapshot(struct qcow2_check *c, const uint8_t *entry, uint32_t index,
                          struct check_l1 *ret)
{
    struct check_l1 l1 = {.offset = get_be64(entry), .entries = get_be32(entry + 8)};
    int err;

    if (l1.entries > QCOW2_L1_BYTES_MAX / 8 || l1.offset >> QCOW2_HOST_BITS ||
        !is_aligned(l1.offset, c->cluster_size)) {
        qcow2_check_corruption(c, false,
                               "snapshot %" PRIu32 " has an L1 table of %" PRIu64
                               " entries at offset %" PRIu64 ", which cannot be",
                               index, l1.entries, l1.offset);
        c->incomplete = true;
        return 0;
    }
    /* Without it the size of the disk is not known. */
    if (c->header->version >= 3 && get_be32(entry + 36) < 16) {
        if (qcow2_check_fixes(c))
            c->snapshots_incomplete++;
        else
            qcow2_check_corruption(c, false,
                                   "the table entry of snapshot %" PRIu32 " is incomplete", index);
    }
    err = count_table(c, l1.offset, l1.entries * 8, "L1 table of a snapshot");
    if (err == 0)
        *ret = l1;
    return err < 0 ? err : 0;
}

/*
 * The file ends before entry `index` of the snapshot table: the snapshots from there on are lost,
 * and a repair forgets them.
 */
static int cut_snapshots(struct qcow2_check *c, uint32_t index)
{
    struct qcow2_header *h = c->header;
    bool fix = qcow2_check_fixes(c);
    uint8_t data[12];
    int err = 0;

    if (fix) {
        put_be32(data, index);
        put_be64(data + 4, index > 0 ? h->snapshots_offset : 0);
        err = block_write(c->file, data, sizeof(data), QCOW2_AT_SNAPSHOTS, 0);
        if (err == 0)
            err = block_flush(c->file);
    }
    if (err < 0)
        return err;
    qcow2_check_corruption(c, fix,
                           "the snapshot table at offset %" PRIu64 " is beyond the end of the file",
                           h->snapshots_offset);
    for (uint32_t i = index; i < h->snapshots; i++)
        qcow2_check_corruption(c, fix, "snapshot %" PRIu32 " has no table entry in the file", i);
    if (fix)
        h->snapshots = index;
    else
        c->incomplete = true;
    return 0;
}

static int count_snapshots(struct qcow2_check *c, struct check_l1 *l1s, size_t *count)
{
    uint64_t start = c->header->snapshots_offset, offset = start;
    uint8_t entry[QCOW2_SNAPSHOT_FIXED];
    int err = 0;

    for (uint32_t i = 0; i < c->header->snapshots && err == 0; i++) {
        uint32_t extra;

        if (!range_within(offset, sizeof(entry), c->file_size)) {
            err = cut_snapshots(c, i);
            break;
        }
        if (!read_bytes(c, entry, sizeof(entry), offset, "snapshot table"))
            break;
        extra = get_be32(entry + 36);
        if (extra > 1024 || offset - start > QCOW2_SNAPSHOT_TABLE_MAX) {
            qcow2_check_corruption(
                c, false, "the table entry of snapshot %" PRIu32 " cannot be understood", i);
            c->incomplete = true;
            break;
        }
        offset +=
            align_up(QCOW2_SNAPSHOT_FIXED + extra + get_be16(entry + 12) + get_be16(entry + 14), 8);
        err = count_snapshot(c, entry, i, &l1s[*count]);
        *count += l1s[*count].entries > 0;
    }
    c->snapshots_length = offset - start;
    if (err == 0)
        err = count_table(c, start, offset - start, "snapshot table");
    return err < 0 ? err : 0;
}

/* Whether there is a refcount table; without one nothing is lost but what can be counted. */
static bool has_reftable(struct qcow2_check *c, size_t bytes)
{
    uint64_t offset = c->header->reftable_offset;

    if (bytes == 0) {
        qcow2_check_say(c, "the image has no refcount table");
        c->rebuild = true;
        return false;
    }
    if (offset >> QCOW2_HOST_BITS || qcow2_check_beyond(c, offset, bytes)) {
        qcow2_check_for_rebuild(
            c, "the refcount table at offset %" PRIu64 " is beyond the end of the file", offset);
        return false;
    }
    return true;
}

static int load_reftable(struct qcow2_check *c)
{
    size_t bytes = (size_t)c->header->reftable_clusters << c->cluster_bits;
    uint64_t offset = c->header->reftable_offset;
    int err;

    if (!has_reftable(c, bytes))
        return 0;
    err = count_table(c, offset, bytes, "refcount table");
    if (err < 0)
        return err;
    c->rebuild |= err > 0;
    c->reftable_entries = bytes / 8;
    c->reftable = calloc(c->reftable_entries, 8);
    c->block_states = calloc(c->reftable_entries, 1);
    if (!c->reftable || !c->block_states)
        return -ENOMEM;
    /* What the file lacks of its last cluster is zero. */
    bytes = min_u64(bytes, c->file_size - min_u64(offset, c->file_size));
    if (block_read(c->file, c->reftable, bytes, offset) < 0) {
        qcow2_check_unknown(c, "the refcount table cannot be read");
        c->reftable_entries = 0;
    }
    for (uint64_t i = 0; i < c->reftable_entries; i++)
        c->reftable[i] = be64toh(c->reftable[i]);
    return 0;
}

int qcow2_check_metadata(struct qcow2_check *c, struct check_l1 **ret, size_t *ret_count)
{
    struct qcow2_header *h = c->header;
    struct check_l1 *l1s = calloc((size_t)h->snapshots + 2, sizeof(*l1s));
    int err;

    *ret = l1s;
    if (!l1s)
        return -ENOMEM;
    l1s[0] = (struct check_l1){h->l1_offset, h->l1_size, true};
    *ret_count = 1;
    err = count_table(c, 0, c->cluster_size, "header");
    if (err >= 0)
        err = count_table(c, h->l1_offset, (uint64_t)h->l1_size * 8, "L1 table");
    if (err > 0)
        l1s[0].entries = 0;
    if (err >= 0)
        err = load_reftable(c);
    if (err >= 0 && h->snapshots > 0)
        err = count_snapshots(c, l1s, ret_count);
    if (err >= 0 && h->has_bitmaps)
        err = qcow2_check_bitmaps(c);
    if (err >= 0 && h->has_crypto)
        err = count_table(c, h->crypto_offset, h->crypto_length, "LUKS header");
    return err < 0 ? err : 0;
}

static enum check_block judge_block(struct qcow2_check *c, uint64_t index)
{
    uint64_t value = c->reftable[index];

    if (value == 0)
        return CHECK_BLOCK_ABSENT;
    if ((value & REFTABLE_RESERVED) || value >> QCOW2_HOST_BITS ||
        !is_aligned(value, c->cluster_size)) {
        qcow2_check_for_rebuild(c, "entry %" PRIu64 " of the refcount table is 0x%016" PRIx64,
                                index, value);
        return CHECK_BLOCK_UNKNOWN;
    }
    if (value >= c->file_size) {
        qcow2_check_for_rebuild(
            c, "refcount block %" PRIu64 " at offset %" PRIu64 " is beyond the end of the file",
            index, value);
        return CHECK_BLOCK_ABSENT;
    }
    if (qcow2_check_is_metadata(c, value, c->cluster_size)) {
        qcow2_check_for_rebuild(
            c, "refcount block %" PRIu64 " at offset %" PRIu64 " overlaps other metadata", index,
            value);
        return CHECK_BLOCK_UNKNOWN;
    }
    return CHECK_BLOCK_GOOD;
}

int qcow2_check_refblocks(struct qcow2_check *c)
{
    int err = 0;

    for (uint64_t i = 0; i < c->reftable_entries && err == 0; i++) {
        c->block_states[i] = judge_block(c, i);
        if (c->block_states[i] == CHECK_BLOCK_GOOD)
            err = qcow2_counts_add(&c->counts, c->reftable[i] >> c->cluster_bits, 1, COUNT_FIXED);
    }
    return err;
}
