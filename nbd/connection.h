/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One client, from accept to close.  Inside of nbd/; the owner is the server, or a test.
 *
 *   connection.c  life: handshake, sending, time limits, the end
 *   receive.c     bytes from the stream to whole messages
 *   starttls.c    the TLS handshake
 *   authorize.c   what authorizers say about the name that it has proved
 *   transfer.c    requests from the wire to their start
 *   payload.c     the payload of a WRITE on its way
 *   reply.c       replies, see reply.h
 *   job.c         requests that wait, each in a coroutine, see job.h
 */
#ifndef EVNBD_NBD_CONNECTION_H
#define EVNBD_NBD_CONNECTION_H

#include "base/log_limit.h"
#include "base/reactor.h"
#include "base/stream.h"
#include "nbd/handshake.h"
#include "nbd/memory.h"
#include "nbd/pace.h"
#include "nbd/sendq.h"
#include "nbd/server.h"
#include "nbd/tls.h"

/* One receive takes at most this much beyond a payload that is on its way. */
#define NBD_RECEIVE_BYTES (256 * 1024)
/* Replies are sent when this much has been collected, or when the turn ends. */
#define NBD_SEND_BATCH (256 * 1024)
/* While the peer takes no replies, requests are taken until this much is queued. */
#define NBD_OUTPUT_MAX (4 << 20)
#define NBD_OUTPUT_SEGMENTS_MAX 1024
/* A refused WRITE is skipped up to this length; a longer one ends the connection. */
#define NBD_DISCARD_MAX (64 << 20)
/* Requests and bytes that one connection handles before others have their turn. */
#define NBD_TURN_REQUESTS 256
#define NBD_TURN_BYTES (4 << 20)
/* A READ of what is in memory is copied at most so much at a time. */
#define NBD_READ_AT_ONCE (4 << 20)
/* A CACHE reads at most so much, from its start on. */
#define NBD_CACHE_AT_ONCE (UINT64_C(64) << 20)
/*
 * A connection is cut of whose replies less than NBD_STALL_BYTES are taken in so long, or of whose
 * payload on its way less than that come (looked at once in that time, so after up to twice of it).
 */
#define NBD_STALL_BYTES (64 * 1024)
#define NBD_STALL_NS INT64_C(60000000000)
/* The same while the server shuts down, if nothing at all moves. */
#define NBD_STOP_STALL_NS INT64_C(1000000000)

struct nbd_connection;
struct nbd_job;
struct nbd_origin;

/* What connections need of their server. */
struct nbd_connection_owner {
    const struct nbd_exports *exports;
    bool oldstyle;
    const struct nbd_tls *tls;   /* NULL: off */
    uint64_t tls_turn;           /* in which the last step of a TLS handshake was made */
    struct nbd_pace tls_pace;    /* of these steps */
    int64_t handshake_limit_ns;  /* 0: none */
    int64_t idle_limit_ns;       /* 0: none */
    unsigned connections_of_one; /* clients of one origin; 0: no limit */
    struct log_limit log_entered, log_left, log_refused, log_denied, log_unanswered;
    struct log_limit log_invalid;                    /* requests that must not be made */
    struct log_limit log_failed[NBD_CMD_RESIZE + 1]; /* ... that could not be done, by command */
    struct nbd_memory memory;
    struct list payloads; /* connections that may give memory of a payload on its way back */
    struct list free_jobs;
    unsigned free_job_count;
    /* Whether one more client may begin transmission now. When not, handshakes stand still. */
    bool (*may_enter)(struct nbd_connection_owner *owner);
    void (*entered)(struct nbd_connection_owner *owner, struct nbd_connection *connection);
    /* The connection has ended and frees itself. */
    void (*closed)(struct nbd_connection_owner *owner, struct nbd_connection *connection);
};

/* Bytes that came and could not be used yet: an incomplete message, or requests over a limit. */
struct nbd_kept {
    uint8_t *data; /* allocated, or the owner's `small` */
    size_t offset, length;
    uint8_t small[NBD_EXTENDED_REQUEST_BYTES];
};

struct nbd_connection {
    struct list link; /* the owner's, which puts it in and out */
    struct nbd_connection_owner *owner;
    struct stream *stream;
    struct reactor_fd *watch;
    unsigned watched;             /* events of `watch` */
    struct reactor_deferred turn; /* send what is queued; go on with what was paused */
    struct reactor_deferred destroy;
    struct reactor_timer deadline; /* of the handshake */
    struct reactor_timer stall;
    uint64_t stall_sent;                /* what had been sent when it was started */
    struct reactor_timer payload_due;   /* looks whether a payload on its way goes on */
    uint64_t payload_seen;              /* bytes of payloads since it last looked */
    struct reactor_timer tls_rest;      /* until a step of the TLS handshake may be made */
    struct reactor_timer patience;      /* with the answer to `question` */
    const struct nbd_authorizer *asked; /* not NULL: an answer is awaited */
    void *question;
    struct co_mutex status_mutex; /* one BLOCK_STATUS at a time */
    struct co_queue output_room;  /* who waits until the output is not full any more */
    struct reactor_timer idle;
    int64_t active_ns;         /* with an idle limit: when something was last received or sent */
    int64_t since_ns;          /* when it connected */
    struct nbd_origin *origin; /* the owner's, who counts there */
    struct nbd_identity identity;
    char *peer;                      /* for logs */
    struct nbd_handshake *handshake; /* NULL: in transmission */
    struct nbd_export *nbd_export;   /* in transmission */
    struct nbd_session session;      /* in transmission */
    struct nbd_share share;
    struct nbd_sendq out;

    struct nbd_kept kept;
    struct nbd_job *receiving; /* the WRITE whose payload is on its way; then nothing is kept */
    struct nbd_job *writing;   /* the same while a part is written; then nothing is received */
    struct list payload_link;  /* the owner's, while the payload holds more than its first step */
    unsigned tls_wait;         /* in a TLS handshake: the events that it waits for; else 0 */
    uint64_t discard;          /* bytes of a refused payload still to come */
    unsigned running;          /* jobs, the receiving one included */
    unsigned turn_requests;    /* left of this turn's shares */
    uint64_t turn_bytes;

    bool narrow;       /* a READ in small parts is all that runs, and nothing else begins */
    bool tls_begun;    /* `stream` is the TLS one */
    bool tls_done;     /* the TLS handshake is behind it */
    bool large_writes; /* payloads are received in place: less is read ahead */
    bool frozen;       /* in the handshake, until may_enter; its time limit stands still */
    bool paused;       /* over a limit: not read from until the turn finds that it may go on */
    bool drained;      /* the last receive emptied the stream */
    bool stopping;     /* the server shuts down */
    bool cancelling;   /* ... and long requests end where they are */
    bool gone;         /* the client closed its side without a goodbye */
    bool input_closed; /* nothing more is read */
    bool dead;         /* nothing more is sent either */

    char tls_text[192];            /* who it is and how the session is protected; "" without TLS */
    uint64_t operations, failures; /* requests; those that were answered with an error */
    uint64_t bytes_read, bytes_written;
    char reason[256]; /* why it ended; "" while it has not, or for a client that just left */
};

void nbd_connection_owner_init(struct nbd_connection_owner *owner,
                               const struct nbd_exports *exports);
/* Frees what is pooled; no connection may be left. */
void nbd_connection_owner_fini(struct nbd_connection_owner *owner);

/*
 * Takes over the stream and the identity (on success) and starts; the owner links it. NULL: out of
 * memory.
 */
struct nbd_connection *nbd_connection_new(struct nbd_connection_owner *owner, struct stream *stream,
                                          const char *peer, const struct nbd_identity *identity,
                                          struct nbd_origin *origin);
/* Goes on after may_enter() has changed to true. */
void nbd_connection_resume(struct nbd_connection *c);
/*
 * Finishes what is in flight, refuses the rest, then closes.  A client that does not go on with a
 * payload, or takes no replies, is cut after NBD_STOP_STALL_NS.
 */
void nbd_connection_stop(struct nbd_connection *c);
/* After that: requests that take long end where they are, with ESHUTDOWN. */
void nbd_connection_cancel(struct nbd_connection *c);
/* Requests that run, without one whose payload is on its way. */
unsigned nbd_connection_requests(const struct nbd_connection *c);
/* Closes now; what runs is awaited and its replies are dropped. */
__attribute__((format(printf, 2, 3))) void nbd_connection_cut(struct nbd_connection *c,
                                                              const char *format, ...);

/* ---- Between the files of the connection ---- */

/* Stops reading: what is in flight is finished and answered, then the connection closes. */
__attribute__((format(printf, 2, 3))) void nbd_connection_end_input(struct nbd_connection *c,
                                                                    const char *format, ...);
/* Cuts, for what `doing` ("send to", "receive from") has failed with, a negative errno. */
void nbd_connection_broken(struct nbd_connection *c, const char *doing, int err);
/* To be called after something was queued: sends a full batch now, else when the turn ends. */
void nbd_connection_queued(struct nbd_connection *c);
/* Whether so much waits for a peer that does not read that no more requests are taken. */
bool nbd_connection_output_full(const struct nbd_connection *c);

/* Waits until it is not, or nothing is sent any more (c->dead). In a coroutine. */
void nbd_connection_await_room(struct nbd_connection *c);

/* Waits until at most `bytes` of it are left to send, or nothing is sent any more. In a coroutine.
 */
void nbd_connection_await_sent(struct nbd_connection *c, uint64_t bytes);

/* Whether requests that take long should end where they are, with -ESHUTDOWN. */
static inline bool nbd_connection_gives_up(const struct nbd_connection *c)
{
    return c->dead || c->gone || c->cancelling;
}

/* Something came or went: the client is not idle. */
void nbd_connection_active(struct nbd_connection *c);

/* receive.c: receives and handles what came, within this turn's shares. */
void nbd_connection_receive(struct nbd_connection *c);
/* Forgets what was received and not handled. */
void nbd_connection_drop_input(struct nbd_connection *c);

/* payload.c: the payload of this job, which has a first part of it, is on its way. */
void nbd_payload_begin(struct nbd_connection *c, struct nbd_job *job);
/* The next `bytes` are payload that nobody wants. */
void nbd_payload_discard(struct nbd_connection *c, uint64_t bytes);
/* Where the next bytes go, how many there is room for, and whether that is all up to its end. */
uint8_t *nbd_payload_room(const struct nbd_connection *c, size_t *ret_length, bool *ret_all);
/* So many have come there: more room is made, or the job is started. */
void nbd_payload_take(struct nbd_connection *c, size_t length);
/* Forgets what is on its way. */
void nbd_payload_drop(struct nbd_connection *c);
/* The server shuts down: the time for a payload on its way starts anew, and is shorter. */
void nbd_payload_hurry(struct nbd_connection *c);
/* Others need memory: what has come of payloads is written. */
void nbd_payloads_give_way(struct nbd_connection_owner *owner);

/* connection.c: takes handshake messages. Returns the bytes used. */
size_t nbd_connection_negotiate(struct nbd_connection *c, const uint8_t *data, size_t length);

void nbd_connection_starttls_init(struct nbd_connection_owner *owner);
/* starttls.c: whether bytes belong to TLS's handshake; and goes on with it. */
bool nbd_connection_in_starttls(const struct nbd_connection *c);
void nbd_connection_starttls(struct nbd_connection *c);

/* connection.c: gives the handshake its time, from now on. */
void nbd_connection_start_deadline(struct nbd_connection *c);

/*
 * authorize.c: asks whom the exports want to be asked about the client.  Returns whether all have
 * answered; if not, nbd_connection_starttls() is called again when there is something new.
 */
bool nbd_connection_authorize(struct nbd_connection *c);
/* Waits for no answer any more. */
void nbd_connection_forget_question(struct nbd_connection *c);

/* transfer.c: takes whole requests (and the payload that is there). Returns the bytes used. */
size_t nbd_transfer_input(struct nbd_connection *c, const uint8_t *data, size_t length);

#endif
