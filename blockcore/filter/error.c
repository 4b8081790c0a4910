/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The filter `error`: requests that it is for end with an error, and nothing of them is done.
 * Users test with it what their clients make of errors; several rules are several nodes.
 */
#include "base/sys.h"
#include "blockcore/drivers.h"
#include "blockcore/filter.h"

#include <errno.h>
#include <inttypes.h>

#define ALL_OPERATIONS OPERATIONS

struct fault {
    /* Options. */
    int operation; /* enum block_operation or ALL_OPERATIONS */
    int error;     /* index of error_words */
    uint64_t after, count;
    uint64_t percent;
    uint64_t seed;
    uint64_t offset, size;
    /* State. */
    uint64_t passed, failed;
    uint64_t random;
};

static const char *const operation_words[] = {
    [OPERATION_READ] = "read",       [OPERATION_WRITE] = "write", [OPERATION_ZERO] = "zero",
    [OPERATION_DISCARD] = "discard", [OPERATION_FLUSH] = "flush", [ALL_OPERATIONS] = "all",
    [ALL_OPERATIONS + 1] = NULL,
};

/* What the protocol can tell a client. */
static const char *const error_words[] = {"EIO",   "EPERM",     "ENOMEM",    "EINVAL", "ENOSPC",
                                          "EROFS", "EOVERFLOW", "ESHUTDOWN", NULL};
static const int errors[] = {EIO, EPERM, ENOMEM, EINVAL, ENOSPC, EROFS, EOVERFLOW, ESHUTDOWN};

static const struct option_row fault_options[] = {
    {"operation", OPTION_ENUM, offsetof(struct fault, operation), operation_words,
     "what fails; all of them when not given"},
    {"errno", OPTION_ENUM, offsetof(struct fault, error), error_words, "the error; EIO by default"},
    {"after", OPTION_NUMBER, offsetof(struct fault, after), NULL,
     "such requests that are let pass first"},
    {"count", OPTION_NUMBER, offsetof(struct fault, count), NULL,
     "requests that fail, all when not given"},
    {"probability", OPTION_NUMBER, offsetof(struct fault, percent), NULL,
     "how many in a hundred fail, 100 by default"},
    {"seed", OPTION_NUMBER, offsetof(struct fault, seed), NULL,
     "number that decides which do; another one for each run when not given"},
    {"offset", OPTION_SIZE, offsetof(struct fault, offset), NULL,
     "first byte of the part of the disk whose requests fail"},
    {"size", OPTION_SIZE, offsetof(struct fault, size), NULL,
     "bytes of that part, to the end of the disk when not given"},
    {0},
};

static int check(const struct fault *fault, struct error *error)
{
    if (fault->percent < 1 || fault->percent > 100)
        return error_set(error, EINVAL,
                         "the option 'probability' of driver 'error' is %" PRIu64
                         ", it must be a number from 1 to 100",
                         fault->percent);
    if (fault->count == 0 || fault->size == 0)
        return error_set(error, EINVAL,
                         "the option '%s' of driver 'error' is 0, so that nothing would ever fail",
                         fault->count == 0 ? "count" : "size");
    return 0;
}

static int fault_open(struct node *node, struct node_open *open, struct error *error)
{
    struct fault *fault = node->state;
    int err;

    *fault = (struct fault){
        .operation = ALL_OPERATIONS,
        .count = UINT64_MAX,
        .percent = 100,
        .seed = UINT64_MAX,
        .size = OFFSET_MAX,
    };
    err = options_take(open->options, fault_options, fault, "driver 'error'", error);
    if (err == 0)
        err = check(fault, error);
    if (err < 0)
        return err;
    fault->random = fault->seed;
    if (fault->seed == UINT64_MAX)
        sys->random(&fault->random, sizeof(fault->random));
    node->sees_reads =
        fault->operation == OPERATION_READ || fault->operation == (int)ALL_OPERATIONS;
    return filter_open_file(node, open, error);
}

/* Whether chance wants this one: a linear congruential generator, whose high bits are good. */
static bool is_drawn(struct fault *fault)
{
    fault->random = fault->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (fault->random >> 33) % 100 < fault->percent;
}

static bool is_meant(const struct fault *fault, enum block_operation operation, uint64_t offset,
                     uint64_t length)
{
    uint64_t size = min_u64(fault->size, OFFSET_MAX - fault->offset);

    if (fault->operation != (int)operation && fault->operation != (int)ALL_OPERATIONS)
        return false;
    return operation == OPERATION_FLUSH || ranges_overlap(offset, length, fault->offset, size);
}

static int fault_before(struct node *node, enum block_operation operation, uint64_t offset,
                        uint64_t length)
{
    struct fault *fault = node->state;

    if (!is_meant(fault, operation, offset, length) || fault->failed >= fault->count)
        return 0;
    if (!coroutine_self())
        return -EAGAIN; /* counted there, where each request is seen once */
    if (fault->passed < fault->after) {
        fault->passed++;
        return 0;
    }
    if (!is_drawn(fault))
        return 0;
    fault->failed++;
    return -errors[fault->error];
}

const struct driver driver_error = {
    .name = "error",
    .kind = DRIVER_FILTER,
    .state_size = sizeof(struct fault),
    .options = fault_options,
    .open = fault_open,
    .before = fault_before,
};
