/* SPDX-License-Identifier: BSD-3-Clause */
/* The life of nodes after they were opened: references, closing, names; and the look-up of drivers.
 */
#include "blockcore/node.h"
#include "blockcore/foreign.h"

#include "base/log.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct node *node_ref(struct node *node)
{
    node->references++;
    return node;
}

/* Children were flushed with the node above them; a failure that a caller was told is not news. */
static void flush_before_close(struct node *node)
{
    bool told = node->flush_failed;
    bool flush = node->opened && !node->parent && !(node->flags & NODE_TEMPORARY);
    int err = flush ? block_flush(node) : 0;

    if (err < 0 && !told)
        log_error("flushing %s before it is closed failed: %s", node_name(node), strerror(-err));
}

/* Closes one node; its children's references are given to the caller. */
static void close_one(struct node *node, struct node **ret_file, struct node **ret_backing)
{
    struct node **children = node->children;
    size_t count = node->children_count;

    TRACE(block_close, "%s (%s)", node_name(node), node->driver->name);
    flush_before_close(node);
    if (node->driver->close)
        node->driver->close(node);
    engine_forget_decoded(node);
    *ret_file = node->file;
    *ret_backing = node->backing;
    free(node->filename);
    free(node->label);
    free(node->state);
    free(node);
    for (size_t i = 0; i < count; i++)
        node_unref(children[i]);
    free(children);
}

void node_unref(struct node *node)
{
    /* Along the backing chain in a loop: it may be long, and the stack is small. */
    while (node) {
        struct node *file, *backing;

        if (--node->references > 0)
            return;
        close_one(node, &file, &backing);
        node_unref(file);
        node = backing;
    }
}

void node_stop(struct node *node)
{
    for (; node; node = node->backing) {
        if (node->driver->stop)
            node->driver->stop(node);
        node_stop(node->file);
        for (size_t i = 0; i < node->children_count; i++)
            node_stop(node->children[i]);
    }
}

bool node_writable(const struct node *node)
{
    return node->flags & NODE_WRITABLE;
}

const char *node_name(const struct node *node)
{
    return node->label ? node->label : node->driver->name;
}

const struct driver *driver_find(const struct driver *const *drivers, const char *name)
{
    for (; *drivers; drivers++) {
        if (strcmp((*drivers)->name, name) == 0)
            return *drivers;
    }
    return NULL;
}

const struct driver *driver_of_name(const struct driver *const *drivers, const char *name)
{
    for (; *drivers; drivers++) {
        for (const char *const *it = (*drivers)->names; it && *it; it++) {
            if (strncmp(name, *it, strlen(*it)) == 0)
                return *drivers;
        }
    }
    return NULL;
}

static bool has_magic(const struct driver *driver, const struct probe *probe)
{
    for (const struct magic *m = driver->magics; m && m->length; m++) {
        if (range_within(m->offset, m->length, probe->length) &&
            memcmp(probe->data + m->offset, m->bytes, m->length) == 0)
            return true;
    }
    return false;
}

const struct driver *driver_probe(const struct driver *const *drivers, const struct probe *probe)
{
    for (; *drivers; drivers++) {
        if (has_magic(*drivers, probe) && (!(*drivers)->match || (*drivers)->match(probe)))
            return *drivers;
    }
    return NULL;
}

bool probe_shows_format(const struct driver *const *drivers, const struct probe *probe)
{
    return driver_probe(drivers, probe) || foreign_format(probe);
}
