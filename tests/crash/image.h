/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The images that crash tests start from, on the simulated disk: one row for each combination of
 * cluster size, kind and refcount width.
 */
#ifndef EVNBD_TESTS_CRASH_IMAGE_H
#define EVNBD_TESTS_CRASH_IMAGE_H

#include "blockcore/node.h"
#include "tests/crash/cut.h"

#define IMAGE_NAME_MAX 40

struct image_size;
struct image_kind;

struct image_row {
    char name[IMAGE_NAME_MAX]; /* "c4k-lazy-r16" */
    const char *format;
    const struct image_size *size;
    const struct image_kind *kind;
    unsigned refcount_bits;
    uint64_t cluster; /* bytes */
    uint64_t bytes;   /* of the disk */
    double share;     /* of all states, in those of a cheap image */
};

/* All rows; `index` from 0; false: no more. */
bool image_row_get(size_t index, struct image_row *ret);

/*
 * Makes the image of a row and fills it, in a coroutine; what it holds goes to `model`, which has
 * room for the disk.  -ENOTSUP with a sentence: this build cannot have such images.
 */
int image_make(const struct image_row *row, uint8_t *model, struct error *error);

/* The snapshot that it has then, which holds the same; or NULL. */
const char *image_snapshot(const struct image_row *row);

/* The bitmap that it has then, all clean; or NULL. */
const char *image_bitmap(const struct image_row *row);

/* Opens it, with its options. */
int image_open(const struct image_row *row, unsigned flags, const char *snapshot, struct node **ret,
               struct error *error);

/* The files that belong to it and may change. NULL: no more. */
const char *image_file(const struct image_row *row, unsigned index);

/* Which of them hold no metadata; `ret` has CUT_FILES. */
void image_data_only(const struct image_row *row, bool *ret);

/* The files into contents, and back. `files` has CUT_FILES. */
void image_copy(const struct image_row *row, struct content *files);
void image_restore(const struct image_row *row, const struct content *files);
/* The files, and those that never change, into a directory outside the simulation. */
void image_save(const struct image_row *row, const struct content *files, const char *directory);

/* Whether the tests' own checker (tests/support/qcow2_image.h) can judge such images. */
bool image_counts_alone(const struct image_row *row);

/* Whether worker threads decode some of it, so that no run is quite as another. */
bool image_varies(const struct image_row *row);

/* The file that holds the disk by itself, or NULL. */
const char *image_raw_file(const struct image_row *row);

/* What qemu-img is to be told to open disk.img in its directory, as a shell reads it. */
void image_qemu_arguments(const struct image_row *row, char *ret, size_t size);

#endif
