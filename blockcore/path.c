/* SPDX-License-Identifier: BSD-3-Clause */
/* The files that images name. See path.h. */
#include "blockcore/path.h"

#include "blockcore/node.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Only plain paths: an image must not reach for the network or for a descriptor. */
static int check_name(const struct node *node, const char *what, const char *name, size_t length,
                      struct error *error)
{
    const char *colon = memchr(name, ':', length), *slash = memchr(name, '/', length);
    char shown[128];

    error_escape(shown, sizeof(shown), name, length);
    if (length == 0 || memchr(name, 0, length))
        return error_set(error, EINVAL, "%s names '%s' as its %s, which is no path",
                         node_name(node), shown, what);
    if (colon && (!slash || colon < slash))
        return error_set(error, EINVAL,
                         "%s names '%s' as its %s; only plain paths are followed, unless "
                         "--backing-policy=any was asked for (write ./ in front of a file name "
                         "with a colon)",
                         node_name(node), shown, what);
    return 0;
}

const char *path_of_image(const struct node *node)
{
    for (; node; node = node->file) {
        if (node->filename)
            return node->filename;
    }
    return NULL;
}

int path_beside(const char *image, const char *name, size_t length, char **ret, struct error *error)
{
    const char *slash = image ? strrchr(image, '/') : NULL;

    if (name[0] == '/' || !slash)
        *ret = strndup(name, length);
    else if (asprintf(ret, "%.*s%.*s", (int)(slash + 1 - image), image, (int)length, name) < 0)
        *ret = NULL;
    return *ret ? 0 : error_set(error, ENOMEM, "out of memory");
}

int path_named_by(const struct node *node, const char *what, const char *name, size_t length,
                  char **ret, struct error *error)
{
    const char *image = path_of_image(node);
    int err = check_name(node, what, name, length, error);
    char shown[128];

    if (err == 0 && !image && name[0] != '/')
        err = error_set(error, EINVAL,
                        "%s names '%s' as its %s, but is in no directory of this machine: the "
                        "options of the image have to say where that is",
                        node_name(node), error_escape(shown, sizeof(shown), name, length), what);
    return err < 0 ? err : path_beside(image, name, length, ret, error);
}
