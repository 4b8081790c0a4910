/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The qcow2 driver, private to its files.
 *
 *     qcow2.c           driver table, header patches, what to do about broken images
 *     qcow2_flush.c     writing metadata back, in order
 *     qcow2_open.c      opening and closing
 *     qcow2_map.c       map and decode
 *     qcow2_alloc.c     allocate, commit, abort
 *     qcow2_compress.c  writing compressed clusters
 *     qcow2_zero.c      zero and discard
 *     qcow2_l2.c        L2 tables for change: private to the active L1 table, or new
 *     qcow2_refcount.c  allocation and freeing of clusters, deferred frees
 *     qcow2_reftable.c  the refcount table: loading, new blocks, growth
 *     qcow2_resize.c    another size: growth of the L1 table, shrinking
 *     qcow2_amend*.c    other features: version, width of refcounts, zero clusters
 *     qcow2_first.c     the first cluster, written anew
 *     qcow2_create.c    new images
 *     qcow2_check*.c    check and repair (see qcow2_check.h)
 *     qcow2_crypt.c     encryption: keys, and how extents are encrypted
 *     qcow2_snapshot*.c internal snapshots (see qcow2_snapshot.h)
 *     qcow2_bitmap*.c   dirty bitmaps (see qcow2_bitmap.h)
 *     qcow2_guard*.c    which clusters hold metadata: data must never be written there
 *
 * Subclusters: the code sees 32 of them in every cluster.  Where L2 entries are extended, each is
 * data, zero or absent by itself, and the core copies on write by them; with standard entries they
 * are all alike.  Storage is given to whole clusters.
 *
 * Guest data is in `file`, or in an external data file, where each byte has the offset that it has
 * on the disk: then there is nothing to allocate, data clusters have no refcount, and what is
 * discarded can be discarded there at once.
 *
 * Order on disk, so that a crash leaks clusters at worst:
 *   1. refcounts that went up, and guest data       (refcount cache and data file, before 2)
 *   2. L2 tables                                    (L2 cache; 1 is durable)
 *   3. L1 entries                                   (by flush; 2 is durable)
 *   4. refcounts that went down                     (by flush; 3 is durable)
 * A cluster that lost a reference waits in `pending` until 3 is durable.  So no refcount on disk is
 * ever below the number of references on disk, and no freed cluster is given out while something
 * durable still points to it.
 *
 * Locks: `lock` is held over every change of metadata and over everything that may write tables
 * back (a table that is not cached may push a dirty one out).  Data I/O happens without it, and so
 * do mapping with tables that are cached, and the syncs of a flush.  `flush.lock`, taken before it,
 * is held by a flush, and by every change of metadata that is no allocation, zeroing or discard.
 */
#ifndef EVNBD_BLOCKCORE_FORMAT_QCOW2_H
#define EVNBD_BLOCKCORE_FORMAT_QCOW2_H

#include "blockcore/amend.h"
#include "blockcore/block.h"
#include "blockcore/filter.h"
#include "blockcore/format/qcow2_disk.h"
#include "blockcore/luks.h"
#include "blockcore/table_cache.h"

/* Runs of clusters to be freed at most, before they must be freed. */
#define QCOW2_PENDING_MAX 4096

/* What a host cluster is used for by metadata. */
enum guard_kind {
    GUARD_NONE,
    GUARD_L2,
    GUARD_REFBLOCK,
    GUARD_FIXED,    /* header, L1 or refcount table, snapshots, bitmaps */
    GUARD_CONFLICT, /* more than one of them: the image is broken there */
};

struct guard_range {
    uint64_t offset, end;
};

struct qcow2_guard {
    uint64_t *slots; /* hash set: cluster index << 3 | kind; 0: free */
    size_t slots_max, slots_used;
    struct guard_range *ranges; /* snapshots, LUKS header; sorted, disjoint */
    size_t ranges_count;
};

/* A run of host clusters that lost one reference each. */
struct pending_run {
    uint64_t first, count;
};

struct qcow2_pending {
    struct pending_run *runs;
    size_t count, max;
    size_t frozen; /* the first ones, which the flush under way is going to free */
};

/* Rounds of flushing (see qcow2_flush.c). */
struct qcow2_flush {
    struct co_mutex lock;
    uint64_t taken, done; /* rounds that have taken over what was dirty; the last that succeeded */
};

struct qcow2_options {
    uint64_t l2_cache_size, refcount_cache_size; /* bytes */
    uint64_t cache_size, l2_cache_entry_size;    /* bytes; UINT64_MAX: not given */
    bool lazy_refcounts;
    bool pass_discard;             /* what is freed goes back to the file system, if discards do */
    bool ignored;                  /* values that mean nothing here */
    int overlap_check;             /* the same */
    uint64_t cache_clean_interval; /* seconds; 0: never */
    int crypt_format;              /* -1: not given */
    char *key_secret;
};

struct qcow2 {
    struct node *node, *file;
    struct node *data; /* has the guest data: `file`, or an external data file */
    struct qcow2_options options;
    struct qcow2_header header; /* as it is on disk now */
    unsigned cluster_bits;
    unsigned entry_bits;    /* log2 of the bytes of an L2 entry */
    unsigned l2_bits;       /* log2 of the entries of an L2 table */
    unsigned refblock_bits; /* log2 of the entries of a refcount block */
    uint64_t cluster_size;
    struct cipher *cipher; /* NULL: not encrypted, or opened without a key */
    bool raw_data;         /* the data file is to be a raw image of the disk by itself */

    struct co_mutex lock;
    uint64_t *l1;      /* host order */
    uint8_t *l1_dirty; /* one a 512-byte sector of the L1 table */
    bool l1_any_dirty;
    struct table_cache *l2_cache;

    /* Only when the node is writable. */
    struct table_cache *refcount_cache;
    uint64_t *reftable; /* host order */
    uint64_t reftable_entries;
    uint64_t cluster_limit; /* host clusters that may be allocated */
    uint64_t hint;          /* no cluster below is free */
    uint64_t stale_end;  /* past the file's known end may be bytes up to here that are not zero */
    uint64_t packed_end; /* where the last compressed cluster ends, and the next begins; 0: none */
    struct qcow2_guard guard;
    struct qcow2_pending pending;
    struct qcow2_flush flush;
    struct qcow2_bitmaps *bitmaps; /* NULL: none */

    uint64_t snapshots_length; /* bytes of the snapshot table */
    bool at_snapshot;          /* read-only: the header's disk is that of a snapshot */

    /* The header names no autoclear feature that we do not know, and bitmaps are marked in_use. */
    bool write_ready;
    bool l1_room;       /* the whole L1 table has room on the disk */
    bool corrupt;       /* changes are refused */
    bool broken_logged; /* something broken was logged; the rest is not */
};

/* qcow2_open.c */
int qcow2_open(struct node *node, struct node_open *open, struct error *error);
/* Repairs an image that was not closed properly, and only then reads its tables. */
int qcow2_opened(struct node *node, struct error *error);
void qcow2_close(struct node *node);

/* qcow2.c */
/* The duties before any change; both locks are held. 0 or negative errno. */
int qcow2_begin_change(struct qcow2 *q);
/*
 * The same for allocating, zeroing and discarding: takes the lock alone, which is held also when
 * this fails.
 */
int qcow2_lock_to_change(struct qcow2 *q);
/* Writes a u64 of the header, durably; the lock is held. */
int qcow2_patch_header(struct qcow2 *q, uint64_t at, uint64_t value);
void qcow2_l1_set(struct qcow2 *q, uint64_t l1_index, uint64_t value);
/*
 * Switches to something new: changes fields of the header or an entry of the refcount table with
 * one write within a sector, which is all or nothing when the power fails.  When it fails, it is
 * not known what is in force: the image takes no more changes until it is opened again.
 */
int qcow2_switch(struct qcow2 *q, uint64_t at, const void *data, size_t length);
/*
 * The image contradicts itself where it was to be changed: logs it, marks the image corrupt,
 * durably, and refuses all changes from now on.  The lock is held.  Returns -EIO.
 */
__attribute__((format(printf, 2, 3))) int qcow2_set_corrupt(struct qcow2 *q, const char *format,
                                                            ...);
/*
 * The same where it was to be read, without the lock.  An image that is not writable is only talked
 * about.  Returns -EIO, or -EAGAIN on the loop's own stack, where the image cannot be marked.
 */
__attribute__((format(printf, 2, 3))) int qcow2_report_broken(struct qcow2 *q, const char *format,
                                                              ...);
/* Logs what is wrong with the image or its file, once per open. Returns -EIO. */
__attribute__((format(printf, 2, 3))) int qcow2_log_once(struct qcow2 *q, const char *format, ...);

/* qcow2_flush.c */
#define QCOW2_L1_SECTOR_ENTRIES (512 / 8)
/* Takes both locks, and lets them go: no flush is under way in between. */
void qcow2_lock_all(struct qcow2 *q);
void qcow2_unlock_all(struct qcow2 *q);
int qcow2_flush(struct node *node);
/* Writes all dirty metadata in order and frees what is pending; both locks are held. */
int qcow2_write_back(struct qcow2 *q);
/* Writes all of an L1 table that has not been changed since it was read; the lock is held. */
int qcow2_l1_rewrite(struct qcow2 *q);

/* qcow2_crypt.c */
extern const char *const qcow2_crypt_words[];
/* Unlocks the image if it is encrypted and data is wanted. */
int qcow2_crypt_open(struct qcow2 *q, struct node_open *open, struct error *error);
/* Fills in how the data of an extent, of the guest from `offset` on, is encrypted. */
void qcow2_crypt_extent(const struct qcow2 *q, uint64_t offset, struct extent *e);
void qcow2_crypt_allocation(const struct qcow2 *q, struct allocation *a);
int qcow2_luks_area(struct node *node, struct luks_area *ret, const char **ret_key_secret);

/* How to encrypt a new image: the first fields are options, the rest follows from them. */
struct qcow2_crypt_create {
    bool encryption; /* the old name of encrypt.format=aes */
    int format;
    struct luks_options luks;
    uint32_t method; /* QCOW2_CRYPT_* */
    struct luks_header header;
    uint64_t bytes; /* LUKS: of the header and its key material */
    const struct secret *secret;
};

void qcow2_crypt_create_init(struct qcow2_crypt_create *c);
int qcow2_crypt_create_judge(struct qcow2_crypt_create *c, struct error *error);
int qcow2_crypt_create_find_secret(struct qcow2_crypt_create *c,
                                   const struct block_context *context, struct error *error);
/* Writes the LUKS header, if there is to be one, at `offset` of the file. */
int qcow2_crypt_create_write(struct qcow2_crypt_create *c, struct node *file, uint64_t offset,
                             struct error *error);

/* qcow2_bitmap_load.c, qcow2_bitmap.c */
/*
 * Reads the directory; header, L1 and refcount table are known.  A directory that cannot be used is
 * an error when the image is writable, else a warning.
 */
int qcow2_bitmaps_open(struct qcow2 *q, struct error *error);
/* Saves what was recorded, and frees; errors are logged. All else has been flushed. */
void qcow2_bitmaps_close(struct qcow2 *q);
/* Marks the enabled bitmaps in_use, durably: from now on they record. The lock is held. */
int qcow2_bitmaps_begin(struct qcow2 *q);
/* Lets the core tell of changes if a bitmap records them, and only then. */
void qcow2_bitmaps_update_tracking(struct qcow2 *q);
/* The range is dirty now; after qcow2_begin_change, under the range lock. Never waits. */
void qcow2_bitmaps_mark(struct qcow2 *q, uint64_t offset, uint64_t length);
/* None can be used: what is open is not the disk that they are about. */
void qcow2_bitmaps_disown(struct qcow2 *q);
/* Duties before the guest range changes (see struct driver): without the lock. */
int qcow2_track(struct node *node, uint64_t offset, uint64_t length);
struct block_bitmap *qcow2_bitmap_get(struct node *node, size_t index);
int qcow2_bitmap_add(struct node *node, const char *name, uint64_t granularity, bool enabled,
                     struct error *error);
static inline bool qcow2_has_bitmaps(const struct qcow2 *q)
{
    return q->header.has_bitmaps;
}

/* qcow2_bitmap_resize.c */
/* Before another size of the disk: whether bitmaps allow it. */
int qcow2_bitmaps_judge_size(const struct qcow2 *q, uint64_t size, struct error *error);
/* Marks all that can be used in_use, durably; both locks are held. */
int qcow2_bitmaps_claim(struct qcow2 *q);
/* The header has another size: so do they from now on. What fails is logged. */
void qcow2_bitmaps_resize(struct qcow2 *q);

/* qcow2_first.c */
/* What the first cluster is to say; all else in it stays. The names of features are added. */
struct qcow2_first {
    uint32_t version;
    const char *backing_name;   /* NULL: there is no backing file */
    const char *backing_format; /* NULL: it is not recorded */
    const char *data_file;      /* NULL: the recorded name stays */
    uint64_t incompatible, compatible, autoclear;
};
/* What the header says now, without a backing file. */
static inline struct qcow2_first qcow2_first_as_is(const struct qcow2 *q)
{
    return (struct qcow2_first){
        .version = q->header.version,
        .incompatible = q->header.incompatible,
        .compatible = q->header.compatible,
        .autoclear = q->header.autoclear,
    };
}
/*
 * Rewrites the first cluster, durably, and q->header with it; the lock is held.  Cut off, the image
 * has the old header or the new one.
 */
int qcow2_first_write(struct qcow2 *q, const struct qcow2_first *first, struct error *error);

/* qcow2_options.c */
extern const struct option_row qcow2_option_rows[];
/* Takes the node's options; q->options is released by the caller, also on failure. */
int qcow2_options_take(struct qcow2 *q, json_t *options, struct error *error);
/* Refuses what does not go with the image, whose header is known. */
int qcow2_options_judge(const struct qcow2 *q, struct error *error);

/* qcow2_amend.c */
extern const struct option_row qcow2_amend_options[];
int qcow2_amend(struct node *node, json_t *options, const struct block_progress *progress,
                struct error *error);
int qcow2_change_backing(struct node *node, const char *name, const char *format,
                         struct error *error);

/* qcow2_amend_refcounts.c */
/*
 * Rewrites all refcounts with 1 << order bits each; the whole disk is locked, and q->lock is held.
 * -ERANGE: one of them does not fit.
 */
int qcow2_set_refcount_order(struct qcow2 *q, unsigned order, const struct block_progress *progress,
                             struct error *error);

/* qcow2_amend_zero.c */
/*
 * Makes the image do without the flag for clusters that read as zeroes; the whole disk is locked,
 * and there are no snapshots.
 */
int qcow2_expand_zeroes(struct qcow2 *q, const struct block_progress *progress,
                        struct error *error);

/* qcow2_check.c */
int qcow2_check(struct node *node, struct block_check *check, struct error *error);

/* qcow2_resize.c */
/* Makes the L1 table have at least so many entries; the lock is held. */
int qcow2_l1_grow(struct qcow2 *q, uint64_t entries);
int qcow2_resize_prepare(struct node *node, uint64_t size, struct error *error);
int qcow2_resize(struct node *node, uint64_t size, struct error *error);
void qcow2_resize_finish(struct node *node);

/* qcow2_create.c */
extern const struct option_row qcow2_create_options[];
/* Adds a header extension. */
void qcow2_put_extension(struct byte_writer *w, uint32_t type, const void *data, size_t length);
/* Adds the one that says what other programs are to call features. */
void qcow2_put_feature_table(struct byte_writer *w);
int qcow2_create(const struct block_create_target *target, json_t *options, struct error *error);
int qcow2_measure(json_t *options, struct block_measure *ret, struct error *error);

/* qcow2_snapshot.c */
extern const struct block_snapshot_ops qcow2_snapshot_ops;

/* qcow2_map.c */
int qcow2_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret);
int qcow2_decode(struct node *node, const struct extent *extent, void *out);

/* qcow2_alloc.c */
int qcow2_allocate(struct node *node, uint64_t offset, uint64_t length, struct allocation *ret);
int qcow2_commit(struct node *node, struct allocation *allocation);
void qcow2_abort(struct node *node, struct allocation *allocation);

/* qcow2_compress.c */
int qcow2_write_compressed(struct node *node, uint64_t offset, const void *data);

/* qcow2_zero.c */
int qcow2_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags);
int qcow2_discard(struct node *node, uint64_t offset, uint64_t length);

/* qcow2_l2.c; the lock is held. */
/* The table at `offset`, pinned; one that is beyond the end of the file marks the image corrupt. */
int qcow2_l2_load(struct qcow2 *q, uint64_t offset, struct table **ret);
/* The L2 table for reading, pinned; *ret is NULL when there is none. */
int qcow2_l2_get(struct qcow2 *q, uint64_t l1_index, struct table **ret);
/* The L2 table for change at once, pinned: made if there is none, copied if it is shared. */
int qcow2_l2_get_private(struct qcow2 *q, uint64_t l1_index, struct table **ret);
/*
 * Decodes the entry at `at`, of the cluster at `guest_offset`, that is to be changed.  *ret is
 * sound, and the storage it names is not metadata's; else the image is marked corrupt and -EIO
 * returned.
 */
int qcow2_l2_decode_for_change(struct qcow2 *q, uint64_t guest_offset, const uint8_t *at,
                               struct qcow2_entry *ret);
/* Decodes; an entry whose place in an external data file is wrong is BROKEN, too. Without lock. */
struct qcow2_entry qcow2_l2_decode_at(const struct qcow2 *q, uint64_t guest_offset,
                                      const uint8_t *at);
#define QCOW2_L2_TEXT_MAX 48
/* An entry for messages, in hexadecimal; returns `out`. */
const char *qcow2_l2_text(const struct qcow2 *q, const uint8_t *at, char out[QCOW2_L2_TEXT_MAX]);

/* qcow2_refcount.c; the lock is held. */
/*
 * Takes a run of 1 to `wanted` free clusters: their refcounts are 1.  Gives the first and their
 * number.
 */
int qcow2_clusters_alloc(struct qcow2 *q, uint64_t wanted, uint64_t *ret_first,
                         uint64_t *ret_count);
/* As qcow2_clusters_alloc, for all of them in one run. */
int qcow2_clusters_alloc_run(struct qcow2 *q, uint64_t clusters, uint64_t *ret_first);
/*
 * Raises the refcounts of clusters in use by one: of all, or of none.  -EOVERFLOW: one of them is
 * as high as it can be.
 */
int qcow2_refcounts_raise(struct qcow2 *q, uint64_t first, uint64_t count);
/* Gives back clusters that nothing has ever pointed to. What cannot be given back leaks. */
void qcow2_clusters_unalloc(struct qcow2 *q, uint64_t first, uint64_t count);
int qcow2_refcount_read(struct qcow2 *q, uint64_t cluster, uint64_t *ret);
/* Makes room for `runs` calls of qcow2_pending_add. 0 or -ENOMEM. */
int qcow2_pending_reserve(struct qcow2 *q, size_t runs);
/* Lowers refcounts by one once all that was changed before is durable. */
void qcow2_pending_add(struct qcow2 *q, uint64_t first, uint64_t count);
/* As qcow2_pending_add, for the storage that an entry names. At most one run. */
void qcow2_pending_add_entry(struct qcow2 *q, const struct qcow2_entry *entry);
/* Lowers the refcounts of the first runs, those that are frozen; what they wait for is durable. */
int qcow2_pending_apply(struct qcow2 *q);

/* qcow2_reftable.c; the lock is held, but for load. */
int qcow2_reftable_load(struct qcow2 *q, struct error *error);
/* The refcount block number `index`, pinned. *ret is NULL when there is none. */
int qcow2_refblock_get(struct qcow2 *q, uint64_t index, struct table **ret);
/*
 * Makes the block of the range that q->hint is in, which has none; may make the table larger.
 * q->hint moves on, perhaps into another range.
 */
int qcow2_refblock_make(struct qcow2 *q);
/*
 * Takes a run of any length, in ranges that had no blocks: behind everything that is described.
 */
int qcow2_reftable_take_region(struct qcow2 *q, uint64_t clusters, uint64_t *ret_first);
/* Gives back the block of a range in which nothing is in use, but perhaps the block itself. */
int qcow2_refblock_drop(struct qcow2 *q, uint64_t index);

/* qcow2_guard_fill.c */
/*
 * Storage of the snapshot table, the snapshots' L1 tables and the LUKS header; the table is
 * checked. *ret is allocated, also on failure.
 */
int qcow2_guard_collect(struct qcow2 *q, struct guard_range **ret, size_t *ret_count,
                        struct error *error);
/* Adds the L2 tables of the snapshots to the guard, which knows the active ones. */
int qcow2_guard_add_snapshots(struct qcow2 *q, struct error *error);
/*
 * Builds the guard anew after the tables that the header names have changed; the lock is held.
 * When it fails the image takes no more changes.
 */
int qcow2_guard_reload(struct qcow2 *q, struct error *error);

/* qcow2_guard.c */
/* Builds the guard from header, L1 and refcount table, and given ranges (taken, also on failure).
 */
int qcow2_guard_init(struct qcow2 *q, struct guard_range *ranges, size_t count,
                     struct error *error);
/* The same again, once they have changed; what was added for bitmaps stays. */
int qcow2_guard_renew(struct qcow2 *q, struct guard_range *ranges, size_t count,
                      struct error *error);
void qcow2_guard_fini(struct qcow2 *q);
/* Makes room for `clusters` calls of qcow2_guard_add. 0 or -ENOMEM. */
int qcow2_guard_reserve(struct qcow2 *q, size_t clusters);
void qcow2_guard_add(struct qcow2 *q, uint64_t offset, enum guard_kind kind);
/* The cluster is no metadata any more. What more than one thing uses stays as it is. */
void qcow2_guard_remove(struct qcow2 *q, uint64_t offset);
enum guard_kind qcow2_guard_find(const struct qcow2 *q, uint64_t offset);
/* First cluster of the range that metadata uses, or first + count. */
uint64_t qcow2_guard_search(const struct qcow2 *q, uint64_t first, uint64_t count);

/* Only a regular file grows by being written to, and can be cut. */
static inline bool qcow2_file_grows(const struct qcow2 *q)
{
    const struct node *file = filter_bottom(q->file);

    return file->driver->kind == DRIVER_PROTOCOL && file->identity.inode != 0;
}

static inline uint64_t qcow2_l1_index(const struct qcow2 *q, uint64_t guest_offset)
{
    return guest_offset >> (q->cluster_bits + q->l2_bits);
}

static inline uint64_t qcow2_l2_index(const struct qcow2 *q, uint64_t guest_offset)
{
    return (guest_offset >> q->cluster_bits) & ((UINT64_C(1) << q->l2_bits) - 1);
}

/* Where the L2 entry of a guest offset is in its table. */
static inline uint8_t *qcow2_l2_at(const struct qcow2 *q, const struct table *table,
                                   uint64_t guest_offset)
{
    return table->data + (qcow2_l2_index(q, guest_offset) << q->entry_bits);
}

static inline unsigned qcow2_subcluster_bits(const struct qcow2 *q)
{
    return q->cluster_bits - QCOW2_SUBCLUSTER_BITS;
}

/* The subclusters of the cluster at `guest_offset` within [start, end), which has some of them. */
static inline uint32_t qcow2_subclusters(const struct qcow2 *q, uint64_t guest_offset,
                                         uint64_t start, uint64_t end)
{
    unsigned bits = qcow2_subcluster_bits(q);
    uint64_t from = start > guest_offset ? (start - guest_offset) >> bits : 0;
    uint64_t to =
        end - guest_offset < q->cluster_size ? (end - guest_offset) >> bits : QCOW2_SUBCLUSTERS;

    return (QCOW2_ALL_SUBCLUSTERS >> (QCOW2_SUBCLUSTERS - (to - from))) << from;
}

static inline bool qcow2_has_data_file(const struct qcow2 *q)
{
    return q->data != q->file;
}

/* Autoclear features that stay consistent when we write. */
static inline uint64_t qcow2_autoclear_kept(const struct qcow2 *q)
{
    return q->raw_data ? QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0;
}

/* Whether data shows through where this image has nothing. */
static inline bool qcow2_has_backing(const struct qcow2 *q)
{
    return q->node->backing || q->header.backing_name.offset != 0;
}

#endif
