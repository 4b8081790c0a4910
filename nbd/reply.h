/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Replies: everything that is said in transmission, in the form that the session has.  Nobody else
 * knows of headers.  NBD protocol, "Simple reply message", "Structured reply chunk message",
 * "Extended reply chunk message", "Structured reply types".
 *
 * A request is answered by nbd_reply_done() or nbd_reply_error(), or by content (READ) or status
 * (BLOCK_STATUS) of which the last part is told to be the last.  Simple replies have one part: the
 * whole content of a READ, and it cannot fail any more.
 *
 * All of it is queued; on a connection that is over it is dropped.
 */
#ifndef EVNBD_NBD_REPLY_H
#define EVNBD_NBD_REPLY_H

#include "blockcore/block.h"
#include "nbd/context.h"
#include "nbd/request.h"

struct nbd_connection;

/* The most pieces of files that one part of the content is put together from. */
#define NBD_REPLY_FILES_MAX 15

/* A range of the export. */
struct nbd_span {
    uint64_t offset;
    size_t length;
};

/* Success, without data or after all of it. */
void nbd_reply_done(struct nbd_connection *c, const struct nbd_request *request);
/* The request fails; `text` is for the user (simple replies have no room for it). */
void nbd_reply_error(struct nbd_connection *c, const struct nbd_request *request, uint32_t error,
                     const char *text);
/* The same for a negative errno, with a sentence made of the request. */
void nbd_reply_errno(struct nbd_connection *c, const struct nbd_request *request, int err);
/* A READ fails at `offset`; what was queued of it before is good. Not for simple replies. */
void nbd_reply_errno_at(struct nbd_connection *c, const struct nbd_request *request, int err,
                        uint64_t offset);

/* ---- The content of a READ; not for an empty one ---- */

/*
 * Room for all of a READ's content, at most NBD_REPLY_INLINE_MAX bytes, in the place from which it
 * is sent; then one of the two others before anything else is queued.  NULL: the connection is
 * over.
 */
#define NBD_REPLY_INLINE_MAX (64 * 1024)
uint8_t *nbd_reply_reserve(struct nbd_connection *c, const struct nbd_request *request);
/* The whole reply: the bytes are there. They become a hole if they are zeroes and it may be told.
 */
void nbd_reply_commit(struct nbd_connection *c, const struct nbd_request *request, uint8_t *data);
void nbd_reply_release(struct nbd_connection *c);

/* A part of the content. `buffer` came from buffer_get(span->length) and is taken over. */
void nbd_reply_buffer(struct nbd_connection *c, const struct nbd_request *request,
                      const struct nbd_span *span, uint8_t *buffer, bool last);
/*
 * All of the content as one part, which is still to be read: its header, then the bytes piece by
 * piece (each from buffer_get(length), taken over), with nothing else between.  It cannot fail any
 * more.
 */
void nbd_reply_begin(struct nbd_connection *c, const struct nbd_request *request);
void nbd_reply_more(struct nbd_connection *c, uint8_t *buffer, size_t length);
/* A part that is sent straight from files. */
void nbd_reply_files(struct nbd_connection *c, const struct nbd_request *request,
                     const struct nbd_span *span, const struct block_extent *files, unsigned count,
                     bool last);
/* A part that reads as zeroes. Not for simple replies. */
void nbd_reply_hole(struct nbd_connection *c, const struct nbd_request *request,
                    const struct nbd_span *span, bool last);

/*
 * The file at the front of the queue cannot be read: what was promised of it is sent as zeroes,
 * with an error behind.  False: this session has no way to tell.
 */
bool nbd_reply_file_failed(struct nbd_connection *c, int err);

/* ---- The content of a BLOCK_STATUS ---- */

#define NBD_REPLY_EXTENTS_MAX 8192

/* All that is told of one context: 1 to NBD_REPLY_EXTENTS_MAX extents. */
void nbd_reply_status(struct nbd_connection *c, const struct nbd_request *request, uint32_t context,
                      const struct nbd_extent *extents, unsigned count, bool last);

#endif
