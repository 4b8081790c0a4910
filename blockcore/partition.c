/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading partition tables.  A GPT is used when the MBR says so, or when there is nothing in the
 * MBR's place; a GPT beside an MBR that does not know of it is a leftover.  The size of sectors is
 * where a GPT shows, or where the first record of an extended partition does.
 */
#include "blockcore/partition.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "blockcore/block.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The MBR, all EBRs; or the MBR, a GPT's header, its table, and the other header. */
#define METADATA_MAX (EBR_MAX + 4)

static const uint32_t sector_sizes[] = {512, 4096};

struct range {
    uint64_t offset, size; /* bytes */
};

/* A reading of one disk. */
struct reader {
    struct node *node;
    struct partition_table *table;
    size_t room; /* of table->items */
    struct range metadata[METADATA_MAX];
    size_t metadata_count;
    uint8_t mbr_sector[MBR_BYTES];
    struct mbr mbr;
    struct ebr_chain chain;
    uint8_t sector[GPT_SECTOR_MAX];
    struct gpt_header gpt;
    uint8_t *gpt_table; /* or NULL */
};

static uint64_t disk_sectors(const struct reader *r)
{
    return r->node->size / r->table->sector_size;
}

static void add_metadata(struct reader *r, uint64_t lba, uint64_t size)
{
    r->metadata[r->metadata_count++] = (struct range){lba * r->table->sector_size, size};
}

/* A new item, zeroed, for `sectors` sectors from `first` on; NULL: out of memory. */
static struct partition *add_partition(struct reader *r, uint32_t number, uint64_t first,
                                       uint64_t sectors)
{
    struct partition_table *table = r->table;
    struct partition *item;

    if (table->count == r->room) {
        size_t room = r->room ? 2 * r->room : 8;
        struct partition *items = realloc(table->items, room * sizeof(*items));

        if (!items)
            return NULL;
        table->items = items;
        r->room = room;
    }
    item = &table->items[table->count++];
    *item = (struct partition){
        .number = number,
        .offset = first * table->sector_size,
        .size = sectors * table->sector_size,
    };
    return item;
}

static int add_mbr_partition(struct reader *r, uint32_t number, const struct mbr_entry *entry)
{
    struct partition *item = add_partition(r, number, entry->first, entry->sectors);

    if (!item)
        return -ENOMEM;
    item->holds_table = mbr_entry_extended(entry);
    snprintf(item->type, sizeof(item->type), "%x", entry->type);
    if (r->mbr.disk_id != 0)
        snprintf(item->uuid, sizeof(item->uuid), "%08x-%02x", r->mbr.disk_id, number);
    return 0;
}

/* The extended partition whose chain counts, or NULL. */
static const struct mbr_entry *find_extended(const struct reader *r)
{
    const struct mbr_entry *found = NULL;

    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        const struct mbr_entry *entry = &r->mbr.entries[i];

        if (!mbr_entry_extended(entry))
            continue;
        if (found)
            log_warning("warning: %s has several extended partitions; only the logical partitions "
                        "of the first are used",
                        node_name(r->node));
        else
            found = entry;
    }
    return found;
}

static int read_sector(struct reader *r, uint64_t lba, size_t length)
{
    uint64_t offset;

    if (mul_overflows(lba, r->table->sector_size, &offset) ||
        !range_within(offset, length, r->node->size))
        return -EINVAL;
    return block_read(r->node, r->sector, length, offset);
}

/* Leaves the first of the sizes at which the chain of logical partitions can begin. */
static void find_mbr_sector_size(struct reader *r, const struct mbr_entry *extended)
{
    struct mbr ebr;

    for (size_t i = 0; extended && i < ARRAY_SIZE(sector_sizes); i++) {
        r->table->sector_size = sector_sizes[i];
        if (read_sector(r, extended->first, MBR_BYTES) < 0)
            continue;
        mbr_decode(r->sector, &ebr);
        if (ebr.has_signature)
            return;
    }
    r->table->sector_size = sector_sizes[0];
}

static int read_logical(struct reader *r, const struct mbr_entry *extended)
{
    uint32_t number = MBR_ENTRIES + 1;
    struct ebr_chain *chain = &r->chain;
    struct mbr_entry logical;
    bool more = true;
    int err = 0;

    ebr_chain_init(chain, extended);
    while (more && err == 0) {
        if (read_sector(r, chain->at, MBR_BYTES) < 0) {
            chain->broken = "a record cannot be read";
            break;
        }
        add_metadata(r, chain->at, r->table->sector_size);
        more = ebr_chain_step(chain, r->sector, &logical);
        if (mbr_entry_used(&logical))
            err = add_mbr_partition(r, number++, &logical);
    }
    if (chain->broken)
        log_warning("warning: the chain of logical partitions of %s is broken after partition "
                    "%" PRIu32 ": %s",
                    node_name(r->node), number - 1, chain->broken);
    return err;
}

static int read_mbr(struct reader *r)
{
    const struct mbr_entry *extended = find_extended(r);
    int err = 0;

    r->table->scheme = "MBR";
    find_mbr_sector_size(r, extended);
    add_metadata(r, 0, r->table->sector_size);
    for (unsigned i = 0; i < MBR_ENTRIES && err == 0; i++) {
        if (mbr_entry_used(&r->mbr.entries[i]))
            err = add_mbr_partition(r, i + 1, &r->mbr.entries[i]);
    }
    return err == 0 && extended ? read_logical(r, extended) : err;
}

/* Takes the table of a header. NULL, or what is wrong. */
static const char *load_gpt_table(struct reader *r)
{
    uint64_t bytes = gpt_table_bytes(&r->gpt);

    free(r->gpt_table);
    r->gpt_table = malloc(bytes);
    if (!r->gpt_table)
        return "has a table for which there is no memory";
    if (block_read(r->node, r->gpt_table, bytes, r->gpt.table_lba * r->table->sector_size) < 0)
        return "has a table that cannot be read";
    return gpt_table_intact(&r->gpt, r->gpt_table) ? NULL : "has a table with a wrong checksum";
}

/* Takes the GPT whose header is at `lba`. NULL, or what is wrong with it. */
static const char *load_gpt(struct reader *r, uint32_t sector_size, uint64_t lba)
{
    const char *wrong;

    r->table->sector_size = sector_size;
    if (lba == 0 || lba >= disk_sectors(r))
        return "is not there";
    if (read_sector(r, lba, sector_size) < 0)
        return "cannot be read";
    wrong = gpt_header_decode(r->sector, sector_size, lba, disk_sectors(r), &r->gpt);
    return wrong ? wrong : load_gpt_table(r);
}

/* The LBA where the broken header at LBA 1 has its copy; 0: it does not say. */
static uint64_t alternate_of_broken(struct reader *r, uint32_t sector_size)
{
    r->table->sector_size = sector_size;
    return read_sector(r, 1, sector_size) < 0 ? 0 : gpt_header_alternate(r->sector);
}

/* Finds a GPT that is intact, the copy at the end if need be. */
static int find_gpt(struct reader *r, struct error *error)
{
    const char *wrong = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(sector_sizes); i++) {
        const char *here = load_gpt(r, sector_sizes[i], 1);

        if (!here)
            return 0;
        if (!wrong || gpt_header_alternate(r->sector) != 0)
            wrong = here;
    }
    for (size_t i = 0; i < ARRAY_SIZE(sector_sizes); i++) {
        uint64_t last = r->node->size / sector_sizes[i] - 1;

        if (!load_gpt(r, sector_sizes[i], last) ||
            !load_gpt(r, sector_sizes[i], alternate_of_broken(r, sector_sizes[i]))) {
            log_warning("warning: the GPT header at the start of %s %s; the backup is used",
                        node_name(r->node), wrong);
            return 0;
        }
    }
    return error_set(error, ENOENT,
                     "the GPT header at the start of %s %s, and there is no intact backup",
                     node_name(r->node), wrong);
}

/* Whether the entry can be a partition at all; warns of what is odd. */
static bool check_gpt_entry(const struct reader *r, uint32_t number, const struct gpt_entry *entry)
{
    if (entry->first > entry->last || entry->last >= OFFSET_MAX / r->table->sector_size) {
        log_warning("warning: partition %" PRIu32 " of %s is ignored: it is said to lie in the "
                    "sectors %" PRIu64 " to %" PRIu64,
                    number, node_name(r->node), entry->first, entry->last);
        return false;
    }
    if (entry->first < r->gpt.first_usable || entry->last > r->gpt.last_usable)
        log_warning("warning: partition %" PRIu32 " of %s leaves the part of the disk that the "
                    "GPT has for partitions",
                    number, node_name(r->node));
    return true;
}

static int read_gpt_entries(struct reader *r)
{
    for (uint32_t i = 0; i < r->gpt.entries; i++) {
        struct gpt_entry entry;
        struct partition *item;

        if (!gpt_entry_decode(&r->gpt, r->gpt_table, i, &entry) ||
            !check_gpt_entry(r, i + 1, &entry))
            continue;
        item = add_partition(r, i + 1, entry.first, entry.last - entry.first + 1);
        if (!item)
            return -ENOMEM;
        gpt_guid_format(entry.type, item->type);
        gpt_guid_format(entry.guid, item->uuid);
        memcpy(item->label, entry.name, sizeof(item->label));
    }
    return 0;
}

/* With the GPT that find_gpt has found. */
static int read_gpt(struct reader *r)
{
    r->table->scheme = "GPT";
    add_metadata(r, 0, 2 * (uint64_t)r->table->sector_size);
    add_metadata(r, r->gpt.my_lba, r->table->sector_size);
    add_metadata(r, r->gpt.table_lba, gpt_table_bytes(&r->gpt));
    if (r->gpt.alternate_lba < disk_sectors(r))
        add_metadata(r, r->gpt.alternate_lba, r->table->sector_size);
    return read_gpt_entries(r);
}

static int no_table(const struct reader *r, struct error *error)
{
    return error_set(error, ENOENT, "%s has no partition table", node_name(r->node));
}

static int read_any(struct reader *r, struct error *error)
{
    int err;

    if (r->node->size < MBR_BYTES)
        return no_table(r, error);
    err = block_read(r->node, r->mbr_sector, MBR_BYTES, 0);
    if (err < 0)
        return error_set_errno(error, -err, "cannot read the start of %s", node_name(r->node));
    mbr_decode(r->mbr_sector, &r->mbr);
    if (mbr_protects_gpt(&r->mbr)) {
        err = find_gpt(r, error);
        return err < 0 ? err : read_gpt(r);
    }
    if (mbr_plausible(&r->mbr, r->node->size / sector_sizes[0]))
        return read_mbr(r);
    if (!bytes_are_zero(r->mbr_sector, MBR_BYTES) || find_gpt(r, NULL) < 0)
        return no_table(r, error);
    log_warning("warning: %s has a GPT, but its first sector, which should say so, is blank",
                node_name(r->node));
    return read_gpt(r);
}

static void mark_holders(struct reader *r)
{
    for (size_t i = 0; i < r->table->count; i++) {
        struct partition *item = &r->table->items[i];

        for (size_t j = 0; j < r->metadata_count; j++)
            item->holds_table |= ranges_overlap(item->offset, item->size, r->metadata[j].offset,
                                                r->metadata[j].size);
    }
}

int partition_table_read(struct node *node, struct partition_table *ret, struct error *error)
{
    struct reader *r = calloc(1, sizeof(*r));
    int err;

    *ret = (struct partition_table){.sector_size = sector_sizes[0]};
    if (!r)
        return error_set(error, ENOMEM, "out of memory");
    r->node = node;
    r->table = ret;
    err = read_any(r, error);
    if (err == -ENOMEM)
        error_set(error, ENOMEM, "out of memory for the partition table of %s", node_name(node));
    if (err == 0)
        mark_holders(r);
    free(r->gpt_table);
    free(r);
    return err;
}

void partition_table_fini(struct partition_table *table)
{
    free(table->items);
    *table = (struct partition_table){0};
}
