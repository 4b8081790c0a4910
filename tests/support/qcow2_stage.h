/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening qcow2 images on the simulated disk, for the tests of the driver. */
#ifndef EVNBD_TESTS_QCOW2_STAGE_H
#define EVNBD_TESTS_QCOW2_STAGE_H

#include "base/bytes.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "tests/support/qcow2_image.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>

#define STAGE_PATH "/sim/disk.qcow2"
#define STAGE_DATA_PATH "/sim/disk.data" /* of images with a data file */

#define STAGE_EXTENDED (UINT64_C(1) << 4)  /* incompatible bit: extended L2 entries */
#define STAGE_DATA_FILE (UINT64_C(1) << 2) /* incompatible bit: external data file */
#define STAGE_COPIED (UINT64_C(1) << 63)
/* The header extension that names the data file: for image->extensions. */
#define STAGE_DATA_EXTENSION                                                                       \
    "DATA\0\0\0\x9"                                                                                \
    "disk.data\0\0\0\0\0\0\0"
#define STAGE_DATA_EXTENSION_LENGTH 24

/* Puts the built image on the disk, and an empty data file if it has one. */
static inline void stage_store(const struct qcow2_image *image)
{
    if (image->incompatible >> 2 & 1)
        sim_disk_create(STAGE_DATA_PATH, NULL, image->size);
    sim_disk_create(STAGE_PATH, image->data, image->length);
}

static inline int stage_try_open(unsigned flags, struct node **ret, struct error *error)
{
    static const struct block_context context = {.drivers = block_drivers,
                                                 .engine = &io_engine_sim};

    return node_open_image(&context, STAGE_PATH, "qcow2", NULL, flags, ret, NULL, error);
}

static inline struct node *stage_open(unsigned flags)
{
    struct error error = {.text = ""};
    struct node *node;

    if (stage_try_open(flags, &node, &error) < 0)
        test_die("the image does not open: %s", error.text);
    return node;
}

/* Dies unless the image on the disk is without errors, and without leaks when `strict`. */
static inline void stage_check(bool strict)
{
    struct qcow2_report report;
    size_t length;
    uint8_t *data = sim_disk_content(STAGE_PATH, &length);

    qcow2_image_check(data, length, &report);
    free(data);
    if (report.errors > 0 || (strict && report.leaks > 0))
        test_die("%u errors, %u leaks: %s", report.errors, report.leaks, report.text);
}

/* The image as it is on the disk now, to be freed. */
static inline uint8_t *stage_content(size_t *ret_length)
{
    return sim_disk_content(STAGE_PATH, ret_length);
}

#endif
