/* SPDX-License-Identifier: BSD-3-Clause */
/* Sessions of the client with scripted servers. */
#include "tests/dialogue/client_session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void session_init(struct session *s)
{
    *s = (struct session){0};
    nbd_client_init(&s->client, &s->remote);
}

void session_fini(struct session *s)
{
    nbd_remote_fini(&s->remote);
    message_free(&s->said);
    message_free(&s->kept);
}

bool session_ended(const struct session *s)
{
    return s->client.state == NBD_CLIENT_DONE || s->client.state == NBD_CLIENT_FAILED;
}

void session_feed(struct session *s, const uint8_t *data, size_t length)
{
    size_t used;

    message_bytes(&s->kept, data, length);
    do {
        uint8_t *copy = malloc(s->kept.length + 1);

        assert_non_null(copy);
        memcpy(copy + 1, s->kept.data, s->kept.length);
        used = nbd_client_input(&s->client, copy + 1, s->kept.length);
        free(copy);
        assert_true(used <= s->kept.length);
        s->kept.length -= used;
        memmove(s->kept.data, s->kept.data + used, s->kept.length);
        if (s->client.output_length == 0)
            continue;
        assert_true(s->client.output_length <= NBD_CLIENT_OUTPUT_MAX);
        message_bytes(&s->said, s->client.output, s->client.output_length);
        s->client.output_length = 0;
    } while (used > 0);
    assert_true(session_ended(s) || s->kept.length < NBD_CLIENT_INPUT_MAX);
}

void session_run(struct session *s, const struct message *m, size_t cut, size_t step)
{
    session_init(s);
    for (size_t at = 0, end = cut; at < m->length; at = end, end += step ? step : m->length) {
        if (end > m->length)
            end = m->length;
        session_feed(s, m->data + at, end - at);
    }
}

void assert_asked(const struct session *s, const char *wanted)
{
    char *text = asked_text(s->said.data, s->said.length);

    assert_string_equal(text, wanted);
    free(text);
}

void assert_learned(const struct session *s, const char *wanted)
{
    char *text = remote_text(&s->remote);

    assert_string_equal(text, wanted);
    free(text);
}

void session_again(struct session *s, const char *script)
{
    struct message m = {0};

    s->said.length = s->kept.length = 0;
    nbd_client_init(&s->client, &s->remote);
    answers_script(&m, script);
    session_feed(s, m.data, m.length);
    message_free(&m);
}

void assert_reason(const struct session *s, const char *part)
{
    if (!strstr(s->client.reason.text, part))
        fail_msg("'%s' is not in '%s'", part, s->client.reason.text);
}
