/* SPDX-License-Identifier: BSD-3-Clause */
/* The URI of a server as the argument of --list. */
#ifndef EVNBD_DAEMON_LIST_URI_H
#define EVNBD_DAEMON_LIST_URI_H

#include "daemon/arguments.h"

/*
 * Puts what the URI says where the options would have; -EINVAL with a sentence when both say it, or
 * when what they say does not go together.
 */
int list_uri_take(struct arguments *arguments, const char *text, struct error *error);

/* What is said of an argument of --list that is no URI: -EINVAL, with `error` set. */
int list_uri_refuse(const char *text, struct error *error);

#endif
