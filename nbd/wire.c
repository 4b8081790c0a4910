/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names of the protocol's numbers, generated from the rows of nbd/wire.h, and the mapping of errno
 * values to the few that the protocol knows.
 */
#include "nbd/wire.h"

#include <errno.h>

#define NAME_CASE(symbol, value, text)                                                             \
    case value:                                                                                    \
        return text;

const char *nbd_option_name(uint32_t option)
{
    switch (option) {
        NBD_OPTIONS(NAME_CASE)
    default:
        return "unknown";
    }
}

const char *nbd_option_reply_name(uint32_t type)
{
    switch (type) {
        NBD_OPTION_REPLIES(NAME_CASE)
    default:
        return "unknown";
    }
}

const char *nbd_info_name(uint16_t info)
{
    switch (info) {
        NBD_INFOS(NAME_CASE)
    default:
        return "unknown";
    }
}

const char *nbd_command_name(uint16_t command)
{
    switch (command) {
        NBD_COMMANDS(NAME_CASE)
    default:
        return "unknown";
    }
}

const char *nbd_reply_type_name(uint16_t type)
{
    switch (type) {
        NBD_REPLY_TYPES(NAME_CASE)
    default:
        return "unknown";
    }
}

const char *nbd_error_name(uint32_t error)
{
    switch (error) {
        NBD_ERRORS(NAME_CASE)
    default:
        return "unknown";
    }
}

uint32_t nbd_error_from_errno(int err)
{
    switch (err < 0 ? -err : err) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP: /* EOPNOTSUPP is the same number on Linux */
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}
