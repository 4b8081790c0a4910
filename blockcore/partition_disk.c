/* SPDX-License-Identifier: BSD-3-Clause */
/* Decoding of partition tables. Nothing here trusts a number before it has been checked. */
#include "blockcore/partition_disk.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/codec.h"

#include <stdio.h>
#include <string.h>

#define MBR_ID_AT 440
#define MBR_ENTRIES_AT 446
#define MBR_ENTRY_BYTES 16
#define MBR_SIGNATURE_AT 510
#define MBR_SIGNATURE 0xaa55
#define TYPE_GPT 0xee

#define GPT_HEADER_MIN 92
#define GPT_CRC_AT 16
#define GPT_ALTERNATE_AT 32
#define GPT_REVISION 0x00010000
#define GPT_ENTRY_BYTES_MIN 128

void mbr_decode(const uint8_t sector[MBR_BYTES], struct mbr *ret)
{
    ret->has_signature = get_le16(sector + MBR_SIGNATURE_AT) == MBR_SIGNATURE;
    ret->disk_id = get_le32(sector + MBR_ID_AT);
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        const uint8_t *entry = sector + MBR_ENTRIES_AT + (size_t)i * MBR_ENTRY_BYTES;

        ret->entries[i] = (struct mbr_entry){
            .status = entry[0],
            .type = entry[4],
            .first = get_le32(entry + 8),
            .sectors = get_le32(entry + 12),
        };
    }
}

bool mbr_entry_used(const struct mbr_entry *entry)
{
    return entry->type != 0 && entry->sectors != 0;
}

bool mbr_entry_extended(const struct mbr_entry *entry)
{
    return mbr_entry_used(entry) &&
           (entry->type == 0x05 || entry->type == 0x0f || entry->type == 0x85);
}

bool mbr_protects_gpt(const struct mbr *mbr)
{
    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        if (mbr->entries[i].type == TYPE_GPT)
            return mbr->has_signature;
    }
    return false;
}

bool mbr_plausible(const struct mbr *mbr, uint64_t disk_sectors)
{
    bool begins = false;

    for (unsigned i = 0; i < MBR_ENTRIES; i++) {
        const struct mbr_entry *entry = &mbr->entries[i];

        if (!mbr_entry_used(entry))
            continue;
        if ((entry->status & 0x7f) != 0 || entry->first == 0)
            return false;
        begins |= entry->first < disk_sectors;
    }
    return mbr->has_signature && begins;
}

void ebr_chain_init(struct ebr_chain *chain, const struct mbr_entry *extended)
{
    chain->start = chain->at = extended->first;
    chain->sectors = extended->sectors;
    chain->broken = NULL;
    chain->count = 0;
}

/* Goes on to the EBR of a link. False: the chain is left here. */
static bool ebr_follow(struct ebr_chain *chain, const struct mbr_entry *link)
{
    if (!mbr_entry_used(link))
        return false;
    if (!mbr_entry_extended(link))
        chain->broken = "a link is not of an extended type";
    else if (link->first >= chain->sectors)
        chain->broken = "a link leaves the extended partition";
    else if (chain->count == EBR_MAX)
        chain->broken = "it is too long";
    else
        chain->at = chain->start + link->first;
    for (unsigned i = 0; i < chain->count && !chain->broken; i++) {
        if (chain->visited[i] == chain->at)
            chain->broken = "it comes back to where it was";
    }
    return !chain->broken;
}

bool ebr_chain_step(struct ebr_chain *chain, const uint8_t sector[MBR_BYTES], struct mbr_entry *ret)
{
    struct mbr ebr;

    mbr_decode(sector, &ebr);
    *ret = (struct mbr_entry){0};
    if (!ebr.has_signature) {
        chain->broken = "a record has no signature";
        return false;
    }
    chain->visited[chain->count++] = chain->at;
    *ret = ebr.entries[0];
    ret->first += chain->at;
    return ebr_follow(chain, &ebr.entries[1]);
}

static bool gpt_signed(const uint8_t *sector)
{
    return memcmp(sector, "EFI PART", 8) == 0;
}

/* The checksum of the header, whose own field counts as zero. */
static bool gpt_header_intact(const uint8_t *sector, uint32_t header_size)
{
    uint8_t copy[GPT_SECTOR_MAX];

    memcpy(copy, sector, header_size);
    put_le32(copy + GPT_CRC_AT, 0);
    return codec_crc32(copy, header_size) == get_le32(sector + GPT_CRC_AT);
}

static void gpt_header_fields(const uint8_t *sector, struct gpt_header *ret)
{
    *ret = (struct gpt_header){
        .my_lba = get_le64(sector + 24),
        .alternate_lba = get_le64(sector + GPT_ALTERNATE_AT),
        .first_usable = get_le64(sector + 40),
        .last_usable = get_le64(sector + 48),
        .table_lba = get_le64(sector + 72),
        .entries = get_le32(sector + 80),
        .entry_size = get_le32(sector + 84),
        .table_crc = get_le32(sector + 88),
    };
}

const char *gpt_header_decode(const uint8_t *sector, uint32_t sector_size, uint64_t lba,
                              uint64_t disk_sectors, struct gpt_header *ret)
{
    uint32_t header_size = get_le32(sector + 12);

    if (!gpt_signed(sector))
        return "is not there";
    if (get_le32(sector + 8) != GPT_REVISION)
        return "has an unknown revision";
    if (header_size < GPT_HEADER_MIN || header_size > sector_size)
        return "has an impossible size";
    if (!gpt_header_intact(sector, header_size))
        return "has a wrong checksum";
    gpt_header_fields(sector, ret);
    if (ret->my_lba != lba)
        return "says that it belongs elsewhere";
    if (ret->entries == 0 || ret->entries > GPT_ENTRIES_MAX)
        return "has an impossible number of entries";
    if (ret->entry_size < GPT_ENTRY_BYTES_MIN || ret->entry_size > GPT_ENTRY_BYTES_MAX ||
        !is_power_of_two(ret->entry_size))
        return "has an impossible size of entries";
    if (ret->table_lba < 2 ||
        !range_within(ret->table_lba, div_round_up(gpt_table_bytes(ret), sector_size),
                      disk_sectors))
        return "has its table outside of the disk";
    return NULL;
}

uint64_t gpt_header_alternate(const uint8_t *sector)
{
    return gpt_signed(sector) ? get_le64(sector + GPT_ALTERNATE_AT) : 0;
}

uint64_t gpt_table_bytes(const struct gpt_header *header)
{
    return (uint64_t)header->entries * header->entry_size;
}

bool gpt_table_intact(const struct gpt_header *header, const uint8_t *table)
{
    return codec_crc32(table, gpt_table_bytes(header)) == header->table_crc;
}

/* Writes a code point as UTF-8; returns where the next goes. */
static char *put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xc0 | c >> 6);
        *out++ = (char)(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        *out++ = (char)(0xe0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 0x3f));
        *out++ = (char)(0x80 | (c & 0x3f));
    } else {
        *out++ = (char)(0xf0 | c >> 18);
        *out++ = (char)(0x80 | (c >> 12 & 0x3f));
        *out++ = (char)(0x80 | (c >> 6 & 0x3f));
        *out++ = (char)(0x80 | (c & 0x3f));
    }
    return out;
}

/* UTF-16 up to a zero; a surrogate without its other half becomes U+FFFD. */
static void decode_name(const uint8_t name[GPT_NAME_BYTES], char out[GPT_NAME_TEXT_SIZE])
{
    for (unsigned at = 0; at < GPT_NAME_BYTES; at += 2) {
        uint32_t c = get_le16(name + at);
        uint32_t low = at + 2 < GPT_NAME_BYTES ? get_le16(name + at + 2) : 0;

        if (c == 0)
            break;
        if ((c & 0xfc00) == 0xd800 && (low & 0xfc00) == 0xdc00) {
            c = 0x10000 + ((c & 0x3ff) << 10 | (low & 0x3ff));
            at += 2;
        } else if ((c & 0xf800) == 0xd800) {
            c = 0xfffd;
        }
        out = put_utf8(out, c);
    }
    *out = '\0';
}

bool gpt_entry_decode(const struct gpt_header *header, const uint8_t *table, uint32_t index,
                      struct gpt_entry *ret)
{
    const uint8_t *entry = table + (size_t)index * header->entry_size;

    if (bytes_are_zero(entry, sizeof(ret->type)))
        return false;
    memcpy(ret->type, entry, sizeof(ret->type));
    memcpy(ret->guid, entry + 16, sizeof(ret->guid));
    ret->first = get_le64(entry + 32);
    ret->last = get_le64(entry + 40);
    decode_name(entry + 56, ret->name);
    return true;
}

void gpt_guid_format(const uint8_t guid[16], char out[GUID_TEXT_SIZE])
{
    snprintf(out, GUID_TEXT_SIZE, "%08X-%04X-%04X-%04X-%04X%08X", get_le32(guid),
             get_le16(guid + 4), get_le16(guid + 6), get_be16(guid + 8), get_be16(guid + 10),
             get_be32(guid + 12));
}
