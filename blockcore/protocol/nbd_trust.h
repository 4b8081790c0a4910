/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whether libnbd is going to verify a server's certificate.  Without a CA certificate that it can
 * read it verifies nothing, and does not say so; so that is looked at before each connection, and
 * again when the connection is there.
 */
#ifndef EVNBD_BLOCKCORE_PROTOCOL_NBD_TRUST_H
#define EVNBD_BLOCKCORE_PROTOCOL_NBD_TRUST_H

#include "blockcore/protocol/nbd.h"

/* What tells one state of the directory and of the CA certificate from another. */
struct nbd_trust {
    struct {
        uint64_t device, inode;
        int64_t changed_ns;
    } dir, ca;
};

/* Whether a connection with these options relies on the certificate of the server. */
bool nbd_trust_needed(const struct nbd_options *options);

/*
 * Looks whether the CA certificate can be read, and takes its state; may wait for a disk.  Negative
 * errno with a sentence: it cannot, and no connection must be made.  Where no certificate is to be
 * verified there is nothing to look at.
 */
int nbd_trust_look(struct nbd_trust *ret, const struct nbd_options *options, struct error *error);

/* Looks again: also -ESTALE if it is not as it was at `before`. */
int nbd_trust_confirm(const struct nbd_trust *before, const struct nbd_options *options,
                      struct error *error);

#endif
