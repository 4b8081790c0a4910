/* SPDX-License-Identifier: BSD-3-Clause */
/* Dirty bitmaps of qcow2 on disk. See qcow2_bitmap_disk.h. */
#include "blockcore/format/qcow2_bitmap_disk.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "blockcore/format/qcow2_disk.h"

#include <errno.h>

int qcow2_bitmap_entry_parse(const uint8_t *data, size_t length, unsigned index,
                             struct qcow2_bitmap_entry *ret, struct error *error)
{
    struct byte_reader r = byte_reader_of(data, length);

    ret->table_offset = byte_reader_be64(&r);
    ret->table_size = byte_reader_be32(&r);
    ret->flags = byte_reader_be32(&r);
    ret->type = byte_reader_u8(&r);
    ret->granularity_bits = byte_reader_u8(&r);
    ret->name_length = byte_reader_be16(&r);
    ret->extra_length = byte_reader_be32(&r);
    ret->extra = byte_reader_take(&r, ret->extra_length);
    ret->name = (const char *)byte_reader_take(&r, ret->name_length);
    byte_reader_skip(&r, (8 - (length - r.left) % 8) % 8);
    if (r.failed)
        return error_set(error, EINVAL, "the bitmap directory ends within the entry of bitmap %u",
                         index);
    return 0;
}

uint64_t qcow2_bitmap_entry_size(const struct qcow2_bitmap_entry *entry)
{
    return align_up((uint64_t)QCOW2_BITMAP_FIXED + entry->extra_length + entry->name_length, 8);
}

void qcow2_bitmap_entry_write(uint8_t *out, const struct qcow2_bitmap_entry *entry)
{
    struct byte_writer w = byte_writer_of(out, qcow2_bitmap_entry_size(entry));

    byte_writer_be64(&w, entry->table_offset);
    byte_writer_be32(&w, entry->table_size);
    byte_writer_be32(&w, entry->flags);
    byte_writer_u8(&w, entry->type);
    byte_writer_u8(&w, entry->granularity_bits);
    byte_writer_be16(&w, entry->name_length);
    byte_writer_be32(&w, entry->extra_length);
    if (entry->extra_length > 0)
        byte_writer_put(&w, entry->extra, entry->extra_length);
    byte_writer_put(&w, entry->name, entry->name_length);
    byte_writer_zero(&w, w.left);
}

bool qcow2_bitmap_table_sane(const struct qcow2_bitmap_entry *e,
                             const struct qcow2_bitmap_disk *disk)
{
    if (e->table_size > QCOW2_BITMAP_TABLE_MAX ||
        (uint64_t)e->table_size << disk->cluster_bits > QCOW2_BITMAP_DATA_MAX)
        return false;
    return e->table_size == 0 ||
           (e->table_offset != 0 &&
            is_aligned(e->table_offset, UINT64_C(1) << disk->cluster_bits) &&
            range_within(e->table_offset, (uint64_t)e->table_size * 8, disk->file_size));
}

const char *qcow2_bitmap_entry_problem(const struct qcow2_bitmap_entry *e,
                                       const struct qcow2_bitmap_disk *disk)
{
    if (e->type != QCOW2_BITMAP_DIRTY_TRACKING)
        return "it is not a dirty tracking bitmap, but of a type that is not known";
    if (e->flags & ~QCOW2_BITMAP_FLAGS_KNOWN)
        return "it has flags that are not known";
    if (e->extra_length > 0 && !(e->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE))
        return "it has extra data that must be understood, and is not known";
    if (e->name_length == 0 || e->name_length > BLOCK_BITMAP_NAME_MAX ||
        !bytes_are_utf8(e->name, e->name_length))
        return "its name is not text of 1 to 1023 bytes";
    if (e->granularity_bits < QCOW2_BITMAP_GRANULARITY_MIN ||
        e->granularity_bits > QCOW2_BITMAP_GRANULARITY_MAX)
        return "its granularity is not between 512 bytes and 2 GiB";
    if (e->flags & QCOW2_BITMAP_IN_USE)
        return "it is inconsistent, because it was not saved when the disk was last changed; it "
               "can only be removed";
    if (e->table_size != qcow2_bitmap_table_needed(disk, e->granularity_bits))
        return "its table does not fit the size of the disk";
    if (!qcow2_bitmap_table_sane(e, disk))
        return "its table is not within the file, or is too large";
    return NULL;
}

uint64_t qcow2_bitmap_table_needed(const struct qcow2_bitmap_disk *disk, unsigned granularity_bits)
{
    uint64_t bits = div_round_up(disk->size, UINT64_C(1) << granularity_bits);

    return div_round_up(div_round_up(bits, 8), UINT64_C(1) << disk->cluster_bits);
}

unsigned qcow2_bitmap_granularity_default(unsigned cluster_bits)
{
    return (unsigned)min_u64(max_u64(cluster_bits, 12), 16);
}

bool qcow2_bitmap_value_valid(uint64_t value, const struct qcow2_bitmap_disk *disk)
{
    if (value == QCOW2_BITMAP_ALL_ZEROES || value == QCOW2_BITMAP_ALL_ONES)
        return true;
    return !(value & ~QCOW2_OFFSET_MASK) && is_aligned(value, UINT64_C(1) << disk->cluster_bits) &&
           value < disk->file_size;
}
