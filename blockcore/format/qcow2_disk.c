/* SPDX-License-Identifier: BSD-3-Clause */
/* Table entries, refcounts and snapshot table entries of qcow2. See qcow2_disk.h. */
#include "blockcore/format/qcow2_disk.h"

#include "base/checked.h"

#include <errno.h>
#include <inttypes.h>

#define SNAPSHOT_EXTRA_MAX 1024
#define L1_RESERVED (~(QCOW2_COPIED | QCOW2_OFFSET_MASK))
#define L2_RESERVED (~(QCOW2_COPIED | QCOW2_COMPRESSED | QCOW2_OFFSET_MASK | QCOW2_ZERO))

static struct qcow2_entry decode_compressed(uint64_t value, unsigned cluster_bits)
{
    unsigned offset_bits = 62 - (cluster_bits - 8);
    uint64_t host = value & ((UINT64_C(1) << offset_bits) - 1);
    uint64_t sectors = (value & (QCOW2_COMPRESSED - 1)) >> offset_bits;

    /* Small clusters leave room for offsets that no file can have. */
    if (host >> QCOW2_HOST_BITS)
        return (struct qcow2_entry){.kind = QCOW2_KIND_BROKEN};
    return (struct qcow2_entry){
        .kind = QCOW2_KIND_COMPRESSED,
        .host = host,
        .length = (sectors + 1) * 512 - host % 512,
    };
}

/* The first word, but for what the subclusters are. */
static struct qcow2_entry decode_normal(const struct qcow2_header *h, uint64_t value)
{
    struct qcow2_entry e = {
        .kind = QCOW2_KIND_BROKEN,
        .copied = value & QCOW2_COPIED,
        .host = value & QCOW2_OFFSET_MASK,
    };

    /* In a data file of its own, data can be at offset 0, too. */
    e.stored = e.host != 0 || (e.copied && qcow2_external_data(h));
    if (!(value & L2_RESERVED) && is_aligned(e.host, UINT64_C(1) << h->cluster_bits) &&
        (e.stored || !e.copied))
        e.kind = QCOW2_KIND_NORMAL;
    return e;
}

struct qcow2_entry qcow2_l2_decode(const struct qcow2_header *header, const uint8_t *at)
{
    bool extended = qcow2_extended_l2(header);
    uint64_t value = get_be64(at), bitmaps = extended ? get_be64(at + 8) : 0;
    bool zero_bit = value & QCOW2_ZERO;
    struct qcow2_entry e;

    if (value & QCOW2_COMPRESSED) {
        if (bitmaps != 0 || qcow2_external_data(header))
            return (struct qcow2_entry){.kind = QCOW2_KIND_BROKEN};
        return decode_compressed(value, header->cluster_bits);
    }
    e = decode_normal(header, value);
    if (extended) {
        e.data = (uint32_t)bitmaps;
        e.zero = (uint32_t)(bitmaps >> 32);
    } else if (zero_bit) {
        e.zero = QCOW2_ALL_SUBCLUSTERS;
    } else if (e.stored) {
        e.data = QCOW2_ALL_SUBCLUSTERS;
    }
    if ((zero_bit && (extended || header->version < 3)) || (e.data & e.zero) ||
        (e.data && !e.stored))
        e.kind = QCOW2_KIND_BROKEN;
    return e;
}

void qcow2_l2_encode(const struct qcow2_header *header, const struct qcow2_entry *entry,
                     uint8_t *at)
{
    uint64_t value = entry->stored ? entry->host | (entry->copied ? QCOW2_COPIED : 0) : 0;

    if (qcow2_extended_l2(header))
        put_be64(at + 8, (uint64_t)entry->zero << 32 | entry->data);
    else if (entry->zero)
        value |= QCOW2_ZERO;
    put_be64(at, value);
}

bool qcow2_l1_entry_valid(uint64_t value, unsigned cluster_bits)
{
    uint64_t offset = value & QCOW2_OFFSET_MASK;

    return !(value & L1_RESERVED) && offset != 0 && is_aligned(offset, UINT64_C(1) << cluster_bits);
}

uint64_t qcow2_l1_entries_needed(uint64_t size, unsigned cluster_bits, unsigned entry_bits)
{
    return div_round_up(size, UINT64_C(1) << (2 * cluster_bits - entry_bits));
}

uint64_t qcow2_refcount_get(const uint8_t *block, uint64_t index, unsigned order)
{
    switch (order) {
    case 3:
        return block[index];
    case 4:
        return get_be16(block + index * 2);
    case 5:
        return get_be32(block + index * 4);
    case 6:
        return get_be64(block + index * 8);
    default: {
        /* 1, 2 or 4 bits: the lowest bits of a byte hold the lowest index. */
        unsigned bits = 1u << order, shift = (unsigned)(index << order) % 8;

        return block[(index << order) / 8] >> shift & ((1u << bits) - 1);
    }
    }
}

void qcow2_refcount_set(uint8_t *block, uint64_t index, unsigned order, uint64_t value)
{
    switch (order) {
    case 3:
        block[index] = (uint8_t)value;
        return;
    case 4:
        put_be16(block + index * 2, (uint16_t)value);
        return;
    case 5:
        put_be32(block + index * 4, (uint32_t)value);
        return;
    case 6:
        put_be64(block + index * 8, value);
        return;
    default: {
        unsigned bits = 1u << order, shift = (unsigned)(index << order) % 8;
        uint8_t *byte = block + (index << order) / 8;
        unsigned mask = ((1u << bits) - 1) << shift;

        *byte = (uint8_t)((*byte & ~mask) | ((value << shift) & mask));
    }
    }
}

uint64_t qcow2_refcount_find(const uint8_t *block, unsigned order, uint64_t from, uint64_t entries,
                             bool used)
{
    uint64_t i = from;

    while (i < entries && (qcow2_refcount_get(block, i, order) != 0) != used)
        i++;
    return i;
}

/* The extra data, of which old images have none and new ones may have more than is known. */
static void read_extra(struct byte_reader *r, struct qcow2_snapshot *s)
{
    struct byte_reader extra = byte_reader_of(r->data, min_u64(s->extra_length, r->left));

    s->icount = QCOW2_ICOUNT_NONE;
    if (extra.left >= 8)
        s->vm_state_size = byte_reader_be64(&extra);
    s->has_disk_size = extra.left >= 8;
    if (s->has_disk_size)
        s->disk_size = byte_reader_be64(&extra);
    if (extra.left >= 8)
        s->icount = byte_reader_be64(&extra);
    byte_reader_skip(r, s->extra_length);
}

static void read_snapshot(struct byte_reader *r, struct qcow2_snapshot *s)
{
    s->l1_offset = byte_reader_be64(r);
    s->l1_size = byte_reader_be32(r);
    s->id_length = byte_reader_be16(r);
    s->name_length = byte_reader_be16(r);
    s->date_seconds = byte_reader_be32(r);
    s->date_nanoseconds = byte_reader_be32(r);
    s->vm_clock = byte_reader_be64(r);
    s->vm_state_size = byte_reader_be32(r);
    s->extra_length = byte_reader_be32(r);
    if (r->failed || s->extra_length > SNAPSHOT_EXTRA_MAX)
        return;
    read_extra(r, s);
    s->id = byte_reader_take(r, s->id_length);
    s->name = byte_reader_take(r, s->name_length);
}

int qcow2_snapshot_parse(const uint8_t *data, size_t length, unsigned cluster_bits, unsigned index,
                         struct qcow2_snapshot *ret, struct error *error)
{
    struct byte_reader r = byte_reader_of(data, length);

    *ret = (struct qcow2_snapshot){0};
    read_snapshot(&r, ret);
    if (!r.failed && ret->extra_length > SNAPSHOT_EXTRA_MAX)
        return error_set(error, EINVAL,
                         "snapshot %u has %" PRIu32 " bytes of extra data, at most 1024 are legal",
                         index, ret->extra_length);
    if (r.failed)
        return error_set(error, EINVAL, "the snapshot table ends within snapshot %u", index);
    if (ret->l1_size > QCOW2_L1_BYTES_MAX / 8)
        return error_set(error, EINVAL,
                         "the L1 table of snapshot %u has %" PRIu32
                         " entries, at most 4194304 are legal",
                         index, ret->l1_size);
    if (!is_aligned(ret->l1_offset, UINT64_C(1) << cluster_bits) ||
        ret->l1_offset >> QCOW2_HOST_BITS)
        return error_set(error, EINVAL,
                         "the L1 table of snapshot %u is at offset %" PRIu64
                         ", which is not the start of a cluster",
                         index, ret->l1_offset);
    ret->entry_length = align_up(length - r.left, 8);
    return 0;
}

size_t qcow2_snapshot_write(uint8_t *out, const struct qcow2_snapshot *snapshot)
{
    struct byte_writer w = byte_writer_of(out, QCOW2_SNAPSHOT_ENTRY_MAX);
    size_t length;

    byte_writer_be64(&w, snapshot->l1_offset);
    byte_writer_be32(&w, snapshot->l1_size);
    byte_writer_be16(&w, snapshot->id_length);
    byte_writer_be16(&w, snapshot->name_length);
    byte_writer_be32(&w, snapshot->date_seconds);
    byte_writer_be32(&w, snapshot->date_nanoseconds);
    byte_writer_be64(&w, snapshot->vm_clock);
    /* Readers that know no extra data find the size here, if it fits. */
    byte_writer_be32(&w,
                     snapshot->vm_state_size <= UINT32_MAX ? (uint32_t)snapshot->vm_state_size : 0);
    byte_writer_be32(&w, QCOW2_SNAPSHOT_EXTRA);
    byte_writer_be64(&w, snapshot->vm_state_size);
    byte_writer_be64(&w, snapshot->disk_size);
    byte_writer_be64(&w, snapshot->icount);
    byte_writer_put(&w, snapshot->id, snapshot->id_length);
    byte_writer_put(&w, snapshot->name, snapshot->name_length);
    length = QCOW2_SNAPSHOT_ENTRY_MAX - w.left;
    byte_writer_zero(&w, align_up(length, 8) - length);
    return align_up(length, 8);
}
