/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Authorization by a list of rules, given in options or in a file.
 *
 * A list that came from a file is read again when the stamp of the file has changed, and for as
 * long as the file is so young that it could change without one.  It remembers the bytes as they
 * were last seen, good or bad: comparing them tells each bad state once.  A long one is parsed in a
 * worker while others are served, and decisions go by the rules from before until that has ended.
 */
#include "tls/authz.h"

#include "base/checked.h"
#include "base/log.h"
#include "base/path.h"
#include "base/worker.h"
#include "tls/authz_kind.h"
#include "tls/files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Files up to this length are parsed at once. */
#define AT_ONCE_BYTES (64 * 1024)

enum policy { POLICY_DENY, POLICY_ALLOW };
enum match_format { FORMAT_EXACT, FORMAT_GLOB };

static const char *const policy_words[] = {"deny", "allow", NULL};
static const char *const format_words[] = {"exact", "glob", NULL};

struct rule {
    char *match;
    int policy; /* enum policy */
    int format; /* enum match_format */
};

struct rules {
    int policy;   /* enum policy: when no rule matches */
    json_t *tree; /* while parsing */
    struct rule *rules;
    size_t count;
};

static const struct option_row rule_rows[] = {
    {"match", OPTION_STRING, offsetof(struct rule, match), NULL, "name, or pattern"},
    {"policy", OPTION_ENUM, offsetof(struct rule, policy), policy_words, "what then"},
    {"format", OPTION_ENUM, offsetof(struct rule, format), format_words, "how to compare"},
    {NULL},
};

static const struct option_row list_rows[] = {
    {"policy", OPTION_ENUM, offsetof(struct rules, policy), policy_words, "when no rule matches"},
    {"rules", OPTION_LIST, offsetof(struct rules, tree), NULL, "what decides"},
    {NULL},
};

struct list_authz {
    struct authz authz;
    struct rules rules;
};

struct file_authz {
    struct authz authz;
    struct tls_file file;
    bool refresh;
    struct rules rules;
    uint8_t *seen; /* the file as it was last read */
    size_t seen_length;
    bool unreadable; /* ... when it could not be read */
    struct worker_job job;
    bool parsing, freed; /* the job is under way; nobody else needs the list any more */
    /* What it comes to. */
    int result;
    struct rules fresh;
    struct error error;
};

/* ---- Rules ---- */

static void rules_free(struct rules *rules)
{
    for (size_t i = 0; i < rules->count; i++)
        options_release(rule_rows, &rules->rules[i]);
    options_release(list_rows, rules);
    free(rules->rules);
    *rules = (struct rules){0};
}

static int take_rule(struct rule *rule, json_t *tree, const char *what, struct error *error)
{
    int r;

    if (!json_is_object(tree))
        return error_set(error, EINVAL, "%s must be a group of match, policy and format", what);
    if (!json_object_get(tree, "match"))
        return error_set(error, EINVAL, "Option 'match' of %s is missing", what);
    if (!json_object_get(tree, "policy"))
        return error_set(error, EINVAL, "Option 'policy' of %s is missing: allow or deny", what);
    r = options_take(tree, rule_rows, rule, what, error);
    if (r == 0)
        r = options_finish(tree, rule_rows, what, error);
    return r;
}

static int take_rules(struct rules *rules, struct error *error)
{
    size_t count = json_array_size(rules->tree);
    char what[32];

    rules->rules = calloc(count ? count : 1, sizeof(*rules->rules));
    if (!rules->rules)
        return error_set(error, ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        int r;

        snprintf(what, sizeof(what), "rule %zu", i);
        rules->count = i + 1;
        r = take_rule(&rules->rules[i], json_array_get(rules->tree, i), what, error);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Fills *ret, which needs no release on failure. */
static int rules_parse(struct rules *ret, json_t *tree, struct error *error)
{
    struct rules rules = {.policy = POLICY_DENY};
    int r = options_take(tree, list_rows, &rules, "an authorization list", error);

    if (r == 0)
        r = options_finish(tree, list_rows, "an authorization list", error);
    if (r == 0)
        r = take_rules(&rules, error);
    json_decref(rules.tree);
    rules.tree = NULL;
    if (r < 0)
        rules_free(&rules);
    else
        *ret = rules;
    return r;
}

/* * is any text, ? any byte.  Goes back to the last star only, so it takes no exponential time. */
static bool glob_matches(const char *pattern, const char *text)
{
    const char *after_star = NULL, *from = NULL;

    while (*text) {
        if (*pattern == '*') {
            after_star = ++pattern;
            from = text;
        } else if (*pattern == '?' || *pattern == *text) {
            pattern++;
            text++;
        } else if (after_star) {
            pattern = after_star;
            text = ++from;
        } else {
            return false;
        }
    }
    return pattern[strspn(pattern, "*")] == '\0';
}

static bool rules_allow(const struct rules *rules, const char *identity)
{
    for (size_t i = 0; i < rules->count; i++) {
        const struct rule *rule = &rules->rules[i];

        if (rule->format == FORMAT_GLOB ? glob_matches(rule->match, identity)
                                        : strcmp(rule->match, identity) == 0)
            return rule->policy == POLICY_ALLOW;
    }
    return rules->policy == POLICY_ALLOW;
}

/* ---- A list ---- */

static bool list_allows(const struct authz *authz, const char *identity)
{
    return rules_allow(&container_of(authz, struct list_authz, authz)->rules, identity);
}

static void list_free(struct authz *authz)
{
    struct list_authz *list = container_of(authz, struct list_authz, authz);

    rules_free(&list->rules);
    free(list);
}

int authz_list_new(json_t *tree, struct authz **ret, struct error *error)
{
    struct list_authz *list = calloc(1, sizeof(*list));
    int r;

    if (!list)
        return error_set(error, ENOMEM, "out of memory");
    list->authz = (struct authz){.allows = list_allows, .free = list_free};
    r = rules_parse(&list->rules, tree, error);
    if (r < 0)
        free(list);
    else
        *ret = &list->authz;
    return r;
}

/* ---- A file ---- */

static int parse_text(const char *text, size_t length, const char *filename, struct rules *ret,
                      struct error *error)
{
    char what[300];
    json_t *tree;
    int r;

    snprintf(what, sizeof(what), "The rules in '%s'", filename);
    if (strlen(text) != length)
        return error_set(error, EINVAL, "%s are not valid JSON: there is a NUL byte", what);
    r = options_parse_json(text, what, &tree, error);
    if (r < 0)
        return r;
    r = rules_parse(ret, tree, error);
    json_decref(tree);
    if (r < 0)
        error_prefix(error, "%s are not good: ", what);
    return r;
}

/* Reads the file. 1: it is another one than before, and in `seen`; 0: it is not. */
static int file_read(struct file_authz *list, struct error *error)
{
    struct tls_file *file = &list->file;
    int r = tls_file_read(file, error);

    list->unreadable = r < 0;
    if (r < 0)
        return r;
    if (list->seen && file->length == list->seen_length &&
        memcmp(file->data, list->seen, file->length) == 0) {
        tls_file_drop(file);
        return 0;
    }
    free(list->seen);
    list->seen = file->data;
    list->seen_length = file->length;
    file->data = NULL;
    file->length = 0;
    return 1;
}

static void file_parse(struct worker_job *job)
{
    struct file_authz *list = container_of(job, struct file_authz, job);

    list->result = parse_text((const char *)list->seen, list->seen_length, list->file.path,
                              &list->fresh, &list->error);
}

static void take_fresh(struct file_authz *list)
{
    rules_free(&list->rules);
    list->rules = list->fresh;
    list->fresh = (struct rules){0};
}

static void tell_bad(const struct error *error)
{
    log_warning("%s; the rules stay what they were", error->text);
}

static void file_free(struct authz *authz)
{
    struct file_authz *list = container_of(authz, struct file_authz, authz);

    list->freed = true;
    if (list->parsing)
        return;
    rules_free(&list->rules);
    rules_free(&list->fresh);
    free(list->file.path);
    free(list->seen);
    free(list);
}

static void file_parsed(struct worker_job *job)
{
    struct file_authz *list = container_of(job, struct file_authz, job);

    list->parsing = false;
    if (list->freed)
        file_free(&list->authz);
    else if (list->result < 0)
        tell_bad(&list->error);
    else
        take_fresh(list);
}

static void file_refresh(struct file_authz *list)
{
    bool told = list->unreadable;
    struct error error = {""};
    int r;

    if (list->parsing || (list->file.settled && !told && !tls_file_changed(&list->file)))
        return;
    r = file_read(list, &error);
    if (r < 0 && !told)
        tell_bad(&error);
    if (r <= 0)
        return;
    list->job = (struct worker_job){.run = file_parse, .done = file_parsed};
    list->parsing = true;
    if (list->seen_length > AT_ONCE_BYTES) {
        worker_submit(&list->job);
    } else {
        file_parse(&list->job);
        file_parsed(&list->job);
    }
}

/* At the start there is nobody who would have to wait. */
static int file_load(struct file_authz *list, struct error *error)
{
    int r = file_read(list, error);

    if (r < 0)
        return r;
    file_parse(&list->job);
    if (list->result < 0) {
        *error = list->error;
        return list->result;
    }
    take_fresh(list);
    return 0;
}

static bool file_allows(const struct authz *authz, const char *identity)
{
    struct file_authz *list = container_of(authz, struct file_authz, authz);

    if (list->refresh)
        file_refresh(list);
    return rules_allow(&list->rules, identity);
}

int authz_list_file_new(const char *filename, bool refresh, struct authz **ret, struct error *error)
{
    struct file_authz *list = calloc(1, sizeof(*list));
    int r;

    if (!list)
        return error_set(error, ENOMEM, "out of memory");
    list->authz = (struct authz){.allows = file_allows, .free = file_free};
    list->refresh = refresh;
    list->file =
        (struct tls_file){.label = "the rules", .needed = true, .path = path_absolute(filename)};
    r = list->file.path ? file_load(list, error) : error_set(error, ENOMEM, "out of memory");
    if (r < 0)
        file_free(&list->authz);
    else
        *ret = &list->authz;
    return r;
}
