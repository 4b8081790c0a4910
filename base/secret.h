/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Secrets by name: passphrases and keys that other parts of the command line refer to, so that they
 * need not stand where a process list or a log shows them.  Memory is wiped before it is freed.
 */
#ifndef EVNBD_BASE_SECRET_H
#define EVNBD_BASE_SECRET_H

#include "base/error.h"
#include "base/list.h"

#include <stddef.h>
#include <stdint.h>

struct secret {
    struct list link;
    char *id;
    uint8_t *data; /* followed by a 0 byte, which does not count */
    size_t length;
};

/* Longest secret, in bytes. */
#define SECRET_BYTES_MAX (64 * 1024)

struct secret_store {
    struct list list;
};

void secret_store_init(struct secret_store *store);
void secret_store_fini(struct secret_store *store);

/*
 * Copies `length` bytes (0 to SECRET_BYTES_MAX) under a name.  -EEXIST (the name is taken), -EINVAL
 * (too long) or -ENOMEM with a sentence.
 */
int secret_store_add(struct secret_store *store, const char *id, const void *data, size_t length,
                     struct error *error);
/* The store's; NULL: there is none of that name, or no store. */
const struct secret *secret_store_find(const struct secret_store *store, const char *id);

/* Overwrites memory in a way that the compiler keeps. */
void secret_wipe(void *data, size_t length);

#endif
