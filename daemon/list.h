/* SPDX-License-Identifier: BSD-3-Clause */
/* evnbd --list: what a server offers, for people and for programs. */
#ifndef EVNBD_DAEMON_LIST_H
#define EVNBD_DAEMON_LIST_H

#include "daemon/arguments.h"
#include "nbd/remote.h"

#include <stdio.h>

/*
 * Asks the server that the arguments name and prints its exports.  Returns 0, or negative errno
 * with a sentence that names the server.
 */
int list_run(const struct arguments *arguments, FILE *out, struct error *error);

/* What the list calls the transmission flag of that bit; NULL: nothing. */
const char *list_flag_word(unsigned bit);

/* In the layout of qemu-nbd --list; texts are made safe for terminals. */
void list_print_text(const struct nbd_remote *remote, FILE *out);

/* As one JSON object. Returns 0 or -ENOMEM with `error`; failure to write shows in `out`. */
int list_print_json(const struct nbd_remote *remote, FILE *out, struct error *error);

#endif
