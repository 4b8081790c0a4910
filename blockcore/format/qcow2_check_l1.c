/* SPDX-License-Identifier: BSD-3-Clause */
/* Walking tables of 64-bit entries, and the references of L1 tables. See qcow2_check.h. */
#include "base/checked.h"
#include "blockcore/format/qcow2_check.h"

#include <inttypes.h>

#define PIECE_ENTRIES 512
#define RESERVED (~(QCOW2_COPIED | QCOW2_OFFSET_MASK))

/* Entries at `offset` that lie in a hole of the file: they are 0. */
static uint64_t entries_in_hole(struct qcow2_check *c, uint64_t offset, uint64_t entries)
{
    struct block_status status;
    uint64_t end = c->file->size;

    if (offset >= end)
        return entries;
    if (block_get_status(c->file, offset, min_u64(entries * 8, end - offset), &status) < 0 ||
        !(status.flags & STATUS_ZERO))
        return 0;
    return offset + status.length == end ? entries : status.length / 8;
}

static int visit_piece(struct qcow2_check *c, const struct check_l1 *l1, uint64_t first,
                       const uint8_t *data, uint64_t count, check_l1_visit *visit)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t old = get_be64(data + i * 8), value = old;
        uint8_t entry[8];
        int err = old ? visit(c, l1, first + i, &value) : 0;

        if (err == 0 && value != old) {
            put_be64(entry, value);
            err = block_write(c->file, entry, sizeof(entry), l1->offset + (first + i) * 8, 0);
        }
        if (err < 0)
            return err;
    }
    return 0;
}

int qcow2_check_walk_l1(struct qcow2_check *c, const struct check_l1 *l1, check_l1_visit *visit)
{
    uint8_t data[PIECE_ENTRIES * 8];
    uint64_t i = 0;
    int err = 0;

    while (i < l1->entries && err == 0) {
        uint64_t offset = l1->offset + i * 8, count = min_u64(l1->entries - i, PIECE_ENTRIES);
        uint64_t skip = entries_in_hole(c, offset, l1->entries - i);

        if (skip > 0) {
            i += skip;
            continue;
        }
        if (block_read(c->file, data, count * 8, offset) < 0)
            qcow2_check_unknown(c, "the table at offset %" PRIu64 " cannot be read", offset);
        else
            err = visit_piece(c, l1, i, data, count, visit);
        i += count;
        coroutine_yield();
    }
    return err;
}

/* Why an L1 entry names no L2 table, or NULL. */
static const char *wrong_table(const struct qcow2_check *c, uint64_t offset)
{
    if (offset == 0)
        return "names no table";
    if (!is_aligned(offset, c->cluster_size))
        return "is not aligned";
    if (qcow2_check_beyond(c, offset, c->cluster_size))
        return "is beyond the end of the file";
    return NULL;
}

int qcow2_check_count_table(struct qcow2_check *c, const struct check_l1 *l1, uint64_t index,
                            uint64_t *value)
{
    uint64_t offset = *value & QCOW2_OFFSET_MASK;
    const char *wrong = wrong_table(c, offset);
    bool fix = qcow2_check_fixes(c);

    if (*value & RESERVED) {
        qcow2_check_corruption(c, fix,
                               "entry %" PRIu64 " of the L1 table at offset %" PRIu64
                               " has reserved bits: 0x%016" PRIx64,
                               index, l1->offset, *value);
        if (fix)
            *value &= ~RESERVED;
    }
    if (!wrong && (qcow2_counts_marks(&c->counts, offset >> c->cluster_bits) & COUNT_FIXED)) {
        wrong = "overlaps other metadata";
        if (!fix) { /* reported when refcounts are compared */
            qcow2_check_overlap(c, offset, 1);
            return 0;
        }
    }
    if (!wrong)
        return qcow2_counts_add(&c->counts, offset >> c->cluster_bits, 1, COUNT_TABLE);
    qcow2_check_corruption(c, fix,
                           "the L2 table of entry %" PRIu64 " of the L1 table at offset %" PRIu64
                           " (0x%016" PRIx64 ") %s%s",
                           index, l1->offset, *value, wrong,
                           fix ? ": cut off, what it held is lost" : "");
    if (fix)
        *value = 0;
    return 0;
}
