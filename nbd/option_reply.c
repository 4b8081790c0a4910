/* SPDX-License-Identifier: BSD-3-Clause */
/* The output of the server's handshake, and replies to options in it. */
#include "nbd/option_reply.h"

#include "base/trace.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint8_t *nbd_output_extend(struct nbd_output *output, size_t length)
{
    uint8_t *at;

    if (output->failed)
        return NULL;
    if (length > output->room - output->length) {
        size_t room = output->length + length + 512;
        uint8_t *data;

        if (room < 2 * output->room)
            room = 2 * output->room;
        data = realloc(output->data, room);
        if (!data) {
            output->failed = true;
            return NULL;
        }
        output->data = data;
        output->room = room;
    }
    at = output->data + output->length;
    output->length += length;
    return at;
}

void nbd_output_free(struct nbd_output *output)
{
    free(output->data);
    *output = (struct nbd_output){0};
}

struct byte_writer nbd_option_reply(struct nbd_handshake *hs, uint32_t option, uint32_t type,
                                    size_t length)
{
    uint8_t *at = nbd_output_extend(&hs->output, NBD_OPTION_REPLY_HEADER_BYTES + length);

    TRACE(nbd_option_reply, "option %s reply %s, %zu bytes", nbd_option_name(option),
          nbd_option_reply_name(type), length);
    if (!at)
        return byte_writer_of(NULL, 0);
    put_be64(at, NBD_OPTION_REPLY_MAGIC);
    put_be32(at + 8, option);
    put_be32(at + 12, type);
    put_be32(at + 16, (uint32_t)length);
    return byte_writer_of(at + NBD_OPTION_REPLY_HEADER_BYTES, length);
}

void nbd_option_ack(struct nbd_handshake *hs, uint32_t option)
{
    nbd_option_reply(hs, option, NBD_REP_ACK, 0);
}

void nbd_option_error(struct nbd_handshake *hs, uint32_t option, uint32_t type, const char *format,
                      ...)
{
    char text[512];
    struct byte_writer w;
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (option == NBD_OPT_GO)
        error_set(&hs->refused, EPERM, "%s", text);
    w = nbd_option_reply(hs, option, type, strlen(text));
    byte_writer_put(&w, text, strlen(text));
}
