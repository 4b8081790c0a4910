/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * LIST_META_CONTEXT and SET_META_CONTEXT.
 *
 * Both come with the same data: an export's name and queries.  The data is read twice: once to see
 * that all of it is well formed, and then, query by query, to collect the set of contexts that they
 * name; so the answer is either an error or whole.  Queries are bounded by the data of an option.
 */
#include "nbd/context.h"
#include "nbd/option.h"

#include <inttypes.h>

struct queries {
    const uint8_t *name; /* of the export */
    uint32_t name_length, count;
    struct byte_reader data; /* the queries */
};

static void answer_broken(struct nbd_handshake *hs, const struct nbd_option_message *option,
                          const char *what)
{
    nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                     "the lengths in %s do not agree: with %" PRIu32 " bytes of data, %s",
                     nbd_option_name(option->number), option->length, what);
}

/* Whether a query is a string of the protocol; if not, the option has been answered. */
static bool check_query(struct nbd_handshake *hs, const struct nbd_option_message *option,
                        const uint8_t *query, uint32_t length)
{
    char echo[NBD_ECHO_MAX];

    if (length > NBD_STRING_MAX) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "a query for metadata contexts has %" PRIu32
                         " bytes; at most %d are allowed",
                         length, NBD_STRING_MAX);
        return false;
    }
    if (bytes_are_utf8(query, length))
        return true;
    nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                     "the query '%s' for metadata contexts is not UTF-8 text without NUL bytes",
                     error_escape(echo, sizeof(echo), query, length));
    return false;
}

static bool check_queries(struct nbd_handshake *hs, const struct nbd_option_message *option,
                          const struct queries *queries)
{
    struct byte_reader data = queries->data;

    for (uint32_t i = 0; i < queries->count; i++) {
        uint32_t length = byte_reader_be32(&data);
        const uint8_t *query = byte_reader_take(&data, length);

        if (data.failed) {
            answer_broken(hs, option, "not all of its queries are there");
            return false;
        }
        if (!check_query(hs, option, query, length))
            return false;
    }
    if (data.left == 0)
        return true;
    answer_broken(hs, option, "there are more than its queries take");
    return false;
}

static bool take_queries(struct nbd_handshake *hs, struct nbd_option_message *option,
                         struct queries *ret)
{
    struct byte_reader *data = &option->data;

    ret->name_length = byte_reader_be32(data);
    ret->name = byte_reader_take(data, ret->name_length);
    ret->count = byte_reader_be32(data);
    ret->data = *data;
    if (!data->failed)
        return check_queries(hs, option, ret);
    answer_broken(hs, option, "it ends before the number of its queries");
    return false;
}

static uint64_t collect(const struct nbd_export *nbd_export, const struct queries *queries,
                        bool list)
{
    struct byte_reader data = queries->data;
    uint64_t set = 0;

    if (queries->count == 0)
        return list ? nbd_context_all(nbd_export) : 0;
    for (uint32_t i = 0; i < queries->count; i++) {
        uint32_t length = byte_reader_be32(&data);

        set |= nbd_context_query(nbd_export, byte_reader_take(&data, length), length, list);
    }
    return set;
}

/* A list gives no ids: they are those of a selection. */
static void answer_set(struct nbd_handshake *hs, uint32_t option,
                       const struct nbd_export *nbd_export, uint64_t set)
{
    char name[NBD_STRING_MAX];

    for (unsigned i = 0; i < NBD_CONTEXTS_MAX; i++) {
        struct byte_writer w;
        size_t length;

        if (!(set >> i & 1))
            continue;
        length = nbd_context_name(nbd_export, i, name);
        w = nbd_option_reply(hs, option, NBD_REP_META_CONTEXT, 4 + length);
        byte_writer_be32(&w, option == NBD_OPT_SET_META_CONTEXT ? i : 0);
        byte_writer_put(&w, name, length);
    }
    nbd_option_ack(hs, option);
}

void nbd_option_contexts(struct nbd_handshake *hs, struct nbd_option_message *option)
{
    bool list = option->number == NBD_OPT_LIST_META_CONTEXT;
    const struct nbd_export *nbd_export;
    struct queries queries;
    uint64_t set;

    /* A selection replaces the one before it even when it fails. */
    if (!list)
        hs->session.selected = 0;
    if (!list && hs->session.mode == NBD_MODE_SIMPLE) {
        nbd_option_error(hs, option->number, NBD_REP_ERR_INVALID,
                         "metadata contexts need structured replies or extended headers, which "
                         "must be negotiated before SET_META_CONTEXT");
        return;
    }
    if (!take_queries(hs, option, &queries))
        return;
    nbd_export = nbd_option_export(hs, option->number, queries.name, queries.name_length);
    if (!nbd_export)
        return;
    set = collect(nbd_export, &queries, list);
    if (!list) {
        hs->session.selected_of = nbd_export;
        hs->session.selected = set;
    }
    answer_set(hs, option->number, nbd_export, set);
}
