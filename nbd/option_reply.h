/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Replies to options: what the server's handshake says after its greeting.
 * NBD protocol, "Fixed newstyle negotiation".  Inside of nbd/.
 */
#ifndef EVNBD_NBD_OPTION_REPLY_H
#define EVNBD_NBD_OPTION_REPLY_H

#include "base/bytes.h"
#include "nbd/handshake.h"

/* Room for `length` bytes at the end of the output, or NULL: out of memory (output->failed). */
uint8_t *nbd_output_extend(struct nbd_output *output, size_t length);

/* Appends a reply of `length` bytes of data, which the caller writes. */
struct byte_writer nbd_option_reply(struct nbd_handshake *hs, uint32_t option, uint32_t type,
                                    size_t length);
void nbd_option_ack(struct nbd_handshake *hs, uint32_t option);
/* An error reply with its sentence for the user at the other end. */
__attribute__((format(printf, 4, 5))) void
nbd_option_error(struct nbd_handshake *hs, uint32_t option, uint32_t type, const char *format, ...);

#endif
