/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Answering options, shared by the files of the server's handshake.  Inside of nbd/.
 *
 *   handshake.c       framing, limits, most of the options
 *   option_context.c  LIST_META_CONTEXT, SET_META_CONTEXT
 *   option_reply.c    replies and the output, see option_reply.h
 */
#ifndef EVNBD_NBD_OPTION_H
#define EVNBD_NBD_OPTION_H

#include "nbd/option_reply.h"

/* A client's text in a message: enough to recognize it, far below the 4096 bytes of a string. */
#define NBD_ECHO_MAX 80

struct nbd_option_message {
    uint32_t number, length;
    struct byte_reader data; /* all `length` bytes */
};

/* Checks a name and finds its export; NULL: the option has been answered with an error. */
struct nbd_export *nbd_option_export(struct nbd_handshake *hs, uint32_t option, const uint8_t *name,
                                     size_t length);

/* option_context.c: either option about metadata contexts. */
void nbd_option_contexts(struct nbd_handshake *hs, struct nbd_option_message *option);

#endif
