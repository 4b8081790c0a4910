/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 on disk: header, extensions, table entries, refcounts, snapshot table entries.
 *
 * Pure functions over bytes: nothing here does I/O or keeps state.  All input is untrusted.
 */
#ifndef EVNBD_BLOCKCORE_FORMAT_QCOW2_DISK_H
#define EVNBD_BLOCKCORE_FORMAT_QCOW2_DISK_H

#include "base/bytes.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define QCOW2_MAGIC 0x514649fbu

enum {
    QCOW2_V2_HEADER_LENGTH = 72,
    QCOW2_V3_HEADER_LENGTH = 104, /* the least */
    QCOW2_SNAPSHOT_FIXED = 40,    /* bytes of a snapshot entry before its variable parts */
    QCOW2_SNAPSHOT_EXTRA = 24,    /* bytes of extra data that are known */
    QCOW2_SNAPSHOT_ENTRY_MAX = QCOW2_SNAPSHOT_FIXED + 1024 + 2 * 65535 + 8,
};

/* Types of header extensions. */
enum {
    QCOW2_EXT_END = 0,
    QCOW2_EXT_BACKING_FORMAT = 0xe2792aca,
    QCOW2_EXT_FEATURE_TABLE = 0x6803f857,
    QCOW2_EXT_BITMAPS = 0x23852875,
    QCOW2_EXT_CRYPTO = 0x0537be77,
    QCOW2_EXT_DATA_FILE = 0x44415441,
    QCOW2_EXT_UNUSED = 0x766f6964, /* ours, known to nobody: one that was taken out of use */
};

/* Where fields lie that are patched in place. */
enum {
    QCOW2_AT_BACKING_NAME = 8,
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_DISK = 24, /* u64 size, u32 crypt_method, u32 L1 entries, u64 L1 offset: one write */
    QCOW2_AT_L1 = 36,   /* u32 entries, u64 offset: switched in one write */
    QCOW2_AT_REFTABLE = 48,  /* u64 offset, u32 clusters: switched in one write */
    QCOW2_AT_SNAPSHOTS = 60, /* u32 number, u64 offset: switched in one write */
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_AUTOCLEAR = 88,
};

#define QCOW2_L1_BYTES_MAX (UINT64_C(32) << 20)
#define QCOW2_REFTABLE_BYTES_MAX (UINT64_C(8) << 20)
#define QCOW2_SNAPSHOT_TABLE_MAX (UINT64_C(64) << 20)
#define QCOW2_SNAPSHOTS_MAX 65536
#define QCOW2_BITMAPS_MAX 65535
#define QCOW2_BITMAP_DIRECTORY_MAX (UINT64_C(64) << 20)
#define QCOW2_EXTENDED_CLUSTER_BITS_MIN 14
#define QCOW2_CRYPTO_MAX (UINT64_C(16) << 20) /* LUKS header and key material */
#define QCOW2_HOST_BITS 56                    /* host offsets are below 1 << this */

#define QCOW2_INCOMPAT_DIRTY (UINT64_C(1) << 0)
#define QCOW2_INCOMPAT_CORRUPT (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN UINT64_C(0x1f)
#define QCOW2_COMPAT_LAZY_REFCOUNTS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_BITMAPS (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_DATA_FILE_RAW (UINT64_C(1) << 1) /* only with an external data file */

enum { QCOW2_COMPRESSION_DEFLATE = 0, QCOW2_COMPRESSION_ZSTD = 1 };
enum { QCOW2_CRYPT_NONE = 0, QCOW2_CRYPT_AES = 1, QCOW2_CRYPT_LUKS = 2 };

/* A piece of cluster 0. */
struct qcow2_piece {
    uint32_t offset, length; /* bytes; offset 0: there is none */
};

struct qcow2_header {
    uint32_t version;
    struct qcow2_piece backing_name;
    uint32_t cluster_bits;
    uint64_t size; /* bytes, as stored */
    uint32_t crypt_method;
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshots;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression_type;

    /* From the extensions. */
    struct qcow2_piece backing_format;
    struct qcow2_piece feature_table;
    struct qcow2_piece data_file; /* its name */
    bool has_crypto, has_bitmaps;
    uint64_t crypto_offset, crypto_length; /* bytes, of the LUKS header; only with has_crypto */
    uint64_t bitmap_directory_offset, bitmap_directory_size; /* only with has_bitmaps */
    uint32_t bitmap_count;                                   /* as well */
};

/*
 * Reads the fixed fields from the first bytes of the file and checks all that can be judged without
 * the rest of it.  0, -EINVAL or -ENOTSUP (version).
 */
int qcow2_header_parse(const void *data, size_t length, struct qcow2_header *ret,
                       struct error *error);

/* Walks the extensions; `data` is cluster 0, or what the file has of it. */
int qcow2_header_parse_extensions(const void *data, size_t length, struct qcow2_header *header,
                                  struct error *error);

struct qcow2_extension {
    uint32_t type, length;
    const uint8_t *data;
};

/*
 * The bytes that can hold extensions: they end where the backing name starts, at the end of cluster
 * 0, or at the end of the file (`length`).
 */
struct byte_reader qcow2_extensions(const void *data, size_t length, const struct qcow2_header *h);
/* The next one of them: 1, 0 at the end of the list, -EINVAL when one does not fit. */
int qcow2_extension_next(struct byte_reader *r, struct qcow2_extension *ret);

/*
 * Refuses by name what the image needs and this program does not do: unknown incompatible features
 * (names from the feature table, also when other extensions are broken), encryption...; for
 * `writable` also images marked corrupt.  -ENOTSUP, -EINVAL or -EROFS.
 */
int qcow2_header_check_features(const struct qcow2_header *header, const void *data, size_t length,
                                bool writable, struct error *error);

/* Where in cluster 0 an extension is, or could be. */
struct qcow2_extension_place {
    uint32_t at; /* of its type; when there is none: of the end marker */
    uint32_t length;
    bool last; /* the end marker follows; when there is none: there is an end marker */
};

/* Finds the extension of a type: whether there is one.  The extensions have been parsed before. */
bool qcow2_header_find_extension(const void *data, size_t length, const struct qcow2_header *header,
                                 uint32_t type, struct qcow2_extension_place *ret);

/*
 * Checks that there is a refcount table, and that the tables that the header names lie within the
 * file, of `file_size` bytes.  `for_check`: but for those that a repair can make anew or drop.
 */
int qcow2_header_check_layout(const struct qcow2_header *header, uint64_t file_size, bool for_check,
                              struct error *error);

/* Whether L2 entries have a second word, the bitmaps of their subclusters. */
static inline bool qcow2_extended_l2(const struct qcow2_header *header)
{
    return header->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
}

/* Whether guest data is in a file of its own, each byte where it is on the disk. */
static inline bool qcow2_external_data(const struct qcow2_header *header)
{
    return header->incompatible & QCOW2_INCOMPAT_DATA_FILE;
}

/* Whether that file is to be a raw image of the disk by itself. */
static inline bool qcow2_raw_data(const struct qcow2_header *header)
{
    return qcow2_external_data(header) && (header->autoclear & QCOW2_AUTOCLEAR_DATA_FILE_RAW);
}

/* Log2 of the bytes of an L2 entry. */
static inline unsigned qcow2_l2_entry_bits(const struct qcow2_header *header)
{
    return qcow2_extended_l2(header) ? 4 : 3;
}

/* L1 entries needed for `size` bytes. `entry_bits`: log2 of the bytes of an L2 entry. */
uint64_t qcow2_l1_entries_needed(uint64_t size, unsigned cluster_bits, unsigned entry_bits);

/* Table entries. */
#define QCOW2_COPIED (UINT64_C(1) << 63)
#define QCOW2_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ZERO UINT64_C(1)
#define QCOW2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

/*
 * A cluster has 32 subclusters.  An extended entry tells what each of them is; with standard
 * entries they are all alike.
 */
#define QCOW2_SUBCLUSTER_BITS 5
#define QCOW2_SUBCLUSTERS (1u << QCOW2_SUBCLUSTER_BITS)
#define QCOW2_ALL_SUBCLUSTERS UINT32_MAX

enum qcow2_kind {
    QCOW2_KIND_NORMAL,
    QCOW2_KIND_COMPRESSED,
    QCOW2_KIND_BROKEN, /* reserved bits, an offset that is not aligned... */
};

struct qcow2_entry {
    enum qcow2_kind kind;
    bool stored;         /* NORMAL: the cluster has storage at `host` */
    bool copied;         /* refcount is exactly 1 */
    uint32_t data, zero; /* NORMAL: subclusters that are data, or zero; the others are absent */
    uint64_t host;       /* NORMAL if stored, COMPRESSED */
    uint64_t length;     /* COMPRESSED: bytes readable at host at most */
};

/* Reads the L2 entry at `at`. The extensions of the header need not have been read. */
struct qcow2_entry qcow2_l2_decode(const struct qcow2_header *header, const uint8_t *at);
/* Writes a NORMAL entry, in standard L2 tables one whose subclusters are all alike. */
void qcow2_l2_encode(const struct qcow2_header *header, const struct qcow2_entry *entry,
                     uint8_t *at);

/* Whether an L1 entry other than 0 is well-formed. Its table is at entry & QCOW2_OFFSET_MASK. */
bool qcow2_l1_entry_valid(uint64_t value, unsigned cluster_bits);

/* Refcounts of 1 << order bits in a refcount block. */
uint64_t qcow2_refcount_get(const uint8_t *block, uint64_t index, unsigned order);
void qcow2_refcount_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value);
/* First index in [from, entries) whose refcount is 0 (or, with `used`, is not), else entries. */
uint64_t qcow2_refcount_find(const uint8_t *block, unsigned order, uint64_t from, uint64_t entries,
                             bool used);

/* All-ones: no instruction count. */
#define QCOW2_ICOUNT_NONE UINT64_MAX

struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
    const uint8_t *id, *name; /* in the bytes that were read, not NUL-terminated */
    uint16_t id_length, name_length;
    uint32_t date_seconds, date_nanoseconds; /* since 1970 */
    uint64_t vm_clock;                       /* run time of the guest, nanoseconds */
    uint64_t vm_state_size;                  /* bytes */
    bool has_disk_size;
    uint64_t disk_size; /* bytes, with has_disk_size */
    uint64_t icount;    /* or QCOW2_ICOUNT_NONE */
    uint32_t extra_length;
    size_t entry_length; /* bytes to the next entry */
};

/* Reads and checks snapshot table entry number `index`; `data` begins with it. 0 or -EINVAL. */
int qcow2_snapshot_parse(const uint8_t *data, size_t length, unsigned cluster_bits, unsigned index,
                         struct qcow2_snapshot *ret, struct error *error);

/*
 * Writes a snapshot table entry with all extra data that is known; id and name may be anything.
 * Returns its length, at most QCOW2_SNAPSHOT_ENTRY_MAX. What `extra_length` and `entry_length` say
 * does not matter.
 */
size_t qcow2_snapshot_write(uint8_t *out, const struct qcow2_snapshot *snapshot);

#endif
