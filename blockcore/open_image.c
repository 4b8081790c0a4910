/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening what the user names: by a path, or by options that need not say the format.  Looking for
 * a format is for what the user named; a file that an image names has its format recorded there.
 */
#include "blockcore/open.h"

#include "base/buffer.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/foreign.h"

#include <errno.h>
#include <string.h>

int open_unknown_driver(const struct driver *const *drivers, const char *name, bool only_formats,
                        struct error *error)
{
    char shown[64], known[512] = "";
    size_t used = 0;

    for (; *drivers; drivers++) {
        if ((!only_formats || (*drivers)->kind == DRIVER_FORMAT) && used < sizeof(known))
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s",
                                     used > 0 ? ", " : "", (*drivers)->name);
    }
    return error_set(error, EINVAL, "Unknown driver '%s'; there are: %s",
                     error_escape(shown, sizeof(shown), name, strlen(name)), known);
}

/* Names the format of the probed file, unless it is one that cannot be opened. */
static int judge_probe(const struct block_context *context, const struct probe *probe,
                       const struct node *file, const char **ret, bool *ret_guessed_raw,
                       struct error *error)
{
    const struct driver *driver = driver_probe(context->drivers, probe);
    const char *foreign = driver ? NULL : foreign_format(probe);

    if (foreign)
        return error_set(error, ENOTSUP,
                         "%s looks like a %s image, a format that is not supported; "
                         "--format=raw serves the file as it is",
                         node_name(file), foreign);
    *ret = driver ? driver->name : driver_raw.name;
    *ret_guessed_raw = !driver;
    return 0;
}

/* Reads the start of the file and names its format; "raw" when no known one shows. */
static int probe_node(const struct block_context *context, struct node *node, const char **ret,
                      bool *ret_guessed_raw, struct error *error)
{
    struct probe probe;
    uint8_t *data = buffer_get(PROBE_BYTES);
    int err;

    if (!data)
        return out_of_memory(error);
    probe = (struct probe){data, min_u64(node->size, PROBE_BYTES), node->size};
    err = block_read(node, data, probe.length, 0);
    if (err < 0)
        error_set_errno(error, -err, "cannot read the start of %s", node_name(node));
    else
        err = judge_probe(context, &probe, node, ret, ret_guessed_raw, error);
    buffer_put(data, PROBE_BYTES);
    return err;
}

static int probe_format(const struct block_context *context, json_t *file, unsigned flags,
                        const char **ret, bool *ret_guessed_raw, struct error *error)
{
    struct node *node;
    int err = node_open_tree(context, file, (flags & NODE_NO_CACHE) | NODE_NO_LOCK, &node, error);

    if (err < 0)
        return err;
    err = probe_node(context, node, ret, ret_guessed_raw, error);
    node_unref(node);
    return err;
}

static int check_format(const struct block_context *context, const char *format,
                        struct error *error)
{
    const struct driver *driver = driver_find(context->drivers, format);

    if (driver && driver->kind == DRIVER_FORMAT)
        return 0;
    return open_unknown_driver(context->drivers, format, true, error);
}

int open_name_driver(const struct block_context *context, json_t *tree, unsigned flags,
                     bool *ret_guessed_raw, struct error *error)
{
    json_t *file = json_object_get(tree, "file");
    const char *format;
    bool guessed_raw;
    int err;

    if (!file)
        return error_set(error, EINVAL,
                         "Must specify either driver or file: the options of a node need 'driver', "
                         "or 'file', whose format is then looked for");
    if (!json_is_object(file))
        return error_set(error, EINVAL,
                         "Cannot find a node named by the option 'file': it must be a set of "
                         "options (file.filename=..., or an object)");
    err = probe_format(context, file, flags, &format, &guessed_raw, error);
    if (err == 0 && json_object_set_new(tree, "driver", json_string(format)) < 0)
        err = out_of_memory(error);
    if (err == 0 && ret_guessed_raw)
        *ret_guessed_raw = guessed_raw;
    return err;
}

/* The options of the format node. */
static json_t *format_tree(const char *format, json_t *options)
{
    json_t *tree = options ? json_deep_copy(options) : json_object();

    if (tree && json_object_set_new(tree, "driver", json_string(format)) == 0)
        return tree;
    json_decref(tree);
    return NULL;
}

/*
 * Looks for the format of a disk of another machine, and goes on with the same connection: to end
 * it may be what that server waits for to exit.
 */
static int open_probed(const struct block_context *context, json_t *file, json_t *options,
                       unsigned flags, struct node **ret, bool *ret_guessed_raw,
                       struct error *error)
{
    const char *format;
    struct node *node;
    json_t *tree;
    int err = node_open_tree(context, file, flags, &node, error);

    if (err < 0)
        return err;
    err = probe_node(context, node, &format, ret_guessed_raw, error);
    if (err < 0) {
        node_unref(node);
        return err;
    }
    tree = format_tree(format, options);
    if (tree) {
        err = node_open_above(context, tree, node, ret, error);
    } else {
        node_unref(node);
        err = out_of_memory(error);
    }
    json_decref(tree);
    return err;
}

/* Whether the file below is another machine's. */
static bool is_remote(const struct block_context *context, json_t *file)
{
    const char *name = json_string_value(json_object_get(file, "driver"));
    const char *filename = json_string_value(json_object_get(file, "filename"));
    const struct driver *driver = name       ? driver_find(context->drivers, name)
                                  : filename ? driver_of_name(context->drivers, filename)
                                             : NULL;

    return driver && driver->names;
}

int node_open_options(const struct block_context *context, json_t *options, const char *format,
                      unsigned flags, struct node **ret, bool *ret_guessed_raw, struct error *error)
{
    json_t *tree = json_deep_copy(options), *file;
    int err = 0;

    *ret_guessed_raw = false;
    if (!tree || (format && json_object_set_new(tree, "driver", json_string(format)) < 0))
        err = out_of_memory(error);
    file = json_object_get(tree, "file");
    if (err == 0 && !json_object_get(tree, "driver") && is_remote(context, file)) {
        json_incref(file);
        json_object_del(tree, "file");
        err = open_probed(context, file, tree, flags, ret, ret_guessed_raw, error);
        json_decref(file);
    } else {
        if (err == 0 && !json_object_get(tree, "driver"))
            err = open_name_driver(context, tree, flags, ret_guessed_raw, error);
        if (err == 0)
            err = node_open_tree(context, tree, flags, ret, error);
    }
    json_decref(tree);
    return err;
}

int node_open_image(const struct block_context *context, const char *filename, const char *format,
                    json_t *options, unsigned flags, struct node **ret, bool *ret_guessed_raw,
                    struct error *error)
{
    json_t *file = open_name_tree(context->drivers, filename);
    json_t *tree = options ? json_deep_copy(options) : json_object();
    bool guessed_raw = false;
    int err = 0;

    if (!file || !tree || json_object_set(tree, "file", file) < 0)
        err = out_of_memory(error);
    else if (format)
        err = check_format(context, format, error);
    if (err == 0)
        err = node_open_options(context, tree, format, flags, ret, &guessed_raw, error);
    json_decref(tree);
    json_decref(file);
    if (ret_guessed_raw)
        *ret_guessed_raw = guessed_raw;
    return err;
}
