/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Options of nodes of the driver qcow2.  QEMU's that have no meaning here are judged and let pass:
 * refcounts are exact at any moment, all metadata is always guarded, and tables are cached whole.
 */
#include "base/checked.h"
#include "blockcore/format/qcow2.h"

#include <errno.h>
#include <inttypes.h>

#define L2_CACHE_DEFAULT (32 * MIB)
#define REFCOUNT_CACHE_DEFAULT (4 * MIB)
#define CLEAN_INTERVAL_DEFAULT 600
#define UNSET UINT64_MAX

static const char *const overlap_words[] = {"none", "constant", "cached", "all", NULL};

#define IGNORED_BOOL(name, help)                                                                   \
    {                                                                                              \
        name, OPTION_BOOL, offsetof(struct qcow2, options.ignored), NULL, help                     \
    }
#define OVERLAP_CHECK(name)                                                                        \
    IGNORED_BOOL("overlap-check." name, "has no effect: metadata is always guarded")

const struct option_row qcow2_option_rows[] = {
    {"cache-size", OPTION_SIZE, offsetof(struct qcow2, options.cache_size), NULL,
     "bytes of L2 tables and refcount blocks kept in memory"},
    {"l2-cache-size", OPTION_SIZE, offsetof(struct qcow2, options.l2_cache_size), NULL,
     "bytes of L2 tables kept in memory"},
    {"refcount-cache-size", OPTION_SIZE, offsetof(struct qcow2, options.refcount_cache_size), NULL,
     "bytes of refcount blocks kept in memory"},
    {"l2-cache-entry-size", OPTION_SIZE, offsetof(struct qcow2, options.l2_cache_entry_size), NULL,
     "has no effect: L2 tables are kept whole"},
    {"cache-clean-interval", OPTION_NUMBER, offsetof(struct qcow2, options.cache_clean_interval),
     NULL, "seconds after which tables that are not used are dropped from memory, 0 for never"},
    {"lazy-refcounts", OPTION_BOOL, offsetof(struct qcow2, options.lazy_refcounts), NULL,
     "has no effect: refcounts are exact"},
    {"pass-discard-request", OPTION_BOOL, offsetof(struct qcow2, options.pass_discard), NULL,
     "with discard=unmap, give freed clusters back to the file system"},
    IGNORED_BOOL("pass-discard-snapshot", "has no effect: as pass-discard-request"),
    IGNORED_BOOL("pass-discard-other", "has no effect: as pass-discard-request"),
    {"overlap-check.template", OPTION_ENUM, offsetof(struct qcow2, options.overlap_check),
     overlap_words, "has no effect: metadata is always guarded"},
    OVERLAP_CHECK("main-header"),
    OVERLAP_CHECK("active-l1"),
    OVERLAP_CHECK("active-l2"),
    OVERLAP_CHECK("refcount-table"),
    OVERLAP_CHECK("refcount-block"),
    OVERLAP_CHECK("snapshot-table"),
    OVERLAP_CHECK("inactive-l1"),
    OVERLAP_CHECK("inactive-l2"),
    OVERLAP_CHECK("bitmap-directory"),
    {"encrypt.format", OPTION_ENUM, offsetof(struct qcow2, options.crypt_format), qcow2_crypt_words,
     "how the image is encrypted"},
    {"encrypt.key-secret", OPTION_STRING, offsetof(struct qcow2, options.key_secret), NULL,
     "id of the secret that unlocks the image"},
    {0},
};

/* A value of overlap-check itself is the template. */
static int spread_overlap_check(json_t *options, struct error *error)
{
    json_t *value = json_object_get(options, "overlap-check"), *tree;

    if (!value || json_is_object(value))
        return 0;
    tree = json_object();
    if (!tree || json_object_set(tree, "template", value) < 0 ||
        json_object_set(options, "overlap-check", tree) < 0) {
        json_decref(tree);
        return error_set(error, ENOMEM, "out of memory");
    }
    json_decref(tree);
    return 0;
}

/* The sizes of both caches, from one of them, their sum, or nothing. */
static int share_cache_size(struct qcow2_options *o, struct error *error)
{
    uint64_t total = o->cache_size, *l2 = &o->l2_cache_size, *refcount = &o->refcount_cache_size;

    if (total != UNSET && *l2 != UNSET && *refcount != UNSET)
        return error_set(error, EINVAL,
                         "cache-size, l2-cache-size and refcount-cache-size may not be set at the "
                         "same time: two of them give the third");
    if (total != UNSET && *l2 != UNSET && *l2 > total)
        return error_set(error, EINVAL, "l2-cache-size may not exceed cache-size");
    if (total != UNSET && *refcount != UNSET && *refcount > total)
        return error_set(error, EINVAL, "refcount-cache-size may not exceed cache-size");
    if (*refcount == UNSET && total == UNSET)
        *refcount = REFCOUNT_CACHE_DEFAULT;
    else if (*refcount == UNSET)
        *refcount = *l2 != UNSET ? total - *l2 : min_u64(total / 8, REFCOUNT_CACHE_DEFAULT);
    if (*l2 == UNSET)
        *l2 = total != UNSET ? total - *refcount : L2_CACHE_DEFAULT;
    return 0;
}

int qcow2_options_take(struct qcow2 *q, json_t *options, struct error *error)
{
    int err = spread_overlap_check(options, error);

    q->options = (struct qcow2_options){
        .cache_size = UNSET,
        .l2_cache_size = UNSET,
        .refcount_cache_size = UNSET,
        .l2_cache_entry_size = UNSET,
        .cache_clean_interval = CLEAN_INTERVAL_DEFAULT,
        .pass_discard = true,
        .crypt_format = -1,
    };
    if (err == 0)
        err = options_take(options, qcow2_option_rows, q, "driver 'qcow2'", error);
    return err == 0 ? share_cache_size(&q->options, error) : err;
}

int qcow2_options_judge(const struct qcow2 *q, struct error *error)
{
    uint64_t entry = q->options.l2_cache_entry_size;

    if (entry != UNSET && (!is_power_of_two(entry) || entry < 512 || entry > q->cluster_size))
        return error_set(error, EINVAL,
                         "l2-cache-entry-size is %" PRIu64 ", it must be a power of two from 512 "
                         "to the cluster size (%" PRIu64 ")",
                         entry, q->cluster_size);
    if (q->options.lazy_refcounts && q->header.version < 3)
        return error_set(error, EINVAL, "lazy-refcounts needs an image of compatibility level 1.1");
    return 0;
}
