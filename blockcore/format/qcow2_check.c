/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checking and repairing qcow2: the order of the whole, and what its parts share. The picture is in
 * qcow2_check.h.
 */
#include "blockcore/format/qcow2_check.h"

#include "base/buffer.h"
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX 512

__attribute__((format(printf, 3, 0))) static void report(struct qcow2_check *c, const char *prefix,
                                                         const char *format, va_list ap)
{
    char text[TEXT_MAX];
    size_t used = (size_t)snprintf(text, sizeof(text), "%s", prefix);

    if (!c->check->report)
        return;
    vsnprintf(text + used, sizeof(text) - used, format, ap);
    c->check->report(c->check->report_arg, text);
}

void qcow2_check_corruption(struct qcow2_check *c, bool fixed, const char *format, ...)
{
    va_list ap;

    if (fixed)
        c->check->result.corruptions_fixed++;
    else
        c->check->result.corruptions++;
    va_start(ap, format);
    report(c, fixed ? "repaired: " : "error: ", format, ap);
    va_end(ap);
}

void qcow2_check_for_rebuild(struct qcow2_check *c, const char *format, ...)
{
    va_list ap;

    c->check->result.corruptions++;
    c->rebuild_corruptions++;
    c->rebuild = true;
    va_start(ap, format);
    report(c, "error: ", format, ap);
    va_end(ap);
}

void qcow2_check_unknown(struct qcow2_check *c, const char *format, ...)
{
    va_list ap;

    c->check->result.check_errors++;
    c->incomplete = true;
    va_start(ap, format);
    report(c, "cannot examine: ", format, ap);
    va_end(ap);
}

void qcow2_check_say(struct qcow2_check *c, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    report(c, "", format, ap);
    va_end(ap);
}

enum check_table qcow2_check_read(struct qcow2_check *c, uint64_t offset)
{
    uint64_t size = c->file->size, inside = min_u64(c->cluster_size, size - min_u64(offset, size));
    struct block_status status;

    if (inside == 0)
        return CHECK_TABLE_ZERO;
    coroutine_yield();
    if (block_get_status(c->file, offset, inside, &status) == 0 && status.length == inside &&
        (status.flags & STATUS_ZERO))
        return CHECK_TABLE_ZERO;
    memset(c->table + inside, 0, c->cluster_size - inside);
    return block_read(c->file, c->table, inside, offset) < 0 ? CHECK_TABLE_FAILED
                                                             : CHECK_TABLE_READ;
}

bool qcow2_check_beyond(const struct qcow2_check *c, uint64_t offset, uint64_t length)
{
    return offset + length >= c->file_size + c->cluster_size;
}

bool qcow2_check_is_metadata(const struct qcow2_check *c, uint64_t offset, uint64_t length)
{
    uint64_t count, first = qcow2_check_span(c, offset, length, &count);

    return qcow2_counts_find(&c->counts, first, first + count) < first + count;
}

void qcow2_check_overlap(struct qcow2_check *c, uint64_t offset, uint64_t length)
{
    uint64_t count, first = qcow2_check_span(c, offset, length, &count);
    uint64_t found = qcow2_counts_find(&c->counts, first, first + count);
    unsigned marks = qcow2_counts_marks(&c->counts, found);

    if (found < first + count)
        qcow2_counts_set_marks(&c->counts, found, marks | COUNT_OVERLAP);
}

uint64_t qcow2_check_span(const struct qcow2_check *c, uint64_t offset, uint64_t length,
                          uint64_t *ret_count)
{
    uint64_t first = offset >> c->cluster_bits;

    *ret_count = ((offset + length - 1) >> c->cluster_bits) - first + 1;
    return first;
}

/* The image is sound: it may be written again. */
static int clear_marks(struct qcow2_check *c)
{
    uint64_t marks = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    const struct block_check_result *result = &c->check->result;
    uint8_t data[8];
    int err = block_flush(c->file);

    if (err < 0 || result->corruptions > 0 || result->check_errors > 0 ||
        !(c->header->incompatible & marks))
        return err;
    put_be64(data, c->header->incompatible & ~marks);
    err = block_write(c->file, data, sizeof(data), QCOW2_AT_INCOMPATIBLE, 0);
    if (err == 0)
        err = block_flush(c->file);
    if (err == 0)
        c->header->incompatible &= ~marks;
    return err;
}

static int walk_all(struct qcow2_check *c, const struct check_l1 *l1s, size_t count,
                    check_l1_visit *visit)
{
    int err = 0;

    for (size_t i = 0; i < count && err == 0; i++)
        err = qcow2_check_walk_l1(c, &l1s[i], visit);
    return err;
}

static int count_all(struct qcow2_check *c, const struct check_l1 *l1s, size_t count)
{
    int err = walk_all(c, l1s, count, qcow2_check_count_table);

    if (err == 0)
        err = qcow2_check_refblocks(c);
    if (err == 0)
        err = walk_all(c, l1s, count, qcow2_check_count_data);
    if (err == 0 && c->check->fix)
        err = block_flush(c->file);
    return err;
}

static int run(struct qcow2_check *c)
{
    struct check_l1 *l1s = NULL;
    size_t count = 0;
    int err = qcow2_check_metadata(c, &l1s, &count);

    if (err == 0)
        err = count_all(c, l1s, count);
    if (err == 0)
        err = qcow2_check_refcounts(c);
    if (err == 0 && c->rebuild && qcow2_check_fixes(c) && !c->incomplete)
        err = qcow2_check_rebuild(c);
    if (err == 0 && c->check->fix)
        err = block_flush(c->file);
    if (err == 0)
        err = qcow2_check_copied(c, &l1s[0]);
    if (err == 0)
        err = qcow2_check_complete_snapshots(c);
    if (err == 0 && c->check->fix)
        err = clear_marks(c);
    free(l1s);
    return err;
}

int qcow2_check_run(struct node *file, struct qcow2_header *header, struct block_check *check,
                    struct error *error)
{
    struct qcow2_check c = {
        .file = file,
        .header = header,
        .check = check,
        .cluster_bits = header->cluster_bits,
        .cluster_size = UINT64_C(1) << header->cluster_bits,
        .file_size = file->size,
        .refblock_bits = header->cluster_bits + 3 - header->refcount_order,
    };
    int err;

    check->result = (struct block_check_result){
        .total_clusters = div_round_up(align_down(header->size, 512), c.cluster_size),
    };
    c.table = buffer_get(c.cluster_size);
    err = c.table ? run(&c) : -ENOMEM;
    if (err < 0)
        error_set_errno(error, -err, "checking %s failed", node_name(file));
    if (c.table)
        buffer_put(c.table, c.cluster_size);
    qcow2_counts_fini(&c.counts);
    free(c.reftable);
    free(c.block_states);
    return err;
}

int qcow2_check(struct node *node, struct block_check *check, struct error *error)
{
    struct qcow2 *q = node->state;
    struct qcow2_header header = q->header;

    if (q->at_snapshot)
        return error_set(error, ENOTSUP,
                         "%s is open at a snapshot: to check it, open the image itself",
                         node_name(node));
    return qcow2_check_run(q->file, &header, check, error);
}
