/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Asking servers over real sockets: our own one in the same loop, and ones that are silent, slow,
 * or go away.  Where time matters it is simulated.
 */
#include "nbd/inquiry.h"

#include "base/checked.h"
#include "base/coroutine.h"
#include "base/reactor.h"
#include "base/stream.h"
#include "base/sys.h"
#include "tests/dialogue/answers.h"
#include "tests/dialogue/fake_tls.h"
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

struct inquiry {
    struct nbd_address address;
    const struct nbd_tls *tls;
    int64_t limit_ns;
    struct nbd_remote remote;
    struct error error;
};

static int inquire(void *arg)
{
    struct inquiry *q = arg;

    q->error.text[0] = '\0';
    return nbd_inquire(&q->address, q->tls, q->limit_ns, &q->remote, &q->error);
}

static void assert_said(const struct inquiry *q, const char *part)
{
    if (!strstr(q->error.text, part))
        fail_msg("'%s' is not in '%s'", part, q->error.text);
}

/* A directory with a socket path in it. */
struct place {
    char *dir, *path;
};

static struct place place_make(void)
{
    struct place p = {.dir = test_dir_make()};

    p.path = test_path(p.dir, "socket");
    return p;
}

static void place_remove(struct place *p)
{
    free(p->path);
    test_dir_remove(p->dir);
}

/* A listening socket that nobody accepts on. */
static int listen_at(const char *path, int backlog)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    assert_true(strlen(path) < sizeof(address.sun_path));
    strcpy(address.sun_path, path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, backlog), 0);
    return fd;
}

/* ---- Our own server ---- */

static void expect_disk(const struct inquiry *q)
{
    assert_int_equal(q->remote.export_count, 1);
    assert_string_equal(q->remote.exports[0].name.data, "disk");
    assert_true(q->remote.exports[0].examined);
    assert_int_equal(q->remote.exports[0].size, 1 << 20);
}

static void test_unix(void **state)
{
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}, .limit_ns = 60 * SECOND};
    struct rig rig;

    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, place.path, 5, NULL), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(reactor_run_coroutine(inquire, &q), 0);
        assert_string_equal(q.error.text, "");
        assert_int_equal(q.remote.protocol, NBD_PROTOCOL_FIXED_NEWSTYLE);
        expect_disk(&q);
        nbd_remote_fini(&q.remote);
    }
    rig_await_no_clients(&rig);
    assert_int_equal(rig.left, 0);
    rig_fini(&rig);
    place_remove(&place);
}

static void test_oldstyle(void **state)
{
    const struct rig_options options = {.size = 12345, .oldstyle = true};
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}};
    struct rig rig;

    rig_init(&rig, &options);
    assert_int_equal(nbd_server_listen_unix(rig.server, place.path, 5, NULL), 0);
    assert_int_equal(reactor_run_coroutine(inquire, &q), 0);
    assert_int_equal(q.remote.protocol, NBD_PROTOCOL_OLDSTYLE);
    assert_int_equal(q.remote.export_count, 1);
    assert_int_equal(q.remote.exports[0].size, 12345);
    nbd_remote_fini(&q.remote);
    rig_await_no_clients(&rig);
    rig_fini(&rig);
    place_remove(&place);
}

/* More exports than options of one session: the client comes back for the rest. */
#define MANY 1100

static int add_exports(void *arg)
{
    struct rig *rig = arg;

    for (unsigned i = 0; i < MANY; i++) {
        char name[16];
        struct nbd_export *e;

        snprintf(name, sizeof(name), "%u", i);
        e = nbd_export_new(name, "one of many", rig->node, true, true);
        assert_non_null(e);
        list_append(&rig->exports.list, &e->link);
    }
    return 0;
}

static int remove_exports(void *arg)
{
    struct rig *rig = arg;

    list_for_each_safe(it, next, &rig->exports.list)
    {
        struct nbd_export *e = list_entry(it, struct nbd_export, link);

        if (e != rig->nbd_export)
            nbd_export_free(e);
    }
    return 0;
}

static void test_many_exports(void **state)
{
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}};
    struct rig rig;

    rig_init(&rig, NULL);
    reactor_run_coroutine(add_exports, &rig);
    assert_int_equal(nbd_server_listen_unix(rig.server, place.path, 5, NULL), 0);
    assert_int_equal(reactor_run_coroutine(inquire, &q), 0);
    assert_int_equal(q.remote.export_count, MANY + 1);
    for (unsigned i = 0; i <= MANY; i++) {
        assert_true(q.remote.exports[i].examined);
        assert_int_equal(q.remote.exports[i].size, 1 << 20);
    }
    assert_string_equal(q.remote.exports[MANY].name.data, "1099");
    nbd_remote_fini(&q.remote);
    rig_await_no_clients(&rig);
    reactor_run_coroutine(remove_exports, &rig);
    rig_fini(&rig);
    place_remove(&place);
}

/* A port of the loopback address that is free. */
static void free_port(char *ret_port, size_t size)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    snprintf(ret_port, size, "%d", ntohs(address.sin_port));
    close(fd);
}

/* By address, and without one: then this machine is asked. */
static void test_tcp(void **state)
{
    static const char *const hosts[] = {"127.0.0.1", "0.0.0.0", NULL};
    char port[16];
    struct rig rig;

    free_port(port, sizeof(port));
    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_tcp(rig.server, "127.0.0.1", port, 5, NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        struct inquiry q = {.address = {.host = hosts[i], .port = port}, .limit_ns = 60 * SECOND};

        assert_int_equal(reactor_run_coroutine(inquire, &q), 0);
        expect_disk(&q);
        nbd_remote_fini(&q.remote);
    }
    rig_await_no_clients(&rig);
    rig_fini(&rig);
}

/* ---- No server ---- */

static void test_nobody_there(void **state)
{
    struct place place = place_make();
    char long_path[200], port[16], text[64];
    struct inquiry q = {.address = {.socket = place.path}};

    assert_int_equal(test_run(inquire, &q), -ENOENT);
    assert_said(&q, "Failed to connect to '");
    assert_said(&q, place.path);
    assert_said(&q, strerror(ENOENT));
    close(listen_at(place.path, 1));
    assert_int_equal(test_run(inquire, &q), -ECONNREFUSED);
    assert_said(&q, strerror(ECONNREFUSED));
    memset(long_path, 'x', sizeof(long_path));
    long_path[0] = '/';
    long_path[sizeof(long_path) - 1] = '\0';
    q.address.socket = long_path;
    assert_int_equal(test_run(inquire, &q), -ENAMETOOLONG);
    free_port(port, sizeof(port));
    q.address = (struct nbd_address){.host = "127.0.0.1", .port = port};
    assert_int_equal(test_run(inquire, &q), -ECONNREFUSED);
    snprintf(text, sizeof(text), "Failed to connect to '127.0.0.1:%s': ", port);
    assert_said(&q, text);
    q.address.port = "no-such-service";
    assert_int_equal(test_run(inquire, &q), -EINVAL);
    assert_said(&q, "address resolution failed for 127.0.0.1:no-such-service: ");
    place_remove(&place);
}

static void test_address_text(void **state)
{
    char text[NBD_ADDRESS_TEXT_MAX];
    const struct nbd_address v6 = {.host = "::1", .port = "nbd"}, unix_socket = {.socket = "/s"},
                             none = {.port = "1"};

    assert_string_equal(nbd_address_text(text, sizeof(text), &v6), "[::1]:nbd");
    assert_string_equal(nbd_address_text(text, sizeof(text), &unix_socket), "/s");
    assert_string_equal(nbd_address_text(text, sizeof(text), &none), "localhost:1");
}

/* ---- Servers that take their time, in simulated time ---- */

static void expect_timeout(struct inquiry *q, const char *said)
{
    int64_t start;

    sim_clock_install();
    start = sim_clock_now();
    assert_int_equal(sim_clock_run(inquire, q), -ETIMEDOUT);
    assert_int_equal(sim_clock_now() - start, q->limit_ns);
    sim_clock_remove();
    assert_said(q, q->address.socket);
    assert_said(q, said);
    nbd_remote_fini(&q->remote);
}

static void test_silent_server(void **state)
{
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}, .limit_ns = 60 * SECOND};
    int fd = listen_at(place.path, 5);

    expect_timeout(&q, "did not tell everything in time");
    close(fd);
    place_remove(&place);
}

/* A Unix socket with a full backlog cannot be waited for, only tried again. */
static void test_full_backlog(void **state)
{
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}, .limit_ns = 60 * SECOND};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = listen_at(place.path, 0), fds[8];

    strcpy(address.sun_path, place.path);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (connect(fds[i], (struct sockaddr *)&address, sizeof(address)) < 0)
            assert_int_equal(errno, EAGAIN);
    }
    expect_timeout(&q, "Failed to connect to '");
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    close(fd);
    place_remove(&place);
}

#define AGREED "greeting 3; ack 5;"
#define AGREED_BYTES (18 + NBD_OPTION_REPLY_HEADER_BYTES)

/* A server that says a script, `step` bytes at a time with a pause, whatever it is asked. */
struct scripted {
    struct inquiry *q;
    int fd;
    struct message script;
    size_t step;
    int64_t pause_ns;
    bool closes; /* when the client says nothing more; else it keeps the connection */
    int client, kept;
    bool done;
    int64_t ended_ns; /* when the client was through */
};

static void talk_script(struct scripted *s)
{
    for (size_t at = 0; at < s->script.length; at += s->step) {
        size_t n = min_u64(s->step, s->script.length - at);

        if (send(s->client, s->script.data + at, n, MSG_NOSIGNAL) < 0)
            return;
        co_sleep(s->pause_ns);
    }
}

static void serve_script(void *arg)
{
    struct scripted *s = arg;
    char asked[4096];

    if (co_wait_fd(s->fd, REACTOR_READ, SECOND) > 0) {
        s->client = accept(s->fd, NULL, NULL);
        talk_script(s);
        while (s->closes && co_wait_fd(s->client, REACTOR_READ, SECOND / 10) > 0 &&
               recv(s->client, asked, sizeof(asked), MSG_DONTWAIT) > 0)
            ;
        if (s->closes)
            close(s->client);
        else
            s->kept = s->client;
    }
    s->done = true;
}

static int inquire_script(void *arg)
{
    struct scripted *s = arg;
    int r;

    s->kept = -1;
    coroutine_start(serve_script, s);
    r = inquire(s->q);
    s->ended_ns = sys->monotonic_ns();
    while (!s->done)
        co_sleep(SECOND);
    return r;
}

/* Each byte is in time, but all together are not. */
static void test_dripping_server(void **state)
{
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}, .limit_ns = 60 * SECOND};
    struct scripted s = {
        .q = &q, .fd = listen_at(place.path, 5), .step = 1, .pause_ns = SECOND, .client = -1};
    int64_t start;

    answers_script(&s.script, "greeting 3; error 11 1; error 8 1");
    sim_clock_install();
    start = sim_clock_now();
    assert_int_equal(sim_clock_run(inquire_script, &s), -ETIMEDOUT);
    assert_int_equal(s.ended_ns - start, q.limit_ns);
    sim_clock_remove();
    assert_said(&q, "did not tell everything in time");
    nbd_remote_fini(&q.remote);
    message_free(&s.script);
    close(s.kept);
    close(s.fd);
    place_remove(&place);
}

/* `tls` (NULL: plain): then the script comes in two pieces, of which the first ends with an ACK. */
static void run_scripted_in(const struct fake_tls *tls, const char *script, bool closes, int wanted,
                            const char *said)
{
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path},
                        .tls = tls ? &tls->table : NULL,
                        .limit_ns = 60 * SECOND};
    struct scripted s = {.q = &q,
                         .fd = listen_at(place.path, 5),
                         .step = tls ? AGREED_BYTES : SIZE_MAX / 2,
                         .pause_ns = SECOND / 100,
                         .closes = closes};

    answers_script(&s.script, script);
    sim_clock_install();
    assert_int_equal(sim_clock_run(inquire_script, &s), wanted);
    sim_clock_remove();
    assert_said(&q, said);
    if (wanted == 0) {
        assert_int_equal(q.remote.export_count, 1);
        assert_true(q.remote.exports[0].examined);
        assert_int_equal(q.remote.exports[0].size, 5);
    }
    nbd_remote_fini(&q.remote);
    message_free(&s.script);
    close(s.kept);
    close(s.fd);
    place_remove(&place);
}

static void run_scripted(const char *script, bool closes, int wanted, const char *said)
{
    run_scripted_in(NULL, script, closes, wanted, said);
}

#define LISTED "greeting 3; error 11 1; error 8 1; server a; ack 3;"

static void test_scripted_servers(void **state)
{
    run_scripted("oldstyle 5 1", true, 0, "");
    run_scripted(LISTED "export 5 1; ack 6", true, 0, "");
    /* A good-bye that is never answered does not count as a failure. */
    run_scripted(LISTED "export 5 1; ack 6", false, 0, "");
    run_scripted("", true, -ECONNRESET, "before its greeting was complete");
    run_scripted("greeting 3", true, -ECONNRESET, "when asked for EXTENDED_HEADERS");
    run_scripted("greeting 0", true, -ECONNRESET, "neither list its exports nor");
    run_scripted(LISTED, true, -ECONNRESET, "when asked for INFO of export 'a'");
    run_scripted("bytes HTTP/1.1", true, -EPROTO, "this is no NBD server");
    run_scripted(LISTED "error 3 2", true, -EPROTO, "option 3 (LIST), but was asked INFO");
    run_scripted("greeting 3; error 11 5; error 8 5; error 3 5", false, -EPROTO, "wants TLS first");
}

/* ---- TLS, or what is in its place ---- */

static void test_tls(void **state)
{
    struct fake_tls server_tls, client_tls;
    const struct rig_options options = {.size = 1 << 20, .tls = &server_tls.table};
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}, .tls = &client_tls.table};
    struct rig rig;

    fake_tls_init(&server_tls, true);
    fake_tls_init(&client_tls, false);
    client_tls.client = true;
    rig_init(&rig, &options);
    reactor_run_coroutine(add_exports, &rig);
    assert_int_equal(nbd_server_listen_unix(rig.server, place.path, 5, NULL), 0);
    assert_int_equal(reactor_run_coroutine(inquire, &q), 0);
    assert_int_equal(q.remote.export_count, MANY + 1);
    for (unsigned i = 0; i <= MANY; i++)
        assert_true(q.remote.exports[i].examined);
    nbd_remote_fini(&q.remote);
    assert_true(client_tls.steps > 2); /* each connection begins anew */
    client_tls.holds = 5;
    assert_int_equal(reactor_run_coroutine(inquire, &q), 0);
    assert_int_equal(client_tls.holds, 0);
    nbd_remote_fini(&q.remote);
    client_tls.refuse = true;
    assert_int_equal(reactor_run_coroutine(inquire, &q), -EPROTO);
    assert_said(&q, "no TLS: nobody is welcome");
    client_tls.no_memory = true;
    assert_int_equal(reactor_run_coroutine(inquire, &q), -ENOMEM);
    q.tls = NULL;
    assert_int_equal(reactor_run_coroutine(inquire, &q), -EPROTO);
    assert_said(&q, "wants TLS first");
    rig_await_no_clients(&rig);
    reactor_run_coroutine(remove_exports, &rig);
    rig_fini(&rig);
    assert_int_equal(client_tls.alive + server_tls.alive, 0);
    place_remove(&place);
}

static void test_scripted_servers_with_tls(void **state)
{
    struct fake_tls tls;

    fake_tls_init(&tls, false);
    tls.client = true;
    run_scripted_in(&tls, "oldstyle 5 1", true, -EPROTO, "an older dialect");
    run_scripted_in(&tls, "greeting 0", true, -EPROTO, "an older dialect");
    run_scripted_in(&tls, "greeting 3; error 5 1", true, -EPROTO,
                    "does not support TLS (ERR_UNSUP)");
    run_scripted_in(&tls, "greeting 3", true, -ECONNRESET, "when asked for STARTTLS");
    run_scripted_in(&tls, AGREED "bytes welcomf", true, -EPROTO, "no TLS: this is no welcome");
    run_scripted_in(&tls, AGREED "bytes w", true, -EPROTO, "no TLS: this is no welcome");
    run_scripted_in(&tls, AGREED "bytes w", false, -ETIMEDOUT, "did not tell everything in time");
    assert_int_equal(tls.alive, 0);
    run_scripted_in(&tls, AGREED "bytes welcome", true, -ECONNRESET,
                    "right after the TLS handshake");
    tls.truncated = true;
    run_scripted_in(&tls, AGREED "bytes welcome", true, -ECONNRESET,
                    "right after the TLS handshake");
    tls.alert = "Go away";
    run_scripted_in(&tls, AGREED "bytes welcome", true, -ECONNRESET, "with the alert 'Go away'");
    /* What is said in the clear is no answer to what was asked inside. */
    run_scripted_in(&tls, AGREED "bytes welcome; error 11 1", true, -EPROTO, "wrong magic number");
    assert_int_equal(tls.alive, 0);
}

/* ---- Faults of the network ---- */

static void run_with_fault(struct rig *rig, struct inquiry *q, unsigned calls, unsigned nth,
                           int error, bool must_succeed)
{
    int r;

    fault_arm(&(struct fault_plan){.calls = calls, .nth = nth, .error = error});
    r = reactor_run_coroutine(inquire, q);
    if (r == 0) {
        expect_disk(q);
    } else {
        assert_false(must_succeed);
        assert_said(q, q->address.socket);
    }
    nbd_remote_fini(&q->remote);
    rig_await_no_clients(rig);
}

/* Each call of client and server in turn is interrupted or fails. */
static void test_faults(void **state)
{
    static const struct {
        unsigned calls;
        int error;
        bool must_succeed;
    } kinds[] = {
        {FAULT_CONNECT | FAULT_RECVMSG | FAULT_SENDMSG | FAULT_SHUTDOWN, EINTR, true},
        {FAULT_RECVMSG | FAULT_SENDMSG | FAULT_SHUTDOWN, ECONNRESET, false},
        {FAULT_SOCKET | FAULT_CONNECT | FAULT_RECVMSG | FAULT_SENDMSG, ENOMEM, false},
        {FAULT_SETSOCKOPT, EOPNOTSUPP, true},
    };
    struct place place = place_make();
    struct inquiry q = {.address = {.socket = place.path}, .limit_ns = 60 * SECOND};
    struct rig rig;

    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, place.path, 5, NULL), 0);
    fault_install();
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        unsigned k = 0;

        do {
            run_with_fault(&rig, &q, kinds[i].calls, ++k, kinds[i].error, kinds[i].must_succeed);
        } while (fault_count() >= k);
        assert_true(k > 2);
    }
    fault_remove();
    rig_fini(&rig);
    place_remove(&place);
}

/* Each call of the client moves a single byte. */
static void test_short_transfers(void **state)
{
    unsigned k = 0;

    fault_install();
    do {
        fault_arm(&(struct fault_plan){
            .calls = FAULT_RECVMSG | FAULT_SENDMSG, .nth = ++k, .short_to = 1});
        run_scripted(LISTED "export 5 1; ack 6", true, 0, "");
    } while (fault_count() >= k);
    fault_arm(&(struct fault_plan){
        .calls = FAULT_RECVMSG | FAULT_SENDMSG, .nth = 1, .sticky = true, .short_to = 1});
    run_scripted(LISTED "export 5 1; ack 6", true, 0, "");
    fault_remove();
    assert_true(k > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unix),
        cmocka_unit_test(test_oldstyle),
        cmocka_unit_test(test_many_exports),
        cmocka_unit_test(test_tcp),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_address_text),
        cmocka_unit_test(test_silent_server),
        cmocka_unit_test(test_full_backlog),
        cmocka_unit_test(test_dripping_server),
        cmocka_unit_test(test_scripted_servers),
        cmocka_unit_test(test_tls),
        cmocka_unit_test(test_scripted_servers_with_tls),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_short_transfers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
