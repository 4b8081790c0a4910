/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: the partition table of a disk.  Each partition that is listed and then found must
 * lie on the disk; reading changes nothing.
 *
 * Input: the start of the disk, then the end of it, with zeroes between: what is before and behind
 * the middle of the input.
 */
#include "base/checked.h"
#include "base/log.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/partition.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <stdlib.h>
#include <string.h>

#define PATH "/sim/disk.raw"
#define GAP 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct driver *const drivers[] = {&driver_raw, &driver_file, NULL};

static void require(bool condition)
{
    if (!condition)
        abort();
}

static void find_each(const struct partition_table *table, uint64_t disk_size)
{
    for (size_t i = 0; i < table->count; i++) {
        const struct partition *item = &table->items[i], *found = NULL;
        struct partition_choice choice = {.number = item->number};
        struct error error = {""};

        require(item->number > 0 && item->size > 0 && memchr(item->label, 0, sizeof(item->label)));
        if (partition_find(table, &choice, disk_size, &found, &error) == 0)
            require(found == item && range_within(found->offset, found->size, disk_size));
        else
            require(error.text[0] != '\0');
    }
}

static int run_all(void *arg)
{
    const struct block_context context = {.drivers = drivers, .engine = &io_engine_sync};
    struct partition_table table;
    struct error error = {""};
    struct node *node;
    int err;

    require(node_open_image(&context, PATH, "raw", NULL, 0, &node, NULL, &error) == 0);
    err = partition_table_read(node, &table, &error);
    require((err < 0) == (error.text[0] != '\0'));
    if (err == 0)
        find_each(&table, node->size);
    partition_table_fini(&table);
    node_unref(node);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct sim_disk_config config = {.seed = size};
    size_t half = size / 2, disk_size = (size + GAP) / 512 * 512;
    uint8_t *disk = calloc(1, disk_size);

    log_init("fuzz", LOG_LEVEL_ERROR);
    require(disk != NULL);
    memcpy(disk, data, half);
    memcpy(disk + disk_size - (size - half), data + half, size - half);
    sim_disk_install(&config);
    sim_disk_create(PATH, disk, disk_size);
    test_run(run_all, NULL);
    sim_disk_remove();
    free(disk);
    return 0;
}
