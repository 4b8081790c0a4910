/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Dialogues of the handshake: what a client sends as a script (message.h), what the server must
 * answer as a transcript (transcript.h) with the state that it leads to.
 *
 *    -> transmission NAME, N left           N bytes behind the handshake were not used
 *    ... left, structured 0x3               in another mode, or with contexts: mode, their set
 *    -> TLS                                 the next byte belongs to it
 *    -> closed                              with a reason for the log
 *    -> closed quietly                      without one
 */
#ifndef EVNBD_TESTS_DIALOGUE_H
#define EVNBD_TESTS_DIALOGUE_H

#include "nbd/handshake.h"
#include "tests/dialogue/message.h"

/* One session that is fed as a connection feeds it: what is not used comes again, with more. */
struct server_session {
    struct nbd_handshake hs;
    struct message said, kept;
};

void server_session_init(struct server_session *s, const struct nbd_exports *exports, bool oldstyle,
                         bool stopping);
void server_session_fini(struct server_session *s);
void server_session_feed(struct server_session *s, const uint8_t *data, size_t length);

struct dialogue {
    const char *client; /* script */
    const char *server; /* transcript, and where it leads */
    bool oldstyle, stopping, no_default;
    enum nbd_tls_mode tls;
};

/* What was said, and where it has led; freed by the caller. */
char *server_session_result(const struct server_session *s, bool oldstyle);

/*
 * Replays each whole, byte by byte, and cut in two at every place; the server must say the same in
 * all of them.
 */
void check_dialogues(struct nbd_exports *exports, const struct dialogue *table, size_t count);

#endif
