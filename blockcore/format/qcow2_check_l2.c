/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References of L2 tables: data.  Each table is visited once, with the number of L1 entries that
 * lead to it.  See qcow2_check.h.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_check.h"

#include <inttypes.h>

#define RESERVED (~(QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_OFFSET_MASK | QCOW2_ZERO))

/* One L2 table under examination. */
struct view {
    struct qcow2_check *c;
    uint64_t offset;     /* of the table */
    uint64_t weight;     /* L1 entries that lead to it */
    bool active;         /* the active L1 table is one of those: statistics */
    uint64_t contiguous; /* host offset behind the last data cluster, 0: none yet */
    uint64_t index;      /* the entry */
};

/* What is the matter with an entry, and what stands there instead if it is repaired. */
static void replace(struct view *v, uint64_t *value, uint64_t better, const char *wrong)
{
    bool fix = qcow2_check_fixes(v->c);

    qcow2_check_corruption(
        v->c, fix, "entry %" PRIu64 " of the L2 table at offset %" PRIu64 " (0x%016" PRIx64 ") %s",
        v->index, v->offset, *value, wrong);
    if (fix)
        *value = better;
}

/* The data is lost: zeroes, or in version 2 nothing. */
static void cut_off(struct view *v, uint64_t *value, const char *wrong)
{
    if (qcow2_check_fixes(v->c))
        qcow2_check_say(
            v->c, "what entry %" PRIu64 " of the L2 table at offset %" PRIu64 " pointed to is lost",
            v->index, v->offset);
    replace(v, value, v->c->header->version >= 3 ? QCOW2_ZERO : 0, wrong);
}

static int add_references(struct view *v, uint64_t offset, uint64_t length)
{
    uint64_t count, first = qcow2_check_span(v->c, offset, length, &count);
    int err = 0;

    for (uint64_t i = first; i < first + count && err == 0; i++) {
        if (qcow2_counts_marks(&v->c->counts, i) == 0)
            err = qcow2_counts_add(&v->c->counts, i, v->weight, 0);
    }
    return err;
}

/* Storage that is well-formed: whether it can be there, and then its references. */
static int count_storage(struct view *v, uint64_t *value, uint64_t offset, uint64_t length)
{
    if (qcow2_check_beyond(v->c, offset, length)) {
        cut_off(v, value, "points behind the end of the file");
        return 0;
    }
    if (qcow2_check_is_metadata(v->c, offset, length)) {
        if (qcow2_check_fixes(v->c)) {
            cut_off(v, value, "points to metadata");
            return 0;
        }
        qcow2_check_overlap(v->c, offset, length); /* reported when refcounts are compared */
    }
    return add_references(v, offset, length);
}

static int count_compressed(struct view *v, uint64_t *value)
{
    struct qcow2_entry e;

    if (*value & QCOW2_COPIED)
        replace(v, value, *value & ~QCOW2_COPIED, "is compressed and has the copied bit");
    e = qcow2_l2_decode(*value & ~QCOW2_COPIED, v->c->cluster_bits, v->c->header->version);
    if (v->active) {
        v->c->check->result.allocated_clusters++;
        v->c->check->result.compressed_clusters++;
        v->c->check->result.fragmented_clusters++;
    }
    if (e.kind == QCOW2_KIND_BROKEN) {
        cut_off(v, value, "points to an offset that no file has");
        return 0;
    }
    return count_storage(v, value, e.host, e.length);
}

static void count_statistics(struct view *v, uint64_t host)
{
    struct block_check_result *result = &v->c->check->result;

    if (!v->active)
        return;
    result->allocated_clusters++;
    if (v->contiguous && host != v->contiguous)
        result->fragmented_clusters++;
    v->contiguous = host + v->c->cluster_size;
}

static int count_entry(struct view *v, uint64_t *value)
{
    uint64_t host;

    if (*value & QCOW2_COMPRESSED)
        return count_compressed(v, value);
    if (*value & RESERVED)
        replace(v, value, *value & ~RESERVED, "has reserved bits");
    if ((*value & QCOW2_ZERO) && v->c->header->version < 3)
        replace(v, value, *value & ~QCOW2_ZERO, "has the zero bit, which version 2 does not know");
    host = *value & QCOW2_OFFSET_MASK;
    if (host == 0) {
        if (*value & QCOW2_COPIED)
            replace(v, value, *value & ~QCOW2_COPIED, "has the copied bit and no storage");
        return 0;
    }
    if (!is_aligned(host, v->c->cluster_size)) {
        cut_off(v, value, "is not aligned");
        if (qcow2_check_fixes(v->c))
            return 0;
    }
    count_statistics(v, host);
    return count_storage(v, value, host, v->c->cluster_size);
}

static int count_entries(struct view *v)
{
    uint8_t *table = v->c->table;
    bool changed = false;
    int err = 0;

    for (v->index = 0; v->index < v->c->cluster_size / 8 && err == 0; v->index++) {
        uint64_t old = get_be64(table + v->index * 8), value = old;

        if (old == 0)
            continue;
        err = count_entry(v, &value);
        if (value != old) {
            put_be64(table + v->index * 8, value);
            changed = true;
        }
    }
    if (err == 0 && changed)
        err = block_write(v->c->file, table, v->c->cluster_size, v->offset, 0);
    return err;
}

int qcow2_check_count_data(struct qcow2_check *c, const struct check_l1 *l1, uint64_t index,
                           uint64_t *value)
{
    uint64_t offset = *value & QCOW2_OFFSET_MASK, cluster = offset >> c->cluster_bits;
    unsigned marks = qcow2_counts_marks(&c->counts, cluster);
    struct view view = {.c = c, .offset = offset, .active = l1->active};

    if (!is_aligned(offset, c->cluster_size) || !(marks & COUNT_TABLE) || (marks & COUNT_SEEN))
        return 0;
    view.weight = qcow2_counts_get(&c->counts, cluster);
    qcow2_counts_set_marks(&c->counts, cluster, marks | COUNT_SEEN);
    switch (qcow2_check_read(c, offset)) {
    case CHECK_TABLE_READ:
        return count_entries(&view);
    case CHECK_TABLE_FAILED:
        qcow2_check_unknown(c, "the L2 table at offset %" PRIu64 " cannot be read", offset);
        return 0;
    case CHECK_TABLE_ZERO:
        break;
    }
    return 0;
}
