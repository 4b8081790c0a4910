/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * L2 tables for change.  A table may be changed when the active L1 table alone points to it: then
 * the L1 entry has the copied bit.  Else it is shared with snapshots, and a copy takes its place;
 * the old one loses a reference once the L1 entry is durable.
 *
 * Tables are never given back: an L2 table without entries stays where it is.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Whether the table that an L1 entry points to can be one. */
static int check_l1_entry(struct qcow2 *q, uint64_t l1_index)
{
    uint64_t entry = q->l1[l1_index];

    if (!qcow2_l1_entry_valid(entry, q->cluster_bits))
        return qcow2_set_corrupt(q, "L1 entry %" PRIu64 " is 0x%016" PRIx64, l1_index, entry);
    if (qcow2_guard_find(q, entry & QCOW2_OFFSET_MASK) != GUARD_L2)
        return qcow2_set_corrupt(
            q, "the L2 table of L1 entry %" PRIu64 " (0x%016" PRIx64 ") overlaps other metadata",
            l1_index, entry);
    return 0;
}

/* What table_cache_get said of a table: one that is not in the file marks the image corrupt. */
static int judge_load(struct qcow2 *q, uint64_t offset, int err)
{
    if (err != -EIO)
        return err;
    if (!range_within(offset, q->cluster_size, q->file->size))
        return qcow2_set_corrupt(
            q, "the L2 table at offset %" PRIu64 " is beyond the end of the file", offset);
    return qcow2_log_once(q, "the L2 table at offset %" PRIu64 " cannot be read", offset);
}

int qcow2_l2_load(struct qcow2 *q, uint64_t offset, struct table **ret)
{
    return judge_load(q, offset, table_cache_get(q->l2_cache, offset, ret));
}

int qcow2_l2_get(struct qcow2 *q, uint64_t l1_index, struct table **ret)
{
    uint64_t entry = q->l1[l1_index];
    int err;

    *ret = NULL;
    if (entry == 0)
        return 0;
    err = check_l1_entry(q, l1_index);
    return err < 0 ? err : qcow2_l2_load(q, entry & QCOW2_OFFSET_MASK, ret);
}

/* A new table, zeroed, that l1[l1_index] points to. */
static int make_table(struct qcow2 *q, uint64_t l1_index, struct table **ret)
{
    uint64_t cluster, count, offset;
    int err = qcow2_guard_reserve(q, 1);

    if (err == 0)
        err = qcow2_clusters_alloc(q, 1, &cluster, &count);
    if (err < 0)
        return err;
    offset = cluster << q->cluster_bits;
    err = table_cache_get_new(q->l2_cache, offset, ret);
    if (err < 0) {
        qcow2_clusters_unalloc(q, cluster, 1);
        return err;
    }
    qcow2_guard_add(q, offset, GUARD_L2);
    qcow2_l1_set(q, l1_index, offset | QCOW2_COPIED);
    return 0;
}

/*
 * Entries of a table that is shared point to data that is shared, so that none of them has the
 * copied bit.  A broken image must not make us write into a snapshot: it is cleared nevertheless.
 */
static void copy_entries(const struct qcow2 *q, uint8_t *to, const uint8_t *from)
{
    size_t entry = (size_t)1 << q->entry_bits;

    memcpy(to, from, q->cluster_size);
    /* In an external data file nothing is shared, and the bit may be all that tells of storage. */
    if (qcow2_has_data_file(q))
        return;
    for (uint64_t i = 0; i < q->cluster_size; i += entry) {
        uint64_t value = get_be64(from + i);

        if (!(value & QCOW2_COMPRESSED))
            put_be64(to + i, value & ~QCOW2_COPIED);
    }
}

static int copy_table(struct qcow2 *q, uint64_t l1_index, struct table **ret)
{
    uint64_t old_offset = q->l1[l1_index] & QCOW2_OFFSET_MASK;
    struct table *old;
    int err = qcow2_pending_reserve(q, 1);

    if (err == 0)
        err = qcow2_l2_load(q, old_offset, &old);
    if (err < 0)
        return err;
    err = make_table(q, l1_index, ret);
    if (err == 0) {
        copy_entries(q, (*ret)->data, old->data);
        qcow2_pending_add(q, old_offset >> q->cluster_bits, 1);
    }
    table_cache_put(q->l2_cache, old);
    return err;
}

/* Whether the table that is not marked as copied is shared: 1, 0 or negative errno. */
static int is_shared(struct qcow2 *q, uint64_t offset)
{
    uint64_t refcount;
    int err = qcow2_refcount_read(q, offset >> q->cluster_bits, &refcount);

    if (err < 0)
        return err;
    if (refcount == 0)
        return qcow2_set_corrupt(q, "the L2 table at offset %" PRIu64 " has refcount 0", offset);
    return refcount > 1;
}

int qcow2_l2_get_private(struct qcow2 *q, uint64_t l1_index, struct table **ret)
{
    uint64_t entry = q->l1[l1_index], offset = entry & QCOW2_OFFSET_MASK;
    int err;

    if (entry == 0)
        return make_table(q, l1_index, ret);
    err = check_l1_entry(q, l1_index);
    if (err < 0)
        return err;
    if (!(entry & QCOW2_COPIED)) {
        err = is_shared(q, offset);
        if (err < 0)
            return err;
        if (err > 0)
            return copy_table(q, l1_index, ret);
    }
    err = judge_load(q, offset, table_cache_get_for_change(q->l2_cache, offset, ret));
    if (err == 0 && !(entry & QCOW2_COPIED))
        qcow2_l1_set(q, l1_index, entry | QCOW2_COPIED);
    return err;
}

struct qcow2_entry qcow2_l2_decode_at(const struct qcow2 *q, uint64_t guest_offset,
                                      const uint8_t *at)
{
    struct qcow2_entry e = qcow2_l2_decode(&q->header, at);

    if (qcow2_has_data_file(q) && e.kind == QCOW2_KIND_NORMAL && e.stored && e.host != guest_offset)
        e.kind = QCOW2_KIND_BROKEN;
    return e;
}

const char *qcow2_l2_text(const struct qcow2 *q, const uint8_t *at, char out[QCOW2_L2_TEXT_MAX])
{
    if (qcow2_extended_l2(&q->header))
        snprintf(out, QCOW2_L2_TEXT_MAX, "0x%016" PRIx64 ", 0x%016" PRIx64, get_be64(at),
                 get_be64(at + 8));
    else
        snprintf(out, QCOW2_L2_TEXT_MAX, "0x%016" PRIx64, get_be64(at));
    return out;
}

int qcow2_l2_decode_for_change(struct qcow2 *q, uint64_t guest_offset, const uint8_t *at,
                               struct qcow2_entry *ret)
{
    uint64_t first, count;
    char text[QCOW2_L2_TEXT_MAX];

    *ret = qcow2_l2_decode_at(q, guest_offset, at);
    if (ret->kind == QCOW2_KIND_BROKEN)
        return qcow2_set_corrupt(q, "the L2 entry of guest offset %" PRIu64 " is %s", guest_offset,
                                 qcow2_l2_text(q, at, text));
    if (qcow2_has_data_file(q) || (ret->kind == QCOW2_KIND_NORMAL && !ret->stored))
        return 0;
    first = ret->host >> q->cluster_bits;
    count = 1;
    if (ret->kind == QCOW2_KIND_COMPRESSED)
        count = ((ret->host + ret->length - 1) >> q->cluster_bits) - first + 1;
    if (qcow2_guard_search(q, first, count) < first + count)
        return qcow2_set_corrupt(
            q, "the L2 entry of guest offset %" PRIu64 " is %s, which points to metadata",
            guest_offset, qcow2_l2_text(q, at, text));
    return 0;
}
