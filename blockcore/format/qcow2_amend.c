/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Other features of an image: what can be changed, and in which order.
 *
 * Everything is judged first.  Then: version 3, which can hold all, if it is asked for; the name of
 * the data file; the width of refcounts; flags; the size; and at last version 2, if that is asked
 * for.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2.h"
#include "blockcore/resize.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define AT_COMPATIBLE 80
#define BACKING_NAME_MAX 1023
#define BACKING_FORMAT_MAX 15

enum { COMPAT_0_10, COMPAT_V2, COMPAT_1_1, COMPAT_V3 };

struct amend {
    int compat;
    bool lazy_refcounts, data_file_raw;
    uint64_t refcount_bits, size; /* size: UINT64_MAX: as it is */
    char *backing_file, *backing_fmt, *data_file;

    struct qcow2 *q;
    unsigned version;
    const struct block_progress *progress;
};

static const char *const compat_words[] = {"0.10", "v2", "1.1", "v3", NULL};

const struct option_row qcow2_amend_options[] = {
    {"compat", OPTION_ENUM, offsetof(struct amend, compat), compat_words,
     "version of the format: 0.10 (2) or 1.1 (3)"},
    {"lazy_refcounts", OPTION_BOOL, offsetof(struct amend, lazy_refcounts), NULL,
     "let refcounts lag behind"},
    {"refcount_bits", OPTION_NUMBER, offsetof(struct amend, refcount_bits), NULL,
     "width of a refcount: 1, 2, 4, 8, 16, 32 or 64"},
    {"size", OPTION_SIZE, offsetof(struct amend, size), NULL, "bytes of the disk"},
    {"data_file", OPTION_STRING, offsetof(struct amend, data_file), NULL,
     "file that holds the data"},
    {"data_file_raw", OPTION_BOOL, offsetof(struct amend, data_file_raw), NULL,
     "keep the data file readable as a raw image"},
    {"backing_file", OPTION_STRING, offsetof(struct amend, backing_file), NULL,
     "is changed by rebasing the image"},
    {"backing_fmt", OPTION_STRING, offsetof(struct amend, backing_fmt), NULL,
     "is changed by rebasing the image"},
    {0},
};

static int refuse_creation_options(json_t *options, struct error *error)
{
    const char *key;
    json_t *value;

    json_object_foreach(options, key, value)
    {
        for (const struct option_row *row = qcow2_create_options; row->name; row++) {
            if (strcmp(row->name, key) == 0)
                return error_set(error, EINVAL,
                                 "the option '%s' can only be given when an image is created", key);
        }
    }
    return options_finish(options, qcow2_amend_options, "amending format 'qcow2'", error);
}

static int judge_files(const struct amend *a, struct error *error)
{
    if (a->backing_file || a->backing_fmt)
        return error_set(error, EINVAL,
                         "the backing file of an image is not amended: rebase the image");
    if (a->data_file && !qcow2_external_data(&a->q->header))
        return error_set(error, EINVAL,
                         "data_file can only be changed for images that have an external data "
                         "file, which %s has not",
                         node_name(a->q->node));
    if (a->data_file && a->data_file[0] == 0)
        return error_set(error, EINVAL, "the name of the data file is empty");
    if (a->data_file_raw && !a->q->raw_data)
        return error_set(error, EINVAL,
                         "data_file_raw cannot be switched on for an image that exists");
    return 0;
}

static int judge_numbers(const struct amend *a, bool lazy_given, struct error *error)
{
    if (!is_power_of_two(a->refcount_bits) || a->refcount_bits > 64)
        return error_set(error, EINVAL,
                         "refcount_bits is %" PRIu64 ", it must be a power of two from 1 to 64",
                         a->refcount_bits);
    if (a->version >= 3)
        return 0;
    if (a->refcount_bits != 16)
        return error_set(error, EINVAL,
                         "a refcount width other than 16 bits needs compat=1.1 (or, for "
                         "compat=0.10, say refcount_bits=16)");
    if (lazy_given && a->lazy_refcounts)
        return error_set(error, EINVAL, "lazy_refcounts needs compat=1.1");
    return 0;
}

/* What version 2 cannot hold. */
static int judge_downgrade(const struct qcow2 *q, struct error *error)
{
    uint64_t features = q->header.incompatible & ~QCOW2_INCOMPAT_DIRTY;
    const char *what = features & QCOW2_INCOMPAT_DATA_FILE     ? "an external data file"
                       : features & QCOW2_INCOMPAT_EXTENDED_L2 ? "extended L2 entries"
                       : features & QCOW2_INCOMPAT_COMPRESSION ? "zstd as its compression type"
                       : features                              ? "features of version 3"
                       : q->header.has_bitmaps                 ? "persistent dirty bitmaps"
                       : q->node->encrypted                    ? "encrypted data"
                                                               : NULL;

    if (what)
        return error_set(error, ENOTSUP, "%s has %s, which compat=0.10 does not allow",
                         node_name(q->node), what);
    if (q->header.snapshots > 0)
        return error_set(error, ENOTSUP,
                         "%s has internal snapshots, which prevent compat=0.10: delete them first",
                         node_name(q->node));
    return 0;
}

/* Version 3 wants to know how large the disk of each snapshot is. */
static int judge_upgrade(struct qcow2 *q, struct error *error)
{
    uint64_t offset = q->header.snapshots_offset;

    for (uint32_t i = 0; i < q->header.snapshots; i++) {
        uint8_t entry[QCOW2_SNAPSHOT_FIXED];
        int err = block_read(q->file, entry, sizeof(entry), offset);
        uint32_t extra = get_be32(entry + 36);

        if (err < 0)
            return error_set_errno(error, -err, "cannot read the snapshot table");
        if (extra < 16)
            return error_set(error, ENOTSUP,
                             "snapshot %" PRIu32 " of %s does not say how large its disk is, which "
                             "compat=1.1 needs: delete it first",
                             i, node_name(q->node));
        offset += align_up((uint64_t)QCOW2_SNAPSHOT_FIXED + extra + get_be16(entry + 12) +
                               get_be16(entry + 14),
                           8);
    }
    return 0;
}

static int judge(struct amend *a, bool lazy_given, struct error *error)
{
    struct qcow2 *q = a->q;
    int err = judge_files(a, error);

    if (err == 0)
        err = judge_numbers(a, lazy_given, error);
    if (err == 0 && a->version < q->header.version)
        err = judge_downgrade(q, error);
    if (err == 0 && a->version > q->header.version)
        err = judge_upgrade(q, error);
    if (err == 0 && q->corrupt)
        err = error_set(error, EIO, "%s is broken: repair it first", node_name(q->node));
    return err;
}

/* The backing file's name and format, as they are; both are allocated. */
static int read_backing(struct qcow2 *q, char **ret_name, char **ret_format, struct error *error)
{
    const struct qcow2_piece pieces[] = {q->header.backing_name, q->header.backing_format};
    char **rets[] = {ret_name, ret_format};

    for (size_t i = 0; i < ARRAY_SIZE(pieces); i++) {
        int err;

        if (pieces[i].offset == 0 || q->header.backing_name.offset == 0)
            continue;
        *rets[i] = calloc(pieces[i].length + 1, 1);
        if (!*rets[i])
            return error_set(error, ENOMEM, "out of memory");
        err = block_read(q->file, *rets[i], pieces[i].length, pieces[i].offset);
        if (err < 0)
            return error_set_errno(error, -err, "cannot read the name of the backing file");
    }
    return 0;
}

/* Writes the first cluster anew, with the backing file as it is. What was written before is
 * durable. */
static int write_first(struct qcow2 *q, struct qcow2_first *first, struct error *error)
{
    char *name = NULL, *format = NULL;
    int err = qcow2_write_back(q);

    if (err == 0)
        err = block_flush(q->file);
    if (err < 0)
        error_set_errno(error, -err, "cannot write %s", node_name(q->node));
    if (err == 0)
        err = read_backing(q, &name, &format, error);
    first->backing_name = name;
    first->backing_format = format;
    if (err == 0)
        err = qcow2_first_write(q, first, error);
    free(name);
    free(format);
    return err;
}

static int set_version(struct qcow2 *q, unsigned version, struct error *error)
{
    struct qcow2_first first = {.version = version};
    int err = write_first(q, &first, error);

    if (err == 0 && version < 3)
        q->node->reuses_storage = true; /* as qcow2_open says */
    return err;
}

static int set_data_file(struct qcow2 *q, const char *name, struct error *error)
{
    struct qcow2_first first = qcow2_first_as_is(q);

    first.data_file = name;
    return write_first(q, &first, error);
}

static int set_flags(struct amend *a, struct error *error)
{
    struct qcow2 *q = a->q;
    uint64_t compatible = q->header.compatible & ~QCOW2_COMPAT_LAZY_REFCOUNTS;
    int err = 0;

    if (q->raw_data && !a->data_file_raw) {
        err = qcow2_patch_header(q, QCOW2_AT_AUTOCLEAR,
                                 q->header.autoclear & ~QCOW2_AUTOCLEAR_DATA_FILE_RAW);
        if (err < 0)
            return error_set_errno(error, -err, "cannot write the header of %s",
                                   node_name(q->node));
        q->header.autoclear &= ~QCOW2_AUTOCLEAR_DATA_FILE_RAW;
        q->raw_data = false;
    }
    if (a->lazy_refcounts)
        compatible |= QCOW2_COMPAT_LAZY_REFCOUNTS;
    if (compatible == q->header.compatible || a->version < 3)
        return 0;
    err = qcow2_patch_header(q, AT_COMPATIBLE, compatible);
    if (err < 0)
        return error_set_errno(error, -err, "cannot write the header of %s", node_name(q->node));
    q->header.compatible = compatible;
    return 0;
}

/* All but the size and version 2. */
static int raise(struct amend *a, struct error *error)
{
    struct qcow2 *q = a->q;
    unsigned order = (unsigned)__builtin_ctzll(a->refcount_bits);
    int err = qcow2_begin_change(q);

    if (err < 0)
        return error_set_errno(error, -err, "cannot change %s", node_name(q->node));
    if (a->version > q->header.version)
        err = set_version(q, a->version, error);
    if (err == 0 && a->data_file)
        err = set_data_file(q, a->data_file, error);
    if (err == 0 && order != q->header.refcount_order)
        err = qcow2_set_refcount_order(q, order, a->progress, error);
    return err == 0 ? set_flags(a, error) : err;
}

static int lower(struct amend *a, struct error *error)
{
    struct qcow2 *q = a->q;
    int err;

    if (a->version >= q->header.version)
        return 0;
    err = qcow2_expand_zeroes(q, a->progress, error);
    if (err < 0)
        return err;
    qcow2_lock_all(q);
    err = set_version(q, a->version, error);
    qcow2_unlock_all(q);
    return err;
}

static int run(struct amend *a, struct error *error)
{
    const struct block_resize resize = {.size = a->size, .shrink = true};
    struct node *node = a->q->node;
    struct range_lock lock;
    int err;

    range_lock_exclusive(&node->locks, &lock, 0, OFFSET_MAX);
    qcow2_lock_all(a->q);
    err = raise(a, error);
    qcow2_unlock_all(a->q);
    range_unlock(&node->locks, &lock);
    if (err == 0 && a->size != UINT64_MAX)
        err = block_resize(node, &resize, error);
    if (err < 0)
        return err;
    range_lock_exclusive(&node->locks, &lock, 0, OFFSET_MAX);
    err = lower(a, error);
    range_unlock(&node->locks, &lock);
    return err;
}

int qcow2_amend(struct node *node, json_t *options, const struct block_progress *progress,
                struct error *error)
{
    static const struct block_progress nobody;
    struct qcow2 *q = node->state;
    bool lazy_given = json_object_get(options, "lazy_refcounts");
    struct amend a = {
        .compat = q->header.version < 3 ? COMPAT_0_10 : COMPAT_1_1,
        .lazy_refcounts = q->header.compatible & QCOW2_COMPAT_LAZY_REFCOUNTS,
        .data_file_raw = q->raw_data,
        .refcount_bits = UINT64_C(1) << q->header.refcount_order,
        .size = UINT64_MAX,
        .q = q,
        .progress = progress ? progress : &nobody,
    };
    int err = options_take(options, qcow2_amend_options, &a, "amending format 'qcow2'", error);

    a.version = a.compat < COMPAT_1_1 ? 2 : 3;
    if (err == 0)
        err = refuse_creation_options(options, error);
    if (err == 0)
        err = judge(&a, lazy_given, error);
    if (err == 0)
        err = run(&a, error);
    options_release(qcow2_amend_options, &a);
    return err;
}

int qcow2_change_backing(struct node *node, const char *name, const char *format,
                         struct error *error)
{
    struct qcow2 *q = node->state;
    struct qcow2_first first;
    int err;

    if (name && (name[0] == 0 || strlen(name) > BACKING_NAME_MAX))
        return error_set(error, EINVAL, "the name of a backing file has 1 to 1023 bytes");
    if (format && (format[0] == 0 || strlen(format) > BACKING_FORMAT_MAX))
        return error_set(error, EINVAL, "the format of a backing file has 1 to 15 bytes");
    qcow2_lock_all(q);
    err = qcow2_begin_change(q);
    if (err < 0)
        error_set_errno(error, -err, "cannot change %s", node_name(node));
    first = qcow2_first_as_is(q);
    first.backing_name = name;
    first.backing_format = format;
    if (err == 0)
        err = qcow2_first_write(q, &first, error);
    qcow2_unlock_all(q);
    return err;
}
