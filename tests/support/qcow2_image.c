/* SPDX-License-Identifier: BSD-3-Clause */
/* Building qcow2 images. See qcow2_image.h. Refcounts are what the checker counts. */
#include "tests/support/qcow2_image.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>

#define COPIED (UINT64_C(1) << 63)
#define COMPRESSED (UINT64_C(1) << 62)
#define OFFSET UINT64_C(0x00fffffffffffe00)

static uint64_t cluster_size(const struct qcow2_image *image)
{
    return UINT64_C(1) << image->cluster_bits;
}

uint64_t qcow2_image_add(struct qcow2_image *image, uint64_t clusters)
{
    size_t offset = image->length, more = clusters << image->cluster_bits;

    if (image->room < offset + more) {
        image->room = (offset + more) * 2;
        image->data = realloc(image->data, image->room);
        if (!image->data)
            test_die("out of memory");
    }
    memset(image->data + offset, 0, more);
    image->length += more;
    return offset;
}

static bool is_extended(const struct qcow2_image *image)
{
    return image->incompatible >> 4 & 1;
}

static bool has_data_file(const struct qcow2_image *image)
{
    return image->incompatible >> 2 & 1;
}

/* Bytes of an L2 entry. */
static uint64_t entry_size(const struct qcow2_image *image)
{
    return is_extended(image) ? 16 : 8;
}

void qcow2_image_start(struct qcow2_image *image)
{
    uint64_t per_table = cluster_size(image) * (cluster_size(image) / entry_size(image));

    image->l1_size = (uint32_t)div_round_up(image->size, per_table);
    qcow2_image_add(image, 1);
    image->l1_offset = qcow2_image_add(
        image, div_round_up(image->l1_size ? image->l1_size * 8 : 8, cluster_size(image)));
}

static uint64_t find_entry(struct qcow2_image *image, uint64_t guest_cluster)
{
    uint64_t per_table = cluster_size(image) / entry_size(image);
    uint64_t at = image->l1_offset + guest_cluster / per_table * 8;
    uint64_t table = get_be64(image->data + at);

    if (table == 0) {
        table = qcow2_image_add(image, 1);
        put_be64(image->data + at, table);
    }
    return (table & OFFSET) + guest_cluster % per_table * entry_size(image);
}

uint64_t qcow2_image_set(struct qcow2_image *image, uint64_t guest_cluster, uint64_t value)
{
    uint64_t at;

    if (is_extended(image) && !(value & COMPRESSED))
        return qcow2_image_set_extended(image, guest_cluster, value & ~UINT64_C(1),
                                        value & 1 || value == 0 ? 0 : UINT32_MAX,
                                        value & 1 ? UINT32_MAX : 0);
    at = find_entry(image, guest_cluster);
    put_be64(image->data + at, value);
    return at;
}

uint64_t qcow2_image_set_extended(struct qcow2_image *image, uint64_t guest_cluster, uint64_t value,
                                  uint32_t data, uint32_t zero)
{
    uint64_t at = find_entry(image, guest_cluster);

    put_be64(image->data + at, value);
    put_be64(image->data + at + 8, (uint64_t)zero << 32 | data);
    return at;
}

uint64_t qcow2_image_data(struct qcow2_image *image, uint64_t guest_cluster, uint8_t fill)
{
    uint64_t host = qcow2_image_add(image, 1);

    memset(image->data + host, fill, cluster_size(image));
    qcow2_image_set(image, guest_cluster, host);
    return host;
}

struct bits {
    uint8_t *out;
    size_t count;
};

/* `n` bits, the lowest first. */
static void put_bits(struct bits *b, unsigned value, unsigned n)
{
    for (unsigned i = 0; i < n; i++, b->count++) {
        if (b->count % 8 == 0)
            b->out[b->count / 8] = 0;
        b->out[b->count / 8] |= (uint8_t)((value >> i & 1) << b->count % 8);
    }
}

/* A Huffman code: the highest bit first. */
static void put_code(struct bits *b, unsigned code, unsigned n)
{
    while (n-- > 0)
        put_bits(b, code >> n & 1, 1);
}

static void put_literal(struct bits *b, unsigned byte)
{
    if (byte < 144)
        put_code(b, 0x30 + byte, 8);
    else
        put_code(b, 0x190 + byte - 144, 9);
}

size_t qcow2_image_deflate(uint8_t *out, size_t length, uint8_t fill)
{
    struct bits b = {out, 0};

    put_bits(&b, 1, 1); /* the last block */
    put_bits(&b, 1, 2); /* fixed codes */
    for (size_t done = 0; done < length;) {
        if (done > 0 && length - done >= 258) {
            put_code(&b, 0xc5, 8); /* a match of 258 bytes */
            put_code(&b, 0, 5);    /* at distance 1 */
            done += 258;
        } else {
            put_literal(&b, fill);
            done++;
        }
    }
    put_code(&b, 0, 7); /* end of block */
    return (b.count + 7) / 8;
}

uint64_t qcow2_image_compressed(struct qcow2_image *image, uint64_t guest_cluster, uint8_t fill,
                                bool packed)
{
    static uint8_t stream[256 * 1024];
    size_t length = qcow2_image_deflate(stream, cluster_size(image), fill);
    unsigned offset_bits = 62 - (image->cluster_bits - 8);
    uint64_t host, sectors;

    /* Close behind the one before, and on into a new cluster, if that is the last in the file. */
    if (packed && image->compressed_end > image->length - cluster_size(image)) {
        host = image->compressed_end;
        if (host + length > image->length)
            qcow2_image_add(image,
                            div_round_up(host + length - image->length, cluster_size(image)));
    } else {
        host = qcow2_image_add(image, div_round_up(length, cluster_size(image)));
    }
    image->compressed_end = host + length;
    memcpy(image->data + host, stream, length);
    sectors = (host % 512 + length - 1) / 512;
    qcow2_image_set(image, guest_cluster, COMPRESSED | sectors << offset_bits | host);
    return host;
}

void qcow2_image_snapshot(struct qcow2_image *image)
{
    uint64_t bytes = align_up(image->l1_size * UINT64_C(8), cluster_size(image));
    uint64_t copy = qcow2_image_add(image, bytes >> image->cluster_bits);

    memcpy(image->data + copy, image->data + image->l1_offset, bytes);
    image->snapshot_l1[image->snapshots++] = copy;
}

static uint64_t write_snapshot_table(struct qcow2_image *image)
{
    uint64_t offset =
        qcow2_image_add(image, div_round_up(image->snapshots * UINT64_C(64), cluster_size(image)));

    for (unsigned i = 0; i < image->snapshots; i++) {
        uint8_t *entry = image->data + offset + i * 64;

        put_be64(entry, image->snapshot_l1[i]);
        put_be32(entry + 8, image->l1_size);
        put_be16(entry + 12, 1);
        put_be16(entry + 14, 2);
        put_be32(entry + 36, 16);
        put_be64(entry + 48, image->size);
        entry[56] = (uint8_t)('1' + i);
        entry[57] = 's';
        entry[58] = (uint8_t)('1' + i);
    }
    return offset;
}

static void put_extension(struct byte_writer *w, uint32_t type, const void *data, size_t length)
{
    byte_writer_be32(w, type);
    byte_writer_be32(w, (uint32_t)length);
    byte_writer_put(w, data, length);
    byte_writer_zero(w, (8 - length % 8) % 8);
}

static void write_behind_header(struct qcow2_image *image, size_t start)
{
    struct byte_writer w = byte_writer_of(image->data + start, cluster_size(image) - start);

    if (image->backing_format)
        put_extension(&w, 0xe2792aca, image->backing_format, strlen(image->backing_format));
    byte_writer_put(&w, image->extensions, image->extensions_length);
    byte_writer_zero(&w, 8);
    if (image->backing) {
        put_be64(image->data + 8, (uint64_t)(w.data - image->data));
        put_be32(image->data + 16, (uint32_t)strlen(image->backing));
        byte_writer_put(&w, image->backing, strlen(image->backing));
    }
    if (w.failed)
        test_die("the header of the test image does not fit");
}

static void write_header(struct qcow2_image *image, uint64_t reftable, uint64_t reftable_clusters,
                         uint64_t snapshot_table)
{
    uint8_t *h = image->data;
    unsigned length = image->version == 2 ? 72 : image->header_length ? image->header_length : 112;

    put_be32(h, 0x514649fb);
    put_be32(h + 4, image->version);
    put_be32(h + 20, image->cluster_bits);
    put_be64(h + 24, image->size);
    put_be32(h + 36, image->l1_size);
    put_be64(h + 40, image->l1_offset);
    put_be64(h + 48, reftable);
    put_be32(h + 56, (uint32_t)reftable_clusters);
    put_be32(h + 60, image->snapshots);
    put_be64(h + 64, image->snapshots ? snapshot_table : 0);
    if (image->version >= 3) {
        put_be64(h + 72, image->incompatible);
        put_be64(h + 80, image->compatible);
        put_be64(h + 88, image->autoclear);
        put_be32(h + 96, image->order);
        put_be32(h + 100, length);
        if (length > 104)
            h[104] = image->compression_type;
    }
    write_behind_header(image, length);
}

static void put_refcount(struct qcow2_image *image, uint64_t reftable, uint64_t cluster,
                         uint64_t value)
{
    uint64_t bits = UINT64_C(1) << image->order;
    uint64_t per_block = cluster_size(image) * 8 / bits;
    uint64_t block = get_be64(image->data + reftable + cluster / per_block * 8);
    uint64_t bit = cluster % per_block * bits;

    if (value >> (bits - 1) > 1)
        test_die("a refcount of the test image does not fit into %lu bits", bits);
    for (uint64_t i = 0; i < bits; i++) {
        /* Whole bytes are big-endian; below a byte the lowest bits come first. */
        uint64_t at = bits >= 8 ? bit / 8 + (bits - 1 - i) / 8 : (bit + i) / 8;
        unsigned shift = bits >= 8 ? i % 8 : (bit + i) % 8;

        image->data[block + at] |= (uint8_t)((value >> i & 1) << shift);
    }
}

/* Sets the copied bits of the active tables. */
static void write_copied(struct qcow2_image *image, const uint64_t *counts)
{
    for (uint32_t i = 0; i < image->l1_size; i++) {
        uint8_t *at = image->data + image->l1_offset + i * 8;
        uint64_t table = get_be64(at);

        if (table == 0)
            continue;
        if (counts[table >> image->cluster_bits] == 1)
            put_be64(at, table | COPIED);
        for (uint64_t k = 0; k < cluster_size(image) && !has_data_file(image);
             k += entry_size(image)) {
            uint64_t value = get_be64(image->data + table + k);

            if (!(value & COMPRESSED) && (value & OFFSET) &&
                counts[(value & OFFSET) >> image->cluster_bits] == 1)
                put_be64(image->data + table + k, value | COPIED);
        }
    }
}

void qcow2_image_finish(struct qcow2_image *image)
{
    uint64_t per_block = cluster_size(image) * 8 >> image->order;
    uint64_t snapshot_table = image->snapshots ? write_snapshot_table(image) : 0;
    uint64_t used = image->length >> image->cluster_bits;
    /* Generous: blocks for twice of all that there is now. */
    uint64_t blocks = 2 + 2 * div_round_up(used, per_block);
    uint64_t table_clusters = div_round_up(blocks * 8, cluster_size(image));
    uint64_t table, *counts;
    struct qcow2_report report = {0};

    blocks += div_round_up(blocks + table_clusters, per_block);
    table_clusters = div_round_up(blocks * 8, cluster_size(image));
    table = qcow2_image_add(image, table_clusters);
    for (uint64_t i = 0; i * per_block < used + table_clusters + blocks; i++) {
        uint64_t block = qcow2_image_add(image, 1);

        put_be64(image->data + table + i * 8, block);
    }
    write_header(image, table, table_clusters, snapshot_table);
    counts = calloc(image->length >> image->cluster_bits, sizeof(*counts));
    if (!counts)
        test_die("out of memory");
    qcow2_image_count(image->data, image->length, counts, &report);
    for (uint64_t i = 0; i < image->length >> image->cluster_bits; i++) {
        if (counts[i] > 0)
            put_refcount(image, table, i, counts[i]);
    }
    write_copied(image, counts);
    free(counts);
}

void qcow2_image_fini(struct qcow2_image *image)
{
    free(image->data);
    image->data = NULL;
    image->length = image->room = 0;
}
