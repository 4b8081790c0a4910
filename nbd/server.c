/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server: who is let in, how many, and the orderly stop.
 *
 * connections_max counts clients in transmission.  When it is reached nothing more is accepted, and
 * handshakes that were under way stand still until a client leaves: for a client both look like a
 * server that answers late.
 *
 * Handshakes have a pool of their own, so that clients that connect and say nothing cannot keep
 * others out: when it is full, the oldest of the origin that has the most of them makes room.  An
 * origin beyond its own share loses its oldest as soon as that has stood for a second.  A burst of
 * good clients must not push itself out, so the pool takes in no more while that oldest one is
 * younger than a moment; then the burst waits in the backlog.
 *
 * The server owns its listeners and connections; exports are the caller's.
 */
#include "nbd/server.h"

#include "base/coroutine.h"
#include "base/log_limit.h"
#include "base/sys.h"
#include "blockcore/block.h"
#include "nbd/connection.h"
#include "nbd/listener.h"
#include "nbd/origin.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACCEPT_BURST 64
#define HANDSHAKES_MAX 256
#define HANDSHAKES_OF_ONE 32 /* of one origin, as far as they are stalled */
#define STALLED_NS INT64_C(1000000000)
/* What a handshake gets at least before it has to make room. */
#define MOMENT_NS INT64_C(100000000)
/* Without descriptors or memory, trying again rests for so long. */
#define ACCEPT_PAUSE_NS INT64_C(1000000000)
/* When the server shuts down, requests that take longer end where they are. */
#define STOP_CANCEL_NS INT64_C(1000000000)

struct nbd_server {
    struct nbd_connection_owner owner;
    struct nbd_server_config config;
    struct nbd_exports *exports;
    struct nbd_server_events events;
    struct list listeners;
    struct nbd_origins origins;
    struct list handshakes, clients; /* connections, oldest first */
    unsigned handshake_count, client_count;
    unsigned removals; /* of exports, under way */
    uint64_t serial;   /* names local clients */
    bool started, stopping, resting;
    struct reactor_timer rest, stop_cancel, stop_limit;
    int64_t stop_limit_ns;
    struct log_limit log_accept;     /* failures to accept */
    struct reactor_deferred drained; /* the last connection is gone */
};

/* An export that is taken away. */
struct nbd_removal {
    struct nbd_server *server;
    struct nbd_export *nbd_export;
    struct reactor_deferred start; /* when its last client has left */
    struct reactor_timer again;    /* ... and there was no memory for that */
    void (*done)(void *arg);
    void *arg;
};

static struct nbd_server *server_of(struct nbd_connection_owner *owner)
{
    return container_of(owner, struct nbd_server, owner);
}

static bool may_enter(struct nbd_connection_owner *owner)
{
    const struct nbd_server *server = server_of(owner);
    unsigned max = server->config.connections_max;

    return max == 0 || server->client_count < max || server->stopping;
}

/* Watches the listeners while another client could be served. */
static void update_listeners(struct nbd_server *server)
{
    bool open = server->started && !server->resting && may_enter(&server->owner);

    list_for_each(it, &server->listeners)
        reactor_fd_set(list_entry(it, struct nbd_listener, link)->watch, open ? REACTOR_READ : 0);
}

/* Accepts again, if that was put off. */
static void end_rest(struct nbd_server *server)
{
    server->resting = false;
    reactor_timer_stop(&server->rest);
    update_listeners(server);
}

static void on_rested(struct reactor_timer *timer)
{
    end_rest(container_of(timer, struct nbd_server, rest));
}

/* The clients wait in the backlog, for so long or until a handshake ends. */
static void rest(struct nbd_server *server, int64_t ns)
{
    server->resting = true;
    reactor_timer_start(&server->rest, ns, on_rested);
    update_listeners(server);
}

/* ---- Connections ---- */

static void tell_clients(const struct nbd_server *server)
{
    if (server->events.clients_changed)
        server->events.clients_changed(server->events.arg, server->client_count);
}

static void entered(struct nbd_connection_owner *owner, struct nbd_connection *c)
{
    struct nbd_server *server = server_of(owner);

    if (list_linked(&c->link))
        server->handshake_count--;
    list_remove(&c->link);
    list_append(&server->clients, &c->link);
    server->client_count++;
    c->nbd_export->clients++;
    nbd_origin_promote(c->origin);
    tell_clients(server);
    end_rest(server);
}

static void leave_export(struct nbd_export *nbd_export)
{
    nbd_export->clients--;
    if (nbd_export->clients == 0 && nbd_export->removal)
        reactor_defer(&nbd_export->removal->start);
}

/* Whether a stop has come to the last flush. */
static void check_drained(struct nbd_server *server)
{
    if (server->stopping && nbd_server_connections(server) == 0 && server->removals == 0)
        reactor_defer(&server->drained);
}

static void closed(struct nbd_connection_owner *owner, struct nbd_connection *c)
{
    struct nbd_server *server = server_of(owner);
    bool was_client = c->nbd_export != NULL;

    list_remove(&c->link);
    if (!was_client) {
        server->handshake_count--;
    } else {
        server->client_count--;
        leave_export(c->nbd_export);
        list_for_each(it, &server->handshakes)
            nbd_connection_resume(list_entry(it, struct nbd_connection, link));
        tell_clients(server);
        if (server->events.client_left)
            server->events.client_left(server->events.arg, server->client_count);
    }
    nbd_origin_leave(c->origin, was_client);
    end_rest(server);
    check_drained(server);
}

/* Of the handshakes that are not cut already: the oldest of the origin that has the most. */
static struct nbd_connection *first_to_go(const struct nbd_server *server)
{
    struct nbd_connection *first = NULL;

    list_for_each(it, &server->handshakes)
    {
        struct nbd_connection *c = list_entry(it, struct nbd_connection, link);

        if (!c->dead && (!first || c->origin->handshakes > first->origin->handshakes))
            first = c;
        if (first && first->origin->handshakes > server->handshake_count / 2)
            break; /* no other has more */
    }
    return first;
}

/* Also not those about whom somebody is asked: they wait for others, and have not stalled. */
static struct nbd_connection *oldest_of(const struct nbd_server *server,
                                        const struct nbd_origin *origin)
{
    list_for_each(it, &server->handshakes)
    {
        struct nbd_connection *c = list_entry(it, struct nbd_connection, link);

        if (!c->dead && !c->asked && c->origin == origin)
            return c;
    }
    return NULL;
}

static int64_t age_of(const struct nbd_connection *c)
{
    return sys->monotonic_ns() - c->since_ns;
}

/* After one of `origin` was added. */
static void limit_handshakes(struct nbd_server *server, const struct nbd_origin *origin)
{
    struct nbd_connection *c;

    if (server->handshake_count > HANDSHAKES_MAX) {
        c = first_to_go(server);
        if (c)
            nbd_connection_cut(c, "more than %d handshakes at a time, and this one was the oldest",
                               HANDSHAKES_MAX);
    } else if (origin->handshakes > HANDSHAKES_OF_ONE) {
        c = oldest_of(server, origin);
        if (c && age_of(c) >= STALLED_NS)
            nbd_connection_cut(
                c, "more than %d handshakes of one client at a time, and this one had stalled",
                HANDSHAKES_OF_ONE);
    }
}

static int start_connection(struct nbd_server *server, struct stream *stream, const char *peer,
                            const struct nbd_identity *identity, struct nbd_origin *origin)
{
    struct nbd_connection *c = nbd_connection_new(&server->owner, stream, peer, identity, origin);

    if (!c)
        return -ENOMEM;
    if (list_linked(&c->link)) /* oldstyle: it has entered already */
        return 0;
    list_append(&server->handshakes, &c->link);
    server->handshake_count++;
    limit_handshakes(server, origin);
    return 0;
}

/* Several connections of one process are told apart by a serial number. */
static void name_local(struct nbd_server *server, int fd, char *name)
{
    char process[NBD_PEER_MAX] = "local";

    nbd_socket_name_process(fd, process);
    snprintf(name, NBD_PEER_MAX, "%.40s #%" PRIu64, process, ++server->serial);
}

static int add_client(struct nbd_server *server, int fd, const char *peer)
{
    struct nbd_identity identity;
    struct nbd_origin_key key;
    struct nbd_origin *origin;
    struct stream *stream;
    char name[NBD_PEER_MAX];
    int r = -ENOMEM;

    nbd_identity_of_socket(fd, &identity);
    key = nbd_origin_key(&identity.address, identity.uid);
    origin = nbd_origins_enter(&server->origins, &key);
    stream = origin ? stream_socket_new(fd) : NULL;
    if (!peer || !peer[0]) {
        name_local(server, fd, name);
        peer = name;
    }
    if (stream)
        r = start_connection(server, stream, peer, &identity, origin);
    if (r == 0)
        return 0;
    nbd_identity_fini(&identity);
    if (stream)
        stream->ops->close(stream);
    else
        sys->close(fd);
    if (origin)
        nbd_origin_leave(origin, false);
    return r;
}

int nbd_server_add_client(struct nbd_server *server, int fd, const char *peer)
{
    if (server->stopping) {
        sys->close(fd);
        return -ESHUTDOWN;
    }
    nbd_socket_tune(fd);
    return add_client(server, fd, peer);
}

/* ---- Accepting ---- */

/* Accepting again at once would fail again at once. A handshake that has stalled makes room. */
static void on_accept_failed(struct nbd_server *server, int err)
{
    struct nbd_connection *c = first_to_go(server);

    log_limited(&server->log_accept, "cannot accept clients: %s; trying again in a second",
                strerror(-err));
    rest(server, ACCEPT_PAUSE_NS);
    if (c && age_of(c) >= STALLED_NS)
        nbd_connection_cut(c, "clients could not be accepted (%s), and this handshake had stalled",
                           strerror(-err));
}

/* Whether one more handshake would not push one out that has hardly begun. If not, rests. */
static bool room_for_handshake(struct nbd_server *server)
{
    const struct nbd_connection *c;
    int64_t age;

    if (server->handshake_count < HANDSHAKES_MAX)
        return true;
    c = first_to_go(server);
    age = c ? age_of(c) : MOMENT_NS;
    if (age < MOMENT_NS)
        rest(server, MOMENT_NS - age);
    return age >= MOMENT_NS;
}

/* Accepts one client. Returns whether to go on. */
static bool accept_one(struct nbd_server *server, struct nbd_listener *listener)
{
    char peer[NBD_PEER_MAX];
    int fd = nbd_listener_accept(listener, peer), r;

    if (fd == -EAGAIN)
        return false;
    /* A client that has gone again, and what accept(2) passes on of its network's errors. */
    if (fd == -ECONNABORTED || fd == -EINTR || fd == -EPROTO || fd == -ENETDOWN ||
        fd == -EHOSTUNREACH || fd == -ENETUNREACH || fd == -EHOSTDOWN || fd == -EPERM)
        return true;
    r = fd < 0 ? fd : add_client(server, fd, peer);
    if (r < 0)
        on_accept_failed(server, r);
    return r == 0;
}

static void on_clients(void *arg, unsigned events)
{
    struct nbd_listener *listener = arg;
    struct nbd_server *server = listener->server;

    for (int i = 0; i < ACCEPT_BURST && may_enter(&server->owner); i++) {
        if (!room_for_handshake(server) || !accept_one(server, listener))
            break;
    }
}

/* Gives a watch to each listener that has none yet. */
static int watch_listeners(struct nbd_server *server, struct error *error)
{
    list_for_each(it, &server->listeners)
    {
        struct nbd_listener *listener = list_entry(it, struct nbd_listener, link);

        if (listener->watch)
            continue;
        listener->server = server;
        listener->watch = reactor_fd_new(listener->fd, 0, on_clients, listener);
        if (!listener->watch)
            return error_set_errno(error, ENOMEM, "cannot watch for clients");
        log_info("listening on %s", listener->name);
    }
    update_listeners(server);
    return 0;
}

int nbd_server_listen_tcp(struct nbd_server *server, const char *host, const char *port,
                          int backlog, struct error *error)
{
    int r = nbd_listen_tcp(&server->listeners, host, port, backlog, error);

    return r < 0 ? r : watch_listeners(server, error);
}

int nbd_server_listen_unix(struct nbd_server *server, const char *path, int backlog,
                           struct error *error)
{
    int r = nbd_listen_unix(&server->listeners, path, backlog, error);

    return r < 0 ? r : watch_listeners(server, error);
}

int nbd_server_listen_passed(struct nbd_server *server, int fd, struct error *error)
{
    int r = nbd_listen_passed(&server->listeners, fd, error);

    return r < 0 ? r : watch_listeners(server, error);
}

void nbd_server_start(struct nbd_server *server)
{
    server->started = true;
    update_listeners(server);
}

static void close_listeners(struct nbd_server *server)
{
    struct list *node;

    reactor_timer_stop(&server->rest);
    while ((node = list_pop(&server->listeners))) {
        struct nbd_listener *listener = list_entry(node, struct nbd_listener, link);

        reactor_fd_free(listener->watch);
        nbd_listener_free(listener);
    }
}

/* ---- Stop ---- */

static void flush_export(const struct nbd_export *nbd_export)
{
    int r = nbd_export->read_only ? 0 : block_flush(nbd_export->node);

    if (r < 0)
        log_error("cannot make what was written to export '%s' durable: %s", nbd_export->name,
                  strerror(-r));
}

static void flush_exports(void *arg)
{
    struct nbd_server *server = arg;
    const struct nbd_export *unlisted = server->exports->default_export;

    list_for_each(it, &server->exports->list) flush_export(list_entry(it, struct nbd_export, link));
    if (unlisted && !list_linked(&unlisted->link))
        flush_export(unlisted);
    if (server->events.stopped)
        server->events.stopped(server->events.arg);
}

static void on_drained(struct reactor_deferred *deferred)
{
    struct nbd_server *server = container_of(deferred, struct nbd_server, drained);

    reactor_timer_stop(&server->stop_cancel);
    reactor_timer_stop(&server->stop_limit);
    if (coroutine_start(flush_exports, server) == 0)
        return;
    log_error("out of memory for the last flush");
    if (server->events.stopped)
        server->events.stopped(server->events.arg);
}

static void on_stop_cancel(struct reactor_timer *timer)
{
    struct nbd_server *server = container_of(timer, struct nbd_server, stop_cancel);

    list_for_each(it, &server->clients)
        nbd_connection_cancel(list_entry(it, struct nbd_connection, link));
}

static void cut_all(struct list *connections)
{
    list_for_each(it, connections)
    {
        struct nbd_connection *c = list_entry(it, struct nbd_connection, link);
        unsigned requests = nbd_connection_requests(c);

        nbd_connection_cut(c, "it did not finish in time when the server shut down");
        if (requests > 0)
            log_warning("shutting down: waiting for %u request%s of client %s to export '%s', "
                        "which the image has not finished",
                        requests, requests == 1 ? "" : "s", c->peer, c->nbd_export->name);
    }
}

/* What runs holds the image and cannot be broken off, so it is waited for and told of, again. */
static void on_stop_limit(struct reactor_timer *timer)
{
    struct nbd_server *server = container_of(timer, struct nbd_server, stop_limit);

    cut_all(&server->handshakes);
    cut_all(&server->clients);
    reactor_timer_start(&server->stop_limit, server->stop_limit_ns, on_stop_limit);
}

void nbd_server_stop(struct nbd_server *server, int64_t limit_ns)
{
    if (server->stopping)
        return;
    server->stopping = true;
    close_listeners(server);
    list_for_each(it, &server->handshakes)
        nbd_connection_stop(list_entry(it, struct nbd_connection, link));
    list_for_each(it, &server->clients)
        nbd_connection_stop(list_entry(it, struct nbd_connection, link));
    server->stop_limit_ns = limit_ns;
    reactor_timer_start(&server->stop_cancel, STOP_CANCEL_NS, on_stop_cancel);
    reactor_timer_start(&server->stop_limit, limit_ns, on_stop_limit);
    check_drained(server);
}

/* ---- Removing exports ---- */

static void end_removal(void *arg)
{
    struct nbd_removal *removal = arg;
    struct nbd_server *server = removal->server;

    flush_export(removal->nbd_export);
    nbd_export_free(removal->nbd_export);
    if (removal->done)
        removal->done(removal->arg);
    free(removal);
    server->removals--;
    check_drained(server);
}

static void start_again(struct reactor_timer *timer)
{
    reactor_defer(&container_of(timer, struct nbd_removal, again)->start);
}

static void start_end(struct reactor_deferred *deferred)
{
    struct nbd_removal *removal = container_of(deferred, struct nbd_removal, start);

    if (coroutine_start(end_removal, removal) < 0)
        reactor_timer_start(&removal->again, ACCEPT_PAUSE_NS, start_again);
}

/* From now on nobody finds it. */
static void hide_export(struct nbd_server *server, struct nbd_export *nbd_export)
{
    list_for_each(it, &server->handshakes) nbd_handshake_forget_export(
        list_entry(it, struct nbd_connection, link)->handshake, nbd_export);
    list_remove(&nbd_export->link);
    if (server->exports->default_export == nbd_export)
        server->exports->default_export = NULL;
}

int nbd_server_remove_export(struct nbd_server *server, struct nbd_export *nbd_export, bool hard,
                             void (*done)(void *arg), void *arg)
{
    struct nbd_removal *removal = nbd_export->removal;

    if (!removal) {
        removal = malloc(sizeof(*removal));
        if (!removal)
            return -ENOMEM;
        *removal = (struct nbd_removal){
            .server = server, .nbd_export = nbd_export, .done = done, .arg = arg};
        removal->start.run = start_end;
        nbd_export->removal = removal;
        server->removals++;
        hide_export(server, nbd_export);
        if (nbd_export->clients == 0)
            reactor_defer(&removal->start);
    }
    list_for_each(it, &server->clients)
    {
        struct nbd_connection *c = list_entry(it, struct nbd_connection, link);

        if (hard && c->nbd_export == nbd_export)
            nbd_connection_cut(c, "export '%s' was removed", nbd_export->name);
    }
    return 0;
}

/* ---- Life ---- */

struct nbd_server *nbd_server_new(const struct nbd_server_config *config,
                                  struct nbd_exports *exports,
                                  const struct nbd_server_events *events)
{
    struct nbd_server *server = calloc(1, sizeof(*server));

    if (!server)
        return NULL;
    nbd_connection_owner_init(&server->owner, exports);
    server->owner.oldstyle = config->oldstyle;
    server->owner.tls = config->tls;
    server->owner.handshake_limit_ns = config->handshake_limit_ns;
    server->owner.idle_limit_ns = config->idle_limit_ns;
    server->owner.connections_of_one = config->connections_of_one;
    server->owner.may_enter = may_enter;
    server->owner.entered = entered;
    server->owner.closed = closed;
    server->config = *config;
    server->exports = exports;
    if (events)
        server->events = *events;
    server->drained.run = on_drained;
    nbd_origins_init(&server->origins);
    log_limit_init(&server->log_accept, LOG_LEVEL_WARNING, "clients that cannot be accepted");
    list_init(&server->listeners);
    list_init(&server->handshakes);
    list_init(&server->clients);
    return server;
}

void nbd_server_free(struct nbd_server *server)
{
    if (!server)
        return;
    close_listeners(server);
    reactor_timer_stop(&server->stop_cancel);
    reactor_timer_stop(&server->stop_limit);
    reactor_defer_cancel(&server->drained);
    log_limit_end(&server->log_accept);
    nbd_connection_owner_fini(&server->owner);
    free(server);
}

unsigned nbd_server_connections(const struct nbd_server *server)
{
    return server->handshake_count + server->client_count;
}
