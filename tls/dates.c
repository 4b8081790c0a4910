/* SPDX-License-Identifier: BSD-3-Clause */
#include "tls/dates.h"

#include "base/sys.h"

time_t tls_now(time_t *ret)
{
    time_t seconds = (time_t)(sys->realtime_ns() / INT64_C(1000000000));

    if (ret)
        *ret = seconds;
    return seconds;
}

const char *tls_day(time_t at, char out[TLS_DATE_MAX])
{
    struct tm tm;

    strftime(out, TLS_DATE_MAX, "%F", gmtime_r(&at, &tm));
    return out;
}

const char *tls_moment(time_t at, char out[TLS_DATE_MAX])
{
    struct tm tm;

    strftime(out, TLS_DATE_MAX, "%F %T UTC", gmtime_r(&at, &tm));
    return out;
}
