/* SPDX-License-Identifier: BSD-3-Clause */
/* The files that images name: which names are followed, and to where. */
#ifndef EVNBD_BLOCKCORE_PATH_H
#define EVNBD_BLOCKCORE_PATH_H

#include "base/error.h"

#include <stddef.h>

struct node;

/* The path of the image that `node` is; NULL when it is not in a file. */
const char *path_of_image(const struct node *node);

/*
 * The path of the file that the image `image` (NULL: it is in no file) calls `name`, `length`
 * bytes: relative to the image's directory.  *ret is freed by the caller.  0 or -ENOMEM.
 */
int path_beside(const char *image, const char *name, size_t length, char **ret,
                struct error *error);

/*
 * The same for the image that `node` is, if the name may be followed: only plain paths are.  `what`
 * the name is of, for the message ("backing file").
 */
int path_named_by(const struct node *node, const char *what, const char *name, size_t length,
                  char **ret, struct error *error);

#endif
