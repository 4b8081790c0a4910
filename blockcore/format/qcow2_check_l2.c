/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * References of L2 tables: data.  Each table is visited once, with the number of L1 entries that
 * lead to it.  See qcow2_check.h.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2_check.h"

#include <inttypes.h>
#include <stdio.h>

#define RESERVED (~(QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_OFFSET_MASK | QCOW2_ZERO))

/* An entry as it stands in the table; bitmaps: 0 in standard tables. */
struct words {
    uint64_t value, bitmaps;
};

/* One L2 table under examination. */
struct view {
    struct qcow2_check *c;
    uint64_t offset;     /* of the table */
    uint64_t guest;      /* the entry's cluster, by the first L1 entry that leads here */
    uint64_t weight;     /* L1 entries that lead to it */
    bool active;         /* the active L1 table is one of those: statistics */
    uint64_t contiguous; /* host offset behind the last data cluster, 0: none yet */
    uint64_t index;      /* the entry */
};

static bool extended(const struct view *v)
{
    return qcow2_extended_l2(v->c->header);
}

/* What is the matter with an entry, and what stands there instead if it is repaired. */
static void replace(struct view *v, struct words *words, struct words better, const char *wrong)
{
    bool fix = qcow2_check_fixes(v->c);
    char bitmaps[32] = "";

    if (extended(v))
        snprintf(bitmaps, sizeof(bitmaps), ", 0x%016" PRIx64, words->bitmaps);
    qcow2_check_corruption(v->c, fix,
                           "entry %" PRIu64 " of the L2 table at offset %" PRIu64 " (0x%016" PRIx64
                           "%s) %s",
                           v->index, v->offset, words->value, bitmaps, wrong);
    if (fix)
        *words = better;
}

static void replace_value(struct view *v, struct words *words, uint64_t value, const char *wrong)
{
    replace(v, words, (struct words){value, words->bitmaps}, wrong);
}

static void replace_bitmaps(struct view *v, struct words *words, uint64_t bitmaps,
                            const char *wrong)
{
    replace(v, words, (struct words){words->value, bitmaps}, wrong);
}

/* An entry without storage; what had data reads as zeroes, or in version 2 as nothing. */
static struct words without_storage(const struct view *v, const struct words *words)
{
    uint64_t data = words->value & QCOW2_COMPRESSED ? QCOW2_ALL_SUBCLUSTERS
                                                    : words->bitmaps & QCOW2_ALL_SUBCLUSTERS;

    if (extended(v))
        return (struct words){0, data << 32 | (words->bitmaps & ~(uint64_t)QCOW2_ALL_SUBCLUSTERS)};
    return (struct words){v->c->header->version >= 3 ? QCOW2_ZERO : 0, 0};
}

static void cut_off(struct view *v, struct words *words, const char *wrong)
{
    if (qcow2_check_fixes(v->c))
        qcow2_check_say(
            v->c, "what entry %" PRIu64 " of the L2 table at offset %" PRIu64 " pointed to is lost",
            v->index, v->offset);
    replace(v, words, without_storage(v, words), wrong);
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
static int count_storage(struct view *v, struct words *words, uint64_t offset, uint64_t length)
{
    if (qcow2_check_beyond(v->c, offset, length)) {
        cut_off(v, words, "points behind the end of the file");
        return 0;
    }
    if (qcow2_check_is_metadata(v->c, offset, length)) {
        if (qcow2_check_fixes(v->c)) {
            cut_off(v, words, "points to metadata");
            return 0;
        }
        qcow2_check_overlap(v->c, offset, length); /* reported when refcounts are compared */
    }
    return add_references(v, offset, length);
}

static int count_compressed(struct view *v, struct words *words)
{
    uint8_t bytes[16] = {0};
    struct qcow2_entry e;

    if (qcow2_external_data(v->c->header)) {
        cut_off(v, words, "is compressed, which an image with a data file cannot be");
        return 0;
    }
    if (words->value & QCOW2_COPIED)
        replace_value(v, words, words->value & ~QCOW2_COPIED,
                      "is compressed and has the copied bit");
    if (words->bitmaps != 0)
        replace_bitmaps(v, words, 0, "is compressed and has bitmaps of subclusters");
    if (v->active) {
        v->c->check->result.allocated_clusters++;
        v->c->check->result.compressed_clusters++;
        v->c->check->result.fragmented_clusters++;
    }
    put_be64(bytes, words->value & ~QCOW2_COPIED);
    e = qcow2_l2_decode(v->c->header, bytes);
    if (e.kind == QCOW2_KIND_BROKEN) {
        cut_off(v, words, "points to an offset that no file has");
        return 0;
    }
    return count_storage(v, words, e.host, e.length);
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

/* What the subclusters are said to be. What is data and zero at a time stays data. */
static void check_bitmaps(struct view *v, struct words *words, bool stored)
{
    uint64_t data = words->bitmaps & QCOW2_ALL_SUBCLUSTERS;

    if (words->bitmaps & data << 32)
        replace_bitmaps(v, words, words->bitmaps & ~(data << 32),
                        "has subclusters that are both data and zero");
    if (data != 0 && !stored)
        replace(v, words, without_storage(v, words), "has data and no storage");
}

static void check_flags(struct view *v, struct words *words)
{
    const struct qcow2_header *h = v->c->header;

    if (words->value & RESERVED)
        replace_value(v, words, words->value & ~RESERVED, "has reserved bits");
    if ((words->value & QCOW2_ZERO) && h->version < 3)
        replace_value(v, words, words->value & ~QCOW2_ZERO,
                      "has the zero bit, which version 2 does not know");
    if ((words->value & QCOW2_ZERO) && qcow2_extended_l2(h))
        replace_value(v, words, words->value & ~QCOW2_ZERO,
                      "has the zero bit, which extended entries do not have");
}

/* Data in a file of its own: it has no references. */
static void count_external(struct view *v, struct words *words, uint64_t host)
{
    if (host != v->guest)
        cut_off(v, words, "points to another offset of the data file than its own");
    else
        count_statistics(v, host);
}

static int count_entry(struct view *v, struct words *words)
{
    bool external = qcow2_external_data(v->c->header);
    uint64_t host;

    if (words->value & QCOW2_COMPRESSED)
        return count_compressed(v, words);
    check_flags(v, words);
    host = words->value & QCOW2_OFFSET_MASK;
    check_bitmaps(v, words, host != 0 || (external && (words->value & QCOW2_COPIED)));
    if (host == 0 && !external) {
        if (words->value & QCOW2_COPIED)
            replace_value(v, words, words->value & ~QCOW2_COPIED,
                          "has the copied bit and no storage");
        return 0;
    }
    if (!is_aligned(host, v->c->cluster_size)) {
        cut_off(v, words, "is not aligned");
        if (qcow2_check_fixes(v->c))
            return 0;
    }
    if (external) {
        if (host != 0 || (words->value & QCOW2_COPIED))
            count_external(v, words, host);
        return 0;
    }
    count_statistics(v, host);
    return count_storage(v, words, host, v->c->cluster_size);
}

static int count_entries(struct view *v)
{
    unsigned bits = qcow2_l2_entry_bits(v->c->header);
    bool changed = false;
    int err = 0;

    for (v->index = 0; v->index < v->c->cluster_size >> bits && err == 0; v->index++) {
        uint8_t *at = v->c->table + (v->index << bits);
        struct words old = {get_be64(at), extended(v) ? get_be64(at + 8) : 0}, words = old;

        if (old.value != 0 || old.bitmaps != 0)
            err = count_entry(v, &words);
        if (words.value != old.value || words.bitmaps != old.bitmaps) {
            put_be64(at, words.value);
            if (extended(v))
                put_be64(at + 8, words.bitmaps);
            changed = true;
        }
        v->guest += v->c->cluster_size;
    }
    if (err == 0 && changed)
        err = block_write(v->c->file, v->c->table, v->c->cluster_size, v->offset, 0);
    return err;
}

int qcow2_check_count_data(struct qcow2_check *c, const struct check_l1 *l1, uint64_t index,
                           uint64_t *value)
{
    uint64_t offset = *value & QCOW2_OFFSET_MASK, cluster = offset >> c->cluster_bits;
    unsigned marks = qcow2_counts_marks(&c->counts, cluster);
    unsigned table_bits = 2 * c->cluster_bits - qcow2_l2_entry_bits(c->header);
    struct view view = {
        .c = c, .offset = offset, .active = l1->active, .guest = index << table_bits};

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
