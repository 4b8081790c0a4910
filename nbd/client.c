/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The messages of a session with a server: its greeting, and its replies to options.
 *
 * Messages are taken whole and one option is outstanding at a time, so the state is the option that
 * is being answered; client_step.c knows what the answers mean.
 */
#include "nbd/client.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/trace.h"
#include "nbd/client_step.h"
#include "nbd/request.h"

#include <inttypes.h>

#define NEWSTYLE_BYTES 18
#define RESERVED_ZEROES 124
#define OLDSTYLE_BYTES (28 + RESERVED_ZEROES)
#define EXPORT_ANSWER_BYTES 10
/* A server's words in a message. */
#define ECHO_MAX 80
#define SAID_MAX 300
/* Items in the replies to one option. What is kept of them has limits of its own. */
#define REPLIES_MAX 200000

struct reply {
    uint32_t option, type, length;
    struct byte_reader data;
};

/* Whether the start of a message, as far as it is there, is this number. Strangers are not waited
 * for. */
static bool begins_with(const uint8_t *data, size_t length, uint64_t magic)
{
    uint8_t wanted[8];

    put_be64(wanted, magic);
    return memcmp(data, wanted, min_u64(length, sizeof(wanted))) == 0;
}

/* What the server says to people about its refusal, as the end of a sentence. */
static const char *said_by(const struct reply *reply, char said[static SAID_MAX])
{
    said[0] = '\0';
    if (reply->length > 0) {
        memcpy(said, ": ", 2);
        error_printable(said + 2, SAID_MAX - 2, reply->data.data, reply->length);
    }
    return said;
}

static void take_answer(struct nbd_client *c, struct reply *reply)
{
    const struct nbd_client_step *step = c->step;
    char said[SAID_MAX];

    TRACE(nbd_client_reply, "option %s reply %s, %" PRIu32 " bytes", nbd_option_name(reply->option),
          nbd_option_reply_name(reply->type), reply->length);
    if (reply->type & NBD_REPLY_ERROR_BIT)
        step->refused(c, reply->type, said_by(reply, said));
    else if (reply->type == NBD_REP_ACK && reply->length == 0)
        step->acknowledged(c);
    else if (step->item && reply->type == step->item && ++c->replies <= REPLIES_MAX)
        step->take_item(c, &reply->data);
    else if (step->item && reply->type == step->item)
        nbd_client_fail(c, "the server does not come to an end with its replies to %s",
                        nbd_option_name(step->option));
    else
        nbd_client_fail(
            c, "the server answers %s with a reply of type %" PRIu32 " (%s) and %" PRIu32 " bytes",
            nbd_option_name(step->option), reply->type, nbd_option_reply_name(reply->type),
            reply->length);
}

static size_t take_reply(struct nbd_client *c, const uint8_t *data, size_t length)
{
    struct reply reply;

    if (!begins_with(data, length, NBD_OPTION_REPLY_MAGIC)) {
        nbd_client_fail(c, "the server's reply to %s begins with a wrong magic number",
                        nbd_option_name(c->step->option));
        return 0;
    }
    if (length < NBD_OPTION_REPLY_HEADER_BYTES)
        return 0;
    reply.option = get_be32(data + 8);
    reply.type = get_be32(data + 12);
    reply.length = get_be32(data + 16);
    if (reply.option != c->step->option) {
        nbd_client_fail(c, "the server answers option %" PRIu32 " (%s), but was asked %s",
                        reply.option, nbd_option_name(reply.option),
                        nbd_option_name(c->step->option));
        return 0;
    }
    if (reply.length > NBD_CLIENT_REPLY_MAX) {
        nbd_client_fail(c,
                        "the server's reply to %s has %" PRIu32 " bytes; at most %d are expected",
                        nbd_option_name(reply.option), reply.length, NBD_CLIENT_REPLY_MAX);
        return 0;
    }
    if (length - NBD_OPTION_REPLY_HEADER_BYTES < reply.length)
        return 0;
    reply.data = byte_reader_of(data + NBD_OPTION_REPLY_HEADER_BYTES, reply.length);
    take_answer(c, &reply);
    return NBD_OPTION_REPLY_HEADER_BYTES + reply.length;
}

/* Leaves transmission, which began with what the server told of its only export. */
static void end_transmission(struct nbd_client *c)
{
    const struct nbd_request disconnect = {.command = NBD_CMD_DISC};

    nbd_request_encode(c->output, &disconnect);
    c->output_length = NBD_REQUEST_BYTES;
    c->state = NBD_CLIENT_DONE;
}

/* Servers that cannot list have this one. */
static void take_only_export(struct nbd_client *c, uint64_t size, uint16_t flags)
{
    struct nbd_remote *remote = c->remote;

    if (remote->listed) {
        nbd_client_fail(c, "the server has changed its protocol between two connections");
        return;
    }
    if (!nbd_client_check_size(c, size) ||
        !nbd_client_check_kept(c, nbd_remote_add_export(remote, "", 0)))
        return;
    remote->exports[0].examined = true;
    remote->exports[0].size = size;
    remote->exports[0].flags = flags;
    remote->listed = true;
    remote->next = 1;
    end_transmission(c);
}

static size_t take_export_answer(struct nbd_client *c, const uint8_t *data, size_t length)
{
    size_t whole = EXPORT_ANSWER_BYTES + (c->no_zeroes ? 0 : RESERVED_ZEROES);

    if (length < whole)
        return 0;
    take_only_export(c, get_be64(data), get_be16(data + 8));
    return whole;
}

/* What was negotiated before fixed newstyle cannot change over to TLS. */
static bool check_age(struct nbd_client *c)
{
    if (c->tls)
        nbd_client_fail(c, "the server does not support TLS: it speaks an older dialect of NBD");
    return !c->tls;
}

static size_t take_oldstyle(struct nbd_client *c, const uint8_t *data, size_t length)
{
    if (length < OLDSTYLE_BYTES)
        return 0;
    c->remote->protocol = NBD_PROTOCOL_OLDSTYLE;
    if (check_age(c))
        take_only_export(c, get_be64(data + 16), (uint16_t)get_be32(data + 24));
    return OLDSTYLE_BYTES;
}

static size_t take_newstyle(struct nbd_client *c, const uint8_t *data, size_t length)
{
    uint32_t flags;

    if (length < NEWSTYLE_BYTES)
        return 0;
    flags = get_be16(data + 16) & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    if (!(flags & NBD_FLAG_FIXED_NEWSTYLE) && !check_age(c))
        return 0;
    put_be32(c->output, flags);
    c->output_length = sizeof(flags);
    c->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    if (flags & NBD_FLAG_FIXED_NEWSTYLE) {
        c->remote->protocol = NBD_PROTOCOL_FIXED_NEWSTYLE;
        c->state = NBD_CLIENT_OPTIONS;
        nbd_client_ask_first(c);
    } else {
        c->remote->protocol = NBD_PROTOCOL_NEWSTYLE;
        c->state = NBD_CLIENT_EXPORT_NAME;
        nbd_client_send_option(c, NBD_OPT_EXPORT_NAME);
    }
    return NEWSTYLE_BYTES;
}

static size_t take_greeting(struct nbd_client *c, const uint8_t *data, size_t length)
{
    char echo[ECHO_MAX];

    if (!begins_with(data, length, NBD_MAGIC)) {
        nbd_client_fail(c, "this is no NBD server: it begins with '%s'",
                        error_escape(echo, sizeof(echo), data, min_u64(length, 16)));
        return 0;
    }
    if (length < 16)
        return 0;
    if (get_be64(data + 8) == NBD_OLDSTYLE_MAGIC)
        return take_oldstyle(c, data, length);
    if (get_be64(data + 8) == NBD_OPTION_MAGIC)
        return take_newstyle(c, data, length);
    nbd_client_fail(
        c, "the server speaks an unknown dialect of NBD, with the magic number 0x%016" PRIx64,
        get_be64(data + 8));
    return 0;
}

/* The client speaks first in TLS, so this is from somebody on the way, or meant to be outside. */
static size_t refuse_early(struct nbd_client *c, size_t length)
{
    nbd_client_fail(c, "the server sent %zu bytes between its consent to TLS and TLS", length);
    return 0;
}

void nbd_client_init(struct nbd_client *client, struct nbd_remote *remote)
{
    *client = (struct nbd_client){.remote = remote, .state = NBD_CLIENT_GREETING};
    if (!remote->listed)
        nbd_remote_fini(remote);
    remote->structured_replies = remote->extended_headers = false;
}

size_t nbd_client_input(struct nbd_client *client, const void *data, size_t length)
{
    if (length == 0 || client->output_length > 0)
        return 0;
    switch (client->state) {
    case NBD_CLIENT_GREETING:
        return take_greeting(client, data, length);
    case NBD_CLIENT_EXPORT_NAME:
        return take_export_answer(client, data, length);
    case NBD_CLIENT_OPTIONS:
        return take_reply(client, data, length);
    case NBD_CLIENT_STARTTLS:
        return refuse_early(client, length);
    default:
        return 0;
    }
}

/* The server closed the connection instead of answering. */
static void fail_step(struct nbd_client *c)
{
    const char *option = nbd_option_name(c->step->option);
    char echo[ECHO_MAX];

    if (nbd_client_is_fresh_in_tls(c)) {
        nbd_client_fail(c,
                        "the server closed the connection right after the TLS handshake; perhaps "
                        "it does not accept the certificate or the name of this client");
    } else if (c->step->per_export) {
        const struct nbd_text *name = &c->remote->exports[c->remote->next].name;

        nbd_client_fail(c, "the server closed the connection when asked for %s of export '%s'",
                        option, error_escape(echo, sizeof(echo), name->data, name->length));
    } else {
        nbd_client_fail(c, "the server closed the connection when asked for %s", option);
    }
}

void nbd_client_hang_up(struct nbd_client *client)
{
    switch (client->state) {
    case NBD_CLIENT_GREETING:
        nbd_client_fail(client,
                        "the server closed the connection before its greeting was complete");
        break;
    case NBD_CLIENT_EXPORT_NAME:
        nbd_client_fail(client, "the server can neither list its exports nor has it a default one");
        break;
    case NBD_CLIENT_OPTIONS:
        fail_step(client);
        break;
    case NBD_CLIENT_STARTTLS:
        nbd_client_fail(client, "the server closed the connection in the TLS handshake");
        break;
    default:
        break;
    }
}
