/* SPDX-License-Identifier: BSD-3-Clause */
/* Looking at the TLS credentials of the command line instead of serving with them. */
#ifndef EVNBD_DAEMON_TLS_CHECK_H
#define EVNBD_DAEMON_TLS_CHECK_H

#include "daemon/arguments.h"

/* Prints a line for each thing that is right or wrong. -EINVAL if something is wrong. */
int tls_check_run(const struct arguments *arguments, FILE *out, struct error *error);

#endif
