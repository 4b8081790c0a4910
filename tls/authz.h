/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who is allowed: a decision about the name that a TLS handshake has proved (struct tls_identity).
 */
#ifndef EVNBD_TLS_AUTHZ_H
#define EVNBD_TLS_AUTHZ_H

#include <stdbool.h>

struct authz;

bool authz_allows(const struct authz *authz, const char *identity);

#endif
