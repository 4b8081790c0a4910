/* SPDX-License-Identifier: BSD-3-Clause */
/* Replaying dialogues. */
#include "tests/dialogue/dialogue.h"

#include "tests/dialogue/transcript.h"
#include "tests/support/support.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void server_session_collect(struct server_session *s)
{
    message_bytes(&s->said, s->hs.output.data, s->hs.output.length);
    s->hs.output.length = 0;
}

void server_session_feed(struct server_session *s, const uint8_t *data, size_t length)
{
    size_t used = 0, n;

    message_bytes(&s->kept, data, length);
    do {
        /* A copy of the exact size, so that reading past its end is seen. */
        size_t left = s->kept.length - used;
        uint8_t *copy = malloc(left ? left : 1);

        assert_non_null(copy);
        if (left > 0)
            memcpy(copy, s->kept.data + used, left);
        n = nbd_handshake_input(&s->hs, copy, left);
        free(copy);
        assert_true(n <= left);
        used += n;
        server_session_collect(s);
    } while (n > 0 || s->hs.listing);
    memmove(s->kept.data, s->kept.data + used, s->kept.length - used);
    s->kept.length -= used;
}

void server_session_init(struct server_session *s, const struct nbd_exports *exports, bool oldstyle,
                         bool stopping)
{
    *s = (struct server_session){0};
    nbd_handshake_init(&s->hs, exports, NULL, oldstyle);
    s->hs.shutting_down = stopping;
    nbd_handshake_start(&s->hs);
    server_session_collect(s);
}

void server_session_fini(struct server_session *s)
{
    nbd_handshake_fini(&s->hs);
    message_free(&s->said);
    message_free(&s->kept);
}

static void print_end(const struct server_session *s, FILE *out)
{
    static const char *const modes[] = {"simple", "structured", "extended"};
    const struct nbd_session *session = &s->hs.session;

    if (s->hs.state == NBD_HANDSHAKE_STARTTLS)
        fputs(" -> TLS", out);
    if (s->hs.state == NBD_HANDSHAKE_CLOSED)
        fprintf(out, " -> closed%s", s->hs.reason.text[0] ? "" : " quietly");
    if (s->hs.state != NBD_HANDSHAKE_DONE)
        return;
    fprintf(out, " -> transmission %s, %zu left", s->hs.chosen->name, s->kept.length);
    if (session->mode != NBD_MODE_SIMPLE || session->selected)
        fprintf(out, ", %s 0x%" PRIx64, modes[session->mode],
                nbd_session_contexts(session, s->hs.chosen));
}

char *server_session_result(const struct server_session *s, bool oldstyle)
{
    char *text = transcript_of(s->said.data, s->said.length, oldstyle), *result;
    size_t length;
    FILE *out = open_memstream(&result, &length);

    if (!out)
        test_die("out of memory");
    fputs(text, out);
    print_end(s, out);
    fclose(out);
    free(text);
    return result;
}

/* Replays in pieces: the first ends at `cut`, the others (if `step`) are so long. */
static void replay(const struct nbd_exports *exports, const struct dialogue *d,
                   const struct message *m, size_t cut, size_t step)
{
    struct server_session s;
    char *text;

    server_session_init(&s, exports, d->oldstyle, d->stopping);
    s.hs.tls = d->tls;
    for (size_t at = 0, end = cut; at < m->length; at = end, end += step ? step : m->length) {
        if (end > m->length)
            end = m->length;
        server_session_feed(&s, m->data + at, end - at);
    }
    text = server_session_result(&s, d->oldstyle);
    assert_string_equal(text, d->server);
    free(text);
    server_session_fini(&s);
}

static void check_dialogue(const struct nbd_exports *exports, const struct dialogue *d)
{
    struct message m = {0};

    message_script(&m, d->client);
    replay(exports, d, &m, m.length, 0);
    /* Long ones only differ in the length of their data. */
    if (m.length < 2000) {
        replay(exports, d, &m, 1, 1);
        for (size_t cut = 1; cut < m.length; cut++)
            replay(exports, d, &m, cut, 0);
    }
    message_free(&m);
}

void check_dialogues(struct nbd_exports *exports, const struct dialogue *table, size_t count)
{
    struct nbd_export *default_export = exports->default_export;

    for (size_t i = 0; i < count; i++) {
        exports->default_export = table[i].no_default ? NULL : default_export;
        check_dialogue(exports, &table[i]);
    }
    exports->default_export = default_export;
}
