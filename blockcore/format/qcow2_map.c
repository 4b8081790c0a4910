/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where guest bytes are: map, and decode for compressed clusters.
 *
 * With the L2 table cached, map neither waits nor locks, so that it also works on the loop's own
 * stack; else it says -EAGAIN there.  What it answers stays true while the caller holds a range
 * lock on the guest range: tables may be copied or change elsewhere, but not for that range.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "base/worker.h"
#include "blockcore/codec.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Entries of the L1 table that a call looks at; block_get_status() makes some hundred calls. */
#define ABSENT_ENTRIES_MAX 256

/* An L2 table as map sees it. */
struct view {
    struct qcow2 *q;
    uint64_t cluster;       /* guest offset of the first cluster asked for */
    const uint8_t *entries; /* from that on */
    uint64_t count;         /* entries that matter */
    bool writable;          /* data with the copied bit may be written in place */
};

/* A run of subclusters that are alike, and in one piece where they have data. */
struct run {
    enum extent_kind kind; /* DATA, ZERO or ABSENT */
    bool stored, writable;
    uint64_t host; /* of the first cluster */
};

static struct qcow2_entry view_entry(const struct view *view, uint64_t i)
{
    const struct qcow2 *q = view->q;

    return qcow2_l2_decode_at(q, view->cluster + (i << q->cluster_bits),
                              view->entries + (i << q->entry_bits));
}

/* In place means: exclusively owned, and not where metadata is. */
static bool writable_in_place(const struct view *view, const struct qcow2_entry *e)
{
    return view->writable && e->copied &&
           (qcow2_has_data_file(view->q) || qcow2_guard_find(view->q, e->host) == GUARD_NONE);
}

static enum extent_kind kind_at(const struct qcow2_entry *e, unsigned subcluster)
{
    if (e->data >> subcluster & 1)
        return EXTENT_DATA;
    return e->zero >> subcluster & 1 ? EXTENT_ZERO : EXTENT_ABSENT;
}

/* Subclusters from number `from` on that are of the kind. */
static unsigned count_in_cluster(const struct qcow2_entry *e, unsigned from, enum extent_kind kind)
{
    uint32_t same = kind == EXTENT_DATA   ? e->data
                    : kind == EXTENT_ZERO ? e->zero
                                          : ~(e->data | e->zero);
    uint32_t others = ~same >> from;

    return others ? (unsigned)__builtin_ctz(others) : QCOW2_SUBCLUSTERS - from;
}

/* Whether cluster number i goes on with the run that began in the first one. */
static bool goes_on(const struct view *view, const struct run *run, uint64_t i,
                    const struct qcow2_entry *e)
{
    if (e->kind != QCOW2_KIND_NORMAL || kind_at(e, 0) != run->kind || e->stored != run->stored)
        return false;
    return run->kind != EXTENT_DATA || (e->host == run->host + (i << view->q->cluster_bits) &&
                                        writable_in_place(view, e) == run->writable);
}

/* Subclusters of the run that begins at number `from` of the first entry. */
static uint64_t count_run(const struct view *view, const struct qcow2_entry *first, unsigned from,
                          const struct run *run)
{
    uint64_t n = count_in_cluster(first, from, run->kind);

    for (uint64_t i = 1; i < view->count && from + n == i << QCOW2_SUBCLUSTER_BITS; i++) {
        struct qcow2_entry e = view_entry(view, i);

        if (goes_on(view, run, i, &e))
            n += count_in_cluster(&e, 0, run->kind);
    }
    return n;
}

static uint64_t describe_normal(const struct view *view, const struct qcow2_entry *e,
                                uint64_t in_cluster, struct extent *ret)
{
    unsigned bits = qcow2_subcluster_bits(view->q), from = (unsigned)(in_cluster >> bits);
    struct run run = {.kind = kind_at(e, from), .stored = e->stored, .host = e->host};

    run.writable = run.kind == EXTENT_DATA && writable_in_place(view, e);
    *ret = (struct extent){.kind = run.kind};
    if (run.kind == EXTENT_DATA) {
        ret->flags = run.writable ? EXTENT_WRITABLE : 0;
        ret->child = view->q->data;
        ret->child_offset = e->host + in_cluster;
    } else {
        ret->flags = e->stored ? EXTENT_RESERVED : 0;
    }
    return ((from + count_run(view, e, from, &run)) << bits) - in_cluster;
}

/* Fills ret, whose length may pass the range asked for. 0 or negative errno. */
static int describe(const struct view *view, uint64_t in_cluster, struct extent *ret)
{
    struct qcow2 *q = view->q;
    struct qcow2_entry e = view_entry(view, 0);
    char text[QCOW2_L2_TEXT_MAX];

    switch (e.kind) {
    case QCOW2_KIND_NORMAL:
        ret->length = describe_normal(view, &e, in_cluster, ret);
        return 0;
    case QCOW2_KIND_COMPRESSED:
        *ret = (struct extent){
            .kind = EXTENT_ENCODED,
            .length = q->cluster_size - in_cluster,
            .child = q->file,
            .child_offset = e.host,
            .encoded_length = e.length,
            .unit_offset = view->cluster,
            .unit_length = q->cluster_size,
        };
        return 0;
    case QCOW2_KIND_BROKEN:
        break;
    }
    return qcow2_report_broken(q, "the L2 entry of guest offset %" PRIu64 " is %s", view->cluster,
                               qcow2_l2_text(q, view->entries, text));
}

/*
 * No L2 table: nothing here, and perhaps in the next ranges.  A table of small clusters has
 * millions of entries: a call looks at some, and who wants more asks again.
 */
static int map_absent(struct qcow2 *q, uint64_t offset, uint64_t length, struct extent *ret)
{
    unsigned range_bits = q->cluster_bits + q->l2_bits;
    uint64_t first = offset >> range_bits, next = first + 1;
    uint64_t end = min_u64(q->header.l1_size, first + ABSENT_ENTRIES_MAX);

    while (next < end && (next << range_bits) - offset < length && q->l1[next] == 0)
        next++;
    *ret = (struct extent){
        .kind = EXTENT_ABSENT,
        .length = min_u64(length, (next << range_bits) - offset),
    };
    return 0;
}

/* Reads the table that is not cached. */
static int load_table(struct qcow2 *q, uint64_t offset, struct table **ret)
{
    int err;

    if (!coroutine_self())
        return -EAGAIN;
    if (node_writable(q->node)) { /* it may push out a dirty table */
        co_mutex_lock(&q->lock);
        err = qcow2_l2_load(q, offset, ret);
        co_mutex_unlock(&q->lock);
        return err;
    }
    err = table_cache_get(q->l2_cache, offset, ret);
    if (err == -EIO)
        qcow2_log_once(q, "the L2 table at offset %" PRIu64 " cannot be read", offset);
    return err;
}

int qcow2_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    struct qcow2 *q = node->state;
    uint64_t l1_index = qcow2_l1_index(q, offset), l2_index = qcow2_l2_index(q, offset);
    uint64_t in_cluster = offset & (q->cluster_size - 1);
    struct view view = {.q = q, .cluster = offset - in_cluster};
    struct table *table;
    uint64_t l1_entry;
    int err = 0;

    if (l1_index >= q->header.l1_size)
        return -EIO;
    l1_entry = q->l1[l1_index];
    if (l1_entry == 0)
        return map_absent(q, offset, length, ret);
    if (!qcow2_l1_entry_valid(l1_entry, q->cluster_bits))
        return qcow2_report_broken(q, "L1 entry %" PRIu64 " is 0x%016" PRIx64, l1_index, l1_entry);
    table = table_cache_peek(q->l2_cache, l1_entry & QCOW2_OFFSET_MASK);
    if (!table)
        err = load_table(q, l1_entry & QCOW2_OFFSET_MASK, &table);
    if (err < 0)
        return err;
    view.entries = qcow2_l2_at(q, table, offset);
    view.count = min_u64((UINT64_C(1) << q->l2_bits) - l2_index,
                         div_round_up(in_cluster + length, q->cluster_size));
    view.writable = q->write_ready && !q->corrupt && (l1_entry & QCOW2_COPIED);
    err = describe(&view, in_cluster, ret);
    table_cache_put(q->l2_cache, table);
    if (err < 0)
        return err;
    ret->length = min_u64(length, ret->length);
    qcow2_crypt_extent(q, offset, ret);
    return 0;
}

struct decode_job {
    enum codec codec;
    void *out;
    size_t out_length;
    const uint8_t *in;
    size_t in_length;
};

static int decode_in_worker(void *arg)
{
    struct decode_job *job = arg;

    return codec_decode(job->codec, job->out, job->out_length, job->in, job->in_length);
}

int qcow2_decode(struct node *node, const struct extent *extent, void *out)
{
    struct qcow2 *q = node->state;
    uint64_t offset = extent->child_offset, length = extent->encoded_length;
    uint64_t inside;
    uint8_t *in;
    int err;

    if (offset >= q->file->size)
        return qcow2_log_once(
            q, "the compressed cluster at offset %" PRIu64 " is beyond the end of the file",
            offset);
    in = buffer_get(length);
    if (!in)
        return -ENOMEM;
    /* The length is an upper bound, and the last host cluster may be cut by the end of the file. */
    inside = min_u64(length, q->file->size - offset);
    memset(in + inside, 0, length - inside);
    err = block_read(q->file, in, inside, offset);
    if (err == 0) {
        struct decode_job job = {
            q->header.compression_type == QCOW2_COMPRESSION_ZSTD ? CODEC_ZSTD : CODEC_DEFLATE_RAW,
            out, extent->unit_length, in, length};

        err = co_run_in_worker(decode_in_worker, &job);
        if (err == -EIO)
            qcow2_log_once(q, "the compressed cluster at offset %" PRIu64 " cannot be decoded",
                           offset);
    }
    buffer_put(in, length);
    return err;
}
