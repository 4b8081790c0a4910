/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of the daemon: open, listen, serve, stop. */
#ifndef EVNBD_DAEMON_SERVE_H
#define EVNBD_DAEMON_SERVE_H

#include "daemon/arguments.h"
#include "daemon/config_file.h"
#include "daemon/daemonize.h"
#include "systemd/activation.h"
#include "systemd/notify.h"

/* Who started the process, and what they gave it and want to know. */
struct service {
    struct activation activation;
    struct notify notify;
    struct daemonize daemonize;
};

/*
 * Serves the image, or with `config` (else NULL) all that it tells, on the sockets that were passed
 * or on one of its own, until a signal or the last client ends it.  Nothing can be connected to
 * before the image is known to be good; then who started the process is told.  Returns 0, or
 * negative errno with `error` set when serving could not start or the image could not be written
 * back at the end.
 */
int serve_run(const struct arguments *arguments, const struct config *config,
              struct service *service, struct error *error);

#endif
