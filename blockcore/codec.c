/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Compression and decompression of one unit (a cluster) into a buffer of known length.
 *
 * The input comes from an image and is not trusted: output never exceeds the buffer, and neither
 * codec allocates more than a bounded amount for itself.  The zstd decoder works from buffer to
 * buffer, so a frame's window costs no memory; it is limited nevertheless, so that what this
 * program reads does not depend on how it reads it.
 */
#include "blockcore/codec.h"

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <zlib.h>
#ifdef HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

#define DEFLATE_WINDOW_BITS 12
#define DEFLATE_MEMORY_LEVEL 9
#define ZSTD_LEVEL 3

/* Windows up to this are accepted for any output length: writers choose them without knowing it. */
#define ZSTD_WINDOW_MIN_LIMIT (UINT64_C(1) << 21)

bool codec_available(enum codec codec)
{
    switch (codec) {
    case CODEC_DEFLATE_RAW:
        return true;
    case CODEC_ZSTD:
#ifdef HAVE_ZSTD
        return true;
#else
        return false;
#endif
    }
    return false;
}

static int decode_deflate(void *out, size_t out_length, const void *in, size_t in_length)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .next_out = out};
    int end;

    if (in_length > UINT_MAX || out_length > UINT_MAX)
        return -EIO;
    z.avail_in = (uInt)in_length;
    z.avail_out = (uInt)out_length;
    end = inflateInit2(&z, -MAX_WBITS);
    if (end != Z_OK)
        return end == Z_MEM_ERROR ? -ENOMEM : -EIO;
    end = inflate(&z, Z_FINISH);
    inflateEnd(&z);
    if (end == Z_MEM_ERROR)
        return -ENOMEM;
    /* With all output made it does not matter whether the end of the stream was seen. */
    if (end != Z_STREAM_END && end != Z_BUF_ERROR && end != Z_OK)
        return -EIO;
    return z.avail_out == 0 ? 0 : -EIO;
}

#ifdef HAVE_ZSTD
/* Whether the frame's header (RFC 8878, 3.1.1.1) asks for a window within the limit. */
static bool zstd_window_fits(const uint8_t *frame, size_t length, size_t out_length)
{
    uint64_t limit = out_length > ZSTD_WINDOW_MIN_LIMIT ? out_length : ZSTD_WINDOW_MIN_LIMIT;
    uint64_t base;

    if (length < 6)
        return false;
    if (frame[4] & 0x20) /* a single segment: the window is the content */
        return true;
    if (frame[5] >> 3 > 31)
        return false;
    base = UINT64_C(1) << (10 + (frame[5] >> 3));
    return base + base / 8 * (frame[5] & 7) <= limit;
}

static int decode_zstd(void *out, size_t out_length, const void *in, size_t in_length)
{
    size_t frame = ZSTD_findFrameCompressedSize(in, in_length);
    ZSTD_DCtx *context;
    size_t n;

    if (ZSTD_isError(frame) || !zstd_window_fits(in, frame, out_length))
        return -EIO;
    context = ZSTD_createDCtx();
    if (!context)
        return -ENOMEM;
    n = ZSTD_decompressDCtx(context, out, out_length, in, frame);
    ZSTD_freeDCtx(context);
    return n == out_length ? 0 : -EIO;
}
#endif

int codec_decode(enum codec codec, void *out, size_t out_length, const void *in, size_t in_length)
{
    switch (codec) {
    case CODEC_DEFLATE_RAW:
        return decode_deflate(out, out_length, in, in_length);
    case CODEC_ZSTD:
#ifdef HAVE_ZSTD
        return decode_zstd(out, out_length, in, in_length);
#else
        return -ENOTSUP;
#endif
    }
    return -ENOTSUP;
}

uint32_t codec_crc32(const void *data, size_t length)
{
    return (uint32_t)crc32_z(0, data, length);
}

static int encode_deflate(void *out, size_t out_room, const void *in, size_t in_length,
                          size_t *ret_length)
{
    z_stream z = {.next_in = (Bytef *)(uintptr_t)in, .next_out = out};
    int end;

    if (in_length > UINT_MAX || out_room > UINT_MAX)
        return -ENOSPC;
    z.avail_in = (uInt)in_length;
    z.avail_out = (uInt)out_room;
    end = deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, -DEFLATE_WINDOW_BITS,
                       DEFLATE_MEMORY_LEVEL, Z_DEFAULT_STRATEGY);
    if (end != Z_OK)
        return -ENOMEM;
    end = deflate(&z, Z_FINISH);
    deflateEnd(&z);
    *ret_length = out_room - z.avail_out;
    return end == Z_STREAM_END ? 0 : -ENOSPC;
}

#ifdef HAVE_ZSTD
static int encode_zstd(void *out, size_t out_room, const void *in, size_t in_length,
                       size_t *ret_length)
{
    size_t n = ZSTD_compress(out, out_room, in, in_length, ZSTD_LEVEL);

    if (ZSTD_isError(n))
        return ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? -ENOMEM : -ENOSPC;
    *ret_length = n;
    return 0;
}
#endif

int codec_encode(enum codec codec, void *out, size_t out_room, const void *in, size_t in_length,
                 size_t *ret_length)
{
    switch (codec) {
    case CODEC_DEFLATE_RAW:
        return encode_deflate(out, out_room, in, in_length, ret_length);
    case CODEC_ZSTD:
#ifdef HAVE_ZSTD
        return encode_zstd(out, out_room, in, in_length, ret_length);
#else
        return -ENOTSUP;
#endif
    }
    return -ENOTSUP;
}
