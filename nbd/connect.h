/* SPDX-License-Identifier: BSD-3-Clause */
/* Connecting to a server. */
#ifndef EVNBD_NBD_CONNECT_H
#define EVNBD_NBD_CONNECT_H

#include "base/error.h"
#include "base/nbd_uri.h"

#include <stddef.h>
#include <stdint.h>

struct stream;

/* Enough for any address in a message; longer ones are cut. */
#define NBD_ADDRESS_TEXT_MAX 300

/* What users call the address: the path, "host:port" or "[::1]:port". Returns `out`. */
char *nbd_address_text(char *out, size_t out_size, const struct nbd_address *address);

/*
 * What is left until `deadline_ns` of sys->monotonic_ns(), 0 when it has passed, -1 for INT64_MAX:
 * no limit.  As co_wait_fd() wants it.
 */
int64_t nbd_time_left(int64_t deadline_ns);

/*
 * In a coroutine: connects, by `deadline_ns`.  All addresses of a host are
 * tried, one after the other.  Returns 0, or negative errno with a sentence that names the server.
 */
int nbd_connect(const struct nbd_address *address, int64_t deadline_ns, struct stream **ret,
                struct error *error);

#endif
