/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS as a stream over a stream.
 *
 * What is sent is gathered into full records, and what one call takes goes to the inner stream in
 * one send.  What was encrypted and not sent yet is not counted as taken: so whoever waits until
 * its queue is empty waits until the peer has been sent everything.  After -EAGAIN or a partial
 * send the caller must offer the same bytes again; more may follow them.
 *
 * A peer that ends without close_notify is an error (-ECONNABORTED) of recv: somebody may have cut
 * the line.
 */
#ifndef EVNBD_TLS_TLS_STREAM_H
#define EVNBD_TLS_TLS_STREAM_H

#include "base/error.h"
#include "base/stream.h"
#include "tls/credentials.h"

/* Alternative names of a certificate that are kept; further ones are not. */
#define TLS_ALT_NAMES_MAX 16

/* Who is at the other end, as far as the handshake has proved it. */
struct tls_identity {
    enum tls_kind kind;
    /*
     * X509: the distinguished name of the peer's certificate (RFC 4514 text), "" if it was not
     * asked for one; PSK: the user name; ANON: "".
     */
    const char *name;
    /* X509: "DNS:...", "EMAIL:...", "URI:...", "IP:...". */
    const char *alt_names[TLS_ALT_NAMES_MAX];
    unsigned alt_name_count;
    const char *session; /* protocol, key exchange and cipher, for the log */
};

/*
 * Begins a session over `inner`, which the new stream owns (NULL: out of memory, inner is not
 * touched).  Holds a reference to the credentials, whose endpoint says which side this is.
 * `hostname`: a client checks that the server's certificate is for this name; else NULL.
 */
struct stream *tls_stream_new(struct tls_credentials *credentials, const char *hostname,
                              struct stream *inner);

/*
 * Goes on with the handshake, without waiting.  Returns 0 when it is done; only then the stream may
 * be used.  -EAGAIN: call again when the descriptor is ready for *ret_wait (REACTOR_READ or
 * REACTOR_WRITE; 0: in another turn, whether it is or not).  Else it has failed, with a sentence;
 * the peer was told by an alert; close.
 */
int tls_stream_handshake(struct stream *stream, unsigned *ret_wait, struct error *error);

/* After the handshake; valid while the stream lives. */
const struct tls_identity *tls_stream_identity(const struct stream *stream);

/* The fatal alert by which the peer has ended the session after the handshake; NULL: none has. */
const char *tls_stream_alert(const struct stream *stream);

#endif
