/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which of the names that images have for other files are followed.  Who made an image chooses
 * them, and who opens it may not trust him.
 */
#ifndef EVNBD_BLOCKCORE_NAME_POLICY_H
#define EVNBD_BLOCKCORE_NAME_POLICY_H

#include "base/error.h"
#include "base/options.h"

#include <stddef.h>

struct block_context;
struct node;

enum name_policy_kind {
    NAMES_PLAIN,   /* paths, to anywhere; no options (json:) and no URIs */
    NAMES_ANY,     /* everything */
    NAMES_BENEATH, /* paths whose file is below the directory of the image that names it */
    NAMES_NONE,    /* nothing */
    NAMES_LISTED,  /* paths whose file is one of the list, or below a directory of it */
};

struct name_policy {
    enum name_policy_kind kind;
    const char *list; /* LISTED: absolute paths with colons between them */
};

/* Reads "any", "beneath", "none" or "list=PATH[:PATH]..."; ret->list is a part of `text`. */
int name_policy_parse(const char *text, struct name_policy *ret, struct error *error);

/*
 * The options of the node for the file that the image `node` calls `name` (`length` bytes, not
 * NUL-terminated); `what` it is for messages ("backing file").  -EACCES: the policy forbids it.
 */
int name_policy_tree(const struct block_context *context, const struct node *node, const char *what,
                     const char *name, size_t length, json_t **ret, struct error *error);

#endif
