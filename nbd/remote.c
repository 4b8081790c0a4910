/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The account of a server's exports.  Every piece is charged with what the allocator needs for it,
 * about, so that many small pieces cannot take more than the limit either.  Arrays grow to the next
 * power of two and are charged an element at a time.
 */
#include "nbd/remote.h"

#include "base/checked.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES 32 /* of the allocator, for a piece of memory */

static int charge(struct nbd_remote *remote, size_t bytes)
{
    if (!range_within(remote->bytes, bytes, NBD_REMOTE_BYTES_MAX))
        return -EOVERFLOW;
    remote->bytes += bytes;
    return 0;
}

static size_t text_bytes(const struct nbd_text *text)
{
    return text->data ? text->length + 1 + PIECE_BYTES : 0;
}

static void drop_text(struct nbd_remote *remote, struct nbd_text *text)
{
    remote->bytes -= text_bytes(text);
    free(text->data);
    *text = (struct nbd_text){0};
}

int nbd_remote_set_text(struct nbd_remote *remote, struct nbd_text *text, const void *data,
                        size_t length)
{
    struct nbd_text new = {.data = malloc(length + 1), .length = length};
    int err;

    if (!new.data)
        return -ENOMEM;
    if (length > 0)
        memcpy(new.data, data, length);
    new.data[length] = '\0';
    drop_text(remote, text);
    err = charge(remote, text_bytes(&new));
    if (err < 0)
        free(new.data);
    else
        *text = new;
    return err;
}

/* Room for one element more in an array of `count`. NULL: out of memory, and nothing has changed.
 */
static void *extended(void *array, size_t count, size_t element)
{
    if (count != 0 && !is_power_of_two(count))
        return array;
    return reallocarray(array, count ? 2 * count : 1, element);
}

int nbd_remote_add_export(struct nbd_remote *remote, const void *name, size_t length)
{
    struct nbd_remote_export *e;
    int err = remote->export_count < NBD_REMOTE_EXPORTS_MAX ? 0 : -EOVERFLOW;

    if (err == 0)
        err = charge(remote, sizeof(*e));
    if (err < 0)
        return err;
    e = extended(remote->exports, remote->export_count, sizeof(*e));
    if (!e)
        return -ENOMEM;
    remote->exports = e;
    e += remote->export_count++;
    *e = (struct nbd_remote_export){0};
    return nbd_remote_set_text(remote, &e->name, name, length);
}

int nbd_remote_add_context(struct nbd_remote *remote, struct nbd_remote_export *e, const void *name,
                           size_t length)
{
    struct nbd_text *contexts;
    int err = e->context_count < NBD_REMOTE_CONTEXTS_MAX ? 0 : -EOVERFLOW;

    if (err == 0)
        err = charge(remote, sizeof(*contexts));
    if (err < 0)
        return err;
    contexts = extended(e->contexts, e->context_count, sizeof(*contexts));
    if (!contexts)
        return -ENOMEM;
    e->contexts = contexts;
    contexts += e->context_count++;
    *contexts = (struct nbd_text){0};
    return nbd_remote_set_text(remote, contexts, name, length);
}

static size_t problem_bytes(const char *problem)
{
    return problem ? strlen(problem) + 1 + PIECE_BYTES : 0;
}

int nbd_remote_set_problem(struct nbd_remote *remote, struct nbd_remote_export *e, const char *text)
{
    char *copy;
    int err;

    if (e->problem)
        return 0;
    err = charge(remote, problem_bytes(text));
    if (err < 0)
        return err;
    copy = strdup(text);
    if (!copy)
        remote->bytes -= problem_bytes(text);
    e->problem = copy;
    return copy ? 0 : -ENOMEM;
}

static void forget_contexts(struct nbd_remote *remote, struct nbd_remote_export *e)
{
    for (size_t i = 0; i < e->context_count; i++)
        drop_text(remote, &e->contexts[i]);
    remote->bytes -= e->context_count * sizeof(*e->contexts);
    free(e->contexts);
    e->contexts = NULL;
    e->context_count = 0;
}

void nbd_remote_forget(struct nbd_remote *remote, struct nbd_remote_export *e)
{
    forget_contexts(remote, e);
    drop_text(remote, &e->canonical_name);
    drop_text(remote, &e->info_description);
    remote->bytes -= problem_bytes(e->problem);
    free(e->problem);
    e->problem = NULL;
    e->examined = false;
    e->size = 0;
    e->flags = 0;
    e->block_min = e->block_preferred = e->block_max = 0;
}

void nbd_remote_fini(struct nbd_remote *remote)
{
    for (size_t i = 0; i < remote->export_count; i++) {
        struct nbd_remote_export *e = &remote->exports[i];

        nbd_remote_forget(remote, e);
        drop_text(remote, &e->name);
        drop_text(remote, &e->description);
    }
    free(remote->exports);
    *remote = (struct nbd_remote){0};
}
