/* SPDX-License-Identifier: BSD-3-Clause */
/* Compression codecs, the one home of zlib and zstd. Pure functions, fit for worker threads. */
#ifndef EVNBD_BLOCKCORE_CODEC_H
#define EVNBD_BLOCKCORE_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum codec {
    CODEC_DEFLATE_RAW, /* raw deflate, no header (RFC 1951) */
    CODEC_ZSTD,        /* one frame (RFC 8878); its window is bounded by the output length */
};

/* Whether this build has the codec. */
bool codec_available(enum codec codec);

/*
 * Decodes into exactly `out_length` bytes; input beyond the end of the stream is ignored.
 * Returns 0, -EIO (broken or short stream, or one that goes on past out_length in zstd's frame),
 * -ENOMEM, or -ENOTSUP.
 */
int codec_decode(enum codec codec, void *out, size_t out_length, const void *in, size_t in_length);

/* The CRC-32 of zlib, gzip and GPT. */
uint32_t codec_crc32(const void *data, size_t length);

/*
 * Encodes `in` into at most `out_room` bytes; *ret_length is how many there are.  Deflate has a
 * window of 4 KiB, the least that readers have. Returns 0, -ENOSPC (does not fit), -ENOMEM, or
 * -ENOTSUP.
 */
int codec_encode(enum codec codec, void *out, size_t out_room, const void *in, size_t in_length,
                 size_t *ret_length);

#endif
