/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a driver is: a const table of functions and data.
 *
 * Formats map, the core moves: a format driver answers where the bytes of a guest range are and
 * keeps its own tables right; the data engine (blockcore/engine.c) does all the moving,
 * copy-on-write included.  Only protocol drivers, and filters that need to, have preadv and
 * pwritev. A NULL function means that the core emulates it, or refuses with one standard message.
 *
 * All functions run in a coroutine.  The core has checked bounds and read-only state before it
 * calls, and holds the range locks that engine.c describes.
 */
#ifndef EVNBD_BLOCKCORE_DRIVER_H
#define EVNBD_BLOCKCORE_DRIVER_H

#include "base/error.h"
#include "base/options.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct block_bitmap;
struct block_check;
struct block_context;
struct block_create_target;
struct block_measure;
struct block_progress;
struct block_snapshot_ops;
struct cipher;
struct luks_area;
struct node;
struct node_open;

enum extent_kind {
    EXTENT_DATA,    /* the bytes are in `child` at `child_offset` */
    EXTENT_ZERO,    /* reads as zeroes, whatever lies below */
    EXTENT_ABSENT,  /* this layer has nothing here: the backing node, else zeroes */
    EXTENT_ENCODED, /* compressed or encrypted in `child`: the driver's decode gives the bytes */
};

enum {
    EXTENT_WRITABLE = 1 << 0, /* DATA: may be overwritten in place */
    EXTENT_RESERVED = 1 << 1, /* ZERO, ABSENT: storage is reserved for the range */
    /*
     * DATA: encrypted in sectors of 512 bytes, which the core does; only where node->encrypted.
     * Guest, child and cipher offset are the same modulo 512.
     */
    EXTENT_ENCRYPTED = 1 << 2,
};

/* An answer of map(): describes [offset asked for, + length). */
struct extent {
    enum extent_kind kind;
    unsigned flags;
    uint64_t length; /* bytes, at least 1 */
    struct node *child;
    uint64_t child_offset; /* DATA: of the first byte; ENCODED: of the encoded unit */
    /* ENCODED: the unit that holds the range, and the bytes that encode it. */
    uint64_t unit_offset, unit_length; /* guest bytes */
    uint64_t encoded_length;           /* bytes readable at child_offset at most */
    /* ENCRYPTED: the node's, NULL when it was opened without a key; and what numbers the sectors.
     */
    const struct cipher *cipher;
    uint64_t cipher_offset; /* of the first byte */
};

/*
 * What allocate() gives: where new data for [offset, offset + length) goes.  It covers the start of
 * the range asked for; it may begin before that, and end behind it, within node->lock_size.
 */
struct allocation {
    uint64_t offset, length; /* guest range, whole clusters; the last may stop at the disk's end */
    struct node *child;
    uint64_t child_offset;
    bool reads_zero; /* the storage is known to read as zeroes now */
    /* As in an extent; NULL: what is written there is not encrypted. */
    const struct cipher *cipher;
    uint64_t cipher_offset;
    uint64_t cookie[2]; /* the driver's own */
};

enum {
    ZERO_MAY_UNMAP = 1 << 0, /* storage may be given back */
    ZERO_FAST = 1 << 1,      /* -ENOTSUP rather than be as slow as writing */
    ZERO_KEEP = 1 << 2,      /* formats: -ENOTSUP if clusters cannot keep the storage they have */
};

/* First bytes by which a format is known. */
struct magic {
    uint32_t offset; /* bytes from the start of the file */
    uint32_t length;
    const void *bytes;
};

/* The first bytes of a file, for probing; fewer than PROBE_BYTES only when the file ends. */
#define PROBE_BYTES 4096
struct probe {
    const uint8_t *data;
    size_t length;
    uint64_t file_size;
};

/* What is asked of a node, for filters. */
enum block_operation {
    OPERATION_READ,
    OPERATION_WRITE,
    OPERATION_ZERO,
    OPERATION_DISCARD,
    OPERATION_FLUSH, /* of no range */
    OPERATIONS,
};

enum driver_kind { DRIVER_PROTOCOL, DRIVER_FORMAT, DRIVER_FILTER };

struct driver {
    const char *name;
    enum driver_kind kind;
    size_t state_size; /* bytes of zeroed driver state that the core allocates */
    const struct magic
        *magics; /* any of them makes it a candidate; length 0 ends; NULL: never probed */
    /* Protocols of other machines: how names begin that are theirs ("nbd:"); NULL ends. */
    const char *const *names;
    const struct option_row *options; /* for options_take on the node's tree; also the help text */

    /* Refines the magic: whether it is really this format. NULL: the magic is enough. */
    bool (*match)(const struct probe *probe);
    /*
     * Opens: takes its options from open->options, opens children through the core, fills
     * node->size and the limits in struct node.  On failure the core calls close, which must cope.
     */
    int (*open)(struct node *node, struct node_open *open, struct error *error);
    /*
     * What opening has to change in the image: called when all else is open, the backing chain too,
     * so that an image that is refused stays as it was.  NULL: nothing.
     */
    int (*opened)(struct node *node, struct error *error);
    /* Frees what open made. The core has flushed before, and closes the children after. */
    void (*close)(struct node *node);
    /*
     * The program ends: nothing waits for a server any longer that is away, and what a server has
     * not answered in some seconds fails.  On the loop's stack. NULL: nothing waits for ever.
     */
    void (*stop)(struct node *node);

    /*
     * Fills ret for a first part of [offset, offset + length), ret->length <= length.  When there
     * is no coroutine (coroutine_self() is NULL) it must not wait: -EAGAIN instead. Protocols:
     * DATA, or ZERO for a hole; child is not set.  NULL there: all is DATA.
     */
    int (*map)(struct node *node, uint64_t offset, uint64_t length, struct extent *ret);
    /* Gives all extent->unit_length bytes of an ENCODED extent in `out`. */
    int (*decode)(struct node *node, const struct extent *extent, void *out);

    /* Reserves storage for a first part (at least one cluster) of a cluster-aligned range. */
    int (*allocate)(struct node *node, uint64_t offset, uint64_t length, struct allocation *ret);
    /* Makes the storage reachable; the data is in place. */
    int (*commit)(struct node *node, struct allocation *allocation);
    /* Gives the storage back; nothing was made reachable. */
    void (*abort)(struct node *node, struct allocation *allocation);

    /*
     * Compresses the unit at `offset`, node->compress_unit bytes of `data` (zeroes behind the
     * disk's end), and stores it.  1: it does not get smaller, and nothing was changed.
     */
    int (*write_compressed)(struct node *node, uint64_t offset, const void *data);

    /*
     * For formats: whole clusters, the last of which the disk's end may cut.  For protocols: any
     * range.  `flags` are ZERO_*.  -ENOTSUP: nothing was changed, and for a format nothing can be
     * with these flags anywhere in the disk.
     */
    int (*zero)(struct node *node, uint64_t offset, uint64_t length, unsigned flags);
    /* Advice: the range is not needed. What it reads as afterwards is the driver's choice of old,
     * zero. */
    int (*discard)(struct node *node, uint64_t offset, uint64_t length);
    /*
     * Formats: writes metadata to the children, in order.  Protocols: makes writes durable; any
     * error is final for the node but -ENOTCONN, which is told when nobody could be asked.
     */
    int (*flush)(struct node *node);
    /*
     * Protocols: makes storage for the range, whose contents stay, so that writing there will not
     * find the disk full. The file may grow. -EOPNOTSUPP: only writing there does that.
     */
    int (*reserve)(struct node *node, uint64_t offset, uint64_t length);
    /*
     * Formats, after -ENOSPC: makes what earlier requests have freed ready for use.  -ENOSPC: there
     * was nothing.
     */
    int (*reclaim)(struct node *node);
    /*
     * Formats, before anything is changed: refuses what the image does not allow, and makes room in
     * the tables for a disk of `size` bytes, which nobody sees yet. NULL: there is nothing to do.
     */
    int (*resize_prepare)(struct node *node, uint64_t size, struct error *error);
    /*
     * Changes the size. Formats: durably, and what lies behind the new end is given back; for a
     * larger one all that must not show there was zeroed before.  See blockcore/resize.h.
     */
    int (*resize)(struct node *node, uint64_t size, struct error *error);
    /* A smaller disk is in force, and its end is clean: cuts what has no use any more, or NULL. */
    void (*resize_finish)(struct node *node);
    uint32_t size_unit; /* sizes are multiples of so many bytes; 0: any */

    /*
     * Filters without map: called before a request is passed on; may wait, and what it returns but
     * 0 ends the request.  When there is no coroutine, which is so for reads only, it must not
     * wait: -EAGAIN instead, and then nothing must have been counted.
     */
    int (*before)(struct node *node, enum block_operation operation, uint64_t offset,
                  uint64_t length);
    /* Filters without map: called when a change was passed on, be it done or failed. */
    void (*after)(struct node *node, uint64_t offset, uint64_t length);

    /*
     * Protocols.  Bytes past the end of the file read as zeroes; writes there let it grow.
     * Filters without map may have preadv or pwritev, which then are in the place of passing the
     * request on: they call block_readv or block_writev for node->file.
     */
    int (*preadv)(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset);
    int (*pwritev)(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset);
    /*
     * Loop's stack, never waits: 0 when all bytes were there at once, else -EAGAIN. A filter with
     * preadv needs it for reads on the loop's stack.
     */
    int (*preadv_nowait)(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset);
    /* Has the bytes brought where reading is fast; NULL: by reading them. */
    int (*prefetch)(struct node *node, uint64_t offset, uint64_t length);
    /* The descriptor to send from without copying, or negative errno. */
    int (*descriptor)(struct node *node);

    /* The bitmaps of the image, in its order; NULL past the last. On any stack. */
    struct block_bitmap *(*bitmap)(struct node *node, size_t index);
    /* Adds one; the core has checked it. `granularity` may be 0. See blockcore/bitmap.h. */
    int (*bitmap_add)(struct node *node, const char *name, uint64_t granularity, bool enabled,
                      struct error *error);
    /*
     * Called while node->tracks_changes is set, under the range lock, before the contents of the
     * range change in any way.  What it returns ends the request.
     */
    int (*track)(struct node *node, uint64_t offset, uint64_t length);

    /* Internal snapshots, for formats that have them: see blockcore/snapshot.h. */
    const struct block_snapshot_ops *snapshots;
    /*
     * Where LUKS header and key slots are, and the id of the secret that the node was opened with
     * (or NULL), for luks_amend.  -ENOTSUP: the image has none.
     */
    int (*luks_area)(struct node *node, struct luks_area *ret, const char **ret_key_secret);

    /* Offline verbs, for formats: see blockcore/check.h and blockcore/create.h. */
    int (*check)(struct node *node, struct block_check *check, struct error *error);
    /* Takes its options out of the tree. Must judge them all before it touches the file. */
    int (*create)(const struct block_create_target *target, json_t *options, struct error *error);
    int (*measure)(json_t *options, struct block_measure *ret, struct error *error);
    /* See blockcore/amend.h. The driver locks what it must; takes its options out of the tree. */
    int (*amend)(struct node *node, json_t *options, const struct block_progress *progress,
                 struct error *error);
    const struct option_row *amend_options; /* the help text */
    /* `name` NULL: none any more. The whole disk is locked. */
    int (*change_backing)(struct node *node, const char *name, const char *format,
                          struct error *error);
    const struct option_row *create_options; /* the help text of create and measure */
};

#endif
