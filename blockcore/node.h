/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Nodes: open files, devices and formats, linked into a graph.
 *
 *     qcow2 --file--> file            a chain: the format's own file below it,
 *       \--backing--> qcow2 --...     the backing node beside it
 *
 * Nodes are reference counted.  A driver opens children only through node_open_child and
 * node_open_backing, so that path policy, the depth limit, cycles, image locks and permissions live
 * here.
 */
#ifndef EVNBD_BLOCKCORE_NODE_H
#define EVNBD_BLOCKCORE_NODE_H

#include "base/colock.h"
#include "blockcore/driver.h"
#include "blockcore/name_policy.h"
#include "blockcore/range_lock.h"

#include <sys/types.h>

struct io_engine;
struct secret_store;

/* Backing links from the top to the bottom of a chain, and file links below one node, at most. */
#define NODE_DEPTH_MAX 64
#define NODE_FILE_DEPTH_MAX 8

enum {
    NODE_WRITABLE = 1 << 0,    /* opened for writing */
    NODE_NO_CACHE = 1 << 1,    /* O_DIRECT */
    NODE_NO_FLUSH = 1 << 2,    /* cache=unsafe: flush does not sync */
    NODE_UNMAP = 1 << 3,       /* discard=unmap: discards reach the file */
    NODE_NO_LOCK = 1 << 4,     /* no image locks are taken */
    NODE_SHARE_WRITE = 1 << 5, /* raw: other writers are allowed (image lock) */
    NODE_REPAIR = 1 << 6,      /* for block_check only: read-only, above a writable file */
    NODE_NO_DATA = 1 << 7,     /* only metadata is looked at: encrypted images need no key */
    NODE_FORCE_SHARE = 1 << 8, /* read-only: the image locks let others write */
    NODE_TEMPORARY = 1 << 9,   /* nobody sees what was written after it is closed */
    NODE_CHECK = 1 << 10,      /* for block_check only: also what is too broken to be used */
};

/* What becomes of zeroes that clients write as data; for who writes to the node. */
enum node_detect_zeroes {
    NODE_DETECT_ZEROES_OFF,
    NODE_DETECT_ZEROES_ON,
    NODE_DETECT_ZEROES_UNMAP,
};

enum block_tls_kind { BLOCK_TLS_X509, BLOCK_TLS_PSK, BLOCK_TLS_ANON };

/* TLS credentials of a client, as an object describes them. */
struct block_tls {
    enum block_tls_kind kind;
    const char *dir;      /* of the files; NULL for ANON */
    const char *username; /* PSK; NULL: the default */
    bool verify_peer;
    bool has_priority, has_key_password;
};

/* What a set of nodes is opened with. Owned by the caller; outlives the nodes. */
struct block_context {
    const struct driver *const *drivers; /* NULL-terminated */
    const struct io_engine *engine;      /* NULL: the best there is */
    const struct secret_store *secrets;  /* what options like key-secret name; NULL: none */
    struct name_policy names;            /* which names in images are followed */
    /*
     * What tls-creds names: fills *ret, whose strings outlive the nodes; -ENOENT or -EINVAL with a
     * sentence.  NULL: there are none.
     */
    int (*find_tls)(void *arg, const char *id, struct block_tls *ret, struct error *error);
    void *find_tls_arg;
};

/* Permissions on a file, as image locking shares them with other programs. */
enum {
    PERM_CONSISTENT_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_WRITE_UNCHANGED = 1 << 2,
    PERM_RESIZE = 1 << 3,
    PERM_ALL = 15,
};

/* An open file that has no path, and how much of it may be used. */
struct node_descriptor {
    int fd;
    const char *name;   /* what messages call it */
    uint64_t bytes_max; /* beyond, the storage is full */
};

/* One open, handed from the core to drivers. */
struct node_open {
    const struct block_context *context;
    json_t *options;     /* this node's tree; what the driver does not take is refused */
    unsigned flags;      /* NODE_* */
    unsigned depth;      /* backing links above this node */
    unsigned file_depth; /* file links above this node, since the last backing link */
    struct node *parent; /* NULL for the top */
    unsigned perm;       /* PERM_* that the parent needs of this node */
    unsigned shared;     /* PERM_* that others may have at the same time */

    struct node *given_file; /* what node_open_file gives instead of opening; the reference moves */
    const struct node_descriptor *given_descriptor; /* the same for a file; NULL once it is taken */
    json_t *backing; /* set by node_open_backing: the tree that the core opens afterwards */
};

/* A part of a node. */
struct node_window {
    uint64_t offset, size; /* bytes; NODE_WINDOW_REST as size: to the end */
};

#define NODE_WINDOW_REST UINT64_MAX

/* A file by identity, to refuse cycles and to name nodes in messages. */
struct node_identity {
    dev_t device; /* 0, 0: none (not a file) */
    ino_t inode;
};

struct node {
    const struct driver *driver;
    void *state; /* driver->state_size bytes */
    unsigned references;
    bool opened;       /* open has succeeded: flush before close */
    bool flush_failed; /* a caller of block_flush was told so */
    unsigned flags;
    unsigned depth;
    char *filename; /* protocols: the path, as given; else NULL */
    char *label;    /* for messages: the escaped name of the file at the bottom */
    struct node_identity identity;

    struct node *parent;    /* the node that opened this one, or NULL */
    struct node *file;      /* the format's own file, or NULL */
    struct node *backing;   /* or NULL */
    struct node **children; /* what node_open_child opened */
    size_t children_count;

    /* Filled by open. */
    uint64_t size; /* bytes */
    uint32_t
        request_alignment; /* protocols: offset, length and memory of I/O (1: any); power of two */
    uint32_t cluster_size; /* formats that allocate: bytes, power of two; else 0 */
    /*
     * The same: bytes that are locked together, a multiple of cluster_size, of which it is the
     * default.  Where storage is for several clusters at once, changes in it must not meet.
     */
    uint32_t lock_size;
    uint32_t
        compress_unit;   /* formats that write compressed: bytes of a unit, power of two; else 0 */
    bool reuses_storage; /* what map names may be given back, and hold other data later */
    bool encrypted;      /* formats: what map names may be encrypted */
    bool sees_reads;     /* filters: no read may pass by `before` */
    bool rotational;
    bool tracks_changes; /* the driver is told of changes; it may set and clear this later, too */

    /* Core. */
    enum node_detect_zeroes detect_zeroes; /* asked for by the options of the node */
    struct range_locks locks;
    uint64_t reclaim_generation; /* formats: how often room was made on a full disk */
    uint64_t write_generation;   /* protocols: bumped when a change has ended */
    uint64_t flushed_generation; /* changes up to here are durable */
    int flush_error;             /* a failed sync is final: negative errno, else 0 */
    struct co_queue flush_queue; /* waiters of the running sync */
    bool flush_running;
    struct decoded_unit *decoded; /* last decoded unit, or NULL */
};

/*
 * Opens the image `filename`.  `format` NULL: probe.  `options` (may be NULL, not stolen) are
 * further options of the format node.  On probing, *ret_guessed_raw tells that no known format
 * matched (then a write that would make the first sector look like one is refused with -EPERM); may
 * be NULL when format is given.  In a coroutine.  The caller drops *ret with node_unref.
 */
int node_open_image(const struct block_context *context, const char *filename, const char *format,
                    json_t *options, unsigned flags, struct node **ret, bool *ret_guessed_raw,
                    struct error *error);

/*
 * Opens an image by options, as a user writes them: as node_open_tree, but where "driver" is
 * missing the format is looked for in "file".  *ret_guessed_raw as for node_open_image.  `format`
 * (NULL: none) comes before "driver".
 */
int node_open_options(const struct block_context *context, json_t *options, const char *format,
                      unsigned flags, struct node **ret, bool *ret_guessed_raw,
                      struct error *error);

/*
 * Opens a tree of options: "driver" names the driver (none: "file" for an object with "filename"),
 * the rest is the driver's; but "snapshot", for formats with internal snapshots, lets the node show
 * one of them, read-only (its text: block_snapshot_choice_parse).  A "backing" without "driver" is
 * looked at for its format.  All nodes have the options of open_options.c.
 */
int node_open_tree(const struct block_context *context, json_t *tree, unsigned flags,
                   struct node **ret, struct error *error);

/*
 * Opens a raw node that shows a part of `file`; takes the reference to `file`, also on failure.
 * For --offset.
 */
int node_open_window(const struct block_context *context, struct node *file,
                     const struct node_window *window, struct node **ret, struct error *error);

/*
 * Opens a tree of options for a format above `file`; takes the reference to `file`, also on
 * failure.
 */
int node_open_above(const struct block_context *context, json_t *tree, struct node *file,
                    struct node **ret, struct error *error);

/*
 * Opens a file that this process has open, for reading and writing, without image locks; takes the
 * descriptor, also on failure.
 */
int node_open_descriptor(const struct block_context *context,
                         const struct node_descriptor *descriptor, unsigned flags,
                         struct node **ret, struct error *error);

/*
 * For drivers: opens the child named by option `key` ("file") of open->options, which may be an
 * object (a tree) or be missing when open->options has "filename" (then a file of that name).  perm
 * and shared are PERM_*. The child is put into node->file.
 */
int node_open_file(struct node *node, struct node_open *open, unsigned perm, unsigned shared,
                   struct error *error);

/*
 * For drivers: opens a further child, which the core keeps in node->children, flushes and closes.
 * It is a tree in option `key` of open->options, or the path that is there as a string; else the
 * file that the image names (`name` is `length` bytes, as for node_open_backing; NULL: none, which
 * is refused).  It is opened for writing when the node is.  `what` is it for messages: "data file".
 */
int node_open_child(struct node *node, struct node_open *open, const char *key, const char *what,
                    const char *name, size_t length, unsigned perm, unsigned shared,
                    struct node **ret, struct error *error);

/*
 * For drivers: asks for the backing node that the image names (`name` is `length` bytes, not
 * NUL-terminated; NULL: the image names none; `format` NULL: the image records none, which is
 * refused), unless the options have a "backing" of their own (a tree, or null for none).  The core
 * opens it read-only into node->backing once the driver's open has returned.  Relative names are
 * relative to the directory of the image; names with a protocol prefix or json: are refused.
 */
int node_open_backing(struct node *node, struct node_open *open, const char *name, size_t length,
                      const char *format, struct error *error);

/*
 * For protocol drivers: says which file the node is, as soon as that is known and before its locks
 * are taken.  -ELOOP when the chain of nodes above has it already.
 */
int node_set_identity(struct node *node, dev_t device, ino_t inode, struct error *error);

struct node *node_ref(struct node *node);
/* Drops a reference; the last one flushes and closes, children after it. In a coroutine. NULL is
 * fine. */
void node_unref(struct node *node);

/* The program ends: no request to the node, or to one below it, waits for a server any longer. */
void node_stop(struct node *node);

bool node_writable(const struct node *node);
/* What messages call the node: its file's name, escaped. Valid until the node is closed. */
const char *node_name(const struct node *node);

/* The driver of that name in the list, or NULL. */
const struct driver *driver_find(const struct driver *const *drivers, const char *name);
/* The driver whose disks have names like this ("nbd://host/"); NULL: it is a path. */
const struct driver *driver_of_name(const struct driver *const *drivers, const char *name);
/* The format that the first bytes show; NULL: none (raw). */
const struct driver *driver_probe(const struct driver *const *drivers, const struct probe *probe);
/* Whether the first bytes show an image format, be it one that no driver here opens. */
bool probe_shows_format(const struct driver *const *drivers, const struct probe *probe);

#endif
