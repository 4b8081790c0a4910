/* SPDX-License-Identifier: BSD-3-Clause */
#include "blockcore/filter/throttle_limits.h"

#include "base/checked.h"

#include <errno.h>
#include <inttypes.h>

#define RATE_MAX UINT64_C(1000000000000000) /* a burst of it still fits a double to the byte */
#define NS_PER_S 1e9
/* A day: what a range of any length has to wait for may not fit the nanoseconds of a timer. */
#define WAIT_MAX_S 86400.0
/* Without a burst, a bucket holds what may be done in so many parts of a second. */
#define PARTS 10

#define LIMIT(prefix, name, index, kind, unit)                                                     \
    {prefix name, kind,                                                                            \
     offsetof(struct throttle_config, limits) + (index) * sizeof(struct throttle_limit) +          \
         offsetof(struct throttle_limit, rate),                                                    \
     NULL, unit " a second"},                                                                      \
        {prefix name "-max", kind,                                                                 \
         offsetof(struct throttle_config, limits) + (index) * sizeof(struct throttle_limit) +      \
             offsetof(struct throttle_limit, burst),                                               \
         NULL, unit " a second in a burst"},                                                       \
    {                                                                                              \
        prefix name "-max-length", OPTION_NUMBER,                                                  \
            offsetof(struct throttle_config, limits) + (index) * sizeof(struct throttle_limit) +   \
                offsetof(struct throttle_limit, burst_length),                                     \
            NULL, "seconds of such a burst, 1 when not given"                                      \
    }

#define ROWS(prefix)                                                                               \
    LIMIT(prefix, "bps-total", THROTTLE_BPS_TOTAL, OPTION_SIZE, "bytes"),                          \
        LIMIT(prefix, "bps-read", THROTTLE_BPS_READ, OPTION_SIZE, "bytes read"),                   \
        LIMIT(prefix, "bps-write", THROTTLE_BPS_WRITE, OPTION_SIZE, "bytes written"),              \
        LIMIT(prefix, "iops-total", THROTTLE_IOPS_TOTAL, OPTION_NUMBER, "requests"),               \
        LIMIT(prefix, "iops-read", THROTTLE_IOPS_READ, OPTION_NUMBER, "reads"),                    \
        LIMIT(prefix, "iops-write", THROTTLE_IOPS_WRITE, OPTION_NUMBER, "writes"),                 \
    {                                                                                              \
        prefix "iops-size", OPTION_SIZE, offsetof(struct throttle_config, iops_size), NULL,        \
            "bytes that count as a request of their own"                                           \
    }

const struct option_row throttle_options[] = {ROWS("limits."), {0}};

static const struct option_row x_options[] = {ROWS("x-"), {0}};

/* The row of a limit in throttle_options; rate, burst and length follow one another. */
static const char *name_of(unsigned index)
{
    return throttle_options[(size_t)index * 3].name;
}

static int check_limit(const struct throttle_limit *limit, const char *name, struct error *error)
{
    uint64_t largest = 0;

    if (limit->rate > RATE_MAX || limit->burst > RATE_MAX ||
        mul_overflows(limit->burst, limit->burst_length, &largest) || largest > RATE_MAX)
        return error_set(error, EINVAL,
                         "the option '%s', or its -max times -max-length, is above %" PRIu64, name,
                         RATE_MAX);
    if (limit->burst > 0 && limit->rate == 0)
        return error_set(error, EINVAL, "the option '%s-max' needs '%s'", name, name);
    if (limit->burst > 0 && limit->burst < limit->rate)
        return error_set(error, EINVAL,
                         "the option '%s-max' is %" PRIu64
                         ", it must not be lower than '%s' (%" PRIu64 ")",
                         name, limit->burst, name, limit->rate);
    if (limit->burst_length > 0 && limit->burst == 0)
        return error_set(error, EINVAL, "the option '%s-max-length' needs '%s-max'", name, name);
    return 0;
}

/* A limit in total and one of a direction would be two answers to one question. */
static int check_pair(const struct throttle_config *config, unsigned total, struct error *error)
{
    const struct throttle_limit *limits = &config->limits[total];

    if (limits[0].rate > 0 && (limits[1].rate > 0 || limits[2].rate > 0))
        return error_set(error, EINVAL,
                         "the option '%s' cannot be used together with '%s' and '%s'",
                         name_of(total), name_of(total + 1), name_of(total + 2));
    return 0;
}

static int check(const struct throttle_config *config, struct error *error)
{
    const struct throttle_limit *iops = &config->limits[THROTTLE_IOPS_TOTAL];
    int err = check_pair(config, THROTTLE_BPS_TOTAL, error);

    if (err == 0)
        err = check_pair(config, THROTTLE_IOPS_TOTAL, error);
    for (unsigned i = 0; i < THROTTLE_BUCKETS && err == 0; i++)
        err = check_limit(&config->limits[i], name_of(i), error);
    if (err == 0 && config->iops_size > 0 && iops[0].rate + iops[1].rate + iops[2].rate == 0)
        err = error_set(error, EINVAL, "the option 'limits.iops-size' needs a limit of requests");
    return err;
}

/* The second name of an option that has a value already is an error. */
static int merge(uint64_t *value, uint64_t other, const struct option_row *row, struct error *error)
{
    if (*value > 0 && other > 0)
        return error_set(error, EINVAL, "the options '%s' and '%s' mean the same: leave one out",
                         throttle_options[row - x_options].name, row->name);
    *value += other;
    return 0;
}

int throttle_take(json_t *options, struct throttle_config *ret, struct error *error)
{
    struct throttle_config second = {0};
    int err;

    *ret = (struct throttle_config){0};
    err = options_take(options, throttle_options, ret, "driver 'throttle'", error);
    if (err == 0)
        err = options_take(options, x_options, &second, "driver 'throttle'", error);
    for (const struct option_row *row = x_options; row->name && err == 0; row++)
        err = merge((uint64_t *)((uint8_t *)ret + row->offset),
                    *(uint64_t *)((uint8_t *)&second + row->offset), row, error);
    return err == 0 ? check(ret, error) : err;
}

/* The limits that a request of the direction meets; at most one of total and direction is set. */
static void limits_of(enum throttle_direction direction, unsigned out[4])
{
    out[0] = THROTTLE_BPS_TOTAL;
    out[1] = THROTTLE_IOPS_TOTAL;
    out[2] = direction == THROTTLE_READ ? THROTTLE_BPS_READ : THROTTLE_BPS_WRITE;
    out[3] = direction == THROTTLE_READ ? THROTTLE_IOPS_READ : THROTTLE_IOPS_WRITE;
}

bool throttle_is_limited(const struct throttle_limits *limits, enum throttle_direction direction)
{
    unsigned indices[4];
    bool limited = false;

    limits_of(direction, indices);
    for (unsigned i = 0; i < ARRAY_SIZE(indices); i++)
        limited |= limits->config.limits[indices[i]].rate > 0;
    return limited;
}

static double leak(double level, uint64_t rate, double seconds)
{
    double rest = level - (double)rate * seconds;

    return rest > 0 ? rest : 0;
}

void throttle_leak(struct throttle_limits *limits, int64_t now_ns)
{
    double seconds = (double)(now_ns - limits->leaked_ns) / NS_PER_S;

    limits->leaked_ns = now_ns;
    for (unsigned i = 0; i < THROTTLE_BUCKETS; i++) {
        const struct throttle_limit *limit = &limits->config.limits[i];
        struct throttle_bucket *bucket = &limits->buckets[i];

        bucket->level = leak(bucket->level, limit->rate, seconds);
        bucket->burst_level = leak(bucket->burst_level, limit->burst, seconds);
    }
}

/* Seconds until what is above the capacity has leaked. */
static double wait_for(double level, double capacity, uint64_t rate)
{
    return level > capacity ? (level - capacity) / (double)rate : 0;
}

static double bucket_wait(const struct throttle_limit *limit, const struct throttle_bucket *bucket)
{
    uint64_t length = limit->burst_length > 0 ? limit->burst_length : 1;
    double capacity =
        limit->burst > 0 ? (double)limit->burst * (double)length : (double)limit->rate / PARTS;
    double wait = wait_for(bucket->level, capacity, limit->rate), burst = 0;

    if (length > 1)
        burst = wait_for(bucket->burst_level, (double)limit->burst / PARTS, limit->burst);
    return wait > burst ? wait : burst;
}

int64_t throttle_wait_ns(const struct throttle_limits *limits, enum throttle_direction direction)
{
    unsigned indices[4];
    double wait = 0;

    limits_of(direction, indices);
    for (unsigned i = 0; i < ARRAY_SIZE(indices); i++) {
        const struct throttle_limit *limit = &limits->config.limits[indices[i]];
        double one = limit->rate > 0 ? bucket_wait(limit, &limits->buckets[indices[i]]) : 0;

        wait = one > wait ? one : wait;
    }
    if (wait > WAIT_MAX_S)
        wait = WAIT_MAX_S;
    /* A little more, so that rounding never makes it too early. */
    return wait > 0 ? (int64_t)(wait * NS_PER_S) + 1 : 0;
}

void throttle_count(struct throttle_limits *limits, enum throttle_direction direction,
                    uint64_t bytes)
{
    uint64_t unit = limits->config.iops_size;
    double requests = unit > 0 && bytes > unit ? (double)bytes / (double)unit : 1;
    unsigned indices[4];

    limits_of(direction, indices);
    for (unsigned i = 0; i < ARRAY_SIZE(indices); i++) {
        struct throttle_bucket *bucket = &limits->buckets[indices[i]];
        double units = indices[i] < THROTTLE_IOPS_TOTAL ? (double)bytes : requests;

        bucket->level += units;
        bucket->burst_level += units;
    }
}
