/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages of clients, built by fields or by a script of statements. */
#ifndef EVNBD_TESTS_MESSAGE_H
#define EVNBD_TESTS_MESSAGE_H

#include "nbd/request.h"

#include <stddef.h>
#include <stdint.h>

struct message {
    uint8_t *data;
    size_t length, room;
};

void message_free(struct message *m);
void message_bytes(struct message *m, const void *data, size_t length);
void message_fill(struct message *m, uint8_t byte, size_t length);
void message_u16(struct message *m, uint16_t v);
void message_u32(struct message *m, uint32_t v);
void message_u64(struct message *m, uint64_t v);

/* Header of an option; `length` bytes of data are to follow. */
void message_option(struct message *m, uint32_t option, uint32_t length);
void message_request(struct message *m, const struct nbd_request *request);
/* Client flags, then GO for the export of that name. */
void message_go(struct message *m, const char *name);

/*
 * Appends what a script says.  Statements are separated by ";", their words by spaces; numbers are
 * C's, text may hold %XX for any byte and is empty when it is "-".
 *
 *   flags N             client flags
 *   option N LENGTH     the header alone
 *   option N            an option without data
 *   name TEXT           EXPORT_NAME
 *   list                LIST
 *   abort               ABORT
 *   structured          STRUCTURED_REPLY
 *   extended            EXTENDED_HEADERS
 *   listmeta TEXT [TEXT...]  LIST_META_CONTEXT of an export, with queries
 *   set TEXT [TEXT...]       SET_META_CONTEXT, the same
 *   info TEXT [N...]    INFO with information requests
 *   go TEXT [N...]      GO with information requests
 *   fill N BYTE         N times the byte
 *   hex XX...           bytes
 */
void message_script(struct message *m, const char *script);

#endif
