/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bounds-checked reading and writing of wire and disk structures.
 *
 * A reader never runs past its end: a read that does not fit returns 0 (or NULL) and sets `failed`,
 * which sticks, so that a whole structure can be read and checked once at the end.  A writer drops
 * what does not fit and sets `failed` in the same way.
 */
#ifndef EVNBD_BASE_BYTES_H
#define EVNBD_BASE_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct byte_reader {
    const uint8_t *data; /* next byte to read */
    size_t left;         /* bytes from `data` to the end */
    bool failed;
};

struct byte_writer {
    uint8_t *data; /* next byte to write */
    size_t left;   /* room from `data` on */
    bool failed;
};

/* Unchecked loads and stores of big- and little-endian numbers at any alignment. */
#define BYTES_DEFINE(bits, order, to, from)                                                        \
    static inline uint##bits##_t get_##order##bits(const void *p)                                  \
    {                                                                                              \
        uint##bits##_t v;                                                                          \
        memcpy(&v, p, sizeof(v));                                                                  \
        return from(v);                                                                            \
    }                                                                                              \
    static inline void put_##order##bits(void *p, uint##bits##_t v)                                \
    {                                                                                              \
        v = to(v);                                                                                 \
        memcpy(p, &v, sizeof(v));                                                                  \
    }
BYTES_DEFINE(16, be, htobe16, be16toh)
BYTES_DEFINE(32, be, htobe32, be32toh)
BYTES_DEFINE(64, be, htobe64, be64toh)
BYTES_DEFINE(16, le, htole16, le16toh)
BYTES_DEFINE(32, le, htole32, le32toh)
BYTES_DEFINE(64, le, htole64, le64toh)
#undef BYTES_DEFINE

static inline struct byte_reader byte_reader_of(const void *data, size_t length)
{
    return (struct byte_reader){.data = data, .left = length};
}

static inline struct byte_writer byte_writer_of(void *data, size_t length)
{
    return (struct byte_writer){.data = data, .left = length};
}

/* The next `length` bytes in place, or NULL (and failed) when fewer are left. */
const uint8_t *byte_reader_take(struct byte_reader *r, size_t length);
bool byte_reader_skip(struct byte_reader *r, size_t length);
uint8_t byte_reader_u8(struct byte_reader *r);
uint16_t byte_reader_be16(struct byte_reader *r);
uint32_t byte_reader_be32(struct byte_reader *r);
uint64_t byte_reader_be64(struct byte_reader *r);
uint16_t byte_reader_le16(struct byte_reader *r);
uint32_t byte_reader_le32(struct byte_reader *r);
uint64_t byte_reader_le64(struct byte_reader *r);

void byte_writer_put(struct byte_writer *w, const void *data, size_t length);
void byte_writer_zero(struct byte_writer *w, size_t length);
void byte_writer_u8(struct byte_writer *w, uint8_t v);
void byte_writer_be16(struct byte_writer *w, uint16_t v);
void byte_writer_be32(struct byte_writer *w, uint32_t v);
void byte_writer_be64(struct byte_writer *w, uint64_t v);

/* Whether all `length` bytes at `data` are zero; vectorized by the compiler. length 0: true. */
bool bytes_are_zero(const void *data, size_t length);

/*
 * The number of bytes (1 to 4) of the valid UTF-8 sequence that `text` begins with, 0 when there is
 * none in its `length` bytes.
 */
size_t bytes_utf8_sequence(const void *text, size_t length);

/* Whether `text` of `length` bytes is valid UTF-8 without NUL (RFC 3629, no overlong forms). */
bool bytes_are_utf8(const void *text, size_t length);

/* The value of a hexadecimal digit in ASCII, -1 when it is none. */
int bytes_hex_digit(uint8_t c);

#endif
