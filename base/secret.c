/* SPDX-License-Identifier: BSD-3-Clause */
/* Secrets by name: a short list, owned by the program, looked through when images and TLS open. */
#include "base/secret.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void secret_wipe(void *data, size_t length)
{
    if (data)
        explicit_bzero(data, length);
}

void secret_store_init(struct secret_store *store)
{
    list_init(&store->list);
}

static void secret_free(struct secret *secret)
{
    secret_wipe(secret->data, secret->length);
    free(secret->data);
    free(secret->id);
    free(secret);
}

void secret_store_fini(struct secret_store *store)
{
    struct list *node;

    while ((node = list_pop(&store->list)))
        secret_free(list_entry(node, struct secret, link));
}

static struct secret *secret_new(const char *id, const void *data, size_t length)
{
    struct secret *secret = calloc(1, sizeof(*secret));

    if (!secret)
        return NULL;
    secret->id = strdup(id);
    secret->data = calloc(1, length + 1);
    if (!secret->id || !secret->data) {
        secret_free(secret);
        return NULL;
    }
    if (length > 0)
        memcpy(secret->data, data, length);
    secret->length = length;
    return secret;
}

int secret_store_add(struct secret_store *store, const char *id, const void *data, size_t length,
                     struct error *error)
{
    struct secret *secret;

    if (secret_store_find(store, id))
        return error_set(error, EEXIST, "there are two secrets with the id '%s'", id);
    if (length > SECRET_BYTES_MAX)
        return error_set(error, EINVAL, "the secret '%s' has %zu bytes; at most %d are taken", id,
                         length, SECRET_BYTES_MAX);
    secret = secret_new(id, data, length);
    if (!secret)
        return error_set(error, ENOMEM, "out of memory");
    list_append(&store->list, &secret->link);
    return 0;
}

const struct secret *secret_store_find(const struct secret_store *store, const char *id)
{
    if (!store)
        return NULL;
    list_for_each(it, &store->list)
    {
        const struct secret *secret = list_entry(it, struct secret, link);

        if (strcmp(secret->id, id) == 0)
            return secret;
    }
    return NULL;
}
