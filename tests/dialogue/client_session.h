/* SPDX-License-Identifier: BSD-3-Clause */
/* The client that lists exports, fed as a connection feeds it. */
#ifndef EVNBD_TESTS_CLIENT_SESSION_H
#define EVNBD_TESTS_CLIENT_SESSION_H

#include "nbd/client.h"
#include "tests/dialogue/answers.h"

/* The beginnings that most scripts of servers share. */
#define PLAIN "greeting 3; error 11 1; error 8 1;"
#define STRUCTURED "greeting 3; error 11 1 no; ack 8;"
#define EXTENDED "greeting 3; ack 11;"
/* One export is listed; then the client asks about it. */
#define ONE PLAIN "server a; ack 3;"
/* And it has told its size; then the client asks for its contexts. */
#define ONE_CONTEXTS STRUCTURED "server a; ack 3; export 1 1; ack 6;"

struct session {
    struct nbd_remote remote;
    struct nbd_client client;
    struct message said, kept;
};

void session_init(struct session *s);
void session_fini(struct session *s);
/* Starts a session on what `s` knows already; it may be zeroed. */
void session_again(struct session *s, const char *script);
/* What was not used is offered again, with more, in memory of its exact size. */
void session_feed(struct session *s, const uint8_t *data, size_t length);
/* A new session with the whole script: `cut` bytes, then `step` at a time (0: all the rest). */
void session_run(struct session *s, const struct message *m, size_t cut, size_t step);
bool session_ended(const struct session *s);

/* See answers.h for the texts. */
void assert_asked(const struct session *s, const char *wanted);
void assert_learned(const struct session *s, const char *wanted);
/* The reason of the session's failure has this part. */
void assert_reason(const struct session *s, const char *part);

#endif
