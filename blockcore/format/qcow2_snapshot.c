/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Internal snapshots of qcow2: the verbs. The order on disk and the parts are in qcow2_snapshot.h.
 */
#include "blockcore/format/qcow2_snapshot.h"

#include "base/checked.h"
#include "blockcore/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The driver's reason, unless a sentence was set already. */
static int explain(struct qcow2 *q, int err, struct error *error)
{
    if (err == -EOVERFLOW)
        return error_set(error, EINVAL,
                         "the image has refcounts of %u bits, which cannot count one more use of "
                         "its clusters",
                         1u << q->header.refcount_order);
    if (q->corrupt)
        return error_set(error, EIO, "the image is broken (the log tells where)");
    return error_set_errno(error, -err, "reading or writing the image failed");
}

static struct snapshot_l1 active_l1(const struct qcow2 *q)
{
    return (struct snapshot_l1){q->l1, q->header.l1_size};
}

static void unalloc(struct qcow2 *q, const struct snapshot_place *place)
{
    if (place->count > 0)
        qcow2_clusters_unalloc(q, place->first, place->count);
}

/* Makes refcounts that went up, and new tables, durable. */
static int settle(struct qcow2 *q)
{
    int err = table_cache_writeback(q->refcount_cache);

    return err < 0 ? err : block_flush(q->file);
}

/* The same for L2 and L1 tables. */
static int settle_all(struct qcow2 *q)
{
    int err = qcow2_write_back(q);

    return err < 0 ? err : block_flush(q->file);
}

static size_t add_text(char *out, const uint8_t *text, size_t length)
{
    memcpy(out, text, length);
    out[length] = 0;
    return length + 1;
}

static int convert_list(const struct qcow2 *q, const struct snapshot_table *table,
                        struct block_snapshots *ret, struct error *error)
{
    char *text;

    ret->items = calloc(table->count + 1, sizeof(*ret->items));
    /* Each entry has 40 bytes more than its id and name. */
    ret->text = text = malloc(table->length + 1);
    if (!ret->items || !text)
        return error_set(error, ENOMEM, "out of memory");
    for (size_t i = 0; i < table->count; i++) {
        const struct qcow2_snapshot *s = &table->entries[i];

        ret->items[i] = (struct block_snapshot){
            .id = text,
            .name = text + s->id_length + 1,
            .vm_state_size = s->vm_state_size,
            .date_seconds = s->date_seconds,
            .date_nanoseconds = s->date_nanoseconds,
            .vm_clock = s->vm_clock,
            .icount = s->icount,
            .disk_size = s->has_disk_size ? s->disk_size : q->header.size,
        };
        text += add_text(text, s->id, s->id_length);
        text += add_text(text, s->name, s->name_length);
        ret->count++;
    }
    return 0;
}

static int list(struct node *node, struct block_snapshots *ret, struct error *error)
{
    struct qcow2 *q = node->state;
    struct snapshot_table table;
    int err = qcow2_snapshots_read(q, &table, error);

    if (err == 0)
        err = convert_list(q, &table, ret, error);
    qcow2_snapshots_fini(&table);
    return err;
}

/* What a change works with. */
struct change {
    struct qcow2 *q;
    struct snapshot_table table;
    struct qcow2_snapshot *snapshot;             /* that is applied or removed */
    struct snapshot_l1 l1;                       /* its L1 table */
    uint64_t size;                               /* of its disk */
    struct snapshot_place l1_place, table_place; /* new tables */
};

static int change_begin(struct change *c, struct node *node, struct error *error)
{
    struct qcow2 *q = node->state;
    int err;

    *c = (struct change){.q = q};
    qcow2_lock_all(q);
    if (q->header.incompatible & QCOW2_INCOMPAT_DATA_FILE)
        return error_set(error, ENOTSUP,
                         "an image with an external data file cannot have internal snapshots");
    err = qcow2_begin_change(q);
    if (err < 0)
        return explain(q, err, error);
    return qcow2_snapshots_read(q, &c->table, error);
}

static void change_end(struct change *c)
{
    qcow2_snapshots_fini(&c->table);
    free(c->l1.entries);
    qcow2_unlock_all(c->q);
}

/* Takes the snapshot `index` and its L1 table. */
static int change_take(struct change *c, size_t index, struct error *error)
{
    int err = qcow2_snapshots_at(&c->table, index, &c->snapshot, error);

    return err < 0 ? err : qcow2_snapshot_l1_read(c->q, c->snapshot, &c->l1, &c->size, error);
}

/* Nothing points to what was prepared: all is as it was, or leaks. */
static void create_undo(struct change *c)
{
    struct snapshot_l1 active = active_l1(c->q);

    unalloc(c->q, &c->l1_place);
    unalloc(c->q, &c->table_place);
    qcow2_refs_unraise(c->q, &active);
    qcow2_refs_set_copied(c->q, NULL);
}

static int store_entry(struct change *c, const struct block_snapshot *snapshot, struct error *error)
{
    const struct qcow2_snapshot entry = {
        .l1_offset = c->l1_place.first << c->q->cluster_bits,
        .l1_size = c->q->header.l1_size,
        .id = (const uint8_t *)snapshot->id,
        .name = (const uint8_t *)snapshot->name,
        .id_length = (uint16_t)strlen(snapshot->id),
        .name_length = (uint16_t)strlen(snapshot->name),
        .date_seconds = snapshot->date_seconds,
        .date_nanoseconds = snapshot->date_nanoseconds,
        .vm_clock = snapshot->vm_clock,
        .vm_state_size = snapshot->vm_state_size,
        .disk_size = c->q->header.size,
        .icount = snapshot->icount,
    };

    return qcow2_snapshots_store(c->q, &c->table, c->table.count, &entry, &c->table_place, error);
}

/* Everything before the header knows of it. */
static int create_prepare(struct change *c, const struct block_snapshot *snapshot,
                          struct error *error)
{
    struct qcow2 *q = c->q;
    struct snapshot_l1 active = active_l1(q);
    int err = qcow2_snapshot_l1_store(q, &active, &c->l1_place);

    if (err < 0)
        return explain(q, err, error);
    err = store_entry(c, snapshot, error);
    if (err < 0)
        return err;
    err = settle(q);
    if (err == 0)
        err = qcow2_refs_clear_copied(q);
    if (err == 0)
        err = settle_all(q);
    return err < 0 ? explain(q, err, error) : 0;
}

static int run_create(struct change *c, const struct block_snapshot *snapshot, struct error *error)
{
    struct qcow2 *q = c->q;
    struct snapshot_l1 active = active_l1(q);
    int err;

    if (c->table.count >= QCOW2_SNAPSHOTS_MAX)
        return error_set(error, EFBIG, "the image has %d snapshots, which is the limit",
                         QCOW2_SNAPSHOTS_MAX);
    err = qcow2_refs_raise(q, &active);
    if (err < 0)
        return explain(q, err, error);
    err = create_prepare(c, snapshot, error);
    if (err < 0) {
        create_undo(c);
        return err;
    }
    /* From now on clusters can be given back when a snapshot is deleted. */
    q->node->reuses_storage = true;
    return qcow2_snapshots_switch(q, q->header.snapshots + 1, &c->table_place, error);
}

static int create(struct node *node, const struct block_snapshot *snapshot, struct error *error)
{
    struct change c;
    int err = change_begin(&c, node, error);

    if (err == 0)
        err = run_create(&c, snapshot, error);
    change_end(&c);
    return err;
}

/* Header and memory change over to the new L1 table. The old one is in c->l1 then. */
static int apply_switch(struct change *c, struct error *error)
{
    struct qcow2 *q = c->q;
    struct snapshot_l1 old = active_l1(q);
    uint8_t *dirty = calloc(c->l1.count / 64 + 1, 1), data[24];
    int err = dirty ? 0 : error_set(error, ENOMEM, "out of memory");

    if (err < 0)
        return err;
    put_be64(data, c->size);
    put_be32(data + 8, q->header.crypt_method);
    put_be32(data + 12, c->l1.count);
    put_be64(data + 16, c->l1_place.first << q->cluster_bits);
    err = qcow2_switch(q, QCOW2_AT_DISK, data, sizeof(data));
    if (err < 0) {
        free(dirty);
        return error_set_errno(error, -err, "cannot write the header");
    }
    q->header.size = c->size;
    q->header.l1_size = c->l1.count;
    q->header.l1_offset = c->l1_place.first << q->cluster_bits;
    q->l1 = c->l1.entries;
    c->l1 = old;
    free(q->l1_dirty);
    q->l1_dirty = dirty;
    q->l1_any_dirty = false;
    q->node->size = align_down(c->size, 512);
    return qcow2_guard_reload(q, error);
}

/* The references of the old L1 table, and it itself, go. */
static int drop_l1(struct change *c, uint64_t offset, uint64_t entries)
{
    struct qcow2 *q = c->q;
    uint64_t clusters = div_round_up(entries * 8, q->cluster_size);
    int err = qcow2_refs_drop(q, &c->l1);

    if (err == 0)
        err = qcow2_pending_reserve(q, 1);
    if (err == 0 && clusters > 0)
        qcow2_pending_add(q, offset >> q->cluster_bits, clusters);
    return err < 0 ? err : qcow2_write_back(q);
}

/* Bitmaps get the size of the disk that is applied. */
static int prepare_bitmaps(const struct change *c, struct error *error)
{
    struct qcow2 *q = c->q;
    int err;

    if (c->size == q->header.size)
        return 0;
    err = qcow2_bitmaps_judge_size(q, c->size, error);
    if (err < 0)
        return err;
    err = qcow2_bitmaps_claim(q);
    return err < 0 ? explain(q, err, error) : 0;
}

static int run_apply(struct change *c, size_t index, struct error *error)
{
    struct qcow2 *q = c->q;
    uint64_t old_offset = q->header.l1_offset, old_size = q->header.size;
    int err = change_take(c, index, error);

    if (err == 0)
        err = prepare_bitmaps(c, error);
    if (err < 0)
        return err;
    for (uint32_t i = 0; i < c->l1.count; i++)
        c->l1.entries[i] &= ~QCOW2_COPIED;
    err = qcow2_refs_raise(q, &c->l1);
    if (err < 0)
        return explain(q, err, error);
    err = qcow2_snapshot_l1_store(q, &c->l1, &c->l1_place);
    if (err == 0)
        err = settle(q);
    if (err < 0) {
        unalloc(q, &c->l1_place);
        qcow2_refs_unraise(q, &c->l1);
        return explain(q, err, error);
    }
    qcow2_bitmaps_mark(q, 0, q->node->size);
    err = apply_switch(c, error);
    if (err < 0)
        return err;
    err = block_flush(q->file);
    if (err == 0)
        err = qcow2_refs_clear_copied(q); /* only in broken images there are any */
    if (err == 0)
        err = settle_all(q);
    if (err == 0)
        err = drop_l1(c, old_offset, c->l1.count);
    if (q->header.size != old_size) {
        qcow2_bitmaps_resize(q);
        qcow2_bitmaps_mark(q, 0, q->node->size);
    }
    return err < 0 ? explain(q, err, error) : 0;
}

static int apply(struct node *node, size_t index, struct error *error)
{
    struct change c;
    int err = change_begin(&c, node, error);

    if (err == 0)
        err = run_apply(&c, index, error);
    change_end(&c);
    return err;
}

/* The references of a snapshot that the header does not have any more. */
static int remove_references(struct change *c)
{
    struct qcow2 *q = c->q;
    int err = qcow2_refs_set_copied(q, &c->l1);

    if (err == 0)
        err = settle_all(q);
    if (err == 0)
        err = drop_l1(c, c->snapshot->l1_offset, c->snapshot->l1_size);
    /* What had more than one reference from the snapshot is only known now. */
    if (err == 0)
        err = qcow2_refs_set_copied(q, NULL);
    return err;
}

static int run_remove(struct change *c, size_t index, struct error *error)
{
    struct qcow2 *q = c->q;
    int err = change_take(c, index, error);

    if (err < 0)
        return err;
    err = qcow2_refs_examine(q, &c->l1);
    if (err < 0)
        return explain(q, err, error);
    err = qcow2_snapshots_store(q, &c->table, index, NULL, &c->table_place, error);
    if (err == 0) {
        err = settle(q);
        if (err < 0)
            explain(q, err, error);
    }
    if (err < 0) {
        unalloc(q, &c->table_place);
        return err;
    }
    err = qcow2_snapshots_switch(q, q->header.snapshots - 1, &c->table_place, error);
    if (err < 0)
        return err;
    err = remove_references(c);
    return err < 0 ? explain(q, err, error) : 0;
}

static int remove_snapshot(struct node *node, size_t index, struct error *error)
{
    struct change c;
    int err = change_begin(&c, node, error);

    if (err == 0)
        err = run_remove(&c, index, error);
    change_end(&c);
    return err;
}

static int load(struct node *node, size_t index, struct error *error)
{
    struct qcow2 *q = node->state;
    struct snapshot_table table;
    struct qcow2_snapshot *snapshot;
    struct snapshot_l1 l1 = {0};
    uint64_t size;
    int err = qcow2_snapshots_read(q, &table, error);

    if (err == 0)
        err = qcow2_snapshots_at(&table, index, &snapshot, error);
    if (err == 0)
        err = qcow2_snapshot_l1_read(q, snapshot, &l1, &size, error);
    if (err == 0) {
        q->header.size = size;
        q->header.l1_size = l1.count;
        q->header.l1_offset = snapshot->l1_offset;
        q->at_snapshot = true;
        free(q->l1);
        q->l1 = l1.entries;
        node->size = align_down(size, 512);
        qcow2_bitmaps_disown(q);
    } else {
        free(l1.entries);
    }
    qcow2_snapshots_fini(&table);
    return err;
}

const struct block_snapshot_ops qcow2_snapshot_ops = {
    .list = list,
    .create = create,
    .apply = apply,
    .remove = remove_snapshot,
    .load = load,
};
