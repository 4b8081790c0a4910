/* SPDX-License-Identifier: BSD-3-Clause */
/* What is offered and chosen when the user says nothing about it. Inside of tls/. */
#ifndef EVNBD_TLS_PRIORITY_H
#define EVNBD_TLS_PRIORITY_H

#include "tls/credentials.h"

/* A GnuTLS priority string: TLS 1.3 and 1.2, authenticated encryption, forward secrecy. */
const char *tls_priority(enum tls_kind kind);

#endif
