/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The numbers of the NBD protocol, and their names for logs and traces.
 * Specification: NBD protocol, "Values" (doc/proto.md of the NBD project). All integers big-endian.
 */
#ifndef EVNBD_NBD_WIRE_H
#define EVNBD_NBD_WIRE_H

#include <stdint.h>

#define NBD_MAGIC UINT64_C(0x4e42444d41474943)        /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OLDSTYLE_MAGIC UINT64_C(0x00420281861253)
#define NBD_OPTION_REPLY_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)
#define NBD_EXTENDED_REQUEST_MAGIC UINT32_C(0x21e41c71)
#define NBD_EXTENDED_REPLY_MAGIC UINT32_C(0x6e8a278c)

#define NBD_DEFAULT_PORT "10809"

enum { NBD_FLAG_FIXED_NEWSTYLE = 1 << 0, NBD_FLAG_NO_ZEROES = 1 << 1 }; /* server's and client's */

#define NBD_STRING_MAX 4096  /* bytes in names and descriptions */
#define NBD_REQUEST_BYTES 28 /* a compact request header */
#define NBD_SIMPLE_REPLY_BYTES 16
#define NBD_STRUCTURED_REPLY_BYTES 20 /* the header of a chunk */
#define NBD_EXTENDED_REQUEST_BYTES 32
#define NBD_EXTENDED_REPLY_BYTES 32 /* the header of a chunk */
#define NBD_OPTION_HEADER_BYTES 16
#define NBD_OPTION_REPLY_HEADER_BYTES 20
#define NBD_PAYLOAD_MAX (UINT32_C(32) << 20) /* largest READ and WRITE that we advertise */

/* X-macros: X(symbol, value, text for logs). */
#define NBD_OPTIONS(X)                                                                             \
    X(EXPORT_NAME, 1, "EXPORT_NAME")                                                               \
    X(ABORT, 2, "ABORT")                                                                           \
    X(LIST, 3, "LIST")                                                                             \
    X(PEEK_EXPORT, 4, "PEEK_EXPORT")                                                               \
    X(STARTTLS, 5, "STARTTLS")                                                                     \
    X(INFO, 6, "INFO")                                                                             \
    X(GO, 7, "GO")                                                                                 \
    X(STRUCTURED_REPLY, 8, "STRUCTURED_REPLY")                                                     \
    X(LIST_META_CONTEXT, 9, "LIST_META_CONTEXT")                                                   \
    X(SET_META_CONTEXT, 10, "SET_META_CONTEXT")                                                    \
    X(EXTENDED_HEADERS, 11, "EXTENDED_HEADERS")

#define NBD_REPLY_ERROR_BIT (UINT32_C(1) << 31)
#define NBD_OPTION_REPLIES(X)                                                                      \
    X(ACK, 1, "ACK")                                                                               \
    X(SERVER, 2, "SERVER")                                                                         \
    X(INFO, 3, "INFO")                                                                             \
    X(META_CONTEXT, 4, "META_CONTEXT")                                                             \
    X(ERR_UNSUP, NBD_REPLY_ERROR_BIT + 1, "ERR_UNSUP")                                             \
    X(ERR_POLICY, NBD_REPLY_ERROR_BIT + 2, "ERR_POLICY")                                           \
    X(ERR_INVALID, NBD_REPLY_ERROR_BIT + 3, "ERR_INVALID")                                         \
    X(ERR_PLATFORM, NBD_REPLY_ERROR_BIT + 4, "ERR_PLATFORM")                                       \
    X(ERR_TLS_REQD, NBD_REPLY_ERROR_BIT + 5, "ERR_TLS_REQD")                                       \
    X(ERR_UNKNOWN, NBD_REPLY_ERROR_BIT + 6, "ERR_UNKNOWN")                                         \
    X(ERR_SHUTDOWN, NBD_REPLY_ERROR_BIT + 7, "ERR_SHUTDOWN")                                       \
    X(ERR_BLOCK_SIZE_REQD, NBD_REPLY_ERROR_BIT + 8, "ERR_BLOCK_SIZE_REQD")                         \
    X(ERR_TOO_BIG, NBD_REPLY_ERROR_BIT + 9, "ERR_TOO_BIG")                                         \
    X(ERR_EXT_HEADER_REQD, NBD_REPLY_ERROR_BIT + 10, "ERR_EXT_HEADER_REQD")

#define NBD_INFOS(X)                                                                               \
    X(EXPORT, 0, "EXPORT")                                                                         \
    X(NAME, 1, "NAME")                                                                             \
    X(DESCRIPTION, 2, "DESCRIPTION")                                                               \
    X(BLOCK_SIZE, 3, "BLOCK_SIZE")

#define NBD_COMMANDS(X)                                                                            \
    X(READ, 0, "READ")                                                                             \
    X(WRITE, 1, "WRITE")                                                                           \
    X(DISC, 2, "DISC")                                                                             \
    X(FLUSH, 3, "FLUSH")                                                                           \
    X(TRIM, 4, "TRIM")                                                                             \
    X(CACHE, 5, "CACHE")                                                                           \
    X(WRITE_ZEROES, 6, "WRITE_ZEROES")                                                             \
    X(BLOCK_STATUS, 7, "BLOCK_STATUS")                                                             \
    X(RESIZE, 8, "RESIZE")

/* Chunks of structured and extended replies; bit 15 marks errors. */
#define NBD_REPLY_TYPES(X)                                                                         \
    X(NONE, 0, "NONE")                                                                             \
    X(OFFSET_DATA, 1, "OFFSET_DATA")                                                               \
    X(OFFSET_HOLE, 2, "OFFSET_HOLE")                                                               \
    X(BLOCK_STATUS, 5, "BLOCK_STATUS")                                                             \
    X(BLOCK_STATUS_EXT, 6, "BLOCK_STATUS_EXT")                                                     \
    X(ERROR, 0x8001, "ERROR")                                                                      \
    X(ERROR_OFFSET, 0x8002, "ERROR_OFFSET")

enum { NBD_REPLY_FLAG_DONE = 1 << 0 }; /* the last chunk of a reply */

/* Error numbers on the wire; Linux's values, fixed by the protocol. */
#define NBD_ERRORS(X)                                                                              \
    X(SUCCESS, 0, "success")                                                                       \
    X(EPERM, 1, "EPERM")                                                                           \
    X(EIO, 5, "EIO")                                                                               \
    X(ENOMEM, 12, "ENOMEM")                                                                        \
    X(EINVAL, 22, "EINVAL")                                                                        \
    X(ENOSPC, 28, "ENOSPC")                                                                        \
    X(EOVERFLOW, 75, "EOVERFLOW")                                                                  \
    X(ENOTSUP, 95, "ENOTSUP")                                                                      \
    X(ESHUTDOWN, 108, "ESHUTDOWN")

#define NBD_ENUM(symbol, value, text) NBD_OPT_##symbol = value,
enum nbd_option { NBD_OPTIONS(NBD_ENUM) };
#undef NBD_ENUM
#define NBD_ENUM(symbol, value, text) NBD_INFO_##symbol = value,
enum nbd_info { NBD_INFOS(NBD_ENUM) };
#undef NBD_ENUM
#define NBD_ENUM(symbol, value, text) NBD_CMD_##symbol = value,
enum nbd_command { NBD_COMMANDS(NBD_ENUM) };
#undef NBD_ENUM
#define NBD_ENUM(symbol, value, text) NBD_REPLY_TYPE_##symbol = value,
enum nbd_reply_type { NBD_REPLY_TYPES(NBD_ENUM) };
#undef NBD_ENUM
#define NBD_ENUM(symbol, value, text) NBD_##symbol = value,
enum nbd_error { NBD_ERRORS(NBD_ENUM) };
#undef NBD_ENUM
/* Reply types need all 32 bits, which an enum of C17 does not promise. */
#define NBD_REP_ACK UINT32_C(1)
#define NBD_REP_SERVER UINT32_C(2)
#define NBD_REP_INFO UINT32_C(3)
#define NBD_REP_META_CONTEXT UINT32_C(4)
#define NBD_REP_ERR_UNSUP (NBD_REPLY_ERROR_BIT + 1)
#define NBD_REP_ERR_POLICY (NBD_REPLY_ERROR_BIT + 2)
#define NBD_REP_ERR_INVALID (NBD_REPLY_ERROR_BIT + 3)
#define NBD_REP_ERR_PLATFORM (NBD_REPLY_ERROR_BIT + 4)
#define NBD_REP_ERR_TLS_REQD (NBD_REPLY_ERROR_BIT + 5)
#define NBD_REP_ERR_UNKNOWN (NBD_REPLY_ERROR_BIT + 6)
#define NBD_REP_ERR_SHUTDOWN (NBD_REPLY_ERROR_BIT + 7)
#define NBD_REP_ERR_BLOCK_SIZE_REQD (NBD_REPLY_ERROR_BIT + 8)
#define NBD_REP_ERR_TOO_BIG (NBD_REPLY_ERROR_BIT + 9)
#define NBD_REP_ERR_EXT_HEADER_REQD (NBD_REPLY_ERROR_BIT + 10)

enum {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
    NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5,
};

enum {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_READ_ONLY = 1 << 1,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_ROTATIONAL = 1 << 4,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_RESIZE = 1 << 9,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
    NBD_FLAG_BLOCK_STATUS_PAYLOAD = 1 << 12,
};

/* Names for logs; "unknown" for what has none. */
const char *nbd_option_name(uint32_t option);
const char *nbd_option_reply_name(uint32_t type);
const char *nbd_info_name(uint16_t info);
const char *nbd_command_name(uint16_t command);
const char *nbd_reply_type_name(uint16_t type);
const char *nbd_error_name(uint32_t error);

/* The wire's error for a negative errno of the block layer (0 for 0); unknown ones become EIO. */
uint32_t nbd_error_from_errno(int err);

#endif
