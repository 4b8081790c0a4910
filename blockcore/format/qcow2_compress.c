/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writing compressed clusters.
 *
 * They are packed: each begins at the byte behind the one before, in the same host cluster as long
 * as that has room, and goes on into the next host cluster when that is the neighbor.  Every host
 * cluster that an entry touches has a reference from it.  q->packed_end is where the next one goes;
 * it is forgotten when its host cluster is freed, which may be somebody else's then.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "base/worker.h"
#include "blockcore/codec.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>

#define SECTOR 512

struct encode_job {
    enum codec codec;
    void *out;
    size_t out_room, out_length;
    const void *in;
    size_t in_length;
};

static int encode_in_worker(void *arg)
{
    struct encode_job *job = arg;

    return codec_encode(job->codec, job->out, job->out_room, job->in, job->in_length,
                        &job->out_length);
}

/* The bits of an entry's offset; the rest counts sectors. */
static unsigned offset_bits(const struct qcow2 *q)
{
    return 62 - (q->cluster_bits - 8);
}

/* Adds a reference to the cluster where the last one ended: 1, 0 if it has too many, or error. */
static int share_last(struct qcow2 *q)
{
    int err = qcow2_refcounts_raise(q, q->packed_end >> q->cluster_bits, 1);

    if (err == -EOVERFLOW)
        return 0;
    return err < 0 ? err : 1;
}

/* Takes a place for `length` bytes, less than a cluster. */
static int take_place(struct qcow2 *q, uint64_t length, uint64_t *ret)
{
    uint64_t used = q->packed_end & (q->cluster_size - 1);
    uint64_t left = used ? q->cluster_size - used : 0;
    uint64_t first, count, end = q->packed_end;
    int shared = 0, err;

    if (length <= left)
        shared = share_last(q);
    if (shared == 0) {
        err = qcow2_clusters_alloc(q, 1, &first, &count);
        if (err < 0)
            return err;
        if (left > 0 && length > left && first == (end >> q->cluster_bits) + 1)
            shared = share_last(q);
        if (shared < 0)
            qcow2_clusters_unalloc(q, first, 1);
        else if (shared == 0)
            end = first << q->cluster_bits;
    }
    if (shared < 0)
        return shared;
    *ret = end;
    q->packed_end = end + length;
    return 0;
}

/* Nothing points there. A write that failed in its midst may have left something. */
static void give_back(struct qcow2 *q, uint64_t host, uint64_t length)
{
    uint64_t first = host >> q->cluster_bits, last = (host + length - 1) >> q->cluster_bits;

    q->stale_end = max_u64(q->stale_end, host + length);
    qcow2_clusters_unalloc(q, first, last - first + 1);
}

static int reserve(struct qcow2 *q, uint64_t length, uint64_t *ret)
{
    int err = qcow2_lock_to_change(q);

    if (err == 0)
        err = take_place(q, length, ret);
    if (err == 0 && (*ret + length) >> offset_bits(q)) {
        give_back(q, *ret, length);
        err = 1; /* so far behind only clusters of their own can be */
    }
    co_mutex_unlock(&q->lock);
    return err;
}

/* Points the entry to the compressed data. */
static int commit(struct qcow2 *q, uint64_t offset, uint64_t host, uint64_t length)
{
    uint64_t sectors = (host + length - 1) / SECTOR - host / SECTOR;
    struct qcow2_entry old;
    struct table *table;
    uint8_t *at;
    int err = q->corrupt ? -EIO : qcow2_pending_reserve(q, 2);

    if (err == 0)
        err = qcow2_l2_get_private(q, qcow2_l1_index(q, offset), &table);
    if (err < 0)
        return err;
    at = qcow2_l2_at(q, table, offset);
    err = qcow2_l2_decode_for_change(q, offset, at, &old);
    if (err == 0) {
        qcow2_pending_add_entry(q, &old);
        put_be64(at, QCOW2_COMPRESSED | sectors << offset_bits(q) | host);
        if (qcow2_extended_l2(&q->header))
            put_be64(at + 8, 0);
        table_cache_mark_dirty(q->l2_cache, table);
    }
    table_cache_put(q->l2_cache, table);
    return err;
}

static int store(struct qcow2 *q, uint64_t offset, const void *data, uint64_t length)
{
    uint64_t host;
    int err = reserve(q, length, &host);

    if (err != 0)
        return err;
    err = block_write(q->file, data, length, host, 0);
    co_mutex_lock(&q->lock);
    if (err == 0)
        err = commit(q, offset, host, length);
    if (err < 0)
        give_back(q, host, length);
    co_mutex_unlock(&q->lock);
    return err;
}

int qcow2_write_compressed(struct node *node, uint64_t offset, const void *data)
{
    struct qcow2 *q = node->state;
    struct encode_job job = {
        .codec =
            q->header.compression_type == QCOW2_COMPRESSION_ZSTD ? CODEC_ZSTD : CODEC_DEFLATE_RAW,
        .out = buffer_get(q->cluster_size),
        .out_room = q->cluster_size - 1,
        .in = data,
        .in_length = q->cluster_size,
    };
    int err;

    if (!job.out)
        return -ENOMEM;
    err = co_run_in_worker(encode_in_worker, &job);
    if (err == 0)
        err = store(q, offset, job.out, job.out_length);
    else if (err == -ENOSPC)
        err = 1;
    buffer_put(job.out, q->cluster_size);
    return err;
}
