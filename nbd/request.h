/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests of the transmission phase: coding, and the one pure function that judges them.
 * NBD protocol, "Request message", "Simple reply message", "Request types", "Error values".
 */
#ifndef EVNBD_NBD_REQUEST_H
#define EVNBD_NBD_REQUEST_H

#include "nbd/export.h"
#include "nbd/wire.h"

#include <stdbool.h>

struct nbd_request {
    uint64_t cookie; /* opaque, echoed */
    uint64_t offset, length;
    uint16_t flags, command;
};

/* Decodes NBD_REQUEST_BYTES bytes. False: the magic is wrong and the connection must be closed. */
bool nbd_request_decode(const uint8_t *header, struct nbd_request *ret);
void nbd_request_encode(uint8_t *header, const struct nbd_request *request);
void nbd_simple_reply_encode(uint8_t *header, uint64_t cookie, uint32_t error);

/* Bytes that follow the header on the wire. */
uint64_t nbd_request_payload(const struct nbd_request *request);

/*
 * Judges a request completely: bounds, permission, flags, sizes.  Returns NBD_SUCCESS (run it,
 * there is nothing left to check) or the wire error, with *ret_why set to a sentence (static text).
 */
uint32_t nbd_request_check(const struct nbd_request *request, const struct nbd_export *nbd_export,
                           const char **ret_why);

#endif
