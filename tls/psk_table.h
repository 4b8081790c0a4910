/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pre-shared keys by user name.  The file has a line NAME:KEY for each user, the key in
 * hexadecimal; empty lines and lines that begin with # are skipped.  Inside of tls/.
 */
#ifndef EVNBD_TLS_PSK_TABLE_H
#define EVNBD_TLS_PSK_TABLE_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

/* Bytes of a user name, and of a key. */
#define PSK_NAME_MAX 128
#define PSK_KEY_MIN 8
#define PSK_KEY_MAX 64

struct psk_key {
    size_t name_length, length;
    unsigned line;               /* of the file, from 1 */
    char name[PSK_NAME_MAX + 1]; /* and a 0 byte */
    uint8_t key[PSK_KEY_MAX];
};

struct psk_table {
    struct psk_key *keys; /* as in the file */
    struct psk_key **by_name;
    size_t count;
};

/*
 * Fills *ret from a file's text; `path` is for messages, which never show keys.  -EINVAL (a line is
 * wrong, a name is there twice, there is no key) or -ENOMEM.
 */
int psk_table_parse(struct psk_table *ret, const char *path, const uint8_t *text, size_t length,
                    struct error *error);
void psk_table_fini(struct psk_table *table); /* wipes; a zeroed one is fine */

/* NULL: unknown. */
const struct psk_key *psk_table_find(const struct psk_table *table, const void *name,
                                     size_t length);

#endif
