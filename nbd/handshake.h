/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The handshake as whole messages: bytes in, bytes out, no descriptor and no loop.
 * NBD protocol, "Newstyle negotiation", "Fixed newstyle negotiation", "Oldstyle negotiation".
 */
#ifndef EVNBD_NBD_HANDSHAKE_H
#define EVNBD_NBD_HANDSHAKE_H

#include "base/error.h"
#include "nbd/export.h"
#include "nbd/identity.h"
#include "nbd/session.h"
#include "nbd/wire.h"

/* Limits: reference values that keep one client from taking more than its share. */
#define NBD_OPTIONS_MAX 1000             /* options of one session */
#define NBD_OPTION_BYTES_MAX (64 * 1024) /* data of one option; more closes the connection */

/* Growing output of a handshake, sent and emptied by the connection. */
struct nbd_output {
    uint8_t *data;
    size_t length, room;
    bool failed; /* out of memory: close */
};

void nbd_output_free(struct nbd_output *output);

enum nbd_handshake_state {
    NBD_HANDSHAKE_CLIENT_FLAGS, /* the greeting was sent */
    NBD_HANDSHAKE_OPTIONS,
    NBD_HANDSHAKE_STARTTLS, /* the next byte belongs to TLS; nbd_handshake_secured() goes on */
    NBD_HANDSHAKE_DONE,     /* transmission begins with the next byte */
    NBD_HANDSHAKE_CLOSED,   /* send what is in the output, then close; `reason` says why */
};

/* What the server does about TLS. */
enum nbd_tls_mode {
    NBD_TLS_OFF,
    NBD_TLS_ALLOWED,  /* offered; an export may need it (struct nbd_export, needs_tls) */
    NBD_TLS_REQUIRED, /* before TLS nothing is answered but STARTTLS and ABORT */
};

struct nbd_handshake {
    const struct nbd_exports *exports;
    const struct nbd_identity *identity; /* of the client, the caller's; NULL: nothing is known */
    enum nbd_handshake_state state;
    bool oldstyle;  /* serve the default export without options */
    bool no_zeroes; /* negotiated */
    bool fixed;     /* the client set NBD_FLAG_C_FIXED_NEWSTYLE */
    enum nbd_tls_mode tls;
    bool secure;                /* this is inside of TLS */
    bool shutting_down;         /* answer options with ERR_SHUTDOWN */
    const char *refusal;        /* why this client may enter no export now, NULL: it may */
    unsigned options;           /* handled so far */
    bool listing;               /* a LIST is not answered to its end: call again */
    unsigned listed;            /* ... exports that it has got so far */
    bool asked_list;            /* LIST was answered, for the log */
    bool asked_info;            /* ... or INFO */
    struct nbd_session session; /* negotiated so far; DONE: copied by who transmits */
    struct nbd_export *chosen;  /* DONE: what the client asked for */
    struct nbd_output output;
    struct error refused; /* what the last GO was refused with, until the caller takes it away */
    struct error
        reason; /* CLOSED: a sentence for the log; "" for a client that just left (ABORT) */
    const struct nbd_export *denied; /* what its access rules kept the client from, last */
};

/* Before nbd_handshake_start() the caller may set `tls`, `refusal` and `shutting_down`. */
void nbd_handshake_init(struct nbd_handshake *hs, const struct nbd_exports *exports,
                        const struct nbd_identity *identity, bool oldstyle);
/* Puts the greeting into the output. Oldstyle goes to DONE (or CLOSED) at once. */
void nbd_handshake_start(struct nbd_handshake *hs);
void nbd_handshake_fini(struct nbd_handshake *hs);

/* The export is about to leave the list of exports, and to be freed some time. */
void nbd_handshake_forget_export(struct nbd_handshake *hs, const struct nbd_export *nbd_export);

/*
 * After STARTTLS, when TLS is established: goes on with options.  Nothing that was negotiated
 * before is known any more: somebody else than this client may have said it.
 */
void nbd_handshake_secured(struct nbd_handshake *hs);

/*
 * Takes whole messages from the `length` bytes at `data`, appends to hs->output, and returns how
 * many bytes were used; the caller offers the rest again when more has come.  Stops at DONE,
 * STARTTLS and CLOSED. An incomplete message is at most NBD_OPTION_HEADER_BYTES +
 * NBD_OPTION_BYTES_MAX bytes. When the output has got long it stops too; with `listing` set it
 * wants to go on even without more bytes, when the output has been taken away.
 */
size_t nbd_handshake_input(struct nbd_handshake *hs, const void *data, size_t length);

#endif
