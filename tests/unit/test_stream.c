/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets as streams. */
#include "base/stream.h"

#include "base/sys.h"
#include "tests/support/fault.h"
#include "tests/support/support.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* Two streams, connected with each other. */
struct pair {
    struct stream *a, *b;
};

static void open_pair(struct pair *pair)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    pair->a = stream_socket_new(fds[0]);
    pair->b = stream_socket_new(fds[1]);
    assert_non_null(pair->a);
    assert_non_null(pair->b);
}

static void close_stream(struct stream **stream)
{
    int fd = (*stream)->fd;

    (*stream)->ops->close(*stream);
    *stream = NULL;
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

static void close_pair(struct pair *pair)
{
    close_stream(&pair->a);
    close_stream(&pair->b);
}

static ssize_t send_text(struct stream *stream, const char *text)
{
    char copy[64];
    struct iovec iov = {copy, strlen(text)};

    assert_true(iov.iov_len < sizeof(copy));
    memcpy(copy, text, iov.iov_len);
    return stream->ops->send(stream, &iov, 1, false);
}

static ssize_t recv_bytes(struct stream *stream, void *data, size_t size)
{
    struct iovec iov = {data, size};

    return stream->ops->recv(stream, &iov, 1);
}

static void sockets_are_made_fit(void **state)
{
    struct pair pair;

    (void)state;
    open_pair(&pair);
    assert_true(fcntl(pair.a->fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(pair.a->fd, F_GETFD) & FD_CLOEXEC);
    assert_false(pair.a->ops->pending(pair.a));
    close_pair(&pair);
}

static void bytes_go_both_ways_in_vectors(void **state)
{
    char in[4][3] = {{0}};
    struct iovec iov[4];
    struct pair pair;

    (void)state;
    open_pair(&pair);
    assert_int_equal(recv_bytes(pair.a, in[0], 3), -EAGAIN);
    assert_int_equal(send_text(pair.b, "hello world"), 11);
    for (int i = 0; i < 4; i++)
        iov[i] = (struct iovec){in[i], 3};
    assert_int_equal(pair.a->ops->recv(pair.a, iov, 2), 6);
    assert_int_equal(pair.a->ops->recv(pair.a, iov + 2, 2), 5);
    assert_memory_equal(in, "hello world", 12);
    for (int i = 0; i < 4; i++)
        iov[i].iov_len = 2;
    assert_int_equal(pair.a->ops->send(pair.a, iov, 4, true), 8);
    assert_int_equal(recv_bytes(pair.b, in[0], 3), 3);
    assert_memory_equal(in[0], "hel", 3);
    close_pair(&pair);
}

static void more_vectors_than_the_kernel_takes_are_a_short_transfer(void **state)
{
    enum { COUNT = 3 * IOV_MAX };
    static char bytes[COUNT], got[COUNT];
    static struct iovec iov[COUNT], in[COUNT];
    struct pair pair;

    (void)state;
    open_pair(&pair);
    for (int i = 0; i < COUNT; i++) {
        bytes[i] = (char)i;
        iov[i] = (struct iovec){&bytes[i], 1};
        in[i] = (struct iovec){&got[i], 1};
    }
    for (int sent = 0; sent < COUNT; sent += IOV_MAX)
        assert_int_equal(pair.a->ops->send(pair.a, iov + sent, COUNT - sent, false), IOV_MAX);
    for (int taken = 0; taken < COUNT; taken += IOV_MAX)
        assert_int_equal(pair.b->ops->recv(pair.b, in + taken, COUNT - taken), IOV_MAX);
    assert_memory_equal(got, bytes, COUNT);
    close_pair(&pair);
}

static void a_full_socket_says_so(void **state)
{
    static char bytes[1 << 20];
    struct iovec iov = {bytes, sizeof(bytes)};
    ssize_t n = 0, sent = 0, received = 0;
    struct pair pair;

    (void)state;
    open_pair(&pair);
    while ((n = pair.a->ops->send(pair.a, &iov, 1, false)) > 0)
        sent += n;
    assert_int_equal(n, -EAGAIN);
    while ((n = recv_bytes(pair.b, bytes, sizeof(bytes))) > 0)
        received += n;
    assert_int_equal(n, -EAGAIN);
    assert_int_equal(received, sent);
    close_pair(&pair);
}

static void the_end_is_seen_on_both_sides(void **state)
{
    struct pair pair;
    char byte;

    (void)state;
    signal(SIGPIPE, SIG_DFL);
    open_pair(&pair);
    assert_int_equal(pair.a->ops->shutdown(pair.a), 0);
    assert_int_equal(recv_bytes(pair.b, &byte, 1), 0);
    assert_int_equal(send_text(pair.b, "x"), 1);
    assert_int_equal(recv_bytes(pair.a, &byte, 1), 1);
    assert_int_equal(send_text(pair.a, "x"), -EPIPE);
    close_stream(&pair.b);
    assert_int_equal(send_text(pair.a, "x"), -EPIPE);
    assert_int_equal(recv_bytes(pair.a, &byte, 1), 0);
    close_stream(&pair.a);
}

static int file_of(const void *data, size_t size)
{
    int fd = memfd_create("file", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), size);
    return fd;
}

static void files_are_sent_from_an_offset(void **state)
{
    int fd = file_of("0123456789", 10);
    struct pair pair;
    char in[16];

    (void)state;
    open_pair(&pair);
    assert_int_equal(pair.a->ops->send_file(pair.a, fd, 3, 5), 5);
    assert_int_equal(recv_bytes(pair.b, in, sizeof(in)), 5);
    assert_memory_equal(in, "34567", 5);
    assert_int_equal(pair.a->ops->send_file(pair.a, fd, 8, 5), 2);
    assert_int_equal(pair.a->ops->send_file(pair.a, fd, 10, 5), 0);
    assert_int_equal(lseek(fd, 0, SEEK_CUR), 10);
    assert_true(pair.a->ops->send_file(pair.a, -1, 0, 5) == -EBADF);
    close_pair(&pair);
    close(fd);
}

static void interrupted_calls_are_made_again(void **state)
{
    int fd = file_of("file", 4);
    struct pair pair;
    char in[8];

    (void)state;
    open_pair(&pair);
    fault_install();
    fault_arm(&(struct fault_plan){.calls = FAULT_SENDMSG, .nth = 1, .error = EINTR});
    assert_int_equal(send_text(pair.a, "abcd"), 4);
    assert_true(fault_fired());
    fault_arm(&(struct fault_plan){.calls = FAULT_SENDFILE, .nth = 1, .error = EINTR});
    assert_int_equal(pair.a->ops->send_file(pair.a, fd, 0, 4), 4);
    assert_true(fault_fired());
    fault_arm(&(struct fault_plan){.calls = FAULT_RECVMSG, .nth = 1, .error = EINTR});
    assert_int_equal(recv_bytes(pair.b, in, sizeof(in)), 8);
    assert_true(fault_fired());
    assert_memory_equal(in, "abcdfile", 8);
    fault_arm(&(struct fault_plan){.calls = FAULT_SHUTDOWN, .nth = 1, .error = EINTR});
    assert_int_equal(pair.a->ops->shutdown(pair.a), 0);
    assert_true(fault_fired());
    fault_remove();
    close_pair(&pair);
    close(fd);
}

static void other_errors_are_handed_on(void **state)
{
    struct pair pair;
    char in[8];

    (void)state;
    open_pair(&pair);
    fault_install();
    fault_arm(&(struct fault_plan){.calls = FAULT_SENDMSG, .nth = 1, .error = ECONNRESET});
    assert_int_equal(send_text(pair.a, "abcd"), -ECONNRESET);
    fault_arm(&(struct fault_plan){.calls = FAULT_RECVMSG, .nth = 1, .error = ETIMEDOUT});
    assert_int_equal(recv_bytes(pair.b, in, sizeof(in)), -ETIMEDOUT);
    fault_remove();
    close_pair(&pair);
}

static int sent_flags;
static struct sys watching;

static ssize_t watch_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    sent_flags = flags;
    return sys_posix.sendmsg(fd, msg, flags);
}

static void more_is_said_to_the_kernel(void **state)
{
    struct iovec iov;
    struct pair pair;
    char byte = 'x';

    (void)state;
    iov = (struct iovec){&byte, 1};
    watching = sys_posix;
    watching.sendmsg = watch_sendmsg;
    open_pair(&pair);
    sys = &watching;
    assert_int_equal(pair.a->ops->send(pair.a, &iov, 1, true), 1);
    assert_true(sent_flags & MSG_MORE);
    assert_int_equal(pair.a->ops->send(pair.a, &iov, 1, false), 1);
    assert_false(sent_flags & MSG_MORE);
    assert_true(sent_flags & MSG_NOSIGNAL);
    sys = &sys_posix;
    close_pair(&pair);
}

/* A TCP connection through the loopback interface; -1 where there is none. */
static int tcp_connection(int *ret_peer)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0), fd = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0 ||
        connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        close(listener);
        close(fd);
        return -1;
    }
    *ret_peer = accept(listener, NULL, NULL);
    close(listener);
    return fd;
}

static void tcp_does_not_wait_for_more_by_itself(void **state)
{
    int fd, peer = -1, nodelay = 0;
    socklen_t length = sizeof(nodelay);
    struct stream *stream;

    (void)state;
    fd = tcp_connection(&peer);
    if (fd < 0)
        test_skip("no TCP connection can be made on this machine");
    stream = stream_socket_new(fd);
    assert_non_null(stream);
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &nodelay, &length), 0);
    assert_int_not_equal(nodelay, 0);
    stream->ops->close(stream);
    close(peer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sockets_are_made_fit),
        cmocka_unit_test(bytes_go_both_ways_in_vectors),
        cmocka_unit_test(more_vectors_than_the_kernel_takes_are_a_short_transfer),
        cmocka_unit_test(a_full_socket_says_so),
        cmocka_unit_test(the_end_is_seen_on_both_sides),
        cmocka_unit_test(files_are_sent_from_an_offset),
        cmocka_unit_test(interrupted_calls_are_made_again),
        cmocka_unit_test(other_errors_are_handed_on),
        cmocka_unit_test(more_is_said_to_the_kernel),
        cmocka_unit_test(tcp_does_not_wait_for_more_by_itself),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
