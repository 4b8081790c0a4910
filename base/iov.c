/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Vectors of buffers.  Everything walks the vectors with one cursor, which never runs past the last
 * vector; what lies beyond is left out.
 */
#include "base/iov.h"

#include "base/bytes.h"

#include <errno.h>
#include <string.h>

struct cursor {
    const struct iovec *iov;
    int iovcnt;
    size_t offset; /* bytes to skip from the start of *iov */
    size_t length; /* bytes still wanted */
};

/* The next piece in one vector, never empty; false at the end. */
static bool cursor_next(struct cursor *c, struct iovec *piece)
{
    while (c->length > 0 && c->iovcnt > 0) {
        size_t room = c->iov->iov_len;
        size_t skip = c->offset;

        if (skip >= room) {
            c->offset -= room;
            c->iov++;
            c->iovcnt--;
            continue;
        }
        room -= skip;
        piece->iov_base = (uint8_t *)c->iov->iov_base + skip;
        piece->iov_len = room < c->length ? room : c->length;
        c->offset += piece->iov_len;
        c->length -= piece->iov_len;
        return true;
    }
    return false;
}

static struct cursor cursor_of(const struct iovec *iov, int iovcnt, size_t offset, size_t length)
{
    return (struct cursor){.iov = iov, .iovcnt = iovcnt, .offset = offset, .length = length};
}

size_t iov_length(const struct iovec *iov, int iovcnt)
{
    size_t length = 0;

    for (int i = 0; i < iovcnt; i++)
        length += iov[i].iov_len;
    return length;
}

int iov_slice(struct iovec *out, int out_max, const struct iovec *iov, int iovcnt, size_t offset,
              size_t length)
{
    struct cursor c = cursor_of(iov, iovcnt, offset, length);
    struct iovec piece;
    int n = 0;

    while (cursor_next(&c, &piece)) {
        if (n == out_max)
            return -EINVAL;
        out[n++] = piece;
    }
    return c.length == 0 ? n : -EINVAL;
}

void iov_fill(const struct iovec *iov, int iovcnt, size_t offset, size_t length, uint8_t byte)
{
    struct cursor c = cursor_of(iov, iovcnt, offset, length);
    struct iovec piece;

    while (cursor_next(&c, &piece))
        memset(piece.iov_base, byte, piece.iov_len);
}

void iov_to_buffer(void *out, const struct iovec *iov, int iovcnt, size_t offset, size_t length)
{
    struct cursor c = cursor_of(iov, iovcnt, offset, length);
    struct iovec piece;
    uint8_t *to = out;

    while (cursor_next(&c, &piece)) {
        memcpy(to, piece.iov_base, piece.iov_len);
        to += piece.iov_len;
    }
}

void iov_from_buffer(const struct iovec *iov, int iovcnt, size_t offset, const void *data,
                     size_t length)
{
    struct cursor c = cursor_of(iov, iovcnt, offset, length);
    const uint8_t *from = data;
    struct iovec piece;

    while (cursor_next(&c, &piece)) {
        memcpy(piece.iov_base, from, piece.iov_len);
        from += piece.iov_len;
    }
}

bool iov_is_zero(const struct iovec *iov, int iovcnt, size_t offset, size_t length)
{
    struct cursor c = cursor_of(iov, iovcnt, offset, length);
    struct iovec piece;

    while (cursor_next(&c, &piece)) {
        if (!bytes_are_zero(piece.iov_base, piece.iov_len))
            return false;
    }
    return true;
}
