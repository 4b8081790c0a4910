/* SPDX-License-Identifier: BSD-3-Clause */
/* Listening sockets, real ones: who gets the path or port, and what happens when accepting fails.
 */
#include "base/reactor.h"
#include "base/sys.h"
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
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#define SECOND INT64_C(1000000000)

static struct sockaddr_un unix_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    assert_true(strlen(path) < sizeof(address.sun_path));
    strcpy(address.sun_path, path);
    return address;
}

/* A client through the socket file. */
static void connect_unix(struct client *c, const char *path)
{
    struct sockaddr_un address = unix_address(path);

    *c = (struct client){.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    assert_int_equal(connect(c->fd, (struct sockaddr *)&address, sizeof(address)), 0);
}

static void expect_served(struct client *c)
{
    client_send_script(c, "flags 3; go disk");
    assert_true(client_receive(c, 104));
    c->in.length = 0;
    client_request(c, NBD_CMD_READ, 0, 5, 0, 1);
    client_expect_data(c, 5, "\0", 1);
}

static bool exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

/* ---- Unix sockets ---- */

static void test_unix(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct rig rig;
    struct client c;
    struct stat st;
    mode_t old = umask(0177);

    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, NULL), 0);
    umask(old);
    assert_int_equal(lstat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    connect_unix(&c, path);
    expect_served(&c);
    client_free(&c);
    rig_fini(&rig);
    assert_false(exists(path));
    free(path);
    test_dir_remove(dir);
}

static void test_live_socket_is_not_taken(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct error error = {0};
    struct rig rig;
    struct client c;

    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, NULL), 0);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, &error), -EADDRINUSE);
    assert_non_null(strstr(error.text, path));
    /* Nor by a probe that found its backlog full. */
    connect_unix(&c, path);
    expect_served(&c);
    client_free(&c);
    rig_fini(&rig);
    free(path);
    test_dir_remove(dir);
}

static void test_stale_socket_is_replaced(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct sockaddr_un address = unix_address(path);
    int dead = socket(AF_UNIX, SOCK_STREAM, 0);
    struct rig rig;
    struct client c;

    assert_int_equal(bind(dead, (struct sockaddr *)&address, sizeof(address)), 0);
    close(dead);
    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, NULL), 0);
    connect_unix(&c, path);
    expect_served(&c);
    client_free(&c);
    rig_fini(&rig);
    free(path);
    test_dir_remove(dir);
}

static void test_other_files_are_left_alone(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "file"), *link = test_path(dir, "link");
    struct error error = {0};
    struct rig rig;
    uint8_t *data;
    size_t size;

    test_file_write(path, "precious", 8);
    assert_int_equal(symlink(path, link), 0);
    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, &error), -EEXIST);
    assert_non_null(strstr(error.text, "not a socket"));
    assert_int_equal(nbd_server_listen_unix(rig.server, link, 5, &error), -EEXIST);
    assert_int_equal(nbd_server_listen_unix(rig.server, dir, 5, &error), -EEXIST);
    rig_fini(&rig);
    data = test_file_read(path, &size);
    assert_int_equal(size, 8);
    assert_memory_equal(data, "precious", 8);
    assert_true(exists(link));
    free(data);
    free(path);
    free(link);
    test_dir_remove(dir);
}

/* A socket that somebody else has put in our place is not ours to remove. */
static void test_only_own_socket_is_removed(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct sockaddr_un address = unix_address(path);
    int other = socket(AF_UNIX, SOCK_STREAM, 0);
    struct rig rig;

    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, NULL), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(bind(other, (struct sockaddr *)&address, sizeof(address)), 0);
    rig_fini(&rig);
    assert_true(exists(path));
    close(other);
    free(path);
    test_dir_remove(dir);
}

static void test_bad_paths(void **state)
{
    struct error error = {0};
    struct rig rig;
    char path[300];

    memset(path, 'x', sizeof(path) - 1);
    path[0] = '/';
    path[sizeof(path) - 1] = '\0';
    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, &error), -ENAMETOOLONG);
    assert_non_null(strstr(error.text, "299 bytes"));
    assert_int_equal(nbd_server_listen_unix(rig.server, "", 5, &error), -EINVAL);
    assert_int_equal(nbd_server_listen_unix(rig.server, "/nonexistent/socket", 5, &error), -ENOENT);
    assert_non_null(strstr(error.text, "/nonexistent/socket"));
    rig_fini(&rig);
}

/* ---- TCP ---- */

/* A port of the loopback address that is in use by `*ret_fd`. */
static void take_port(int *ret_fd, char *ret_port, size_t size)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    snprintf(ret_port, size, "%d", ntohs(address.sin_port));
    *ret_fd = fd;
}

static void connect_tcp(struct client *c, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET};

    address.sin_port = htons((uint16_t)atoi(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *c = (struct client){.fd = socket(AF_INET, SOCK_STREAM, 0)};
    assert_int_equal(connect(c->fd, (struct sockaddr *)&address, sizeof(address)), 0);
}

static void test_tcp(void **state)
{
    struct error error = {0};
    struct rig rig;
    struct client c;
    char port[16];
    int taken;

    take_port(&taken, port, sizeof(port));
    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_tcp(rig.server, "127.0.0.1", port, 5, &error), -EADDRINUSE);
    assert_non_null(strstr(error.text, "127.0.0.1"));
    assert_non_null(strstr(error.text, port));
    assert_non_null(strstr(error.text, strerror(EADDRINUSE)));
    close(taken);
    assert_int_equal(nbd_server_listen_tcp(rig.server, "127.0.0.1", port, 5, &error), 0);
    connect_tcp(&c, port);
    expect_served(&c);
    client_free(&c);
    rig_fini(&rig);
}

/* One name with addresses of both families; where there is no IPv6, the other one is enough. */
static void test_tcp_by_name(void **state)
{
    struct error error = {0};
    struct rig rig;
    struct client c;
    char port[16];
    int taken;

    take_port(&taken, port, sizeof(port));
    close(taken);
    rig_init(&rig, NULL);
    if (nbd_server_listen_tcp(rig.server, "localhost", port, 5, &error) < 0) {
        rig_fini(&rig);
        test_skip("localhost is not known here: %s", error.text);
    }
    connect_tcp(&c, port);
    expect_served(&c);
    client_free(&c);
    rig_fini(&rig);
}

/* Every address, on a machine without IPv6. */
static void test_tcp_without_ipv6(void **state)
{
    struct error error = {0};
    struct rig rig;
    struct client c;
    char port[16];
    int taken;

    take_port(&taken, port, sizeof(port));
    close(taken);
    fault_install();
    rig_init(&rig, NULL);
    fault_arm(&(struct fault_plan){.calls = FAULT_SOCKET, .nth = 1, .error = EAFNOSUPPORT});
    assert_int_equal(nbd_server_listen_tcp(rig.server, "", port, 5, &error), 0);
    assert_true(fault_fired());
    connect_tcp(&c, port);
    expect_served(&c);
    client_free(&c);
    fault_arm(&(struct fault_plan){
        .calls = FAULT_SOCKET, .nth = 1, .error = EAFNOSUPPORT, .sticky = true});
    assert_int_equal(nbd_server_listen_tcp(rig.server, "", port, 5, &error), -EAFNOSUPPORT);
    rig_fini(&rig);
    fault_remove();
}

static void test_bad_hosts(void **state)
{
    struct error error = {0};
    struct rig rig;

    rig_init(&rig, NULL);
    assert_true(nbd_server_listen_tcp(rig.server, "256.1.1.1.", "10809", 5, &error) < 0);
    assert_non_null(strstr(error.text, "256.1.1.1."));
    assert_true(nbd_server_listen_tcp(rig.server, "127.0.0.1", "no-such-service", 5, &error) < 0);
    assert_non_null(strstr(error.text, "no-such-service"));
    assert_int_equal(nbd_server_listen_tcp(rig.server, "192.0.2.77", "10809", 5, &error),
                     -EADDRNOTAVAIL);
    rig_fini(&rig);
}

/* ---- Accepting ---- */

/* Out of descriptors: accepting rests, without spinning, and goes on later. */
static void test_no_descriptors(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct rig rig;
    struct client c;
    int64_t start;

    fault_install();
    sim_clock_install();
    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, NULL), 0);
    connect_unix(&c, path);
    fault_arm(
        &(struct fault_plan){.calls = FAULT_ACCEPT, .nth = 1, .error = EMFILE, .sticky = true});
    for (int i = 0; i < 50; i++)
        reactor_poll(false);
    assert_int_equal(fault_count(), 1);
    start = sim_clock_now();
    while (fault_count() < 4)
        sim_clock_poll();
    assert_true(sim_clock_now() - start >= 3 * SECOND);
    assert_int_equal(nbd_server_connections(rig.server), 0);
    fault_arm(&(struct fault_plan){0});
    sim_clock_advance(SECOND);
    expect_served(&c);
    client_free(&c);
    rig_fini(&rig);
    sim_clock_remove();
    fault_remove();
    free(path);
    test_dir_remove(dir);
}

/* A client that has gone before it was accepted does not keep the next one out. */
static void test_aborted_connection(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct rig rig;
    struct client c;

    fault_install();
    rig_init(&rig, NULL);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, NULL), 0);
    connect_unix(&c, path);
    fault_arm(&(struct fault_plan){.calls = FAULT_ACCEPT, .nth = 1, .error = ECONNABORTED});
    expect_served(&c);
    assert_true(fault_fired());
    client_free(&c);
    rig_fini(&rig);
    fault_remove();
    free(path);
    test_dir_remove(dir);
}

/* With one place, the second client waits in the backlog and is served when the first leaves. */
static void test_backlog(void **state)
{
    const struct rig_options options = {.size = 4096, .connections_max = 1};
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct rig rig;
    struct client a, b;

    rig_init(&rig, &options);
    assert_int_equal(nbd_server_listen_unix(rig.server, path, 5, NULL), 0);
    connect_unix(&a, path);
    expect_served(&a);
    connect_unix(&b, path);
    client_expect_silence(&b);
    assert_int_equal(nbd_server_connections(rig.server), 1);
    client_free(&a);
    expect_served(&b);
    client_free(&b);
    rig_fini(&rig);
    free(path);
    test_dir_remove(dir);
}

/* Every call that listening makes fails in turn: an error with the path in it, and nothing left. */
static void test_each_call_fails(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "socket");
    struct rig rig;

    fault_install();
    rig_init(&rig, NULL);
    /* From the second on: the first looks for the lock of the directory, and is done without. */
    for (unsigned nth = 2;; nth++) {
        struct error error = {0};
        int r;

        fault_arm(&(struct fault_plan){.calls = FAULT_SOCKET | FAULT_BIND | FAULT_LISTEN |
                                                FAULT_FSTAT | FAULT_OPENAT,
                                       .nth = nth,
                                       .error = ENOBUFS});
        r = nbd_server_listen_unix(rig.server, path, 5, &error);
        if (!fault_fired()) {
            assert_int_equal(r, 0);
            assert_true(nth > 5);
            break;
        }
        assert_int_equal(r, -ENOBUFS);
        assert_true(error.text[0]);
    }
    fault_arm(&(struct fault_plan){0});
    rig_fini(&rig);
    fault_remove();
    assert_false(exists(path));
    free(path);
    test_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unix),
        cmocka_unit_test(test_live_socket_is_not_taken),
        cmocka_unit_test(test_stale_socket_is_replaced),
        cmocka_unit_test(test_other_files_are_left_alone),
        cmocka_unit_test(test_only_own_socket_is_removed),
        cmocka_unit_test(test_bad_paths),
        cmocka_unit_test(test_tcp),
        cmocka_unit_test(test_tcp_by_name),
        cmocka_unit_test(test_tcp_without_ipv6),
        cmocka_unit_test(test_bad_hosts),
        cmocka_unit_test(test_no_descriptors),
        cmocka_unit_test(test_aborted_connection),
        cmocka_unit_test(test_backlog),
        cmocka_unit_test(test_each_call_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
