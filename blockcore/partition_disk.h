/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Partition tables on disk: MBR, its chains of extended boot records (EBR), and GPT (UEFI 2.10,
 * chapter 5).  Pure functions that take any bytes.  Sectors are numbered in the disk's own logical
 * sectors (LBA), of 512 or 4096 bytes.
 */
#ifndef EVNBD_BLOCKCORE_PARTITION_DISK_H
#define EVNBD_BLOCKCORE_PARTITION_DISK_H

#include <stdbool.h>
#include <stdint.h>

#define MBR_BYTES 512
#define MBR_ENTRIES 4
#define EBR_MAX 256 /* of one chain */

#define GPT_SECTOR_MAX 4096
#define GPT_ENTRIES_MAX 4096
#define GPT_ENTRY_BYTES_MAX 4096
#define GPT_NAME_BYTES 72
#define GUID_TEXT_SIZE 37
#define GPT_NAME_TEXT_SIZE (GPT_NAME_BYTES / 2 * 3 + 1) /* in UTF-8 */

struct mbr_entry {
    uint8_t status, type;
    uint64_t first; /* LBA; relative in an EBR */
    uint64_t sectors;
};

struct mbr {
    bool has_signature; /* it ends in 55 AA */
    uint32_t disk_id;
    struct mbr_entry entries[MBR_ENTRIES];
};

void mbr_decode(const uint8_t sector[MBR_BYTES], struct mbr *ret);
bool mbr_entry_used(const struct mbr_entry *entry);
/* Whether the entry holds a chain of logical partitions. */
bool mbr_entry_extended(const struct mbr_entry *entry);
/* Whether some entry says that a GPT describes the disk. */
bool mbr_protects_gpt(const struct mbr *mbr);
/*
 * Whether the sector is a partition table, and not the boot sector of a file system, which has the
 * same signature: what its entries say is possible, and some partition begins on the disk.
 */
bool mbr_plausible(const struct mbr *mbr, uint64_t disk_sectors);

/* The walk along the EBRs of an extended partition. */
struct ebr_chain {
    uint64_t start, sectors; /* of the extended partition */
    uint64_t at;             /* LBA of the EBR that ebr_chain_step wants next */
    const char *broken;      /* why the chain was left before its end, or NULL */
    unsigned count;
    uint64_t visited[EBR_MAX];
};

void ebr_chain_init(struct ebr_chain *chain, const struct mbr_entry *extended);
/*
 * Takes the EBR at chain->at.  *ret is its logical partition, with `first` from the start of the
 * disk, or not used.  Returns whether there is another EBR.  It ends for any input.
 */
bool ebr_chain_step(struct ebr_chain *chain, const uint8_t sector[MBR_BYTES],
                    struct mbr_entry *ret);

struct gpt_header {
    uint64_t my_lba, alternate_lba, first_usable, last_usable, table_lba;
    uint32_t entries, entry_size, table_crc;
};

/*
 * Reads the header in the sector at `lba`; its table then lies on the disk.  Returns NULL, or what
 * is wrong ("has a wrong checksum").
 */
const char *gpt_header_decode(const uint8_t *sector, uint32_t sector_size, uint64_t lba,
                              uint64_t disk_sectors, struct gpt_header *ret);
/* Where a header, which may be broken, says that the other one is; 0: it is none. */
uint64_t gpt_header_alternate(const uint8_t *sector);
/* At most 16 MiB, and as a number of sectors. */
uint64_t gpt_table_bytes(const struct gpt_header *header);
bool gpt_table_intact(const struct gpt_header *header, const uint8_t *table);

struct gpt_entry {
    uint8_t type[16], guid[16]; /* as on disk */
    uint64_t first, last;       /* LBA, both inclusive */
    char name[GPT_NAME_TEXT_SIZE];
};

/* Reads the entry `index` of the table. False: it is not used. */
bool gpt_entry_decode(const struct gpt_header *header, const uint8_t *table, uint32_t index,
                      struct gpt_entry *ret);

/* The text of a GUID, in capitals. */
void gpt_guid_format(const uint8_t guid[16], char out[GUID_TEXT_SIZE]);

#endif
