/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Each message is one datagram of lines NAME=VALUE to the socket that the manager names.  Sending
 * never waits: a manager that is not listening, or is behind, is no reason to keep clients waiting.
 */
#include "systemd/notify.h"

#include "base/log.h"
#include "base/size.h"
#include "base/sys.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STATE_MAX 64 /* bytes of the lines before the status */

static int set_address(struct notify *notify, const char *name, struct error *error)
{
    struct sockaddr_un *address = &notify->address;
    size_t length = strlen(name);

    if ((*name != '/' && *name != '@') || length < 2)
        return error_set(error, EINVAL,
                         "Cannot notify the service manager: NOTIFY_SOCKET is '%s'; the path of a "
                         "socket, or '@' and an abstract name, is needed",
                         name);
    if (length >= sizeof(address->sun_path))
        return error_set(error, EINVAL,
                         "Cannot notify the service manager: NOTIFY_SOCKET has %zu bytes; a "
                         "socket's name has at most %zu",
                         length, sizeof(address->sun_path) - 1);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, name, length + 1);
    notify->address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (*name == '@')
        address->sun_path[0] = '\0';
    else
        notify->address_length++; /* the path ends in a zero byte, an abstract name does not */
    return 0;
}

static int make_socket(struct notify *notify, const char *name, struct error *error)
{
    int err = set_address(notify, name, error);

    if (err < 0)
        return err;
    notify->fd = sys->socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (notify->fd < 0)
        return error_set_errno(error, -notify->fd,
                               "Cannot notify the service manager: could not make a socket");
    return 0;
}

/* The time that the manager waits, if it is this process that it watches. */
static int64_t watchdog_of_environment(void)
{
    const char *usec = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");
    uint64_t time, number;

    if (!usec || number_parse(usec, INT64_MAX / 1000, &time) < 0)
        return 0;
    if (pid && (number_parse(pid, INT32_MAX, &number) < 0 || number != (uint64_t)getpid()))
        return 0;
    return (int64_t)time * 1000;
}

int notify_open(struct notify *notify, struct error *error)
{
    const char *name = getenv("NOTIFY_SOCKET");
    int err = 0;

    *notify = (struct notify){.fd = -1};
    if (name) {
        err = make_socket(notify, name, error);
        if (err == 0)
            notify->watchdog_ns = watchdog_of_environment();
    }
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return err;
}

bool notify_wanted(const struct notify *notify)
{
    return notify->fd >= 0;
}

void notify_close(struct notify *notify)
{
    reactor_timer_stop(&notify->watchdog);
    if (notify->fd >= 0)
        sys->close(notify->fd);
    notify->fd = -1;
}

static void send_message(struct notify *notify, const char *message)
{
    struct iovec iov = {.iov_base = (char *)(uintptr_t)message, .iov_len = strlen(message)};
    struct msghdr header = {
        .msg_name = &notify->address,
        .msg_namelen = notify->address_length,
        .msg_iov = &iov,
        .msg_iovlen = 1,
    };
    ssize_t n;

    if (!notify_wanted(notify))
        return;
    do
        n = sys->sendmsg(notify->fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (n == -EINTR);
    if (n < 0)
        log_debug("cannot notify the service manager: %s", strerror((int)-n));
}

__attribute__((format(printf, 3, 0))) static void
send_state(struct notify *notify, const char *state, const char *format, va_list args)
{
    char status[NOTIFY_STATUS_MAX], printable[NOTIFY_STATUS_MAX];
    char message[STATE_MAX + sizeof("STATUS=") + NOTIFY_STATUS_MAX];

    vsnprintf(status, sizeof(status), format, args);
    error_printable(printable, sizeof(printable), status, strlen(status));
    snprintf(message, sizeof(message), "%sSTATUS=%s", state, printable);
    send_message(notify, message);
}

static void on_watchdog(struct reactor_timer *timer)
{
    struct notify *notify = container_of(timer, struct notify, watchdog);

    send_message(notify, "WATCHDOG=1");
    reactor_timer_start(timer, notify->watchdog_ns / 2, on_watchdog);
}

void notify_ready(struct notify *notify, const char *format, ...)
{
    char state[STATE_MAX];
    va_list args;

    snprintf(state, sizeof(state), "READY=1\nMAINPID=%ld\n", (long)getpid());
    va_start(args, format);
    send_state(notify, state, format, args);
    va_end(args);
    notify->ready = true;
    if (notify->watchdog_ns > 0)
        on_watchdog(&notify->watchdog);
}

void notify_status(struct notify *notify, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    send_state(notify, "", format, args);
    va_end(args);
}

void notify_stopping(struct notify *notify, const char *format, ...)
{
    va_list args;

    if (!notify->ready)
        return;
    va_start(args, format);
    send_state(notify, "STOPPING=1\n", format, args);
    va_end(args);
}
