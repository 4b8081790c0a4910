/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The client's side of a session that asks a server what it offers: bytes in, bytes out, no
 * descriptor and no loop.  Servers of every age are understood: oldstyle and newstyle ones tell of
 * their default export, fixed newstyle ones list all.
 *
 * With TLS wanted, nothing is asked before the server has agreed to it, and one that does not agree
 * is left: nobody on the way can talk the client out of it.
 *
 * The server is not trusted: every length and number is checked, what is kept is bounded, and
 * whatever comes, the session ends in DONE or FAILED or waits for more.  How long it waits is up to
 * the caller.
 */
#ifndef EVNBD_NBD_CLIENT_H
#define EVNBD_NBD_CLIENT_H

#include "base/error.h"
#include "nbd/remote.h"
#include "nbd/wire.h"

/* More data in one reply ends the session. */
#define NBD_CLIENT_REPLY_MAX (16 * 1024)
/* An incomplete message is shorter than this. */
#define NBD_CLIENT_INPUT_MAX (NBD_OPTION_REPLY_HEADER_BYTES + NBD_CLIENT_REPLY_MAX)
/* Client flags, one option with the longest name, and ABORT fit. */
#define NBD_CLIENT_OUTPUT_MAX (NBD_STRING_MAX + 64)

enum nbd_client_state {
    NBD_CLIENT_GREETING,
    NBD_CLIENT_EXPORT_NAME, /* a newstyle server that is not fixed was asked for its export */
    NBD_CLIENT_OPTIONS,     /* an option was sent */
    NBD_CLIENT_STARTTLS, /* the server's next byte belongs to TLS; nbd_client_secured() goes on */
    NBD_CLIENT_DONE,     /* send what is in the output, then close */
    NBD_CLIENT_FAILED,   /* the same; `reason` says why */
};

struct nbd_client_step;

struct nbd_client {
    struct nbd_remote *remote; /* filled; the caller's */
    enum nbd_client_state state;
    bool tls;                           /* set by the caller after nbd_client_init(): ask in TLS */
    bool no_zeroes;                     /* negotiated */
    const struct nbd_client_step *step; /* the option that is being answered */
    unsigned replies;                   /* to it, so far */
    bool told_size;                     /* INFO: the one item that must be there was */
    bool asked_info, asked_contexts;    /* of the export remote->next */
    bool no_info, no_contexts;          /* the server does not know these options */
    size_t examined;                    /* exports that this session has brought behind it */
    uint8_t output[NBD_CLIENT_OUTPUT_MAX];
    size_t output_length;
    struct error reason;
};

/*
 * Starts.  When `remote` holds the list of an earlier session already, this one goes on with the
 * exports that were not asked about yet: servers limit the options of a session.
 */
void nbd_client_init(struct nbd_client *client, struct nbd_remote *remote);

/*
 * Takes one whole message from the `length` bytes at `data` and returns how many bytes were used, 0
 * when more are needed.  Nothing is taken while there is output: the caller sends it, sets
 * output_length to 0, and offers the rest again.
 */
size_t nbd_client_input(struct nbd_client *client, const void *data, size_t length);

/*
 * In STARTTLS, after the TLS handshake: what is sent and received from here on is inside of TLS.
 * All that was told before is the greeting.
 */
void nbd_client_secured(struct nbd_client *client);

/* The server has closed the connection. Does nothing when the session has ended. */
void nbd_client_hang_up(struct nbd_client *client);

#endif
