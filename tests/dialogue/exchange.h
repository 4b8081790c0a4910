/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests and their replies in all three modes, read by an independent reader that knows the
 * protocol's rules and says which one a server has broken.
 *
 * The log of an answer has an item a message, separated by "; ", the last with " done":
 *
 *   simple, simple EINVAL        simple replies
 *   none                         chunks
 *   data 0+4096                  offset in the export, length
 *   hole 4096+8192
 *   status 0: 4096:0 8192:3      id of the context, length and flags of each extent
 *   error EIO, error EIO at 512  the text is only checked
 */
#ifndef EVNBD_TESTS_EXCHANGE_H
#define EVNBD_TESTS_EXCHANGE_H

#include "nbd/request.h"
#include "tests/dialogue/message.h"

struct byte_reader;

struct answer {
    struct nbd_request request; /* `contexts`: what must be told */
    bool done;
    uint32_t error;
    char text[512];       /* of the error */
    struct message log;   /* see answer_log() */
    uint8_t *data;        /* READ: request.length bytes, zeroes where nothing has come */
    uint8_t *seen;        /* READ: for each of them whether it was told */
    uint64_t covered;     /* READ: bytes told */
    unsigned contents;    /* READ: chunks of content */
    uint64_t told;        /* BLOCK_STATUS: contexts */
    uint64_t told_length; /* BLOCK_STATUS: of the context told last */
    unsigned extents;     /* BLOCK_STATUS: the same */
};

struct exchange {
    enum nbd_reply_mode mode;
    struct answer *answers; /* in the order of the requests */
    size_t count, room, done;
    const char *broken; /* the rule that the server has broken, or NULL */
};

void exchange_init(struct exchange *x, enum nbd_reply_mode mode);
void exchange_free(struct exchange *x);

/* An answer to this request is expected. Cookies must differ. */
struct answer *exchange_expect(struct exchange *x, const struct nbd_request *request);
/*
 * Takes all whole messages off the reader. False: x->broken tells why; then nothing more is read.
 */
bool exchange_read(struct exchange *x, struct byte_reader *in);

/* As text; valid until the exchange changes. */
const char *answer_log(struct answer *answer);

/* Appends the header of a request as the mode has it (and the payload flag where it must be). */
void exchange_request(struct message *m, enum nbd_reply_mode mode,
                      const struct nbd_request *request);

#endif
