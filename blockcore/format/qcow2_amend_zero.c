/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Zero clusters, for version 2, which has no flag for them: they get zeroes as data where a backing
 * file would show, and lose their entry elsewhere.
 */
#include "base/checked.h"
#include "blockcore/engine.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>

/* Writes zeroes to what would show the backing file in the first part of the range; *ret: its end.
 */
static int fill_part(struct qcow2 *q, uint64_t offset, uint64_t end, uint64_t *ret)
{
    struct extent e;
    int err = qcow2_map(q->node, offset, end - offset, &e);

    if (err < 0)
        return err;
    *ret = offset + e.length;
    return e.kind == EXTENT_ZERO ? write_zeroes_locked(q->node, offset, e.length) : 0;
}

/* As far as the backing file reaches. */
static int fill(struct qcow2 *q, const struct block_progress *progress)
{
    const struct node *node = q->node;
    uint64_t end = node->backing ? min_u64(node->backing->size, node->size) : 0, offset = 0;
    int err = 0;

    end = min_u64(align_up(end, q->cluster_size), node->size);
    while (offset < end && err == 0) {
        err = fill_part(q, offset, end, &offset);
        if (progress->report)
            progress->report(progress->arg, offset, end);
        coroutine_yield();
    }
    return err;
}

/* Clears the entries that have the flag; *ret: how many. Without a table nothing is changed. */
static int drop_flags(struct qcow2 *q, uint64_t l1_index, struct table *table, uint64_t *ret)
{
    uint64_t entries = UINT64_C(1) << q->l2_bits;
    uint64_t guest = (l1_index << q->l2_bits) << q->cluster_bits;
    int err = qcow2_pending_reserve(q, entries + 1);

    *ret = 0;
    for (uint64_t i = 0; i < entries && err == 0; i++) {
        uint8_t *at = table->data + (i << q->entry_bits);
        struct qcow2_entry e;

        err = qcow2_l2_decode_for_change(q, guest + (i << q->cluster_bits), at, &e);
        if (err < 0 || e.kind != QCOW2_KIND_NORMAL || !e.zero)
            continue;
        qcow2_pending_add_entry(q, &e);
        put_be64(at, 0);
        ++*ret;
    }
    return err;
}

static int drop_in_table(struct qcow2 *q, uint64_t l1_index)
{
    struct table *table;
    uint64_t dropped;
    int err = qcow2_begin_change(q);

    if (err == 0)
        err = qcow2_l2_get(q, l1_index, &table);
    if (err < 0 || !table)
        return err;
    err = drop_flags(q, l1_index, table, &dropped);
    if (dropped > 0)
        table_cache_mark_dirty(q->l2_cache, table);
    table_cache_put(q->l2_cache, table);
    return err;
}

static int drop(struct qcow2 *q, const struct block_progress *progress)
{
    int err = 0;

    for (uint64_t i = 0; i < q->header.l1_size && err == 0; i++) {
        if (q->l1[i] == 0)
            continue;
        qcow2_lock_all(q);
        err = drop_in_table(q, i);
        qcow2_unlock_all(q);
        if (progress->report)
            progress->report(progress->arg, i + 1, q->header.l1_size);
        coroutine_yield();
    }
    return err;
}

int qcow2_expand_zeroes(struct qcow2 *q, const struct block_progress *progress, struct error *error)
{
    int err;

    if (q->header.backing_name.offset != 0 && !q->node->backing)
        return error_set(error, EINVAL,
                         "%s has a backing file, which must be open for this: what it has where "
                         "the image has zeroes must not show",
                         node_name(q->node));
    err = fill(q, progress);
    if (err == 0)
        err = drop(q, progress);
    if (err == 0)
        err = block_flush(q->node);
    engine_forget_decoded(q->node);
    return err < 0 ? error_set_errno(error, -err, "cannot replace the zero clusters of %s",
                                     node_name(q->node))
                   : 0;
}
