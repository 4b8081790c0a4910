/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests of the transmission phase: coding, and the one pure function that judges them.
 * NBD protocol, "Request message", "Request types", "Error values".
 */
#ifndef EVNBD_NBD_REQUEST_H
#define EVNBD_NBD_REQUEST_H

#include "nbd/export.h"
#include "nbd/session.h"
#include "nbd/wire.h"

#include <stdbool.h>

struct nbd_request {
    uint64_t cookie; /* opaque, echoed */
    uint64_t offset, length;
    uint16_t flags, command;
    uint64_t payload;  /* bytes that follow the header on the wire */
    uint64_t contexts; /* BLOCK_STATUS: the set of those to be told; 0: none, which is refused */
};

/* Bytes of a request's header. */
static inline size_t nbd_request_bytes(enum nbd_reply_mode mode)
{
    return mode == NBD_MODE_EXTENDED ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

/* Decodes a header. False: the magic is wrong and the connection must be closed. */
bool nbd_request_decode(enum nbd_reply_mode mode, const uint8_t *header, struct nbd_request *ret);
/* A compact header; its length is cut to 32 bits. */
void nbd_request_encode(uint8_t *header, const struct nbd_request *request);
void nbd_request_encode_extended(uint8_t *header, const struct nbd_request *request);

/*
 * A BLOCK_STATUS may carry a payload that names its contexts and the length it is about.  Returns
 * its size when the request has one of a possible size: then it must be complete in memory before
 * nbd_request_take_filter(), which reads it.  0: there is none, or one that is skipped unread.
 */
size_t nbd_request_filter_bytes(const struct nbd_request *request);
void nbd_request_take_filter(struct nbd_request *request, const uint8_t *payload,
                             uint64_t selected);

/*
 * Judges a request completely: bounds, permission, flags, sizes.  Returns NBD_SUCCESS (run it,
 * there is nothing left to check) or the wire error, with *ret_why set to a sentence (static text).
 */
uint32_t nbd_request_check(const struct nbd_request *request, const struct nbd_export *nbd_export,
                           const struct nbd_session *session, const char **ret_why);

#endif
