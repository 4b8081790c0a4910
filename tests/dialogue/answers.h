/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages of servers, built by a script, and what a client said and learned, as text. */
#ifndef EVNBD_TESTS_ANSWERS_H
#define EVNBD_TESTS_ANSWERS_H

#include "nbd/remote.h"
#include "tests/dialogue/message.h"

/*
 * Appends what a script says.  Statements are separated by ";", their words by spaces; numbers are
 * C's, text may hold %XX for any byte and is empty when it is "-".
 *
 *   greeting FLAGS               newstyle
 *   oldstyle SIZE FLAGS          all of it
 *   default SIZE FLAGS [ZEROES]  the answer to EXPORT_NAME
 *   head OPTION TYPE LENGTH      the header of a reply alone
 *   ack OPTION                   replies
 *   error OPTION NUMBER [TEXT]
 *   server NAME [TEXT]           an item of LIST
 *   export SIZE FLAGS            items of INFO
 *   sizes MIN PREFERRED MAX
 *   text INFO TEXT
 *   context NUMBER NAME          an item of LIST_META_CONTEXT
 *   fill LENGTH BYTE             LENGTH times the byte
 *   bytes TEXT
 */
void answers_script(struct message *m, const char *script);

/*
 * What a client said in a session, one item a message: "flags 3; LIST; INFO 'name' 1 2 3; ABORT".
 * What does not follow the protocol is told by a line "BAD", which no name can hold. Allocated.
 */
char *asked_text(const uint8_t *said, size_t length);

/*
 * "fixed extended structured; 'name' 'description' as 'canonical' told 'description' SIZE 0xFLAGS
 * MIN/PREFERRED/MAX {contexts} problem (sentence)", an item an export, without what is not known.
 * Allocated.
 */
char *remote_text(const struct nbd_remote *remote);

#endif
