/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Every order of options, up to six long, against a model.
 *
 * The model knows three things of a session (the kind of replies, and which contexts of which
 * export were selected last) and tells for each option what must be answered and what the session
 * is then.  The server is walked through all orders as a tree: its state is copied at each fork, so
 * that every option of every order is handled once.  Whatever else the server might remember of an
 * order would show as an answer that differs from the model's.
 */
#include "base/sanitize.h"
#include "tests/dialogue/dialogue.h"
#include "tests/dialogue/transcript.h"
#include "tests/support/support.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Sanitizers take ten times as long. */
#ifdef SANITIZE_ADDRESS
#define ORDER_MAX 5
#else
#define ORDER_MAX 6
#endif
#define VARIANT_ORDER_MAX 3
/* One whole order in so many is sent again in one piece, and byte by byte. */
#define RESENT_ONE_IN 509
#define ANSWER_ROOM 8192
#define TRANSCRIPT_MAX 512

/* ---- The model ---- */

enum export_index { A, B, NONE };
enum mode { SIMPLE, STRUCTURED, EXTENDED };

struct model {
    enum mode mode;
    enum export_index selected_of;
    unsigned selected; /* 1 allocation, 2 depth */
};
#define MODELS (3 * 3 * 4)

static unsigned model_index(const struct model *m)
{
    return (m->mode * 3 + m->selected_of) * 4 + m->selected;
}

/* What surrounds a session. */
struct world {
    const char *flags; /* script */
    bool zeroes;       /* they follow the answer to EXPORT_NAME */
    bool stopping;
};

enum outcome { GOES_ON, TRANSMITS, CLOSES };

enum option_kind {
    LIST,
    ABORT,
    RAISE, /* to the mode `argument` */
    ASK,   /* INFO about the export `argument` */
    GO,
    NAME,
    SELECT, /* contexts `contexts` of the export `argument` */
    BREAK,  /* a selection that is malformed */
    LIST_CONTEXTS,
    REFUSED, /* with `error` */
};

struct option {
    const char *script;
    const char *name; /* in transcripts */
    enum option_kind kind;
    int argument;
    unsigned contexts;
    const char *error;
};

static const struct option options[] = {
    {"structured", "STRUCTURED_REPLY", RAISE, STRUCTURED, 0, NULL},
    {"extended", "EXTENDED_HEADERS", RAISE, EXTENDED, 0, NULL},
    {"set a base:allocation", "SET_META_CONTEXT", SELECT, A, 1, NULL},
    {"set b qemu:allocation-depth base:allocation", "SET_META_CONTEXT", SELECT, B, 3, NULL},
    {"set a base: x-y:z", "SET_META_CONTEXT", SELECT, A, 0, NULL},
    {"set c base:allocation", "SET_META_CONTEXT", SELECT, NONE, 0, NULL},
    {"option 10 14; hex 0000000161000000000000000000", "SET_META_CONTEXT", BREAK, 0, 0, NULL},
    {"listmeta b", "LIST_META_CONTEXT", LIST_CONTEXTS, B, 3, NULL},
    {"list", "LIST", LIST, 0, 0, NULL},
    {"info a", "INFO", ASK, A, 0, NULL},
    {"info b", "INFO", ASK, B, 0, NULL},
    {"go c", "GO", GO, NONE, 0, NULL},
    {"option 5", "STARTTLS", REFUSED, 0, 0, "ERR_POLICY"},
    {"option 77 3; hex 494841", "unknown", REFUSED, 0, 0, "ERR_UNSUP"},
    {"go a", "GO", GO, A, 0, NULL},
    {"go b", "GO", GO, B, 0, NULL},
    {"name a", "EXPORT_NAME", NAME, A, 0, NULL},
    {"name b", "EXPORT_NAME", NAME, B, 0, NULL},
    {"name c", "EXPORT_NAME", NAME, NONE, 0, NULL},
    {"abort", "ABORT", ABORT, 0, 0, NULL},
};
#define OPTIONS ARRAY_SIZE(options)

static const char *const context_names[] = {"base:allocation", "qemu:allocation-depth"};
static const unsigned sizes[] = {[A] = 1000, [B] = 77};
static const unsigned base_flags[] = {[A] = 0x501, [B] = 0x503};

/* What the model says comes of an option. */
struct prediction {
    char answer[TRANSCRIPT_MAX]; /* items, each after "; " */
    enum outcome outcome;
    enum export_index chosen; /* TRANSMITS */
    struct model after;
};

__attribute__((format(printf, 2, 3))) static void say(struct prediction *p, const char *format, ...)
{
    size_t length = strlen(p->answer);
    va_list args;

    va_start(args, format);
    vsnprintf(p->answer + length, sizeof(p->answer) - length, format, args);
    va_end(args);
}

static unsigned flags_of(const struct model *m, enum export_index which)
{
    bool contexts = m->selected_of == which && m->selected != 0;

    return base_flags[which] | (m->mode != SIMPLE ? 0x80U : 0) |
           (m->mode == EXTENDED && contexts ? 0x1000U : 0);
}

static void predict_raise(const struct option *o, struct prediction *p)
{
    enum mode mode = (enum mode)o->argument;

    if (p->after.mode == mode)
        say(p, "; %s ERR_INVALID", o->name);
    else if (p->after.mode == EXTENDED)
        say(p, "; %s ERR_EXT_HEADER_REQD", o->name);
    else
        say(p, "; %s ACK", o->name);
    if (p->after.mode < mode)
        p->after.mode = mode;
}

static void predict_go(const struct option *o, struct prediction *p)
{
    enum export_index which = (enum export_index)o->argument;

    if (which == NONE) {
        say(p, "; %s ERR_UNKNOWN", o->name);
        return;
    }
    say(p, "; %s INFO EXPORT %u 0x%x", o->name, sizes[which], flags_of(&p->after, which));
    say(p, "; %s INFO BLOCK_SIZE 1 4096 33554432; %s ACK", o->name, o->name);
    if (o->kind == GO) {
        p->outcome = TRANSMITS;
        p->chosen = which;
    }
}

static void predict_name(const struct option *o, const struct world *world, struct prediction *p)
{
    enum export_index which = (enum export_index)o->argument;

    p->outcome = CLOSES;
    if (which == NONE || p->after.mode == EXTENDED)
        return;
    p->outcome = TRANSMITS;
    p->chosen = which;
    say(p, "; export %u 0x%x%s", sizes[which], flags_of(&p->after, which),
        world->zeroes ? " zeroes" : "");
}

static void say_contexts(const struct option *o, bool ids, struct prediction *p)
{
    for (unsigned i = 0; i < ARRAY_SIZE(context_names); i++) {
        if (o->contexts >> i & 1)
            say(p, "; %s META_CONTEXT %u '%s'", o->name, ids ? i : 0, context_names[i]);
    }
    say(p, "; %s ACK", o->name);
}

static void predict_select(const struct option *o, struct prediction *p)
{
    p->after.selected_of = NONE;
    p->after.selected = 0;
    if (o->kind == BREAK || p->after.mode == SIMPLE) {
        say(p, "; %s ERR_INVALID", o->name);
    } else if (o->argument == NONE) {
        say(p, "; %s ERR_UNKNOWN", o->name);
    } else {
        if (o->contexts)
            p->after.selected_of = (enum export_index)o->argument;
        p->after.selected = o->contexts;
        say_contexts(o, true, p);
    }
}

static void predict(const struct option *o, const struct world *world, const struct model *before,
                    struct prediction *p)
{
    *p = (struct prediction){.outcome = GOES_ON, .after = *before};
    if (o->kind == ABORT) {
        p->outcome = CLOSES;
        say(p, "; ABORT ACK");
    } else if (world->stopping && o->kind == NAME) {
        p->outcome = CLOSES;
    } else if (world->stopping) {
        say(p, "; %s ERR_SHUTDOWN", o->name);
    } else if (o->kind == LIST) {
        say(p, "; LIST SERVER 'a'; LIST SERVER 'b' 'the second'; LIST ACK");
    } else if (o->kind == RAISE) {
        predict_raise(o, p);
    } else if (o->kind == ASK || o->kind == GO) {
        predict_go(o, p);
    } else if (o->kind == NAME) {
        predict_name(o, world, p);
    } else if (o->kind == SELECT || o->kind == BREAK) {
        predict_select(o, p);
    } else if (o->kind == LIST_CONTEXTS) {
        say_contexts(o, false, p);
    } else {
        say(p, "; %s %s", o->name, o->error);
    }
}

/* ---- The walk ---- */

/* A prediction with the bytes that have once been found to be what it says. */
struct answer {
    struct prediction prediction;
    uint8_t *bytes; /* NULL: not asked yet */
    size_t length;
};

struct walk {
    struct world world;
    struct nbd_exports exports;
    struct nbd_export a, b;
    struct message sent[OPTIONS];
    struct answer answers[MODELS][OPTIONS];
    struct message greeting;
    unsigned order[ORDER_MAX];
    const struct answer *answered[ORDER_MAX];
    unsigned depth_max;
    uint64_t steps, whole; /* options handled, orders that were walked to their end */
};

static char name_a[] = "a", name_b[] = "b", text_b[] = "the second";

static void fail_order(const struct walk *walk, unsigned depth, const char *got, const char *wanted)
{
    for (unsigned i = 0; i <= depth; i++)
        print_error("%s%s", i ? "; " : "after: ", options[walk->order[i]].script);
    print_error("\nthe server: %s\nthe model:  %s\n", got, wanted);
    fail();
}

/* The first time that the model is in this state: is the answer what it predicts? */
static void learn(const struct walk *walk, struct answer *answer, unsigned depth,
                  const struct nbd_output *output)
{
    struct message said = {0};
    char *text;

    message_bytes(&said, walk->greeting.data, walk->greeting.length);
    message_bytes(&said, output->data, output->length);
    text = transcript_of(said.data, said.length, false);
    assert_memory_equal(text, "greeting", 8);
    if (strcmp(text + 8, answer->prediction.answer) != 0)
        fail_order(walk, depth, text + 8, answer->prediction.answer);
    free(text);
    message_free(&said);
    answer->length = output->length;
    answer->bytes = malloc(output->length ? output->length : 1);
    assert_non_null(answer->bytes);
    if (output->length > 0)
        memcpy(answer->bytes, output->data, output->length);
}

/* Where the session is, in the words of the model. */
static void describe_server(const struct walk *walk, const struct nbd_handshake *hs, char *text,
                            size_t size)
{
    if (hs->state == NBD_HANDSHAKE_DONE)
        snprintf(text, size, "transmits %s, mode %d, contexts 0x%llx",
                 hs->chosen == &walk->a   ? "a"
                 : hs->chosen == &walk->b ? "b"
                                          : "what is no export",
                 (int)hs->session.mode,
                 (unsigned long long)nbd_session_contexts(&hs->session, hs->chosen));
    else
        snprintf(text, size, "%s", hs->state == NBD_HANDSHAKE_CLOSED ? "closes" : "goes on");
}

static void describe_model(const struct prediction *p, char *text, size_t size)
{
    const struct model *m = &p->after;

    if (p->outcome == TRANSMITS)
        snprintf(text, size, "transmits %s, mode %d, contexts 0x%x", p->chosen == A ? "a" : "b",
                 (int)m->mode, m->selected_of == p->chosen ? m->selected : 0);
    else
        snprintf(text, size, "%s", p->outcome == CLOSES ? "closes" : "goes on");
}

static void check_end(const struct walk *walk, unsigned depth, const struct prediction *p,
                      const struct nbd_handshake *hs)
{
    char got[80], wanted[80];

    if (p->outcome == GOES_ON && hs->state == NBD_HANDSHAKE_OPTIONS) /* most are, and it is quick */
        return;
    describe_server(walk, hs, got, sizeof(got));
    describe_model(p, wanted, sizeof(wanted));
    if (strcmp(got, wanted) != 0)
        fail_order(walk, depth, got, wanted);
}

/* Sends one option; its answer and what it leads to must be the model's. */
static const struct prediction *step(struct walk *walk, struct nbd_handshake *hs,
                                     const struct model *before, unsigned depth)
{
    unsigned i = walk->order[depth];
    struct answer *answer = &walk->answers[model_index(before)][i];
    const struct message *m = &walk->sent[i];
    const uint8_t *buffer = hs->output.data;

    hs->output.length = 0;
    assert_int_equal(nbd_handshake_input(hs, m->data, m->length), m->length);
    assert_ptr_equal(hs->output.data, buffer); /* shared by the copies */
    if (!answer->bytes) {
        predict(&options[i], &walk->world, before, &answer->prediction);
        learn(walk, answer, depth, &hs->output);
    }
    if (hs->output.length != answer->length ||
        memcmp(hs->output.data, answer->bytes, answer->length) != 0)
        fail_order(walk, depth, "something else than before", answer->prediction.answer);
    check_end(walk, depth, &answer->prediction, hs);
    walk->answered[depth] = answer;
    walk->steps++;
    return &answer->prediction;
}

static void send_in_pieces(const struct walk *walk, const struct message *m, size_t piece,
                           const struct message *wanted)
{
    struct server_session s;

    server_session_init(&s, &walk->exports, false, walk->world.stopping);
    for (size_t at = 0; at < m->length; at += piece)
        server_session_feed(&s, m->data + at, min_u64(piece, m->length - at));
    assert_int_equal(s.said.length, wanted->length);
    assert_memory_equal(s.said.data, wanted->data, wanted->length);
    server_session_fini(&s);
}

/* Sends the whole order again, in one piece and byte by byte. */
static void resend(const struct walk *walk, unsigned depth)
{
    struct message m = {0}, wanted = {0};

    message_script(&m, walk->world.flags);
    message_bytes(&wanted, walk->greeting.data, walk->greeting.length);
    for (unsigned i = 0; i <= depth; i++) {
        const struct message *sent = &walk->sent[walk->order[i]];

        message_bytes(&m, sent->data, sent->length);
        message_bytes(&wanted, walk->answered[i]->bytes, walk->answered[i]->length);
    }
    send_in_pieces(walk, &m, m.length, &wanted);
    send_in_pieces(walk, &m, 1, &wanted);
    message_free(&m);
    message_free(&wanted);
}

static void descend(struct walk *walk, const struct nbd_handshake *hs, const struct model *model,
                    unsigned depth)
{
    if (depth >= ORDER_MAX)
        test_die("an order has at most %d options", ORDER_MAX);
    for (unsigned i = 0; i < OPTIONS; i++) {
        struct nbd_handshake fork = *hs;
        const struct prediction *p;

        walk->order[depth] = i;
        p = step(walk, &fork, model, depth);
        if (p->outcome == GOES_ON && depth + 1 < walk->depth_max)
            descend(walk, &fork, &p->after, depth + 1);
        else if (walk->whole++ % RESENT_ONE_IN == 0)
            resend(walk, depth);
    }
}

/* ---- Setting up ---- */

static void walk_init(struct walk *walk, const struct world *world, unsigned depth_max)
{
    *walk = (struct walk){.world = *world, .depth_max = depth_max};
    walk->a = (struct nbd_export){.name = name_a,
                                  .size = sizes[A],
                                  .flags = (uint16_t)base_flags[A],
                                  .block_min = 1,
                                  .block_preferred = 4096,
                                  .block_max = NBD_PAYLOAD_MAX};
    walk->b = walk->a;
    walk->b.name = name_b;
    walk->b.description = text_b;
    walk->b.size = sizes[B];
    walk->b.flags = (uint16_t)base_flags[B];
    walk->b.allocation_depth = true;
    nbd_exports_init(&walk->exports);
    list_append(&walk->exports.list, &walk->a.link);
    list_append(&walk->exports.list, &walk->b.link);
    for (unsigned i = 0; i < OPTIONS; i++) {
        message_script(&walk->sent[i], options[i].script);
        /* Of the exact size, so that reading past its end is seen. */
        walk->sent[i].data = realloc(walk->sent[i].data, walk->sent[i].length);
        assert_non_null(walk->sent[i].data);
    }
}

static void walk_fini(struct walk *walk)
{
    for (unsigned i = 0; i < OPTIONS; i++)
        message_free(&walk->sent[i]);
    for (unsigned i = 0; i < MODELS * OPTIONS; i++)
        free(walk->answers[i / OPTIONS][i % OPTIONS].bytes);
    message_free(&walk->greeting);
}

/* Begins a session whose output has room for every answer, so that copies of it can share it. */
static void begin(struct walk *walk, struct nbd_handshake *hs)
{
    struct message flags = {0};

    nbd_handshake_init(hs, &walk->exports, NULL, false);
    hs->shutting_down = walk->world.stopping;
    nbd_handshake_start(hs);
    message_bytes(&walk->greeting, hs->output.data, hs->output.length);
    message_script(&flags, walk->world.flags);
    assert_int_equal(nbd_handshake_input(hs, flags.data, flags.length), flags.length);
    assert_int_equal(hs->output.length, walk->greeting.length);
    message_free(&flags);
    hs->output.data = realloc(hs->output.data, ANSWER_ROOM);
    assert_non_null(hs->output.data);
    hs->output.room = ANSWER_ROOM;
}

static unsigned states_met(const struct walk *walk)
{
    unsigned met = 0;

    for (unsigned i = 0; i < MODELS; i++)
        met += walk->answers[i][0].bytes != NULL;
    return met;
}

/* Walks all orders; returns how many states of the model were met on the way. */
static unsigned walk_all(const struct world *world, unsigned depth_max)
{
    static struct walk walk;
    const struct model start = {.mode = SIMPLE, .selected_of = NONE};
    struct nbd_handshake hs;
    unsigned met;

    walk_init(&walk, world, depth_max);
    begin(&walk, &hs);
    descend(&walk, &hs, &start, 0);
    met = states_met(&walk);
    print_message("up to %u options: %llu orders, %llu options\n", depth_max,
                  (unsigned long long)walk.whole, (unsigned long long)walk.steps);
    nbd_handshake_fini(&hs);
    walk_fini(&walk);
    return met;
}

/* Without replies that can carry them no contexts are selected; else none, of a, or of b. */
static void test_every_order(void **state)
{
    const struct world world = {.flags = "flags 3"};

    /* Short ones first: what fails is then as short as can be. */
    for (unsigned depth_max = 1; depth_max < ORDER_MAX; depth_max++)
        walk_all(&world, depth_max);
    assert_int_equal(walk_all(&world, ORDER_MAX), 1 + 3 + 3);
}

static void test_with_zeroes(void **state)
{
    const struct world world = {.flags = "flags 1", .zeroes = true};

    assert_int_equal(walk_all(&world, VARIANT_ORDER_MAX), 1 + 3 + 3);
}

static void test_while_stopping(void **state)
{
    const struct world world = {.flags = "flags 3", .stopping = true};

    assert_int_equal(walk_all(&world, VARIANT_ORDER_MAX), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order),
        cmocka_unit_test(test_with_zeroes),
        cmocka_unit_test(test_while_stopping),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
