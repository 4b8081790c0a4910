/* SPDX-License-Identifier: BSD-3-Clause */
/* The time that certificates are judged by, and dates for messages.  Inside of tls/. */
#ifndef EVNBD_TLS_DATES_H
#define EVNBD_TLS_DATES_H

#include <time.h>

#define TLS_DATE_MAX 32

/* The clock of the seam, as time(2). */
time_t tls_now(time_t *ret);

/* "2026-11-30"; returns `out`. */
const char *tls_day(time_t at, char out[TLS_DATE_MAX]);
/* "2026-11-30 23:59:59 UTC"; returns `out`. */
const char *tls_moment(time_t at, char out[TLS_DATE_MAX]);

#endif
