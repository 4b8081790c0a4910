/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The list of a server's exports as JSON.  A key is left out when the server did not tell its
 * value. JSON strings are UTF-8; a text that is not is given with its bytes as \xNN, as in
 * messages.
 */
#include "daemon/list.h"

#include "base/bytes.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>

static const char *const protocol_words[] = {
    [NBD_PROTOCOL_OLDSTYLE] = "oldstyle",
    [NBD_PROTOCOL_NEWSTYLE] = "newstyle",
    [NBD_PROTOCOL_FIXED_NEWSTYLE] = "newstyle-fixed",
};

/* NULL: out of memory, as everywhere here; jansson passes it on. */
static json_t *string_of(const struct nbd_text *text)
{
    size_t room = 4 * text->length + 1;
    json_t *string;
    char *shown;

    if (bytes_are_utf8(text->data, text->length))
        return json_stringn(text->data, text->length);
    shown = malloc(room);
    if (!shown)
        return NULL;
    string = json_string(error_escape(shown, room, text->data, text->length));
    free(shown);
    return string;
}

static json_t *flag_words_of(uint16_t flags)
{
    json_t *words = json_array();
    int err = words ? 0 : -1;

    for (unsigned bit = 0; bit < 16 && err == 0; bit++)
        if (flags & 1U << bit && list_flag_word(bit))
            err = json_array_append_new(words, json_string(list_flag_word(bit)));
    if (err == 0)
        return words;
    json_decref(words);
    return NULL;
}

static json_t *contexts_of(const struct nbd_remote_export *e)
{
    json_t *contexts = json_array();
    int err = contexts ? 0 : -1;

    for (size_t i = 0; i < e->context_count && err == 0; i++)
        err = json_array_append_new(contexts, string_of(&e->contexts[i]));
    if (err == 0)
        return contexts;
    json_decref(contexts);
    return NULL;
}

static int set_texts(json_t *object, const struct nbd_remote_export *e)
{
    const struct nbd_text *description =
        e->description.length > 0 ? &e->description : &e->info_description;
    int err = json_object_set_new(object, "name", string_of(&e->name));

    if (err == 0 && e->canonical_name.data)
        err = json_object_set_new(object, "canonical-name", string_of(&e->canonical_name));
    if (err == 0 && description->length > 0)
        err = json_object_set_new(object, "description", string_of(description));
    return err;
}

static int set_numbers(json_t *object, const struct nbd_remote_export *e)
{
    int err = 0;

    if (e->examined) {
        err = json_object_set_new(object, "size", json_integer((json_int_t)e->size));
        if (err == 0)
            err = json_object_set_new(object, "flags", json_integer(e->flags));
        if (err == 0)
            err = json_object_set_new(object, "flag-words", flag_words_of(e->flags));
    }
    if (err == 0 && e->block_min) {
        err = json_object_set_new(object, "min-block", json_integer(e->block_min));
        if (err == 0)
            err = json_object_set_new(object, "opt-block", json_integer(e->block_preferred));
        if (err == 0)
            err = json_object_set_new(object, "max-block", json_integer(e->block_max));
    }
    return err;
}

static json_t *export_of(const struct nbd_remote *remote, const struct nbd_remote_export *e)
{
    json_t *object = json_object();
    int err = object ? set_texts(object, e) : -1;

    if (err == 0)
        err = set_numbers(object, e);
    if (err == 0)
        err = json_object_set_new(object, "transaction-size",
                                  json_integer(remote->extended_headers ? 64 : 32));
    if (err == 0)
        err = json_object_set_new(object, "contexts", contexts_of(e));
    if (err == 0 && e->problem)
        err = json_object_set_new(object, "problem", json_string(e->problem));
    if (err == 0)
        return object;
    json_decref(object);
    return NULL;
}

static json_t *exports_of(const struct nbd_remote *remote)
{
    json_t *exports = json_array();
    int err = exports ? 0 : -1;

    for (size_t i = 0; i < remote->export_count && err == 0; i++)
        err = json_array_append_new(exports, export_of(remote, &remote->exports[i]));
    if (err == 0)
        return exports;
    json_decref(exports);
    return NULL;
}

int list_print_json(const struct nbd_remote *remote, FILE *out, struct error *error)
{
    json_t *top = json_object();
    int err =
        top ? json_object_set_new(top, "protocol", json_string(protocol_words[remote->protocol]))
            : -1;

    if (err == 0)
        err = json_object_set_new(top, "structured-replies",
                                  json_boolean(remote->structured_replies));
    if (err == 0)
        err = json_object_set_new(top, "exports", exports_of(remote));
    /* ASCII, so that terminals show it whatever the texts are. */
    if (err == 0)
        err = json_dumpf(top, out, JSON_INDENT(2) | JSON_ENSURE_ASCII);
    json_decref(top);
    if (err == 0)
        fputc('\n', out);
    if (err < 0 && !ferror(out)) /* what cannot be written is the business of who owns `out` */
        return error_set(error, ENOMEM, "Out of memory for the list as JSON");
    return 0;
}
