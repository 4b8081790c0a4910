/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a server has told about itself and its exports.  All of it comes from outside: texts may
 * hold any bytes, and how much is kept is bounded.
 */
#ifndef EVNBD_NBD_REMOTE_H
#define EVNBD_NBD_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_REMOTE_EXPORTS_MAX 100000
#define NBD_REMOTE_CONTEXTS_MAX 100000            /* of one export */
#define NBD_REMOTE_BYTES_MAX (UINT64_C(64) << 20) /* memory for everything that is kept */

enum nbd_protocol { NBD_PROTOCOL_OLDSTYLE, NBD_PROTOCOL_NEWSTYLE, NBD_PROTOCOL_FIXED_NEWSTYLE };

struct nbd_text {
    char *data; /* NULL: not told. A NUL follows the text, which may hold others. */
    size_t length;
};

struct nbd_remote_export {
    struct nbd_text name;             /* as listed */
    struct nbd_text description;      /* as listed, empty if there was none */
    struct nbd_text canonical_name;   /* as told when the export was asked about */
    struct nbd_text info_description; /* the same */
    bool examined;                    /* size and flags are known */
    uint64_t size;                    /* at most OFFSET_MAX */
    uint16_t flags;                   /* NBD_FLAG_* of transmission */
    /* 0, all three: not told. */
    uint32_t block_min, block_preferred, block_max;
    struct nbd_text *contexts; /* metadata contexts that may be chosen from */
    size_t context_count;
    char *problem; /* why not all is known, a sentence; NULL */
};

struct nbd_remote {
    enum nbd_protocol protocol;
    bool structured_replies; /* agreed on */
    bool extended_headers;
    bool listed; /* all names are known */
    struct nbd_remote_export *exports;
    size_t export_count;
    size_t next;    /* the first export that has not been asked about */
    uint64_t bytes; /* of memory */
};

/* A zeroed one is empty, and so it is afterwards. */
void nbd_remote_fini(struct nbd_remote *remote);

/*
 * These keep copies; of the problems of an export, the first.  They return 0, -ENOMEM, or
 * -EOVERFLOW for more than is kept of one server.
 */
int nbd_remote_add_export(struct nbd_remote *remote, const void *name, size_t length);
int nbd_remote_set_text(struct nbd_remote *remote, struct nbd_text *text, const void *data,
                        size_t length);
int nbd_remote_add_context(struct nbd_remote *remote, struct nbd_remote_export *e, const void *name,
                           size_t length);
int nbd_remote_set_problem(struct nbd_remote *remote, struct nbd_remote_export *e,
                           const char *text);

/* Forgets everything but the name and description that were listed. */
void nbd_remote_forget(struct nbd_remote *remote, struct nbd_remote_export *e);

#endif
