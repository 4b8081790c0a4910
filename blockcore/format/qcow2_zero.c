/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zeroing and discarding of subclusters: by their L2 entries alone.
 *
 * Version 3 has a flag for what reads as zeroes, with or without storage.  Version 2 can only drop
 * the entry, which gives zeroes where no backing file shows through.  Storage is given back when
 * nothing of its cluster has data any more.  A compressed cluster can only be dropped as a whole:
 * the core does not ask for zeroing parts of one, and to discard those does nothing.
 *
 * An external data file that is to be a raw image by itself is zeroed, too, and first.  Without
 * that, the storage in it is kept as it is, or discarded at once: it has no other use.
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

/* A piece of the range, within one L2 table; the last cluster to its end if the disk ends there. */
struct piece {
    uint64_t offset, end;
    enum change change;
};

/* What the entry of the subclusters `mask` becomes; *ret_free: the old storage goes. */
static struct qcow2_entry changed(const struct qcow2 *q, enum change change, uint32_t mask,
                                  const struct qcow2_entry *old, bool *ret_free)
{
    bool flag = q->header.version >= 3;
    struct qcow2_entry e = *old;
    uint32_t held = old->data | old->zero;

    *ret_free = false;
    if (old->kind == QCOW2_KIND_COMPRESSED) {
        if (mask != QCOW2_ALL_SUBCLUSTERS)
            return e;
        e = (struct qcow2_entry){.kind = QCOW2_KIND_NORMAL};
        held = QCOW2_ALL_SUBCLUSTERS;
    }
    if (change == CHANGE_DISCARD || !flag || !qcow2_has_backing(q))
        mask &= held; /* what is absent reads as zeroes, or may stay as it is */
    e.data &= ~mask;
    e.zero = flag ? e.zero | mask : e.zero & ~mask;
    if (e.data == 0 && !(change == CHANGE_ZERO && flag && e.copied))
        e.stored = e.copied = false;
    *ret_free = old->kind == QCOW2_KIND_COMPRESSED || (old->stored && !e.stored);
    return e;
}

static bool differs(const struct qcow2_entry *a, const struct qcow2_entry *b)
{
    return a->kind != b->kind || a->data != b->data || a->zero != b->zero || a->stored != b->stored;
}

/* Whether any entry would change: 1, 0 or negative errno. Broken entries are found here. */
static int any_changes(struct qcow2 *q, const struct piece *piece, const struct table *table)
{
    uint64_t guest = align_down(piece->offset, q->cluster_size);
    int any = 0;

    for (; guest < piece->end; guest += q->cluster_size) {
        uint32_t mask = qcow2_subclusters(q, guest, piece->offset, piece->end);
        struct qcow2_entry e, next;
        bool free_it;
        int err = qcow2_l2_decode_for_change(q, guest, qcow2_l2_at(q, table, guest), &e);

        if (err < 0)
            return err;
        if (e.kind == QCOW2_KIND_COMPRESSED && mask != QCOW2_ALL_SUBCLUSTERS &&
            piece->change != CHANGE_DISCARD)
            return -ENOTSUP;
        next = changed(q, piece->change, mask, &e, &free_it);
        any |= differs(&e, &next);
    }
    return any;
}

static void change_entries(struct qcow2 *q, const struct piece *piece, const struct table *table)
{
    uint64_t guest = align_down(piece->offset, q->cluster_size);

    for (; guest < piece->end; guest += q->cluster_size) {
        uint8_t *at = qcow2_l2_at(q, table, guest);
        struct qcow2_entry e = qcow2_l2_decode(&q->header, at), next;
        bool free_it;

        next = changed(q, piece->change, qcow2_subclusters(q, guest, piece->offset, piece->end), &e,
                       &free_it);
        if (free_it)
            qcow2_pending_add_entry(q, &e);
        if (differs(&e, &next))
            qcow2_l2_encode(&q->header, &next, at);
    }
}

/*
 * What the tables call zero, or absent, is of no use in the data file.  They need not be durable
 * before: a range that is being zeroed may hold zeroes at any time.
 */
static int discard_data(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t size = q->data->size;

    return offset < size ? block_discard(q->data, offset, min_u64(length, size - offset), 0) : 0;
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
    err = any_changes(q, piece, table);
    table_cache_put(q->l2_cache, table);
    return err;
}

static int change_piece(struct qcow2 *q, const struct piece *piece)
{
    struct table *table;
    int err = look(q, piece);

    if (err <= 0)
        return err;
    err = qcow2_pending_reserve(q, ((piece->end - piece->offset) >> q->cluster_bits) + 3);
    if (err == 0)
        err = qcow2_l2_get_private(q, qcow2_l1_index(q, piece->offset), &table);
    if (err < 0)
        return err;
    change_entries(q, piece, table);
    table_cache_mark_dirty(q->l2_cache, table);
    table_cache_put(q->l2_cache, table);
    return 0;
}

static int change_range(struct qcow2 *q, uint64_t offset, uint64_t length, enum change change)
{
    uint64_t end = offset + length, table_bytes = q->cluster_size << q->l2_bits;
    int err = 0;

    if (end == q->node->size)
        end = align_up(end, q->cluster_size);
    while (offset < end && err == 0) {
        uint64_t next = min_u64(align_down(offset, table_bytes) + table_bytes, end);
        struct piece piece = {offset, next, change};

        /* Unlocked between the pieces, so that others get their turn. */
        if (q->l1[qcow2_l1_index(q, offset)] != 0 || needs_table(q, &piece)) {
            err = qcow2_lock_to_change(q);
            if (err == 0)
                err = change_piece(q, &piece);
            co_mutex_unlock(&q->lock);
        }
        offset = next;
    }
    return err;
}

int qcow2_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct qcow2 *q = node->state;
    enum change change = flags & ZERO_MAY_UNMAP ? CHANGE_ZERO_FREE : CHANGE_ZERO;
    int err = 0;

    if (q->header.version < 3 && (qcow2_has_backing(q) || (flags & ZERO_KEEP)))
        return -ENOTSUP;
    if (q->raw_data) {
        err = block_zero(q->data, offset, length, flags & (ZERO_MAY_UNMAP | ZERO_FAST));
        change = CHANGE_ZERO;
    }
    if (err == 0)
        err = change_range(q, offset, length, change);
    if (err == 0 && qcow2_has_data_file(q) && change == CHANGE_ZERO_FREE)
        err = discard_data(q, offset, length);
    return err;
}

int qcow2_discard(struct node *node, uint64_t offset, uint64_t length)
{
    struct qcow2 *q = node->state;
    int err;

    /* The raw image must go on to read as the tables say: zeroes, where discarding gives them. */
    if (q->raw_data) {
        err = qcow2_zero(node, offset, length, ZERO_MAY_UNMAP | ZERO_FAST);
        return err == -ENOTSUP ? 0 : err;
    }
    /* Without the zero flag the backing file's data would show through. */
    if (q->header.version < 3 && qcow2_has_backing(q))
        return 0;
    err = change_range(q, offset, length, CHANGE_DISCARD);
    return err == 0 && qcow2_has_data_file(q) ? discard_data(q, offset, length) : err;
}
