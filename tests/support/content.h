/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The content of a file in memory, and changes to it that can be kept and applied later, wholly or
 * torn by a power cut.  Shared by the simulated disk and the recorder.
 */
#ifndef EVNBD_TESTS_CONTENT_H
#define EVNBD_TESTS_CONTENT_H

#include "base/list.h"
#include "tests/support/support.h"

#include <sys/uio.h>

#define CONTENT_MAX (4 * GIB) /* address space, not memory */
#define CONTENT_BLOCK 4096

struct content {
    uint8_t *data; /* CONTENT_MAX bytes, zero from `size` on */
    uint64_t size;
    uint8_t *allocated; /* one a block: whether the block takes room on the disk */
    uint64_t blocks;    /* number of allocated ones */
    uint64_t end;       /* no block from this one on was ever allocated */
};

void content_init(struct content *content);
void content_fini(struct content *content); /* a zeroed one is fine */
/* Into an initialized or a zeroed one. */
void content_copy(struct content *to, const struct content *from);
/* A number that is the same for the same bytes and size. */
uint64_t content_hash(const struct content *content);
/* Writes it to a new file, with its holes. */
void content_save(const struct content *content, const char *path);

enum change_kind { CHANGE_WRITE, CHANGE_ZERO, CHANGE_PUNCH, CHANGE_ALLOCATE, CHANGE_SIZE };

struct change {
    struct list link;
    enum change_kind kind;
    uint64_t offset, length; /* CHANGE_SIZE: length is the new size */
    bool keep_size;          /* CHANGE_ZERO and CHANGE_ALLOCATE: never make the file longer */
    uint8_t data[];          /* CHANGE_WRITE */
};

/* The first `length` bytes of the vectors. */
struct change *change_write(const struct iovec *iov, int iovcnt, uint64_t offset, uint64_t length);
/* As fallocate(2); NULL for modes that are not supported: all but allocate, zero range, punch hole.
 */
struct change *change_fallocate(int mode, uint64_t offset, uint64_t length);
struct change *change_size(uint64_t size);
void changes_free(struct list *changes);

/* Number of blocks that the change would allocate in addition. */
uint64_t content_blocks_needed(const struct content *content, const struct change *change);

void content_apply(struct content *content, const struct change *change);
/* Only [offset, offset + length) of the change's range. CHANGE_SIZE has no parts. */
void content_apply_part(struct content *content, const struct change *change, uint64_t offset,
                        uint64_t length);

/*
 * What is left of the change after a power cut before it was flushed: all, nothing, or any of the
 * 512-byte sectors that it touches.
 */
void content_apply_torn(struct content *content, const struct change *change, struct prng *prng);

/* First byte at or after `offset` that is (not) in an allocated block; the size when there is none.
 */
uint64_t content_seek(const struct content *content, uint64_t offset, bool data);

#endif
