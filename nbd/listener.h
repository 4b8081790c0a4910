/* SPDX-License-Identifier: BSD-3-Clause */
/* Listening sockets. Inside of nbd/. */
#ifndef EVNBD_NBD_LISTENER_H
#define EVNBD_NBD_LISTENER_H

#include "base/error.h"
#include "base/list.h"

#include <stdbool.h>
#include <sys/types.h>

struct nbd_server;
struct reactor_fd;

#define NBD_PEER_MAX 64
/* A socket's path, with every byte escaped. */
#define NBD_LISTENER_NAME_MAX 440

struct nbd_listener {
    struct list link;
    int fd;
    struct nbd_server *server; /* set, as the watch, by the server */
    struct reactor_fd *watch;
    char name[NBD_LISTENER_NAME_MAX]; /* for messages: the address and the real port, or the path */
    char *path;                       /* Unix: the socket's file, else NULL */
    dev_t device;                     /* Unix: what was made at `path` */
    ino_t inode;
};

/*
 * Append listeners to the list; on failure none is left.  See nbd_server_listen_*.  `host` NULL:
 * 0.0.0.0; "": every address of both families, as far as the machine has them.
 */
int nbd_listen_tcp(struct list *listeners, const char *host, const char *port, int backlog,
                   struct error *error);
int nbd_listen_unix(struct list *listeners, const char *path, int backlog, struct error *error);
int nbd_listen_passed(struct list *listeners, int fd, struct error *error);

/*
 * Accepts one client, sets the socket's options, and names the peer if it has an address (else peer
 * is ""; it has NBD_PEER_MAX bytes).  Returns the descriptor or negative errno.
 */
int nbd_listener_accept(struct nbd_listener *listener, char *peer);

/* Names the process at the other end of a Unix socket: "pid 7 uid 1000". False: it is unknown. */
bool nbd_socket_name_process(int fd, char *peer);

/* Options of a connected socket: keepalive for TCP, buffers for Unix. */
void nbd_socket_tune(int fd);

/* Closes, and removes the socket file if it is still the one that was made. */
void nbd_listener_free(struct nbd_listener *listener);

#endif
