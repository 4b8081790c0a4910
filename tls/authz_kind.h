/* SPDX-License-Identifier: BSD-3-Clause */
/* What the kinds of authorization have in common, inside of tls/. */
#ifndef EVNBD_TLS_AUTHZ_KIND_H
#define EVNBD_TLS_AUTHZ_KIND_H

#include "tls/authz.h"

/* The first member of each kind. */
struct authz {
    /* `identity` is not empty. */
    bool (*allows)(const struct authz *authz, const char *identity);
    void (*free)(struct authz *authz);
};

#endif
