/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is asked of a server, and what its answers mean.
 *
 * Asking goes in this order: STARTTLS if that is wanted, extended headers, else structured replies,
 * then the list, then for each export its information and metadata contexts, at last ABORT.  A
 * refusal of the list ends the session; a refusal about one export becomes the problem of that
 * export; what is not what the protocol says ends the session at once and nothing more is sent.
 */
#include "nbd/client_step.h"

#include "base/checked.h"
#include "base/trace.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* A server's words in a message. */
#define ECHO_MAX 80
#define PROBLEM_MAX 512

static const struct nbd_client_step starttls_step, extended_step, structured_step, list_step,
    info_step, contexts_step;

void nbd_client_fail(struct nbd_client *c, const char *format, ...)
{
    char text[sizeof(c->reason.text)];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    error_set(&c->reason, EPROTO, "%s", text);
    c->state = NBD_CLIENT_FAILED;
}

bool nbd_client_check_kept(struct nbd_client *c, int err)
{
    if (err == -ENOMEM)
        nbd_client_fail(c, "out of memory for what the server tells");
    else if (err < 0)
        nbd_client_fail(c,
                        "the server tells more than is kept of one: up to %d exports, %d metadata "
                        "contexts of one, %d MiB in all",
                        NBD_REMOTE_EXPORTS_MAX, NBD_REMOTE_CONTEXTS_MAX,
                        (int)(NBD_REMOTE_BYTES_MAX / MIB));
    return err == 0;
}

bool nbd_client_check_size(struct nbd_client *c, uint64_t size)
{
    if (size > OFFSET_MAX)
        nbd_client_fail(c,
                        "the server tells of an export of %" PRIu64 " bytes; at most %" PRIu64
                        " are possible",
                        size, OFFSET_MAX);
    return size <= OFFSET_MAX;
}

static struct nbd_remote_export *current(const struct nbd_client *c)
{
    return &c->remote->exports[c->remote->next];
}

/* The name of the export that is being asked about, for messages. */
static const char *current_name(const struct nbd_client *c, char echo[static ECHO_MAX])
{
    const struct nbd_text *name = &current(c)->name;

    return error_escape(echo, ECHO_MAX, name->data, name->length);
}

static bool check_string(struct nbd_client *c, const char *what, size_t length)
{
    if (length > NBD_STRING_MAX)
        nbd_client_fail(c, "the server sent %s of %zu bytes; at most %d are allowed", what, length,
                        NBD_STRING_MAX);
    return length <= NBD_STRING_MAX;
}

/* ---- Asking ---- */

static struct byte_writer begin_option(struct nbd_client *c, uint32_t option, size_t length)
{
    struct byte_writer w =
        byte_writer_of(c->output + c->output_length, sizeof(c->output) - c->output_length);

    TRACE(nbd_client_option, "option %s, %zu bytes", nbd_option_name(option), length);
    byte_writer_be64(&w, NBD_OPTION_MAGIC);
    byte_writer_be32(&w, option);
    byte_writer_be32(&w, (uint32_t)length);
    return w;
}

/* Nothing that is sent is larger than the buffer. */
static void end_option(struct nbd_client *c, const struct byte_writer *w)
{
    assert(!w->failed);
    c->output_length = (size_t)(w->data - c->output);
}

void nbd_client_send_option(struct nbd_client *c, uint32_t option)
{
    struct byte_writer w = begin_option(c, option, 0);

    end_option(c, &w);
}

static void begin_step(struct nbd_client *c, const struct nbd_client_step *step)
{
    c->step = step;
    c->replies = 0;
}

static void ask(struct nbd_client *c, const struct nbd_client_step *step)
{
    nbd_client_send_option(c, step->option);
    begin_step(c, step);
}

void nbd_client_ask_first(struct nbd_client *c)
{
    ask(c, c->tls ? &starttls_step : &extended_step);
}

void nbd_client_secured(struct nbd_client *client)
{
    client->state = NBD_CLIENT_OPTIONS;
    ask(client, &extended_step);
}

bool nbd_client_is_fresh_in_tls(const struct nbd_client *c)
{
    return c->tls && c->step == &extended_step;
}

static void put_name(struct byte_writer *w, const struct nbd_text *name)
{
    byte_writer_be32(w, (uint32_t)name->length);
    byte_writer_put(w, name->data, name->length);
}

static void ask_info(struct nbd_client *c)
{
    static const uint16_t wanted[] = {NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE};
    const struct nbd_text *name = &current(c)->name;
    struct byte_writer w = begin_option(c, NBD_OPT_INFO, 4 + name->length + 2 + sizeof(wanted));

    put_name(&w, name);
    byte_writer_be16(&w, ARRAY_SIZE(wanted));
    for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
        byte_writer_be16(&w, wanted[i]);
    end_option(c, &w);
    c->asked_info = true;
    c->told_size = false;
    begin_step(c, &info_step);
}

/* Without queries, so that all contexts are listed. */
static void ask_contexts(struct nbd_client *c)
{
    const struct nbd_text *name = &current(c)->name;
    struct byte_writer w = begin_option(c, NBD_OPT_LIST_META_CONTEXT, 4 + name->length + 4);

    put_name(&w, name);
    byte_writer_be32(&w, 0);
    end_option(c, &w);
    c->asked_contexts = true;
    begin_step(c, &contexts_step);
}

/* Asks about the first export that is not done yet, or ends the session. */
static void ask_next(struct nbd_client *c)
{
    struct nbd_remote *remote = c->remote;

    while (remote->next < remote->export_count) {
        if (!c->asked_info && !c->asked_contexts)
            nbd_remote_forget(remote, current(c)); /* what an earlier session got half way */
        if (!c->asked_info && !c->no_info) {
            ask_info(c);
            return;
        }
        if (!c->asked_contexts && !c->no_contexts && remote->structured_replies) {
            ask_contexts(c);
            return;
        }
        c->asked_info = c->asked_contexts = false;
        c->examined++;
        remote->next++;
    }
    nbd_client_send_option(c, NBD_OPT_ABORT);
    c->state = NBD_CLIENT_DONE;
}

static void ask_list(struct nbd_client *c)
{
    if (c->remote->listed)
        ask_next(c);
    else
        ask(c, &list_step);
}

/* ---- Answers ---- */

static void starttls_agreed(struct nbd_client *c)
{
    c->state = NBD_CLIENT_STARTTLS;
}

static void starttls_refused(struct nbd_client *c, uint32_t type, const char *said)
{
    nbd_client_send_option(c, NBD_OPT_ABORT);
    if (type == NBD_REP_ERR_UNSUP)
        nbd_client_fail(c, "the server does not support TLS (ERR_UNSUP)%s", said);
    else
        nbd_client_fail(c, "the server refuses to use TLS (%s)%s", nbd_option_reply_name(type),
                        said);
}

static void extended_agreed(struct nbd_client *c)
{
    c->remote->extended_headers = true;
    c->remote->structured_replies = true; /* comes with it */
    ask_list(c);
}

static void extended_refused(struct nbd_client *c, uint32_t type, const char *said)
{
    ask(c, &structured_step);
}

static void structured_agreed(struct nbd_client *c)
{
    c->remote->structured_replies = true;
    ask_list(c);
}

static void structured_refused(struct nbd_client *c, uint32_t type, const char *said)
{
    ask_list(c);
}

static void take_server(struct nbd_client *c, struct byte_reader *data)
{
    struct nbd_remote *remote = c->remote;
    size_t size = data->left, length = byte_reader_be32(data);
    const uint8_t *name = byte_reader_take(data, length);
    int err;

    if (data->failed) {
        nbd_client_fail(c,
                        "the server lists an export with %zu bytes that should hold a name of %zu",
                        size, length);
        return;
    }
    if (!check_string(c, "an export name", length) ||
        !check_string(c, "an export description", data->left))
        return;
    err = nbd_remote_add_export(remote, name, length);
    if (err == 0)
        err = nbd_remote_set_text(remote, &remote->exports[remote->export_count - 1].description,
                                  data->data, data->left);
    nbd_client_check_kept(c, err);
}

static void list_ended(struct nbd_client *c)
{
    c->remote->listed = true;
    ask_next(c);
}

static void list_refused(struct nbd_client *c, uint32_t type, const char *said)
{
    nbd_client_send_option(c, NBD_OPT_ABORT);
    if (type == NBD_REP_ERR_TLS_REQD)
        nbd_client_fail(c, "the server wants TLS first (ERR_TLS_REQD)%s", said);
    else if (type == NBD_REP_ERR_UNSUP)
        nbd_client_fail(c, "the server does not support export lists (ERR_UNSUP)%s", said);
    else
        nbd_client_fail(c, "the server refuses to list its exports (%s)%s",
                        nbd_option_reply_name(type), said);
}

static void take_info_export(struct nbd_client *c, struct byte_reader *data)
{
    struct nbd_remote_export *e = current(c);
    uint64_t size = byte_reader_be64(data);

    if (!nbd_client_check_size(c, size))
        return;
    c->told_size = true;
    e->size = size;
    e->flags = byte_reader_be16(data);
}

static void take_info_block_size(struct nbd_client *c, struct byte_reader *data)
{
    struct nbd_remote_export *e = current(c);
    uint32_t min = byte_reader_be32(data), preferred = byte_reader_be32(data);
    uint32_t max = byte_reader_be32(data);
    char echo[ECHO_MAX];

    if (!is_power_of_two(min) || min > 64 * KIB || !is_power_of_two(preferred) || preferred < min ||
        max < preferred) {
        nbd_client_fail(c,
                        "the server tells impossible block sizes of export '%s': minimum %" PRIu32
                        ", preferred %" PRIu32 ", maximum %" PRIu32,
                        current_name(c, echo), min, preferred, max);
        return;
    }
    e->block_min = min;
    e->block_preferred = preferred;
    e->block_max = max;
}

static void take_info_text(struct nbd_client *c, struct nbd_text *text, const char *what,
                           const struct byte_reader *data)
{
    if (check_string(c, what, data->left))
        nbd_client_check_kept(c, nbd_remote_set_text(c->remote, text, data->data, data->left));
}

/* Whether the item about the current export has the size of its type. */
static bool check_info(struct nbd_client *c, uint16_t info, const struct byte_reader *data)
{
    static const size_t sizes[] = {[NBD_INFO_EXPORT] = 10, [NBD_INFO_BLOCK_SIZE] = 12};
    size_t wanted = info < ARRAY_SIZE(sizes) ? sizes[info] : 0;
    char echo[ECHO_MAX];

    if (data->failed)
        nbd_client_fail(c, "the server sent an item without a type about export '%s'",
                        current_name(c, echo));
    else if (wanted > 0 && data->left != wanted)
        nbd_client_fail(c,
                        "the server sent an item %s of %zu bytes about export '%s'; %zu are right",
                        nbd_info_name(info), data->left, current_name(c, echo), wanted);
    return c->state != NBD_CLIENT_FAILED;
}

static void take_info(struct nbd_client *c, struct byte_reader *data)
{
    struct nbd_remote_export *e = current(c);
    uint16_t info = byte_reader_be16(data);

    if (!check_info(c, info, data))
        return;
    switch (info) {
    case NBD_INFO_EXPORT:
        take_info_export(c, data);
        break;
    case NBD_INFO_NAME:
        take_info_text(c, &e->canonical_name, "an export name", data);
        break;
    case NBD_INFO_DESCRIPTION:
        take_info_text(c, &e->info_description, "an export description", data);
        break;
    case NBD_INFO_BLOCK_SIZE:
        take_info_block_size(c, data);
        break;
    default: /* to be ignored, as the protocol says */
        break;
    }
}

static void info_ended(struct nbd_client *c)
{
    char echo[ECHO_MAX];

    if (!c->told_size) {
        nbd_client_fail(c, "the server tells of export '%s' without its size",
                        current_name(c, echo));
        return;
    }
    current(c)->examined = true;
    ask_next(c);
}

/* Notes what the server does not tell of one export, and goes on. */
static void note_problem(struct nbd_client *c, const char *what, uint32_t type, const char *said)
{
    char text[PROBLEM_MAX];

    snprintf(text, sizeof(text), "the server refuses to tell %s (%s)%s", what,
             nbd_option_reply_name(type), said);
    if (nbd_client_check_kept(c, nbd_remote_set_problem(c->remote, current(c), text)))
        ask_next(c);
}

static void info_refused(struct nbd_client *c, uint32_t type, const char *said)
{
    nbd_remote_forget(c->remote, current(c));
    if (type == NBD_REP_ERR_UNSUP) {
        c->no_info = true;
        ask_next(c);
    } else {
        note_problem(c, "more of it", type, said);
    }
}

/* The number of a context is of use only to who chooses it. */
static void take_context(struct nbd_client *c, struct byte_reader *data)
{
    size_t size = data->left;
    char echo[ECHO_MAX];

    byte_reader_be32(data);
    if (data->failed || data->left == 0)
        nbd_client_fail(
            c, "the server lists a metadata context of export '%s' in %zu bytes, without a name",
            current_name(c, echo), size);
    else if (check_string(c, "a metadata context name", data->left))
        nbd_client_check_kept(
            c, nbd_remote_add_context(c->remote, current(c), data->data, data->left));
}

static void contexts_refused(struct nbd_client *c, uint32_t type, const char *said)
{
    if (type == NBD_REP_ERR_UNSUP) {
        c->no_contexts = true;
        ask_next(c);
    } else {
        note_problem(c, "its metadata contexts", type, said);
    }
}

static const struct nbd_client_step starttls_step = {
    .option = NBD_OPT_STARTTLS,
    .acknowledged = starttls_agreed,
    .refused = starttls_refused,
};
static const struct nbd_client_step extended_step = {
    .option = NBD_OPT_EXTENDED_HEADERS,
    .acknowledged = extended_agreed,
    .refused = extended_refused,
};
static const struct nbd_client_step structured_step = {
    .option = NBD_OPT_STRUCTURED_REPLY,
    .acknowledged = structured_agreed,
    .refused = structured_refused,
};
static const struct nbd_client_step list_step = {
    .option = NBD_OPT_LIST,
    .item = NBD_REP_SERVER,
    .take_item = take_server,
    .acknowledged = list_ended,
    .refused = list_refused,
};
static const struct nbd_client_step info_step = {
    .per_export = true,
    .option = NBD_OPT_INFO,
    .item = NBD_REP_INFO,
    .take_item = take_info,
    .acknowledged = info_ended,
    .refused = info_refused,
};
static const struct nbd_client_step contexts_step = {
    .per_export = true,
    .option = NBD_OPT_LIST_META_CONTEXT,
    .item = NBD_REP_META_CONTEXT,
    .take_item = take_context,
    .acknowledged = ask_next,
    .refused = contexts_refused,
};
