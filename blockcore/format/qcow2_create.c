/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * New qcow2 images, and their size.
 *
 * Layout, in clusters: header; refcount table; refcount blocks; L1 table; LUKS header; with
 * preallocation L2 tables, then data in the order of the disk.  The L1 table ends the file, where
 * it is the last, to the byte.  The header is written last, when all it speaks of is durable: a
 * file that was not finished is no image.
 */
#include "base/buffer.h"
#include "base/checked.h"
#include "blockcore/codec.h"
#include "blockcore/create.h"
#include "blockcore/format/qcow2.h"
#include "blockcore/path.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { COMPAT_0_10, COMPAT_V2, COMPAT_1_1, COMPAT_V3 };
enum { HEADER_LENGTH = 112, FEATURE_ENTRY = 48, BACKING_NAME_MAX = 1023, BACKING_FORMAT_MAX = 15 };

struct create {
    /* Options. */
    uint64_t size, data_size, cluster_size, refcount_bits;
    int compat, compression, preallocation;
    bool lazy_refcounts, extended_l2, data_file_raw, nocow;
    uint64_t extent_size_hint;
    char *backing_file, *backing_fmt, *data_file;
    struct qcow2_crypt_create crypt;

    /* What follows from them. */
    unsigned cluster_bits, entry_bits, order, version;
    uint64_t l1_entries, data_clusters;
    bool external;
    /* First clusters, and counts. */
    uint64_t reftable, reftable_clusters, blocks, block_count, l1, l1_clusters, crypto,
        crypto_clusters, l2, l2_count, data, end;
};

static const char *const compat_words[] = {"0.10", "v2", "1.1", "v3", NULL};
static const char *const compression_words[] = {"zlib", "zstd", NULL};

const struct option_row qcow2_create_options[] = {
    {"size", OPTION_SIZE, offsetof(struct create, size), NULL, "bytes of the disk"},
    {"compat", OPTION_ENUM, offsetof(struct create, compat), compat_words,
     "version of the format: 0.10 (2) or 1.1 (3)"},
    {"cluster_size", OPTION_SIZE, offsetof(struct create, cluster_size), NULL,
     "bytes of a cluster, 512 to 2M"},
    {"refcount_bits", OPTION_NUMBER, offsetof(struct create, refcount_bits), NULL,
     "width of a refcount: 1, 2, 4, 8, 16, 32 or 64"},
    {"lazy_refcounts", OPTION_BOOL, offsetof(struct create, lazy_refcounts), NULL,
     "let refcounts lag behind"},
    {"compression_type", OPTION_ENUM, offsetof(struct create, compression), compression_words,
     "how clusters are compressed"},
    {"preallocation", OPTION_ENUM, offsetof(struct create, preallocation), preallocation_words,
     "what is allocated at once"},
    {"backing_file", OPTION_STRING, offsetof(struct create, backing_file), NULL,
     "image that shows where this one has nothing"},
    {"backing_fmt", OPTION_STRING, offsetof(struct create, backing_fmt), NULL,
     "format of the backing file"},
    {"extended_l2", OPTION_BOOL, offsetof(struct create, extended_l2), NULL,
     "allocate in 32nds of a cluster"},
    {"data_file", OPTION_STRING, offsetof(struct create, data_file), NULL,
     "file that holds the data"},
    {"data_file_raw", OPTION_BOOL, offsetof(struct create, data_file_raw), NULL,
     "keep the data file readable as a raw image"},
    {"nocow", OPTION_BOOL, offsetof(struct create, nocow), NULL,
     "let the file system not copy the file on write (Btrfs)"},
    {"extent_size_hint", OPTION_SIZE, offsetof(struct create, extent_size_hint), NULL,
     "bytes of extents that the file system is to allocate (XFS), 0 for its own choice"},
    {"encryption", OPTION_BOOL, offsetof(struct create, crypt.encryption), NULL,
     "the same as encrypt.format=aes"},
    {"encrypt.format", OPTION_ENUM, offsetof(struct create, crypt.format), qcow2_crypt_words,
     "how to encrypt: luks, or aes, which is not safe"},
    LUKS_OPTION_ROWS("encrypt.", struct create, crypt.luks),
    {0},
};

static const struct option_row measure_options[] = {
    {"data_size", OPTION_SIZE, offsetof(struct create, data_size), NULL, "bytes of data"},
    {0},
};

static int check_version(const struct create *o, struct error *error)
{
    const char *option = o->lazy_refcounts        ? "lazy_refcounts"
                         : o->compression         ? "compression_type=zstd"
                         : o->refcount_bits != 16 ? "a refcount width other than 16 bits"
                         : o->extended_l2         ? "extended_l2"
                         : o->data_file           ? "data_file"
                                                  : NULL;

    if (o->version >= 3 || !option)
        return 0;
    return error_set(error, EINVAL, "%s needs compatibility level 1.1 (compat=1.1)", option);
}

static int check_backing(const struct create *o, struct error *error)
{
    if (!o->backing_file && o->backing_fmt)
        return error_set(error, EINVAL, "backing_fmt is given, but no backing_file");
    if (!o->backing_file)
        return 0;
    if (!o->backing_fmt)
        return error_set(error, EINVAL,
                         "a backing file needs its format (backing_fmt): guessing it is not safe");
    if (strlen(o->backing_file) > BACKING_NAME_MAX || o->backing_file[0] == 0)
        return error_set(error, EINVAL, "the name of a backing file has 1 to 1023 bytes");
    if (strlen(o->backing_fmt) > BACKING_FORMAT_MAX)
        return error_set(error, EINVAL, "the format of a backing file has at most 15 bytes");
    if (o->data_file_raw)
        return error_set(error, EINVAL,
                         "data_file_raw and a backing file exclude each other: what a raw image "
                         "does not hold is zero");
    if (o->preallocation != PREALLOCATION_OFF && !o->extended_l2)
        return error_set(error, EINVAL,
                         "preallocation and a backing file exclude each other without extended_l2: "
                         "what is allocated would hide it");
    return 0;
}

static int check_data_file(struct create *o, struct error *error)
{
    o->external = o->data_file;
    if (o->data_file_raw && !o->data_file)
        return error_set(error, EINVAL, "data_file_raw is given, but no data_file");
    if (!o->data_file)
        return 0;
    if (o->data_file[0] == 0)
        return error_set(error, EINVAL, "the name of the data file is empty");
    /* From the start on, tables and raw image must tell the same. */
    if (o->data_file_raw && o->preallocation == PREALLOCATION_OFF)
        o->preallocation = PREALLOCATION_METADATA;
    return 0;
}

static int check_encryption(struct create *o, struct error *error)
{
    int err = qcow2_crypt_create_judge(&o->crypt, error);

    if (err == 0 && o->crypt.method && o->preallocation && o->version < 3)
        return error_set(error, EINVAL,
                         "preallocation of an encrypted image needs compatibility level 1.1 "
                         "(compat=1.1): with an older one the disk would not read as zeroes");
    return err;
}

static int check_numbers(struct create *o, struct error *error)
{
    if (!is_power_of_two(o->cluster_size) || o->cluster_size < 512 || o->cluster_size > 2 * MIB)
        return error_set(error, EINVAL,
                         "cluster_size is %" PRIu64 ", it must be a power of two from 512 to 2M",
                         o->cluster_size);
    if (o->extended_l2 && o->cluster_size < 1 << QCOW2_EXTENDED_CLUSTER_BITS_MIN)
        return error_set(error, EINVAL,
                         "cluster_size is %" PRIu64 ", with extended_l2 it must be at least 16K",
                         o->cluster_size);
    if (!is_power_of_two(o->refcount_bits) || o->refcount_bits > 64)
        return error_set(error, EINVAL,
                         "refcount_bits is %" PRIu64 ", it must be a power of two from 1 to 64",
                         o->refcount_bits);
    if (o->extent_size_hint > UINT32_MAX)
        return error_set(error, EINVAL,
                         "extent_size_hint is %" PRIu64 " bytes, it must be below 4G",
                         o->extent_size_hint);
    if (o->size > OFFSET_MAX - 511)
        return error_set(error, EFBIG, "the size is %" PRIu64 " bytes, it must be below 2^63",
                         o->size);
    o->size = align_up(o->size, 512);
    o->cluster_bits = (unsigned)__builtin_ctzll(o->cluster_size);
    o->order = (unsigned)__builtin_ctzll(o->refcount_bits);
    o->version = o->compat < COMPAT_1_1 ? 2 : 3;
    o->entry_bits = o->extended_l2 ? 4 : 3;
    o->l1_entries = qcow2_l1_entries_needed(o->size, o->cluster_bits, o->entry_bits);
    if (o->l1_entries > QCOW2_L1_BYTES_MAX / 8)
        return error_set(error, EFBIG,
                         "a disk of %" PRIu64 " bytes needs clusters larger than %" PRIu64
                         ": these allow %" PRIu64 " bytes",
                         o->size, o->cluster_size,
                         (QCOW2_L1_BYTES_MAX / 8) << (2 * o->cluster_bits - o->entry_bits));
    return 0;
}

/* `options` loses what is known here. *o is to be released. */
static int take_options(json_t *options, struct create *o, struct error *error)
{
    int err;

    *o = (struct create){
        .cluster_size = 64 * KIB, .refcount_bits = 16, .compat = COMPAT_1_1, .size = UINT64_MAX};
    qcow2_crypt_create_init(&o->crypt);
    err = options_take(options, qcow2_create_options, o, "format 'qcow2'", error);
    if (err == 0)
        err = options_finish(options, qcow2_create_options, "format 'qcow2'", error);
    if (err == 0 && o->size == UINT64_MAX)
        err = error_set(error, EINVAL, "a new image needs a size");
    if (err == 0)
        err = check_numbers(o, error);
    if (err == 0)
        err = check_version(o, error);
    if (err == 0)
        err = check_data_file(o, error);
    if (err == 0)
        err = check_backing(o, error);
    if (err == 0)
        err = check_encryption(o, error);
    if (err == 0 && o->compression && !codec_available(CODEC_ZSTD))
        err = error_set(error, ENOTSUP, "this build has no zstd");
    return err;
}

static uint64_t block_entries(const struct create *o)
{
    return o->cluster_size * 8 >> o->order;
}

/* Places everything; refcount blocks and table describe themselves, too. */
static int plan(struct create *o, struct error *error)
{
    uint64_t last = 0;

    o->data_clusters = div_round_up(o->size, o->cluster_size);
    o->l1_clusters = div_round_up(o->l1_entries * 8, o->cluster_size);
    o->crypto_clusters = div_round_up(o->crypt.bytes, o->cluster_size);
    o->l2_count = o->preallocation ? o->l1_entries : 0;
    o->reftable = 1;
    o->block_count = o->reftable_clusters = 1;
    do {
        last = o->end;
        o->blocks = o->reftable + o->reftable_clusters;
        o->l1 = o->blocks + o->block_count;
        o->crypto = o->l1 + o->l1_clusters;
        o->l2 = o->crypto + o->crypto_clusters;
        o->data = o->l2 + o->l2_count;
        o->end = o->data + (o->preallocation && !o->external ? o->data_clusters : 0);
        o->block_count = div_round_up(o->end, block_entries(o));
        o->reftable_clusters = div_round_up(o->block_count * 8, o->cluster_size);
    } while (o->end != last);
    if (o->reftable_clusters > QCOW2_REFTABLE_BYTES_MAX >> o->cluster_bits ||
        o->end > OFFSET_MAX >> o->cluster_bits)
        return error_set(error, EFBIG,
                         "a disk of %" PRIu64 " bytes cannot be preallocated with "
                         "clusters of %" PRIu64 " bytes",
                         o->size, o->cluster_size);
    return 0;
}

/* Pointers to `count` clusters from `first` on: a refcount table, an L1 table or L2 tables. */
struct pointers {
    uint64_t first, count;
    uint64_t flags;
    unsigned entry_bits; /* log2 of the bytes of one */
};

/* The entries in one cluster, from number `done` on. */
static void fill_pointers(const struct create *o, const struct pointers *p, uint64_t done,
                          uint8_t *to)
{
    uint64_t here = p->count > done ? p->count - done : 0;

    here = min_u64(here, o->cluster_size >> p->entry_bits);
    memset(to, 0, o->cluster_size);
    for (uint64_t i = 0; i < here; i++)
        put_be64(to + (i << p->entry_bits), ((p->first + done + i) << o->cluster_bits) | p->flags);
}

/* Writes a table, and zeroes up to `length` bytes. */
static int write_table(const struct create *o, struct node *file, uint8_t *buffer, uint64_t at,
                       const struct pointers *p, uint64_t length)
{
    int err = 0;

    for (uint64_t done = 0; done < length && err == 0; done += o->cluster_size) {
        fill_pointers(o, p, done >> p->entry_bits, buffer);
        err = block_write(file, buffer, min_u64(length - done, o->cluster_size),
                          (at << o->cluster_bits) + done, 0);
        coroutine_yield();
    }
    return err;
}

static int write_refcounts(const struct create *o, struct node *file, uint8_t *buffer)
{
    uint64_t per_block = block_entries(o);
    const struct pointers table = {o->blocks, o->block_count, 0, 3};
    int err =
        write_table(o, file, buffer, o->reftable, &table, o->reftable_clusters << o->cluster_bits);

    for (uint64_t k = 0; k < o->block_count && err == 0; k++) {
        memset(buffer, 0, o->cluster_size);
        for (uint64_t i = 0; i < per_block && k * per_block + i < o->end; i++)
            qcow2_refcount_set(buffer, i, o->order, 1);
        err = block_write(file, buffer, o->cluster_size, (o->blocks + k) << o->cluster_bits, 0);
        coroutine_yield();
    }
    return err;
}

static int write_tables(const struct create *o, struct node *file, uint8_t *buffer)
{
    const struct pointers l1 = {o->l2, o->l2_count, QCOW2_COPIED, 3};
    /*
     * Storage that is not encrypted yet does not read as zeroes by itself.  With extended entries
     * the subclusters stay absent.
     */
    const uint64_t zero = o->crypt.method && o->entry_bits == 3 ? QCOW2_ZERO : 0;
    const struct pointers l2 = {o->external ? 0 : o->data, o->data_clusters, QCOW2_COPIED | zero,
                                o->entry_bits};
    int err = write_refcounts(o, file, buffer);

    if (err == 0)
        err = write_table(o, file, buffer, o->l1, &l1, o->l1_entries * 8);
    if (err == 0 && o->l2_count > 0)
        err = write_table(o, file, buffer, o->l2, &l2, o->l2_count << o->cluster_bits);
    return err;
}

void qcow2_put_extension(struct byte_writer *w, uint32_t type, const void *data, size_t length)
{
    byte_writer_be32(w, type);
    byte_writer_be32(w, (uint32_t)length);
    byte_writer_put(w, data, length);
    byte_writer_zero(w, align_up(length, 8) - length);
}

void qcow2_put_feature_table(struct byte_writer *w)
{
    static const struct {
        uint8_t kind, bit;
        char name[46];
    } features[] = {
        {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},          {2, 1, "raw external data"},
    };

    _Static_assert(sizeof(features[0]) == FEATURE_ENTRY, "as in the file");
    qcow2_put_extension(w, QCOW2_EXT_FEATURE_TABLE, features, sizeof(features));
}

static void put_fixed_fields(const struct create *o, struct byte_writer *w)
{
    byte_writer_be32(w, QCOW2_MAGIC);
    byte_writer_be32(w, o->version);
    byte_writer_be64(w, 0); /* the backing file: see write_header */
    byte_writer_be32(w, 0);
    byte_writer_be32(w, o->cluster_bits);
    byte_writer_be64(w, o->size);
    byte_writer_be32(w, o->crypt.method);
    byte_writer_be32(w, (uint32_t)o->l1_entries);
    byte_writer_be64(w, o->l1_entries ? o->l1 << o->cluster_bits : 0);
    byte_writer_be64(w, o->reftable << o->cluster_bits);
    byte_writer_be32(w, (uint32_t)o->reftable_clusters);
    byte_writer_be32(w, 0); /* snapshots */
    byte_writer_be64(w, 0);
    if (o->version < 3)
        return;
    byte_writer_be64(w, (o->compression ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                            (o->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0) |
                            (o->external ? QCOW2_INCOMPAT_DATA_FILE : 0));
    byte_writer_be64(w, o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
    byte_writer_be64(w, o->data_file_raw ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0);
    byte_writer_be32(w, o->order);
    byte_writer_be32(w, HEADER_LENGTH);
    byte_writer_u8(w, o->compression ? QCOW2_COMPRESSION_ZSTD : QCOW2_COMPRESSION_DEFLATE);
    byte_writer_zero(w, 7);
}

/* The first cluster in `buffer`. -EINVAL when it does not all fit. */
static int fill_header(const struct create *o, uint8_t *buffer)
{
    struct byte_writer w = byte_writer_of(buffer, o->cluster_size);
    uint8_t where[16];

    memset(buffer, 0, o->cluster_size);
    put_fixed_fields(o, &w);
    if (o->backing_fmt)
        qcow2_put_extension(&w, QCOW2_EXT_BACKING_FORMAT, o->backing_fmt, strlen(o->backing_fmt));
    if (o->crypto_clusters > 0) {
        put_be64(where, o->crypto << o->cluster_bits);
        put_be64(where + 8, o->crypt.bytes);
        qcow2_put_extension(&w, QCOW2_EXT_CRYPTO, where, sizeof(where));
    }
    if (o->data_file)
        qcow2_put_extension(&w, QCOW2_EXT_DATA_FILE, o->data_file, strlen(o->data_file));
    /* Into the smallest of clusters it would not fit. */
    if (o->version >= 3 && o->cluster_size > 512)
        qcow2_put_feature_table(&w);
    byte_writer_zero(&w, 8); /* no more of them */
    if (o->backing_file) {
        put_be64(buffer + 8, (uint64_t)(w.data - buffer));
        put_be32(buffer + 16, (uint32_t)strlen(o->backing_file));
        byte_writer_put(&w, o->backing_file, strlen(o->backing_file));
    }
    return w.failed ? -EINVAL : 0;
}

static int write_image(const struct create *o, struct node *file, uint8_t *buffer)
{
    int err = write_tables(o, file, buffer);

    if (err == 0 && o->preallocation && o->data_clusters > 0 && !o->external)
        err = block_preallocate(file, o->data << o->cluster_bits, o->end << o->cluster_bits,
                                (enum preallocation)o->preallocation);
    if (err == 0)
        err = block_flush(file);
    if (err == 0)
        err = fill_header(o, buffer);
    if (err == 0)
        err = block_write(file, buffer, o->cluster_size, 0, 0);
    return err == 0 ? block_flush(file) : err;
}

static int write_all(struct create *o, struct node *file, uint8_t *buffer, struct error *error)
{
    int err = qcow2_crypt_create_write(&o->crypt, file, o->crypto << o->cluster_bits, error);

    if (err < 0)
        return err;
    err = write_image(o, file, buffer);
    return err < 0 ? error_set_errno(error, -err, "cannot write the new image %s", node_name(file))
                   : 0;
}

static int check_header(const struct create *o, uint8_t *buffer, struct error *error)
{
    if (fill_header(o, buffer) == 0)
        return 0;
    return error_set(error, EINVAL,
                     "the names of backing file and data file do not fit into the first "
                     "cluster of %" PRIu64 " bytes",
                     o->cluster_size);
}

/* The data file, as long as the disk; sparse unless preallocation is asked for. */
static int create_data_file(const struct create *o, const struct block_create_target *target,
                            struct error *error)
{
    enum preallocation mode = (enum preallocation)o->preallocation;
    struct node *node;
    struct block_create_target data = *target;
    char *path;
    int err = path_beside(target->filename, o->data_file, strlen(o->data_file), &path, error);

    if (err < 0)
        return err;
    data.filename = path;
    err = block_create_file(&data, &node, error);
    free(path);
    if (err < 0)
        return err;
    err = block_preallocate(node, 0, o->size, mode ? mode : PREALLOCATION_METADATA);
    if (err == 0)
        err = block_flush(node);
    if (err < 0)
        error_set_errno(error, -err, "cannot make the data file %s %" PRIu64 " bytes long",
                        node_name(node), o->size);
    node_unref(node);
    return err;
}

static int create(struct create *o, const struct block_create_target *target, struct error *error)
{
    uint8_t *buffer = buffer_get(o->cluster_size);
    struct node *file;
    int err = buffer ? check_header(o, buffer, error) : error_set(error, ENOMEM, "out of memory");

    if (err == 0 && o->external)
        err = create_data_file(o, target, error);
    if (err == 0)
        err = qcow2_crypt_create_find_secret(&o->crypt, target->context, error);
    if (err == 0)
        err = block_create_file(target, &file, error);
    if (err == 0) {
        err = write_all(o, file, buffer, error);
        node_unref(file);
    }
    if (buffer)
        buffer_put(buffer, o->cluster_size);
    return err;
}

int qcow2_create(const struct block_create_target *target, json_t *options, struct error *error)
{
    struct block_create_target hinted = *target;
    struct create o;
    int err = take_options(options, &o, error);

    if (err == 0)
        err = plan(&o, error);
    if (err == 0) {
        hinted.nocow = o.nocow;
        hinted.extent_size_hint = (uint32_t)o.extent_size_hint;
        err = create(&o, &hinted, error);
    }
    options_release(qcow2_create_options, &o);
    return err;
}

/* The worst case: every cluster of the disk in use, the tables for that, and refcounts for all. */
static void measure(const struct create *o, struct block_measure *ret)
{
    uint64_t clusters = div_round_up(o->size, o->cluster_size);
    uint64_t tables = 1 + o->l1_entries, blocks = 0, table = 0, total, last;

    tables += div_round_up(o->l1_entries * 8, o->cluster_size);
    tables += div_round_up(o->crypt.bytes, o->cluster_size);
    total = tables + clusters;
    do {
        last = total;
        blocks = div_round_up(total, block_entries(o));
        table = div_round_up(blocks * 8, o->cluster_size);
        total = tables + clusters + blocks + table;
    } while (total != last);
    ret->fully_allocated = total << o->cluster_bits;
    ret->required = ret->fully_allocated - (clusters << o->cluster_bits) +
                    min_u64(align_up(o->data_size, o->cluster_size), clusters << o->cluster_bits);
}

int qcow2_measure(json_t *options, struct block_measure *ret, struct error *error)
{
    struct create o = {.data_size = 0}, data = {.data_size = 0};
    int err = options_take(options, measure_options, &data, "format 'qcow2'", error);

    if (err == 0)
        err = take_options(options, &o, error);
    o.data_size = data.data_size;
    if (err == 0 && o.data_size > o.size)
        err = error_set(error, EINVAL, "there is more data than the disk has bytes");
    if (err == 0)
        measure(&o, ret);
    options_release(qcow2_create_options, &o);
    return err;
}
