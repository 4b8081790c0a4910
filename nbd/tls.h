/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS as the server sees it, and the client that lists exports: a table of functions, filled by the
 * program, so that nbd/ knows no TLS library and tests can put something else there.
 */
#ifndef EVNBD_NBD_TLS_H
#define EVNBD_NBD_TLS_H

#include "base/error.h"
#include "base/stream.h"
#include "nbd/identity.h"

struct nbd_tls {
    bool required; /* nothing is told or given to a client before STARTTLS */
    void *arg;
    /* A stream over `inner`, which it owns then; NULL: out of memory, and inner is not touched. */
    struct stream *(*start)(void *arg, struct stream *inner);
    /*
     * Goes on with the handshake of such a stream.  0: done, and the peer may come in.  -EAGAIN:
     * call again when the descriptor is ready for *ret_wait (REACTOR_READ, REACTOR_WRITE), or (0)
     * a little later.  Else: failed, with a sentence.
     */
    int (*handshake)(void *arg, struct stream *stream, unsigned *ret_wait, struct error *error);
    /* After the handshake: who it is, and how the session is protected, for the log. */
    const char *(*describe)(void *arg, const struct stream *stream, char *out, size_t out_size);
    /* For a client, after the stream has failed: the alert by which the peer ended the session, or
     * NULL. */
    const char *(*alert)(void *arg, const struct stream *stream);
    /* For a server, after the handshake: sets what it has proved; the strings live as long as the
     * stream. */
    void (*identify)(void *arg, const struct stream *stream, struct nbd_identity *identity);
};

#endif
