/* SPDX-License-Identifier: BSD-3-Clause */
/* Asking a server what it offers, over the network: see nbd/client.h for what is asked. */
#ifndef EVNBD_NBD_INQUIRY_H
#define EVNBD_NBD_INQUIRY_H

#include "nbd/connect.h"
#include "nbd/remote.h"

struct nbd_tls;

/*
 * In a coroutine: asks, for `limit_ns` at most in all (0: no limit), and fills *ret, which is empty
 * before.  A server that allows few options a connection is asked on several.  `tls` (NULL: plain):
 * all is asked inside of TLS, or nothing.  Returns 0, or negative errno with a sentence that names
 * the server; nbd_remote_fini() in any case.
 */
int nbd_inquire(const struct nbd_address *address, const struct nbd_tls *tls, int64_t limit_ns,
                struct nbd_remote *ret, struct error *error);

#endif
