/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening the bitmaps of a qcow2 image: the directory is read as a whole, and all tables once, to
 * know which bitmaps are sound and which clusters are theirs.  See qcow2_bitmap.h.
 *
 * What one entry or table has wrong makes that bitmap unusable.  A directory that cannot be walked
 * makes the bitmaps unknown: then nothing may be written.
 */
#include "base/checked.h"
#include "base/log.h"
#include "blockcore/format/qcow2_bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Entries of all tables that are read when an image is opened: 16 MiB of them. */
#define TABLES_MAX (UINT64_C(1) << 21)
#define PIECE_ENTRIES 512

struct qcow2_bitmap_disk qcow2_bitmap_disk(const struct qcow2 *q)
{
    return (struct qcow2_bitmap_disk){
        .size = align_down(q->header.size, 512),
        .cluster_bits = q->cluster_bits,
        .file_size = q->file->size,
    };
}

void qcow2_bitmap_free(struct qcow2_bitmap *b)
{
    if (!b)
        return;
    dirty_set_clear(&b->dirty);
    free((void *)(uintptr_t)b->entry.name);
    free((void *)(uintptr_t)b->entry.extra);
    free(b);
}

struct qcow2_bitmap *qcow2_bitmap_new(struct qcow2 *q, const struct qcow2_bitmap_entry *entry)
{
    struct qcow2_bitmap_disk disk = qcow2_bitmap_disk(q);
    struct qcow2_bitmap *b = calloc(1, sizeof(*b));
    uint8_t *extra = malloc(entry->extra_length + 1);
    char *name = malloc(entry->name_length + 1);

    if (!b || !extra || !name) {
        free(b);
        free(extra);
        free(name);
        return NULL;
    }
    memcpy(extra, entry->extra, entry->extra_length);
    memcpy(name, entry->name, entry->name_length);
    name[entry->name_length] = '\0';
    b->q = q;
    b->entry = *entry;
    b->entry.extra = extra;
    b->entry.name = name;
    b->bitmap = (struct block_bitmap){
        .ops = &qcow2_bitmap_ops,
        .node = q->node,
        .name = name,
        .granularity = UINT64_C(1) << (entry->granularity_bits & 63),
        .size = disk.size,
        .enabled = entry->flags & QCOW2_BITMAP_AUTO,
        .unusable = qcow2_bitmap_entry_problem(entry, &disk),
    };
    dirty_set_init(&b->dirty, qcow2_bitmap_bits(b), &q->bitmaps->budget);
    return b;
}

static int out_of_memory(struct error *error)
{
    return error_set(error, ENOMEM, "out of memory for the bitmaps");
}

static int parse_directory(struct qcow2 *q, const uint8_t *data, struct error *error)
{
    struct qcow2_bitmaps *bitmaps = q->bitmaps;
    size_t size = q->header.bitmap_directory_size, at = 0;

    bitmaps->list = calloc(q->header.bitmap_count, sizeof(struct qcow2_bitmap *));
    if (!bitmaps->list)
        return out_of_memory(error);
    for (uint32_t i = 0; i < q->header.bitmap_count; i++) {
        struct qcow2_bitmap_entry entry;
        int err = qcow2_bitmap_entry_parse(data + at, size - at, i, &entry, error);

        if (err < 0)
            return err;
        bitmaps->list[i] = qcow2_bitmap_new(q, &entry);
        if (!bitmaps->list[i])
            return out_of_memory(error);
        bitmaps->list[i]->at = at;
        bitmaps->count++;
        at += qcow2_bitmap_entry_size(&entry);
    }
    return 0;
}

static int load_directory(struct qcow2 *q, struct error *error)
{
    uint64_t offset = q->header.bitmap_directory_offset, size = q->header.bitmap_directory_size;
    uint8_t *data;
    int err;

    if (!range_within(offset, size, q->file->size))
        return error_set(error, EINVAL,
                         "the bitmap directory is %" PRIu64 " bytes at offset %" PRIu64
                         ", beyond the end of the file (%" PRIu64 " bytes)",
                         size, offset, q->file->size);
    data = malloc(size);
    if (!data)
        return out_of_memory(error);
    err = block_read(q->file, data, size, offset);
    if (err < 0)
        error_set_errno(error, -err, "cannot read the bitmap directory");
    else
        err = parse_directory(q, data, error);
    free(data);
    return err;
}

static int compare_names(const void *x, const void *y)
{
    const struct qcow2_bitmap *a = *(struct qcow2_bitmap *const *)x;
    const struct qcow2_bitmap *b = *(struct qcow2_bitmap *const *)y;
    int order = strcmp(a->entry.name, b->entry.name);

    return order ? order : a->at < b->at ? -1 : 1;
}

/* Of bitmaps with the same name only the first can be used. */
static int find_duplicates(struct qcow2_bitmaps *bitmaps, struct error *error)
{
    struct qcow2_bitmap **sorted = calloc(bitmaps->count, sizeof(struct qcow2_bitmap *));

    if (!sorted)
        return out_of_memory(error);
    memcpy(sorted, bitmaps->list, bitmaps->count * sizeof(struct qcow2_bitmap *));
    qsort(sorted, bitmaps->count, sizeof(struct qcow2_bitmap *), compare_names);
    for (size_t i = 1; i < bitmaps->count; i++) {
        if (strcmp(sorted[i]->entry.name, sorted[i - 1]->entry.name) == 0 &&
            !sorted[i]->bitmap.unusable)
            sorted[i]->bitmap.unusable = "another bitmap of the image has the same name";
    }
    free(sorted);
    return 0;
}

/* Tells the guard of clusters. 1: something else is there. */
static int guard(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t count = div_round_up(length, q->cluster_size);

    if (!node_writable(q->node))
        return 0;
    if (qcow2_guard_reserve(q, count) < 0)
        return -ENOMEM;
    for (uint64_t i = 0; i < count; i++) {
        if (qcow2_guard_find(q, offset + (i << q->cluster_bits)) != GUARD_NONE)
            return 1;
        qcow2_guard_add(q, offset + (i << q->cluster_bits), GUARD_FIXED);
    }
    return 0;
}

static int guard_directory(struct qcow2 *q, struct error *error)
{
    int err = guard(q, q->header.bitmap_directory_offset, q->header.bitmap_directory_size);

    if (err < 0)
        return out_of_memory(error);
    return err == 0
               ? 0
               : error_set(error, EINVAL,
                           "the bitmap directory at offset %" PRIu64 " overlaps other metadata",
                           q->header.bitmap_directory_offset);
}

static void spoil(struct qcow2_bitmap *b, const char *why)
{
    b->owns_clusters = false;
    if (!b->bitmap.unusable)
        b->bitmap.unusable = why;
}

/* The tables themselves, before any data: *left entries of tables may still be read. */
static int guard_table(struct qcow2_bitmap *b, uint64_t *left)
{
    struct qcow2_bitmap_disk disk = qcow2_bitmap_disk(b->q);
    int err;

    if (b->entry.type != QCOW2_BITMAP_DIRTY_TRACKING || !qcow2_bitmap_table_sane(&b->entry, &disk))
        return 0;
    if (b->entry.table_size > *left) {
        spoil(b, "the bitmaps of the image are larger than what is kept track of");
        return 0;
    }
    *left -= b->entry.table_size;
    err = guard(b->q, b->entry.table_offset, (uint64_t)b->entry.table_size * 8);
    b->owns_clusters = err == 0;
    if (err > 0)
        spoil(b, "its table overlaps other metadata");
    return err < 0 ? err : 0;
}

/* 1: the value is broken, and the bitmap with it. */
static int guard_data(struct qcow2_bitmap *b, uint64_t value)
{
    struct qcow2_bitmap_disk disk = qcow2_bitmap_disk(b->q);
    int err = 0;

    if (!qcow2_bitmap_value_valid(value, &disk)) {
        spoil(b, "its table is broken");
        return 1;
    }
    if (value != QCOW2_BITMAP_ALL_ZEROES && value != QCOW2_BITMAP_ALL_ONES)
        err = guard(b->q, value, b->q->cluster_size);
    if (err > 0)
        spoil(b, "its data overlaps other metadata");
    return err;
}

static int scan_table(struct qcow2_bitmap *b)
{
    uint8_t piece[PIECE_ENTRIES * 8];
    uint64_t n;
    int err = 0;

    for (uint64_t i = 0; i < b->entry.table_size && err == 0 && b->owns_clusters; i += n) {
        n = min_u64(b->entry.table_size - i, PIECE_ENTRIES);
        err = block_read(b->q->file, piece, n * 8, b->entry.table_offset + i * 8);
        if (err < 0) {
            spoil(b, "its table cannot be read");
            return 0;
        }
        for (uint64_t k = 0; k < n && err == 0; k++)
            err = guard_data(b, get_be64(piece + k * 8));
        coroutine_yield();
    }
    return err < 0 ? err : 0;
}

static int scan_tables(struct qcow2_bitmaps *bitmaps, struct error *error)
{
    uint64_t left = TABLES_MAX;
    int err = 0;

    for (size_t i = 0; i < bitmaps->count && err == 0; i++)
        err = guard_table(bitmaps->list[i], &left);
    for (size_t i = 0; i < bitmaps->count && err == 0; i++)
        err = scan_table(bitmaps->list[i]);
    return err < 0 ? out_of_memory(error) : 0;
}

static int load_all(struct qcow2 *q, struct error *error)
{
    int err = guard_directory(q, error);

    if (err == 0)
        err = load_directory(q, error);
    if (err == 0)
        err = find_duplicates(q->bitmaps, error);
    if (err == 0)
        err = scan_tables(q->bitmaps, error);
    return err;
}

static void free_all(struct qcow2 *q)
{
    for (size_t i = 0; q->bitmaps && i < q->bitmaps->count; i++)
        qcow2_bitmap_free(q->bitmaps->list[i]);
    if (q->bitmaps)
        free(q->bitmaps->list);
    free(q->bitmaps);
    q->bitmaps = NULL;
}

int qcow2_bitmaps_prepare(struct qcow2 *q)
{
    if (q->bitmaps)
        return 0;
    q->bitmaps = calloc(1, sizeof(*q->bitmaps));
    if (!q->bitmaps)
        return -ENOMEM;
    q->bitmaps->budget.max = BLOCK_BITMAP_MEMORY_MAX;
    return 0;
}

int qcow2_bitmaps_open(struct qcow2 *q, struct error *error)
{
    struct error problem = {.text = ""};
    int err;

    if (!q->header.has_bitmaps)
        return 0;
    err = qcow2_bitmaps_prepare(q);
    if (err < 0)
        return out_of_memory(error);
    err = load_all(q, &problem);
    if (err == 0)
        return 0;
    free_all(q);
    if (err == -ENOMEM)
        return out_of_memory(error);
    if (node_writable(q->node))
        return error_set(error, -err,
                         "%s: open the image read-only, or repair it with 'qemu-img check -r all'",
                         problem.text);
    log_warning("%s: %s; its bitmaps cannot be used", node_name(q->node), problem.text);
    return 0;
}

void qcow2_bitmaps_close(struct qcow2 *q)
{
    if (q->bitmaps)
        qcow2_bitmaps_save(q);
    free_all(q);
}
