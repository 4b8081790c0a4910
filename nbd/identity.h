/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who a client is, as far as the server knows: the address or the user behind its socket, and the
 * name that a TLS handshake has proved.
 */
#ifndef EVNBD_NBD_IDENTITY_H
#define EVNBD_NBD_IDENTITY_H

#include <sys/socket.h>
#include <sys/types.h>

enum nbd_identity_proof {
    NBD_PROOF_NONE,        /* no TLS, or a TLS session in which the client proved nothing */
    NBD_PROOF_CERTIFICATE, /* `name` is the distinguished name of its certificate */
    NBD_PROOF_KEY,         /* `name` is the user name of its pre-shared key */
};

struct nbd_identity {
    /* Of the socket; of the family AF_UNSPEC when it is not known. */
    struct sockaddr_storage address;
    uid_t uid; /* AF_UNIX: the process that connected, when it did */
    gid_t gid;
    gid_t *groups; /* ... and its supplementary groups, allocated */
    size_t group_count;

    /* Of the TLS session, whose strings they are. */
    enum nbd_identity_proof proof;
    const char *name; /* NULL: none was proved */
    /* Of the certificate: "DNS:...", "EMAIL:...", "URI:...", "IP:...". */
    const char *const *alt_names;
    size_t alt_name_count;
};

/*
 * What is known of the peer of a connected socket; what cannot be found out stays unknown.  A user
 * whose credentials are not to be had is no user (AF_UNSPEC).
 */
void nbd_identity_of_socket(int fd, struct nbd_identity *ret);
void nbd_identity_fini(struct nbd_identity *identity);

#endif
