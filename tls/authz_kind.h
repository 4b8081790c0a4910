/* SPDX-License-Identifier: BSD-3-Clause */
/* What the kinds of authorization have in common, inside of tls/. */
#ifndef EVNBD_TLS_AUTHZ_KIND_H
#define EVNBD_TLS_AUTHZ_KIND_H

#include "tls/authz.h"

/* The first member of each kind, which has either allows() or look_up(). */
struct authz {
    /* `identity` is not empty. */
    bool (*allows)(const struct authz *authz, const char *identity);
    /* Instead of allows(), of a kind that takes its time: it runs in a worker, with copies. */
    bool (*look_up)(const char *service, const char *identity);
    const char *service;
    void (*free)(struct authz *authz);
};

#endif
