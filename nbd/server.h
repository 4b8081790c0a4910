/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server: listening sockets, connections, limits, orderly stop.
 */
#ifndef EVNBD_NBD_SERVER_H
#define EVNBD_NBD_SERVER_H

#include "base/error.h"
#include "base/reactor.h"
#include "nbd/export.h"

/* Caps of what requests in flight hold, see nbd/memory.h. */
#define NBD_CONNECTION_REQUESTS_MAX 128
#define NBD_CONNECTION_BYTES_MAX (UINT64_C(64) << 20)
#define NBD_SERVER_BYTES_MAX (UINT64_C(256) << 20)

struct nbd_tls;

struct nbd_server_config {
    bool oldstyle;
    const struct nbd_tls *tls;   /* NULL: off; not with oldstyle, which could not require it */
    unsigned connections_max;    /* clients served at a time; 0: no limit */
    unsigned connections_of_one; /* ... from one origin (nbd/origin.h), which may not enter beyond
                                    that; 0: no limit */
    int64_t handshake_limit_ns;  /* for the whole handshake; 0: none */
    int64_t idle_limit_ns;       /* clients that ask nothing for so long are disconnected; 0: never
                                  */
};

struct nbd_server;

/* What the owner of the server is told; any may be NULL. */
struct nbd_server_events {
    void *arg;
    /* A client finished its handshake, or such a one left; now there are so many. */
    void (*clients_changed)(void *arg, unsigned clients);
    /* A client that had finished its handshake left; `remaining` others are in transmission. */
    void (*client_left)(void *arg, unsigned remaining);
    /* After nbd_server_stop(): the last connection is gone. */
    void (*stopped)(void *arg);
};

/* `exports` stays the caller's and outlives the server. NULL: out of memory. */
struct nbd_server *nbd_server_new(const struct nbd_server_config *config,
                                  struct nbd_exports *exports,
                                  const struct nbd_server_events *events);

/*
 * Listeners.  A live Unix socket is never taken over (-EADDRINUSE); a stale one is replaced; what
 * is not a socket is left alone.  Stopping unlinks the socket only if it is still the one made
 * here.  `port` may be a service name; `host` NULL: the IPv4 wildcard 0.0.0.0; "": every address of
 * both families, as far as the machine has them.  The IPv6 wildcard :: takes clients of both
 * families too.
 */
int nbd_server_listen_tcp(struct nbd_server *server, const char *host, const char *port,
                          int backlog, struct error *error);
int nbd_server_listen_unix(struct nbd_server *server, const char *path, int backlog,
                           struct error *error);
/*
 * Serves the clients of a listening stream socket that somebody else has opened; its file, if it
 * has one, is left to them.  Owns fd on success.
 */
int nbd_server_listen_passed(struct nbd_server *server, int fd, struct error *error);
/* Starts to accept. Until then clients wait in the backlog. */
void nbd_server_start(struct nbd_server *server);
/* Serves one connected socket (tests; later socket activation and kernel attach). Owns fd. */
int nbd_server_add_client(struct nbd_server *server, int fd, const char *peer);

/*
 * Takes an export away: from now on it is neither listed nor found, and other clients cannot enter
 * it.  With `hard` its clients are cut, else it stays for those that it has until they leave; to
 * call it again with `hard` hurries a removal that waits.  Then what was written is made durable,
 * the export is freed, and done(arg) is called (`done` may be NULL; never before this returns; that
 * of the first call counts).  Returns 0 or -ENOMEM: nothing has changed.
 */
int nbd_server_remove_export(struct nbd_server *server, struct nbd_export *nbd_export, bool hard,
                             void (*done)(void *arg), void *arg);

/*
 * Orderly stop: listeners are closed, handshakes get ERR_SHUTDOWN, what is in flight is finished
 * and answered, further requests get ESHUTDOWN, exports are flushed; then events.stopped is called.
 * After a second TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS end where they are (ESHUTDOWN), and
 * clients that do not go on with a payload or take no replies are cut.  Connections that have not
 * drained after `limit_ns` (of nanoseconds) are cut; requests that still run are waited for, with a
 * line in the log after each `limit_ns`.
 */
void nbd_server_stop(struct nbd_server *server, int64_t limit_ns);
/* Only when stopped (or never started). NULL is fine. */
void nbd_server_free(struct nbd_server *server);

unsigned nbd_server_connections(const struct nbd_server *server);

#endif
