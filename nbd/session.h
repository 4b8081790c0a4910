/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a handshake has negotiated beside the export, and transmission goes by: the kind of replies
 * and the metadata contexts.  The handshake owns one while it lasts; the connection copies it when
 * transmission begins.  A plain value: nothing in it needs to be freed.
 */
#ifndef EVNBD_NBD_SESSION_H
#define EVNBD_NBD_SESSION_H

#include "nbd/export.h"
#include "nbd/wire.h"

/* Each mode can do what those before it can. */
enum nbd_reply_mode {
    NBD_MODE_SIMPLE,     /* compact requests, simple replies */
    NBD_MODE_STRUCTURED, /* compact requests, structured replies */
    NBD_MODE_EXTENDED,   /* extended requests and replies */
};

struct nbd_session {
    enum nbd_reply_mode mode;
    /* The export whose contexts were selected, and a bit for each of them: 1 << its number. */
    const struct nbd_export *selected_of;
    uint64_t selected;
};

/* Forgets everything: a new session, and one whose client changed over to TLS. */
static inline void nbd_session_reset(struct nbd_session *session)
{
    *session = (struct nbd_session){.mode = NBD_MODE_SIMPLE};
}

/* The contexts of this export that the client selected; 0: BLOCK_STATUS was not negotiated. */
static inline uint64_t nbd_session_contexts(const struct nbd_session *session,
                                            const struct nbd_export *nbd_export)
{
    return session->selected_of == nbd_export ? session->selected : 0;
}

/* The transmission flags (NBD_FLAG_*) of the export in this session. */
static inline uint16_t nbd_session_flags(const struct nbd_session *session,
                                         const struct nbd_export *nbd_export)
{
    uint16_t flags = nbd_export->flags;

    if (session->mode >= NBD_MODE_STRUCTURED)
        flags |= NBD_FLAG_SEND_DF;
    if (session->mode >= NBD_MODE_EXTENDED && nbd_session_contexts(session, nbd_export))
        flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
    return flags;
}

#endif
