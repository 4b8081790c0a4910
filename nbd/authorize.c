/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Asking authorizers about a client, between the TLS handshake and its first option inside.
 *
 * Each is asked once in a session, one after the other; what they say is remembered in the client's
 * identity, where access rules look (nbd/access.h).  Nothing is received meanwhile.  One that takes
 * too long has said no: the client waits for others then, so the time limit of its handshake stands
 * still.
 */
#include "nbd/access.h"
#include "nbd/connection.h"

#include "base/log.h"

#include <errno.h>

#define PATIENCE_NS INT64_C(10000000000)

/* The next who is to be asked, or NULL. */
static const struct nbd_authorizer *find_unasked(const struct nbd_connection *c)
{
    list_for_each(it, &c->owner->exports->list)
    {
        const struct nbd_export *e = list_entry(it, struct nbd_export, link);
        const struct nbd_authorizer *authorizer = nbd_access_unasked(e->access, &c->identity);

        if (authorizer)
            return authorizer;
    }
    return NULL;
}

static void note(struct nbd_connection *c, const struct nbd_authorizer *authorizer, bool yes)
{
    if (!nbd_identity_add_answer(&c->identity, authorizer, yes))
        nbd_connection_cut(c, "out of memory for its authorization");
}

static void go_on(struct nbd_connection *c, bool yes)
{
    const struct nbd_authorizer *authorizer = c->asked;

    c->asked = NULL;
    reactor_timer_stop(&c->patience);
    nbd_connection_start_deadline(c);
    note(c, authorizer, yes);
    reactor_defer(&c->turn);
}

static void on_answer(void *arg, bool yes)
{
    go_on(arg, yes);
}

static void on_no_answer(struct reactor_timer *timer)
{
    struct nbd_connection *c = container_of(timer, struct nbd_connection, patience);

    c->asked->forget(c->question);
    log_limited(&c->owner->log_unanswered,
                "client %s: whether it is authorized was not known after %d s, so it is not",
                c->peer, (int)(PATIENCE_NS / 1000000000));
    go_on(c, false);
}

/* Returns whether the answer is there, or the connection at its end. */
static bool ask(struct nbd_connection *c, const struct nbd_authorizer *authorizer)
{
    int r = authorizer->ask(authorizer->arg, c->identity.name, on_answer, c, &c->question);

    if (r >= 0) {
        note(c, authorizer, r > 0);
        return true;
    }
    if (r != -EINPROGRESS) {
        nbd_connection_cut(c, "out of memory for its authorization");
        return true;
    }
    c->asked = authorizer;
    c->paused = true;
    reactor_timer_stop(&c->deadline);
    reactor_timer_start(&c->patience, PATIENCE_NS, on_no_answer);
    return false;
}

bool nbd_connection_authorize(struct nbd_connection *c)
{
    const struct nbd_authorizer *authorizer;

    while (!c->input_closed && (authorizer = find_unasked(c))) {
        if (!ask(c, authorizer))
            return false;
    }
    return true;
}

void nbd_connection_forget_question(struct nbd_connection *c)
{
    reactor_timer_stop(&c->patience);
    if (c->asked)
        c->asked->forget(c->question);
    c->asked = NULL;
}
