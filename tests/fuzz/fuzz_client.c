/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: the client that lists exports; the input is what the server says.  Its first two
 * bytes choose whether the list is known from an earlier session, whether it is asked for in TLS
 * (what follows the server's consent is said inside then), and where the rest is cut. Besides not
 * crashing: the client says and learns the same however the bytes arrive, what it says can be read
 * by an independent reader, and what is printed of it is text, and JSON.
 */
#include "nbd/client.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "daemon/list.h"
#include "tests/dialogue/answers.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { RESUMED = 1, TLS = 2 };

struct talk {
    struct nbd_remote remote;
    struct nbd_client client;
    struct message said;
    size_t used;
};

static void require(bool condition)
{
    if (!condition)
        abort();
}

static bool ended(const struct talk *t)
{
    return t->client.state == NBD_CLIENT_DONE || t->client.state == NBD_CLIENT_FAILED;
}

/* Offers [used, end) until no more of it is used. The copy makes reading beyond it visible. */
static void offer(struct talk *t, const uint8_t *data, size_t end)
{
    size_t n;

    do {
        size_t left = end - t->used;
        uint8_t *copy = malloc(left ? left : 1);

        require(copy);
        if (left > 0)
            memcpy(copy, data + t->used, left);
        n = nbd_client_input(&t->client, copy, left);
        free(copy);
        require(n <= left);
        t->used += n;
        if (t->client.state == NBD_CLIENT_STARTTLS)
            nbd_client_secured(&t->client);
        message_bytes(&t->said, t->client.output, t->client.output_length);
        t->client.output_length = 0;
    } while (n > 0);
    require(ended(t) || end - t->used < NBD_CLIENT_INPUT_MAX);
}

static void talk(struct talk *t, unsigned mode, const uint8_t *data, size_t size, size_t cut)
{
    if (mode & RESUMED) {
        require(nbd_remote_add_export(&t->remote, "first", 5) == 0);
        require(nbd_remote_add_export(&t->remote, "second", 6) == 0);
        t->remote.protocol = NBD_PROTOCOL_FIXED_NEWSTYLE;
        t->remote.listed = true;
        t->remote.next = 1;
    }
    nbd_client_init(&t->client, &t->remote);
    t->client.tls = mode & TLS;
    offer(t, data, cut);
    offer(t, data, size);
    if (!ended(t)) {
        nbd_client_hang_up(&t->client);
        require(t->client.state == NBD_CLIENT_FAILED);
    }
    require((t->client.state == NBD_CLIENT_FAILED) == (t->client.reason.text[0] != '\0'));
    require(t->remote.bytes <= NBD_REMOTE_BYTES_MAX);
    require(t->remote.next <= t->remote.export_count);
}

static void require_same(const struct talk *a, const struct talk *b)
{
    char *learned[2] = {remote_text(&a->remote), remote_text(&b->remote)};

    require(a->client.state == b->client.state && a->used == b->used);
    require(a->said.length == b->said.length);
    require(a->said.length == 0 || memcmp(a->said.data, b->said.data, a->said.length) == 0);
    require(strcmp(learned[0], learned[1]) == 0);
    free(learned[0]);
    free(learned[1]);
}

static void require_printable(const struct nbd_remote *remote)
{
    char *text = NULL, *json = NULL;
    size_t length = 0, json_length = 0;
    FILE *out = open_memstream(&text, &length), *json_out = open_memstream(&json, &json_length);
    json_t *parsed;

    require(out && json_out);
    list_print_text(remote, out);
    require(list_print_json(remote, json_out, NULL) == 0);
    fclose(out);
    fclose(json_out);
    require(bytes_are_utf8(text, length));
    for (size_t i = 0; i < length; i++)
        require(text[i] == '\n' || (text[i] & 0x80) || (text[i] >= 0x20 && text[i] < 0x7f));
    parsed = json_loadb(json, json_length, 0, NULL);
    require(parsed && json_array_size(json_object_get(parsed, "exports")) == remote->export_count);
    json_decref(parsed);
    free(text);
    free(json);
}

static void fini(struct talk *t)
{
    nbd_remote_fini(&t->remote);
    require(t->remote.bytes == 0);
    message_free(&t->said);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct talk whole = {0}, cut = {0};
    char *asked;

    if (size < 2)
        return 0;
    talk(&whole, data[0], data + 2, size - 2, size - 2);
    talk(&cut, data[0], data + 2, size - 2, min_u64(data[1], size - 2));
    require_same(&whole, &cut);
    asked = asked_text(whole.said.data, whole.said.length);
    require(!strstr(asked, "\nBAD"));
    free(asked);
    require_printable(&whole.remote);
    fini(&whole);
    fini(&cut);
    return 0;
}
