/* SPDX-License-Identifier: BSD-3-Clause */
/* Asking the kernel who is at the other end of a socket. */
#include "nbd/identity.h"

#include "base/sys.h"
#include "nbd/access.h"

#include <errno.h>
#include <stdlib.h>

/* Hardly anybody is in more groups. */
#define GROUPS_GUESS 32

/* The kernel says how much room it wants when there is too little. */
static int get_groups(int fd, struct nbd_identity *identity)
{
    socklen_t length = GROUPS_GUESS * sizeof(gid_t);
    int r;

    do {
        free(identity->groups);
        identity->groups = malloc(length);
        if (!identity->groups)
            return -ENOMEM;
        r = sys->getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, identity->groups, &length);
    } while (r == -ERANGE && length > 0);
    identity->group_count = r < 0 ? 0 : length / sizeof(gid_t);
    return r;
}

void nbd_identity_of_socket(int fd, struct nbd_identity *ret)
{
    socklen_t length = sizeof(ret->address);
    struct ucred peer = {0};

    *ret = (struct nbd_identity){.address.ss_family = AF_UNSPEC};
    if (sys->getpeername(fd, (struct sockaddr *)&ret->address, &length) < 0)
        ret->address.ss_family = AF_UNSPEC;
    if (ret->address.ss_family != AF_UNIX)
        return;
    length = sizeof(peer);
    if (sys->getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) {
        ret->address.ss_family = AF_UNSPEC;
        return;
    }
    ret->uid = peer.uid;
    ret->gid = peer.gid;
    get_groups(fd, ret);
}

void nbd_identity_fini(struct nbd_identity *identity)
{
    free(identity->groups);
    identity->groups = NULL;
    identity->group_count = 0;
    free(identity->answers);
    identity->answers = NULL;
    identity->answer_count = 0;
}

bool nbd_identity_add_answer(struct nbd_identity *identity, const struct nbd_authorizer *authorizer,
                             bool yes)
{
    size_t count = identity->answer_count + 1;
    struct nbd_answer *answers = realloc(identity->answers, count * sizeof(*answers));

    if (!answers)
        return false;
    answers[count - 1] = (struct nbd_answer){.authority = authorizer->arg, .yes = yes};
    identity->answers = answers;
    identity->answer_count = count;
    return true;
}

const struct nbd_answer *nbd_identity_answer(const struct nbd_identity *identity,
                                             const struct nbd_authorizer *authorizer)
{
    for (size_t i = 0; i < identity->answer_count; i++) {
        if (identity->answers[i].authority == authorizer->arg)
            return &identity->answers[i];
    }
    return NULL;
}
