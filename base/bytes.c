/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Byte readers and writers.  All go through byte_reader_take and writer_take, which hold the only
 * bounds checks: once one has failed, every later call fails too and touches nothing.
 */
#include "base/bytes.h"

const uint8_t *byte_reader_take(struct byte_reader *r, size_t length)
{
    const uint8_t *taken = r->data;

    if (r->failed || length > r->left) {
        r->failed = true;
        return NULL;
    }
    if (length > 0) { /* data may be NULL in an empty reader */
        r->data += length;
        r->left -= length;
    }
    return taken;
}

bool byte_reader_skip(struct byte_reader *r, size_t length)
{
    byte_reader_take(r, length);
    return !r->failed;
}

uint8_t byte_reader_u8(struct byte_reader *r)
{
    const uint8_t *p = byte_reader_take(r, 1);

    return p ? *p : 0;
}

static uint8_t *writer_take(struct byte_writer *w, size_t length)
{
    uint8_t *room = w->data;

    if (w->failed || length > w->left) {
        w->failed = true;
        return NULL;
    }
    if (length == 0)
        return NULL;
    w->data += length;
    w->left -= length;
    return room;
}

void byte_writer_put(struct byte_writer *w, const void *data, size_t length)
{
    uint8_t *room = writer_take(w, length);

    if (room)
        memcpy(room, data, length);
}

void byte_writer_zero(struct byte_writer *w, size_t length)
{
    uint8_t *room = writer_take(w, length);

    if (room)
        memset(room, 0, length);
}

void byte_writer_u8(struct byte_writer *w, uint8_t v)
{
    byte_writer_put(w, &v, 1);
}

#define READER_DEFINE(bits, order)                                                                 \
    uint##bits##_t byte_reader_##order##bits(struct byte_reader *r)                                \
    {                                                                                              \
        const uint8_t *p = byte_reader_take(r, bits / 8);                                          \
                                                                                                   \
        return p ? get_##order##bits(p) : 0;                                                       \
    }
#define WRITER_DEFINE(bits, order)                                                                 \
    void byte_writer_##order##bits(struct byte_writer *w, uint##bits##_t v)                        \
    {                                                                                              \
        uint8_t *room = writer_take(w, bits / 8);                                                  \
                                                                                                   \
        if (room)                                                                                  \
            put_##order##bits(room, v);                                                            \
    }
READER_DEFINE(16, be)
READER_DEFINE(32, be)
READER_DEFINE(64, be)
READER_DEFINE(16, le)
READER_DEFINE(32, le)
READER_DEFINE(64, le)
WRITER_DEFINE(16, be)
WRITER_DEFINE(32, be)
WRITER_DEFINE(64, be)

/* Looked at without an early exit, in vector registers. */
#define ZERO_BLOCK 256

typedef uint64_t zero_vector __attribute__((vector_size(16)));

static bool block_is_zero(const uint8_t *p)
{
    zero_vector any = {0};

    for (size_t i = 0; i < ZERO_BLOCK; i += sizeof(any)) {
        zero_vector v;

        memcpy(&v, p + i, sizeof(v));
        any |= v;
    }
    return (any[0] | any[1]) == 0;
}

bool bytes_are_zero(const void *data, size_t length)
{
    const uint8_t *p = data;
    uint8_t any = 0;

    for (; length >= ZERO_BLOCK; p += ZERO_BLOCK, length -= ZERO_BLOCK) {
        if (!block_is_zero(p))
            return false;
    }
    for (size_t i = 0; i < length; i++)
        any |= p[i];
    return any == 0;
}

static bool is_continuation(uint8_t byte)
{
    return (byte & 0xc0) == 0x80;
}

size_t bytes_utf8_sequence(const void *text, size_t length)
{
    const uint8_t *p = text;
    size_t n;

    if (length == 0)
        return 0;
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (length < n)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if (!is_continuation(p[i]))
            return 0;
    }
    /* Overlong forms, surrogates, and what lies above U+10FFFF. */
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0) ||
        (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] >= 0x90))
        return 0;
    return n;
}

bool bytes_are_utf8(const void *text, size_t length)
{
    const uint8_t *p = text;

    while (length > 0) {
        size_t n = bytes_utf8_sequence(p, length);

        if (n == 0 || *p == 0)
            return false;
        p += n;
        length -= n;
    }
    return true;
}

int bytes_hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}
