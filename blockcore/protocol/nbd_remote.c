/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The connections to an export.
 *
 * Each has a keeper, a coroutine that connects again when it is lost, with pauses that grow.  The
 * first connection tells whether the server allows several; the others are made in the background,
 * and are not missed when the server lets nobody in any more.
 *
 * A request that loses its connection is sent again on another one, as long as reconnect-delay
 * allows.  Every command of NBD can be repeated: it sets the same bytes to the same values, and of
 * commands that overlap in flight the order is open anyway, first time or second; what must have an
 * order (the writes into one cluster, the read and the write of a part of a block) is kept apart by
 * the range locks of the core, which are held until the last answer.  So the one danger is a server
 * that still carries out what it had received on the lost connection, after it has answered a
 * repetition and something newer; the protocol has no remedy for that.
 *
 * An answered write that was not flushed may be lost with the server; a flush covers it only if the
 * server that answers it is the one that has it, as with every other client of NBD.
 */
#include "base/checked.h"
#include "base/log.h"
#include "base/sys.h"
#include "blockcore/protocol/nbd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MS_NS INT64_C(1000000)
#define SECOND_NS (1000 * MS_NS)
#define HANDSHAKE_NS (30 * SECOND_NS)
#define PAUSE_MIN_NS (100 * MS_NS)
/* Nothing works without the first connection; of the others a server may have enough. */
#define PAUSE_MAX_NS (1 * SECOND_NS)
#define PAUSE_FURTHER_MAX_NS (60 * SECOND_NS)
/* How long what is in flight may take when the program is asked to end. */
#define STOP_NS (10 * SECOND_NS)

static bool any_ready(const struct nbd_remote *remote)
{
    for (unsigned i = 0; i < remote->count; i++) {
        if (remote->links[i].ready)
            return true;
    }
    return false;
}

static struct nbd_link *least_loaded(struct nbd_remote *remote)
{
    struct nbd_link *best = NULL;

    for (unsigned i = 0; i < remote->count; i++) {
        struct nbd_link *link = &remote->links[i];

        if (link->ready && (!best || link->load < best->load))
            best = link;
    }
    return best;
}

/* ---- Losing and finding ---- */

static struct nbd_remote *remote_of(struct nbd_link *link)
{
    return container_of(link->options, struct nbd_remote, options);
}

static void on_give_up(struct reactor_timer *timer)
{
    struct nbd_remote *remote = container_of(timer, struct nbd_remote, give_up);

    if (!any_ready(remote))
        log_error("%s is not back after reconnect-delay=%" PRIu64 " seconds: requests fail until "
                  "it is",
                  remote->name, remote->options.reconnect_delay);
    co_queue_wake_all(&remote->waiting);
}

static void on_lost(struct nbd_link *link)
{
    struct nbd_remote *remote = remote_of(link);
    uint64_t delay = remote->options.reconnect_delay;

    if (remote->closing)
        return;
    if (any_ready(remote)) {
        log_info("one of the connections to %s is lost: %s", remote->name, link->why.text);
        return;
    }
    log_warning("the connection to %s is lost: %s", remote->name, link->why.text);
    remote->lost_ns = sys->monotonic_ns();
    if (delay > 0 && !remote->stopping)
        reactor_timer_start(&remote->give_up, (int64_t)delay * SECOND_NS, on_give_up);
}

/* A connection is there; only the first of several is news. */
static void found(struct nbd_remote *remote, const struct nbd_link *link)
{
    bool news = true;

    for (unsigned i = 0; i < remote->count; i++)
        news &= &remote->links[i] == link || !remote->links[i].ready;
    if (!news)
        return;
    log_warning("connected to %s again", remote->name);
    reactor_timer_stop(&remote->give_up);
    co_queue_wake_all(&remote->waiting);
    for (unsigned i = 0; i < remote->count; i++) {
        if (!remote->links[i].handle) /* its keeper waits for this */
            nbd_link_wake(&remote->links[i]);
    }
}

static int check_same(const struct nbd_remote *remote, const struct nbd_export_info *info,
                      struct error *error)
{
    if (info->size != remote->info.size)
        return error_set(error, ESTALE,
                         "the export has %" PRIu64 " bytes now, it had %" PRIu64
                         " when it was opened",
                         info->size, remote->info.size);
    if (memcmp(info, &remote->info, sizeof(*info)) != 0)
        return error_set(error, ESTALE,
                         "the export has not the abilities or block sizes any more with which it "
                         "was opened");
    return 0;
}

/* ---- Keepers ---- */

struct keeper {
    struct nbd_remote *remote;
    struct nbd_link *link;
    int64_t pause_ns;
    struct error said; /* of the last failure that was logged */
};

static void tell_failure(struct keeper *keeper, const struct error *error)
{
    if (keeper->remote->closing || strcmp(keeper->said.text, error->text) == 0)
        return;
    keeper->said = *error;
    if (keeper->link == &keeper->remote->links[0])
        log_warning("cannot connect to %s again: %s", keeper->remote->name, error->text);
    else
        log_info("no further connection to %s: %s", keeper->remote->name, error->text);
}

static void take_pause(struct keeper *keeper)
{
    bool first = keeper->link == &keeper->remote->links[0];

    nbd_link_wait(keeper->link, keeper->pause_ns);
    keeper->pause_ns *= 2;
    if (keeper->pause_ns > (first ? PAUSE_MAX_NS : PAUSE_FURTHER_MAX_NS))
        keeper->pause_ns = first ? PAUSE_MAX_NS : PAUSE_FURTHER_MAX_NS;
}

static void connect_again(struct keeper *keeper)
{
    struct nbd_remote *remote = keeper->remote;
    struct nbd_link *link = keeper->link;
    struct error error = {""};
    int err = nbd_link_connect(link, sys->monotonic_ns() + HANDSHAKE_NS, &error);

    if (err == 0 && check_same(remote, &link->info, &error) < 0) {
        link->ready = false; /* it never was in use */
        nbd_link_drop(link, error.text);
        err = -ESTALE;
    }
    if (err == 0) {
        keeper->said = (struct error){""};
        found(remote, link);
        return;
    }
    tell_failure(keeper, &error);
    if (!remote->closing)
        take_pause(keeper);
}

/* Keeps one connection up. Without the first one the others wait. */
static void keep(void *arg)
{
    struct keeper *keeper = arg;
    struct nbd_remote *remote = keeper->remote;
    struct nbd_link *link = keeper->link;

    while (!remote->closing) {
        if (link->ready) {
            nbd_link_wait(link, -1);
            if (link->ready || remote->closing)
                continue;
            if (link->completed > 0) /* it was of use */
                keeper->pause_ns = PAUSE_MIN_NS;
            take_pause(keeper);
        } else if (link != &remote->links[0] && !any_ready(remote)) {
            nbd_link_wait(link, -1);
        } else {
            connect_again(keeper);
        }
    }
    free(keeper);
    if (--remote->keepers == 0)
        co_queue_wake_all(&remote->ended);
}

static void start_keeper(struct nbd_remote *remote, struct nbd_link *link)
{
    struct keeper *keeper = calloc(1, sizeof(*keeper));

    if (!keeper)
        return; /* then this connection is not made again, and requests fail when it is lost */
    *keeper = (struct keeper){.remote = remote, .link = link, .pause_ns = PAUSE_MIN_NS};
    remote->keepers++;
    if (coroutine_start(keep, keeper) == 0)
        return;
    remote->keepers--;
    free(keeper);
}

void nbd_remote_start(struct nbd_remote *remote)
{
    if (remote->info.multi_conn)
        remote->count = (unsigned)remote->options.connections;
    for (unsigned i = 0; i < remote->count; i++)
        start_keeper(remote, &remote->links[i]);
}

/* ---- Life ---- */

int nbd_remote_open(struct nbd_remote *remote, struct error *error)
{
    int64_t now = sys->monotonic_ns();
    int64_t deadline = now + (int64_t)remote->options.open_timeout * SECOND_NS;
    struct nbd_link *link = &remote->links[0];
    int err;

    co_queue_init(&remote->waiting);
    co_queue_init(&remote->ended);
    for (unsigned i = 0; i < NBD_CONNECTIONS_MAX; i++)
        nbd_link_init(&remote->links[i], &remote->options, on_lost);
    remote->opened = true;
    remote->count = 1;
    for (;;) {
        err = nbd_link_connect(link, now + HANDSHAKE_NS, error);
        now = sys->monotonic_ns();
        if (err == 0 || now >= deadline)
            break;
        nbd_link_wait(link, PAUSE_MIN_NS);
    }
    if (err < 0) {
        error_prefix(error, "cannot open %s: ", remote->name);
        return err;
    }
    remote->info = link->info;
    return 0;
}

static void on_stop_limit(struct reactor_timer *timer)
{
    struct nbd_remote *remote = container_of(timer, struct nbd_remote, stop_limit);

    for (unsigned i = 0; i < remote->count; i++)
        nbd_link_drop(&remote->links[i], "the server did not answer before the end");
}

void nbd_remote_stop(struct nbd_remote *remote)
{
    if (remote->stopping)
        return;
    remote->stopping = true;
    co_queue_wake_all(&remote->waiting);
    reactor_timer_stop(&remote->give_up);
    reactor_timer_start(&remote->stop_limit, STOP_NS, on_stop_limit);
}

void nbd_remote_close(struct nbd_remote *remote)
{
    if (!remote->opened)
        return;
    remote->closing = true;
    reactor_timer_stop(&remote->give_up);
    reactor_timer_stop(&remote->stop_limit);
    for (unsigned i = 0; i < remote->count; i++)
        nbd_link_cancel(&remote->links[i]);
    while (remote->keepers > 0)
        co_queue_wait(&remote->ended);
    for (unsigned i = 0; i < remote->count; i++)
        nbd_link_disconnect(&remote->links[i]);
}

/* ---- Requests ---- */

/* Until when a request waits that finds no connection, or has lost it. */
static int64_t patience_of(const struct nbd_remote *remote, int64_t since_ns)
{
    return since_ns + (int64_t)remote->options.reconnect_delay * SECOND_NS;
}

static int wait_ready(struct nbd_remote *remote)
{
    while (!any_ready(remote)) {
        if (remote->stopping || remote->closing ||
            sys->monotonic_ns() >= patience_of(remote, remote->lost_ns))
            return -ENOTCONN;
        co_queue_wait(&remote->waiting);
    }
    return 0;
}

int nbd_remote_run(struct nbd_remote *remote, struct nbd_command *command)
{
    int64_t lost_ns = 0; /* when this one was lost for the first time */
    int err;

    for (unsigned tries = 1;; tries++) {
        err = wait_ready(remote);
        if (err == 0)
            err = nbd_link_run(least_loaded(remote), command);
        if (err != -ENOTCONN)
            return err;
        if (lost_ns == 0)
            lost_ns = sys->monotonic_ns();
        /* Another connection may be there, and is tried in any case; if not, wait_ready() tells. */
        if (tries > remote->count &&
            (remote->stopping || sys->monotonic_ns() >= patience_of(remote, lost_ns)))
            return err;
    }
}
