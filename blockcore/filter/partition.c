/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The filter `partition`: one partition of a disk.  It only says where that is; a partition that
 * holds a part of the table itself is shown read-only.
 */
#include "blockcore/partition.h"

#include "base/log.h"
#include "blockcore/drivers.h"
#include "blockcore/filter.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

struct part {
    char *partition; /* option */
    uint64_t offset; /* bytes */
};

static const struct option_row part_options[] = {
    {"partition", OPTION_STRING, offsetof(struct part, partition), NULL,
     "its number, label=NAME or uuid=UUID"},
    {0},
};

static int find(struct node *node, const struct partition_choice *choice, struct error *error)
{
    struct part *part = node->state;
    const struct partition *found;
    struct partition_table table;
    int err = partition_table_read(node->file, &table, error);

    if (err < 0)
        error_prefix(error, "Could not find partition %s: ", part->partition);
    else
        err = partition_find(&table, choice, node->file->size, &found, error);
    if (err == 0) {
        part->offset = found->offset;
        node->size = found->size;
        if (found->holds_table && node_writable(node)) {
            log_warning("warning: partition %" PRIu32 " of %s holds a part of the partition "
                        "table: it is served read-only",
                        found->number, node_name(node));
            node->flags &= ~(unsigned)NODE_WRITABLE;
        }
    }
    partition_table_fini(&table);
    return err;
}

static int part_open(struct node *node, struct node_open *open, struct error *error)
{
    struct part *part = node->state;
    struct partition_choice choice;
    int err = options_take(open->options, part_options, part, "driver 'partition'", error);

    if (err < 0)
        return err;
    if (!part->partition)
        return error_set(error, EINVAL,
                         "the driver 'partition' needs the option 'partition': a number, "
                         "label=NAME or uuid=UUID");
    err = partition_choice_parse(part->partition, &choice, error);
    if (err == 0)
        err = filter_open_file(node, open, error);
    return err == 0 ? find(node, &choice, error) : err;
}

static void part_close(struct node *node)
{
    options_release(part_options, node->state);
}

static int part_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    const struct part *part = node->state;

    *ret = (struct extent){
        .kind = EXTENT_DATA,
        .flags = EXTENT_WRITABLE,
        .length = length,
        .child = node->file,
        .child_offset = part->offset + offset,
    };
    return 0;
}

const struct driver driver_partition = {
    .name = "partition",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct part),
    .options = part_options,
    .open = part_open,
    .close = part_close,
    .map = part_map,
};
