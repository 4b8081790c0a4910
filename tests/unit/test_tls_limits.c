/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a peer can make TLS do at once: records that cost much and carry little, from a client that
 * speaks GnuTLS by itself; and files that change while there are no descriptors.
 */
#include "base/checked.h"
#include "tests/support/fault.h"
#include "tests/support/support.h"
#include "tls/material.h"
#include "tls/tls_stream.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#define ALICE "00112233445566778899aabbccddeeff"
#define BOB "ffeeddccbbaa99887766554433221100"
#define WIRE_BYTES (8 << 20)
#define PATIENCE 100

/* ---- Both ends in memory ---- */

struct wire {
    uint8_t *data;
    size_t start, length;
};

static size_t wire_take(struct wire *w, void *data, size_t length)
{
    size_t n = min_u64(length, w->length - w->start);

    memcpy(data, w->data + w->start, n);
    w->start += n;
    return n;
}

static void wire_put(struct wire *w, const void *data, size_t length)
{
    assert_true(length <= WIRE_BYTES - w->length);
    memcpy(w->data + w->length, data, length);
    w->length += length;
}

struct pair {
    struct stream inner; /* below the server's TLS */
    struct wire to_server, to_client;
    struct tls_credentials *credentials;
    struct stream *server;
    gnutls_psk_client_credentials_t psk;
    gnutls_session_t client;
};

static ssize_t inner_recv(struct stream *stream, const struct iovec *iov, int iovcnt)
{
    struct pair *p = container_of(stream, struct pair, inner);
    size_t n = wire_take(&p->to_server, iov->iov_base, iov->iov_len);

    assert_int_equal(iovcnt, 1);
    return n > 0 ? (ssize_t)n : -EAGAIN;
}

static ssize_t inner_send(struct stream *stream, const struct iovec *iov, int iovcnt, bool more)
{
    assert_int_equal(iovcnt, 1);
    wire_put(&container_of(stream, struct pair, inner)->to_client, iov->iov_base, iov->iov_len);
    return (ssize_t)iov->iov_len;
}

static void inner_close(struct stream *stream)
{
    (void)stream;
}

static const struct stream_ops inner_ops = {
    .recv = inner_recv, .send = inner_send, .close = inner_close};

static ssize_t client_push(gnutls_transport_ptr_t ptr, const void *data, size_t length)
{
    wire_put(&((struct pair *)ptr)->to_server, data, length);
    return (ssize_t)length;
}

static ssize_t client_pull(gnutls_transport_ptr_t ptr, void *data, size_t length)
{
    struct pair *p = ptr;
    size_t n = wire_take(&p->to_client, data, length);

    if (n == 0)
        gnutls_transport_set_errno(p->client, EAGAIN);
    return n > 0 ? (ssize_t)n : -1;
}

static int client_pull_timeout(gnutls_transport_ptr_t ptr, unsigned milliseconds)
{
    (void)ptr;
    (void)milliseconds;
    return 1;
}

static void write_keys(const char *path, const char *text)
{
    test_file_write(path, text, strlen(text));
    assert_int_equal(chmod(path, 0600), 0);
}

static struct tls_credentials *server_credentials(const char *keys)
{
    const struct tls_credentials_config config = {
        .kind = TLS_PSK, .endpoint = TLS_SERVER, .psk_file = keys};
    struct tls_credentials *credentials;
    struct error error = {""};

    if (tls_credentials_new(&config, &credentials, &error) < 0)
        fail_msg("%s", error.text);
    return credentials;
}

static void make_client(struct pair *p)
{
    gnutls_datum_t key = {(uint8_t *)(uintptr_t)ALICE, strlen(ALICE)};

    assert_int_equal(gnutls_psk_allocate_client_credentials(&p->psk), 0);
    assert_int_equal(gnutls_psk_set_client_credentials(p->psk, "alice", &key, GNUTLS_PSK_KEY_HEX),
                     0);
    assert_int_equal(gnutls_init(&p->client, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
    assert_int_equal(
        gnutls_priority_set_direct(p->client, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+ECDHE-PSK", NULL), 0);
    assert_int_equal(gnutls_credentials_set(p->client, GNUTLS_CRD_PSK, p->psk), 0);
    gnutls_transport_set_ptr(p->client, p);
    gnutls_transport_set_push_function(p->client, client_push);
    gnutls_transport_set_pull_function(p->client, client_pull);
    gnutls_transport_set_pull_timeout_function(p->client, client_pull_timeout);
}

static void pair_init(struct pair *p, const char *dir)
{
    char *keys = test_path(dir, "keys");
    struct error error = {""};
    int client = GNUTLS_E_AGAIN, server = -EAGAIN;
    unsigned wait;

    *p = (struct pair){.inner = {.ops = &inner_ops, .fd = -1}};
    p->to_server.data = malloc(WIRE_BYTES);
    p->to_client.data = malloc(WIRE_BYTES);
    assert_true(p->to_server.data && p->to_client.data);
    write_keys(keys, "alice:" ALICE "\n");
    p->credentials = server_credentials(keys);
    p->server = tls_stream_new(p->credentials, NULL, &p->inner);
    assert_non_null(p->server);
    make_client(p);
    for (int i = 0; i < PATIENCE && (client != 0 || server != 0); i++) {
        if (client != 0)
            client = gnutls_handshake(p->client);
        if (server != 0)
            server = tls_stream_handshake(p->server, &wait, &error);
    }
    if (client != 0 || server != 0)
        fail_msg("no session: %s, %s", gnutls_strerror(client), error.text);
    free(keys);
}

static void pair_fini(struct pair *p)
{
    gnutls_deinit(p->client);
    gnutls_psk_free_client_credentials(p->psk);
    p->server->ops->close(p->server);
    tls_credentials_unref(p->credentials);
    free(p->to_server.data);
    free(p->to_client.data);
}

/*
 * The client sends `count` records of one byte and `padding`.  The server has to get them in as
 * many calls as `most` of each allows, and to tell before each but the last that there is more.
 */
static void expect_in_calls(struct pair *p, unsigned count, size_t padding, unsigned most)
{
    char got[4096];

    for (unsigned i = 0; i < count; i++)
        assert_int_equal(gnutls_record_send2(p->client, "x", 1, padding, 0), 1);
    for (unsigned left = count; left > 0;) {
        struct iovec iov = {got, sizeof(got)};
        ssize_t n = p->server->ops->recv(p->server, &iov, 1);

        assert_true(n > 0 && n <= most);
        left -= (unsigned)n;
        assert_int_equal(p->server->ops->pending(p->server), left > 0);
    }
}

/* ---- Tests ---- */

static int setup(void **state)
{
    *state = test_dir_make();
    return 0;
}

static int teardown(void **state)
{
    test_dir_remove(*state);
    return 0;
}

/* A record of a byte costs much of what a full one does. */
static void test_small_records(void **state)
{
    struct pair p;

    pair_init(&p, *state);
    expect_in_calls(&p, 1000, 0, 256);
    pair_fini(&p);
}

/* One byte in a record that is full of padding (RFC 8446 section 5.4): 2 MiB are enough at once. */
static void test_padding(void **state)
{
    struct pair p;

    pair_init(&p, *state);
    expect_in_calls(&p, 300, 16000, (2 << 20) / 16000 + 1);
    pair_fini(&p);
}

static struct tls_material *material_of(struct tls_credentials *credentials)
{
    struct tls_material *material = tls_credentials_material(credentials);

    tls_material_unref(material); /* the credentials have a reference too */
    return material;
}

/* Looking needs no descriptor, and a change that there was none for is not forgotten. */
static void test_without_descriptors(void **state)
{
    char *keys = test_path(*state, "keys");
    struct tls_credentials *credentials;
    struct tls_material *before;

    write_keys(keys, "alice:" ALICE "\n");
    credentials = server_credentials(keys);
    before = material_of(credentials);
    fault_install();
    fault_arm(
        &(struct fault_plan){.calls = FAULT_OPENAT, .nth = 1, .sticky = true, .error = EMFILE});
    assert_ptr_equal(material_of(credentials), before);
    assert_int_equal(fault_count(), 0);
    write_keys(keys, "alice:" ALICE "\nbob:" BOB "\n");
    assert_ptr_equal(material_of(credentials), before);
    assert_true(fault_fired());
    fault_arm(
        &(struct fault_plan){.calls = FAULT_FSTATAT, .nth = 1, .sticky = true, .error = ENOMEM});
    assert_ptr_equal(material_of(credentials), before);
    assert_true(fault_fired());
    fault_remove();
    assert_int_equal(material_of(credentials)->keys.count, 2);
    tls_credentials_unref(credentials);
    free(keys);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_small_records, setup, teardown),
        cmocka_unit_test_setup_teardown(test_padding, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_descriptors, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
