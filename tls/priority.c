/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The order of ciphers.
 *
 * The server's order counts.  A pre-shared key is bound to SHA-256, which in TLS 1.3 goes with
 * AES-128-GCM and ChaCha20 but not with AES-256-GCM: an order that begins with the latter ends up
 * with ChaCha20, several times slower where the CPU has AES instructions.  So AES-128-GCM is first
 * there, and ChaCha20 where they are missing.
 */
#include "tls/priority.h"

#include "base/checked.h"

#include <stdbool.h>
#include <sys/auxv.h>

#define VERSIONS "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:%SERVER_PRECEDENCE:-MAC-ALL:+AEAD"
/* Anonymous key exchange ended with TLS 1.2, and over elliptic curves it has no AES-GCM. */
#define VERSION_ANON "NORMAL:-VERS-ALL:+VERS-TLS1.2:%SERVER_PRECEDENCE:-MAC-ALL:+AEAD"
#define FAST_AES ":-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
#define SLOW_AES ":-CIPHER-ALL:+CHACHA20-POLY1305:+AES-128-GCM:+AES-256-GCM"
/* Most clients send their share for X25519 at once; any other first costs them another round. */
#define CURVES ":-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1:+GROUP-SECP521R1"
#define X509 ":-KX-ALL:+ECDHE-ECDSA:+ECDHE-RSA" CURVES
#define PSK ":-KX-ALL:+ECDHE-PSK" CURVES
#define ANON ":-KX-ALL:+ANON-DH"

/* By kind, without and with AES instructions. */
static const char *const priorities[][2] = {
    [TLS_X509] = {VERSIONS SLOW_AES X509, VERSIONS FAST_AES X509},
    [TLS_PSK] = {VERSIONS SLOW_AES PSK, VERSIONS FAST_AES PSK},
    [TLS_ANON] = {VERSION_ANON SLOW_AES ANON, VERSION_ANON FAST_AES ANON},
};

static bool cpu_has_aes(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__)
    const unsigned long aes_and_pmull = 3UL << 3;

    return (getauxval(AT_HWCAP) & aes_and_pmull) == aes_and_pmull;
#else
    return false;
#endif
}

const char *tls_priority(enum tls_kind kind)
{
    return priorities[kind][cpu_has_aes()];
}
