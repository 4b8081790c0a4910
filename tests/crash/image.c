/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The images.  Most are made by the driver, as users would; those with compressed clusters are
 * built, so that these lie as close as they can.  The first part of a disk has data, zeroes and
 * holes in turns; the rest is empty and may need new tables.
 */
#include "tests/crash/image.h"

#include "base/checked.h"
#include "base/options.h"
#include "base/secret.h"
#include "blockcore/bitmap.h"
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
#define SECRET_ID "key"
#define SECRET_TEXT "a secret of the tests"
#define SECTOR 512
#define EXTENDED_L2 (UINT64_C(1) << 4) /* incompatible bit */

enum {
    KIND_BACKING = 1 << 0,
    KIND_COMPRESSED = 1 << 1,
    KIND_DATA_FILE = 1 << 2,
    KIND_SMALL_CACHES = 1 << 3, /* tables are written back in the midst of things */
    KIND_ALONE = 1 << 4,        /* tests/support/qcow2_check.c knows such images */
    KIND_SNAPSHOT = 1 << 5,     /* it has a snapshot of what it holds */
    KIND_LONG = 1 << 6,         /* the backing file is longer than the disk */
    KIND_EXTENDED = 1 << 7,     /* subclusters: some clusters are data only in part */
    KIND_RAW_DATA = 1 << 8,     /* the data file holds the disk by itself */
    KIND_LUKS = 1 << 9,
    KIND_BITMAP = 1 << 10, /* it has a bitmap without dirty bits */
};

/* Bit i: refcounts of 2^i bits. */
enum { WIDTH_16 = 1 << 4, WIDTHS = 0x51, WIDTHS_MANY = 0x50, WIDTHS_ALL = 0x7f };

struct image_size {
    const char *name;
    unsigned cluster_bits;
    uint64_t clusters;
    unsigned cost;   /* of judging a state, about, in those of small images */
    unsigned widths; /* of refcounts, at most */
};

struct image_kind {
    const char *name;
    const char *options; /* of creation */
    unsigned flags;
    unsigned min_cluster_bits;
    unsigned widths;  /* of refcounts */
    const char *open; /* options to open it with, or NULL */
};

static const struct image_size sizes[] = {
    {"c512", 9, 400, 1, WIDTHS_ALL}, {"c4k", 12, 40, 1, WIDTHS_ALL}, {"c16k", 14, 20, 3, WIDTHS},
    {"c64k", 16, 10, 8, WIDTHS},     {"c2m", 21, 4, 200, WIDTH_16},
};

#define ON_BACKING ",backing_file=" BACKING_NAME ",backing_fmt=raw"
#define WITH_DATA ",data_file=" DATA_NAME
#define ENCRYPTED ",encrypt.key-secret=" SECRET_ID ",encrypt.format="
#define OPEN_ENCRYPTED "encrypt.key-secret=" SECRET_ID ",encrypt.format="

static const struct image_kind kinds[] = {
    {"plain", "", KIND_ALONE, 0, WIDTHS_ALL},
    {"v2", ",compat=0.10", KIND_ALONE | KIND_SNAPSHOT, 0, WIDTH_16},
    {"v2backing", ",compat=0.10" ON_BACKING, KIND_ALONE | KIND_BACKING, 0, WIDTH_16},
    {"caches", "", KIND_ALONE | KIND_SMALL_CACHES, 0, WIDTH_16},
    {"snapshot", "", KIND_ALONE | KIND_SNAPSHOT | KIND_SMALL_CACHES, 0, WIDTHS_ALL & ~1},
    {"lazy", ",lazy_refcounts=on", KIND_ALONE, 0, WIDTHS},
    {"lazysnapshot", ",lazy_refcounts=on", KIND_ALONE | KIND_SNAPSHOT, 0, WIDTH_16},
    {"compressed", NULL, KIND_COMPRESSED | KIND_ALONE, 0, WIDTHS},
    {"compressedsnapshot", NULL, KIND_COMPRESSED | KIND_ALONE | KIND_SNAPSHOT, 0, WIDTHS_MANY},
    {"backing", ON_BACKING, KIND_BACKING | KIND_ALONE, 0, WIDTHS},
    {"longbacking", ON_BACKING, KIND_BACKING | KIND_LONG | KIND_ALONE, 0, WIDTH_16},
    {"lazybacking", ",lazy_refcounts=on" ON_BACKING, KIND_BACKING | KIND_SNAPSHOT | KIND_ALONE, 0,
     WIDTH_16},
    {"extl2", ",extended_l2=on", KIND_EXTENDED, 14, WIDTHS},
    {"extl2snapshot", ",extended_l2=on", KIND_EXTENDED | KIND_SNAPSHOT, 14, WIDTHS_MANY},
    {"extl2backing", ",extended_l2=on" ON_BACKING, KIND_EXTENDED | KIND_BACKING | KIND_LONG, 14,
     WIDTH_16},
    {"extl2compressed", NULL, KIND_EXTENDED | KIND_COMPRESSED | KIND_SNAPSHOT, 14, WIDTH_16},
    {"data", WITH_DATA, KIND_DATA_FILE, 0, WIDTHS},
    {"dataraw", WITH_DATA ",data_file_raw=on", KIND_DATA_FILE | KIND_RAW_DATA, 0, WIDTH_16},
    {"dataextl2", WITH_DATA ",extended_l2=on", KIND_DATA_FILE | KIND_EXTENDED, 14, WIDTH_16},
    {"bitmap", "", KIND_BITMAP | KIND_ALONE, 0, WIDTH_16},
    {"bitmapsnapshot", "", KIND_BITMAP | KIND_SNAPSHOT | KIND_ALONE, 0, WIDTH_16},
    {"lazybitmap", ",lazy_refcounts=on", KIND_BITMAP | KIND_ALONE, 0, WIDTH_16},
    {"bitmapdata", WITH_DATA, KIND_BITMAP | KIND_DATA_FILE, 0, WIDTH_16},
    {"aes", ENCRYPTED "aes", KIND_ALONE | KIND_SNAPSHOT, 0, WIDTH_16, OPEN_ENCRYPTED "aes"},
    {"luks", ENCRYPTED "luks,encrypt.iter-time=1", KIND_LUKS | KIND_SNAPSHOT, 12, WIDTH_16,
     OPEN_ENCRYPTED "luks"},
};

static const struct image_kind raw_kind = {"raw", "", 0, 0, 0};
static const struct image_size raw_size = {"raw", 12, 16, 1, 0};

static struct secret_store secrets;
static const struct block_context context = {
    .drivers = block_drivers, .engine = &io_engine_sim, .secrets = &secrets};

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
        .share = 1.0 / size->cost / (kind->flags & (KIND_COMPRESSED | KIND_LUKS) ? 16 : 1),
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
            for (unsigned order = 0; order <= 6; order++) {
                if (!(kinds[k].widths & sizes[s].widths & 1u << order) || index-- > 0)
                    continue;
                row_fill(ret, "qcow2", &sizes[s], &kinds[k], 1u << order);
                return true;
            }
        }
    }
    return false;
}

int image_open(const struct image_row *row, unsigned flags, const char *snapshot, struct node **ret,
               struct error *error)
{
    json_t *options;
    int err = options_parse(row->kind->open ? row->kind->open : "", NULL, &options, error);

    if (err < 0)
        return err;
    if (row->kind->flags & KIND_SMALL_CACHES)
        json_object_update_new(
            options, json_pack("{s:i, s:i}", "l2-cache-size", 1, "refcount-cache-size", 1));
    if (snapshot)
        json_object_set_new(options, "snapshot", json_string(snapshot));
    err = node_open_image(&context, IMAGE_PATH, row->format, options, flags, ret, NULL, error);
    json_decref(options);
    return err;
}

/* A part of the disk: some bytes, or zeroes. */
static int fill_part(struct node *node, struct prng *prng, uint8_t *model, uint64_t at,
                     uint64_t length, bool data)
{
    if (!data) {
        memset(model + at, 0, length);
        return block_zero(node, at, length, 0);
    }
    prng_fill(prng, model + at, length);
    return block_write(node, model + at, length, at, 0);
}

static int fill(const struct image_row *row, struct node *node, uint8_t *model)
{
    uint64_t clusters = row->bytes / row->cluster, part = row->cluster / 32;
    bool extended = row->kind->flags & KIND_EXTENDED;
    struct prng prng = prng_of(row->bytes);
    int err = 0;

    for (uint64_t i = 0; i < clusters * 3 / 4 && err == 0; i++) {
        uint64_t at = i * row->cluster;

        if (i % 4 == 0 || i % 4 == 2)
            err = fill_part(node, &prng, model, at, row->cluster, i % 4 == 0);
        if (err == 0 && extended && i % 4 >= 2)
            err = fill_part(node, &prng, model, at + 3 * part, 4 * part, true);
        if (err == 0 && extended && i % 4 == 3)
            err = fill_part(node, &prng, model, at + 9 * part, 2 * part, false);
    }
    return err < 0 ? err : block_flush(node);
}

/* A backing file that is somewhat shorter than the disk, or longer. */
static void make_backing(const struct image_row *row, uint8_t *model)
{
    uint64_t quarters = row->kind->flags & KIND_LONG ? 6 : 3;
    uint64_t length = align_down(row->bytes / 4 * quarters, SECTOR);
    struct prng prng = prng_of(7);
    uint8_t *data = malloc(length);

    if (!data)
        test_die("out of memory");
    prng_fill(&prng, data, length);
    memcpy(model, data, min_u64(length, row->bytes));
    sim_disk_create(BACKING_PATH, data, length);
    free(data);
}

/* Where the tables say zero or nothing, a data file that is not raw may hold anything. */
static void spoil_data_file(const struct image_row *row)
{
    uint8_t *data = malloc(row->bytes);

    if (!data)
        test_die("out of memory");
    memset(data, 0xdd, row->bytes);
    sim_disk_create(DATA_PATH, data, row->bytes);
    free(data);
}

static void build_compressed(const struct image_row *row, uint8_t *model)
{
    bool extended = row->kind->flags & KIND_EXTENDED;
    struct qcow2_image image = {.version = 3,
                                .cluster_bits = row->size->cluster_bits,
                                .order = (unsigned)__builtin_ctz(row->refcount_bits),
                                .incompatible = extended ? EXTENDED_L2 : 0,
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
    if (!secrets.list.next) {
        secret_store_init(&secrets);
        secret_store_add(&secrets, SECRET_ID, SECRET_TEXT, strlen(SECRET_TEXT), NULL);
    }
    err = create(row, error);
    if (err == 0 && (row->kind->flags & KIND_DATA_FILE) && !(row->kind->flags & KIND_RAW_DATA))
        spoil_data_file(row);
    if (err == 0)
        err = image_open(row, NODE_WRITABLE | NODE_UNMAP, NULL, &node, error);
    if (err < 0)
        return err;
    err = fill(row, node, model);
    if (err == 0 && (row->kind->flags & KIND_SNAPSHOT))
        err = block_snapshot_create(node, "s1", error);
    if (err == 0 && (row->kind->flags & KIND_BITMAP))
        err = block_bitmap_add(node, "b1", SECTOR, true, error);
    node_unref(node);
    return err < 0 ? error_set(error, -err, "%s: cannot be filled", row->name) : 0;
}

const char *image_file(const struct image_row *row, unsigned index)
{
    if (index == 0)
        return IMAGE_PATH;
    return index == 1 && (row->kind->flags & KIND_DATA_FILE) ? DATA_PATH : NULL;
}

void image_data_only(const struct image_row *row, bool *ret)
{
    ret[0] = strcmp(row->format, "raw") == 0;
    ret[1] = true;
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

const char *image_bitmap(const struct image_row *row)
{
    return row->kind->flags & KIND_BITMAP ? "b1" : NULL;
}

bool image_counts_alone(const struct image_row *row)
{
    return row->kind->flags & KIND_ALONE;
}

bool image_varies(const struct image_row *row)
{
    return row->kind->flags & KIND_COMPRESSED;
}

const char *image_raw_file(const struct image_row *row)
{
    return row->kind->flags & KIND_RAW_DATA ? DATA_PATH : NULL;
}

void image_qemu_arguments(const struct image_row *row, char *ret, size_t size)
{
    if (row->kind->open)
        snprintf(ret, size,
                 "--object secret,id=" SECRET_ID ",data='" SECRET_TEXT "' "
                 "--image-opts driver=%s,file.filename=disk.img,%s",
                 row->format, row->kind->open);
    else
        snprintf(ret, size, "-f %s disk.img", row->format);
}
