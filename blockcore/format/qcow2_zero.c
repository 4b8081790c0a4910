/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zeroing and discarding of whole clusters: by their L2 entries alone.
 *
 * Version 3 has a flag for a cluster that reads as zeroes, with or without storage.  Version 2 can
 * only drop the entry, which gives zeroes where no backing file shows through.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>

enum change {
    CHANGE_ZERO,      /* storage is kept */
    CHANGE_ZERO_FREE, /* storage is given back */
    CHANGE_DISCARD,
};

/* A piece of the range, within one L2 table. */
struct piece {
    uint64_t offset, clusters;
    enum change change;
};

/* What the entry becomes; *ret_free: its storage goes. */
static uint64_t changed(const struct qcow2 *q, enum change change, uint64_t value,
                        const struct qcow2_entry *e, bool *ret_free)
{
    bool flag = q->header.version >= 3;
    bool keep = change == CHANGE_ZERO && flag && e->copied;

    *ret_free = false;
    switch (e->kind) {
    case QCOW2_KIND_ABSENT:
        return change != CHANGE_DISCARD && flag && qcow2_has_backing(q) ? QCOW2_ZERO : value;
    case QCOW2_KIND_ZERO:
    case QCOW2_KIND_DATA:
        if (keep || (e->kind == QCOW2_KIND_ZERO && e->host == 0))
            return value | QCOW2_ZERO;
        break;
    case QCOW2_KIND_COMPRESSED:
        break;
    case QCOW2_KIND_BROKEN:
        return value;
    }
    *ret_free = true;
    return flag ? QCOW2_ZERO : 0;
}

/* Whether any entry would change: 1, 0 or negative errno. Broken entries are found here. */
static int any_changes(struct qcow2 *q, const struct piece *piece, const uint8_t *entries)
{
    int any = 0;

    for (uint64_t i = 0; i < piece->clusters; i++) {
        uint64_t value = get_be64(entries + i * 8);
        struct qcow2_entry e;
        bool free_it;
        int err = qcow2_l2_decode_for_change(q, piece->offset + (i << q->cluster_bits), value, &e);

        if (err < 0)
            return err;
        if (changed(q, piece->change, value, &e, &free_it) != value)
            any = 1;
    }
    return any;
}

static void change_entries(struct qcow2 *q, const struct piece *piece, uint8_t *entries)
{
    for (uint64_t i = 0; i < piece->clusters; i++) {
        uint64_t value = get_be64(entries + i * 8);
        struct qcow2_entry e = qcow2_l2_decode(value, q->cluster_bits, q->header.version);
        bool free_it;

        value = changed(q, piece->change, value, &e, &free_it);
        if (free_it)
            qcow2_pending_add_entry(q, &e);
        put_be64(entries + i * 8, value);
    }
}

/* Whether the piece, which has no L2 table, must get one. */
static bool needs_table(const struct qcow2 *q, const struct piece *piece)
{
    return piece->change != CHANGE_DISCARD && qcow2_has_backing(q);
}

static int look(struct qcow2 *q, const struct piece *piece)
{
    struct table *table;
    int err = qcow2_l2_get(q, qcow2_l1_index(q, piece->offset), &table);

    if (err < 0)
        return err;
    if (!table)
        return needs_table(q, piece);
    err = any_changes(q, piece, table->data + qcow2_l2_index(q, piece->offset) * 8);
    table_cache_put(q->l2_cache, table);
    return err;
}

static int change_piece(struct qcow2 *q, const struct piece *piece)
{
    struct table *table;
    int err = qcow2_begin_change(q);

    if (err == 0)
        err = look(q, piece);
    if (err <= 0)
        return err;
    err = qcow2_pending_reserve(q, piece->clusters + 1);
    if (err == 0)
        err = qcow2_l2_get_private(q, qcow2_l1_index(q, piece->offset), &table);
    if (err < 0)
        return err;
    change_entries(q, piece, table->data + qcow2_l2_index(q, piece->offset) * 8);
    table_cache_mark_dirty(q->l2_cache, table);
    table_cache_put(q->l2_cache, table);
    return 0;
}

/* `length` need not end at a cluster's end: the disk's end may be there. */
static int change_range(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change)
{
    uint64_t end = offset + length, table_bytes = q->cluster_size << q->l2_bits;
    int err = 0;

    while (offset < end && err == 0) {
        uint64_t next = align_down(offset, table_bytes) + table_bytes;
        uint64_t bytes = min_u64(next, end) - offset;
        struct piece piece = {offset, div_round_up(bytes, q->cluster_size), change};

        /* Unlocked between the pieces, so that others get their turn. */
        if (q->l1[qcow2_l1_index(q, offset)] != 0 || needs_table(q, &piece)) {
            co_mutex_lock(&q->lock);
            err = change_piece(q, &piece);
            co_mutex_unlock(&q->lock);
        }
        offset += bytes;
    }
    return err;
}

int qcow2_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct qcow2 *q = node->state;

    if (q->header.version < 3 && (qcow2_has_backing(q) || (flags & ZERO_KEEP)))
        return -ENOTSUP;
    return change_range(q, offset, length, flags & ZERO_MAY_UNMAP ? CHANGE_ZERO_FREE : CHANGE_ZERO);
}

int qcow2_discard(struct node *node, uint64_t offset, uint64_t length)
{
    struct qcow2 *q = node->state;

    /* Without the zero flag the backing file's data would show through. */
    if (q->header.version < 3 && qcow2_has_backing(q))
        return 0;
    return change_range(q, offset, length, CHANGE_DISCARD);
}
