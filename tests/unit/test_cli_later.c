/* SPDX-License-Identifier: BSD-3-Clause */
/* Options that come later are told from typos. By a table of this test's own, which does not
 * shrink. */
#include "base/checked.h"
#include "daemon/cli.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static const struct cli_row rows[] = {
    {.name = "image", .letter = 'i', .kind = CLI_FLAG, .help = "h"},
    {.name = "imagine", .kind = CLI_FLAG, .help = "h"},
    {.name = "snap", .exact = true, .kind = CLI_FLAG, .help = "h"},
    {.name = NULL},
};
static const struct cli_later later[] = {
    {"image-opts", 0}, {"snapshot", 's'}, {"tls-creds", 0}, {"tls-creds-more", 0}, {NULL, 0}};
static const struct cli cli = {.rows = rows, .later = later, .later_of = "other"};

static const struct {
    const char *word, *says;
    bool hint; /* that --help tells more */
} cases[] = {
    {"--image-opts", "the option '--image-opts' is not supported yet", false},
    {"--image-o", "the option '--image-opts' is not supported yet", false},
    {"-s", "the option '--snapshot' is not supported yet", false},
    {"-is", "the option '--snapshot' is not supported yet", false},
    {"--sn=1", "the option '--snapshot' is not supported yet", false},
    {"--snaps", "the option '--snapshot' is not supported yet", false},
    {"--tls-creds=1", "the option '--tls-creds' is not supported yet", false},
    {"--tls", "option '--tls' is ambiguous; possibilities: '--tls-creds' '--tls-creds-more'", true},
    {"--image-optsx", "unrecognized option '--image-optsx'", true},
    {"--ima", "option '--ima' is ambiguous; possibilities: '--image' '--imagine' '--image-opts'",
     true},
    {"--snap=1", "option '--snap' doesn't allow an argument", true},
    {"--image=1", "option '--image' doesn't allow an argument", true},
    {"-o", "invalid option -- 'o'", true},
};

static void test_later(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char program[] = "prog", word[64], *argv[] = {program, word, NULL};
        struct error error = {""};
        bool target = false, hint;
        int first;

        snprintf(word, sizeof(word), "%s", cases[i].word);
        assert_int_equal(cli_parse(&cli, &target, 2, argv, &first, &hint, &error), -EINVAL);
        assert_string_equal(error.text, cases[i].says);
        assert_int_equal(hint, cases[i].hint);
    }
}

/* Exact names are found where they are spelled out, and do not matter to other words. */
static void test_exact(void **state)
{
    char program[] = "prog", first_word[] = "--snap", file[] = "file", abbreviation[] = "--sn";
    char *argv[] = {program, file, first_word, abbreviation, NULL};
    struct error error = {""};
    bool target = false, hint;
    int first;

    assert_int_equal(cli_parse(&cli, &target, 4, argv, &first, &hint, &error), -EINVAL);
    assert_string_equal(error.text, "the option '--snapshot' is not supported yet");
    assert_true(target);
    argv[3] = NULL;
    assert_int_equal(cli_parse(&cli, &target, 3, argv, &first, &hint, &error), 0);
    assert_int_equal(first, 2);
    assert_string_equal(argv[2], "file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_later),
        cmocka_unit_test(test_exact),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
