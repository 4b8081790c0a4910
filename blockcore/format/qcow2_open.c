/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening and closing qcow2 images.  Everything that the header names is checked against the limits
 * of the format and the size of the file before it is used.  Opening never changes the file, but
 * for one case: an image that is marked dirty is repaired when it is opened for writing, once its
 * data and backing files are open.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "base/log.h"
#include "blockcore/cipher.h"
#include "blockcore/codec.h"
#include "blockcore/format/qcow2.h"
#include "blockcore/format/qcow2_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HEADER_PEEK 512
#define CACHE_TABLES_MIN 4
#define CACHE_TABLES_MAX (1 << 20)

static int out_of_memory(struct error *error)
{
    return error_set(error, ENOMEM, "out of memory");
}

static int open_file(struct node *node, struct node_open *open, struct error *error)
{
    unsigned perm = PERM_CONSISTENT_READ;

    if (node->flags & NODE_REPAIR)
        open->flags |= NODE_WRITABLE; /* for the file */
    if (open->flags & NODE_WRITABLE)
        perm |= PERM_WRITE | PERM_RESIZE;
    /* Our tables would be wrong if somebody else changed the file. */
    return node_open_file(node, open, perm, open->shared & ~(unsigned)(PERM_WRITE | PERM_RESIZE),
                          error);
}

/* Only to be checked: what a repair can set right is no reason to refuse the image. */
static bool for_check(const struct qcow2 *q)
{
    return q->node->flags & (NODE_CHECK | NODE_REPAIR);
}

/* The header's fixed fields, from the first bytes of the file. */
static int read_fixed(struct qcow2 *q, struct error *error)
{
    size_t length = min_u64(HEADER_PEEK, q->file->size);
    uint8_t data[HEADER_PEEK];
    int err = block_read(q->file, data, length, 0);

    if (err < 0)
        return error_set_errno(error, -err, "cannot read the qcow2 header");
    return qcow2_header_parse(data, length, &q->header, error);
}

static void set_geometry(struct qcow2 *q)
{
    q->cluster_bits = q->header.cluster_bits;
    q->cluster_size = UINT64_C(1) << q->cluster_bits;
    q->entry_bits = qcow2_l2_entry_bits(&q->header);
    q->l2_bits = q->cluster_bits - q->entry_bits;
    q->raw_data = qcow2_raw_data(&q->header);
    q->refblock_bits = q->cluster_bits + 3 - q->header.refcount_order;
}

/* All that cluster 0 tells. *ret is its bytes, from buffer_get(q->cluster_size). */
static int read_header(struct qcow2 *q, uint8_t **ret, size_t *ret_length, struct error *error)
{
    bool writable = node_writable(q->node);
    int err = read_fixed(q, error);

    if (err < 0)
        return err;
    set_geometry(q);
    *ret = buffer_get(q->cluster_size);
    if (!*ret)
        return out_of_memory(error);
    *ret_length = min_u64(q->cluster_size, q->file->size);
    err = block_read(q->file, *ret, *ret_length, 0);
    if (err < 0)
        return error_set_errno(error, -err, "cannot read the first cluster");
    /* Unknown features first: they may be the reason for what else is not understood. */
    err = qcow2_header_check_features(&q->header, *ret, *ret_length, false, error);
    if (err == 0)
        err = qcow2_header_parse_extensions(*ret, *ret_length, &q->header, error);
    if (err == 0)
        err = qcow2_header_check_features(&q->header, *ret, *ret_length, writable, error);
    if (err == 0)
        err = qcow2_header_check_layout(&q->header, q->file->size, for_check(q), error);
    if (err == 0 && q->header.compression_type == QCOW2_COMPRESSION_ZSTD &&
        !codec_available(CODEC_ZSTD))
        err = error_set(error, ENOTSUP,
                        "the image is compressed with zstd, which this build does not have");
    return err;
}

static int open_data_file(struct qcow2 *q, struct node_open *open, const uint8_t *cluster,
                          struct error *error)
{
    struct qcow2_piece name = q->header.data_file;
    unsigned perm = PERM_CONSISTENT_READ;
    int err;

    if (!qcow2_external_data(&q->header))
        return 0;
    if (node_writable(q->node))
        perm |= PERM_WRITE | PERM_RESIZE;
    err = node_open_child(q->node, open, "data-file", "data file",
                          name.offset ? (const char *)cluster + name.offset : NULL, name.length,
                          perm, open->shared & ~(unsigned)PERM_RESIZE, &q->data, error);
    return err;
}

static int ask_for_backing(struct qcow2 *q, struct node_open *open, const uint8_t *cluster,
                           size_t length, struct error *error)
{
    struct qcow2_piece name = q->header.backing_name, format = q->header.backing_format;
    char text[16] = "";

    if (name.offset == 0)
        return node_open_backing(q->node, open, NULL, 0, NULL, error);
    if (!range_within(name.offset, name.length, length))
        return error_set(error, EINVAL, "the file ends within the name of the backing file");
    memcpy(text, cluster + format.offset, format.length);
    return node_open_backing(q->node, open, (const char *)cluster + name.offset, name.length,
                             format.length > 0 ? text : NULL, error);
}

static int load_l1(struct qcow2 *q, struct error *error)
{
    size_t entries = q->header.l1_size;
    int err;

    q->l1 = malloc(entries * 8 + 1);
    q->l1_dirty = calloc(entries / 64 + 1, 1);
    if (!q->l1 || !q->l1_dirty)
        return out_of_memory(error);
    if (entries == 0)
        return 0;
    err = block_read(q->file, q->l1, entries * 8, q->header.l1_offset);
    if (err < 0)
        return error_set_errno(error, -err, "cannot read the L1 table");
    for (size_t i = 0; i < entries; i++)
        q->l1[i] = be64toh(q->l1[i]);
    return 0;
}

static int open_for_change(struct qcow2 *q, struct error *error)
{
    int err = qcow2_reftable_load(q, error);

    if (err < 0)
        return err;
    q->cluster_limit = UINT64_C(1) << (QCOW2_HOST_BITS - q->cluster_bits);
    if (!qcow2_file_grows(q))
        q->cluster_limit = min_u64(q->cluster_limit, q->file->size >> q->cluster_bits);
    q->write_ready = (q->header.autoclear & ~qcow2_autoclear_kept(q)) == 0;
    q->node->tracks_changes = !q->write_ready;
    return 0;
}

static unsigned cache_tables(const struct qcow2 *q, uint64_t bytes)
{
    return (unsigned)min_u64(max_u64(bytes >> q->cluster_bits, CACHE_TABLES_MIN), CACHE_TABLES_MAX);
}

static int make_caches(struct qcow2 *q, struct error *error)
{
    if (node_writable(q->node)) {
        q->refcount_cache = table_cache_new(q->file, (uint32_t)q->cluster_size,
                                            cache_tables(q, q->options.refcount_cache_size), NULL);
        if (!q->refcount_cache)
            return out_of_memory(error);
        table_cache_set_clean_interval(q->refcount_cache, q->options.cache_clean_interval);
    }
    q->l2_cache = table_cache_new(q->file, (uint32_t)q->cluster_size,
                                  cache_tables(q, q->options.l2_cache_size), q->refcount_cache);
    if (!q->l2_cache)
        return out_of_memory(error);
    table_cache_set_clean_interval(q->l2_cache, q->options.cache_clean_interval);
    return 0;
}

static int open_tables(struct qcow2 *q, struct error *error)
{
    struct guard_range *ranges;
    size_t count;
    int err = load_l1(q, error);

    if (err < 0 || for_check(q))
        return err;
    err = qcow2_guard_collect(q, &ranges, &count, error);
    if (err == 0 && node_writable(q->node))
        err = open_for_change(q, error);
    if (err < 0 || !node_writable(q->node)) {
        free(ranges);
        return err;
    }
    err = qcow2_guard_init(q, ranges, count, error);
    return err < 0 ? err : qcow2_guard_add_snapshots(q, error);
}

/* Refcounts of an image that was not closed cleanly may be too low: they are set right first. */
static int repair_dirty(struct qcow2 *q, struct error *error)
{
    struct block_check check = {.fix = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS};
    int err;

    log_info("%s was not closed cleanly: repairing it", node_name(q->node));
    err = qcow2_check_run(q->file, &q->header, &check, error);
    if (err < 0)
        return err;
    if (check.result.corruptions > 0 || check.result.check_errors > 0)
        return error_set(error, EIO,
                         "the image was not closed cleanly (incompatible bit 0, dirty) and %" PRIu64
                         " of its errors cannot be repaired: open it read-only",
                         check.result.corruptions + check.result.check_errors);
    return 0;
}

static int load_tables(struct qcow2 *q, struct error *error)
{
    int err = open_tables(q, error);

    if (err == 0)
        err = make_caches(q, error);
    return err == 0 ? qcow2_bitmaps_open(q, error) : err;
}

/* What is in a data file is durable before the tables that tell of it. */
static void link_data_file(struct qcow2 *q)
{
    if (q->data != q->file)
        table_cache_set_data(q->l2_cache, q->data);
}

static bool needs_repair(const struct qcow2 *q)
{
    return node_writable(q->node) && (q->header.incompatible & QCOW2_INCOMPAT_DIRTY);
}

static int open_image(struct qcow2 *q, struct node_open *open, struct error *error)
{
    uint8_t *cluster = NULL;
    size_t length = 0;
    int err = read_header(q, &cluster, &length, error);

    if (err == 0)
        err = qcow2_options_judge(q, error);
    if (err == 0)
        err = qcow2_crypt_open(q, open, error);
    if (err == 0 && !needs_repair(q))
        err = load_tables(q, error);
    if (err < 0)
        error_prefix(error, "%s: ", node_name(q->node));
    else
        err = open_data_file(q, open, cluster, error);
    if (err == 0 && q->l2_cache)
        link_data_file(q);
    if (err == 0)
        err = ask_for_backing(q, open, cluster, length, error);
    if (cluster)
        buffer_put(cluster, q->cluster_size);
    return err;
}

int qcow2_open(struct node *node, struct node_open *open, struct error *error)
{
    struct qcow2 *q = node->state;
    int err;

    q->node = node;
    co_mutex_init(&q->lock);
    co_mutex_init(&q->flush.lock);
    err = qcow2_options_take(q, open->options, error);
    if (err == 0)
        err = open_file(node, open, error);
    if (err < 0)
        return err;
    q->file = q->data = node->file;
    err = open_image(q, open, error);
    if (err < 0)
        return err;
    /* A size that is no multiple of 512 is rounded down, as other programs do. */
    node->size = align_down(q->header.size, 512);
    node->lock_size = (uint32_t)q->cluster_size;
    node->cluster_size = node->lock_size / (qcow2_extended_l2(&q->header) ? QCOW2_SUBCLUSTERS : 1);
    if (!qcow2_has_data_file(q) && !node->encrypted) /* these hold data of its full length */
        node->compress_unit = node->lock_size;
    /*
     * Version 2 has no other way to zero a cluster than to give it back; and what a snapshot shares
     * goes when it is deleted.
     */
    node->reuses_storage =
        node_writable(node) && !qcow2_has_data_file(q) &&
        ((node->flags & NODE_UNMAP) || q->header.version < 3 || q->header.snapshots > 0);
    return 0;
}

int qcow2_opened(struct node *node, struct error *error)
{
    struct qcow2 *q = node->state;
    int err;

    if (!needs_repair(q))
        return 0;
    err = repair_dirty(q, error);
    if (err == 0)
        err = load_tables(q, error);
    if (err < 0)
        error_prefix(error, "%s: ", node_name(node));
    else
        link_data_file(q);
    return err;
}

void qcow2_close(struct node *node)
{
    struct qcow2 *q = node->state;

    qcow2_bitmaps_close(q);
    table_cache_free(q->l2_cache);
    table_cache_free(q->refcount_cache);
    qcow2_guard_fini(q);
    free(q->pending.runs);
    free(q->reftable);
    free(q->l1);
    free(q->l1_dirty);
    cipher_free(q->cipher);
    options_release(node->driver->options, q);
}
