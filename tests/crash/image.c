/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The images.  Most are made by the driver, as users would; those with compressed clusters are
 * built, so that these lie as close as they can.  The first part of a disk has data, zeroes and
 * holes in turns; the rest is empty and may need new tables.
 */
#include "tests/crash/image.h"

#include "base/checked.h"
#include "base/options.h"
#include "blockcore/block.h"
#include "blockcore/create.h"
#include "blockcore/drivers.h"
#include "blockcore/snapshot.h"
#include "tests/support/qcow2_image.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIRECTORY "/sim/"
#define DATA_NAME "data.img" /* relative, so that the image can be looked at elsewhere */
#define BACKING_NAME "base.img"
#define IMAGE_PATH DIRECTORY "disk.img"
#define DATA_PATH DIRECTORY DATA_NAME
#define BACKING_PATH DIRECTORY BACKING_NAME
#define SECTOR 512

enum {
    KIND_BACKING = 1 << 0,
    KIND_COMPRESSED = 1 << 1,
    KIND_DATA_FILE = 1 << 2,
    KIND_SMALL_CACHES = 1 << 3, /* tables are written back in the midst of things */
    KIND_ALONE = 1 << 4,        /* tests/support/qcow2_check.c knows such images */
    KIND_SNAPSHOT = 1 << 5,     /* it has a snapshot of what it holds */
};

enum { WIDTH_16 = 1 << 0, WIDTH_1 = 1 << 1, WIDTH_64 = 1 << 2, WIDTHS = 7, WIDTHS_MANY = 5 };

struct image_size {
    const char *name;
    unsigned cluster_bits;
    uint64_t clusters;
    unsigned cost; /* of judging a state, about, in those of small images */
};

struct image_kind {
    const char *name;
    const char *options; /* of creation */
    unsigned flags;
    unsigned min_cluster_bits;
    unsigned widths; /* of refcounts: WIDTH_* */
};

static const struct image_size sizes[] = {
    {"c512", 9, 400, 1},
    {"c4k", 12, 40, 1},
    {"c64k", 16, 10, 8},
    {"c2m", 21, 4, 200},
};

static const struct image_kind kinds[] = {
    {"plain", "", KIND_ALONE, 0, WIDTHS},
    {"v2", ",compat=0.10", KIND_ALONE | KIND_SNAPSHOT, 0, WIDTH_16},
    {"caches", "", KIND_ALONE | KIND_SMALL_CACHES, 0, WIDTH_16},
    {"snapshot", "", KIND_ALONE | KIND_SNAPSHOT | KIND_SMALL_CACHES, 0, WIDTHS_MANY},
    {"lazy", ",lazy_refcounts=on", KIND_ALONE, 0, WIDTHS},
    {"compressed", NULL, KIND_COMPRESSED | KIND_ALONE, 0, WIDTHS},
    {"compressedsnapshot", NULL, KIND_COMPRESSED | KIND_ALONE | KIND_SNAPSHOT, 0, WIDTHS_MANY},
    {"backing", ",backing_file=" BACKING_NAME ",backing_fmt=raw", KIND_BACKING | KIND_ALONE, 0,
     WIDTHS},
    {"extl2", ",extended_l2=on", 0, 14, WIDTHS},
    {"extl2snapshot", ",extended_l2=on", KIND_SNAPSHOT, 14, WIDTHS_MANY},
    {"data", ",data_file=" DATA_NAME, KIND_DATA_FILE, 0, WIDTHS},
    {"dataraw", ",data_file=" DATA_NAME ",data_file_raw=on", KIND_DATA_FILE, 0, WIDTH_16},
};

static const unsigned refcount_widths[] = {16, 1, 64}; /* in the order of WIDTH_* */

static const struct image_kind raw_kind = {"raw", "", 0, 0, 0};
static const struct image_size raw_size = {"raw", 12, 16, 1};

static const struct block_context context = {.drivers = block_drivers, .engine = &io_engine_sim};

static void row_fill(struct image_row *row, const char *format, const struct image_size *size,
                     const struct image_kind *kind, unsigned refcount_bits)
{
    *row = (struct image_row){
        .format = format,
        .size = size,
        .kind = kind,
        .refcount_bits = refcount_bits,
        .cluster = UINT64_C(1) << size->cluster_bits,
        .bytes = size->clusters << size->cluster_bits,
        .share = 1.0 / size->cost / (kind->flags & KIND_COMPRESSED ? 8 : 1),
    };
    if (strcmp(format, "raw") == 0)
        snprintf(row->name, sizeof(row->name), "raw");
    else
        snprintf(row->name, sizeof(row->name), "%s-%s-r%u", size->name, kind->name, refcount_bits);
}

bool image_row_get(size_t index, struct image_row *ret)
{
    if (index-- == 0) {
        row_fill(ret, "raw", &raw_size, &raw_kind, 0);
        return true;
    }
    for (size_t s = 0; s < ARRAY_SIZE(sizes); s++) {
        for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
            if (sizes[s].cluster_bits < kinds[k].min_cluster_bits)
                continue;
            for (size_t r = 0; r < ARRAY_SIZE(refcount_widths); r++) {
                if (!(kinds[k].widths & 1u << r) || index-- > 0)
                    continue;
                row_fill(ret, "qcow2", &sizes[s], &kinds[k], refcount_widths[r]);
                return true;
            }
        }
    }
    return false;
}

int image_open(const struct image_row *row, unsigned flags, const char *snapshot, struct node **ret,
               struct error *error)
{
    json_t *options = json_object();
    int err;

    if (row->kind->flags & KIND_SMALL_CACHES)
        json_object_update_new(
            options, json_pack("{s:i, s:i}", "l2-cache-size", 1, "refcount-cache-size", 1));
    if (snapshot)
        json_object_set_new(options, "snapshot", json_string(snapshot));
    err = node_open_image(&context, IMAGE_PATH, row->format, options, flags, ret, NULL, error);
    json_decref(options);
    return err;
}

static int fill(const struct image_row *row, struct node *node, uint8_t *model)
{
    uint64_t clusters = row->bytes / row->cluster;
    struct prng prng = prng_of(row->bytes);
    int err = 0;

    for (uint64_t i = 0; i < clusters * 3 / 4 && err == 0; i++) {
        uint64_t at = i * row->cluster;

        if (i % 4 == 0) {
            prng_fill(&prng, model + at, row->cluster);
            err = block_write(node, model + at, row->cluster, at, 0);
        } else if (i % 4 == 2) {
            memset(model + at, 0, row->cluster);
            err = block_zero(node, at, row->cluster, 0);
        }
    }
    return err < 0 ? err : block_flush(node);
}

/* A backing file that is somewhat shorter than the disk. */
static void make_backing(const struct image_row *row, uint8_t *model)
{
    uint64_t length = align_down(row->bytes / 4 * 3, SECTOR);
    struct prng prng = prng_of(7);

    prng_fill(&prng, model, length);
    sim_disk_create(BACKING_PATH, model, length);
}

static void build_compressed(const struct image_row *row, uint8_t *model)
{
    struct qcow2_image image = {.version = 3,
                                .cluster_bits = row->size->cluster_bits,
                                .order = (unsigned)__builtin_ctz(row->refcount_bits),
                                .size = row->bytes};
    /* Clusters that share storage need more than one bit of refcount. */
    bool packed = row->refcount_bits > 1;

    qcow2_image_start(&image);
    for (uint64_t i = 0; i < row->size->clusters * 3 / 4; i++) {
        if (i % 4 == 3)
            continue;
        if (i % 4 == 0)
            qcow2_image_data(&image, i, (uint8_t)(i + 1));
        else
            qcow2_image_compressed(&image, i, (uint8_t)(i + 1), packed);
        memset(model + i * row->cluster, (int)(uint8_t)(i + 1), row->cluster);
    }
    if (row->kind->flags & KIND_SNAPSHOT)
        qcow2_image_snapshot(&image);
    qcow2_image_finish(&image);
    sim_disk_create(IMAGE_PATH, image.data, image.length);
    qcow2_image_fini(&image);
}

static int create(const struct image_row *row, struct error *error)
{
    json_t *options;
    char text[256];
    int err;

    snprintf(text, sizeof(text), "size=%lu,cluster_size=%lu,refcount_bits=%u%s", row->bytes,
             row->cluster, row->refcount_bits, row->kind->options);
    if (strcmp(row->format, "raw") == 0) {
        sim_disk_create(IMAGE_PATH, NULL, row->bytes);
        return 0;
    }
    err = options_parse(text, NULL, &options, error);
    if (err < 0)
        return err;
    err = block_create(&context, row->format, IMAGE_PATH, options, error);
    json_decref(options);
    return err;
}

int image_make(const struct image_row *row, uint8_t *model, struct error *error)
{
    struct node *node;
    int err;

    memset(model, 0, row->bytes);
    if (row->kind->flags & KIND_COMPRESSED) {
        build_compressed(row, model);
        return 0;
    }
    if (row->kind->flags & KIND_BACKING)
        make_backing(row, model);
    err = create(row, error);
    if (err == 0)
        err = image_open(row, NODE_WRITABLE | NODE_UNMAP, NULL, &node, error);
    if (err < 0)
        return err;
    err = fill(row, node, model);
    if (err == 0 && (row->kind->flags & KIND_SNAPSHOT))
        err = block_snapshot_create(node, "s1", error);
    node_unref(node);
    return err < 0 ? error_set(error, -err, "%s: cannot be filled", row->name) : 0;
}

const char *image_file(const struct image_row *row, unsigned index)
{
    if (index == 0)
        return IMAGE_PATH;
    return index == 1 && (row->kind->flags & KIND_DATA_FILE) ? DATA_PATH : NULL;
}

void image_copy(const struct image_row *row, struct content *files)
{
    for (unsigned i = 0; image_file(row, i); i++)
        sim_disk_copy(image_file(row, i), &files[i]);
}

void image_restore(const struct image_row *row, const struct content *files)
{
    for (unsigned i = 0; image_file(row, i); i++)
        sim_disk_restore(image_file(row, i), &files[i]);
}

void image_save(const struct image_row *row, const struct content *files, const char *directory)
{
    struct content backing = {.data = NULL};
    char *path;

    for (unsigned i = 0; image_file(row, i); i++) {
        path = test_path(directory, strrchr(image_file(row, i), '/') + 1);
        content_save(&files[i], path);
        free(path);
    }
    if (row->kind->flags & KIND_BACKING) {
        sim_disk_copy(BACKING_PATH, &backing);
        path = test_path(directory, strrchr(BACKING_PATH, '/') + 1);
        content_save(&backing, path);
        free(path);
        content_fini(&backing);
    }
}

const char *image_snapshot(const struct image_row *row)
{
    return row->kind->flags & KIND_SNAPSHOT ? "s1" : NULL;
}

bool image_counts_alone(const struct image_row *row)
{
    return row->kind->flags & KIND_ALONE;
}
