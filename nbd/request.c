/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests of the transmission phase as data: decoding, encoding, judging.
 *
 * nbd_request_check() is the only judge.  Its order of questions is that of the protocol's rules:
 * is the command known here, are its flags, may this export be changed, is the range inside, is the
 * length one that we serve.
 */
#include "nbd/request.h"

#include "base/bytes.h"
#include "base/checked.h"

bool nbd_request_decode(const uint8_t *header, struct nbd_request *ret)
{
    ret->flags = get_be16(header + 4);
    ret->command = get_be16(header + 6);
    ret->cookie = get_be64(header + 8);
    ret->offset = get_be64(header + 16);
    ret->length = get_be32(header + 24);
    return get_be32(header) == NBD_REQUEST_MAGIC;
}

void nbd_request_encode(uint8_t *header, const struct nbd_request *request)
{
    put_be32(header, NBD_REQUEST_MAGIC);
    put_be16(header + 4, request->flags);
    put_be16(header + 6, request->command);
    put_be64(header + 8, request->cookie);
    put_be64(header + 16, request->offset);
    put_be32(header + 24, (uint32_t)request->length);
}

void nbd_simple_reply_encode(uint8_t *header, uint64_t cookie, uint32_t error)
{
    put_be32(header, NBD_SIMPLE_REPLY_MAGIC);
    put_be32(header + 4, error);
    put_be64(header + 8, cookie);
}

uint64_t nbd_request_payload(const struct nbd_request *request)
{
    return request->command == NBD_CMD_WRITE ? request->length : 0;
}

/* What the protocol says of each command, as data. */
struct command_rule {
    uint16_t needs;    /* transmission flags, one of which is missing: not offered */
    uint16_t flags;    /* command flags besides FUA */
    bool writes;       /* EPERM on a read-only export */
    bool ranged;       /* offset and length must lie inside the export */
    bool moves_data;   /* length is bounded by the largest payload */
    uint32_t past_end; /* the error of a range that leaves the export */
};

static const struct command_rule rules[] = {
    [NBD_CMD_READ] = {.ranged = true, .moves_data = true, .past_end = NBD_EINVAL},
    [NBD_CMD_WRITE] = {.writes = true, .ranged = true, .moves_data = true, .past_end = NBD_ENOSPC},
    [NBD_CMD_DISC] = {0},
    [NBD_CMD_FLUSH] = {.needs = NBD_FLAG_SEND_FLUSH},
    [NBD_CMD_TRIM] = {.needs = NBD_FLAG_SEND_TRIM,
                      .writes = true,
                      .ranged = true,
                      .past_end = NBD_EINVAL},
    [NBD_CMD_CACHE] = {.needs = NBD_FLAG_SEND_CACHE, .ranged = true, .past_end = NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {.needs = NBD_FLAG_SEND_WRITE_ZEROES,
                              .flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              .writes = true,
                              .ranged = true,
                              .past_end = NBD_ENOSPC},
};

static uint32_t refuse(uint32_t error, const char *why, const char **ret_why)
{
    *ret_why = why;
    return error;
}

/* Command flags that a client may set here; FUA is allowed everywhere once it is offered. */
static uint16_t allowed_flags(const struct command_rule *rule, const struct nbd_export *nbd_export)
{
    uint16_t flags = rule->flags;

    if (nbd_export->flags & NBD_FLAG_SEND_FUA)
        flags |= NBD_CMD_FLAG_FUA;
    if (!(nbd_export->flags & NBD_FLAG_SEND_FAST_ZERO))
        flags &= (uint16_t)~NBD_CMD_FLAG_FAST_ZERO;
    return flags;
}

static uint32_t check_range(const struct nbd_request *request, const struct command_rule *rule,
                            const struct nbd_export *nbd_export, const char **ret_why)
{
    if (!range_within(request->offset, request->length, nbd_export->size))
        return refuse(rule->past_end, "the range reaches past the end of the export", ret_why);
    if (!is_aligned(request->offset | request->length, nbd_export->block_min))
        return refuse(NBD_EINVAL, "the range is not a multiple of the minimum block size", ret_why);
    if (!rule->moves_data || request->length <= nbd_export->block_max)
        return NBD_SUCCESS;
    /* EOVERFLOW is for requests without payload: a READ may be repeated in smaller parts. */
    return refuse(request->command == NBD_CMD_WRITE ? NBD_EINVAL : NBD_EOVERFLOW,
                  "the length is larger than the maximum payload", ret_why);
}

uint32_t nbd_request_check(const struct nbd_request *request, const struct nbd_export *nbd_export,
                           const char **ret_why)
{
    const struct command_rule *rule;

    *ret_why = NULL;
    if (request->command >= ARRAY_SIZE(rules))
        return refuse(NBD_EINVAL, "the command is not known or was not negotiated", ret_why);
    rule = &rules[request->command];
    if (request->flags & ~allowed_flags(rule, nbd_export))
        return refuse(NBD_EINVAL, "the command has flags that are not valid for it", ret_why);
    if (rule->writes && nbd_export->read_only)
        return refuse(NBD_EPERM, "the export is read-only", ret_why);
    if (rule->needs & ~nbd_export->flags)
        return refuse(NBD_EINVAL, "the command is not offered by this export", ret_why);
    return rule->ranged ? check_range(request, rule, nbd_export, ret_why) : NBD_SUCCESS;
}
