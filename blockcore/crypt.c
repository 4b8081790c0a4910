/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data engine: extents that are encrypted.
 *
 * The unit is a sector of 512 bytes.  What is read is decrypted where it arrives, when that is one
 * buffer of whole sectors, else in a buffer between.  What is written is always encrypted in a
 * buffer between, for the payload is the client's.  Pieces of more than INLINE_MAX bytes are
 * computed in a worker.
 *
 * Locks: sectors that a write covers in part are read, decrypted, changed and encrypted again, so
 * that the write touches bytes that another request may read or write: it holds an exclusive range
 * lock on whole sectors, all others hold shared ones.
 */
#include "base/buffer.h"
#include "base/iov.h"
#include "base/worker.h"
#include "blockcore/cipher.h"
#include "blockcore/engine.h"

#include <errno.h>

#define INLINE_MAX (64 * KIB)

struct crypt_job {
    const struct cipher *cipher;
    bool encrypt;
    void *data;
    size_t length;
    uint64_t sector;
};

static int run_job(void *arg)
{
    const struct crypt_job *job = arg;

    if (job->encrypt)
        cipher_encrypt(job->cipher, job->data, job->length, job->sector);
    else
        cipher_decrypt(job->cipher, job->data, job->length, job->sector);
    return 0;
}

/* Whole sectors in place; `cipher_offset` is a multiple of them. */
static void crypt_sectors(const struct cipher *cipher, bool encrypt, void *data, size_t length,
                          uint64_t cipher_offset)
{
    struct crypt_job job = {cipher, encrypt, data, length, cipher_offset / CIPHER_SECTOR};

    if (length <= INLINE_MAX)
        run_job(&job);
    else
        co_run_in_worker(run_job, &job);
}

/* The place of `skip` bytes further on. */
static struct extent extent_from(const struct extent *e, uint64_t skip)
{
    struct extent rest = *e;

    rest.child_offset += skip;
    rest.cipher_offset += skip;
    return rest;
}

/* Whole sectors from the start of the extent on. */
static int read_sectors(const struct extent *e, uint8_t *data, size_t length)
{
    const struct iovec iov = {data, length};
    int err = engine_read_child(e->child, (struct vec){&iov, 1, 0, length}, e->child_offset);

    if (err == 0)
        crypt_sectors(e->cipher, false, data, length, e->cipher_offset);
    return err;
}

/* Encrypts what is in the buffer and writes it. */
static int write_sectors(const struct extent *e, uint8_t *data, size_t length)
{
    const struct iovec iov = {data, length};

    crypt_sectors(e->cipher, true, data, length, e->cipher_offset);
    return engine_write_child(e->child, (struct vec){&iov, 1, 0, length}, e->child_offset);
}

/* A piece of a range in whole sectors: [start, end) from the extent's start on, around the bytes.
 */
struct piece {
    struct extent place; /* of the first sector */
    size_t skip;         /* bytes of the first sector before the request's */
    size_t length;       /* the request's bytes */
    size_t whole;        /* bytes of all sectors */
};

/* The next piece of at most BLOCK_PIECE_BYTES of sectors. */
static struct piece next_piece(const struct extent *e, uint64_t done, uint64_t left)
{
    struct piece p = {.place = extent_from(e, done)};

    p.skip = p.place.cipher_offset % CIPHER_SECTOR;
    p.place.cipher_offset -= p.skip;
    p.place.child_offset -= p.skip;
    p.length = min_u64(left, BLOCK_PIECE_BYTES - p.skip);
    p.whole = align_up(p.skip + p.length, CIPHER_SECTOR);
    return p;
}

/* The bytes of `vec` as one piece of memory in whole sectors, or NULL. */
static uint8_t *flat_sectors(const struct extent *e, const struct vec *vec)
{
    struct iovec iov;

    if (!is_aligned(e->cipher_offset | vec->length, CIPHER_SECTOR) ||
        iov_slice(&iov, 1, vec->iov, vec->iovcnt, vec->offset, vec->length) != 1)
        return NULL;
    return iov.iov_base;
}

int crypt_read(const struct extent *e, struct vec vec)
{
    uint8_t *flat = flat_sectors(e, &vec), *buffer;
    uint64_t done = 0, size = min_u64(vec.length + 2 * CIPHER_SECTOR, BLOCK_PIECE_BYTES);
    int err = 0;

    if (!e->cipher)
        return -EACCES;
    if (flat)
        return read_sectors(e, flat, vec.length);
    buffer = buffer_get(size);
    if (!buffer)
        return -ENOMEM;
    while (vec.length > 0 && err == 0) {
        struct piece p = next_piece(e, done, vec.length);

        err = read_sectors(&p.place, buffer, p.whole);
        if (err == 0)
            iov_from_buffer(vec.iov, vec.iovcnt, vec.offset, buffer + p.skip, p.length);
        vec_advance(&vec, p.length);
        done += p.length;
    }
    buffer_put(buffer, size);
    return err;
}

int crypt_read_nowait(const struct extent *e, uint8_t *out, size_t length)
{
    int err;

    if (!e->cipher)
        return -EACCES;
    if (!is_aligned(e->cipher_offset | length, CIPHER_SECTOR) || length > INLINE_MAX)
        return -EAGAIN;
    err = engine_child_read_nowait(e->child, out, length, e->child_offset);
    if (err == 0)
        crypt_sectors(e->cipher, false, out, length, e->cipher_offset);
    return err;
}

/* Sectors that the piece covers in part keep what else they have: reads first and last one. */
static int read_edges(const struct piece *p, uint8_t *buffer)
{
    size_t last = p->whole - CIPHER_SECTOR;
    struct extent e = extent_from(&p->place, last);
    int err = 0;

    if (p->skip > 0)
        err = read_sectors(&p->place, buffer, CIPHER_SECTOR);
    if (err == 0 && p->skip + p->length < p->whole && (last > 0 || p->skip == 0))
        err = read_sectors(&e, buffer + last, CIPHER_SECTOR);
    return err;
}

int crypt_write(const struct extent *e, struct vec vec)
{
    uint64_t done = 0, size = min_u64(vec.length + 2 * CIPHER_SECTOR, BLOCK_PIECE_BYTES);
    uint8_t *buffer;
    int err = 0;

    if (!e->cipher)
        return -EACCES;
    buffer = buffer_get(size);
    if (!buffer)
        return -ENOMEM;
    while (vec.length > 0 && err == 0) {
        struct piece p = next_piece(e, done, vec.length);

        err = read_edges(&p, buffer);
        if (err == 0) {
            iov_to_buffer(buffer + p.skip, vec.iov, vec.iovcnt, vec.offset, p.length);
            err = write_sectors(&p.place, buffer, p.whole);
        }
        vec_advance(&vec, p.length);
        done += p.length;
    }
    buffer_put(buffer, size);
    return err;
}

void crypt_lock_write(struct node *node, struct range_lock *lock, uint64_t offset, uint64_t length)
{
    uint64_t start = align_down(offset, CIPHER_SECTOR);
    uint64_t end = align_up(offset + length, CIPHER_SECTOR);

    if (node->encrypted && !is_aligned(offset | length, CIPHER_SECTOR))
        range_lock_exclusive(&node->locks, lock, start, end - start);
    else
        range_lock_shared(&node->locks, lock, offset, length);
}
