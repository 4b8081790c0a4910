/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From the words of the command line to an open node.  With --snapshot, a temporary image lies over
 * the disk, which is opened read-only.  With --offset or --partition, a node over that shows a part
 * of it.
 */
#include "daemon/image.h"

#include "base/checked.h"
#include "base/io.h"
#include "base/options.h"
#include "blockcore/drivers.h"
#include "blockcore/overlay.h"
#include "blockcore/snapshot.h"
#include "daemon/image_name.h"
#include "daemon/objects.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_SHOWN 200

static const struct cache_flags {
    unsigned flags;
    bool write_through;
} cache_modes[] = {
    [CACHE_WRITEBACK] = {0, false},          [CACHE_WRITETHROUGH] = {0, true},
    [CACHE_NONE] = {NODE_NO_CACHE, false},   [CACHE_DIRECTSYNC] = {NODE_NO_CACHE, true},
    [CACHE_UNSAFE] = {NODE_NO_FLUSH, false},
};

static int find_tls(void *arg, const char *id, struct block_tls *ret, struct error *error)
{
    static const enum block_tls_kind kinds[] = {
        [TLS_X509] = BLOCK_TLS_X509,
        [TLS_PSK] = BLOCK_TLS_PSK,
        [TLS_ANON] = BLOCK_TLS_ANON,
    };
    const struct tls_credentials_config *config;
    int err = objects_tls_config(arg, id, &config, error);

    if (err < 0)
        return err;
    if (config->endpoint != TLS_CLIENT)
        return error_set(error, EINVAL,
                         "Failed to get TLS creds: Expected TLS credentials for a client endpoint");
    *ret = (struct block_tls){
        .kind = kinds[config->kind],
        .dir = config->dir,
        .username = config->username,
        .verify_peer = config->verify_peer,
        .has_priority = config->priority,
        .has_key_password = config->key_password,
    };
    return 0;
}

struct block_context image_context(const struct arguments *arguments, struct objects *objects)
{
    static const struct io_engine *const engines[] = {
        [AIO_BEST] = NULL,
        [AIO_THREADS] = &io_engine_threads,
        [AIO_NATIVE] = NULL,
        [AIO_IO_URING] = &io_engine_uring,
    };

    struct block_context context = {
        .drivers = block_drivers,
        .engine = engines[arguments->aio],
        .secrets = objects_secrets(objects),
        .find_tls = find_tls,
        .find_tls_arg = objects,
    };
    struct error unused;

    if (arguments->backing_policy) /* arguments_check() has read it */
        name_policy_parse(arguments->backing_policy, &context.names, &unused);
    return context;
}

void image_print_formats(FILE *out)
{
    const char *separator = "";

    for (const struct driver *const *driver = block_drivers; *driver; driver++) {
        if ((*driver)->kind != DRIVER_FORMAT)
            continue;
        fprintf(out, "%s%s", separator, (*driver)->name);
        separator = ",";
    }
}

bool image_write_through(const struct arguments *arguments)
{
    return cache_modes[arguments->cache].write_through && !image_has_overlay(arguments);
}

/* Read-only, there is nothing to keep. */
bool image_has_overlay(const struct arguments *arguments)
{
    return arguments->overlay && !arguments->read_only;
}

static unsigned open_flags(const struct arguments *arguments)
{
    unsigned flags = cache_modes[arguments->cache].flags;

    if (!arguments->read_only && !arguments->overlay)
        flags |= NODE_WRITABLE;
    if (arguments->discard)
        flags |= NODE_UNMAP;
    if (arguments->allow_writers)
        flags |= NODE_SHARE_WRITE;
    return flags;
}

/* The option of the format for --key-secret; *ret is NULL without one. */
static int key_options(const struct arguments *arguments, json_t **ret, struct error *error)
{
    const char *id = arguments->key_secret, *format = arguments->format;
    bool luks = id && !strcmp(format, driver_luks.name);

    *ret = NULL;
    if (!id)
        return 0;
    if (!luks && strcmp(format, driver_qcow2.name) != 0)
        return error_set(error, EINVAL,
                         "--key-secret is for images of the formats luks and qcow2, not %s",
                         format);
    *ret = luks ? json_pack("{s:s}", "key-secret", id)
                : json_pack("{s:{s:s}}", "encrypt", "key-secret", id);
    return *ret ? 0 : error_set(error, EINVAL, "no secret can have the id of --key-secret");
}

/* The image by its name. */
static int open_name(const struct block_context *context, const struct arguments *arguments,
                     struct node **ret, bool *ret_guessed_raw, struct error *error)
{
    json_t *options;
    int err = key_options(arguments, &options, error);

    if (err < 0)
        return err;
    err = node_open_image(context, arguments->image, arguments->format, options,
                          open_flags(arguments), ret, ret_guessed_raw, error);
    json_decref(options);
    return err;
}

/* Lets the disk, which is open read-only, be what it was. */
static int load_snapshot(struct node *disk, const char *text, struct error *error)
{
    struct block_snapshot_choice choice;
    int err = block_snapshot_choice_parse(text, &choice, error);

    if (err == 0)
        err = block_snapshot_load(disk, &choice, error);
    block_snapshot_choice_fini(&choice);
    if (err < 0)
        error_prefix(error, "Failed to load snapshot: ");
    return err;
}

/* Whether the disk is one for which the options make sense. */
static int check_disk(const struct arguments *arguments, const struct node *disk,
                      struct error *error)
{
    if (arguments->offset > disk->size)
        return error_set(error, EINVAL,
                         "Offset (%" PRIu64 ") cannot be greater than size of the containing file "
                         "(%" PRIu64 ")",
                         arguments->offset, disk->size);
    if (arguments->allow_writers && disk->driver != &driver_raw)
        return error_set(
            error, EINVAL,
            "--allow-writers is for raw images only: two programs that write to a %s image "
            "would destroy it",
            disk->driver->name);
    return 0;
}

/* Says which image could not be opened, once: what went wrong may begin with its name. */
static void name_image(const char *image, struct error *error)
{
    static const char cannot[] = "cannot open ";
    const struct error cause = *error;
    const char *told = cause.text;
    char quoted[ERROR_TEXT_MAX];
    size_t length;
    bool opening = !strncmp(told, cannot, strlen(cannot));

    snprintf(quoted, sizeof(quoted), "'%s'", image);
    length = strlen(quoted);
    told += opening ? strlen(cannot) : 0;
    if (strncmp(told, quoted, length) != 0)
        error_prefix(error, "Failed to open %s: ", quoted);
    else if (opening || told[length] == ':')
        error_set(error, EINVAL, "Failed to open %s", told);
    else
        error_set(error, EINVAL, "Failed to open %s: it%s", quoted, told + length);
}

/* Names the option that helps: where scripts stop that had two writers on a raw image, for one. */
static void hint_at_option(const struct arguments *arguments, int err, struct error *error)
{
    const struct error cause = *error;
    bool raw = !arguments->format || !strcmp(arguments->format, driver_raw.name);

    if (err == -EAGAIN && raw && !arguments->read_only && !arguments->allow_writers)
        error_set(error, EAGAIN, "%s; --allow-writers shares a raw image with other writers",
                  cause.text);
    if (err == -ENOKEY && !arguments->key_secret)
        error_set(error, ENOKEY, "%s (for '%s' itself --key-secret=ID does that)", cause.text,
                  arguments->image);
}

/* The image as options. */
static int open_options(const struct block_context *context, const struct arguments *arguments,
                        struct node **ret, bool *ret_guessed_raw, struct error *error)
{
    const char *image = arguments->image;
    json_t *options;
    int err;

    if (!image_name_is_json(image) && image[strcspn(image, "=,")] != '=')
        return error_set(error, EINVAL,
                         "Cannot find a node of this name: '%.*s' is not KEY=VALUE, as in "
                         "driver=raw,file.filename=PATH; the name of an image goes without "
                         "--image-opts",
                         (int)min_u64(strcspn(image, ","), NAME_SHOWN), image);
    err = options_parse(image, "file", &options, error);
    if (err < 0)
        return err;
    err = node_open_options(context, options, arguments->format, open_flags(arguments), ret,
                            ret_guessed_raw, error);
    json_decref(options);
    return err;
}

static int open_disk(const struct block_context *context, const struct arguments *arguments,
                     struct node **ret, bool *ret_guessed_raw, struct error *error)
{
    if (arguments->image_opts || image_name_is_json(arguments->image))
        return open_options(context, arguments, ret, ret_guessed_raw, error);
    return open_name(context, arguments, ret, ret_guessed_raw, error);
}

/* Where temporary files go that may become large: not /tmp, which often is in memory. */
static const char *temporary_directory(void)
{
    const char *directory = getenv("TMPDIR");

    return directory && *directory && strcmp(directory, "/tmp") != 0 ? directory : "/var/tmp";
}

/* Puts the temporary image over *disk; on failure *disk is gone. */
static int add_overlay(const struct block_context *context, const struct arguments *arguments,
                       struct node **disk, struct error *error)
{
    struct overlay_place place = {temporary_directory(), OFFSET_MAX};
    unsigned flags = open_flags(arguments) | (*disk)->flags;

    if (arguments->overlay_memory > 0)
        place = (struct overlay_place){NULL, arguments->overlay_memory};
    return node_open_overlay(context, *disk, &place, flags, disk, error);
}

int image_open_disk(const struct block_context *context, const struct arguments *arguments,
                    struct node **ret, bool *ret_guessed_raw, struct error *error)
{
    struct node *disk;
    bool guessed_raw = false;
    int err = open_disk(context, arguments, &disk, &guessed_raw, error);

    if (err < 0) {
        name_image(arguments->image, error);
        hint_at_option(arguments, err, error);
        return err;
    }
    if (arguments->snapshot)
        err = load_snapshot(disk, arguments->snapshot, error);
    if (err == 0)
        err = check_disk(arguments, disk, error);
    if (err < 0) {
        node_unref(disk);
        return err;
    }
    if (ret_guessed_raw)
        *ret_guessed_raw = guessed_raw;
    *ret = disk;
    return 0;
}

/* Puts a node over *disk that shows the partition; on failure *disk is gone. */
static int choose_partition(const struct block_context *context, const char *partition,
                            struct node **disk, struct error *error)
{
    json_t *tree = json_pack("{s:s, s:o}", "driver", driver_partition.name, "partition",
                             json_string_nocheck(partition));
    int err = node_open_above(context, tree, *disk, disk, error);

    json_decref(tree);
    return err;
}

/* Where a node that shows a part of the disk begins in it. */
static uint64_t begin_of(struct node *part)
{
    struct extent extent;

    return part->driver->map(part, 0, 1, &extent) == 0 ? extent.child_offset : 0;
}

int image_open(const struct block_context *context, const struct arguments *arguments,
               struct node **ret, struct image_place *ret_place, struct error *error)
{
    const struct node_window window = {.offset = arguments->offset, .size = NODE_WINDOW_REST};
    struct node *disk;
    int err = image_open_disk(context, arguments, &disk, &ret_place->guessed_raw, error);

    if (err < 0)
        return err;
    if (image_has_overlay(arguments))
        err = add_overlay(context, arguments, &disk, error);
    ret_place->disk = disk;
    if (err == 0 && arguments->offset > 0)
        err = node_open_window(context, disk, &window, &disk, error);
    if (err < 0) {
        name_image(arguments->image, error);
        return err;
    }
    if (arguments->partition)
        err = choose_partition(context, arguments->partition, &disk, error);
    if (err < 0)
        return err;
    ret_place->offset = disk == ret_place->disk ? 0 : begin_of(disk);
    *ret = disk;
    return 0;
}
