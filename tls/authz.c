/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Asking any kind of authorization, and the kind that knows one name.
 *
 * Questions to a kind that takes its time are answered in a worker.  What is asked there may never
 * answer, so few are in workers at a time, and the rest waits in line: workers have other things to
 * do.
 */
#include "tls/authz.h"

#include "base/checked.h"
#include "base/log.h"
#include "base/worker.h"
#include "tls/authz_kind.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct simple {
    struct authz authz;
    char *identity;
};

static bool simple_allows(const struct authz *authz, const char *identity)
{
    return strcmp(container_of(authz, struct simple, authz)->identity, identity) == 0;
}

static void simple_free(struct authz *authz)
{
    struct simple *simple = container_of(authz, struct simple, authz);

    free(simple->identity);
    free(simple);
}

int authz_simple_new(const char *identity, struct authz **ret, struct error *error)
{
    struct simple *simple = calloc(1, sizeof(*simple));

    if (!simple)
        return error_set(error, ENOMEM, "out of memory");
    simple->authz = (struct authz){.allows = simple_allows, .free = simple_free};
    simple->identity = strdup(identity);
    if (!simple->identity) {
        free(simple);
        return error_set(error, ENOMEM, "out of memory");
    }
    *ret = &simple->authz;
    return 0;
}

/* ---- Questions that wait ---- */

#define AT_WORK_MAX 4

struct authz_question {
    struct worker_job job;
    struct list link; /* in line */
    bool (*look_up)(const char *service, const char *identity);
    char *service, *identity;
    bool yes;
    void (*answered)(void *arg, bool yes); /* NULL: nobody waits for it any more */
    void *arg;
};

static struct list in_line = LIST_INIT(in_line);
static unsigned at_work;
static unsigned abandoned; /* of those: the ones whose answer is not wanted any more */
static bool told;          /* ... that all are, since there was none */

static void question_free(struct authz_question *q)
{
    free(q->service);
    free(q->identity);
    free(q);
}

static void look_up(struct worker_job *job)
{
    struct authz_question *q = container_of(job, struct authz_question, job);

    q->yes = q->look_up(q->service, q->identity);
}

static void start_next(void)
{
    struct list *next = at_work < AT_WORK_MAX ? list_pop(&in_line) : NULL;

    if (!next)
        return;
    at_work++;
    worker_submit(&list_entry(next, struct authz_question, link)->job);
}

static void looked_up(struct worker_job *job)
{
    struct authz_question *q = container_of(job, struct authz_question, job);

    at_work--;
    abandoned -= !q->answered;
    told = told && abandoned > 0;
    start_next();
    if (q->answered)
        q->answered(q->arg, q->yes);
    question_free(q);
}

static struct authz_question *question_new(const struct authz *authz, const char *identity)
{
    struct authz_question *q = calloc(1, sizeof(*q));

    if (!q)
        return NULL;
    q->job = (struct worker_job){.run = look_up, .done = looked_up, .may_hang = true};
    q->look_up = authz->look_up;
    q->service = strdup(authz->service);
    q->identity = strdup(identity);
    if (q->service && q->identity)
        return q;
    question_free(q);
    return NULL;
}

/* ---- Of any kind ---- */

bool authz_allows(const struct authz *authz, const char *identity)
{
    if (!identity || !*identity)
        return false;
    return authz->look_up ? authz->look_up(authz->service, identity)
                          : authz->allows(authz, identity);
}

int authz_ask(const struct authz *authz, const char *identity,
              void (*answered)(void *arg, bool yes), void *arg,
              struct authz_question **ret_question)
{
    struct authz_question *q;

    if (!identity || !*identity || !authz->look_up)
        return authz_allows(authz, identity);
    q = question_new(authz, identity);
    if (!q)
        return -ENOMEM;
    q->answered = answered;
    q->arg = arg;
    list_append(&in_line, &q->link);
    start_next();
    *ret_question = q;
    return -EINPROGRESS;
}

void authz_forget(struct authz_question *question)
{
    question->answered = NULL;
    if (list_linked(&question->link)) {
        list_remove(&question->link);
        question_free(question);
        return;
    }
    abandoned++;
    if (abandoned < AT_WORK_MAX || told)
        return;
    told = true;
    log_warning("%d lookups of PAM go on although nobody waits for them any more; no client is "
                "authorized until one of them ends",
                AT_WORK_MAX);
}

void authz_free(struct authz *authz)
{
    if (authz)
        authz->free(authz);
}
