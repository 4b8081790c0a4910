/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server's side of the handshake, without descriptor or loop.
 *
 * Messages are taken whole: client flags, then options of 16 bytes and their data.  So there is no
 * state inside a message, and nothing that a client sends is kept beyond its own message.  A
 * handler sees the data of its option through a byte reader and answers by appending replies to the
 * output; every option but EXPORT_NAME ends in exactly one final reply (ACK or an error, errors
 * with text).
 *
 * The output grows with what one call answers.  nbd_handshake_input() stops after the message that
 * fills it beyond OUTPUT_PAUSE, so that pipelined options cannot make it grow without limit.
 */
#include "nbd/handshake.h"

#include "base/bytes.h"
#include "base/trace.h"
#include "nbd/access.h"
#include "nbd/option.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define OUTPUT_PAUSE (64 * 1024)
#define RESERVED_ZEROES 124

__attribute__((format(printf, 2, 3))) static void close_session(struct nbd_handshake *hs,
                                                                const char *format, ...)
{
    va_list args;

    hs->state = NBD_HANDSHAKE_CLOSED;
    va_start(args, format);
    vsnprintf(hs->reason.text, sizeof(hs->reason.text), format, args);
    va_end(args);
}

static void put_greeting(struct nbd_handshake *hs)
{
    uint8_t *at = nbd_output_extend(&hs->output, 18);

    hs->state = NBD_HANDSHAKE_CLIENT_FLAGS;
    if (!at)
        return;
    put_be64(at, NBD_MAGIC);
    put_be64(at + 8, NBD_OPTION_MAGIC);
    put_be16(at + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

/* Everything the oldstyle server ever says before transmission. */
static void put_oldstyle(struct nbd_handshake *hs)
{
    const struct nbd_export *chosen = hs->chosen;
    uint8_t *at = nbd_output_extend(&hs->output, 28 + RESERVED_ZEROES);

    hs->state = NBD_HANDSHAKE_DONE;
    if (!at)
        return;
    put_be64(at, NBD_MAGIC);
    put_be64(at + 8, NBD_OLDSTYLE_MAGIC);
    put_be64(at + 16, chosen->size);
    put_be32(at + 24, chosen->flags); /* the handshake flags, in the upper half, are zero */
    memset(at + 28, 0, RESERVED_ZEROES);
}

static void close_if_no_memory(struct nbd_handshake *hs)
{
    if (hs->output.failed)
        close_session(hs, "out of memory while answering the handshake");
}

static bool lacks_tls(const struct nbd_handshake *hs, const struct nbd_export *e)
{
    return !hs->secure && (e->needs_tls || hs->tls == NBD_TLS_REQUIRED);
}

/* Whether the export is for this client at all; if not, notes that it was denied. */
static bool may_use(struct nbd_handshake *hs, const struct nbd_export *e, char *why,
                    size_t why_size)
{
    if (nbd_access_allows(e->access, hs->identity))
        return true;
    hs->denied = e;
    snprintf(why, why_size, "you are not among the clients that may use export '%.80s'", e->name);
    return false;
}

/* Whether this client may enter the export now; if not, `why` says why. */
static bool may_enter(const struct nbd_handshake *hs, const struct nbd_export *e, char *why,
                      size_t why_size)
{
    if (hs->refusal)
        snprintf(why, why_size, "%s", hs->refusal);
    else if (e->clients_max > 0 && e->clients >= e->clients_max)
        snprintf(why, why_size, "export '%.80s' has %u clients already, and no more are allowed",
                 e->name, e->clients);
    else
        return true;
    return false;
}

static void begin_oldstyle(struct nbd_handshake *hs)
{
    char why[256];

    hs->chosen = nbd_exports_find(hs->exports, "", 0);
    if (!hs->chosen)
        close_session(hs, "there is no default export, which the oldstyle handshake needs");
    else if (lacks_tls(hs, hs->chosen))
        close_session(hs, "the default export is served over TLS only, which the oldstyle "
                          "handshake does not have");
    else if (!may_use(hs, hs->chosen, why, sizeof(why)) ||
             !may_enter(hs, hs->chosen, why, sizeof(why)))
        close_session(hs, "%s", why);
    else
        put_oldstyle(hs);
}

void nbd_handshake_init(struct nbd_handshake *hs, const struct nbd_exports *exports,
                        const struct nbd_identity *identity, bool oldstyle)
{
    *hs = (struct nbd_handshake){.exports = exports, .identity = identity, .oldstyle = oldstyle};
}

void nbd_handshake_start(struct nbd_handshake *hs)
{
    if (hs->oldstyle)
        begin_oldstyle(hs);
    else
        put_greeting(hs);
    close_if_no_memory(hs);
}

void nbd_handshake_fini(struct nbd_handshake *hs)
{
    nbd_output_free(&hs->output);
}

static void take_client_flags(struct nbd_handshake *hs, uint32_t flags)
{
    const uint32_t known = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;

    if (flags & ~known) {
        close_session(hs, "unknown client flags 0x%" PRIx32, flags & ~known);
        return;
    }
    hs->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    hs->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
    hs->state = NBD_HANDSHAKE_OPTIONS;
}

/* Checks a name and finds its export, if it is for this client.  NULL: *ret_type and `why` (of
 * `why_size`) say why. */
static struct nbd_export *find_export(struct nbd_handshake *hs, const uint8_t *name, size_t length,
                                      uint32_t *ret_type, char *why, size_t why_size)
{
    char echo[NBD_ECHO_MAX];
    struct nbd_export *found;

    *ret_type = NBD_REP_ERR_INVALID;
    if (length > NBD_STRING_MAX) {
        snprintf(why, why_size, "the export name has %zu bytes; at most %d are allowed", length,
                 NBD_STRING_MAX);
        return NULL;
    }
    if (!bytes_are_utf8(name, length)) {
        snprintf(why, why_size, "the export name '%s' is not UTF-8 text without NUL bytes",
                 error_escape(echo, sizeof(echo), name, length));
        return NULL;
    }
    found = nbd_exports_find(hs->exports, name, length);
    *ret_type = NBD_REP_ERR_UNKNOWN;
    if (!found && length == 0)
        snprintf(why, why_size, "there is no default export; the client must name one");
    else if (!found)
        snprintf(why, why_size, "there is no export '%s'",
                 error_escape(echo, sizeof(echo), name, length));
    if (found && lacks_tls(hs, found)) {
        *ret_type = NBD_REP_ERR_TLS_REQD;
        snprintf(why, why_size, "export '%s' is served over TLS only; begin with STARTTLS",
                 error_escape(echo, sizeof(echo), name, length));
        return NULL;
    }
    if (!found || may_use(hs, found, why, why_size))
        return found;
    *ret_type = NBD_REP_ERR_POLICY;
    return NULL;
}

struct nbd_export *nbd_option_export(struct nbd_handshake *hs, uint32_t option, const uint8_t *name,
                                     size_t length)
{
    char why[256];
    uint32_t type;
    struct nbd_export *found = find_export(hs, name, length, &type, why, sizeof(why));

    if (!found)
        nbd_option_error(hs, option, type, "%s", why);
    return found;
}

/* The one option without error replies: what cannot be served ends the session. */
static void handle_export_name(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    size_t zeroes = hs->no_zeroes ? 0 : RESERVED_ZEROES;
    char why[256];
    uint32_t type;
    uint8_t *at;

    if (hs->session.mode == NBD_MODE_EXTENDED) {
        close_session(hs, "EXPORT_NAME from a client that negotiated extended headers and must "
                          "use GO");
        return;
    }
    hs->chosen = find_export(hs, option->data.data, option->length, &type, why, sizeof(why));
    if (!hs->chosen || !may_enter(hs, hs->chosen, why, sizeof(why))) {
        close_session(hs, "%s", why);
        return;
    }
    hs->state = NBD_HANDSHAKE_DONE;
    at = nbd_output_extend(&hs->output, 10 + zeroes);
    if (!at)
        return;
    put_be64(at, hs->chosen->size);
    put_be16(at + 8, nbd_session_flags(&hs->session, hs->chosen));
    memset(at + 10, 0, zeroes);
}

static void handle_abort(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    nbd_option_ack(hs, option->number);
    close_session(hs, "%s", "");
}

static void reply_listed(struct nbd_handshake *hs, const struct nbd_export *e)
{
    size_t name = strlen(e->name), description = e->description ? strlen(e->description) : 0;
    struct byte_writer w =
        nbd_option_reply(hs, NBD_OPT_LIST, NBD_REP_SERVER, 4 + name + description);

    byte_writer_be32(&w, (uint32_t)name);
    byte_writer_put(&w, e->name, name);
    byte_writer_put(&w, description ? e->description : "", description);
}

/* The list may be longer than what the output should hold: it goes out in parts. */
static void continue_list(struct nbd_handshake *hs)
{
    unsigned index = 0;

    list_for_each(it, &hs->exports->list)
    {
        const struct nbd_export *e = list_entry(it, struct nbd_export, link);

        if (index++ < hs->listed)
            continue;
        if (hs->output.length >= OUTPUT_PAUSE)
            return;
        if (!lacks_tls(hs, e) && nbd_access_allows(e->access, hs->identity))
            reply_listed(hs, e);
        hs->listed = index;
    }
    hs->listing = false;
    nbd_option_ack(hs, NBD_OPT_LIST);
}

void nbd_handshake_forget_export(struct nbd_handshake *hs, const struct nbd_export *nbd_export)
{
    unsigned index = 0;

    if (hs->session.selected_of == nbd_export) { /* another one may get its address */
        hs->session.selected_of = NULL;
        hs->session.selected = 0;
    }
    list_for_each(it, &hs->exports->list)
    {
        if (it == &nbd_export->link && index < hs->listed)
            hs->listed--;
        index++;
    }
}

static void handle_list(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    if (option->length > 0) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "LIST takes no data, but came with %" PRIu32 " bytes", option->length);
        return;
    }
    hs->listing = true;
    hs->asked_list = true;
    hs->listed = 0;
    continue_list(hs);
}

static void reply_info_text(struct nbd_handshake *hs, uint32_t option, uint16_t info,
                            const char *text)
{
    struct byte_writer w = nbd_option_reply(hs, option, NBD_REP_INFO, 2 + strlen(text));

    byte_writer_be16(&w, info);
    byte_writer_put(&w, text, strlen(text));
}

/* `wanted` has a bit for each information type that was asked for. */
static void reply_infos(struct nbd_handshake *hs, uint32_t option, const struct nbd_export *e,
                        unsigned wanted)
{
    struct byte_writer w = nbd_option_reply(hs, option, NBD_REP_INFO, 12);

    byte_writer_be16(&w, NBD_INFO_EXPORT);
    byte_writer_be64(&w, e->size);
    byte_writer_be16(&w, nbd_session_flags(&hs->session, e));
    if (wanted & 1U << NBD_INFO_NAME)
        reply_info_text(hs, option, NBD_INFO_NAME, e->name);
    if (wanted & 1U << NBD_INFO_DESCRIPTION && e->description)
        reply_info_text(hs, option, NBD_INFO_DESCRIPTION, e->description);
    /* Sent unasked too: clients that know it work better with it, others ignore it. */
    w = nbd_option_reply(hs, option, NBD_REP_INFO, 14);
    byte_writer_be16(&w, NBD_INFO_BLOCK_SIZE);
    byte_writer_be32(&w, e->block_min);
    byte_writer_be32(&w, e->block_preferred);
    byte_writer_be32(&w, e->block_max);
}

/* Information types beyond those known here are skipped, as the protocol asks. */
static unsigned take_info_requests(struct byte_reader *data, unsigned count)
{
    unsigned wanted = 0;

    while (count-- > 0) {
        uint16_t info = byte_reader_be16(data);

        if (info <= NBD_INFO_BLOCK_SIZE)
            wanted |= 1U << info;
    }
    return wanted;
}

/* INFO and GO: the same question; a successful GO also begins transmission. */
static void handle_go(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    struct byte_reader *data = &option->data;
    uint32_t name_length = byte_reader_be32(data);
    const uint8_t *name = byte_reader_take(data, name_length);
    unsigned count = byte_reader_be16(data);
    struct nbd_export *found;
    char why[256];

    if (data->failed || data->left != 2 * (size_t)count) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "the lengths in %s do not agree: %" PRIu32
                         " bytes of data, a name of %" PRIu32
                         " bytes, %u information requests of 2 bytes",
                         nbd_option_name(option->number), option->length, name_length, count);
        return;
    }
    found = nbd_option_export(hs, option->number, name, name_length);
    if (!found)
        return;
    if (option->number == NBD_OPT_GO && !may_enter(hs, found, why, sizeof(why))) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_POLICY, "%s", why);
        return;
    }
    reply_infos(hs, option->number, found, take_info_requests(data, count));
    nbd_option_ack(hs, option->number);
    hs->asked_info = true;
    if (option->number == NBD_OPT_GO) {
        hs->chosen = found;
        hs->state = NBD_HANDSHAKE_DONE;
    }
}

/* STRUCTURED_REPLY and EXTENDED_HEADERS. A session can only be raised, once each. */
static void handle_mode(struct nbd_handshake *hs, struct nbd_option_message *option,
                        enum nbd_reply_mode mode)
{
    const char *name = nbd_option_name(option->number);

    if (option->length > 0) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "%s takes no data, but came with %" PRIu32 " bytes", name, option->length);
    } else if (mode == hs->session.mode) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "%s was negotiated already in this session", name);
    } else if (mode < hs->session.mode) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_EXT_HEADER_REQD,
                         "extended headers were negotiated, and %s cannot take them back", name);
    } else {
        hs->session.mode = mode;
        nbd_option_ack(hs, option->number);
    }
}

static void handle_starttls(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    if (hs->tls == NBD_TLS_OFF) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_POLICY,
                         "this server was started without TLS credentials; connect without TLS");
    } else if (option->length > 0) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "STARTTLS takes no data, but came with %" PRIu32 " bytes", option->length);
    } else if (hs->secure) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "this connection is inside of TLS already");
    } else {
        nbd_option_ack(hs, option->number);
        hs->state = NBD_HANDSHAKE_STARTTLS;
    }
}

void nbd_handshake_secured(struct nbd_handshake *hs)
{
    nbd_session_reset(&hs->session);
    hs->secure = true;
    hs->state = NBD_HANDSHAKE_OPTIONS;
}

static void handle_refused(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    nbd_option_error(hs, option->number, NBD_REP_ERR_UNSUP,
                     "this server does not support option %" PRIu32 " (%s)", option->number,
                     nbd_option_name(option->number));
}

static void handle_option(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    switch (option->number) {
    case NBD_OPT_EXPORT_NAME:
        handle_export_name(hs, option);
        break;
    case NBD_OPT_ABORT:
        handle_abort(hs, option);
        break;
    case NBD_OPT_LIST:
        handle_list(hs, option);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        handle_go(hs, option);
        break;
    case NBD_OPT_STARTTLS:
        handle_starttls(hs, option);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        handle_mode(hs, option, NBD_MODE_STRUCTURED);
        break;
    case NBD_OPT_EXTENDED_HEADERS:
        handle_mode(hs, option, NBD_MODE_EXTENDED);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        nbd_option_contexts(hs, option);
        break;
    default:
        handle_refused(hs, option);
    }
}

/* EXPORT_NAME has no error replies. */
static void refuse_option(struct nbd_handshake *hs, const struct nbd_option_message *option,
                          uint32_t type, const char *why)
{
    if (option->number == NBD_OPT_EXPORT_NAME)
        close_session(hs, "%s", why);
    else
        nbd_option_error(hs, option->number, type, "%s", why);
}

/* Whether this option may be handled at all; if not, it has been answered or the session closed. */
static bool admit_option(struct nbd_handshake *hs, const struct nbd_option_message *option)
{
    if (++hs->options > NBD_OPTIONS_MAX) {
        close_session(hs, "more than %d options in one handshake", NBD_OPTIONS_MAX);
        return false;
    }
    if (!hs->fixed && option->number != NBD_OPT_EXPORT_NAME) {
        close_session(hs,
                      "option %" PRIu32 " (%s) from a client that did not set the fixed newstyle "
                      "flag and may send EXPORT_NAME only",
                      option->number, nbd_option_name(option->number));
        return false;
    }
    if (option->number == NBD_OPT_ABORT)
        return true;
    if (hs->shutting_down)
        refuse_option(hs, option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    else if (hs->tls == NBD_TLS_REQUIRED && !hs->secure && option->number != NBD_OPT_STARTTLS)
        refuse_option(hs, option, NBD_REP_ERR_TLS_REQD,
                      "this server talks to clients inside of TLS only; begin with STARTTLS");
    else
        return true;
    return false;
}

/* An option that is too long is never waited for: it is refused by its header. */
static void refuse_long_option(struct nbd_handshake *hs, uint32_t number, uint32_t length)
{
    if (hs->fixed && number != NBD_OPT_EXPORT_NAME)
        nbd_option_error(hs, number, NBD_REP_ERR_TOO_BIG,
                         "option %" PRIu32 " has %" PRIu32 " bytes of data; at most %d are allowed",
                         number, length, NBD_OPTION_BYTES_MAX);
    close_session(hs, "option %" PRIu32 " (%s) with %" PRIu32 " bytes of data, more than %d",
                  number, nbd_option_name(number), length, NBD_OPTION_BYTES_MAX);
}

/* Takes one option if it is there as a whole. Returns the bytes used; 0: incomplete, or closed. */
static size_t take_option(struct nbd_handshake *hs, const uint8_t *data, size_t length)
{
    struct nbd_option_message option;

    /* The magic is judged as soon as it is there: strangers are not waited for. */
    if (length >= 8 && get_be64(data) != NBD_OPTION_MAGIC) {
        close_session(hs, "an option began with 0x%016" PRIx64 " instead of its magic number",
                      get_be64(data));
        return 0;
    }
    if (length < NBD_OPTION_HEADER_BYTES)
        return 0;
    option.number = get_be32(data + 8);
    option.length = get_be32(data + 12);
    if (option.length > NBD_OPTION_BYTES_MAX) {
        refuse_long_option(hs, option.number, option.length);
        return 0;
    }
    if (length - NBD_OPTION_HEADER_BYTES < option.length)
        return 0;
    TRACE(nbd_option, "option %" PRIu32 " (%s), %" PRIu32 " bytes", option.number,
          nbd_option_name(option.number), option.length);
    option.data = byte_reader_of(data + NBD_OPTION_HEADER_BYTES, option.length);
    if (admit_option(hs, &option))
        handle_option(hs, &option);
    return NBD_OPTION_HEADER_BYTES + option.length;
}

size_t nbd_handshake_input(struct nbd_handshake *hs, const void *data, size_t length)
{
    const uint8_t *bytes = data;
    size_t used = 0;

    while (hs->output.length < OUTPUT_PAUSE) {
        size_t n = 0;

        if (hs->listing) {
            continue_list(hs);
            close_if_no_memory(hs);
            continue;
        }
        if (hs->state == NBD_HANDSHAKE_CLIENT_FLAGS && length - used >= 4) {
            take_client_flags(hs, get_be32(bytes + used));
            n = 4;
        } else if (hs->state == NBD_HANDSHAKE_OPTIONS) {
            n = take_option(hs, bytes + used, length - used);
        }
        close_if_no_memory(hs);
        if (n == 0)
            break;
        used += n;
    }
    /* Anybody on the way could have put it there, to be taken for what was said inside of TLS. */
    if (hs->state == NBD_HANDSHAKE_STARTTLS && used < length)
        close_session(hs, "%zu bytes came behind STARTTLS before TLS was agreed on", length - used);
    return used;
}
