/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS as a stream over a stream.
 *
 * GnuTLS sees no descriptor.  What it wants to send is collected in `out`, which goes to the inner
 * stream when there is a batch of it.  What it wants to receive comes from `in`, filled with large
 * receives; of a record it is given the header as soon as that is there and the rest when it is
 * complete, so that GnuTLS never holds a part of a record of which nobody could tell whether it can
 * be read on.
 *
 * Both buffers are borrowed from the pool while something is in them: an idle session has neither.
 *
 * `owed` counts bytes that were encrypted into `out` but not reported as taken, because `out` could
 * not be sent as a whole.  The caller offers them again, and they are skipped.
 */
#include "tls/tls_stream.h"

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/reactor.h"
#include "tls/identity.h"
#include "tls/material.h"
#include "tls/verification.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <gnutls/x509.h>

/* RFC 8446 section 5: a record's header, and what may follow it (in TLS 1.2, RFC 5246 6.2.3). */
#define RECORD_HEADER 5
#define RECORD_DATA_MAX 16384
#define RECORD_MAX (RECORD_HEADER + RECORD_DATA_MAX + 2048)

#define IN_BYTES (128 * 1024)
#define OUT_BYTES (512 * 1024)
/* Encrypted before it is sent: a reply of 256 KiB with its header, and a little more. */
#define BATCH_BYTES (320 * 1024)
/* One call takes or gives at most so much, so that a peer does not keep the loop for long. */
#define CALL_BYTES (1 << 20)
/* ... and begins at most so many records: one of a byte, or of none, costs nearly what a full one
 * does. */
#define CALL_RECORDS 256
/*
 * The longest message of a handshake.  Reading a certificate takes longer than in proportion to its
 * names, and a server reads those of clients whom it does not know yet while others wait.
 */
#define HANDSHAKE_BYTES_MAX (32 * 1024)
#define CLIENT_HANDSHAKE_BYTES_MAX (8 * 1024)
/* Warnings of the peer that are passed over in one call. */
#define WARNINGS_MAX 4
/* Records with parts of a message of the handshake that are read in one call. */
#define CALL_PARTS 64

struct tls_buffer {
    uint8_t *data; /* NULL: empty */
    size_t start, length;
};

struct tls_stream {
    struct stream stream;
    struct stream *inner;
    struct tls_credentials *credentials;
    struct tls_material *material;
    gnutls_session_t session;
    struct tls_buffer in, out;
    size_t header_left; /* of the record that GnuTLS reads: what it has not taken of the header, */
    size_t body_left;   /* ... and of the rest */
    size_t records_left, wire_left; /* what this call may still take: records, encrypted bytes */
    size_t owed;
    bool ended;        /* the inner stream has come to its end */
    bool established;  /* GnuTLS has finished the handshake */
    bool known;        /* `peer` is filled */
    int recv_error;    /* what ended the receiving side; 0: nothing has */
    int inner_error;   /* what the inner stream failed with */
    char *hostname;    /* or NULL */
    const char *alert; /* by which the peer has ended the session; NULL: none has */
    struct tls_verification verification;
    struct tls_peer peer;
};

static struct tls_stream *tls_of(struct stream *stream)
{
    return container_of(stream, struct tls_stream, stream);
}

/* ---- Buffers ---- */

static void buffer_empty(struct tls_buffer *b, size_t room)
{
    buffer_put(b->data, room);
    *b = (struct tls_buffer){0};
}

static void buffer_consume(struct tls_buffer *b, size_t n, size_t room)
{
    b->start += n;
    b->length -= n;
    if (b->length == 0)
        buffer_empty(b, room);
}

/* ---- Sending ---- */

static ssize_t push(gnutls_transport_ptr_t ptr, const void *data, size_t length)
{
    struct tls_stream *ts = ptr;

    if (!ts->out.data)
        ts->out.data = buffer_get(OUT_BYTES);
    if (!ts->out.data || length > OUT_BYTES - ts->out.start - ts->out.length) {
        gnutls_transport_set_errno(ts->session, ENOMEM);
        return -1;
    }
    memcpy(ts->out.data + ts->out.start + ts->out.length, data, length);
    ts->out.length += length;
    return (ssize_t)length;
}

/* Sends what is encrypted. 0: all of it, -EAGAIN: not all, or what the inner stream fails with. */
static int flush(struct tls_stream *ts, bool more)
{
    while (ts->out.length > 0) {
        const struct iovec iov = {ts->out.data + ts->out.start, ts->out.length};
        ssize_t n = ts->inner->ops->send(ts->inner, &iov, 1, more);

        if (n < 0)
            return (int)n;
        if (n == 0)
            return -EAGAIN;
        buffer_consume(&ts->out, (size_t)n, OUT_BYTES);
    }
    return 0;
}

/* Where the next byte to be encrypted is. */
struct source {
    const struct iovec *iov;
    int iovcnt;
    size_t offset; /* in iov[0] */
    size_t left;   /* in all, of what this call takes */
};

static void source_advance(struct source *s, size_t n)
{
    s->left -= n;
    s->offset += n;
    while (s->iovcnt > 0 && s->offset >= s->iov->iov_len) {
        s->offset -= s->iov->iov_len;
        s->iov++;
        s->iovcnt--;
    }
}

static struct source source_of(const struct iovec *iov, int iovcnt)
{
    struct source s = {.iov = iov, .iovcnt = iovcnt};

    for (int i = 0; i < iovcnt; i++)
        s.left += iov[i].iov_len;
    return s;
}

/* The bytes of one record: where they lie if they lie together, else gathered in `room`. */
static const uint8_t *source_peek(const struct source *s, size_t length, uint8_t *room)
{
    const struct iovec *iov = s->iov;
    size_t offset = s->offset, done = 0;

    if (iov->iov_len - offset >= length)
        return (const uint8_t *)iov->iov_base + offset;
    for (; done < length; iov++, offset = 0) {
        size_t n = iov->iov_len - offset;

        if (n > length - done)
            n = length - done;
        if (n > 0)
            memcpy(room + done, (const uint8_t *)iov->iov_base + offset, n);
        done += n;
    }
    return room;
}

/* An errno for what GnuTLS has failed with in an established session. */
static int errno_of(const struct tls_stream *ts, ssize_t r)
{
    switch (r) {
    case GNUTLS_E_AGAIN:
    case GNUTLS_E_INTERRUPTED:
        return -EAGAIN;
    case GNUTLS_E_PUSH_ERROR:
    case GNUTLS_E_PULL_ERROR:
        return ts->inner_error ? ts->inner_error : -ENOMEM;
    case GNUTLS_E_MEMORY_ERROR:
        return -ENOMEM;
    case GNUTLS_E_PREMATURE_TERMINATION:
        return -ECONNABORTED;
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        return -ECONNRESET;
    case GNUTLS_E_DECRYPTION_FAILED:
        return -EBADMSG;
    default:
        return -EPROTO;
    }
}

/* Encrypts a batch. Returns the bytes of `s` that went into it, or negative errno. */
static ssize_t encrypt_batch(struct tls_stream *ts, struct source *s)
{
    uint8_t gathered[RECORD_DATA_MAX];
    size_t done = 0;

    while (s->left > 0 && ts->out.start + ts->out.length < BATCH_BYTES) {
        size_t n = s->left < RECORD_DATA_MAX ? s->left : RECORD_DATA_MAX;
        ssize_t r = gnutls_record_send(ts->session, source_peek(s, n, gathered), n);

        if (r < 0)
            return errno_of(ts, r);
        source_advance(s, (size_t)r);
        done += (size_t)r;
    }
    return (ssize_t)done;
}

static ssize_t tls_send(struct stream *stream, const struct iovec *iov, int iovcnt, bool more)
{
    struct tls_stream *ts = tls_of(stream);
    struct source s = source_of(iov, iovcnt);
    size_t sent = 0, batch = ts->owed;
    bool cut = s.left > CALL_BYTES && ts->owed <= CALL_BYTES;
    int r;

    if (s.left < ts->owed)
        return -EINVAL;
    if (cut)
        s.left = CALL_BYTES;
    source_advance(&s, ts->owed);
    for (;;) {
        ssize_t n = encrypt_batch(ts, &s);

        if (n < 0)
            return n;
        batch += (size_t)n;
        r = flush(ts, more || cut || s.left > 0);
        if (r < 0)
            break;
        sent += batch;
        batch = 0;
        if (s.left == 0)
            break;
    }
    ts->owed = batch;
    if (r < 0 && (r != -EAGAIN || sent == 0))
        return r;
    return (ssize_t)sent;
}

/* ---- Receiving ---- */

/* Receives once into `in`. Returns the bytes, 0 at the end, or negative errno. */
static ssize_t fill(struct tls_stream *ts)
{
    struct tls_buffer *in = &ts->in;
    struct iovec iov;
    ssize_t n;

    if (!in->data)
        in->data = buffer_get(IN_BYTES);
    if (!in->data)
        return -ENOMEM;
    if (in->start > 0 && IN_BYTES - in->start - in->length < RECORD_MAX) {
        memmove(in->data, in->data + in->start, in->length);
        in->start = 0;
    }
    iov.iov_base = in->data + in->start + in->length;
    iov.iov_len = IN_BYTES - in->start - in->length;
    n = ts->inner->ops->recv(ts->inner, &iov, 1);
    if (n > 0)
        in->length += (size_t)n;
    if (in->length == 0)
        buffer_empty(in, IN_BYTES);
    return n;
}

/* How many bytes GnuTLS may have now. */
static size_t available(const struct tls_stream *ts)
{
    if (ts->header_left > 0)
        return ts->header_left;
    return ts->in.length >= ts->body_left ? ts->body_left : 0;
}

/* Looks at the next record, if there is none that GnuTLS has begun and its header is there. */
static void begin_record(struct tls_stream *ts)
{
    if (ts->header_left > 0 || ts->body_left > 0 || ts->in.length < RECORD_HEADER)
        return;
    ts->header_left = RECORD_HEADER;
    ts->body_left = get_be16(ts->in.data + ts->in.start + 3);
}

static ssize_t take_record_bytes(struct tls_stream *ts, void *data, size_t length)
{
    size_t n = available(ts);

    if (n > length)
        n = length;
    memcpy(data, ts->in.data + ts->in.start, n);
    if (ts->header_left > 0) {
        ts->header_left -= n;
        ts->records_left -= ts->header_left == 0;
    } else {
        ts->body_left -= n;
    }
    ts->wire_left -= n < ts->wire_left ? n : ts->wire_left;
    buffer_consume(&ts->in, n, IN_BYTES);
    return (ssize_t)n;
}

/* Whether this call may begin no other record. */
static bool call_is_spent(const struct tls_stream *ts)
{
    bool between = ts->header_left == RECORD_HEADER || (ts->header_left == 0 && ts->body_left == 0);

    return between && (ts->records_left == 0 || ts->wire_left == 0);
}

static ssize_t pull(gnutls_transport_ptr_t ptr, void *data, size_t length)
{
    struct tls_stream *ts = ptr;

    if (call_is_spent(ts)) {
        gnutls_transport_set_errno(ts->session, EAGAIN);
        return -1;
    }
    begin_record(ts);
    while (available(ts) == 0) {
        ssize_t n = ts->ended ? 0 : fill(ts);

        if (n == 0)
            ts->ended = true;
        if (n < 0 && n != -EAGAIN)
            ts->inner_error = (int)n;
        if (n < 0)
            gnutls_transport_set_errno(ts->session, n == -EAGAIN ? EAGAIN : EIO);
        if (n <= 0)
            return n < 0 ? -1 : 0;
        begin_record(ts);
    }
    return take_record_bytes(ts, data, length);
}

/* GnuTLS asks this where it would wait; here nothing waits. */
static int pull_timeout(gnutls_transport_ptr_t ptr, unsigned milliseconds)
{
    (void)ptr;
    (void)milliseconds;
    return 1;
}

/* What GnuTLS is given until the next call; tls_pending() brings the caller back for the rest. */
static void begin_call(struct tls_stream *ts)
{
    ts->records_left = CALL_RECORDS;
    ts->wire_left = 2 * CALL_BYTES;
}

/* Into one vector. Bytes, 0 at the end of the session, or negative errno. */
static ssize_t receive(struct tls_stream *ts, void *data, size_t length)
{
    ssize_t r = ts->recv_error;

    if (r < 0)
        return r;
    for (int i = 0; i < WARNINGS_MAX; i++) {
        r = gnutls_record_recv(ts->session, data, length);
        if (r != GNUTLS_E_WARNING_ALERT_RECEIVED)
            break;
    }
    if (r >= 0 || r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED)
        return r >= 0 ? r : -EAGAIN;
    if (r == GNUTLS_E_FATAL_ALERT_RECEIVED)
        ts->alert = gnutls_alert_get_name(gnutls_alert_get(ts->session));
    /* Also what is not fatal to GnuTLS, as a new handshake, which nobody needs here. */
    gnutls_alert_send_appropriate(ts->session, (int)r);
    flush(ts, false);
    ts->recv_error = errno_of(ts, r);
    return ts->recv_error;
}

static ssize_t tls_recv(struct stream *stream, const struct iovec *iov, int iovcnt)
{
    struct tls_stream *ts = tls_of(stream);
    size_t done = 0;

    begin_call(ts);
    for (int i = 0; i < iovcnt; i++) {
        size_t filled = 0;

        while (filled < iov[i].iov_len && done < CALL_BYTES) {
            ssize_t n = receive(ts, (uint8_t *)iov[i].iov_base + filled, iov[i].iov_len - filled);

            if (n <= 0)
                return done > 0 ? (ssize_t)done : n;
            filled += (size_t)n;
            done += (size_t)n;
        }
    }
    return (ssize_t)done;
}

static bool tls_pending(struct stream *stream)
{
    struct tls_stream *ts = tls_of(stream);

    if (gnutls_record_check_pending(ts->session) > 0)
        return true;
    begin_record(ts);
    return ts->header_left + ts->body_left > 0 && ts->in.length >= ts->header_left + ts->body_left;
}

/* ---- Handshake ---- */

static int handshake_failed(struct tls_stream *ts, int r, struct error *error)
{
    gnutls_alert_send_appropriate(ts->session, r);
    flush(ts, false);
    switch (r) {
    case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
        return tls_verification_failed(&ts->verification, ts->session, error);
    case GNUTLS_E_NO_CERTIFICATE_FOUND:
    case GNUTLS_E_CERTIFICATE_REQUIRED:
        return error_set(error, EACCES, "the peer has shown no certificate, and one is needed");
    case GNUTLS_E_HANDSHAKE_TOO_LARGE:
        return error_set(error, EMSGSIZE,
                         "a message of the peer's handshake is longer than %d bytes; perhaps its "
                         "certificates are too large",
                         ts->material->endpoint == TLS_SERVER ? CLIENT_HANDSHAKE_BYTES_MAX
                                                              : HANDSHAKE_BYTES_MAX);
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
        return error_set(error, ECONNABORTED, "the peer gave up with the alert '%s'",
                         gnutls_alert_get_name(gnutls_alert_get(ts->session)));
    case GNUTLS_E_PREMATURE_TERMINATION:
        return error_set(error, ECONNABORTED, "the peer closed the connection");
    default:
        return error_set(error, -errno_of(ts, r), "%s", gnutls_strerror(r));
    }
}

static bool is_again(int r)
{
    return r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED;
}

/*
 * Goes on as far as what has come goes.  GnuTLS wants to be called again after each record that
 * does not end a message, also when the next one is in `in` already, where no descriptor tells of
 * it.
 */
static int shake(struct tls_stream *ts)
{
    int r = GNUTLS_E_AGAIN, warnings = 0;

    for (int i = 0; i < CALL_PARTS && !ts->established; i++) {
        r = gnutls_handshake(ts->session);
        ts->established = r == 0;
        if (gnutls_error_is_fatal(r) || (is_again(r) && !tls_pending(&ts->stream)))
            return r;
        if (r != 0 && !is_again(r) && ++warnings == WARNINGS_MAX)
            return r;
    }
    return ts->established ? 0 : GNUTLS_E_AGAIN;
}

/* 0: done. -EAGAIN: in *ret_wait what for; 0: for another turn. */
static int advance_handshake(struct tls_stream *ts, unsigned *ret_wait, struct error *error)
{
    int r = 0, err;

    ts->records_left = ts->wire_left = SIZE_MAX;
    if (!ts->established)
        r = shake(ts);
    if (r != 0 && !is_again(r))
        return handshake_failed(ts, r, error);
    err = flush(ts, false);
    if (err < 0 && err != -EAGAIN)
        return error_set_errno(error, -err, "cannot send");
    if (err == 0 && ts->established)
        return 0;
    *ret_wait = err < 0 ? REACTOR_WRITE : tls_pending(&ts->stream) ? 0 : REACTOR_READ;
    return -EAGAIN;
}

static bool begin_session(struct tls_stream *ts)
{
    const struct tls_credentials_config *config = tls_credentials_config(ts->credentials);
    unsigned side = config->endpoint == TLS_SERVER ? GNUTLS_SERVER : GNUTLS_CLIENT;

    /* Sessions last long and are not resumed: no tickets, which would be keys to be kept. */
    if (gnutls_init(&ts->session, side | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS | GNUTLS_NO_SIGNAL) <
        0) {
        ts->session = NULL;
        return false;
    }
    gnutls_session_set_ptr(ts->session, ts->material);
    if (gnutls_priority_set(ts->session, tls_credentials_priority(ts->credentials)) < 0 ||
        gnutls_credentials_set(ts->session, ts->material->type, ts->material->gnutls) < 0)
        return false;
    gnutls_handshake_set_max_packet_length(
        ts->session, side == GNUTLS_SERVER ? CLIENT_HANDSHAKE_BYTES_MAX : HANDSHAKE_BYTES_MAX);
    gnutls_transport_set_ptr(ts->session, ts);
    gnutls_transport_set_push_function(ts->session, push);
    gnutls_transport_set_pull_function(ts->session, pull);
    gnutls_transport_set_pull_timeout_function(ts->session, pull_timeout);
    return config->kind != TLS_X509 ||
           tls_verification_init(&ts->verification, ts->session, config, ts->hostname);
}

/* False: out of memory. While the credentials are being read there is no session yet. */
static bool try_to_begin(struct tls_stream *ts)
{
    if (ts->session)
        return true;
    ts->material = tls_credentials_material(ts->credentials);
    return !ts->material || begin_session(ts);
}

int tls_stream_handshake(struct stream *stream, unsigned *ret_wait, struct error *error)
{
    struct tls_stream *ts = tls_of(stream);
    int err;

    if (ts->known)
        return 0;
    if (!try_to_begin(ts))
        return error_set(error, ENOMEM, "out of memory");
    *ret_wait = 0;
    err = ts->session ? advance_handshake(ts, ret_wait, error) : -EAGAIN;
    if (err < 0)
        return err;
    err = tls_peer_init(&ts->peer, ts->session, tls_credentials_kind(ts->credentials),
                        ts->material->endpoint, error);
    ts->known = err == 0;
    return err;
}

const struct tls_identity *tls_stream_identity(const struct stream *stream)
{
    return &container_of(stream, struct tls_stream, stream)->peer.identity;
}

const char *tls_stream_alert(const struct stream *stream)
{
    return container_of(stream, struct tls_stream, stream)->alert;
}

/* ---- Life ---- */

static int tls_shutdown(struct stream *stream)
{
    struct tls_stream *ts = tls_of(stream);

    if (ts->established)
        gnutls_bye(ts->session, GNUTLS_SHUT_WR);
    flush(ts, false);
    return ts->inner->ops->shutdown(ts->inner);
}

static void tls_free(struct tls_stream *ts)
{
    if (ts->session)
        gnutls_deinit(ts->session);
    buffer_put(ts->in.data, IN_BYTES);
    buffer_put(ts->out.data, OUT_BYTES);
    tls_peer_fini(&ts->peer);
    tls_material_unref(ts->material);
    tls_credentials_unref(ts->credentials);
    free(ts->hostname);
    free(ts);
}

static void tls_close(struct stream *stream)
{
    struct tls_stream *ts = tls_of(stream);
    struct stream *inner = ts->inner;

    tls_free(ts);
    inner->ops->close(inner);
}

static const struct stream_ops tls_ops = {
    .recv = tls_recv,
    .send = tls_send,
    .pending = tls_pending,
    .shutdown = tls_shutdown,
    .close = tls_close,
};

struct stream *tls_stream_new(struct tls_credentials *credentials, const char *hostname,
                              struct stream *inner)
{
    struct tls_stream *ts = calloc(1, sizeof(*ts));

    if (!ts)
        return NULL;
    ts->stream = (struct stream){.ops = &tls_ops, .fd = inner->fd};
    ts->inner = inner;
    ts->credentials = tls_credentials_ref(credentials);
    ts->hostname = hostname ? strdup(hostname) : NULL;
    if ((!hostname || ts->hostname) && try_to_begin(ts))
        return &ts->stream;
    tls_free(ts);
    return NULL;
}
