/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a server said in the handshake, as text: one item a message, separated by "; ".
 *
 *   greeting                        the newstyle greeting
 *   oldstyle SIZE 0xFLAGS           the whole of the oldstyle one
 *   LIST SERVER 'name' 'text'       replies: option, type, fields
 *   GO INFO EXPORT SIZE 0xFLAGS
 *   GO INFO BLOCK_SIZE MIN PREFERRED MAX
 *   SET_META_CONTEXT META_CONTEXT ID 'name'
 *   GO ERR_UNKNOWN                  errors; their text is only checked
 *   export SIZE 0xFLAGS [zeroes]    the answer to EXPORT_NAME
 */
#ifndef EVNBD_TESTS_TRANSCRIPT_H
#define EVNBD_TESTS_TRANSCRIPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Reads `data` from the start of a session.  The text is allocated; what does not follow the
 * protocol is told in it with "BAD", as is an error without a sentence in printable text.
 */
char *transcript_of(const uint8_t *data, size_t length, bool oldstyle);

#endif
