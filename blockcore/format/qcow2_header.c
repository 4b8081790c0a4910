/* SPDX-License-Identifier: BSD-3-Clause */
/* The header of qcow2 and its extensions. See qcow2_disk.h. */
#include "base/checked.h"
#include "blockcore/format/qcow2_disk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { BACKING_NAME_MAX = 1023, BACKING_FORMAT_MAX = 15, FEATURE_ENTRY = 48, FEATURE_NAME = 46 };
enum { CRYPTO_MIN = 592 }; /* the LUKS header without key material */

static int bad_field(struct error *error, const char *field, uint64_t value, const char *wanted)
{
    return error_set(error, EINVAL, "the qcow2 header's %s is %" PRIu64 ", it must be %s", field,
                     value, wanted);
}

static int check_aligned(struct error *error, const char *field, uint64_t offset,
                         unsigned cluster_bits)
{
    if (!is_aligned(offset, UINT64_C(1) << cluster_bits))
        return bad_field(error, field, offset, "a multiple of the cluster size");
    if (offset >> QCOW2_HOST_BITS)
        return bad_field(error, field, offset, "below 2^56");
    return 0;
}

static void read_v3_fields(struct byte_reader *r, struct qcow2_header *h)
{
    h->incompatible = byte_reader_be64(r);
    h->compatible = byte_reader_be64(r);
    h->autoclear = byte_reader_be64(r);
    h->refcount_order = byte_reader_be32(r);
    h->header_length = byte_reader_be32(r);
    if (h->header_length > QCOW2_V3_HEADER_LENGTH)
        h->compression_type = byte_reader_u8(r);
}

static void read_fields(struct byte_reader *r, struct qcow2_header *h)
{
    uint64_t backing_offset = byte_reader_be64(r);

    h->backing_name.length = byte_reader_be32(r);
    h->cluster_bits = byte_reader_be32(r);
    h->size = byte_reader_be64(r);
    h->crypt_method = byte_reader_be32(r);
    h->l1_size = byte_reader_be32(r);
    h->l1_offset = byte_reader_be64(r);
    h->reftable_offset = byte_reader_be64(r);
    h->reftable_clusters = byte_reader_be32(r);
    h->snapshots = byte_reader_be32(r);
    h->snapshots_offset = byte_reader_be64(r);
    h->refcount_order = 4;
    h->header_length = QCOW2_V2_HEADER_LENGTH;
    /* Anything that does not fit is past cluster 0 and refused with the value 2^32 - 1. */
    h->backing_name.offset = (uint32_t)min_u64(backing_offset, UINT32_MAX);
    if (h->version == 3)
        read_v3_fields(r, h);
}

static int check_backing_name(const struct qcow2_header *h, struct error *error)
{
    uint32_t cluster = 1u << h->cluster_bits;

    if (h->backing_name.offset == 0)
        return 0;
    if (h->backing_name.length == 0 || h->backing_name.length > BACKING_NAME_MAX)
        return bad_field(error, "backing file name length", h->backing_name.length,
                         "1 to 1023 bytes");
    if (h->backing_name.offset < h->header_length)
        return bad_field(error, "backing file name offset", h->backing_name.offset,
                         "behind the header");
    if (!range_within(h->backing_name.offset, h->backing_name.length, cluster))
        return bad_field(error, "backing file name offset", h->backing_name.offset,
                         "such that the name ends within the first cluster");
    return 0;
}

static int check_l1(const struct qcow2_header *h, struct error *error)
{
    uint64_t needed = qcow2_l1_entries_needed(h->size, h->cluster_bits, qcow2_l2_entry_bits(h));

    if (h->size > OFFSET_MAX - 511)
        return bad_field(error, "virtual size", h->size, "below 2^63 - 511");
    if (h->l1_size > QCOW2_L1_BYTES_MAX / 8)
        return bad_field(error, "L1 size", h->l1_size, "at most 4194304 entries (32 MiB)");
    if (h->l1_size < needed)
        return error_set(error, EINVAL,
                         "the qcow2 header's L1 size is %" PRIu32
                         " entries, the virtual size of %" PRIu64 " bytes needs %" PRIu64,
                         h->l1_size, h->size, needed);
    if (h->l1_size > 0 && h->l1_offset == 0)
        return bad_field(error, "L1 table offset", 0, "behind the first cluster");
    return check_aligned(error, "L1 table offset", h->l1_offset, h->cluster_bits);
}

static int check_reftable(const struct qcow2_header *h, struct error *error)
{
    if (h->reftable_offset == 0)
        return bad_field(error, "refcount table offset", 0, "behind the first cluster");
    if (h->reftable_clusters > QCOW2_REFTABLE_BYTES_MAX >> h->cluster_bits)
        return bad_field(error, "refcount table length", h->reftable_clusters,
                         "at most 8 MiB in clusters");
    return check_aligned(error, "refcount table offset", h->reftable_offset, h->cluster_bits);
}

static int check_snapshots(const struct qcow2_header *h, struct error *error)
{
    if (h->snapshots > QCOW2_SNAPSHOTS_MAX)
        return bad_field(error, "number of snapshots", h->snapshots, "at most 65536");
    if (h->snapshots == 0)
        return 0;
    if (h->snapshots_offset == 0)
        return bad_field(error, "snapshot table offset", 0, "behind the first cluster");
    return check_aligned(error, "snapshot table offset", h->snapshots_offset, h->cluster_bits);
}

static int check_v3(const struct qcow2_header *h, struct error *error)
{
    if (h->version < 3)
        return 0;
    if (h->refcount_order > 6)
        return bad_field(error, "refcount order", h->refcount_order, "0 to 6");
    if (h->header_length < QCOW2_V3_HEADER_LENGTH || h->header_length % 8 != 0)
        return bad_field(error, "header length", h->header_length,
                         "a multiple of 8 and at least 104");
    if (h->header_length > 1u << h->cluster_bits)
        return bad_field(error, "header length", h->header_length, "within the first cluster");
    return 0;
}

int qcow2_header_parse(const void *data, size_t length, struct qcow2_header *ret,
                       struct error *error)
{
    struct byte_reader r = byte_reader_of(data, length);
    struct qcow2_header h = {0};
    int err;

    if (byte_reader_be32(&r) != QCOW2_MAGIC)
        return error_set(error, EINVAL, "this is not a qcow2 image: its first four bytes differ");
    h.version = byte_reader_be32(&r);
    if (!r.failed && h.version != 2 && h.version != 3)
        return error_set(error, ENOTSUP,
                         "the qcow2 header's version is %" PRIu32 ", only 2 and 3 are known",
                         h.version);
    read_fields(&r, &h);
    if (r.failed)
        return error_set(error, EINVAL, "the file ends after %zu bytes, within the qcow2 header",
                         length);
    if (h.cluster_bits < 9 || h.cluster_bits > 21)
        return bad_field(error, "cluster_bits", h.cluster_bits, "9 to 21");
    err = check_v3(&h, error);
    if (err == 0)
        err = check_backing_name(&h, error);
    if (err == 0)
        err = check_l1(&h, error);
    if (err == 0)
        err = check_reftable(&h, error);
    if (err == 0)
        err = check_snapshots(&h, error);
    if (err == 0)
        *ret = h;
    return err;
}

struct byte_reader qcow2_extensions(const void *data, size_t length, const struct qcow2_header *h)
{
    uint64_t end = min_u64(length, UINT64_C(1) << h->cluster_bits);
    uint64_t start = min_u64(h->header_length, end);

    if (h->backing_name.offset != 0)
        end = min_u64(end, h->backing_name.offset);
    return byte_reader_of((const uint8_t *)data + start, end - start);
}

int qcow2_extension_next(struct byte_reader *r, struct qcow2_extension *ret)
{
    if (r->left < 8)
        return 0;
    ret->type = byte_reader_be32(r);
    ret->length = byte_reader_be32(r);
    if (ret->type == QCOW2_EXT_END)
        return 0;
    ret->data = byte_reader_take(r, ret->length);
    if (!ret->data)
        return -EINVAL;
    byte_reader_skip(r, min_u64(r->left, align_up(ret->length, 8) - ret->length));
    return 1;
}

static int read_bitmaps(const struct qcow2_extension *ext, struct qcow2_header *h,
                        struct error *error)
{
    struct byte_reader r = byte_reader_of(ext->data, ext->length);
    uint32_t count, reserved;

    /* Without the bit another program wrote without minding them: all bitmaps are invalid. */
    if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    if (ext->length != 24)
        return bad_field(error, "bitmaps extension length", ext->length, "24 bytes");
    count = byte_reader_be32(&r);
    reserved = byte_reader_be32(&r);
    h->bitmap_directory_size = byte_reader_be64(&r);
    h->bitmap_directory_offset = byte_reader_be64(&r);
    if (count == 0 || count > QCOW2_BITMAPS_MAX)
        return bad_field(error, "number of bitmaps", count, "1 to 65535");
    if (reserved != 0)
        return bad_field(error, "bitmaps extension's reserved field", reserved, "0");
    if (h->bitmap_directory_size == 0 || h->bitmap_directory_size > QCOW2_BITMAP_DIRECTORY_MAX)
        return bad_field(error, "bitmap directory size", h->bitmap_directory_size,
                         "1 byte to 64 MiB");
    if (h->bitmap_directory_offset == 0)
        return bad_field(error, "bitmap directory offset", 0, "behind the first cluster");
    h->has_bitmaps = true;
    h->bitmap_count = count;
    return check_aligned(error, "bitmap directory offset", h->bitmap_directory_offset,
                         h->cluster_bits);
}

static int read_crypto(const struct qcow2_extension *ext, struct qcow2_header *h,
                       struct error *error)
{
    if (ext->length != 16)
        return bad_field(error, "crypto extension length", ext->length, "16 bytes");
    h->has_crypto = true;
    h->crypto_offset = get_be64(ext->data);
    h->crypto_length = get_be64(ext->data + 8);
    if (h->crypto_length < CRYPTO_MIN || h->crypto_length > QCOW2_CRYPTO_MAX)
        return bad_field(error, "LUKS header length", h->crypto_length, "592 bytes to 16 MiB");
    if (h->crypto_offset == 0)
        return bad_field(error, "LUKS header offset", 0, "behind the first cluster");
    return check_aligned(error, "LUKS header offset", h->crypto_offset, h->cluster_bits);
}

/* One bit an extension of a known type, to find those that come twice; 0: not known. */
static unsigned extension_bit(uint32_t type)
{
    static const uint32_t known[] = {QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_FEATURE_TABLE,
                                     QCOW2_EXT_BITMAPS, QCOW2_EXT_CRYPTO, QCOW2_EXT_DATA_FILE};

    for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
        if (known[i] == type)
            return 1u << i;
    }
    return 0;
}

static int read_extension(const struct qcow2_extension *ext, struct qcow2_piece piece,
                          struct qcow2_header *h, struct error *error)
{
    switch (ext->type) {
    case QCOW2_EXT_BACKING_FORMAT:
        if (ext->length > BACKING_FORMAT_MAX)
            return bad_field(error, "backing format name length", ext->length, "at most 15 bytes");
        h->backing_format = piece;
        return 0;
    case QCOW2_EXT_FEATURE_TABLE:
        h->feature_table = piece;
        return 0;
    case QCOW2_EXT_BITMAPS:
        return read_bitmaps(ext, h, error);
    case QCOW2_EXT_CRYPTO:
        return read_crypto(ext, h, error);
    case QCOW2_EXT_DATA_FILE:
        h->data_file = piece;
        return 0;
    default:
        return 0;
    }
}

/* Method and extension belong together. */
static int check_crypto(const struct qcow2_header *h, struct error *error)
{
    if (h->crypt_method == QCOW2_CRYPT_LUKS && !h->has_crypto)
        return error_set(error, EINVAL,
                         "the image is encrypted with LUKS (crypt_method 2), but has no extension "
                         "that tells where the LUKS header is");
    if (h->crypt_method != QCOW2_CRYPT_LUKS && h->has_crypto)
        return error_set(error, EINVAL,
                         "the qcow2 header tells where a LUKS header is, but the image is not "
                         "encrypted with LUKS (crypt_method %" PRIu32 ")",
                         h->crypt_method);
    return 0;
}

int qcow2_header_parse_extensions(const void *data, size_t length, struct qcow2_header *header,
                                  struct error *error)
{
    struct byte_reader r = qcow2_extensions(data, length, header);
    struct qcow2_extension ext = {0};
    unsigned seen = 0;
    int more;

    while ((more = qcow2_extension_next(&r, &ext)) > 0) {
        struct qcow2_piece piece = {(uint32_t)(ext.data - (const uint8_t *)data), ext.length};
        unsigned bit = extension_bit(ext.type);
        int err;

        if (seen & bit)
            return error_set(error, EINVAL,
                             "the qcow2 header has two extensions of type 0x%08" PRIx32, ext.type);
        seen |= bit;
        err = read_extension(&ext, piece, header, error);
        if (err < 0)
            return err;
    }
    if (more < 0)
        return error_set(error, EINVAL,
                         "the qcow2 header extension of type 0x%08" PRIx32 " has %" PRIu32
                         " bytes, which do not fit into the first cluster",
                         ext.type, ext.length);
    if ((header->autoclear & QCOW2_AUTOCLEAR_BITMAPS) && !header->has_bitmaps)
        return error_set(error, EINVAL,
                         "the qcow2 header says that its bitmaps are consistent (autoclear bit 0), "
                         "but has no bitmaps extension");
    return check_crypto(header, error);
}

bool qcow2_header_find_extension(const void *data, size_t length, const struct qcow2_header *header,
                                 uint32_t type, struct qcow2_extension_place *ret)
{
    struct byte_reader r = qcow2_extensions(data, length, header);
    struct qcow2_extension ext;
    bool found = false;

    *ret = (struct qcow2_extension_place){0};
    for (;;) {
        const uint8_t *at = r.data;
        bool more = qcow2_extension_next(&r, &ext) > 0;

        if (found) {
            ret->last = !more;
            return true;
        }
        ret->at = (uint32_t)(at - (const uint8_t *)data);
        if (!more)
            break;
        ret->length = ext.length;
        found = ext.type == type;
    }
    ret->length = 0;
    ret->last = r.data > (const uint8_t *)data + ret->at; /* it was read */
    return false;
}

/* Puts the image's own name for an incompatible feature into `out`, quoted and escaped, or "". */
static void feature_name(const struct qcow2_header *h, const void *data, size_t length,
                         unsigned bit, char *out, size_t out_size)
{
    struct byte_reader r = qcow2_extensions(data, length, h);
    struct qcow2_extension ext;

    out[0] = 0;
    while (qcow2_extension_next(&r, &ext) > 0) {
        if (ext.type != QCOW2_EXT_FEATURE_TABLE)
            continue;
        for (uint32_t i = 0; i < ext.length / FEATURE_ENTRY; i++) {
            const uint8_t *entry = ext.data + i * FEATURE_ENTRY;
            const char *name = (const char *)entry + 2;

            if (entry[0] == 0 && entry[1] == bit && name[0] != 0) {
                error_escape(out, out_size, name, strnlen(name, FEATURE_NAME));
                return;
            }
        }
    }
}

static int refuse_unknown(const struct qcow2_header *h, const void *data, size_t length,
                          struct error *error)
{
    char list[768] = "", name[4 * FEATURE_NAME + 1];
    size_t used = 0;

    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(h->incompatible & ~QCOW2_INCOMPAT_KNOWN & UINT64_C(1) << bit))
            continue;
        feature_name(h, data, length, bit, name, sizeof(name));
        if (used < sizeof(list))
            used += (size_t)snprintf(list + used, sizeof(list) - used,
                                     "%s%s%s%sincompatible bit %u", used ? ", " : "",
                                     name[0] ? "'" : "", name, name[0] ? "' = " : "", bit);
    }
    return error_set(error, ENOTSUP, "the image needs features that this program does not have: %s",
                     list);
}

static int check_compression(const struct qcow2_header *h, struct error *error)
{
    bool flagged = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;

    if (h->compression_type > QCOW2_COMPRESSION_ZSTD)
        return error_set(error, ENOTSUP,
                         "the qcow2 header's compression type is %u, only 0 (zlib) and 1 (zstd) "
                         "are known",
                         h->compression_type);
    if (flagged != (h->compression_type != QCOW2_COMPRESSION_DEFLATE))
        return error_set(
            error, EINVAL,
            "the qcow2 header's compression type is %u, which contradicts incompatible "
            "bit 3 (%s)",
            h->compression_type, flagged ? "set" : "clear");
    return 0;
}

/* What extended L2 entries and external data files do not go with. */
static int check_layout_features(const struct qcow2_header *h, struct error *error)
{
    if (qcow2_extended_l2(h) && h->cluster_bits < QCOW2_EXTENDED_CLUSTER_BITS_MIN)
        return error_set(error, EINVAL,
                         "the image has extended L2 entries (incompatible bit 4) and clusters of "
                         "%" PRIu64 " bytes; they must have 16 KiB at least",
                         UINT64_C(1) << h->cluster_bits);
    if (qcow2_external_data(h) && h->snapshots > 0)
        return error_set(error, EINVAL,
                         "the image has an external data file (incompatible bit 2) and %" PRIu32
                         " snapshots, which exclude each other",
                         h->snapshots);
    if (qcow2_raw_data(h) && h->backing_name.offset != 0)
        return error_set(error, EINVAL,
                         "the image has a data file that is a raw image by itself (autoclear bit "
                         "1) and a backing file, which exclude each other");
    return 0;
}

static int check_writable(const struct qcow2_header *h, struct error *error)
{
    if (h->incompatible & QCOW2_INCOMPAT_CORRUPT)
        return error_set(error, EROFS,
                         "the image is marked corrupt (incompatible bit 1): open it read-only, or "
                         "repair it with 'qemu-img check -r all'");
    return 0;
}

int qcow2_header_check_features(const struct qcow2_header *header, const void *data, size_t length,
                                bool writable, struct error *error)
{
    int err;

    if (header->incompatible & ~QCOW2_INCOMPAT_KNOWN)
        return refuse_unknown(header, data, length, error);
    if (header->crypt_method > QCOW2_CRYPT_LUKS)
        return error_set(error, ENOTSUP,
                         "the image is encrypted in a way that is not known (crypt_method %" PRIu32
                         ", only 1 and 2 are)",
                         header->crypt_method);
    err = check_compression(header, error);
    if (err == 0)
        err = check_layout_features(header, error);
    if (err == 0 && writable)
        err = check_writable(header, error);
    return err;
}

int qcow2_header_check_layout(const struct qcow2_header *header, uint64_t file_size, bool for_check,
                              struct error *error)
{
    const struct {
        const char *name;
        uint64_t offset, length;
        bool repairable;
    } tables[] = {
        {"L1 table", header->l1_offset, (uint64_t)header->l1_size * 8, false},
        {"refcount table", header->reftable_offset,
         (uint64_t)header->reftable_clusters << header->cluster_bits, true},
        {"snapshot table", header->snapshots_offset,
         (uint64_t)header->snapshots * QCOW2_SNAPSHOT_FIXED, true},
        {"LUKS header", header->crypto_offset, header->crypto_length, false},
    };

    if (header->reftable_clusters == 0 && !for_check)
        return bad_field(error, "refcount table length", 0, "at least 1 cluster");
    for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
        if (tables[i].length > 0 && !(for_check && tables[i].repairable) &&
            !range_within(tables[i].offset, tables[i].length, file_size))
            return error_set(error, EINVAL,
                             "the %s is %" PRIu64 " bytes at offset %" PRIu64
                             ", beyond the end of the file (%" PRIu64 " bytes)",
                             tables[i].name, tables[i].length, tables[i].offset, file_size);
    }
    return 0;
}
