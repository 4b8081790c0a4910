/* SPDX-License-Identifier: BSD-3-Clause */
/* Exports: what clients may ask for. A table owned by the server, seen by the handshake as data. */
#ifndef EVNBD_NBD_EXPORT_H
#define EVNBD_NBD_EXPORT_H

#include "base/colock.h"

#include <stdint.h>

struct node;
struct block_bitmap;
struct error;
struct nbd_access;

/* Two other contexts and so many bitmaps have numbers below NBD_CONTEXTS_MAX. */
#define NBD_EXPORT_BITMAPS_MAX 62

struct nbd_export {
    struct list link;
    char *name;                                     /* UTF-8, at most NBD_STRING_MAX bytes */
    char *description;                              /* or NULL */
    struct node *node;                              /* the export holds a reference */
    uint64_t size;                                  /* bytes, fixed while exported */
    uint16_t flags;                                 /* NBD_FLAG_* of transmission */
    uint32_t block_min, block_preferred, block_max; /* bytes; NBD protocol, "Size constraints" */
    bool read_only;
    bool needs_tls;           /* without TLS it is not listed and nobody enters it */
    bool detect_zeroes;       /* writes of zeroes become zeroing */
    bool detect_zeroes_unmap; /* ... and may unmap */
    bool write_through;       /* every write is followed by a flush */
    /*
     * Guessed raw: the disk whose first bytes must not start to look like a format, which is `node`
     * or what `node` is a part of; NULL: they may.
     */
    struct node *header_node;
    uint64_t header_offset;                    /* where `node` begins in it */
    const struct driver *const *probe_drivers; /* the formats, for header_node */
    struct co_mutex header_mutex;              /* one write to the probed bytes at a time */
    const struct nbd_access *access;           /* who may use it, the caller's; NULL: everybody */
    unsigned clients_max;        /* at a time; further ones are refused; 0: no limit */
    unsigned clients;            /* in transmission, counted by the server */
    struct nbd_removal *removal; /* the server's, while it is taken away */
    bool allocation_depth;       /* offers the context qemu:allocation-depth */
    unsigned bitmap_count;
    struct block_bitmap *bitmaps[NBD_EXPORT_BITMAPS_MAX]; /* the node's, offered as contexts */
};

struct nbd_exports {
    struct list list;
    /* The export of the empty name where none is called ""; NULL: the empty name is unknown. */
    struct nbd_export *default_export;
};

void nbd_exports_init(struct nbd_exports *exports);
/* Copies the strings, takes a reference to node, fills flags and sizes from it. NULL: no memory. */
struct nbd_export *nbd_export_new(const char *name, const char *description, struct node *node,
                                  bool read_only, bool multi_conn);
/* In a coroutine (it may close the node). */
void nbd_export_free(struct nbd_export *nbd_export);
/*
 * Offers the node's bitmap of that name as a context. Returns 0, or negative errno with a sentence
 * (-EEXIST: it is offered already, -ENOSPC: too many). Before clients are served.
 */
int nbd_export_add_bitmap(struct nbd_export *nbd_export, const char *name, struct error *error);
/* `name` is `length` bytes, not NUL-terminated. NULL: unknown. */
struct nbd_export *nbd_exports_find(const struct nbd_exports *exports, const void *name,
                                    size_t length);

#endif
