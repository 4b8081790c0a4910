/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What of an image the guard is to know besides header, active L1 table and refcount table: the
 * snapshot table, the snapshots' L1 tables and their L2 tables, and the LUKS header.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <stdlib.h>

#define SNAPSHOT_WINDOW (512 * KIB)
#define L1_PIECE_ENTRIES 4096
/* L1 entries of snapshots that are looked at; L2 tables past that have their refcounts only. */
#define L1_ENTRIES_MAX (UINT64_C(1) << 20)

static int out_of_memory(struct error *error)
{
    return error_set(error, ENOMEM, "out of memory");
}

/* What to do with each snapshot. */
typedef int visit_function(struct qcow2 *q, const struct qcow2_snapshot *s, void *arg);

/* A window over the snapshot table, which has entries of many lengths. */
struct window {
    uint8_t *data;
    uint64_t offset; /* of data, in the file */
    size_t length;
};

static int window_move(struct qcow2 *q, struct window *w, uint64_t offset, struct error *error)
{
    uint64_t left = q->file->size - min_u64(offset, q->file->size);
    int err;

    if (range_within(offset - w->offset, min_u64(left, QCOW2_SNAPSHOT_ENTRY_MAX), w->length))
        return 0;
    w->offset = offset;
    w->length = min_u64(left, SNAPSHOT_WINDOW);
    err = block_read(q->file, w->data, w->length, offset);
    return err < 0 ? error_set_errno(error, -err, "cannot read the snapshot table") : 0;
}

static void add_range(const struct qcow2 *q, struct guard_range *ranges, size_t *count,
                      uint64_t offset, uint64_t length)
{
    uint64_t start = align_down(offset, q->cluster_size);

    if (length > 0)
        ranges[(*count)++] =
            (struct guard_range){start, align_up(offset + length, q->cluster_size)};
}

/* Checks the snapshot table, and visits its entries. */
static int scan_snapshots(struct qcow2 *q, visit_function *visit, void *arg, struct error *error)
{
    uint64_t start = q->header.snapshots_offset, offset = start;
    struct window w = {.data = buffer_get(SNAPSHOT_WINDOW), .offset = offset};
    int err = w.data ? 0 : out_of_memory(error);

    for (unsigned i = 0; i < q->header.snapshots && err == 0; i++) {
        struct qcow2_snapshot s = {0};

        err = window_move(q, &w, offset, error);
        if (err == 0)
            err = qcow2_snapshot_parse(w.data + (offset - w.offset), w.length - (offset - w.offset),
                                       q->cluster_bits, i, &s, error);
        offset += s.entry_length;
        if (err == 0 && offset - start > QCOW2_SNAPSHOT_TABLE_MAX)
            err = error_set(error, EINVAL, "the snapshot table has more than 64 MiB");
        if (err == 0 && visit(q, &s, arg) < 0)
            err = out_of_memory(error);
    }
    q->snapshots_length = offset - start;
    buffer_put(w.data, SNAPSHOT_WINDOW);
    return err;
}

struct ranges {
    struct guard_range *items;
    size_t count;
};

static int add_l1(struct qcow2 *q, const struct qcow2_snapshot *s, void *arg)
{
    struct ranges *r = arg;

    add_range(q, r->items, &r->count, s->l1_offset, (uint64_t)s->l1_size * 8);
    return 0;
}

int qcow2_guard_collect(struct qcow2 *q, struct guard_range **ret, size_t *ret_count,
                        struct error *error)
{
    struct ranges r = {.items = calloc(q->header.snapshots + 2, sizeof(*r.items))};
    int err = r.items ? 0 : out_of_memory(error);

    q->snapshots_length = 0;
    if (err == 0 && q->header.snapshots > 0)
        err = scan_snapshots(q, add_l1, &r, error);
    if (err == 0)
        add_range(q, r.items, &r.count, q->header.snapshots_offset, q->snapshots_length);
    if (err == 0 && q->header.has_crypto)
        add_range(q, r.items, &r.count, q->header.crypto_offset, q->header.crypto_length);
    *ret = r.items;
    *ret_count = r.count;
    return err;
}

/* Other metadata keeps what it is: then it is the snapshot that is wrong. */
static int add_l2(struct qcow2 *q, uint64_t entry)
{
    if (entry == 0 || !qcow2_l1_entry_valid(entry, q->cluster_bits) ||
        qcow2_guard_find(q, entry & QCOW2_OFFSET_MASK) != GUARD_NONE)
        return 0;
    if (qcow2_guard_reserve(q, 1) < 0)
        return -ENOMEM;
    qcow2_guard_add(q, entry & QCOW2_OFFSET_MASK, GUARD_L2);
    return 0;
}

/* What cannot be read protects nothing, and is no reason to refuse the disk. */
static int add_l2_tables(struct qcow2 *q, const struct qcow2_snapshot *s, void *arg)
{
    uint64_t *left = arg, entries = min_u64(s->l1_size, *left);
    uint8_t *data = buffer_get(L1_PIECE_ENTRIES * 8);
    int err = data ? 0 : -ENOMEM;

    *left -= entries;
    for (uint64_t i = 0; i < entries && err == 0; i += L1_PIECE_ENTRIES) {
        uint64_t n = min_u64(entries - i, L1_PIECE_ENTRIES), offset = s->l1_offset + i * 8;

        if (!range_within(offset, n * 8, q->file->size) ||
            block_read(q->file, data, n * 8, offset) < 0)
            break;
        for (uint64_t k = 0; k < n && err == 0; k++)
            err = add_l2(q, get_be64(data + k * 8));
    }
    buffer_put(data, L1_PIECE_ENTRIES * 8);
    return err;
}

int qcow2_guard_add_snapshots(struct qcow2 *q, struct error *error)
{
    uint64_t left = L1_ENTRIES_MAX;

    return q->header.snapshots > 0 ? scan_snapshots(q, add_l2_tables, &left, error) : 0;
}

int qcow2_guard_reload(struct qcow2 *q, struct error *error)
{
    struct guard_range *ranges;
    size_t count;
    int err = qcow2_guard_collect(q, &ranges, &count, error);

    if (err == 0)
        err = qcow2_guard_renew(q, ranges, count, error);
    else
        free(ranges);
    if (err == 0)
        err = qcow2_guard_add_snapshots(q, error);
    if (err < 0)
        q->corrupt = true;
    return err;
}
