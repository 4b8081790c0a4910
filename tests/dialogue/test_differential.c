/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random sessions in every mode, cut at random places: however the bytes arrive, each request gets
 * the same answer, the answers follow the rules, and the disk is the same in the end.
 *
 * The clock stands still, so that nothing is done in another order because it took longer.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "tests/dialogue/rig.h"
#include "tests/support/support.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define DISK_BYTES 262144
#define SESSIONS 150
#define CUTS 5
#define REQUESTS 30

static const struct sys *inner;
static struct sys frozen;

static int64_t frozen_ns(void)
{
    return 1000000000;
}

/* What a client sends, and what it expects to be answered. */
struct session {
    enum nbd_reply_mode mode;
    bool contexts;
    struct rig_options options;
    struct message bytes;
    struct exchange expected; /* without answers */
};

static uint64_t random_length(struct prng *prng)
{
    static const uint32_t limits[] = {1, 16, 512, 4096, 70000, DISK_BYTES};

    return prng_below(prng, (uint64_t)limits[prng_below(prng, ARRAY_SIZE(limits))] + 1);
}

static uint16_t random_flags(struct prng *prng, uint16_t command)
{
    if (prng_percent(prng, 5)) /* mostly refused */
        return (uint16_t)prng_next(prng) & ~NBD_CMD_FLAG_PAYLOAD_LEN;
    switch (command) {
    case NBD_CMD_READ:
        return prng_percent(prng, 30) ? NBD_CMD_FLAG_DF : 0;
    case NBD_CMD_WRITE_ZEROES:
        return prng_percent(prng, 30) ? NBD_CMD_FLAG_NO_HOLE : NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return prng_percent(prng, 30) ? NBD_CMD_FLAG_REQ_ONE : 0;
    default:
        return prng_percent(prng, 30) ? NBD_CMD_FLAG_FUA : 0;
    }
}

/* Appends the request with `data` behind it, and expects its answer. */
static void add_request(struct session *s, const struct nbd_request *request, const uint8_t *data)
{
    exchange_expect(&s->expected, request);
    exchange_request(&s->bytes, s->mode, request);
    message_bytes(&s->bytes, data, request->payload);
}

static void add_filter(struct session *s, struct prng *prng, struct nbd_request *request)
{
    struct nbd_request sent = *request;
    uint8_t payload[24];

    prng_fill(prng, payload, sizeof(payload));
    put_be64(payload, request->length);
    for (size_t i = 8; i < sizeof(payload) && prng_percent(prng, 90); i += 4)
        put_be32(payload + i, (uint32_t)prng_below(prng, 3));
    sent.flags |= NBD_CMD_FLAG_PAYLOAD_LEN;
    sent.length = sent.payload = 8 + prng_below(prng, 13);
    add_request(s, &sent, payload);
    request = &s->expected.answers[s->expected.count - 1].request;
    request->contexts = 0;
    if (nbd_request_filter_bytes(request))
        nbd_request_take_filter(request, payload, s->contexts ? 3 : 0);
}

static void add_random_request(struct session *s, struct prng *prng, uint64_t cookie)
{
    static const uint16_t commands[] = {
        NBD_CMD_READ,         NBD_CMD_READ,         NBD_CMD_READ,         NBD_CMD_WRITE,
        NBD_CMD_WRITE,        NBD_CMD_FLUSH,        NBD_CMD_TRIM,         NBD_CMD_CACHE,
        NBD_CMD_WRITE_ZEROES, NBD_CMD_BLOCK_STATUS, NBD_CMD_BLOCK_STATUS, 99};
    static uint8_t data[DISK_BYTES];
    struct nbd_request request = {.cookie = cookie,
                                  .command = commands[prng_below(prng, ARRAY_SIZE(commands))],
                                  .length = random_length(prng),
                                  .contexts = s->contexts ? 3 : 0};

    request.flags = random_flags(prng, request.command);
    /* A few leave the disk. */
    request.offset =
        prng_below(prng, DISK_BYTES - request.length + (prng_percent(prng, 5) ? 99 : 1));
    if (request.command == NBD_CMD_WRITE)
        request.payload = request.length;
    prng_fill(prng, data, request.payload);
    if (s->mode == NBD_MODE_EXTENDED && request.command == NBD_CMD_BLOCK_STATUS &&
        prng_percent(prng, 50))
        add_filter(s, prng, &request);
    else
        add_request(s, &request, data);
}

static void session_make(struct session *s, struct prng *prng, unsigned number)
{
    static const char *const layouts[] = {NULL, "dh", "hhhd", "dddhhhhhdh"};
    static const char *const modes[] = {"", "structured;", "extended;"};
    char script[128];

    *s = (struct session){.mode = number % 3};
    s->contexts = s->mode != NBD_MODE_SIMPLE && prng_percent(prng, 70);
    s->options = (struct rig_options){.size = DISK_BYTES,
                                      .node_flags = NODE_UNMAP,
                                      .unit = 512U << prng_below(prng, 6),
                                      .layout = layouts[prng_below(prng, ARRAY_SIZE(layouts))],
                                      .allocation_depth = true};
    exchange_init(&s->expected, s->mode);
    snprintf(script, sizeof(script), "flags 3; %s %s go disk", modes[s->mode],
             s->contexts ? "set disk base:allocation qemu:allocation-depth;" : "");
    message_script(&s->bytes, script);
    for (unsigned i = 0; i < REQUESTS; i++)
        add_random_request(s, prng, (uint64_t)i << 56 | i);
    exchange_request(&s->bytes, s->mode, &(struct nbd_request){.command = NBD_CMD_DISC});
}

static void session_free(struct session *s)
{
    message_free(&s->bytes);
    exchange_free(&s->expected);
}

/* ---- One way to send it ---- */

struct outcome {
    struct exchange x;
    uint8_t disk[DISK_BYTES];
};

/* Reads what the server said behind the handshake, which is the same in all outcomes. */
static void read_answers(const struct session *s, const struct message *said, struct outcome *ret)
{
    struct byte_reader in = byte_reader_of(said->data, said->length);
    bool done = false;

    exchange_init(&ret->x, s->mode);
    for (size_t i = 0; i < s->expected.count; i++)
        exchange_expect(&ret->x, &s->expected.answers[i].request);
    byte_reader_skip(&in, 18);
    while (!done && !in.failed) {
        uint32_t option, type;

        byte_reader_skip(&in, 8);
        option = byte_reader_be32(&in);
        type = byte_reader_be32(&in);
        byte_reader_skip(&in, byte_reader_be32(&in));
        done = option == NBD_OPT_GO && type == NBD_REP_ACK;
    }
    assert_false(in.failed);
    if (!exchange_read(&ret->x, &in))
        fail_msg("a reply breaks the rules: %s", ret->x.broken);
    assert_int_equal(in.left, 0);
    assert_int_equal(ret->x.done, ret->x.count);
}

/*
 * The length of the next piece, after which the server has its turn: all that is left, or at random
 * but tiny at the beginning.
 */
static size_t next_piece(const struct session *s, struct prng *prng, unsigned way, size_t at)
{
    static const size_t limits[] = {3, 40, 1000, 30000, DISK_BYTES};
    size_t n, left = s->bytes.length - at;

    if (way == 0)
        return left;
    n = 1 + prng_below(prng, limits[prng_below(prng, at < 500 * way ? 2 : ARRAY_SIZE(limits))]);
    return n < left ? n : left;
}

static void replay(const struct session *s, struct prng *prng, unsigned way, struct outcome *ret)
{
    struct rig rig;
    struct client c;

    rig_init(&rig, &s->options);
    for (size_t i = 0; i < DISK_BYTES; i++)
        rig.disk.data[i] = (uint8_t)(i * 2654435761U >> 13 | 1);
    if (s->options.layout)
        ram_disk_set_layout(&rig.disk, s->options.layout, s->options.unit);
    client_connect(&c, &rig);
    for (size_t at = 0; at < s->bytes.length;) {
        size_t n = next_piece(s, prng, way, at);

        client_send(&c, s->bytes.data + at, n);
        reactor_poll(false);
        client_take(&c);
        at += n;
    }
    client_expect_close(&c);
    read_answers(s, &c.in, ret);
    memcpy(ret->disk, rig.disk.data, DISK_BYTES);
    client_free(&c);
    rig_fini(&rig);
}

static void compare(struct outcome *a, struct outcome *b)
{
    for (size_t i = 0; i < a->x.count; i++) {
        struct answer *one = &a->x.answers[i], *other = &b->x.answers[i];

        assert_string_equal(answer_log(one), answer_log(other));
        assert_string_equal(one->text, other->text);
        assert_int_equal(one->data == NULL, other->data == NULL);
        if (one->data)
            assert_memory_equal(one->data, other->data, one->request.length);
    }
    assert_memory_equal(a->disk, b->disk, DISK_BYTES);
}

static void test_sessions(void **state)
{
    struct prng prng = prng_of(test_seed());
    struct outcome *whole = malloc(sizeof(*whole)), *cut = malloc(sizeof(*cut));

    assert_non_null(whole);
    assert_non_null(cut);
    for (unsigned i = 0; i < SESSIONS; i++) {
        struct session s;

        session_make(&s, &prng, i);
        replay(&s, &prng, 0, whole);
        for (unsigned way = 1; way <= CUTS; way++) {
            replay(&s, &prng, way, cut);
            compare(whole, cut);
            exchange_free(&cut->x);
        }
        exchange_free(&whole->x);
        session_free(&s);
    }
    free(whole);
    free(cut);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sessions),
    };

    inner = sys;
    frozen = *inner;
    frozen.monotonic_ns = frozen_ns;
    sys = &frozen;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
