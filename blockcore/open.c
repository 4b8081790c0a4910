/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening: trees of options become nodes.
 *
 * A driver opens its file and other children through node_open_file and node_open_child, at once; a
 * backing node it only asks for.  The core then opens the backing chain link by link, in a loop
 * (node_open_tree), so that a long chain costs no stack. Here, and only here, is decided which
 * files an image may name, how deep a chain may be, that it never comes back to a file it has
 * already, and which permissions a file is opened with.
 */
#include "blockcore/open.h"
#include "base/sys.h"
#include "base/trace.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/path.h"
#include "blockcore/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const struct option_row no_options[] = {{0}};

/* Takes the string at `key` out of the tree. *ret is NULL when there is none; freed by the caller.
 */
static int take_string(json_t *tree, const char *key, char **ret, struct error *error)
{
    json_t *value = json_object_get(tree, key);

    *ret = NULL;
    if (!value)
        return 0;
    if (!json_is_string(value))
        return error_set(error, EINVAL, "the option '%s' of a node must be a string", key);
    *ret = strdup(json_string_value(value));
    json_object_del(tree, key);
    return *ret ? 0 : out_of_memory(error);
}

/* The protocol for a path: by what is there. A path that cannot be examined is the file driver's to
 * report. */
static const char *protocol_for(const char *filename)
{
    struct stat st;
    int fd = sys->openat(AT_FDCWD, filename, O_PATH | O_CLOEXEC, 0);
    const char *name = driver_file.name;

    if (fd < 0)
        return name;
    if (sys->fstat(fd, &st) == 0 && S_ISBLK(st.st_mode))
        name = driver_host_device.name;
    sys->close(fd);
    return name;
}

static json_t *tree_for(const char *driver, const char *filename)
{
    json_t *tree = json_pack("{s:s}", "driver", driver);

    if (tree && json_object_set_new(tree, "filename", json_string_nocheck(filename)) == 0)
        return tree;
    json_decref(tree);
    return NULL;
}

json_t *open_file_tree(const char *filename)
{
    return tree_for(protocol_for(filename), filename);
}

static const char *driver_name_for(const struct driver *const *drivers, const char *name)
{
    const struct driver *driver = driver_of_name(drivers, name);

    return driver ? driver->name : protocol_for(name);
}

json_t *open_name_tree(const struct driver *const *drivers, const char *name)
{
    return tree_for(driver_name_for(drivers, name), name);
}

static int find_driver(const struct node_open *open, const struct driver **ret, struct error *error)
{
    const char *filename = json_string_value(json_object_get(open->options, "filename"));
    char *name;
    int err = take_string(open->options, "driver", &name, error);

    if (err < 0)
        return err;
    if (!name && !filename)
        return error_set(error, EINVAL, "the options of a node name no 'driver'");
    *ret = driver_find(open->context->drivers,
                       name ? name : driver_name_for(open->context->drivers, filename));
    if (!*ret)
        err = open_unknown_driver(open->context->drivers, name ? name : driver_file.name, false,
                                  error);
    free(name);
    return err;
}

static bool is_same(const struct node *node, struct node_identity identity)
{
    return node && node->identity.device == identity.device &&
           node->identity.inode == identity.inode;
}

/* The child of the node that is that file, or NULL. */
static const struct node *find_child(const struct node *node, struct node_identity identity)
{
    if (is_same(node->file, identity))
        return node->file;
    for (size_t i = 0; i < node->children_count; i++) {
        if (is_same(node->children[i], identity))
            return node->children[i];
    }
    return NULL;
}

int node_set_identity(struct node *node, dev_t device, ino_t inode, struct error *error)
{
    node->identity = (struct node_identity){device, inode};
    for (const struct node *up = node->parent; up; up = up->parent) {
        const struct node *found = find_child(up, node->identity);

        if (found)
            return error_set(error, ELOOP,
                             "the backing chain comes back to %s, which it has already",
                             node_name(found));
    }
    return 0;
}

static int set_label(struct node *node, const char *name, struct error *error)
{
    char shown[256];

    free(node->label);
    error_escape(shown, sizeof(shown), name, strlen(name));
    if (asprintf(&node->label, "'%s'", shown) < 0)
        node->label = NULL;
    return node->label ? 0 : out_of_memory(error);
}

static struct node *node_alloc(const struct driver *driver, const struct node_open *open)
{
    struct node *node = calloc(1, sizeof(*node));

    if (!node)
        return NULL;
    node->driver = driver;
    node->references = 1;
    node->flags = open->flags;
    node->depth = open->depth;
    node->parent = open->parent;
    range_locks_init(&node->locks);
    co_queue_init(&node->flush_queue);
    node->state = calloc(1, driver->state_size ? driver->state_size : 1);
    if (node->state)
        return node;
    free(node);
    return NULL;
}

/* Shows the snapshot that the option names ("ID_OR_NAME", "snapshot.id=.."). */
static int load_snapshot(struct node *node, const char *text, struct error *error)
{
    struct block_snapshot_choice choice;
    int err = block_snapshot_choice_parse(text, &choice, error);

    if (err == 0)
        err = block_snapshot_load(node, &choice, error);
    block_snapshot_choice_fini(&choice);
    if (err < 0)
        error_prefix(error, "Failed to load snapshot: ");
    return err;
}

/* Opens one node without its backing. open->options is the core's own copy. */
static int open_one(struct node_open *open, struct node **ret, struct error *error)
{
    const struct driver *driver = NULL;
    enum node_detect_zeroes detect_zeroes = NODE_DETECT_ZEROES_OFF;
    char *snapshot = NULL;
    struct node *node;
    int err = find_driver(open, &driver, error);

    if (err == 0)
        err = open_common_options(open, &detect_zeroes, error);
    if (err == 0 && driver->snapshots)
        err = take_string(open->options, "snapshot", &snapshot, error);
    if (err < 0)
        return err;
    node = node_alloc(driver, open);
    if (!node) {
        free(snapshot);
        return out_of_memory(error);
    }
    node->detect_zeroes = detect_zeroes;
    err = driver->open(node, open, error);
    if (err == 0)
        err = options_finish(open->options, driver->options ? driver->options : no_options,
                             driver->name, error);
    if (err == 0 && node->filename)
        err = set_label(node, node->filename, error);
    if (err == 0 && snapshot)
        err = load_snapshot(node, snapshot, error);
    free(snapshot);
    if (err < 0) {
        node_unref(node);
        return err;
    }
    if (node->lock_size == 0)
        node->lock_size = node->cluster_size;
    TRACE(block_open, "%s (%s), %" PRIu64 " bytes, flags %#x", node_name(node), driver->name,
          node->size, node->flags);
    *ret = node;
    return 0;
}

/* Opens the backing chain of `node`, link by link. Takes open->backing. */
static int open_chain(struct node *node, struct node_open *open, struct error *error)
{
    while (open->backing) {
        json_t *tree = open->backing;
        struct node_open next = {
            .context = open->context,
            .options = tree,
            .flags = node->flags & (NODE_NO_CACHE | NODE_NO_LOCK | NODE_NO_DATA | NODE_FORCE_SHARE),
            .depth = node->depth + 1,
            .parent = node,
            .perm = PERM_CONSISTENT_READ,
            .shared = PERM_ALL & ~(unsigned)(PERM_WRITE | PERM_RESIZE),
        };
        int err = 0;

        open->backing = NULL;
        if (next.depth > NODE_DEPTH_MAX)
            err = error_set(error, ELOOP, "the backing chain is longer than %d files",
                            NODE_DEPTH_MAX);
        else if (!json_object_get(tree, "driver"))
            err = open_name_driver(open->context, tree, next.flags, NULL, error);
        if (err == 0)
            err = open_one(&next, &node->backing, error);
        json_decref(tree);
        if (err < 0) {
            json_decref(next.backing);
            error_prefix(error, "cannot open the backing file of %s: ", node_name(node));
            return err;
        }
        open->backing = next.backing;
        node = node->backing;
    }
    return 0;
}

/* The node is complete: it may change its image. */
static int finish(struct node *node, struct error *error)
{
    int err = node->driver->opened ? node->driver->opened(node, error) : 0;

    node->opened = err == 0;
    return err;
}

/*
 * open->options stays the caller's; a copy is taken apart.  The reference of a given file is taken,
 * also on failure.
 */
static int open_tree(const struct node_open *request, struct node **ret, struct error *error)
{
    struct node_open open = *request;
    struct node *node;
    int err;

    open.options = json_deep_copy(request->options);
    err = open.options ? open_one(&open, &node, error) : out_of_memory(error);
    json_decref(open.options);
    node_unref(open.given_file); /* not taken when the driver failed before */
    if (err < 0) {
        json_decref(open.backing);
        return err;
    }
    err = open_chain(node, &open, error);
    if (err == 0)
        err = finish(node, error);
    if (err < 0) {
        node_unref(node);
        return err;
    }
    *ret = node;
    return 0;
}

int node_open_tree(const struct block_context *context, json_t *tree, unsigned flags,
                   struct node **ret, struct error *error)
{
    const struct node_open open = {
        .context = context,
        .options = tree,
        .flags = flags,
        .perm = PERM_CONSISTENT_READ | (flags & NODE_WRITABLE ? PERM_WRITE : 0),
        .shared = PERM_ALL & ~(unsigned)PERM_RESIZE,
    };

    return open_tree(&open, ret, error);
}

int node_open_above(const struct block_context *context, json_t *tree, struct node *file,
                    struct node **ret, struct error *error)
{
    enum node_detect_zeroes detect_zeroes = file->detect_zeroes;
    const struct node_open open = {
        .context = context,
        .options = tree,
        .flags = file->flags,
        .given_file = file,
    };
    int err = open_tree(&open, ret, error);

    if (err == 0)
        (*ret)->detect_zeroes = detect_zeroes;
    return err;
}

static json_t *window_tree(const struct node_window *window)
{
    json_t *tree =
        json_pack("{s:s, s:I}", "driver", driver_raw.name, "offset", (json_int_t)window->offset);

    if (tree && window->size != NODE_WINDOW_REST &&
        json_object_set_new(tree, "size", json_integer((json_int_t)window->size)) < 0) {
        json_decref(tree);
        tree = NULL;
    }
    return tree;
}

int node_open_window(const struct block_context *context, struct node *file,
                     const struct node_window *window, struct node **ret, struct error *error)
{
    json_t *tree = window_tree(window);
    int err = node_open_above(context, tree, file, ret, error);

    json_decref(tree);
    return err;
}

int node_open_descriptor(const struct block_context *context,
                         const struct node_descriptor *descriptor, unsigned flags,
                         struct node **ret, struct error *error)
{
    struct node_open open = {
        .context = context,
        .options = json_pack("{s:s}", "driver", driver_file.name),
        .flags = flags | NODE_NO_LOCK,
        .given_descriptor = descriptor,
    };
    int err;

    err = open.options ? open_one(&open, ret, error) : out_of_memory(error);
    if (err == 0)
        err = finish(*ret, error);
    json_decref(open.options);
    if (open.given_descriptor)
        sys->close(descriptor->fd);
    return err;
}

static int given_file(struct node *node, struct node_open *open, struct error *error)
{
    node->file = open->given_file;
    node->file->parent = node;
    open->given_file = NULL;
    free(node->label);
    node->label = strdup(node_name(node->file));
    return node->label ? 0 : out_of_memory(error);
}

/* The tree of the child: "file", or a file of the name "filename". A new reference. */
static int take_file_tree(struct node_open *open, json_t **ret, struct error *error)
{
    json_t *tree = json_object_get(open->options, "file");
    char *filename;
    int err;

    if (json_is_object(tree)) {
        *ret = json_incref(tree);
        json_object_del(open->options, "file");
        return 0;
    }
    if (tree)
        return error_set(error, EINVAL,
                         "the option 'file' of a node must be a set of options "
                         "(file.filename=..., or an object)");
    err = take_string(open->options, "filename", &filename, error);
    if (err < 0)
        return err;
    if (!filename)
        return error_set(error, EINVAL, "a node of a format needs 'file', the node it is kept in");
    *ret = open_name_tree(open->context->drivers, filename);
    free(filename);
    return *ret ? 0 : out_of_memory(error);
}

int node_open_file(struct node *node, struct node_open *open, unsigned perm, unsigned shared,
                   struct error *error)
{
    struct node_open child = {
        .context = open->context,
        /* Metadata of the node above is in it. */
        .flags = open->flags & ~(unsigned)(NODE_NO_DATA | NODE_CHECK),
        .depth = open->depth,
        .file_depth = open->file_depth + 1,
        .parent = node,
        .perm = perm,
        .shared = open->flags & NODE_FORCE_SHARE ? (unsigned)PERM_ALL : shared,
    };
    int err;

    if (open->given_file)
        return given_file(node, open, error);
    if (child.file_depth > NODE_FILE_DEPTH_MAX)
        return error_set(error, ELOOP, "more than %d nodes are nested by 'file'",
                         NODE_FILE_DEPTH_MAX);
    err = take_file_tree(open, &child.options, error);
    if (err < 0)
        return err;
    err = open_tree(&child, &node->file, error);
    json_decref(child.options);
    if (err < 0)
        return err;
    node->label = strdup(node_name(node->file));
    return node->label ? 0 : out_of_memory(error);
}

/* The tree of a further child, a new reference. */
static int take_child_tree(struct node *node, struct node_open *open, const char *key,
                           const char *what, const char *name, size_t length, json_t **ret,
                           struct error *error)
{
    json_t *given = json_object_get(open->options, key);
    char *path;
    int err;

    if (json_is_object(given)) {
        *ret = json_incref(given);
        json_object_del(open->options, key);
        return 0;
    }
    if (!given && !name)
        return error_set(error, EINVAL, "%s does not name its %s: the option '%s.filename' must",
                         node_name(node), what, key);
    if (!given)
        return name_policy_tree(open->context, node, what, name, length, ret, error);
    err = take_string(open->options, key, &path, error);
    if (err < 0)
        return err;
    *ret = open_name_tree(open->context->drivers, path);
    free(path);
    return *ret ? 0 : out_of_memory(error);
}

static int add_child(struct node *node, struct node *child, struct error *error)
{
    struct node **grown = reallocarray(node->children, node->children_count + 1, sizeof(*grown));

    if (!grown) {
        node_unref(child);
        return out_of_memory(error);
    }
    node->children = grown;
    node->children[node->children_count++] = child;
    return 0;
}

int node_open_child(struct node *node, struct node_open *open, const char *key, const char *what,
                    const char *name, size_t length, unsigned perm, unsigned shared,
                    struct node **ret, struct error *error)
{
    struct node_open child = {
        .context = open->context,
        .flags = node->flags & ~(unsigned)(NODE_CHECK | NODE_REPAIR),
        .depth = open->depth,
        .file_depth = open->file_depth + 1,
        .parent = node,
        .perm = perm,
        .shared = shared,
    };
    int err;

    if (child.file_depth > NODE_FILE_DEPTH_MAX)
        return error_set(error, ELOOP, "more than %d nodes are nested by '%s'", NODE_FILE_DEPTH_MAX,
                         key);
    err = take_child_tree(node, open, key, what, name, length, &child.options, error);
    if (err < 0)
        return err;
    err = open_tree(&child, ret, error);
    json_decref(child.options);
    if (err < 0) {
        error_prefix(error, "cannot open the %s of %s: ", what, node_name(node));
        return err;
    }
    return add_child(node, *ret, error);
}

static int backing_format(const struct node *node, const struct node_open *open, const char *format,
                          const char **ret, struct error *error)
{
    const struct driver *driver;
    char shown[64];

    if (!format)
        return error_set(error, EINVAL,
                         "%s has a backing file but does not record its format, and guessing is "
                         "not safe; `qemu-img rebase -u -b FILE -F FORMAT IMAGE` records it",
                         node_name(node));
    /* Names of protocols stand for raw in old images. */
    if (strcmp(format, driver_file.name) == 0 || strcmp(format, driver_host_device.name) == 0)
        format = driver_raw.name;
    driver = driver_find(open->context->drivers, format);
    if (!driver || driver->kind != DRIVER_FORMAT)
        return error_set(error, ENOTSUP, "%s has a backing file of format '%s', which is unknown",
                         node_name(node),
                         error_escape(shown, sizeof(shown), format, strlen(format)));
    *ret = driver->name;
    return 0;
}

/* Whether the options are those of an image, with its format, and not just of a file. */
static bool is_image_tree(const struct block_context *context, const json_t *tree)
{
    const char *name = json_string_value(json_object_get(tree, "driver"));
    const struct driver *driver = name ? driver_find(context->drivers, name) : NULL;

    return json_object_get(tree, "file") || (driver && driver->kind != DRIVER_PROTOCOL);
}

int node_open_backing(struct node *node, struct node_open *open, const char *name, size_t length,
                      const char *format, struct error *error)
{
    json_t *given = json_object_get(open->options, "backing"), *file;
    /* Only by this policy, a name can be options, which say the format themselves. */
    bool may_be_options = open->context->names.kind == NAMES_ANY;
    int err = 0;

    if (given) {
        /* The key=value form has no null: an empty name stands for it. */
        const char *text = json_string_value(given);

        if (!json_is_object(given) && !json_is_null(given) && !(text && !*text))
            return error_set(error, EINVAL,
                             "the option 'backing' of a node must be a set of options, or null");
        open->backing = json_is_object(given) ? json_incref(given) : NULL;
        json_object_del(open->options, "backing");
        return 0;
    }
    if (!name)
        return 0;
    if (!may_be_options)
        err = backing_format(node, open, format, &format, error);
    if (err == 0)
        err = name_policy_tree(open->context, node, "backing file", name, length, &file, error);
    if (err < 0)
        return err;
    if (is_image_tree(open->context, file)) {
        open->backing = file;
        return 0;
    }
    if (may_be_options)
        err = backing_format(node, open, format, &format, error);
    if (err < 0) {
        json_decref(file);
        return err;
    }
    open->backing = json_pack("{s:s, s:o}", "driver", format, "file", file);
    return open->backing ? 0 : out_of_memory(error);
}
