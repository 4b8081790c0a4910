/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who is let in: handshakes that stall make room for good clients, and of several origins the
 * greedy one has the disadvantage.  Clients come over TCP from the addresses 127.0.0.1, 127.0.0.2
 * and so on, which are different origins, or through a Unix socket.
 */
#include "base/bytes.h"
#include "base/reactor.h"
#include "tests/dialogue/rig.h"
#include "tests/support/fault.h"
#include "tests/support/sim_clock.h"
#include "tests/support/support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)

struct stage {
    struct rig rig;
    struct sockaddr_in tcp;
    char *dir, *path; /* of the Unix socket */
};

static void listen_tcp(struct stage *s)
{
    socklen_t length = sizeof(s->tcp);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char port[16];

    s->tcp = (struct sockaddr_in){.sin_family = AF_INET};
    s->tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&s->tcp, sizeof(s->tcp)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&s->tcp, &length), 0);
    close(fd);
    snprintf(port, sizeof(port), "%d", ntohs(s->tcp.sin_port));
    assert_int_equal(nbd_server_listen_tcp(s->rig.server, "127.0.0.1", port, 1000, NULL), 0);
}

static void stage_init(struct stage *s, const struct rig_options *options)
{
    fault_install();
    sim_clock_install();
    rig_init(&s->rig, options);
    s->dir = test_dir_make();
    s->path = test_path(s->dir, "socket");
    assert_int_equal(nbd_server_listen_unix(s->rig.server, s->path, 1000, NULL), 0);
    listen_tcp(s);
}

static void stage_fini(struct stage *s)
{
    rig_fini(&s->rig);
    sim_clock_remove();
    fault_remove();
    free(s->path);
    test_dir_remove(s->dir);
}

/* From 127.0.0.`origin`; 0: through the Unix socket. Is not accepted yet. */
static void come(struct client *c, struct stage *s, unsigned origin)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in from = {.sin_family = AF_INET};

    *c = (struct client){.fd = socket(origin ? AF_INET : AF_UNIX, SOCK_STREAM, 0)};
    if (origin) {
        from.sin_addr.s_addr = htonl(0x7f000000 + origin);
        assert_int_equal(bind(c->fd, (struct sockaddr *)&from, sizeof(from)), 0);
        assert_int_equal(connect(c->fd, (struct sockaddr *)&s->tcp, sizeof(s->tcp)), 0);
    } else {
        strcpy(local.sun_path, s->path);
        assert_int_equal(connect(c->fd, (struct sockaddr *)&local, sizeof(local)), 0);
    }
}

static void come_all(struct client *c, unsigned count, struct stage *s, unsigned origin)
{
    for (unsigned i = 0; i < count; i++)
        come(&c[i], s, origin);
    rig_pump();
}

static void expect_served(struct client *c)
{
    client_send_script(c, "flags 3; go disk");
    assert_true(client_receive(c, 104));
    c->in.length = 0;
    client_request(c, NBD_CMD_READ, 0, 5, 0, 1);
    client_expect_data(c, 5, "\0", 1);
}

/* How many of them the server has closed. */
static unsigned closed_of(struct client *c, unsigned count)
{
    unsigned closed = 0;

    for (unsigned i = 0; i < count; i++) {
        client_receive(&c[i], 19);
        closed += c[i].closed;
    }
    return closed;
}

static void free_all(struct client *c, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        client_free(&c[i]);
}

/* ---- Handshakes ---- */

/* Beyond its share an origin loses its own oldest, one for each that comes, and others lose none.
 */
static void test_share_of_one_origin(void **state)
{
    static struct client c[40], other[2];
    struct stage s;

    stage_init(&s, NULL);
    come_all(other, 2, &s, 2);
    come_all(c, 40, &s, 1);
    assert_int_equal(nbd_server_connections(s.rig.server), 42);
    sim_clock_advance(SECOND);
    rig_pump();
    /* Nobody has to go as long as nobody comes. */
    assert_int_equal(closed_of(c, 40), 0);
    for (unsigned i = 0; i < 3; i++) {
        struct client good;

        come(&good, &s, 1);
        expect_served(&good);
        assert_int_equal(closed_of(c, 40), i + 1);
        assert_true(c[i].closed);
        client_free(&good);
    }
    assert_int_equal(closed_of(other, 2), 0);
    expect_served(&other[0]);
    free_all(c, 40);
    free_all(other, 2);
    stage_fini(&s);
}

/* One origin fills the pool; those of others stay, and new ones come in at its cost. */
static void test_greedy_origin(void **state)
{
    static struct client greedy[254], early[2], late[20];
    struct stage s;

    stage_init(&s, NULL);
    come_all(early, 2, &s, 2);
    come_all(greedy, 254, &s, 1);
    assert_int_equal(nbd_server_connections(s.rig.server), 256);
    sim_clock_advance(SECOND / 5);
    for (unsigned i = 0; i < 20; i++) {
        come_all(&late[i], 1, &s, 3 + i);
        assert_int_equal(nbd_server_connections(s.rig.server), 256);
    }
    assert_int_equal(closed_of(greedy, 254), 20);
    assert_int_equal(closed_of(early, 2), 0);
    assert_int_equal(closed_of(late, 20), 0);
    expect_served(&early[1]);
    for (unsigned i = 0; i < 20; i++)
        expect_served(&late[i]);
    free_all(greedy, 254);
    free_all(early, 2);
    free_all(late, 20);
    stage_fini(&s);
}

/* A user of a Unix socket is an origin like an address. */
static void test_local_user_is_an_origin(void **state)
{
    static struct client local[250], other[10];
    struct stage s;

    stage_init(&s, NULL);
    come_all(other, 6, &s, 1);
    come_all(local, 250, &s, 0);
    sim_clock_advance(SECOND / 5);
    come_all(other + 6, 4, &s, 2);
    assert_int_equal(closed_of(local, 250), 4);
    assert_int_equal(closed_of(other, 10), 0);
    free_all(local, 250);
    free_all(other, 10);
    stage_fini(&s);
}

/* Clients that come all at once do not push each other out, but wait for their turn. */
static void test_burst(void **state)
{
    enum { COUNT = 600 };
    static struct client c[COUNT];
    struct stage s;

    stage_init(&s, NULL);
    come_all(c, COUNT, &s, 0);
    assert_int_equal(nbd_server_connections(s.rig.server), 256);
    for (unsigned i = 0; i < COUNT; i++)
        expect_served(&c[i]);
    assert_int_equal(nbd_server_connections(s.rig.server), COUNT);
    free_all(c, COUNT);
    stage_fini(&s);
}

/* Silent ones get their moment, then they make room for those who wait behind them. */
static void test_burst_of_silent_clients(void **state)
{
    enum { COUNT = 600 };
    static struct client c[COUNT];
    struct client good;
    struct stage s;
    int64_t start;

    stage_init(&s, NULL);
    come_all(c, COUNT, &s, 0);
    come(&good, &s, 0);
    client_send_script(&good, "flags 3; go disk");
    start = sim_clock_now();
    while (!client_receive(&good, 104) && sim_clock_now() - start < 10 * SECOND)
        sim_clock_poll();
    assert_true(sim_clock_now() - start < SECOND / 2);
    assert_int_equal(closed_of(c, COUNT), COUNT + 1 - 256);
    free_all(c, COUNT);
    client_free(&good);
    stage_fini(&s);
}

/* ---- Without descriptors ---- */

/* A stalled handshake is given up for a client that could not be accepted. */
static void test_no_descriptors(void **state)
{
    struct client silent[2], good;
    struct stage s;
    int64_t start;

    stage_init(&s, NULL);
    come_all(silent, 2, &s, 1);
    come(&good, &s, 2);
    fault_arm(&(struct fault_plan){.calls = FAULT_ACCEPT, .nth = 1, .error = EMFILE});
    rig_pump();
    assert_int_equal(fault_count(), 1);
    /* All are young; then accepting is tried again, and that succeeds. */
    start = sim_clock_now();
    while (nbd_server_connections(s.rig.server) < 3)
        sim_clock_poll();
    assert_in_range((sim_clock_now() - start) / (SECOND / 10), 9, 11);
    expect_served(&good);
    client_free(&good);
    rig_pump();
    /* The next time the oldest has stalled: it goes, and its end is when accepting goes on. */
    come(&good, &s, 2);
    start = sim_clock_now();
    fault_arm(&(struct fault_plan){.calls = FAULT_ACCEPT, .nth = 1, .error = EMFILE});
    expect_served(&good);
    assert_true(fault_fired());
    assert_int_equal(sim_clock_now() - start, 0);
    assert_int_equal(closed_of(silent, 2), 1);
    assert_true(silent[0].closed);
    free_all(silent, 2);
    client_free(&good);
    stage_fini(&s);
}

/* ---- Clients of one origin ---- */

/* Takes an error reply to GO off. */
static void expect_go_error(struct client *c, uint32_t type, const char *word)
{
    uint32_t length;

    assert_true(client_receive(c, 20));
    assert_int_equal(get_be32(c->in.data + 8), NBD_OPT_GO);
    assert_int_equal(get_be32(c->in.data + 12), type);
    length = get_be32(c->in.data + 16);
    assert_true(client_receive(c, 20 + length));
    assert_non_null(memmem(c->in.data + 20, length, word, strlen(word)));
    c->in.length = 0;
}

static void test_clients_of_one_origin(void **state)
{
    const struct rig_options options = {.size = 4096, .connections_of_one = 2};
    struct client a[2], third, old, other;
    struct stage s;

    stage_init(&s, &options);
    for (unsigned i = 0; i < 2; i++) {
        come(&a[i], &s, 1);
        expect_served(&a[i]);
    }
    come(&third, &s, 1);
    client_send_script(&third, "flags 3");
    assert_true(client_receive(&third, 18));
    third.in.length = 0;
    client_send_script(&third, "go disk");
    expect_go_error(&third, NBD_REP_ERR_POLICY, "address");
    /* What asks for nothing but information is answered. */
    client_send_script(&third, "info disk");
    assert_true(client_receive(&third, 20 + 12 + 20 + 14 + 20));
    third.in.length = 0;
    /* EXPORT_NAME has no way to say no. */
    come(&old, &s, 1);
    client_send_script(&old, "flags 3; name disk");
    client_expect_close(&old);
    assert_int_equal(old.in.length, 18);
    come(&other, &s, 2);
    expect_served(&other);
    /* When one has left the third may come in, on the same connection. */
    client_free(&a[0]);
    rig_pump();
    client_send_script(&third, "go disk");
    assert_true(client_receive(&third, 86));
    client_free(&a[1]);
    client_free(&third);
    client_free(&old);
    client_free(&other);
    stage_fini(&s);
}

static void test_oldstyle_clients_of_one_origin(void **state)
{
    const struct rig_options options = {.size = 4096, .connections_of_one = 1, .oldstyle = true};
    struct client first, second, other;
    struct stage s;

    stage_init(&s, &options);
    come_all(&first, 1, &s, 1);
    come_all(&second, 1, &s, 1);
    come_all(&other, 1, &s, 2);
    client_expect_close(&second);
    assert_int_equal(second.in.length, 0); /* it is told nothing of the disk */
    assert_true(client_receive(&first, 152));
    assert_true(client_receive(&other, 152));
    assert_int_equal(nbd_server_connections(s.rig.server), 2);
    client_free(&first);
    client_free(&second);
    client_free(&other);
    stage_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_share_of_one_origin),
        cmocka_unit_test(test_greedy_origin),
        cmocka_unit_test(test_local_user_is_an_origin),
        cmocka_unit_test(test_burst),
        cmocka_unit_test(test_burst_of_silent_clients),
        cmocka_unit_test(test_no_descriptors),
        cmocka_unit_test(test_clients_of_one_origin),
        cmocka_unit_test(test_oldstyle_clients_of_one_origin),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
