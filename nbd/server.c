/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server: who is let in, how many, and the orderly stop.
 *
 * connections_max counts clients in transmission.  When it is reached nothing more is accepted, and
 * handshakes that were under way stand still until a client leaves: for a client both look like a
 * server that answers late.  Handshakes have a pool of their own, in which the oldest makes room,
 * so that clients that connect and say nothing cannot keep others out.
 *
 * The server owns its listeners and connections; exports are the caller's.
 */
#include "nbd/server.h"

#include "base/coroutine.h"
#include "base/log.h"
#include "base/sys.h"
#include "blockcore/block.h"
#include "nbd/connection.h"
#include "nbd/listener.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACCEPT_BURST 64
#define HANDSHAKES_MAX 256
/* Without descriptors or memory for one more client, accepting rests for so long. */
#define ACCEPT_PAUSE_NS INT64_C(1000000000)

struct nbd_server {
    struct nbd_connection_owner owner;
    struct nbd_server_config config;
    struct nbd_exports *exports;
    struct nbd_server_events events;
    struct list listeners;
    struct list handshakes, clients; /* connections, oldest first */
    unsigned handshake_count, client_count;
    uint64_t serial; /* names local clients */
    bool started, stopping, resting;
    struct reactor_timer rest, stop_limit;
    struct reactor_deferred drained; /* the last connection is gone */
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

/* ---- Connections ---- */

static void entered(struct nbd_connection_owner *owner, struct nbd_connection *c)
{
    struct nbd_server *server = server_of(owner);

    if (list_linked(&c->link))
        server->handshake_count--;
    list_remove(&c->link);
    list_append(&server->clients, &c->link);
    server->client_count++;
    update_listeners(server);
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
        list_for_each(it, &server->handshakes)
            nbd_connection_resume(list_entry(it, struct nbd_connection, link));
        if (server->events.client_left)
            server->events.client_left(server->events.arg, server->client_count);
    }
    update_listeners(server);
    if (server->stopping && nbd_server_connections(server) == 0)
        reactor_defer(&server->drained);
}

/* The oldest handshake makes room, unless it has already been cut. */
static void limit_handshakes(struct nbd_server *server)
{
    if (server->handshake_count <= HANDSHAKES_MAX)
        return;
    list_for_each(it, &server->handshakes)
    {
        struct nbd_connection *c = list_entry(it, struct nbd_connection, link);

        if (c->dead)
            continue;
        nbd_connection_cut(c, "more than %d handshakes at a time, and this one was the oldest",
                           HANDSHAKES_MAX);
        return;
    }
}

static int add_client(struct nbd_server *server, int fd, const char *peer)
{
    struct stream *stream = stream_socket_new(fd);
    struct nbd_connection *c;
    char name[NBD_PEER_MAX];

    if (!stream) {
        sys->close(fd);
        return -ENOMEM;
    }
    if (!peer || !peer[0]) {
        snprintf(name, sizeof(name), "local#%" PRIu64, ++server->serial);
        peer = name;
    }
    c = nbd_connection_new(&server->owner, stream, peer);
    if (!c) {
        stream->ops->close(stream);
        return -ENOMEM;
    }
    if (list_linked(&c->link)) /* oldstyle: it has entered already */
        return 0;
    list_append(&server->handshakes, &c->link);
    server->handshake_count++;
    limit_handshakes(server);
    return 0;
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

static void on_rested(struct reactor_timer *timer)
{
    struct nbd_server *server = container_of(timer, struct nbd_server, rest);

    server->resting = false;
    update_listeners(server);
}

/* Accepting again at once would fail again at once: the clients wait in the backlog instead. */
static void rest(struct nbd_server *server, int err)
{
    log_warning("cannot accept clients: %s; trying again in a second", strerror(-err));
    server->resting = true;
    reactor_timer_start(&server->rest, ACCEPT_PAUSE_NS, on_rested);
    update_listeners(server);
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
        rest(server, r);
    return r == 0;
}

static void on_clients(void *arg, unsigned events)
{
    struct nbd_listener *listener = arg;
    struct nbd_server *server = listener->server;

    for (int i = 0; i < ACCEPT_BURST && may_enter(&server->owner); i++) {
        if (!accept_one(server, listener))
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

    reactor_timer_stop(&server->stop_limit);
    if (coroutine_start(flush_exports, server) == 0)
        return;
    log_error("out of memory for the last flush");
    if (server->events.stopped)
        server->events.stopped(server->events.arg);
}

static void cut_all(struct list *connections)
{
    list_for_each(it, connections)
        nbd_connection_cut(list_entry(it, struct nbd_connection, link),
                           "it did not finish in time when the server shut down");
}

static void on_stop_limit(struct reactor_timer *timer)
{
    struct nbd_server *server = container_of(timer, struct nbd_server, stop_limit);

    cut_all(&server->handshakes);
    cut_all(&server->clients);
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
    reactor_timer_start(&server->stop_limit, limit_ns, on_stop_limit);
    if (nbd_server_connections(server) == 0)
        reactor_defer(&server->drained);
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
    server->owner.handshake_limit_ns = config->handshake_limit_ns;
    server->owner.may_enter = may_enter;
    server->owner.entered = entered;
    server->owner.closed = closed;
    server->config = *config;
    server->exports = exports;
    if (events)
        server->events = *events;
    server->drained.run = on_drained;
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
    reactor_timer_stop(&server->stop_limit);
    reactor_defer_cancel(&server->drained);
    nbd_connection_owner_fini(&server->owner);
    free(server);
}

unsigned nbd_server_connections(const struct nbd_server *server)
{
    return server->handshake_count + server->client_count;
}
