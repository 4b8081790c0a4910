/* SPDX-License-Identifier: BSD-3-Clause */
/* Telling a service manager how the service is, sd_notify(3), and that it is alive, sd_watchdog(3).
 */
#ifndef EVNBD_SYSTEMD_NOTIFY_H
#define EVNBD_SYSTEMD_NOTIFY_H

#include "base/error.h"
#include "base/reactor.h"

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

/* A longer status is cut: it is one line for a person. */
#define NOTIFY_STATUS_MAX 256

struct notify {
    int fd; /* below 0: nobody wants to know */
    struct sockaddr_un address;
    socklen_t address_length;
    int64_t watchdog_ns; /* the manager ends a service that it did not hear of for so long; 0: no */
    struct reactor_timer watchdog;
    bool ready;
};

/*
 * Takes what the manager has put into the environment (NOTIFY_SOCKET: a path, or an abstract name
 * after '@'; WATCHDOG_USEC and WATCHDOG_PID), and removes it, so that no child answers in our name.
 * Without NOTIFY_SOCKET all calls below do nothing.  Returns 0, or -EINVAL or the error of making
 * the socket with a sentence, and does nothing from then on: a service without a manager is better
 * than none.  To be called before a fork(): the watchdog is meant for the process that was started.
 */
int notify_open(struct notify *notify, struct error *error);
/* Whether anybody wants to know. */
bool notify_wanted(const struct notify *notify);
/* Stops the watchdog. */
void notify_close(struct notify *notify);

/*
 * READY=1 with the id of this process, and a status as of notify_status(); then, while the loop
 * runs, WATCHDOG=1 whenever half of the manager's patience has passed.
 */
__attribute__((format(printf, 2, 3))) void notify_ready(struct notify *notify, const char *format,
                                                        ...);
/* STATUS=: what `systemctl status` shows. Control bytes are made printable. */
__attribute__((format(printf, 2, 3))) void notify_status(struct notify *notify, const char *format,
                                                         ...);
/* STOPPING=1: no new work is begun. The watchdog goes on until notify_close(). */
__attribute__((format(printf, 2, 3))) void notify_stopping(struct notify *notify,
                                                           const char *format, ...);

#endif
