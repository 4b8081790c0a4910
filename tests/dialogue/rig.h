/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server with one export on a disk in memory, and clients on socket pairs, in one thread: what a
 * client sends is handled when the test pumps the loop.
 */
#ifndef EVNBD_TESTS_RIG_H
#define EVNBD_TESTS_RIG_H

#include "nbd/server.h"
#include "tests/dialogue/exchange.h"
#include "tests/dialogue/message.h"
#include "tests/dialogue/ram_driver.h"

struct layer;

#define RIG_LIMIT_NS INT64_C(10000000000)

struct rig {
    struct ram_disk disk;
    struct node *node;
    struct nbd_exports exports;
    struct nbd_export *nbd_export; /* of the name "disk" */
    struct nbd_server *server;
    unsigned left;      /* clients that have left transmission */
    unsigned remaining; /* as last told */
    bool stopped;
    unsigned node_flags;
    bool read_only;
    const struct rig_options *options; /* while it starts */
};

struct rig_options {
    uint64_t size;
    bool read_only;
    unsigned connections_max;
    bool oldstyle;
    unsigned node_flags; /* besides NODE_WRITABLE */
    unsigned connections_of_one;
    int64_t idle_limit_ns;
    const char *layout; /* of the disk, in units of `unit` bytes, see ram_driver.h */
    uint64_t unit;
    bool pattern;          /* a disk without data, of any size */
    bool allocation_depth; /* is offered */
    struct layer *layer;   /* what is served instead of the disk; read-only */
    const char *bitmap;    /* of the layer, is offered */
    const struct nbd_tls *tls;
};

/* Starts the loop and the server. `options` NULL: a writable disk of 1 MiB. */
void rig_init(struct rig *rig, const struct rig_options *options);
/* Stops the server, which must come to its end, and the loop. */
void rig_fini(struct rig *rig);
/* Lets the loop do all that can be done without time passing. */
void rig_pump(void);
/* Pumps until the server has no connection; fails when it does not come to that. */
void rig_await_no_clients(struct rig *rig);

struct client {
    int fd;
    struct message in; /* received and not taken */
    bool closed;       /* the server has closed its side */
    uint16_t flags;    /* of transmission, as told in client_enter_mode() */
};

void client_connect(struct client *c, struct rig *rig);
/* Connects and brings the handshake behind it. */
void client_enter(struct client *c, struct rig *rig);
/*
 * The same in another mode; `contexts` (NULL: none) are selected, names with spaces between.  What
 * the export's flags are in this session is in c->flags.
 */
void client_enter_mode(struct client *c, struct rig *rig, enum nbd_reply_mode mode,
                       const char *contexts);
void client_disconnect(struct client *c);
/* Resets: with unread data in the socket the server sees ECONNRESET. */
void client_free(struct client *c);

/* Sends all of it, pumping while the socket is full. */
void client_send(struct client *c, const void *data, size_t length);
/* Sends and empties the message. */
void client_send_message(struct client *c, struct message *m);
/* Sends what goes without the server doing anything; returns the bytes. */
size_t client_send_some(struct client *c, const void *data, size_t length);
void client_send_script(struct client *c, const char *script);
void client_request(struct client *c, uint16_t command, uint16_t flags, uint64_t cookie,
                    uint64_t offset, uint32_t length);
/* A WRITE of `length` times `byte`. */
void client_write(struct client *c, uint16_t flags, uint64_t cookie, uint64_t offset, uint8_t byte,
                  uint32_t length);

/* Pumps and receives until `length` bytes are there, or nothing more comes. Returns whether. */
bool client_receive(struct client *c, size_t length);
/* Receives what is there already. */
void client_take(struct client *c);
/* Receives what comes until the server closes; fails when it does not. */
void client_expect_close(struct client *c);
/* Pumps; then nothing may have come and the connection is open. */
void client_expect_silence(struct client *c);
/* Takes a simple reply off, and `length` bytes of data if it succeeded. Returns the error. */
uint32_t client_reply(struct client *c, uint64_t *ret_cookie, void *data, size_t length);
/* Takes a reply off that must be this one. */
void client_expect(struct client *c, uint64_t cookie, uint32_t error);
/* Sends a request of the exchange, `payload` bytes of `data` behind it, and expects its answer. */
void client_ask(struct client *c, struct exchange *x, const struct nbd_request *request,
                const void *data, size_t payload);
/* Receives until all that was asked is answered, by the rules. */
void client_await(struct client *c, struct exchange *x);
/* Asks this alone, with a payload of as many zeroes as the request says, and compares the log. */
void client_expect_log(struct client *c, enum nbd_reply_mode mode,
                       const struct nbd_request *request, const char *log);
void client_expect_data(struct client *c, uint64_t cookie, const void *data, size_t length);

#endif
