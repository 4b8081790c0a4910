/* SPDX-License-Identifier: BSD-3-Clause */
/* Dialogues of the handshake, but for metadata contexts. */
#include "tests/dialogue/dialogue.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DISK 5000000001
#define DISK_EXPORT "5000000001 0xd6d"
#define DISK_EXPORT_DF "5000000001 0xded"
#define BLOCK_SIZE "BLOCK_SIZE 1 65536 33554432"
#define CD_EXPORT "10 0x40f"
#define CD_BLOCK_SIZE "BLOCK_SIZE 1 4096 33554432"

struct fixture {
    struct nbd_exports exports;
    struct nbd_export disk, cd;
};

static char disk_name[] = "disk", disk_text[] = "the first disk", cd_name[] = "caf\xc3\xa9";

static void fixture_init(struct fixture *f)
{
    nbd_exports_init(&f->exports);
    f->disk = (struct nbd_export){.name = disk_name,
                                  .description = disk_text,
                                  .size = DISK,
                                  .flags = 0xd6d,
                                  .block_min = 1,
                                  .block_preferred = 65536,
                                  .block_max = NBD_PAYLOAD_MAX};
    f->cd = (struct nbd_export){.name = cd_name,
                                .size = 10,
                                .flags = 0x40f,
                                .block_min = 1,
                                .block_preferred = 4096,
                                .block_max = NBD_PAYLOAD_MAX,
                                .read_only = true};
    list_append(&f->exports.list, &f->disk.link);
    list_append(&f->exports.list, &f->cd.link);
    f->exports.default_export = &f->cd;
}

static void check_table(const struct dialogue *table, size_t count)
{
    struct fixture f;

    fixture_init(&f);
    check_dialogues(&f.exports, table, count);
}

/* ---- Dialogues ---- */

static void test_sessions(void **state)
{
    static const struct dialogue table[] = {
        {"", "greeting"},
        {"flags 3", "greeting"},
        {"flags 3; abort", "greeting; ABORT ACK -> closed quietly"},
        {"flags 3; option 2 5; fill 5 0x41", "greeting; ABORT ACK -> closed quietly"},
        {"flags 3; list",
         "greeting; LIST SERVER 'disk' 'the first disk'; LIST SERVER 'caf\xc3\xa9'; LIST ACK"},
        {"flags 3; list; list; abort; list",
         "greeting; LIST SERVER 'disk' 'the first disk'; LIST SERVER 'caf\xc3\xa9'; LIST ACK; "
         "LIST SERVER 'disk' 'the first disk'; LIST SERVER 'caf\xc3\xa9'; LIST ACK; ABORT ACK "
         "-> closed quietly"},
        {"flags 3; go disk; hex 25609513",
         "greeting; GO INFO EXPORT " DISK_EXPORT "; GO INFO " BLOCK_SIZE
         "; GO ACK -> transmission disk, 4 left"},
        {"flags 1; go disk 0 1 2 3 4 1000 65535",
         "greeting; GO INFO EXPORT " DISK_EXPORT "; GO INFO NAME 'disk'; GO INFO DESCRIPTION 'the "
         "first disk'; GO INFO " BLOCK_SIZE "; GO ACK -> transmission disk, 0 left"},
        {"flags 3; info disk 1 1; info - 1 2; go -",
         "greeting; INFO INFO EXPORT " DISK_EXPORT "; INFO INFO NAME 'disk'; INFO INFO " BLOCK_SIZE
         "; INFO ACK; INFO INFO EXPORT " CD_EXPORT "; INFO INFO NAME 'caf\xc3\xa9'; INFO "
         "INFO " CD_BLOCK_SIZE "; INFO ACK; GO INFO EXPORT " CD_EXPORT "; GO INFO " CD_BLOCK_SIZE
         "; GO ACK -> transmission caf\xc3\xa9, 0 left"},
        {"flags 3; go nodisk; go caf%c3%a9",
         "greeting; GO ERR_UNKNOWN; GO INFO EXPORT " CD_EXPORT "; GO INFO " CD_BLOCK_SIZE
         "; GO ACK -> transmission caf\xc3\xa9, 0 left"},
        {.client = "flags 3; go -; info -; go disk",
         .server = "greeting; GO ERR_UNKNOWN; INFO ERR_UNKNOWN; GO INFO EXPORT " DISK_EXPORT
                   "; GO INFO " BLOCK_SIZE "; GO ACK -> transmission disk, 0 left",
         .no_default = true},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_export_name(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; name disk; hex 0102",
         "greeting; export " DISK_EXPORT " -> transmission disk, 2 left"},
        {"flags 1; name disk",
         "greeting; export " DISK_EXPORT " zeroes -> transmission disk, 0 left"},
        {"flags 0; name disk",
         "greeting; export " DISK_EXPORT " zeroes -> transmission disk, 0 left"},
        {"flags 2; name -", "greeting; export " CD_EXPORT " -> transmission caf\xc3\xa9, 0 left"},
        {"flags 3; list; name disk",
         "greeting; LIST SERVER 'disk' 'the first disk'; LIST SERVER 'caf\xc3\xa9'; LIST ACK; "
         "export " DISK_EXPORT " -> transmission disk, 0 left"},
        {"flags 3; name nodisk", "greeting -> closed"},
        {"flags 3; name dis", "greeting -> closed"},
        {"flags 3; name disk%00", "greeting -> closed"},
        {"flags 3; option 1 4097; fill 4097 0x41", "greeting -> closed"},
        {.client = "flags 3; name -", .server = "greeting -> closed", .no_default = true},
        /* Without fixed newstyle there is no other option. */
        {"flags 0; list", "greeting -> closed"},
        {"flags 2; go disk", "greeting -> closed"},
        {"flags 0; abort", "greeting -> closed"},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_refusals(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; option 5; abort", "greeting; STARTTLS ERR_POLICY; ABORT ACK -> closed quietly"},
        {"flags 3; option 4; option 12; abort",
         "greeting; PEEK_EXPORT ERR_UNSUP; unknown ERR_UNSUP; ABORT ACK -> closed quietly"},
        {"flags 3; option 0; option 77 5; fill 5 0xff; option 0xffffffff; list",
         "greeting; unknown ERR_UNSUP; unknown ERR_UNSUP; unknown ERR_UNSUP; LIST SERVER 'disk' "
         "'the first disk'; LIST SERVER 'caf\xc3\xa9'; LIST ACK"},
        {"flags 3; option 77 4096; fill 4096 0; option 77 65536; fill 65536 1; abort",
         "greeting; unknown ERR_UNSUP; unknown ERR_UNSUP; ABORT ACK -> closed quietly"},
        {"flags 3; option 3 7; fill 7 0x49; list",
         "greeting; LIST ERR_INVALID; LIST SERVER 'disk' 'the first disk'; LIST SERVER "
         "'caf\xc3\xa9'; LIST ACK"},
        /* Options too long are not waited for. */
        {"flags 3; option 77 65537", "greeting; unknown ERR_TOO_BIG -> closed"},
        {"flags 3; option 7 0x80000000", "greeting; GO ERR_TOO_BIG -> closed"},
        {"flags 3; option 7 0xffffffff; list", "greeting; GO ERR_TOO_BIG -> closed"},
        {"flags 3; option 1 0xffffffff", "greeting -> closed"},
    };

    check_table(table, ARRAY_SIZE(table));
}

/* The kind of replies: raised once each, told by the flags, and never lowered. */
static void test_modes(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; structured; go disk",
         "greeting; STRUCTURED_REPLY ACK; GO INFO EXPORT " DISK_EXPORT_DF "; GO INFO " BLOCK_SIZE
         "; GO ACK -> transmission disk, 0 left, structured 0x0"},
        {"flags 3; structured; name disk", "greeting; STRUCTURED_REPLY ACK; export " DISK_EXPORT_DF
                                           " -> transmission disk, 0 left, structured 0x0"},
        {"flags 3; extended; info disk; go disk",
         "greeting; EXTENDED_HEADERS ACK; INFO INFO EXPORT " DISK_EXPORT_DF
         "; INFO INFO " BLOCK_SIZE "; INFO ACK; GO INFO EXPORT " DISK_EXPORT_DF
         "; GO INFO " BLOCK_SIZE "; GO ACK -> transmission disk, 0 left, extended 0x0"},
        {"flags 3; structured; extended; go disk",
         "greeting; STRUCTURED_REPLY ACK; EXTENDED_HEADERS ACK; GO INFO EXPORT " DISK_EXPORT_DF
         "; GO INFO " BLOCK_SIZE "; GO ACK -> transmission disk, 0 left, extended 0x0"},
        {"flags 3; structured; structured; extended; extended; structured; abort",
         "greeting; STRUCTURED_REPLY ACK; STRUCTURED_REPLY ERR_INVALID; EXTENDED_HEADERS ACK; "
         "EXTENDED_HEADERS ERR_INVALID; STRUCTURED_REPLY ERR_EXT_HEADER_REQD; ABORT ACK -> closed "
         "quietly"},
        {"flags 3; info disk; structured; info disk",
         "greeting; INFO INFO EXPORT " DISK_EXPORT "; INFO INFO " BLOCK_SIZE
         "; INFO ACK; STRUCTURED_REPLY ACK; INFO INFO EXPORT " DISK_EXPORT_DF
         "; INFO INFO " BLOCK_SIZE "; INFO ACK"},
        /* With data they do nothing, and the session stays in step. */
        {"flags 3; option 8 4; hex 49484156; option 11 1; hex 00; go disk",
         "greeting; STRUCTURED_REPLY ERR_INVALID; EXTENDED_HEADERS ERR_INVALID; GO INFO "
         "EXPORT " DISK_EXPORT "; GO INFO " BLOCK_SIZE "; GO ACK -> transmission disk, 0 left"},
        /* EXPORT_NAME cannot follow extended headers. */
        {"flags 3; extended; name disk", "greeting; EXTENDED_HEADERS ACK -> closed"},
        {"flags 3; extended; name nodisk", "greeting; EXTENDED_HEADERS ACK -> closed"},
        {.client = "flags 3; structured; extended; set disk; listmeta disk; abort",
         .server = "greeting; STRUCTURED_REPLY ERR_SHUTDOWN; EXTENDED_HEADERS ERR_SHUTDOWN; "
                   "SET_META_CONTEXT ERR_SHUTDOWN; LIST_META_CONTEXT ERR_SHUTDOWN; ABORT ACK -> "
                   "closed quietly",
         .stopping = true},
        {"flags 2; structured", "greeting -> closed"},
        {"flags 0; extended", "greeting -> closed"},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_broken_go(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; option 7 0; option 7 1; hex 00; option 7 5; hex 0000000000; abort",
         "greeting; GO ERR_INVALID; GO ERR_INVALID; GO ERR_INVALID; ABORT ACK -> closed quietly"},
        {"flags 3; option 6 6; hex 000000000001; abort",
         "greeting; INFO ERR_INVALID; ABORT ACK -> closed quietly"},
        /* The name is longer than the data, by one and by so much that sums would wrap. */
        {"flags 3; option 7 10; hex 000000056469736b0000; abort",
         "greeting; GO ERR_INVALID; ABORT ACK -> closed quietly"},
        {"flags 3; option 7 10; hex ffffffff6469736b0000; abort",
         "greeting; GO ERR_INVALID; ABORT ACK -> closed quietly"},
        {"flags 3; option 7 10; hex fffffffa6469736b0000; abort",
         "greeting; GO ERR_INVALID; ABORT ACK -> closed quietly"},
        /* Requests for information that are not there, and bytes that belong to nothing. */
        {"flags 3; option 7 10; hex 000000046469736bffff; abort",
         "greeting; GO ERR_INVALID; ABORT ACK -> closed quietly"},
        {"flags 3; option 7 12; hex 000000046469736b00000003; abort",
         "greeting; GO ERR_INVALID; ABORT ACK -> closed quietly"},
        {"flags 3; option 7 11; hex 000000046469736b000000; abort",
         "greeting; GO ERR_INVALID; ABORT ACK -> closed quietly"},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_hostile_names(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; go disk%00; go %c3; go %c0%af; go %ed%a0%80; go %ff; info disk%00x",
         "greeting; GO ERR_INVALID; GO ERR_INVALID; GO ERR_INVALID; GO ERR_INVALID; GO "
         "ERR_INVALID; INFO ERR_INVALID"},
        {"flags 3; go a%0ab%1b[2Jc; go %25s%25n%25s; go ../../etc/passwd; go %22%27%5c; go DISK",
         "greeting; GO ERR_UNKNOWN; GO ERR_UNKNOWN; GO ERR_UNKNOWN; GO ERR_UNKNOWN; GO "
         "ERR_UNKNOWN"},
        {"flags 3; option 7 4102; hex 00001000; fill 4096 0x41; hex 0000; abort",
         "greeting; GO ERR_UNKNOWN; ABORT ACK -> closed quietly"},
        {"flags 3; option 7 4102; hex 00001000; fill 4096 0x0a; hex 0000; abort",
         "greeting; GO ERR_UNKNOWN; ABORT ACK -> closed quietly"},
        {"flags 3; option 7 4103; hex 00001001; fill 4097 0x41; hex 0000; abort",
         "greeting; GO ERR_INVALID; ABORT ACK -> closed quietly"},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_strangers(void **state)
{
    static const struct dialogue table[] = {
        {"flags 4; list", "greeting -> closed"},
        {"flags 0xffffffff", "greeting -> closed"},
        {"flags 0x80000003", "greeting -> closed"},
        {"hex 474554202f20485454502f312e310d0a", "greeting -> closed"},
        {"flags 3; hex 49484156454f505500000003", "greeting -> closed"},
        {"flags 3; hex 0000000000000000", "greeting -> closed"},
        {"flags 3; hex 2560951300000000", "greeting -> closed"},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_each_unknown_client_flag(void **state)
{
    for (unsigned bit = 2; bit < 32; bit++) {
        char script[64];

        snprintf(script, sizeof(script), "flags 0x%x; list", 3 | 1U << bit);
        check_table(&(struct dialogue){script, "greeting -> closed"}, 1);
    }
}

static void test_shutting_down(void **state)
{
    static const struct dialogue table[] = {
        {"flags 3; list; go disk; option 5; option 77; abort",
         "greeting; LIST ERR_SHUTDOWN; GO ERR_SHUTDOWN; STARTTLS ERR_SHUTDOWN; unknown "
         "ERR_SHUTDOWN; ABORT ACK -> closed quietly",
         .stopping = true},
        {"flags 3; name disk", "greeting -> closed", .stopping = true},
    };

    check_table(table, ARRAY_SIZE(table));
}

static void test_oldstyle(void **state)
{
    static const struct dialogue table[] = {
        {"hex 25609513", "oldstyle 10 0x40f zeroes -> transmission caf\xc3\xa9, 4 left",
         .oldstyle = true},
        {"", " -> closed", .oldstyle = true, .no_default = true},
    };

    check_table(table, ARRAY_SIZE(table));
}

/* ---- Limits ---- */

static void test_option_limit(void **state)
{
    struct fixture f;
    struct server_session s;
    struct message m = {0};

    fixture_init(&f);
    server_session_init(&s, &f.exports, false, false);
    message_script(&m, "flags 3");
    for (int i = 0; i < NBD_OPTIONS_MAX; i++)
        message_script(&m, "go nodisk");
    server_session_feed(&s, m.data, m.length);
    assert_int_equal(s.hs.state, NBD_HANDSHAKE_OPTIONS);
    m.length = 0;
    message_script(&m, "list");
    server_session_feed(&s, m.data, m.length);
    assert_int_equal(s.hs.state, NBD_HANDSHAKE_CLOSED);
    assert_non_null(strstr(s.hs.reason.text, "1000"));
    server_session_fini(&s);
    message_free(&m);
}

/* Pipelined options fill the output only so far; the rest is answered when it was emptied. */
static void test_output_is_bounded(void **state)
{
    struct fixture f;
    struct nbd_handshake hs;
    struct message m = {0};
    static char long_text[NBD_STRING_MAX + 1];
    size_t used = 0, largest = 0, said = 0;

    fixture_init(&f);
    memset(long_text, 'x', NBD_STRING_MAX);
    f.disk.description = long_text;
    nbd_handshake_init(&hs, &f.exports, NULL, false);
    nbd_handshake_start(&hs);
    message_script(&m, "flags 3");
    for (int i = 0; i < NBD_OPTIONS_MAX; i++)
        message_script(&m, "list");
    while (used < m.length) {
        size_t n = nbd_handshake_input(&hs, m.data + used, m.length - used);

        assert_true(n > 0);
        used += n;
        largest = hs.output.length > largest ? hs.output.length : largest;
        said += hs.output.length;
        hs.output.length = 0;
    }
    assert_int_equal(hs.state, NBD_HANDSHAKE_OPTIONS);
    assert_true(largest < 128 * 1024);
    assert_true(said > 1000 * NBD_STRING_MAX);
    nbd_handshake_fini(&hs);
    message_free(&m);
}

/* What an error says is for people: the name in it is short, whole in its escapes, and
 * recognizable. */
static void test_error_text(void **state)
{
    struct fixture f;
    struct server_session s;
    struct message m = {0};
    char *text;

    fixture_init(&f);
    server_session_init(&s, &f.exports, false, false);
    message_script(&m, "flags 3; go my%0adisk");
    server_session_feed(&s, m.data, m.length);
    text = strndup((char *)s.said.data + 18 + 20, s.said.length - 18 - 20);
    assert_non_null(text);
    assert_non_null(strstr(text, "'my\\x0adisk'"));
    free(text);
    server_session_fini(&s);
    message_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sessions),      cmocka_unit_test(test_export_name),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_modes),
        cmocka_unit_test(test_broken_go),     cmocka_unit_test(test_hostile_names),
        cmocka_unit_test(test_strangers),     cmocka_unit_test(test_each_unknown_client_flag),
        cmocka_unit_test(test_shutting_down), cmocka_unit_test(test_oldstyle),
        cmocka_unit_test(test_option_limit),  cmocka_unit_test(test_output_is_bounded),
        cmocka_unit_test(test_error_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
