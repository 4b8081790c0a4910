/* SPDX-License-Identifier: BSD-3-Clause */
/* Authorization: one name, lists of rules, lists in files that change, PAM. */
#include "tls/authz.h"

#include "base/checked.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "config.h"
#include "tests/support/fault.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef HAVE_PAM_START_CONFDIR
#include <security/pam_appl.h>
#endif

static int setup(void **state)
{
    *state = test_dir_make();
    return 0;
}

static int teardown(void **state)
{
    test_dir_remove(*state);
    return 0;
}

static void test_simple(void **state)
{
    struct authz *authz;
    struct error error;

    assert_int_equal(authz_simple_new("CN=alice,O=x", &authz, &error), 0);
    assert_true(authz_allows(authz, "CN=alice,O=x"));
    assert_false(authz_allows(authz, "CN=alice,O=xy"));
    assert_false(authz_allows(authz, "CN=alice,O="));
    assert_false(authz_allows(authz, ""));
    assert_false(authz_allows(authz, NULL));
    authz_free(authz);
    authz_free(NULL);
}

/* Nothing proved is nobody, even if that name were the allowed one. */
static void test_empty_name(void **state)
{
    struct authz *authz;
    struct error error;

    assert_int_equal(authz_simple_new("", &authz, &error), 0);
    assert_false(authz_allows(authz, ""));
    authz_free(authz);
}

static int list_of(const char *text, struct authz **ret, struct error *error)
{
    json_t *tree;
    int r = options_parse(text, NULL, &tree, error);

    if (r < 0)
        return r;
    r = authz_list_new(tree, ret, error);
    json_decref(tree);
    return r;
}

static void test_lists(void **state)
{
    static const struct {
        const char *list, *name;
        bool allowed;
    } rows[] = {
        {"", "a", false},
        {"policy=deny", "a", false},
        {"policy=allow", "a", true},
        {"rules.0.match=a,rules.0.policy=allow", "a", true},
        {"rules.0.match=a,rules.0.policy=allow", "b", false},
        {"rules.0.match=a*,rules.0.policy=allow", "ab", false},
        {"rules.0.match=a*,rules.0.policy=allow", "a*", true},
        {"rules.0.match=a*,rules.0.policy=allow,rules.0.format=glob", "ab", true},
        /* The first that matches decides. */
        {"rules.0.match=a,rules.0.policy=deny,rules.1.match=*,rules.1.policy=allow,"
         "rules.1.format=glob",
         "a", false},
        {"rules.0.match=a,rules.0.policy=deny,rules.1.match=*,rules.1.policy=allow,"
         "rules.1.format=glob",
         "b", true},
        {"policy=allow,rules.0.match=a,rules.0.policy=deny", "a", false},
        {"policy=allow,rules.0.match=a,rules.0.policy=deny", "b", true},
        {"json:{\"policy\": \"deny\", \"rules\": [{\"match\": \"a,b\", \"policy\": \"allow\"}]}",
         "a,b", true},
        {"json:{\"rules\": []}", "a", false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error error = {""};
        struct authz *authz;

        if (list_of(rows[i].list, &authz, &error) < 0)
            fail_msg("%s: %s", rows[i].list, error.text);
        if (authz_allows(authz, rows[i].name) != rows[i].allowed)
            fail_msg("%s and '%s'", rows[i].list, rows[i].name);
        authz_free(authz);
    }
}

static void test_globs(void **state)
{
    static const struct {
        const char *glob, *name;
        bool matches;
    } rows[] = {
        {"*", "anything", true},
        {"**", "a", true},
        {"?", "a", true},
        {"?", "ab", false},
        {"a?c", "abc", true},
        {"a*c", "ac", true},
        {"a*c", "abcbc", true},
        {"a*c", "abcb", false},
        {"*CN=a,*", "O=x,CN=a,C=de", true},
        {"*CN=a,*", "O=x,CN=ab,C=de", false},
        {"a*b*c", "axbxbc", true},
        {"a*b*c", "axcxb", false},
        /* As in C, not as in a shell: these characters are themselves. */
        {"[a]", "a", false},
        {"[a]", "[a]", true},
        {"a\\,b", "a\\,b", true},
        {"a\\*", "a\\x", true},
        /* Would take years by trying every way to share the text between the stars. */
        {"*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b",
         "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         false},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        json_t *tree = json_pack("{s:[{s:s,s:s,s:s}]}", "rules", "match", rows[i].glob, "policy",
                                 "allow", "format", "glob");
        struct error error = {""};
        struct authz *authz;

        assert_int_equal(authz_list_new(tree, &authz, &error), 0);
        if (authz_allows(authz, rows[i].name) != rows[i].matches)
            fail_msg("'%s' and '%s'", rows[i].glob, rows[i].name);
        authz_free(authz);
        json_decref(tree);
    }
}

static void test_bad_lists(void **state)
{
    static const struct {
        const char *list, *says;
    } rows[] = {
        {"policy=maybe", "Option 'policy' of an authorization list must be one of"},
        {"rules=x", "must be a list"},
        {"rules.1.match=x", "must be a list"},
        {"rules.0=x", "rule 0 must be a group"},
        {"rules.0.match=x,rules.0.policy=", "'policy' of rule 0 must be one of deny, allow"},
        {"rules.0.match=x", "Option 'policy' of rule 0 is missing"},
        {"rules.0.policy=allow", "Option 'match' of rule 0 is missing"},
        {"rules.0.match=x,rules.0.policy=allow,rules.0.format=regex", "'format' of rule 0"},
        {"rules.0.match=x,rules.0.policy=allow,rules.1.match=y,rules.1.policy=deny,rules.1.a=b",
         "'a' is unknown"},
        {"rule.0.match=x", "is unknown"},
        {"json:{\"rules\": [1]}", "rule 0 must be a group"},
        {"json:{\"rules\": [{\"match\": 1, \"policy\": \"deny\"}]}", "'match' of rule 0"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error error = {""};
        struct authz *authz;

        assert_int_equal(list_of(rows[i].list, &authz, &error), -EINVAL);
        if (!strstr(error.text, rows[i].says))
            fail_msg("'%s': %s", rows[i].list, error.text);
    }
}

static void write_text(const char *path, const char *text)
{
    test_file_write(path, text, strlen(text));
}

#define ALLOW(name) "{\"rules\": [{\"match\": \"" name "\", \"policy\": \"allow\"}]}"

static void test_file_is_read_again(void **state)
{
    char *path = test_path(*state, "list");
    struct authz *authz;
    struct error error = {""};

    write_text(path, ALLOW("a"));
    assert_int_equal(authz_list_file_new(path, true, &authz, &error), 0);
    assert_true(authz_allows(authz, "a"));
    /* The same length, most likely in the same tick of the clock. */
    write_text(path, ALLOW("b"));
    assert_false(authz_allows(authz, "a"));
    assert_true(authz_allows(authz, "b"));
    /* What is bad changes nothing. */
    write_text(path, "{\"rules\": [{\"match\": \"a\"");
    assert_true(authz_allows(authz, "b"));
    assert_false(authz_allows(authz, "a"));
    assert_int_equal(unlink(path), 0);
    assert_true(authz_allows(authz, "b"));
    write_text(path, ALLOW("a"));
    assert_true(authz_allows(authz, "a"));
    authz_free(authz);
    free(path);
}

static int64_t a_minute_later(void)
{
    return sys_posix.realtime_ns() + INT64_C(60000000000);
}

/* The rules from before hold until a long file is parsed; the end may come meanwhile. */
static void test_long_file(void **state)
{
    char *path = test_path(*state, "list"), *text = malloc(200000);
    struct error error = {""};
    struct authz *authz;

    assert_non_null(text);
    assert_int_equal(reactor_init(NULL), 0);
    write_text(path, "{\"policy\": \"deny\"}");
    assert_int_equal(authz_list_file_new(path, true, &authz, &error), 0);
    snprintf(text, 200000, "%-150000s{\"policy\": \"allow\"}", "");
    write_text(path, text);
    assert_false(authz_allows(authz, "a"));
    while (!authz_allows(authz, "a"))
        reactor_poll(true);
    snprintf(text, 200000, "%-160000s{\"policy\": 7}", "");
    write_text(path, text);
    assert_true(authz_allows(authz, "a"));
    authz_free(authz);
    reactor_fini();
    free(text);
    free(path);
}

/* A decision about a file that is as it was, and not younger than a clock can tell, reads nothing.
 */
static void test_file_is_not_read_when_it_is_old(void **state)
{
    const struct sys *before = sys;
    struct sys later = *sys;
    char *path = test_path(*state, "list");
    struct authz *authz;
    struct error error = {""};

    write_text(path, ALLOW("a"));
    later.realtime_ns = a_minute_later;
    sys = &later;
    fault_install();
    assert_int_equal(authz_list_file_new(path, true, &authz, &error), 0);
    fault_arm(&(struct fault_plan){.calls = FAULT_OPENAT | FAULT_PREADV});
    for (int i = 0; i < 100; i++)
        assert_true(authz_allows(authz, "a"));
    assert_int_equal(fault_count(), 0);
    write_text(path, ALLOW("bcd"));
    assert_true(authz_allows(authz, "bcd"));
    assert_int_equal(fault_count(), 2);
    fault_remove();
    sys = before;
    authz_free(authz);
    free(path);
}

/* A list that becomes something that may wait, or has no end, is left alone. */
static void test_file_becomes_another_thing(void **state)
{
    char *path = test_path(*state, "list");
    struct authz *authz;
    struct error error = {""};

    write_text(path, ALLOW("a"));
    assert_int_equal(authz_list_file_new(path, true, &authz, &error), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_true(authz_allows(authz, "a"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/dev/zero", path), 0);
    assert_true(authz_allows(authz, "a"));
    assert_false(authz_allows(authz, "b"));
    authz_free(authz);
    assert_int_equal(authz_list_file_new(path, true, &authz, &error), -EINVAL);
    assert_non_null(strstr(error.text, "is not a regular file"));
    assert_int_equal(unlink(path), 0);
    free(path);
}

/* As the process leaves its directory when it goes into the background. */
static void test_file_of_another_directory(void **state)
{
    char *path = test_path(*state, "list"), *here = getcwd(NULL, 0);
    struct authz *authz;
    struct error error = {""};

    write_text(path, ALLOW("a"));
    assert_int_equal(chdir(*state), 0);
    assert_int_equal(authz_list_file_new("list", true, &authz, &error), 0);
    assert_int_equal(chdir("/"), 0);
    write_text(path, ALLOW("b"));
    assert_true(authz_allows(authz, "b"));
    assert_int_equal(chdir(here), 0);
    authz_free(authz);
    free(here);
    free(path);
}

static void test_file_is_read_once(void **state)
{
    char *path = test_path(*state, "list");
    struct authz *authz;
    struct error error = {""};

    write_text(path, ALLOW("a"));
    assert_int_equal(authz_list_file_new(path, false, &authz, &error), 0);
    write_text(path, ALLOW("b"));
    assert_true(authz_allows(authz, "a"));
    assert_false(authz_allows(authz, "b"));
    authz_free(authz);
    free(path);
}

static void test_bad_files(void **state)
{
    static const struct {
        const char *text;
        size_t length;
        const char *says;
    } rows[] = {
        {"", 0, "are not valid JSON"},
        {"[]", 2, "must be one object"},
        {"{} x", 4, "are not valid JSON"},
        {"{\"a\":1}", 7, "are not good: Option 'a' is unknown"},
        {"{\"policy\":\"allow\"}\0", 19, "there is a NUL byte"},
        {"{\"policy\":\"allow\",\"policy\":\"deny\"}", 34, "are not valid JSON"},
        {"{\"policy\":\"\xff\"}", 14, "are not valid JSON"},
    };
    char *path = test_path(*state, "list");

    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct error error = {""};
        struct authz *authz;

        test_file_write(path, rows[i].text, rows[i].length);
        assert_int_equal(authz_list_file_new(path, true, &authz, &error), -EINVAL);
        if (!strstr(error.text, rows[i].says) || !strstr(error.text, path))
            fail_msg("%s: %s", rows[i].text, error.text);
    }
    assert_int_equal(unlink(path), 0);
    {
        struct error error = {""};
        struct authz *authz;

        assert_int_equal(authz_list_file_new(path, true, &authz, &error), -ENOENT);
    }
    free(path);
}

#ifdef HAVE_PAM_START_CONFDIR

static const char *pam_dir; /* of the services, instead of the system's */

/* In the place of the library's. */
int pam_start(const char *service, const char *user, const struct pam_conv *conversation,
              pam_handle_t **ret)
{
    return pam_start_confdir(service, user, conversation, pam_dir, ret);
}

static void put_service(const char *name, const char *text)
{
    char *path = test_path(pam_dir, name);

    test_file_write(path, text, strlen(text));
    free(path);
}

struct asked {
    struct authz_question *question;
    unsigned answers;
    bool yes;
};

static void on_answer(void *arg, bool yes)
{
    struct asked *asked = arg;

    asked->answers++;
    asked->yes = yes;
}

static void ask(const struct authz *authz, const char *name, struct asked *asked)
{
    *asked = (struct asked){0};
    assert_int_equal(authz_ask(authz, name, on_answer, asked, &asked->question), -EINPROGRESS);
}

static void await(const struct asked *asked)
{
    while (asked->answers == 0)
        reactor_poll(true);
    assert_int_equal(asked->answers, 1);
}

static void test_pam(void **state)
{
    static const struct {
        const char *service, *name;
        bool yes;
    } rows[] = {{"yes", "root", true},
                {"no", "root", false},
                {"root", "root", true},
                {"root", "evnbd-no-such-user", false}};

    pam_dir = *state;
    put_service("yes", "account required pam_permit.so\n");
    put_service("no", "account required pam_deny.so\n");
    put_service("root", "account required pam_succeed_if.so quiet user = root\n");
    assert_int_equal(reactor_init(NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct authz *authz;
        struct asked asked;

        assert_int_equal(authz_pam_new(rows[i].service, &authz, NULL), 0);
        assert_false(authz_allows(authz, ""));
        assert_int_equal(authz_ask(authz, "", on_answer, &asked, &asked.question), 0);
        ask(authz, rows[i].name, &asked);
        await(&asked);
        if (asked.yes != rows[i].yes || authz_allows(authz, rows[i].name) != rows[i].yes)
            fail_msg("service %s, %s: %d", rows[i].service, rows[i].name, asked.yes);
        authz_free(authz);
    }
    reactor_fini();
}

/* Forgets the questions; returns how many lines the log has got by that. */
static unsigned forget_all(const char *dir, struct asked *asked, size_t count)
{
    char *path = test_path(dir, "log");
    FILE *log = fopen(path, "w+");
    int kept = dup(STDERR_FILENO), c;
    unsigned lines = 0;

    assert_non_null(log);
    assert_true(kept >= 0 && dup2(fileno(log), STDERR_FILENO) >= 0);
    for (size_t i = 0; i < count; i++)
        authz_forget(asked[i].question);
    assert_true(dup2(kept, STDERR_FILENO) >= 0);
    close(kept);
    rewind(log);
    while ((c = fgetc(log)) != EOF)
        lines += c == '\n';
    assert_int_equal(fclose(log), 0);
    free(path);
    return lines;
}

/* Some never answer. The rest waits in line, and what is not wanted any more is not answered. */
static void test_pam_that_hangs(void **state)
{
    char *go = test_path(*state, "go"), *script = test_path(*state, "script"), text[600];
    struct asked asked[10];
    struct authz *authz;

    pam_dir = *state;
    snprintf(text, sizeof(text), "until [ -e '%s' ]; do sleep 0.02; done\n", go);
    test_file_write(script, text, strlen(text));
    snprintf(text, sizeof(text), "account required pam_exec.so quiet /bin/sh %s\n", script);
    put_service("hangs", text);
    assert_int_equal(reactor_init(NULL), 0);
    assert_int_equal(authz_pam_new("hangs", &authz, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(asked); i++)
        ask(authz, "root", &asked[i]);
    authz_free(authz);
    /* Those in line first, and of those in workers all but one; with that one nobody can be asked.
     */
    assert_int_equal(forget_all(*state, &asked[8], 1), 0);
    assert_int_equal(forget_all(*state, &asked[0], 3), 0);
    assert_int_equal(forget_all(*state, &asked[3], 1), 1);
    reactor_poll(false);
    for (size_t i = 0; i < ARRAY_SIZE(asked); i++)
        assert_int_equal(asked[i].answers, 0);
    test_file_write(go, "", 0);
    for (size_t i = 0; i < ARRAY_SIZE(asked); i++) {
        if (i > 3 && i != 8)
            await(&asked[i]);
    }
    assert_int_equal(asked[0].answers + asked[3].answers + asked[8].answers, 0);
    reactor_fini();
    free(script);
    free(go);
}

#else

static const char no_pam_services[] = "PAM cannot be given services of a test here";

static void test_pam(void **state)
{
#ifndef HAVE_PAM
    struct error error = {""};
    struct authz *authz;

    assert_int_equal(authz_pam_new("other", &authz, &error), -ENOTSUP);
    assert_non_null(strstr(error.text, "without libpam"));
#else
    test_skip("%s", no_pam_services);
#endif
}

static void test_pam_that_hangs(void **state)
{
    test_skip("%s", no_pam_services);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simple),
        cmocka_unit_test(test_empty_name),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_globs),
        cmocka_unit_test(test_bad_lists),
        cmocka_unit_test(test_file_is_read_again),
        cmocka_unit_test(test_long_file),
        cmocka_unit_test(test_file_is_not_read_when_it_is_old),
        cmocka_unit_test(test_file_becomes_another_thing),
        cmocka_unit_test(test_file_of_another_directory),
        cmocka_unit_test(test_file_is_read_once),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_pam),
        cmocka_unit_test(test_pam_that_hangs),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
