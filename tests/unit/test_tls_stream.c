/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS as a stream, both ends in one process, with pre-shared keys. */
#include "tls/tls_stream.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "base/log.h"
#include "base/reactor.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define ALICE "00112233445566778899aabbccddeeff"
#define MALLORY "ffeeddccbbaa99887766554433221100"
#define PATIENCE 10000

/* A stream in between that counts, and takes no more than it is told. */
struct meter {
    struct stream stream;
    struct stream *inner;
    unsigned sends;
    size_t sent;
    size_t at_most; /* of one send; 0: nothing is taken */
    bool swallow;   /* what is sent goes nowhere */
    uint8_t flip;   /* what the last byte sent is changed by */
    size_t split;   /* the first record of each side is cut into records of so much; 0: is not */
    bool split_in, split_out; /* that was done */
};

static struct meter *meter_of(struct stream *stream)
{
    return container_of(stream, struct meter, stream);
}

/* Cuts the record that `data` begins with; returns the length of it all, at most `room`. */
static size_t cut_record(uint8_t *data, size_t length, size_t room, size_t split)
{
    size_t left = get_be16(data + 3), at = 0;
    uint8_t *old = malloc(length);
    const uint8_t *from = old + 5;

    assert_non_null(old);
    assert_true(5 + left <= length);
    memcpy(old, data, length);
    for (size_t n; left > 0; left -= n, from += n, at += 5 + n) {
        n = split < left ? split : left;
        assert_true(at + 5 + n <= room);
        memcpy(data + at, old, 3);
        put_be16(data + at + 3, (uint16_t)n);
        memcpy(data + at + 5, from, n);
    }
    length -= (size_t)(from - old);
    assert_true(at + length <= room);
    memcpy(data + at, from, length);
    free(old);
    return at + length;
}

static ssize_t meter_recv(struct stream *stream, const struct iovec *iov, int iovcnt)
{
    struct meter *m = meter_of(stream);
    ssize_t n = m->inner->ops->recv(m->inner, iov, iovcnt);

    if (n <= 0 || m->split == 0 || m->split_in)
        return n;
    m->split_in = true;
    return (ssize_t)cut_record(iov->iov_base, (size_t)n, iov->iov_len, m->split);
}

/* Passes on all of it, with the first record cut. */
static ssize_t send_cut(struct meter *m, const struct iovec *all)
{
    size_t room = 16 * all->iov_len;
    struct iovec cut = {malloc(room), 0};
    ssize_t n;

    assert_non_null(cut.iov_base);
    memcpy(cut.iov_base, all->iov_base, all->iov_len);
    cut.iov_len = cut_record(cut.iov_base, all->iov_len, room, m->split);
    m->split_out = true;
    n = m->inner->ops->send(m->inner, &cut, 1, false);
    assert_int_equal(n, cut.iov_len);
    free(cut.iov_base);
    m->sends++;
    m->sent += all->iov_len;
    return (ssize_t)all->iov_len;
}

static ssize_t meter_send(struct stream *stream, const struct iovec *iov, int iovcnt, bool more)
{
    struct meter *m = meter_of(stream);
    struct iovec part = {iov->iov_base, iov->iov_len};
    ssize_t n;

    assert_int_equal(iovcnt, 1);
    if (m->split > 0 && !m->split_out)
        return send_cut(m, iov);
    if (part.iov_len > m->at_most)
        part.iov_len = m->at_most;
    if (part.iov_len == 0)
        return -EAGAIN;
    ((uint8_t *)part.iov_base)[part.iov_len - 1] ^= m->flip;
    n = m->swallow ? (ssize_t)part.iov_len : m->inner->ops->send(m->inner, &part, 1, more);
    if (n > 0) {
        m->sends++;
        m->sent += (size_t)n;
    }
    return n;
}

static bool meter_pending(struct stream *stream)
{
    return false;
}

static int meter_shutdown(struct stream *stream)
{
    struct stream *inner = meter_of(stream)->inner;

    return inner->ops->shutdown(inner);
}

static void meter_close(struct stream *stream)
{
    struct meter *m = meter_of(stream);

    m->inner->ops->close(m->inner);
    free(m);
}

static const struct stream_ops meter_ops = {
    .recv = meter_recv,
    .send = meter_send,
    .pending = meter_pending,
    .shutdown = meter_shutdown,
    .close = meter_close,
};

static struct meter *meter_new(int fd)
{
    struct meter *m = calloc(1, sizeof(*m));

    assert_non_null(m);
    m->inner = stream_socket_new(fd);
    assert_non_null(m->inner);
    m->stream = (struct stream){.ops = &meter_ops, .fd = fd};
    m->at_most = SIZE_MAX;
    return m;
}

/* ---- Fixture ---- */

struct fixture {
    char *dir, keys[80];
    struct tls_credentials *server_side, *client_side;
    struct meter *meter; /* below the server's */
    struct stream *server, *client;
};

static void write_keys(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0600), 0);
}

static struct tls_credentials *client_credentials(struct fixture *f, const char *name,
                                                  const char *key)
{
    const struct tls_credentials_config config = {
        .kind = TLS_PSK, .endpoint = TLS_CLIENT, .dir = f->dir, .username = name};
    struct tls_credentials *credentials;
    struct error error = {""};
    char path[100], line[100];

    snprintf(path, sizeof(path), "%s/keys.psk", f->dir);
    snprintf(line, sizeof(line), "%s:%s\n", name, key);
    write_keys(path, line);
    if (tls_credentials_new(&config, &credentials, &error) < 0)
        fail_msg("%s", error.text);
    return credentials;
}

static void fixture_init(struct fixture *f)
{
    struct tls_credentials_config config = {.kind = TLS_PSK, .endpoint = TLS_SERVER};
    struct error error = {""};

    *f = (struct fixture){.dir = test_dir_make()};
    assert_int_equal(reactor_init(NULL), 0);
    snprintf(f->keys, sizeof(f->keys), "%s/server.psk", f->dir);
    write_keys(f->keys, "alice:" ALICE "\nbob:" MALLORY "\n");
    config.psk_file = f->keys;
    if (tls_credentials_new(&config, &f->server_side, &error) < 0)
        fail_msg("%s", error.text);
    f->client_side = client_credentials(f, "alice", ALICE);
}

static void close_streams(struct fixture *f)
{
    if (f->server)
        f->server->ops->close(f->server);
    if (f->client)
        f->client->ops->close(f->client);
    f->server = f->client = NULL;
}

static void fixture_fini(struct fixture *f)
{
    close_streams(f);
    tls_credentials_unref(f->server_side);
    tls_credentials_unref(f->client_side);
    test_dir_remove(f->dir);
    reactor_fini();
}

static void connect_streams(struct fixture *f)
{
    struct stream *inner;
    int fds[2];

    close_streams(f);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    f->meter = meter_new(fds[0]);
    inner = stream_socket_new(fds[1]);
    assert_non_null(inner);
    f->server = tls_stream_new(f->server_side, NULL, &f->meter->stream);
    f->client = tls_stream_new(f->client_side, NULL, inner);
    assert_non_null(f->server);
    assert_non_null(f->client);
    assert_int_equal(f->server->fd, fds[0]);
    assert_null(f->server->ops->send_file);
}

/* Lets both ends talk until both have a result other than -EAGAIN. */
static void shake(struct fixture *f, int *ret_server, int *ret_client, struct error *error)
{
    unsigned wait;

    *ret_server = *ret_client = -EAGAIN;
    for (int i = 0; i < PATIENCE && (*ret_server == -EAGAIN || *ret_client == -EAGAIN); i++) {
        if (*ret_client == -EAGAIN)
            *ret_client = tls_stream_handshake(f->client, &wait, NULL);
        if (*ret_server == -EAGAIN)
            *ret_server = tls_stream_handshake(f->server, &wait, error);
    }
}

static void establish(struct fixture *f)
{
    struct error error = {""};
    int server, client;

    connect_streams(f);
    shake(f, &server, &client, &error);
    if (server < 0 || client < 0)
        fail_msg("no session: %d %d %s", server, client, error.text);
}

static ssize_t send_bytes(struct stream *stream, const void *data, size_t length)
{
    struct iovec iov = {(void *)(uintptr_t)data, length};

    return stream->ops->send(stream, &iov, 1, false);
}

static ssize_t recv_bytes(struct stream *stream, void *data, size_t length)
{
    struct iovec iov = {data, length};

    return stream->ops->recv(stream, &iov, 1);
}

/* ---- Tests ---- */

static void test_handshake(void **state)
{
    const struct tls_identity *identity;
    struct fixture f;
    unsigned wait;

    fixture_init(&f);
    establish(&f);
    identity = tls_stream_identity(f.server);
    assert_int_equal(identity->kind, TLS_PSK);
    assert_string_equal(identity->name, "alice");
    assert_int_equal(identity->alt_name_count, 0);
    assert_non_null(strstr(identity->session, "TLS1.3"));
    assert_string_equal(tls_stream_identity(f.client)->name, "");
    /* Asked again it has not changed. */
    assert_int_equal(tls_stream_handshake(f.server, &wait, NULL), 0);
    fixture_fini(&f);
}

static void test_waiting_to_send(void **state)
{
    struct fixture f;
    unsigned wait = 0;

    fixture_init(&f);
    connect_streams(&f);
    assert_int_equal(tls_stream_handshake(f.server, &wait, NULL), -EAGAIN);
    assert_int_equal(wait, REACTOR_READ);
    assert_int_equal(tls_stream_handshake(f.client, &wait, NULL), -EAGAIN);
    f.meter->at_most = 0;
    assert_int_equal(tls_stream_handshake(f.server, &wait, NULL), -EAGAIN);
    assert_int_equal(wait, REACTOR_WRITE);
    f.meter->at_most = 1;
    establish(&f);
    fixture_fini(&f);
}

/* As those do who wait for what the stream waits for: calls again only when it wants no event. */
static int shake_until_it_waits(struct stream *stream)
{
    struct error error = {""};
    unsigned wait = 0;
    int r = -EAGAIN;

    for (int i = 0; i < PATIENCE && r == -EAGAIN && wait == 0; i++)
        r = tls_stream_handshake(stream, &wait, &error);
    if (r < 0 && r != -EAGAIN)
        fail_msg("no session: %s", error.text);
    return r;
}

/* A message in many records that have all come: no descriptor tells of those already received. */
static void test_messages_in_pieces(void **state)
{
    static const size_t sizes[] = {1000, 100, 20, 1};
    struct fixture f;

    fixture_init(&f);
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        connect_streams(&f);
        f.meter->split = sizes[i];
        assert_int_equal(shake_until_it_waits(f.client), -EAGAIN);
        assert_int_equal(shake_until_it_waits(f.server), -EAGAIN);
        assert_true(f.meter->split_in && f.meter->split_out);
        assert_int_equal(shake_until_it_waits(f.client), 0);
        assert_int_equal(shake_until_it_waits(f.server), 0);
    }
    fixture_fini(&f);
}

static void expect_refused(struct fixture *f, struct error *ret)
{
    int server, client;

    *ret = (struct error){""};
    connect_streams(f);
    shake(f, &server, &client, ret);
    assert_true(server < 0 && client < 0);
    assert_true(ret->text[0]);
}

/* Who is not known and who has another key are told the same. */
static void test_wrong_keys(void **state)
{
    struct error wrong, unknown;
    struct fixture f;

    fixture_init(&f);
    tls_credentials_unref(f.client_side);
    f.client_side = client_credentials(&f, "alice", MALLORY);
    expect_refused(&f, &wrong);
    tls_credentials_unref(f.client_side);
    f.client_side = client_credentials(&f, "mallory", MALLORY);
    expect_refused(&f, &unknown);
    assert_string_equal(wrong.text, unknown.text);
    fixture_fini(&f);
}

/* What has been offered and not taken is offered again, cut into other vectors. */
static void pour(struct fixture *f, const uint8_t *data, size_t length, uint8_t *got, size_t step)
{
    size_t sent = 0, received = 0;

    for (int i = 0; i < PATIENCE && received < length; i++) {
        size_t left = length - sent, a = left / 3, b = left > 7 ? 7 : left - a;
        struct iovec iov[3] = {{(uint8_t *)(uintptr_t)data + sent, a},
                               {(uint8_t *)(uintptr_t)data + sent + a, b},
                               {(uint8_t *)(uintptr_t)data + sent + a + b, left - a - b}};
        ssize_t n = left > 0 ? f->server->ops->send(f->server, iov, 3, false) : 0;

        assert_true(n >= 0 || n == -EAGAIN);
        if (n > 0)
            sent += (size_t)n;
        assert_true(sent <= length);
        n = recv_bytes(f->client, got + received,
                       step < length - received ? step : length - received);
        assert_true(n > 0 || n == -EAGAIN);
        if (n > 0)
            received += (size_t)n;
    }
    assert_int_equal(received, length);
}

static void test_content(void **state)
{
    static const size_t lengths[] = {1, 16383, 16384, 16385, 300000, 3 << 20};
    size_t room = 3 << 20;
    uint8_t *data = malloc(room), *got = malloc(room);
    struct fixture f;

    assert_true(data && got);
    for (size_t i = 0; i < room; i++)
        data[i] = (uint8_t)(i * 7 + i / 256);
    fixture_init(&f);
    establish(&f);
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        memset(got, 0, lengths[i]);
        f.meter->at_most = i % 2 ? 5000 : SIZE_MAX;
        pour(&f, data, lengths[i], got, i % 2 ? 1 << 20 : 1000);
        assert_memory_equal(data, got, lengths[i]);
    }
    free(data);
    free(got);
    fixture_fini(&f);
}

/* A reply of 256 KiB behind its header: 17 records, one send. */
static void test_records_are_full(void **state)
{
    static uint8_t header[16], data[256 * 1024];
    const struct iovec iov[] = {{header, sizeof(header)}, {data, sizeof(data)}};
    struct fixture f;
    size_t before;

    fixture_init(&f);
    establish(&f);
    before = f.meter->sent;
    f.meter->sends = 0;
    f.meter->swallow = true;
    assert_int_equal(f.server->ops->send(f.server, iov, 2, false), sizeof(header) + sizeof(data));
    assert_int_equal(f.meter->sends, 1);
    /* Each has a header of 5 bytes, its kind, and 16 bytes that authenticate it. */
    assert_int_equal(f.meter->sent - before, sizeof(header) + sizeof(data) + 17 * 22);
    fixture_fini(&f);
}

/* A queue that is said to be empty is sent: nothing is left in the stream. */
static void test_nothing_taken_before_it_is_sent(void **state)
{
    static const char text[] = "all or nothing";
    char got[sizeof(text)];
    struct fixture f;

    fixture_init(&f);
    establish(&f);
    f.meter->at_most = 0;
    assert_int_equal(send_bytes(f.server, text, sizeof(text)), -EAGAIN);
    assert_int_equal(send_bytes(f.server, text, sizeof(text)), -EAGAIN);
    assert_int_equal(send_bytes(f.server, text, 3), -EINVAL);
    f.meter->at_most = SIZE_MAX;
    assert_int_equal(send_bytes(f.server, text, sizeof(text)), sizeof(text));
    assert_int_equal(recv_bytes(f.client, got, sizeof(got)), sizeof(got));
    assert_string_equal(got, text);
    assert_int_equal(recv_bytes(f.client, got, sizeof(got)), -EAGAIN);
    fixture_fini(&f);
}

static void test_pending(void **state)
{
    char got[8];
    struct fixture f;

    fixture_init(&f);
    establish(&f);
    assert_false(f.client->ops->pending(f.client));
    assert_int_equal(send_bytes(f.server, "abcdef", 6), 6);
    assert_int_equal(send_bytes(f.server, "gh", 2), 2);
    assert_int_equal(recv_bytes(f.client, got, 4), 4);
    assert_true(f.client->ops->pending(f.client));
    assert_int_equal(recv_bytes(f.client, got, 2), 2);
    assert_true(f.client->ops->pending(f.client)); /* a record of which nothing was seen yet */
    assert_int_equal(recv_bytes(f.client, got, 8), 2);
    assert_false(f.client->ops->pending(f.client));
    /* Half a record is nothing that can be read. */
    f.meter->at_most = 10;
    send_bytes(f.server, "ij", 2);
    assert_int_equal(recv_bytes(f.client, got, 8), 2);
    f.meter->at_most = 0;
    fixture_fini(&f);
}

static void test_half_a_record(void **state)
{
    struct fixture f;
    char got[8];
    ssize_t n;

    fixture_init(&f);
    establish(&f);
    f.meter->at_most = 12;
    f.meter->sends = 0;
    /* The meter takes 12 bytes of the record; what it does not take is not offered at once. */
    f.meter->inner->ops->shutdown(f.meter->inner);
    n = send_bytes(f.server, "abcdefgh", 8);
    assert_true(n < 0);
    assert_int_equal(recv_bytes(f.client, got, 8), -ECONNABORTED);
    assert_false(f.client->ops->pending(f.client));
    fixture_fini(&f);
}

static void test_ends(void **state)
{
    struct fixture f;
    char got[8];

    fixture_init(&f);
    establish(&f);
    assert_int_equal(send_bytes(f.server, "bye", 3), 3);
    assert_int_equal(f.server->ops->shutdown(f.server), 0);
    assert_int_equal(recv_bytes(f.client, got, 8), 3);
    assert_int_equal(recv_bytes(f.client, got, 8), 0);
    /* Somebody has cut the line. */
    establish(&f);
    assert_int_equal(send_bytes(f.server, "bye", 3), 3);
    f.meter->inner->ops->shutdown(f.meter->inner);
    assert_int_equal(recv_bytes(f.client, got, 8), 3);
    assert_int_equal(recv_bytes(f.client, got, 8), -ECONNABORTED);
    fixture_fini(&f);
}

static void test_changed_on_the_way(void **state)
{
    struct fixture f;
    char got[8];

    fixture_init(&f);
    establish(&f);
    f.meter->flip = 1;
    assert_int_equal(send_bytes(f.server, "abc", 3), 3);
    assert_int_equal(recv_bytes(f.client, got, 8), -EBADMSG);
    assert_true(recv_bytes(f.client, got, 8) < 0);
    fixture_fini(&f);
}

/* ---- Credentials that follow their files ---- */

static void expect_session(struct fixture *f, const char *name, const char *key, bool good)
{
    struct error error = {""};
    int server, client;

    tls_credentials_unref(f->client_side);
    f->client_side = client_credentials(f, name, key);
    connect_streams(f);
    shake(f, &server, &client, &error);
    assert_int_equal(server == 0 && client == 0, good);
}

static void test_changed_files(void **state)
{
    struct fixture f;
    char got[8];

    fixture_init(&f);
    write_keys(f.keys, "carol:" MALLORY "\n");
    expect_session(&f, "alice", ALICE, false);
    expect_session(&f, "carol", MALLORY, true);
    /* What cannot be used changes nothing: a wrong line, no file, no permission to be a file. */
    write_keys(f.keys, "dave\n");
    expect_session(&f, "carol", MALLORY, true);
    assert_int_equal(unlink(f.keys), 0);
    expect_session(&f, "carol", MALLORY, true);
    assert_int_equal(mkdir(f.keys, 0700), 0);
    expect_session(&f, "carol", MALLORY, true);
    assert_int_equal(rmdir(f.keys), 0);
    /* A session goes on with what it has begun with. */
    write_keys(f.keys, "dave:" ALICE "\n");
    assert_int_equal(send_bytes(f.server, "abc", 3), 3);
    assert_int_equal(recv_bytes(f.client, got, 8), 3);
    expect_session(&f, "carol", MALLORY, false);
    expect_session(&f, "dave", ALICE, true);
    fixture_fini(&f);
}

/* More than is parsed on the loop, whose last key is this one. */
static void write_many_keys(const char *path, const char *name, const char *key)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    for (int i = 0; i < 4000; i++)
        fprintf(file, "nobody%d:" MALLORY "\n", i);
    fprintf(file, "%s:%s\n", name, key);
    assert_int_equal(fclose(file), 0);
}

/* A session that begins while files are parsed waits for them; others of the loop do not. */
static void test_long_files(void **state)
{
    struct error error = {""};
    int server, client;
    struct fixture f;
    unsigned wait;

    fixture_init(&f);
    write_many_keys(f.keys, "carol", ALICE);
    tls_credentials_unref(f.client_side);
    f.client_side = client_credentials(&f, "carol", ALICE);
    connect_streams(&f);
    assert_int_equal(tls_stream_handshake(f.server, &wait, &error), -EAGAIN);
    assert_int_equal(wait, 0);
    shake(&f, &server, &client, &error);
    assert_int_equal(server, -EAGAIN);
    while (tls_stream_handshake(f.server, &wait, &error) == -EAGAIN && wait == 0)
        reactor_poll(true);
    shake(&f, &server, &client, &error);
    assert_int_equal(server, 0);
    expect_session(&f, "alice", ALICE, false);

    /* The end comes while they are parsed. */
    write_many_keys(f.keys, "dave", ALICE);
    connect_streams(&f);
    assert_int_equal(tls_stream_handshake(f.server, &wait, &error), -EAGAIN);
    fixture_fini(&f);
}

static void expect_no_credentials(const struct tls_credentials_config *config, int wanted,
                                  const char *says)
{
    struct tls_credentials *credentials;
    struct error error = {""};

    assert_int_equal(tls_credentials_new(config, &credentials, &error), wanted);
    if (!strstr(error.text, says))
        fail_msg("'%s' does not say '%s'", error.text, says);
}

static void test_bad_credentials(void **state)
{
    struct tls_credentials_config config = {.kind = TLS_PSK, .endpoint = TLS_SERVER};
    struct fixture f;

    fixture_init(&f);
    expect_no_credentials(&config, -EINVAL, "the directory of keys.psk");
    config.dir = "/nowhere";
    expect_no_credentials(&config, -ENOENT,
                          "Unable to access the pre-shared keys '/nowhere/keys.psk'");
    config.psk_file = f.dir;
    expect_no_credentials(&config, -EINVAL, "is not a regular file");
    config.psk_file = f.keys;
    config.priority = "NORMAL:+NONSENSE";
    expect_no_credentials(&config, -EINVAL, "'NORMAL:+NONSENSE'");
    config.priority = NULL;
    config.endpoint = TLS_CLIENT;
    expect_no_credentials(&config, -ENOENT, "no key of the user 'qemu'");
    config.kind = TLS_X509;
    config.dir = NULL;
    expect_no_credentials(&config, -EINVAL, "'dir'");
    config.dir = f.dir;
    config.endpoint = TLS_SERVER;
    expect_no_credentials(&config, -ENOENT, "server-cert.pem'");
    fixture_fini(&f);
}

static void test_anonymous(void **state)
{
    struct tls_credentials_config config = {.kind = TLS_ANON, .endpoint = TLS_SERVER};
    struct fixture f;

    fixture_init(&f);
    tls_credentials_unref(f.server_side);
    tls_credentials_unref(f.client_side);
    assert_int_equal(tls_credentials_new(&config, &f.server_side, NULL), 0);
    config.endpoint = TLS_CLIENT;
    assert_int_equal(tls_credentials_new(&config, &f.client_side, NULL), 0);
    establish(&f);
    assert_string_equal(tls_stream_identity(f.server)->name, "");
    fixture_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_handshake),
        cmocka_unit_test(test_waiting_to_send),
        cmocka_unit_test(test_messages_in_pieces),
        cmocka_unit_test(test_wrong_keys),
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_records_are_full),
        cmocka_unit_test(test_nothing_taken_before_it_is_sent),
        cmocka_unit_test(test_pending),
        cmocka_unit_test(test_half_a_record),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_changed_on_the_way),
        cmocka_unit_test(test_changed_files),
        cmocka_unit_test(test_long_files),
        cmocka_unit_test(test_bad_credentials),
        cmocka_unit_test(test_anonymous),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
