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
#include "nbd/context.h"

/* ---- Coding ---- */

/* With compact headers only a WRITE has a payload; with extended ones the flag says so. */
static bool has_payload(enum nbd_reply_mode mode, const struct nbd_request *request)
{
    if (mode == NBD_MODE_EXTENDED)
        return request->flags & NBD_CMD_FLAG_PAYLOAD_LEN;
    return request->command == NBD_CMD_WRITE;
}

bool nbd_request_decode(enum nbd_reply_mode mode, const uint8_t *header, struct nbd_request *ret)
{
    bool extended = mode == NBD_MODE_EXTENDED;

    ret->flags = get_be16(header + 4);
    ret->command = get_be16(header + 6);
    ret->cookie = get_be64(header + 8);
    ret->offset = get_be64(header + 16);
    ret->length = extended ? get_be64(header + 24) : get_be32(header + 24);
    ret->payload = has_payload(mode, ret) ? ret->length : 0;
    ret->contexts = 0;
    return get_be32(header) == (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
}

static void encode_start(uint8_t *header, uint32_t magic, const struct nbd_request *request)
{
    put_be32(header, magic);
    put_be16(header + 4, request->flags);
    put_be16(header + 6, request->command);
    put_be64(header + 8, request->cookie);
    put_be64(header + 16, request->offset);
}

void nbd_request_encode(uint8_t *header, const struct nbd_request *request)
{
    encode_start(header, NBD_REQUEST_MAGIC, request);
    put_be32(header + 24, (uint32_t)request->length);
}

void nbd_request_encode_extended(uint8_t *header, const struct nbd_request *request)
{
    encode_start(header, NBD_EXTENDED_REQUEST_MAGIC, request);
    put_be64(header + 24, request->length);
}

/* ---- The payload of BLOCK_STATUS: a length, then ids of contexts ---- */

#define FILTER_LENGTH_BYTES 8
#define FILTER_ID_BYTES 4

size_t nbd_request_filter_bytes(const struct nbd_request *request)
{
    uint64_t payload = request->payload;

    if (request->command != NBD_CMD_BLOCK_STATUS || payload < FILTER_LENGTH_BYTES ||
        payload > FILTER_LENGTH_BYTES + NBD_CONTEXTS_MAX * FILTER_ID_BYTES ||
        payload % FILTER_ID_BYTES != 0)
        return 0;
    return payload;
}

void nbd_request_take_filter(struct nbd_request *request, const uint8_t *payload, uint64_t selected)
{
    struct byte_reader reader = byte_reader_of(payload, request->payload);
    uint64_t contexts = 0;

    request->length = byte_reader_be64(&reader);
    request->payload = 0;
    request->contexts = 0;
    while (reader.left > 0) {
        uint32_t id = byte_reader_be32(&reader);
        uint64_t bit = id < NBD_CONTEXTS_MAX ? UINT64_C(1) << id : 0;

        if (!(selected & bit) || (contexts & bit)) /* unknown, or there twice: none at all */
            return;
        contexts |= bit;
    }
    request->contexts = contexts;
}

/* ---- Judging ---- */

/* What the protocol says of each command, as data. */
struct command_rule {
    uint16_t needs;    /* transmission flags, one of which is missing: not offered */
    uint16_t flags;    /* command flags besides those of optional_flags */
    bool writes;       /* EPERM on a read-only export */
    bool ranged;       /* offset and length must lie inside the export */
    bool moves_data;   /* length is bounded by the largest payload */
    uint32_t past_end; /* the error of a range that leaves the export */
};

static const struct command_rule rules[] = {
    [NBD_CMD_READ] = {.flags = NBD_CMD_FLAG_DF,
                      .ranged = true,
                      .moves_data = true,
                      .past_end = NBD_EINVAL},
    [NBD_CMD_WRITE] = {.flags = NBD_CMD_FLAG_PAYLOAD_LEN,
                       .writes = true,
                       .ranged = true,
                       .moves_data = true,
                       .past_end = NBD_ENOSPC},
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
    [NBD_CMD_BLOCK_STATUS] = {.flags = NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN,
                              .ranged = true,
                              .past_end = NBD_EINVAL},
};

/* Flags that depend on what was offered: on which transmission flag. */
static const struct {
    uint16_t flag, needs;
} optional_flags[] = {
    {NBD_CMD_FLAG_FUA, NBD_FLAG_SEND_FUA},
    {NBD_CMD_FLAG_DF, NBD_FLAG_SEND_DF},
    {NBD_CMD_FLAG_FAST_ZERO, NBD_FLAG_SEND_FAST_ZERO},
};

static uint32_t refuse(uint32_t error, const char *why, const char **ret_why)
{
    *ret_why = why;
    return error;
}

/* Command flags that a client may set; FUA is allowed everywhere once it is offered. */
static uint16_t allowed_flags(const struct command_rule *rule, uint16_t command, uint16_t offered,
                              enum nbd_reply_mode mode)
{
    uint16_t flags = rule->flags | NBD_CMD_FLAG_FUA;
    bool payload = command == NBD_CMD_BLOCK_STATUS ? offered & NBD_FLAG_BLOCK_STATUS_PAYLOAD
                                                   : mode == NBD_MODE_EXTENDED;

    for (size_t i = 0; i < ARRAY_SIZE(optional_flags); i++) {
        if (!(offered & optional_flags[i].needs))
            flags &= (uint16_t)~optional_flags[i].flag;
    }
    return payload ? flags : flags & (uint16_t)~NBD_CMD_FLAG_PAYLOAD_LEN;
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

/* What holds for one command alone. */
static uint32_t check_special(const struct nbd_request *request,
                              const struct nbd_export *nbd_export,
                              const struct nbd_session *session, const char **ret_why)
{
    if (request->command == NBD_CMD_WRITE && session->mode == NBD_MODE_EXTENDED &&
        !(request->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
        return refuse(NBD_EINVAL, "a WRITE with extended headers needs the payload flag", ret_why);
    if (request->command != NBD_CMD_BLOCK_STATUS)
        return NBD_SUCCESS;
    if (!nbd_session_contexts(session, nbd_export))
        return refuse(NBD_EINVAL, "no metadata context of this export was negotiated", ret_why);
    if (request->flags & NBD_CMD_FLAG_PAYLOAD_LEN && !request->contexts)
        return refuse(NBD_EINVAL,
                      "the payload must be a length and ids of negotiated contexts, each once",
                      ret_why);
    if (request->length == 0)
        return refuse(NBD_EINVAL, "a length of zero has no status", ret_why);
    return NBD_SUCCESS;
}

uint32_t nbd_request_check(const struct nbd_request *request, const struct nbd_export *nbd_export,
                           const struct nbd_session *session, const char **ret_why)
{
    const struct command_rule *rule;
    uint16_t offered = nbd_session_flags(session, nbd_export);
    uint32_t error;

    *ret_why = NULL;
    if (request->command >= ARRAY_SIZE(rules))
        return refuse(NBD_EINVAL, "the command is not known or was not negotiated", ret_why);
    rule = &rules[request->command];
    if (request->flags &&
        request->flags & ~allowed_flags(rule, request->command, offered, session->mode))
        return refuse(NBD_EINVAL, "the command has flags that are not valid for it", ret_why);
    if (rule->writes && nbd_export->read_only)
        return refuse(NBD_EPERM, "the export is read-only", ret_why);
    if (rule->needs & ~offered)
        return refuse(NBD_EINVAL, "the command is not offered by this export", ret_why);
    error = check_special(request, nbd_export, session, ret_why);
    if (error != NBD_SUCCESS)
        return error;
    return rule->ranged ? check_range(request, rule, nbd_export, ret_why) : NBD_SUCCESS;
}
