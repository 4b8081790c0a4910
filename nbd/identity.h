/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who a client is, as far as the server knows: the address or the user behind its socket, and the
 * name that a TLS handshake has proved.
 */
#ifndef EVNBD_NBD_IDENTITY_H
#define EVNBD_NBD_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

enum nbd_identity_proof {
    NBD_PROOF_NONE,        /* no TLS, or a TLS session in which the client proved nothing */
    NBD_PROOF_CERTIFICATE, /* `name` is the distinguished name of its certificate */
    NBD_PROOF_KEY,         /* `name` is the user name of its pre-shared key */
};

struct nbd_authorizer;

/* What was found out about the client's name (nbd/access.h). */
struct nbd_answer {
    const void *authority; /* `arg` of the authorizer, only compared */
    bool yes;
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
    struct nbd_answer *answers; /* about `name`, allocated */
    size_t answer_count;
};

/*
 * What is known of the peer of a connected socket; what cannot be found out stays unknown.  A user
 * whose credentials are not to be had is no user (AF_UNSPEC).
 */
void nbd_identity_of_socket(int fd, struct nbd_identity *ret);
void nbd_identity_fini(struct nbd_identity *identity);

/* Remembers an answer. False: out of memory. */
bool nbd_identity_add_answer(struct nbd_identity *identity, const struct nbd_authorizer *authorizer,
                             bool yes);
/* NULL: there is none. */
const struct nbd_answer *nbd_identity_answer(const struct nbd_identity *identity,
                                             const struct nbd_authorizer *authorizer);

#endif
