/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of the nbd driver share.
 *
 *     nbd.c           the driver: from reads and writes to commands
 *     nbd_remote.c    the connections together: which one, waiting, connecting again
 *     nbd_link.c      one connection, by libnbd
 *     nbd_options.c   names and options
 *     nbd_trust.c     whether a server can be verified
 */
#ifndef EVNBD_BLOCKCORE_PROTOCOL_NBD_H
#define EVNBD_BLOCKCORE_PROTOCOL_NBD_H

#include "base/colock.h"
#include "base/error.h"
#include "base/nbd_uri.h"
#include "base/reactor.h"
#include "blockcore/node.h"

#define NBD_CONNECTIONS_MAX 16
#define NBD_CONNECTIONS_DEFAULT 4

/* What the user has asked for; the strings are owned. */
struct nbd_options {
    char *filename;
    int type;
    char *host, *port, *path, *export_name;
    char *tls_creds, *tls_hostname;
    uint64_t reconnect_delay, open_timeout, request_timeout; /* seconds */
    uint64_t connections;

    /* Made of them. */
    bool tls;
    bool verify_peer;
    char *tls_certificates, *tls_psk_file, *tls_username; /* NULL: libnbd's default */
};

extern const struct option_row nbd_option_rows[];

/*
 * Takes the options of the node, and what a name in "filename" says, and checks them.  -EINVAL or
 * -ENOTSUP with a sentence.  Needs nbd_options_fini() in any case.
 */
int nbd_options_take(struct nbd_options *options, struct node_open *open, struct error *error);
void nbd_options_fini(struct nbd_options *options);

/* Puts what the name says into `options`: a URI, or an old form. Pure. */
int nbd_name_parse(struct nbd_options *options, const char *name, struct error *error);

/* The name of the remote disk as a URI, or as it was given. Freed by the caller; NULL: no memory.
 */
char *nbd_options_name(const struct nbd_options *options);

/* What the server has told of the export. Compared as memory: all bytes are set. */
struct nbd_export_info {
    uint64_t size;
    uint64_t min_block, max_payload; /* bytes; powers of two, or a multiple of min_block */
    uint32_t read_only, can_flush, can_trim, can_zero, can_fast_zero, can_cache, multi_conn,
        has_status;
};

enum nbd_operation {
    NBD_OP_READ,
    NBD_OP_WRITE,
    NBD_OP_FLUSH,
    NBD_OP_TRIM,
    NBD_OP_ZERO,
    NBD_OP_CACHE,
    NBD_OP_STATUS,
};

/* One request; on the stack of the coroutine that waits for it. */
struct nbd_command {
    enum nbd_operation operation;
    void *buffer;
    uint64_t offset, length;
    unsigned flags;    /* ZERO: ZERO_MAY_UNMAP, ZERO_FAST */
    uint64_t received; /* READ: bytes of data and holes */
    /* STATUS: the first part of the range, 0 bytes when the server told nothing of use. */
    uint64_t extent_length;
    bool extent_zero;

    /* nbd_link.c. */
    struct list list;
    struct nbd_link *link;
    struct coroutine *waiter;
    int64_t sent_ns;
    bool done;
    int result;
};

struct nbd_handle;

/* A connection, or the attempt to have one. */
struct nbd_link {
    const struct nbd_options *options;
    void (*lost)(struct nbd_link *link); /* it was ready, and is no more; on the loop's stack */
    struct nbd_handle *handle;           /* NULL: there is none */
    bool ready;
    bool cancelled;   /* it is not to be made any more */
    bool condemned;   /* to be closed as soon as libnbd is not on the stack */
    struct error why; /* what was wrong last */
    struct nbd_export_info info;
    int fd;
    struct reactor_fd *watch;
    struct list queued, sent; /* commands */
    unsigned load;            /* of both */
    uint64_t completed;       /* commands since it is ready */
    struct reactor_deferred issue;
    struct reactor_timer timeout; /* of the oldest command */
    /* The one coroutine that waits for the link itself. */
    struct coroutine *waiter;
    struct reactor_timer wait_timer;
    bool wait_ended;
};

void nbd_link_init(struct nbd_link *link, const struct nbd_options *options,
                   void (*lost)(struct nbd_link *link));
/*
 * Connects and negotiates until `deadline_ns`; then link->info is set.  -ECANCELED when it is not
 * to be made any more.  In a coroutine. The sentence does not name the server.
 */
int nbd_link_connect(struct nbd_link *link, int64_t deadline_ns, struct error *error);
/*
 * Has the server do the command: what it answers, or -ENOTCONN when the connection ended before it
 * answered.  The link must be ready. In a coroutine.
 */
int nbd_link_run(struct nbd_link *link, struct nbd_command *command);
/* Ends the connection at once, with a reason. Not from within a callback of libnbd. */
void nbd_link_drop(struct nbd_link *link, const char *why);
/* Tells the server that it is over, and closes. In a coroutine. */
void nbd_link_disconnect(struct nbd_link *link);
/* Waits for nbd_link_wake(), or so long (negative: for ever). False: the time has passed. */
bool nbd_link_wait(struct nbd_link *link, int64_t ns);
void nbd_link_wake(struct nbd_link *link);
/* Ends the attempt to connect, and each later one. */
void nbd_link_cancel(struct nbd_link *link);

/* All connections to one export. */
struct nbd_remote {
    struct nbd_options options;
    char *name; /* for messages, escaped */
    struct nbd_export_info info;
    struct nbd_link links[NBD_CONNECTIONS_MAX];
    unsigned count; /* of links in use */
    bool opened;
    bool closing;
    bool stopping;           /* the program ends: nothing waits for the server to come back */
    struct co_queue waiting; /* requests, for a connection */
    int64_t lost_ns;         /* when the last connection was lost */
    struct reactor_timer give_up, stop_limit;
    unsigned keepers;      /* coroutines that run */
    struct co_queue ended; /* waits until there are none */
};

/* Connects once, or for as long as the options say; options and name are set. In a coroutine. */
int nbd_remote_open(struct nbd_remote *remote, struct error *error);
/* Starts what keeps the connections up. */
void nbd_remote_start(struct nbd_remote *remote);
void nbd_remote_stop(struct nbd_remote *remote);
void nbd_remote_close(struct nbd_remote *remote);
/*
 * Has the server do the command, on whatever connection, and again on another one when the
 * connection ends before the answer and the options allow to wait.  -ENOTCONN: there is none.
 */
int nbd_remote_run(struct nbd_remote *remote, struct nbd_command *command);

#endif
