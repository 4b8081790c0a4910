/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Ciphers and key derivation against what other programs compute: OpenSSL for AES and PBKDF2, the
 * vector of IEEE 1619 for XTS.  (Serpent, Twofish and CAST5 are compared with QEMU end to end.)
 */
#include "blockcore/cipher.h"

#include "base/checked.h"
#include "tests/support/support.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define FAR_SECTOR ((UINT64_C(1) << 32) + 5)
#define EDGE 16

static void need_ciphers(void)
{
    if (!cipher_available())
        test_skip("this build is without ciphers (nettle)");
}

static void from_hex(const char *hex, uint8_t *out)
{
    for (size_t i = 0; hex[i * 2]; i++) {
        char byte[3] = {hex[i * 2], hex[i * 2 + 1], 0};

        out[i] = (uint8_t)strtoul(byte, NULL, 16);
    }
}

static void count_up(uint8_t *data, size_t length, unsigned from)
{
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i + from);
}

struct vector {
    enum cipher_mode mode;
    enum cipher_iv iv;
    size_t key_length;        /* bytes 1, 2, 3... */
    const char *first, *last; /* 16 bytes of 0, 1, 2... encrypted as sector FAR_SECTOR */
};

static const struct vector vectors[] = {
    {CIPHER_CBC, CIPHER_IV_PLAIN, 16, "c8cc063851c9f6f1a5c79fb3a10d1d27",
     "9007b354e13ff77342092b171e202b10"},
    {CIPHER_CBC, CIPHER_IV_PLAIN64, 16, "ac1e2f662b8c47ed560574edceb8e284",
     "2fb8130b6c72047745de2a813e828c59"},
    {CIPHER_CBC, CIPHER_IV_ESSIV, 16, "e3fa0c4e38d91757325c2986b957a1e8",
     "fcbec561bc5305161b4b4995433f99df"},
    {CIPHER_CTR, CIPHER_IV_PLAIN64, 16, "5542d83542b8354ed1efbd4352aa1e38",
     "a7d619be4ca1fd5d2424bc128ec2723e"},
    {CIPHER_ECB, CIPHER_IV_NONE, 16, "6f0a9fffcb98df4f7425f73d09bbddfb",
     "4f5c902a7d8c86775e1efacca6a67d8d"},
    {CIPHER_CBC, CIPHER_IV_PLAIN, 24, "6a8d7703b3381de4163c1a93ed69c503",
     "8143a1b0b488beb9a44fef18b26f2c66"},
    {CIPHER_CBC, CIPHER_IV_ESSIV, 24, "ab5d04af8729a1b1fff873549c4f76c5",
     "b7db551692371e06a1571d55d92fdc4a"},
    {CIPHER_CTR, CIPHER_IV_PLAIN64, 24, "0313413aa8b7dee0f5dddca13400fd8b",
     "b33f9bd110819623e731491e1e2f87cf"},
    {CIPHER_CBC, CIPHER_IV_PLAIN64, 32, "216847d7e9503415f993d81c0919b752",
     "2e2a4609c6ad47e620516688a84918a8"},
    {CIPHER_CBC, CIPHER_IV_ESSIV, 32, "1e0a8af5601f0b82747f892ca7ef12b3",
     "5f185b615c18b8fc25264417394bc2d2"},
    {CIPHER_CTR, CIPHER_IV_PLAIN64, 32, "78fbad220e5744d55fa33003f81648dd",
     "cb03fefb05028822ade7f7b6c88b56cb"},
    {CIPHER_ECB, CIPHER_IV_NONE, 32, "ed6a007c4841f8423969d83d86d62a6d",
     "aec787837963fe3f63f46f5b171ad714"},
};

static struct cipher *make(const struct cipher_kind *kind, const uint8_t *key, size_t length)
{
    struct cipher *cipher = NULL;

    assert_int_equal(cipher_new(kind, key, length, &cipher), 0);
    return cipher;
}

static void test_aes(void **state)
{
    need_ciphers();
    for (size_t i = 0; i < ARRAY_SIZE(vectors); i++) {
        const struct vector *v = &vectors[i];
        struct cipher_kind kind = {CIPHER_AES, v->mode, v->iv, DIGEST_SHA256};
        uint8_t key[32], data[2 * CIPHER_SECTOR], plain[2 * CIPHER_SECTOR], edge[EDGE];
        struct cipher *cipher;

        count_up(key, sizeof(key), 1);
        count_up(plain, sizeof(plain), 0);
        memcpy(data, plain, sizeof(data));
        cipher = make(&kind, key, v->key_length);
        /* The second of two sectors, so that their numbers are seen to go up. */
        cipher_encrypt(cipher, data, sizeof(data), FAR_SECTOR - 1);
        from_hex(v->first, edge);
        assert_memory_equal(data + CIPHER_SECTOR, edge, EDGE);
        from_hex(v->last, edge);
        assert_memory_equal(data + 2 * CIPHER_SECTOR - EDGE, edge, EDGE);
        cipher_decrypt(cipher, data, sizeof(data), FAR_SECTOR - 1);
        assert_memory_equal(data, plain, sizeof(data));
        cipher_free(cipher);
    }
}

/* Vector 4: 512 bytes, data unit 0. */
static void test_xts(void **state)
{
    static const char *const wanted =
        "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"
        "c78cf7f5e543445f8333d8fa7f56000005279fa5d8b5e4ad40e736ddb4d35412";
    const struct cipher_kind kind = {CIPHER_AES, CIPHER_XTS, CIPHER_IV_PLAIN64, 0};
    uint8_t key[32], data[CIPHER_SECTOR], plain[CIPHER_SECTOR], start[64];
    struct cipher *cipher;

    need_ciphers();
    from_hex("27182818284590452353602874713526", key);
    from_hex("31415926535897932384626433832795", key + 16);
    count_up(plain, sizeof(plain), 0);
    memcpy(data, plain, sizeof(data));
    cipher = make(&kind, key, sizeof(key));
    cipher_encrypt(cipher, data, sizeof(data), 0);
    from_hex(wanted, start);
    assert_memory_equal(data, start, sizeof(start));
    from_hex("0a282df920147beabe421ee5319d0568", start);
    assert_memory_equal(data + CIPHER_SECTOR - EDGE, start, EDGE);
    cipher_decrypt(cipher, data, sizeof(data), 0);
    assert_memory_equal(data, plain, sizeof(data));
    cipher_free(cipher);
}

/* What is encrypted comes back, and differs with key, sector and cipher. */
static void test_all_kinds(void **state)
{
    static const size_t lengths[] = {16, 24, 32, 48, 64};
    uint8_t key[CIPHER_KEY_MAX], plain[CIPHER_SECTOR], data[CIPHER_SECTOR], other[CIPHER_SECTOR];
    unsigned made = 0;

    need_ciphers();
    count_up(key, sizeof(key), 7);
    count_up(plain, sizeof(plain), 3);
    for (unsigned n = 0; n < 4 * 4 * 4 * ARRAY_SIZE(lengths); n++) {
        struct cipher_kind kind = {(enum cipher_algorithm)(n % 4), (enum cipher_mode)(n / 4 % 4),
                                   (enum cipher_iv)(n / 16 % 4), DIGEST_SHA256};
        size_t length = lengths[n / 64];
        struct cipher *cipher = NULL;
        const char *why = NULL;

        if (cipher_kind_check(&kind, length, &why) < 0) {
            assert_non_null(why);
            assert_int_equal(cipher_new(&kind, key, length, &cipher), -EINVAL);
            continue;
        }
        made++;
        cipher = make(&kind, key, length);
        memcpy(data, plain, sizeof(data));
        memcpy(other, plain, sizeof(data));
        cipher_encrypt(cipher, data, sizeof(data), 9);
        cipher_encrypt(cipher, other, sizeof(data), 10);
        assert_memory_not_equal(data, plain, sizeof(data));
        if (kind.iv != CIPHER_IV_NONE && kind.mode != CIPHER_ECB)
            assert_memory_not_equal(data, other, sizeof(data));
        cipher_decrypt(cipher, data, sizeof(data), 9);
        assert_memory_equal(data, plain, sizeof(data));
        cipher_free(cipher);
    }
    assert_true(made > 60);
}

static void test_kinds_refused(void **state)
{
    static const struct {
        struct cipher_kind kind;
        size_t length;
    } rows[] = {
        {{CIPHER_AES, CIPHER_CBC, CIPHER_IV_PLAIN, 0}, 0},
        {{CIPHER_AES, CIPHER_CBC, CIPHER_IV_PLAIN, 0}, 20},
        {{CIPHER_AES, CIPHER_CBC, CIPHER_IV_PLAIN, 0}, 64},
        {{CIPHER_AES, CIPHER_XTS, CIPHER_IV_PLAIN, 0}, 33},
        {{CIPHER_AES, CIPHER_XTS, CIPHER_IV_PLAIN, 0}, 16},
        {{CIPHER_CAST5, CIPHER_XTS, CIPHER_IV_PLAIN, 0}, 32},
        {{CIPHER_CAST5, CIPHER_CBC, CIPHER_IV_ESSIV, DIGEST_SHA256}, 16},
        {{CIPHER_AES, CIPHER_CBC, CIPHER_IV_ESSIV, DIGEST_SHA512}, 32},
        {{CIPHER_AES, CIPHER_CBC, CIPHER_IV_ESSIV, DIGEST_SHA1}, 32},
        {{CIPHER_AES, CIPHER_CBC, CIPHER_IV_NONE, 0}, 16},
    };
    uint8_t key[CIPHER_KEY_MAX] = {0};

    need_ciphers();
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct cipher *cipher = NULL;

        assert_int_equal(cipher_new(&rows[i].kind, key, rows[i].length, &cipher), -EINVAL);
        assert_null(cipher);
    }
    cipher_free(NULL);
}

static void test_pbkdf2(void **state)
{
    static const struct {
        enum digest digest;
        const char *first, *last; /* 16 of 64 bytes */
    } rows[] = {
        {DIGEST_SHA1, "47eb6c05eb8a828b15ec36babca296ba", "2ffb1f7449ad9ea921af468a3c3daaea"},
        {DIGEST_SHA224, "2f77468951039320e5729d950b01bfa9", "82114f340e9eb525f97762e46ffc3437"},
        {DIGEST_SHA256, "c47b1b8bb22e8971fa245d4c2aed2841", "359e32f91377b789748cc82dda38dd41"},
        {DIGEST_SHA384, "28182e838f33a530d04264f8f5a5545e", "bf5fcdffe90b6092556306f63bd62452"},
        {DIGEST_SHA512, "92a31033f939b0128d7013b617376a23", "749a15451fdb7761fee3180fe4a74d59"},
        {DIGEST_RIPEMD160, "9aa9b6ff49d8a544a3cbc5b6f669689f", "42dfeee47657de4d148144e12c23fc91"},
    };

    need_ciphers();
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        const struct pbkdf2 job = {rows[i].digest, "pass\0word", 9, "sa\0lt", 5, 5000, 0};
        uint8_t out[64], edge[EDGE];

        memset(out, 0, sizeof(out));
        assert_int_equal(pbkdf2_derive(&job, out, sizeof(out)), 0);
        from_hex(rows[i].first, edge);
        assert_memory_equal(out, edge, EDGE);
        from_hex(rows[i].last, edge);
        assert_memory_equal(out + sizeof(out) - EDGE, edge, EDGE);
    }
}

/* RFC 6070: a key that is no multiple of the digest. */
static void test_pbkdf2_cut(void **state)
{
    const struct pbkdf2 job = {DIGEST_SHA1,
                               "passwordPASSWORDpassword",
                               24,
                               "saltSALTsaltSALTsaltSALTsaltSALTsalt",
                               36,
                               4096,
                               0};
    uint8_t out[26] = {0}, wanted[25];

    need_ciphers();
    from_hex("3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038", wanted);
    assert_int_equal(pbkdf2_derive(&job, out, 25), 0);
    assert_memory_equal(out, wanted, 25);
    assert_int_equal(out[25], 0);
}

/* Hours are refused at once; no iterations are none. */
static void test_pbkdf2_limits(void **state)
{
    struct pbkdf2 job = {DIGEST_SHA256, "x", 1, "y", 1, UINT32_MAX, 1000000000};
    uint8_t out[32];
    uint32_t iterations = 0;

    need_ciphers();
    assert_int_equal(pbkdf2_derive(&job, out, sizeof(out)), -ETIME);
    job.iterations = 0;
    assert_int_equal(pbkdf2_derive(&job, out, sizeof(out)), -EINVAL);
    assert_int_equal(pbkdf2_measure(DIGEST_SHA256, 32, 1000000000, &iterations), 0);
    assert_in_range(iterations, 1, UINT32_MAX);
    assert_int_equal(pbkdf2_measure(DIGEST_SHA256, 32, 0, &iterations), 0);
    assert_int_equal(iterations, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_aes),           cmocka_unit_test(test_xts),
        cmocka_unit_test(test_all_kinds),     cmocka_unit_test(test_kinds_refused),
        cmocka_unit_test(test_pbkdf2),        cmocka_unit_test(test_pbkdf2_cut),
        cmocka_unit_test(test_pbkdf2_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
