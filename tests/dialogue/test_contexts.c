/* SPDX-License-Identifier: BSD-3-Clause */
/* Metadata contexts in the handshake: listing and selecting them. */
#include "nbd/context.h"

#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "tests/dialogue/dialogue.h"
#include "tests/dialogue/transcript.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char disk_name[] = "disk", cd_name[] = "cd";

struct fixture {
    struct nbd_exports exports;
    struct nbd_export disk, cd;
    struct block_bitmap today, yesterday;
};

static void fixture_init(struct fixture *f)
{
    *f = (struct fixture){.today = {.name = "today"}, .yesterday = {.name = "d\xc3\xa9j\xc3\xa0"}};
    nbd_exports_init(&f->exports);
    f->disk = (struct nbd_export){.name = disk_name,
                                  .size = 1000,
                                  .flags = 0x501,
                                  .block_min = 1,
                                  .block_preferred = 4096,
                                  .block_max = NBD_PAYLOAD_MAX,
                                  .allocation_depth = true,
                                  .bitmap_count = 2,
                                  .bitmaps = {&f->today, &f->yesterday}};
    f->cd = f->disk;
    f->cd.name = cd_name;
    f->cd.allocation_depth = false;
    f->cd.bitmap_count = 0;
    list_append(&f->exports.list, &f->disk.link);
    list_append(&f->exports.list, &f->cd.link);
    f->exports.default_export = &f->disk;
}

static void check_table(const struct dialogue *table, size_t count)
{
    struct fixture f;

    fixture_init(&f);
    check_dialogues(&f.exports, table, count);
}

#define START "greeting; STRUCTURED_REPLY ACK; "
#define SIZES "BLOCK_SIZE 1 4096 33554432"
#define SET(id, name) "SET_META_CONTEXT META_CONTEXT " #id " '" name "'; "
#define SET_ALLOCATION SET(0, "base:allocation")
#define SET_DEPTH SET(1, "qemu:allocation-depth")
#define SET_TODAY SET(2, "qemu:dirty-bitmap:today")
#define SET_YESTERDAY SET(3, "qemu:dirty-bitmap:d\xc3\xa9j\xc3\xa0")
#define SET_DONE "SET_META_CONTEXT ACK"
#define ITEM(name) "LIST_META_CONTEXT META_CONTEXT 0 '" name "'; "
#define ITEM_ALLOCATION ITEM("base:allocation")
#define ITEM_DEPTH ITEM("qemu:allocation-depth")
#define ITEM_TODAY ITEM("qemu:dirty-bitmap:today")
#define ITEM_YESTERDAY ITEM("qemu:dirty-bitmap:d\xc3\xa9j\xc3\xa0")
#define LIST_DONE "LIST_META_CONTEXT ACK"
/* Going on to transmission, with the flags that each mode and selection brings. */
#define GO(flags, end)                                                                             \
    "; GO INFO EXPORT 1000 " flags "; GO INFO " SIZES "; GO ACK -> transmission " end
#define GO_DISK(set) GO("0x581", "disk, 0 left, structured " set)
#define GO_CD(set) GO("0x581", "cd, 0 left, structured " set)

static void test_listing(void **state)
{
    static const struct dialogue table[] = {
        /* No query: all that there is. */
        {"flags 3; structured; listmeta disk; listmeta cd; listmeta -",
         START ITEM_ALLOCATION ITEM_DEPTH ITEM_TODAY ITEM_YESTERDAY LIST_DONE
         "; " ITEM_ALLOCATION LIST_DONE
         "; " ITEM_ALLOCATION ITEM_DEPTH ITEM_TODAY ITEM_YESTERDAY LIST_DONE},
        /* It is only a question, for which nothing needs to be negotiated. */
        {"flags 3; listmeta cd", "greeting; " ITEM_ALLOCATION LIST_DONE},
        {"flags 3; extended; listmeta cd",
         "greeting; EXTENDED_HEADERS ACK; " ITEM_ALLOCATION LIST_DONE},
        /* Wildcards. */
        {"flags 3; structured; listmeta disk base:; listmeta disk qemu:; listmeta disk "
         "qemu:dirty-bitmap:",
         START ITEM_ALLOCATION LIST_DONE "; " ITEM_DEPTH ITEM_TODAY ITEM_YESTERDAY LIST_DONE
                                         "; " ITEM_TODAY ITEM_YESTERDAY LIST_DONE},
        {"flags 3; structured; listmeta cd base: qemu:; listmeta cd qemu:dirty-bitmap:",
         START ITEM_ALLOCATION LIST_DONE "; " LIST_DONE},
        /* Names, several, in any order, once each. */
        {"flags 3; structured; listmeta disk qemu:dirty-bitmap:d%c3%a9j%c3%a0 base:allocation "
         "qemu:dirty-bitmap: base:",
         START ITEM_ALLOCATION ITEM_TODAY ITEM_YESTERDAY LIST_DONE},
        {"flags 3; structured; listmeta disk qemu:allocation-depth", START ITEM_DEPTH LIST_DONE},
        /* What nothing here goes by. */
        {"flags 3; structured; listmeta disk x-y: nbd-server:z BASE:allocation - : base "
         "base:alloc base:allocation: base:allocation%20 qemu qemu:x qemu:allocation-depth: "
         "qemu:dirty-bitmap",
         START LIST_DONE},
        {"flags 3; structured; listmeta disk qemu:dirty-bitmap:tomorrow qemu:dirty-bitmap:toda "
         "qemu:dirty-bitmap:today%20",
         START LIST_DONE},
        /* A list selects nothing, and takes no selection back. */
        {"flags 3; structured; listmeta disk; go disk",
         START ITEM_ALLOCATION ITEM_DEPTH ITEM_TODAY ITEM_YESTERDAY LIST_DONE GO_DISK("0x0")},
        {"flags 3; structured; set cd base:allocation; listmeta nodisk; listmeta disk base:; go cd",
         START SET_ALLOCATION SET_DONE
         "; LIST_META_CONTEXT ERR_UNKNOWN; " ITEM_ALLOCATION LIST_DONE GO_CD("0x1")},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_selecting(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; structured; set disk base:allocation; go disk",
         START SET_ALLOCATION SET_DONE GO_DISK("0x1")},
        {"flags 3; structured; set disk qemu:dirty-bitmap:d%c3%a9j%c3%a0 qemu:allocation-depth; go "
         "disk",
         START SET_DEPTH SET_YESTERDAY SET_DONE GO_DISK("0xa")},
        {"flags 3; structured; set disk qemu:dirty-bitmap:today base:allocation "
         "qemu:allocation-depth base:allocation qemu:dirty-bitmap:d%c3%a9j%c3%a0; go -",
         START SET_ALLOCATION SET_DEPTH SET_TODAY SET_YESTERDAY SET_DONE GO_DISK("0xf")},
        {"flags 3; structured; set - base:allocation; name disk", START SET_ALLOCATION SET_DONE
         "; export 1000 0x581 -> transmission disk, 0 left, structured 0x1"},
        /* With extended headers, BLOCK_STATUS may have a payload: once there are contexts. */
        {"flags 3; extended; set disk base:allocation; info disk; info cd; go disk",
         "greeting; EXTENDED_HEADERS ACK; " SET_ALLOCATION SET_DONE
         "; INFO INFO EXPORT 1000 0x1581; INFO INFO " SIZES
         "; INFO ACK; INFO INFO EXPORT 1000 0x581; INFO INFO " SIZES
         "; INFO ACK" GO("0x1581", "disk, 0 left, extended 0x1")},
        {"flags 3; structured; set disk base:allocation; extended; go disk",
         START SET_ALLOCATION SET_DONE
         "; EXTENDED_HEADERS ACK" GO("0x1581", "disk, 0 left, extended 0x1")},
        /* Nothing selected is no error: no queries, wildcards, unknown names. */
        {"flags 3; extended; set disk; go disk",
         "greeting; EXTENDED_HEADERS ACK; " SET_DONE GO("0x581", "disk, 0 left, extended 0x0")},
        {"flags 3; structured; set disk base: qemu: qemu:dirty-bitmap:; go disk",
         START SET_DONE GO_DISK("0x0")},
        {"flags 3; structured; set disk x-y:z - : base:other qemu:dirty-bitmap:tomorrow base; go "
         "disk",
         START SET_DONE GO_DISK("0x0")},
        {"flags 3; structured; set disk base: qemu:allocation-depth x-y:z; go disk",
         START SET_DEPTH SET_DONE GO_DISK("0x2")},
        {"flags 3; structured; set cd base:allocation qemu:allocation-depth "
         "qemu:dirty-bitmap:today; go cd",
         START SET_ALLOCATION SET_DONE GO_CD("0x1")},
    };

    check_table(table, ARRAY_SIZE(table));
}

/* The last selection counts, whatever came of it, and only for its own export. */
static void test_replacing(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; structured; set disk base:allocation; set disk qemu:allocation-depth; go disk",
         START SET_ALLOCATION SET_DONE "; " SET_DEPTH SET_DONE GO_DISK("0x2")},
        {"flags 3; structured; set disk base:allocation; set disk; go disk",
         START SET_ALLOCATION SET_DONE "; " SET_DONE GO_DISK("0x0")},
        {"flags 3; structured; set disk base:allocation; set nodisk base:allocation; go disk",
         START SET_ALLOCATION SET_DONE "; SET_META_CONTEXT ERR_UNKNOWN" GO_DISK("0x0")},
        {"flags 3; structured; set disk base:allocation; option 10 3; hex 000000; go disk",
         START SET_ALLOCATION SET_DONE "; SET_META_CONTEXT ERR_INVALID" GO_DISK("0x0")},
        {"flags 3; structured; set disk base:allocation; set disk base:allocation %ff; go disk",
         START SET_ALLOCATION SET_DONE "; SET_META_CONTEXT ERR_INVALID" GO_DISK("0x0")},
        {"flags 3; structured; set disk base:allocation; go cd",
         START SET_ALLOCATION SET_DONE GO_CD("0x0")},
        {"flags 3; structured; set disk base:allocation; name cd", START SET_ALLOCATION SET_DONE
         "; export 1000 0x581 -> transmission cd, 0 left, structured 0x0"},
        {"flags 3; structured; set disk base:allocation; set cd base:allocation; go disk",
         START SET_ALLOCATION SET_DONE "; " SET_ALLOCATION SET_DONE GO_DISK("0x0")},
        {"flags 3; structured; set disk base:allocation; go nodisk; info cd; go disk",
         START SET_ALLOCATION SET_DONE "; GO ERR_UNKNOWN; INFO INFO EXPORT 1000 0x581; INFO "
                                       "INFO " SIZES "; INFO ACK" GO_DISK("0x1")},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_broken(void **state)
{
    static const struct dialogue table[] = {
        /* Without replies that can carry it. */
        {"flags 3; set disk base:allocation; structured; go disk",
         "greeting; SET_META_CONTEXT ERR_INVALID; STRUCTURED_REPLY ACK" GO_DISK("0x0")},
        {"flags 3; set nodisk", "greeting; SET_META_CONTEXT ERR_INVALID"},
        /* Cut short, at each field. */
        {"flags 3; structured; option 10 0; option 9 0; option 10 4; hex 00000000; option 9 7; hex "
         "00000000000000",
         START "SET_META_CONTEXT ERR_INVALID; LIST_META_CONTEXT ERR_INVALID; SET_META_CONTEXT "
               "ERR_INVALID; LIST_META_CONTEXT ERR_INVALID"},
        {"flags 3; structured; option 10 11; hex 000000046469736b000000; option 9 12; hex "
         "000000046469736b00000001",
         START "SET_META_CONTEXT ERR_INVALID; LIST_META_CONTEXT ERR_INVALID"},
        {"flags 3; structured; option 10 16; hex 000000046469736b00000001; hex 00000001; option 9 "
         "20; hex 000000046469736b00000002; hex 0000000000000001",
         START "SET_META_CONTEXT ERR_INVALID; LIST_META_CONTEXT ERR_INVALID"},
        /* Lengths that reach far beyond, or around. */
        {"flags 3; structured; option 10 12; hex ffffffff6469736b00000000; option 9 12; hex "
         "fffffffc6469736b00000000; option 10 12; hex 000000096469736b00000000",
         START "SET_META_CONTEXT ERR_INVALID; LIST_META_CONTEXT ERR_INVALID; SET_META_CONTEXT "
               "ERR_INVALID"},
        {"flags 3; structured; option 10 12; hex 000000046469736bffffffff; option 9 17; hex "
         "000000046469736b00000001; hex ffffffff61; abort",
         START "SET_META_CONTEXT ERR_INVALID; LIST_META_CONTEXT ERR_INVALID; ABORT ACK -> closed "
               "quietly"},
        /* More than was announced. */
        {"flags 3; structured; option 10 20; hex 000000046469736b00000000; fill 8 0; option 9 13; "
         "hex 000000046469736b0000000000; abort",
         START "SET_META_CONTEXT ERR_INVALID; LIST_META_CONTEXT ERR_INVALID; ABORT ACK -> closed "
               "quietly"},
        /* Names that cannot be. */
        {"flags 3; structured; set disk%00; set %c3 base:allocation; listmeta %ff; set nodisk; "
         "listmeta nodisk; listmeta dis",
         START "SET_META_CONTEXT ERR_INVALID; SET_META_CONTEXT ERR_INVALID; LIST_META_CONTEXT "
               "ERR_INVALID; SET_META_CONTEXT ERR_UNKNOWN; LIST_META_CONTEXT ERR_UNKNOWN; "
               "LIST_META_CONTEXT ERR_UNKNOWN"},
        {"flags 3; structured; listmeta disk base:%00; set disk %c0%80; listmeta disk "
         "base:%0a%1b[2J%25s%25n",
         START "LIST_META_CONTEXT ERR_INVALID; SET_META_CONTEXT ERR_INVALID; " LIST_DONE},
        {.client = "flags 3; listmeta -; structured; set - base:allocation",
         .server = "greeting; LIST_META_CONTEXT ERR_UNKNOWN; STRUCTURED_REPLY ACK; "
                   "SET_META_CONTEXT ERR_UNKNOWN",
         .no_default = true},
        {"flags 3; structured; option 9 4113; hex 000000046469736b0000000100001001; fill 4097 "
         "0x61; abort",
         START "LIST_META_CONTEXT ERR_INVALID; ABORT ACK -> closed quietly"},
        {"flags 3; structured; option 9 4112; hex 000000046469736b0000000100001000; fill 4096 "
         "0x61; abort",
         START LIST_DONE "; ABORT ACK -> closed quietly"},
        {"flags 3; structured; option 9 4105; hex 00001001; fill 4097 0x61; hex 00000000; "
         "abort",
         START "LIST_META_CONTEXT ERR_INVALID; ABORT ACK -> closed quietly"},
        {"flags 3; structured; option 10 65537", START "SET_META_CONTEXT ERR_TOO_BIG -> closed"},
    };

    check_table(table, ARRAY_SIZE(table));
}

/* As many queries as an option can hold, empty ones and ones that match. */
static void test_many_queries(void **state)
{
    static const char name[] = "qemu:dirty-bitmap:today";
    static const size_t lengths[] = {0, sizeof(name) - 1};

    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        uint32_t count = (uint32_t)((NBD_OPTION_BYTES_MAX - 12) / (4 + lengths[i]));
        struct fixture f;
        struct server_session s;
        struct message m = {0};
        char *text;

        fixture_init(&f);
        server_session_init(&s, &f.exports, false, false);
        message_script(&m, "flags 3; structured");
        message_option(&m, NBD_OPT_SET_META_CONTEXT, 12 + count * (4 + (uint32_t)lengths[i]));
        message_u32(&m, 4);
        message_bytes(&m, "disk", 4);
        message_u32(&m, count);
        for (uint32_t k = 0; k < count; k++) {
            message_u32(&m, (uint32_t)lengths[i]);
            message_bytes(&m, name, lengths[i]);
        }
        server_session_feed(&s, m.data, m.length);
        text = transcript_of(s.said.data, s.said.length, false);
        assert_string_equal(text, lengths[i] ? START SET_TODAY SET_DONE : START SET_DONE);
        free(text);
        server_session_fini(&s);
        message_free(&m);
    }
}

/* The most contexts that an export can have, with the longest names, each with its own id. */
static void test_most_contexts(void **state)
{
    static struct block_bitmap bitmaps[NBD_EXPORT_BITMAPS_MAX];
    static char names[NBD_EXPORT_BITMAPS_MAX][BLOCK_BITMAP_NAME_MAX + 1];
    struct fixture f;
    char name[NBD_STRING_MAX];

    fixture_init(&f);
    f.disk.bitmap_count = NBD_EXPORT_BITMAPS_MAX;
    for (unsigned i = 0; i < NBD_EXPORT_BITMAPS_MAX; i++) {
        memset(names[i], 'a' + (int)(i % 26), BLOCK_BITMAP_NAME_MAX);
        names[i][i] = '-';
        bitmaps[i].name = names[i];
        f.disk.bitmaps[i] = &bitmaps[i];
    }
    assert_int_equal(nbd_context_all(&f.disk), UINT64_MAX);
    assert_int_equal(nbd_context_query(&f.disk, "qemu:dirty-bitmap:", 18, true), ~UINT64_C(3));
    for (unsigned i = 0; i < NBD_CONTEXTS_MAX; i++) {
        size_t length = nbd_context_name(&f.disk, i, name);

        assert_int_equal(nbd_context_query(&f.disk, name, length, false), UINT64_C(1) << i);
        assert_int_equal(nbd_context_query(&f.disk, name, length, true), UINT64_C(1) << i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listing),      cmocka_unit_test(test_selecting),
        cmocka_unit_test(test_replacing),    cmocka_unit_test(test_broken),
        cmocka_unit_test(test_many_queries), cmocka_unit_test(test_most_contexts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
