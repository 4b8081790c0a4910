/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Codecs: streams that other programs made, cut and spoiled in every way.  The streams hold the
 * same 4096 bytes: byte n is n / 64.
 */
#include "blockcore/codec.h"

#include "base/checked.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define LENGTH 4096

/* Window bits 12, as qcow2 writers use. */
static const uint8_t deflated[] = {
    0xa5, 0xc1, 0x83, 0x81, 0x03, 0x01, 0x00, 0x00, 0xb0, 0xab, 0x6d, 0xdb, 0xe6, 0xa3, 0xd6,
    0xfe, 0x5b, 0x75, 0x88, 0x24, 0x41, 0x60, 0x42, 0x28, 0x8c, 0x22, 0x28, 0x8a, 0x62, 0x28,
    0x8e, 0x12, 0x28, 0x89, 0x52, 0x28, 0x8d, 0x32, 0x28, 0x8b, 0x72, 0x28, 0x8f, 0x0a, 0xa8,
    0x88, 0x4a, 0xa8, 0x8c, 0x2a, 0xa8, 0x8a, 0x6a, 0xa8, 0x8e, 0x1a, 0xa8, 0x89, 0x5a, 0xa8,
    0x8d, 0x3a, 0xa8, 0x8b, 0x7a, 0xa8, 0x8f, 0x06, 0x68, 0x88, 0x46, 0x68, 0x8c, 0x26, 0x68,
    0x8a, 0x66, 0x68, 0x8e, 0x16, 0x68, 0x89, 0x56, 0x68, 0x8d, 0x36, 0x68, 0x8b, 0x76, 0x68,
    0x8f, 0x0e, 0xe8, 0x88, 0x7e, 0xd0, 0x2f, 0xfa, 0x43, 0xff, 0xe8, 0x84, 0xce, 0xe8, 0x82,
    0xae, 0xe8, 0x86, 0xee, 0xe8, 0x81, 0x9e, 0xe8, 0x85, 0xde, 0xe8, 0x83, 0xbe,
};
static const uint8_t zstd_frame[] = {
    0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f, 0x25, 0x03, 0x00, 0x14, 0x04, 0x00, 0x00, 0x01, 0x02,
    0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11, 0x12,
    0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22,
    0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32,
    0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x94, 0x10,
    0xf0, 0x07, 0x00, 0x27, 0x24, 0x49, 0x92, 0x24, 0x49, 0x92, 0x24, 0x89, 0x24, 0x49, 0x92, 0x24,
    0x49, 0x92, 0x24, 0x91, 0x24, 0x49, 0x92, 0x24, 0x49, 0x92, 0x24, 0x92, 0x62, 0x29,
};
/* Without the content size, and with the window of the writer's choice. */
static const uint8_t zstd_stream[] = {
    0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x25, 0x03, 0x00, 0x14, 0x04, 0x00, 0x00, 0x01, 0x02, 0x03,
    0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11, 0x12, 0x13,
    0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x21, 0x22, 0x23,
    0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33,
    0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x40, 0x94, 0x10, 0xf0,
    0x07, 0x00, 0x27, 0x24, 0x49, 0x92, 0x24, 0x49, 0x92, 0x24, 0x89, 0x24, 0x49, 0x92, 0x24, 0x49,
    0x92, 0x24, 0x91, 0x24, 0x49, 0x92, 0x24, 0x49, 0x92, 0x24, 0x92, 0x62, 0x29,
};

struct sample {
    enum codec codec;
    const uint8_t *data;
    size_t length;
};

static const struct sample samples[] = {
    {CODEC_DEFLATE_RAW, deflated, sizeof(deflated)},
    {CODEC_ZSTD, zstd_frame, sizeof(zstd_frame)},
    {CODEC_ZSTD, zstd_stream, sizeof(zstd_stream)},
};

/* Decodes from and into allocations of the exact size, so that a sanitizer sees every step aside.
 */
static int decode(enum codec codec, const uint8_t *in, size_t in_length, size_t out_length,
                  uint8_t **ret)
{
    uint8_t *copy = malloc(in_length ? in_length : 1), *out = malloc(out_length ? out_length : 1);
    int err;

    assert_non_null(copy);
    assert_non_null(out);
    memcpy(copy, in, in_length);
    err = codec_decode(codec, out, out_length, copy, in_length);
    free(copy);
    if (ret)
        *ret = out;
    else
        free(out);
    return err;
}

static bool skipped(const struct sample *s)
{
    return !codec_available(s->codec);
}

static void decodes(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
        const struct sample *s = &samples[i];
        uint8_t *out;

        if (skipped(s)) {
            assert_int_equal(decode(s->codec, s->data, s->length, LENGTH, NULL), -ENOTSUP);
            continue;
        }
        assert_int_equal(decode(s->codec, s->data, s->length, LENGTH, &out), 0);
        for (size_t k = 0; k < LENGTH; k++)
            assert_int_equal(out[k], k / 64);
        free(out);
    }
}

static void ignores_what_follows(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
        const struct sample *s = &samples[i];
        uint8_t padded[512];

        if (skipped(s))
            continue;
        for (unsigned fill = 0; fill < 256; fill += 51) {
            memset(padded, (int)fill, sizeof(padded));
            memcpy(padded, s->data, s->length);
            assert_int_equal(decode(s->codec, padded, sizeof(padded), LENGTH, NULL), 0);
        }
    }
}

static void refuses_cut_streams(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
        const struct sample *s = &samples[i];

        /* The last two bytes of deflate may hold no more than the end-of-block code. */
        for (size_t n = 0; !skipped(s) && n < s->length - 2; n++)
            assert_int_equal(decode(s->codec, s->data, n, LENGTH, NULL), -EIO);
    }
}

static void refuses_other_lengths(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
        const struct sample *s = &samples[i];

        if (skipped(s))
            continue;
        assert_int_equal(decode(s->codec, s->data, s->length, LENGTH + 1, NULL), -EIO);
        assert_int_equal(decode(s->codec, s->data, s->length, LENGTH * 2, NULL), -EIO);
        /* Deflate's length is only an upper bound; a zstd frame must end there. */
        assert_int_equal(decode(s->codec, s->data, s->length, LENGTH - 1, NULL),
                         s->codec == CODEC_ZSTD ? -EIO : 0);
    }
}

/* Whatever comes out: an error or exactly the length, and no step aside. */
static void survives_flipped_bits(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(samples); i++) {
        const struct sample *s = &samples[i];
        uint8_t spoiled[512];

        for (size_t bit = 0; !skipped(s) && bit < s->length * 8; bit++) {
            int err;

            memcpy(spoiled, s->data, s->length);
            spoiled[bit / 8] ^= (uint8_t)(1u << bit % 8);
            err = decode(s->codec, spoiled, s->length, LENGTH, NULL);
            assert_true(err == 0 || err == -EIO);
        }
    }
}

/* Windows: 2 MiB is fine for any length (the sample has it), more is not. */
static void bounds_the_window(void **state)
{
    uint8_t frame[sizeof(zstd_stream)];

    if (!codec_available(CODEC_ZSTD))
        test_skip("this build is without zstd");
    memcpy(frame, zstd_stream, sizeof(frame));
    assert_int_equal(frame[5], (21 - 10) << 3);
    frame[5] = (21 - 10) << 3 | 1;
    assert_int_equal(decode(CODEC_ZSTD, frame, sizeof(frame), LENGTH, NULL), -EIO);
    frame[5] = (27 - 10) << 3;
    assert_int_equal(decode(CODEC_ZSTD, frame, sizeof(frame), LENGTH, NULL), -EIO);
    frame[5] = 0xff;
    assert_int_equal(decode(CODEC_ZSTD, frame, sizeof(frame), LENGTH, NULL), -EIO);
}

static void one_codec_is_not_the_other(void **state)
{
    assert_int_equal(decode(CODEC_DEFLATE_RAW, zstd_frame, sizeof(zstd_frame), LENGTH, NULL), -EIO);
    if (codec_available(CODEC_ZSTD))
        assert_int_equal(decode(CODEC_ZSTD, deflated, sizeof(deflated), LENGTH, NULL), -EIO);
    assert_true(codec_available(CODEC_DEFLATE_RAW));
}

/* What each codec makes, it reads, and so it is with the least room that is enough. */
static void encodes(void **state)
{
    uint8_t in[LENGTH], out[LENGTH];
    size_t length, again;

    for (unsigned i = 0; i < LENGTH; i++)
        in[i] = (uint8_t)(i / 16 * 37 + i % 3);
    for (enum codec codec = CODEC_DEFLATE_RAW; codec <= CODEC_ZSTD; codec++) {
        uint8_t *seen;

        if (!codec_available(codec)) {
            assert_int_equal(codec_encode(codec, out, LENGTH, in, LENGTH, &length), -ENOTSUP);
            continue;
        }
        assert_int_equal(codec_encode(codec, out, LENGTH, in, LENGTH, &length), 0);
        assert_true(length > 0 && length < LENGTH / 2);
        assert_int_equal(decode(codec, out, length, LENGTH, &seen), 0);
        assert_memory_equal(seen, in, LENGTH);
        free(seen);
        for (size_t room = 0; room < length - 1; room += 50)
            assert_int_equal(codec_encode(codec, out, room, in, LENGTH, &again), -ENOSPC);
    }
}

/* Readers may have a window of 4 KiB only: nothing further back is referred to. */
static void encodes_for_small_windows(void **state)
{
    const size_t size = 64 * KIB, far = 32 * KIB;
    uint8_t *in = malloc(size), *out = malloc(2 * size);
    struct prng prng = prng_of(1);
    size_t length;

    prng_fill(&prng, in, far);
    memcpy(in + far, in, size - far); /* the second half repeats the first: too far to see */
    assert_int_equal(codec_encode(CODEC_DEFLATE_RAW, out, 2 * size, in, size, &length), 0);
    assert_true(length > size - KIB);
    free(in);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decodes),
        cmocka_unit_test(ignores_what_follows),
        cmocka_unit_test(refuses_cut_streams),
        cmocka_unit_test(refuses_other_lengths),
        cmocka_unit_test(survives_flipped_bits),
        cmocka_unit_test(bounds_the_window),
        cmocka_unit_test(one_codec_is_not_the_other),
        cmocka_unit_test(encodes),
        cmocka_unit_test(encodes_for_small_windows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
