/* SPDX-License-Identifier: BSD-3-Clause */
/* Partition tables: decoding of sectors, the walk along extended records, choosing. */
#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/codec.h"
#include "blockcore/partition.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void put_entry(uint8_t *sector, unsigned index, uint8_t type, uint32_t first, uint32_t count)
{
    uint8_t *entry = sector + 446 + (size_t)index * 16;

    entry[4] = type;
    put_le32(entry + 8, first);
    put_le32(entry + 12, count);
    put_le16(sector + 510, 0xaa55);
}

static void test_mbr(void **state)
{
    uint8_t sector[MBR_BYTES] = {0};
    struct mbr mbr;

    put_entry(sector, 1, 0x83, 100, 0xffffffff);
    put_entry(sector, 3, 0x85, 7, 9);
    put_le32(sector + 440, 0x12345678);
    mbr_decode(sector, &mbr);
    assert_int_equal(mbr.disk_id, 0x12345678);
    assert_false(mbr_entry_used(&mbr.entries[0]));
    assert_true(mbr_entry_used(&mbr.entries[1]));
    assert_int_equal(mbr.entries[1].sectors, 0xffffffff);
    assert_false(mbr_entry_extended(&mbr.entries[1]));
    assert_true(mbr_entry_extended(&mbr.entries[3]));
    assert_false(mbr_protects_gpt(&mbr));
    assert_true(mbr_plausible(&mbr, 8));
    assert_false(mbr_plausible(&mbr, 7)); /* nothing begins on the disk */
    mbr.entries[1].status = 1;
    assert_false(mbr_plausible(&mbr, 1000));
    mbr.entries[1].status = 0x80;
    assert_true(mbr_plausible(&mbr, 1000));
    mbr.entries[1].first = 0;
    assert_false(mbr_plausible(&mbr, 1000));
    mbr.entries[1].type = 0xee;
    assert_true(mbr_protects_gpt(&mbr));
    mbr.has_signature = false;
    assert_false(mbr_protects_gpt(&mbr));
}

/* A record whose link leads to itself, to its neighbor, outside. */
static void test_chain(void **state)
{
    const struct mbr_entry extended = {.type = 5, .first = 1000, .sectors = 600};
    struct ebr_chain chain;
    struct mbr_entry logical;
    uint8_t sector[MBR_BYTES] = {0};

    ebr_chain_init(&chain, &extended);
    assert_int_equal(chain.at, 1000);
    put_entry(sector, 0, 0x83, 2, 5);
    put_entry(sector, 1, 0x0f, 599, 5);
    assert_true(ebr_chain_step(&chain, sector, &logical));
    assert_int_equal(logical.first, 1002);
    assert_int_equal(chain.at, 1599);
    put_entry(sector, 1, 5, 0, 5);
    assert_false(ebr_chain_step(&chain, sector, &logical));
    assert_int_equal(logical.first, 1601);
    assert_string_equal(chain.broken, "it comes back to where it was");
    ebr_chain_init(&chain, &extended);
    put_entry(sector, 1, 5, 600, 5);
    assert_false(ebr_chain_step(&chain, sector, &logical));
    assert_string_equal(chain.broken, "a link leaves the extended partition");
    ebr_chain_init(&chain, &extended);
    for (uint32_t i = 1; i < EBR_MAX; i++) {
        put_entry(sector, 1, 5, i, 5);
        assert_true(ebr_chain_step(&chain, sector, &logical));
    }
    put_entry(sector, 1, 5, EBR_MAX, 5);
    assert_false(ebr_chain_step(&chain, sector, &logical));
    assert_string_equal(chain.broken, "it is too long");
    ebr_chain_init(&chain, &extended);
    put_entry(sector, 1, 0, 0, 0);
    assert_false(ebr_chain_step(&chain, sector, &logical));
    assert_null(chain.broken);
    ebr_chain_init(&chain, &extended);
    sector[511] = 0;
    assert_false(ebr_chain_step(&chain, sector, &logical));
    assert_false(mbr_entry_used(&logical));
    assert_string_equal(chain.broken, "a record has no signature");
}

static void make_header(uint8_t sector[GPT_SECTOR_MAX], uint32_t header_size)
{
    memcpy(sector, "EFI PART", 8);
    put_le32(sector + 8, 0x10000);
    put_le32(sector + 12, header_size);
    put_le64(sector + 24, 1);
    put_le64(sector + 32, 99);
    put_le64(sector + 40, 34);
    put_le64(sector + 48, 66);
    put_le64(sector + 72, 2);
    put_le32(sector + 80, 128);
    put_le32(sector + 84, 128);
}

static void seal(uint8_t *sector)
{
    put_le32(sector + 16, 0);
    put_le32(sector + 16, codec_crc32(sector, get_le32(sector + 12)));
}

static void test_gpt_header(void **state)
{
    static const struct {
        unsigned at, bytes;
        uint64_t value;
        const char *wrong;
    } cases[] = {
        {8, 4, 0x20000, "has an unknown revision"},
        {24, 8, 2, "says that it belongs elsewhere"},
        {72, 8, 1, "has its table outside of the disk"},
        {72, 8, 68, NULL}, /* 32 sectors, up to the end */
        {72, 8, 69, "has its table outside of the disk"},
        {72, 8, UINT64_MAX, "has its table outside of the disk"},
        {80, 4, 0, "has an impossible number of entries"},
        {80, 4, GPT_ENTRIES_MAX + 1, "has an impossible number of entries"},
        {84, 4, 64, "has an impossible size of entries"},
        {84, 4, 384, "has an impossible size of entries"},
        {84, 4, 0x80000000, "has an impossible size of entries"},
        {84, 4, 256, NULL},
    };
    uint8_t sector[GPT_SECTOR_MAX] = {0};
    struct gpt_header header;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const char *wrong;

        make_header(sector, 92);
        if (cases[i].bytes == 4)
            put_le32(sector + cases[i].at, (uint32_t)cases[i].value);
        else
            put_le64(sector + cases[i].at, cases[i].value);
        seal(sector);
        wrong = gpt_header_decode(sector, 512, 1, 100, &header);
        assert_int_equal(!wrong, !cases[i].wrong);
        if (wrong)
            assert_string_equal(wrong, cases[i].wrong);
    }
    make_header(sector, 513);
    assert_string_equal(gpt_header_decode(sector, 512, 1, 100, &header), "has an impossible size");
    make_header(sector, 91);
    assert_string_equal(gpt_header_decode(sector, 512, 1, 100, &header), "has an impossible size");
    make_header(sector, 512);
    assert_string_equal(gpt_header_decode(sector, 512, 1, 100, &header), "has a wrong checksum");
    seal(sector);
    assert_null(gpt_header_decode(sector, 512, 1, 100, &header));
    assert_int_equal(header.alternate_lba, 99);
    assert_int_equal(gpt_header_alternate(sector), 99);
    sector[0] = 'e';
    assert_string_equal(gpt_header_decode(sector, 512, 1, 100, &header), "is not there");
    assert_int_equal(gpt_header_alternate(sector), 0);
}

/* A name of 36 units, with a pair of surrogates, halves of such, and no end. */
static void test_gpt_entry(void **state)
{
    const struct gpt_header header = {.entries = 1, .entry_size = 128};
    uint8_t table[128] = {0};
    struct gpt_entry entry;
    char text[GUID_TEXT_SIZE];

    assert_false(gpt_entry_decode(&header, table, 0, &entry));
    for (uint8_t i = 0; i < 16; i++)
        table[i] = i;
    put_le16(table + 56, 0xe4);
    put_le16(table + 58, 0xd83d);
    put_le16(table + 60, 0xde00);
    put_le16(table + 62, 0xde00);
    assert_true(gpt_entry_decode(&header, table, 0, &entry));
    assert_string_equal(entry.name, "\xc3\xa4\xf0\x9f\x98\x80\xef\xbf\xbd");
    for (unsigned at = 56; at < 128; at += 2)
        put_le16(table + at, 0xd800);
    assert_true(gpt_entry_decode(&header, table, 0, &entry));
    assert_int_equal(strlen(entry.name), GPT_NAME_TEXT_SIZE - 1);
    gpt_guid_format(entry.type, text);
    assert_string_equal(text, "03020100-0504-0706-0809-0A0B0C0D0E0F");
}

static void test_choice(void **state)
{
    struct partition items[] = {
        {.number = 1, .offset = 512, .size = 512, .label = "a", .uuid = "AB-01"},
        {.number = 5, .offset = 1024, .size = 1024, .label = "b", .uuid = "AB-05"},
        {.number = 6, .offset = UINT64_MAX, .size = 2, .label = "b"},
    };
    const struct partition_table table = {"GPT", 512, items, ARRAY_SIZE(items)};
    static const struct {
        const char *text, *says; /* NULL: found */
        size_t index;
    } cases[] = {
        {"5", NULL, 1},
        {"0x5", NULL, 1},
        {"label=a", NULL, 0},
        {"uuid=ab-05", NULL, 1},
        {"2", "Could not find partition 2: the GPT has the partitions 1, 5, 6", 0},
        {"label=b", "Could not find partition with the label 'b': 5 and 6 are such", 0},
        {"label=c", "with the label 'c': the GPT has the partitions 1 'a', 5 'b', 6 'b'", 0},
        {"6", "but size exceeds file length 2048", 0},
        {"0", "Invalid partition '0'", 0},
        {"4294967296", "Invalid partition", 0},
        {"uuid=", "Invalid partition 'uuid='", 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct partition_choice choice;
        const struct partition *found = NULL;
        struct error error = {""};
        int err = partition_choice_parse(cases[i].text, &choice, &error);

        if (err == 0)
            err = partition_find(&table, &choice, 2048, &found, &error);
        assert_int_equal(err == 0, !cases[i].says);
        if (cases[i].says)
            assert_non_null(strstr(error.text, cases[i].says));
        else
            assert_ptr_equal(found, &items[cases[i].index]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mbr),        cmocka_unit_test(test_chain),
        cmocka_unit_test(test_gpt_header), cmocka_unit_test(test_gpt_entry),
        cmocka_unit_test(test_choice),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
