/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Following the names in images.  Where a file must lie somewhere, its path is resolved first, and
 * it is opened by the resolved path from that directory, without following links (openat2): links
 * that are changed meanwhile lead nowhere.
 */
#include "blockcore/name_policy.h"

#include "base/sys.h"
#include "blockcore/open.h"
#include "blockcore/path.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char list_word[] = "list=";

int name_policy_parse(const char *text, struct name_policy *ret, struct error *error)
{
    char shown[128];

    *ret = (struct name_policy){NAMES_PLAIN, NULL};
    if (strcmp(text, "any") == 0)
        ret->kind = NAMES_ANY;
    else if (strcmp(text, "beneath") == 0)
        ret->kind = NAMES_BENEATH;
    else if (strcmp(text, "none") == 0)
        ret->kind = NAMES_NONE;
    else if (strncmp(text, list_word, strlen(list_word)) == 0)
        *ret = (struct name_policy){NAMES_LISTED, text + strlen(list_word)};
    else
        return error_set(error, EINVAL,
                         "Invalid backing policy '%s': any, beneath, none or list=PATH[:PATH]... "
                         "is needed",
                         error_escape(shown, sizeof(shown), text, strlen(text)));
    /* Each path of the list begins with a slash. */
    for (const char *at = ret->list; at; at = strchr(at, ':') ? strchr(at, ':') + 1 : NULL) {
        if (*at != '/')
            return error_set(error, EINVAL,
                             "Invalid backing policy '%s': the list must be absolute paths, with "
                             "colons between them",
                             error_escape(shown, sizeof(shown), text, strlen(text)));
    }
    return 0;
}

/* The path of the file behind all links. Returns 0 or negative errno; *ret is freed by the caller.
 */
static int resolve(const char *path, char **ret)
{
    char link[64], target[PATH_MAX];
    int fd = sys->openat(AT_FDCWD, path, O_PATH | O_CLOEXEC, 0);
    ssize_t n;

    if (fd < 0)
        return fd;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = sys->readlinkat(AT_FDCWD, link, target, sizeof(target));
    sys->close(fd);
    if (n < 0 || n == (ssize_t)sizeof(target))
        return n < 0 ? (int)n : -ENAMETOOLONG;
    *ret = strndup(target, (size_t)n);
    return *ret ? 0 : -ENOMEM;
}

/* Whether the resolved path is in the directory, or is it. */
static bool is_below(const char *path, const char *directory)
{
    size_t length = strlen(directory);

    if (length > 0 && directory[length - 1] == '/') /* the root */
        length--;
    return strncmp(path, directory, length) == 0 && (path[length] == '/' || !path[length]);
}

/*
 * The options of the file, if it is below the directory or is that file itself; *ret stays NULL
 * when it is not.
 */
static int tree_below(const char *resolved, const char *allowed, size_t length, json_t **ret)
{
    char *path = strndup(allowed, length), *directory = NULL;
    int err = path ? resolve(path, &directory) : -ENOMEM;

    free(path);
    if (err == -ENOENT || err == -ENOTDIR || err == -EACCES)
        return 0; /* nothing can be there */
    if (err == 0 && is_below(resolved, directory)) {
        char *slash = strrchr(directory, '/');
        json_t *tree = open_file_tree(resolved);

        if (slash && strcmp(resolved, directory) == 0)
            slash[slash == directory] = '\0'; /* the directory that the file is in */
        if (!tree || json_object_set_new(tree, "beneath", json_string_nocheck(directory)) < 0) {
            json_decref(tree);
            err = -ENOMEM;
        } else {
            *ret = tree;
        }
    }
    free(directory);
    return err;
}

/* The same for the directory of the image, or for each path of the list. */
static int tree_allowed(const struct name_policy *policy, const char *image, const char *resolved,
                        json_t **ret)
{
    const char *slash = image ? strrchr(image, '/') : NULL;
    int err = 0;

    if (policy->kind == NAMES_BENEATH && slash)
        return tree_below(resolved, image, (size_t)(slash + 1 - image), ret);
    if (policy->kind == NAMES_BENEATH)
        return tree_below(resolved, ".", 1, ret);
    for (const char *at = policy->list; at && !*ret && err == 0;) {
        size_t length = strcspn(at, ":");

        err = tree_below(resolved, at, length, ret);
        at = at[length] ? at + length + 1 : NULL;
    }
    return err;
}

static int confined_tree(const struct name_policy *policy, const struct node *node,
                         const char *what, const char *path, json_t **ret, struct error *error)
{
    char *resolved = NULL, shown[160];
    int err = resolve(path, &resolved);

    error_escape(shown, sizeof(shown), path, strlen(path));
    if (err == 0)
        err = tree_allowed(policy, path_of_image(node), resolved, ret);
    free(resolved);
    if (err < 0)
        return error_set_errno(error, -err, "cannot find '%s', which %s names as its %s", shown,
                               node_name(node), what);
    if (*ret)
        return 0;
    return error_set(error, EACCES,
                     "%s names '%s' as its %s, which is not %s; the backing policy "
                     "forbids that (--backing-policy)",
                     node_name(node), shown, what,
                     policy->kind == NAMES_BENEATH ? "in the directory of the image, or below it"
                                                   : "in the list of what may be named");
}

/* Options, a URI or a path. */
static int any_tree(const struct block_context *context, const struct node *node, const char *what,
                    const char *name, size_t length, json_t **ret, struct error *error)
{
    char *text = strndup(name, length), *path;
    int err = 0;

    *ret = NULL;
    if (!text)
        return out_of_memory(error);
    if (strncmp(text, "json:", strlen("json:")) == 0) {
        err = options_parse(text, NULL, ret, error);
        if (err < 0)
            error_prefix(error, "%s names a %s that cannot be read: ", node_name(node), what);
    } else if (driver_of_name(context->drivers, text)) {
        *ret = open_name_tree(context->drivers, text);
    } else {
        bool file = strncmp(text, "file:", strlen("file:")) == 0;
        size_t skip = file ? strlen("file:") : 0;

        err = path_named_by(node, what, name + skip, length - skip, &path, error);
        if (err == 0) {
            *ret = open_file_tree(path);
            free(path);
        }
    }
    free(text);
    if (err == 0 && !*ret)
        err = out_of_memory(error);
    return err;
}

int name_policy_tree(const struct block_context *context, const struct node *node, const char *what,
                     const char *name, size_t length, json_t **ret, struct error *error)
{
    const struct name_policy *policy = &context->names;
    char shown[128], *path;
    int err;

    *ret = NULL;
    if (policy->kind == NAMES_ANY)
        return any_tree(context, node, what, name, length, ret, error);
    if (policy->kind == NAMES_NONE)
        return error_set(error, EACCES,
                         "%s names '%s' as its %s; the backing policy forbids that "
                         "(--backing-policy=none)",
                         node_name(node), error_escape(shown, sizeof(shown), name, length), what);
    err = path_named_by(node, what, name, length, &path, error);
    if (err < 0)
        return err;
    if (policy->kind == NAMES_PLAIN)
        *ret = open_file_tree(path);
    else
        err = confined_tree(policy, node, what, path, ret, error);
    free(path);
    return err == 0 && !*ret ? out_of_memory(error) : err;
}
