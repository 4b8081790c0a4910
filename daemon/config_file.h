/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The configuration file: many exports and listeners in one server.  Its settings are the options
 * of the command line, by their long names; evnbd.conf(5) tells what there is.
 */
#ifndef EVNBD_DAEMON_CONFIG_FILE_H
#define EVNBD_DAEMON_CONFIG_FILE_H

#include "base/list.h"
#include "daemon/arguments.h"

/* A part of the server: what a section [listen LABEL] or [export LABEL] says. */
struct config_part {
    struct list link;
    struct arguments arguments;
    const char *where; /* "FILE:LINE", of the section */
    const char *label;
};

struct config {
    struct arguments server; /* [server] */
    struct list listeners;   /* struct config_part; in the order of the file, as is the next */
    struct list exports;
    struct list texts; /* what parts and arguments point to */
};

/*
 * Reads the file, and after it, sorted, the files *.conf in the folder conf.d beside it, if there
 * is one.  What they say is judged as far as that is possible without looking at images and
 * sockets. Negative errno with a sentence that begins "FILE:LINE: "; config_fini() in any case.
 */
int config_read(struct config *config, const char *path, struct error *error);
void config_fini(struct config *config);

#endif
