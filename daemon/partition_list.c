/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Printing a partition table: a heading, and a line for each partition.  Fields are aligned, and
 * separated by blanks; one without a value is "-".  Labels are quoted and escaped, so that a line
 * has as many fields as the heading for everybody who knows quotes.
 */
#include "daemon/partition_list.h"

#include "base/reactor.h"
#include "blockcore/node.h"
#include "blockcore/partition.h"
#include "daemon/image.h"
#include "daemon/objects.h"

#include <inttypes.h>
#include <string.h>

/* Escapes at their longest, quotes, end. */
#define LABEL_SHOWN (4 * GPT_NAME_TEXT_SIZE + 3)

struct listing {
    struct arguments arguments; /* for reading */
    struct block_context context;
    FILE *out;
    struct error *error;
};

static void quote(const char *label, char out[LABEL_SHOWN])
{
    char shown[LABEL_SHOWN - 2];

    snprintf(out, LABEL_SHOWN, *label ? "'%s'" : "-",
             error_escape(shown, sizeof(shown), label, strlen(label)));
}

static void print(const struct partition_table *table, FILE *out)
{
    static const char row[] = "%-6s  %-14s  %-14s  %-36s  %-16s  %s\n";
    char number[16], start[24], size[24], label[LABEL_SHOWN];

    fprintf(out, row, "number", "start", "size", "type", "label", "uuid");
    for (size_t i = 0; i < table->count; i++) {
        const struct partition *item = &table->items[i];

        snprintf(number, sizeof(number), "%" PRIu32, item->number);
        snprintf(start, sizeof(start), "%" PRIu64, item->offset);
        snprintf(size, sizeof(size), "%" PRIu64, item->size);
        quote(item->label, label);
        fprintf(out, row, number, start, size, item->type, label, *item->uuid ? item->uuid : "-");
    }
}

/* In a coroutine. */
static int list(void *arg)
{
    struct listing *listing = arg;
    struct partition_table table;
    struct node *disk;
    int err = image_open_disk(&listing->context, &listing->arguments, &disk, NULL, listing->error);

    if (err < 0)
        return err;
    err = partition_table_read(disk, &table, listing->error);
    if (err == 0)
        print(&table, listing->out);
    partition_table_fini(&table);
    node_unref(disk);
    return err;
}

int partition_list_run(const struct arguments *arguments, FILE *out, struct error *error)
{
    struct listing listing = {.arguments = *arguments, .out = out, .error = error};
    struct objects *objects = NULL;
    int err = reactor_init(error);

    if (err < 0)
        return err;
    listing.arguments.read_only = true;
    err = objects_new_described(&arguments->objects, &objects, error);
    if (err == 0) {
        listing.context = image_context(arguments, objects);
        err = reactor_run_coroutine(list, &listing);
    }
    if (err < 0 && !error->text[0])
        error_set_errno(error, -err, "Could not use '%s'", arguments->image);
    objects_free(objects);
    reactor_fini();
    return err;
}
