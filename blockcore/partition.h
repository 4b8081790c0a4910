/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The partitions of a disk: what they are, and which one is meant.  They are read through the
 * node, after its format and encryption.
 */
#ifndef EVNBD_BLOCKCORE_PARTITION_H
#define EVNBD_BLOCKCORE_PARTITION_H

#include "base/error.h"
#include "blockcore/partition_disk.h"

#include <stddef.h>

struct node;

struct partition {
    uint32_t number;                /* from 1; logical ones of an MBR from 5 */
    uint64_t offset, size;          /* bytes, as the table says: may pass the end of the disk */
    bool holds_table;               /* a write to it could change the table itself */
    char type[GUID_TEXT_SIZE];      /* GPT: a GUID; MBR: two hexadecimal digits at most */
    char uuid[GUID_TEXT_SIZE];      /* "" when it has none */
    char label[GPT_NAME_TEXT_SIZE]; /* UTF-8, any characters; MBR: "" */
};

struct partition_table {
    const char *scheme; /* "MBR" or "GPT" */
    uint32_t sector_size;
    struct partition *items; /* in the order of their numbers */
    size_t count;
};

/*
 * Reads the table, in a coroutine; partition_table_fini in any case.  Warns of what is broken and
 * can be done without.  -ENOENT: there is no table that can be used.
 */
int partition_table_read(struct node *node, struct partition_table *ret, struct error *error);
void partition_table_fini(struct partition_table *table);

/* One of these; the others are NULL or 0. The strings are parts of the text that was parsed. */
struct partition_choice {
    uint32_t number;
    const char *label, *uuid;
};

/* Reads "NUMBER", "label=NAME" or "uuid=UUID". */
int partition_choice_parse(const char *text, struct partition_choice *ret, struct error *error);

/*
 * Finds the partition that is meant, the only one, and it lies on the disk of `disk_size` bytes.
 * *ret belongs to the table.
 */
int partition_find(const struct partition_table *table, const struct partition_choice *choice,
                   uint64_t disk_size, const struct partition **ret, struct error *error);

#endif
