/* SPDX-License-Identifier: BSD-3-Clause */
/* The action --partition=list. */
#ifndef EVNBD_DAEMON_PARTITION_LIST_H
#define EVNBD_DAEMON_PARTITION_LIST_H

#include "daemon/arguments.h"

/* Prints the partitions of the image, which is only read. */
int partition_list_run(const struct arguments *arguments, FILE *out, struct error *error);

#endif
