/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The offline verbs of the block core on the command line, for tests, until the image tool has
 * them.
 *
 *     qcow2_tool create FILE OPTIONS         "size=10M,cluster_size=4k"
 *     qcow2_tool measure OPTIONS
 *     qcow2_tool check FILE                  findings on stderr, numbers as JSON on stdout
 *     qcow2_tool repair FILE leaks|all
 *     qcow2_tool map FILE                    one line of JSON an extent
 *     qcow2_tool write FILE OFFSET LENGTH BYTE
 *     qcow2_tool snapshot-list FILE          one line of JSON a snapshot
 *     qcow2_tool snapshot-create FILE NAME
 *     qcow2_tool snapshot-apply FILE CHOICE  "ID_OR_NAME", "snapshot.id=..,snapshot.name=.."
 *     qcow2_tool snapshot-delete FILE CHOICE
 *     qcow2_tool load FILE OFFSET SOURCE     writes what the file SOURCE holds
 *     qcow2_tool dump FILE TARGET            writes the disk into the file TARGET
 *     qcow2_tool keys FILE OPTIONS           changes key slots: "state=active,new-secret=ID"
 *     qcow2_tool keys-force FILE OPTIONS
 *     qcow2_tool zero FILE OFFSET LENGTH
 *     qcow2_tool discard FILE OFFSET LENGTH
 *     qcow2_tool bitmap-list FILE            one line of JSON a bitmap, with its dirty extents
 *     qcow2_tool bitmap-add FILE NAME GRANULARITY enabled|disabled
 *     qcow2_tool bitmap-remove|bitmap-clear|bitmap-enable|bitmap-disable FILE NAME
 *     qcow2_tool bitmap-merge FILE SOURCE TARGET
 *     qcow2_tool write-compressed FILE SOURCE   all of a raw file
 *     qcow2_tool amend FILE OPTIONS          "compat=0.10,lazy_refcounts=on"
 *     qcow2_tool backing FILE NAME FORMAT    another backing file; "" none
 *     qcow2_tool resize FILE FORMAT SIZE off|metadata|falloc|full|shrink
 *
 * Before the command: --format NAME (qcow2 when not given), --secret ID=VALUE or --secret-file
 * ID=PATH, and --open OPTIONS for the images that are opened (with "driver", they tell all; FILE
 * does not matter then).
 *
 * Exit status: 0; 1 on errors; check and repair: 2 when corruptions are left, 3 when only leaks
 * are.
 */
#include "tests/tools/qcow2_tool.h"
#include "base/checked.h"
#include "base/options.h"
#include "base/reactor.h"
#include "base/secret.h"
#include "base/size.h"
#include "blockcore/amend.h"
#include "blockcore/block.h"
#include "blockcore/check.h"
#include "blockcore/create.h"
#include "blockcore/drivers.h"
#include "blockcore/luks.h"
#include "blockcore/resize.h"
#include "blockcore/snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct secret_store secrets;
static const struct block_context context = {.drivers = block_drivers, .secrets = &secrets};
static const char *format = "qcow2";
static const char *open_options = "";

struct command {
    const char *name;
    int arguments;
    int (*run)(char **arguments, struct error *error);
};

struct run {
    const struct command *command;
    char **arguments;
};

int open_image(const char *filename, unsigned flags, bool with_backing, struct node **ret,
               struct error *error)
{
    json_t *options;
    int err = options_parse(open_options, NULL, &options, error);

    if (err < 0)
        return err;
    if (!with_backing)
        json_object_set_new(options, "backing", json_null());
    if (json_object_get(options, "driver"))
        err = node_open_tree(&context, options, flags, ret, error);
    else
        err = node_open_image(&context, filename, format, options, flags, ret, NULL, error);
    json_decref(options);
    return err;
}

static int run_create(char **arguments, struct error *error)
{
    json_t *options;
    int err = options_parse(arguments[1], NULL, &options, error);

    if (err < 0)
        return err;
    err = block_create(&context, format, arguments[0], options, error);
    json_decref(options);
    return err;
}

static int run_measure(char **arguments, struct error *error)
{
    struct block_measure measure;
    json_t *options;
    int err = options_parse(arguments[0], NULL, &options, error);

    if (err < 0)
        return err;
    err = block_measure(&context, format, options, &measure, error);
    if (err == 0)
        printf("{\"required\": %" PRIu64 ", \"fully-allocated\": %" PRIu64 "}\n", measure.required,
               measure.fully_allocated);
    json_decref(options);
    return err;
}

/* What `load` and `dump` move at a time: no multiple of a sector, so that the edges are seen to. */
static uint8_t piece[777777];

/* The first so many findings: a hostile image has millions. */
#define FINDINGS_MAX 200

static void report(void *arg, const char *text)
{
    unsigned *count = arg;

    if ((*count)++ < FINDINGS_MAX)
        fprintf(stderr, "%s\n", text);
}

static void print_result(const struct block_check_result *r)
{
    const struct {
        const char *name;
        uint64_t value;
    } rows[] = {
        {"corruptions", r->corruptions},
        {"corruptions-fixed", r->corruptions_fixed},
        {"leaks", r->leaks},
        {"leaks-fixed", r->leaks_fixed},
        {"check-errors", r->check_errors},
        {"total-clusters", r->total_clusters},
        {"allocated-clusters", r->allocated_clusters},
        {"fragmented-clusters", r->fragmented_clusters},
        {"compressed-clusters", r->compressed_clusters},
        {"image-end-offset", r->image_end_offset},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        printf("%s\"%s\": %" PRIu64, i ? ", " : "{", rows[i].name, rows[i].value);
    printf("}\n");
}

static int check(const char *filename, unsigned fix, struct error *error)
{
    unsigned findings = 0;
    struct block_check check = {.fix = fix, .report = report, .report_arg = &findings};
    struct node *node;
    int err =
        open_image(filename, NODE_NO_DATA | (fix ? NODE_REPAIR : NODE_CHECK), false, &node, error);

    if (err < 0)
        return err;
    err = block_check(node, &check, error);
    node_unref(node);
    if (err < 0)
        return err;
    print_result(&check.result);
    if (check.result.check_errors > 0)
        return error_set(error, EIO, "some of the image could not be examined");
    return check.result.corruptions > 0 ? 2 : check.result.leaks > 0 ? 3 : 0;
}

static int run_check(char **arguments, struct error *error)
{
    return check(arguments[0], 0, error);
}

static int run_repair(char **arguments, struct error *error)
{
    bool all = strcmp(arguments[1], "all") == 0;

    return check(arguments[0], CHECK_FIX_LEAKS | (all ? CHECK_FIX_ERRORS : 0), error);
}

static int run_map(char **arguments, struct error *error)
{
    struct node *node;
    uint64_t offset = 0;
    int err = open_image(arguments[0], NODE_NO_DATA, true, &node, error);

    if (err < 0)
        return err;
    while (offset < node->size && err == 0) {
        struct block_status status;

        err = block_get_status(node, offset, node->size - offset, &status);
        if (err < 0) {
            error_set_errno(error, -err, "cannot map offset %" PRIu64, offset);
            break;
        }
        printf("{\"start\": %" PRIu64 ", \"length\": %" PRIu64
               ", \"depth\": %u, \"data\": %s, \"zero\": %s}\n",
               offset, status.length, status.depth, status.flags & STATUS_DATA ? "true" : "false",
               status.flags & STATUS_ZERO ? "true" : "false");
        offset += status.length;
    }
    node_unref(node);
    return err;
}

static int run_write(char **arguments, struct error *error)
{
    uint64_t offset = strtoull(arguments[1], NULL, 0), length = strtoull(arguments[2], NULL, 0);
    uint8_t *data = malloc(length + 1);
    struct node *node;
    int err = data ? open_image(arguments[0], NODE_WRITABLE, true, &node, error) : -ENOMEM;

    if (err == 0) {
        memset(data, (int)strtoul(arguments[3], NULL, 0), length);
        err = block_write(node, data, length, offset, BLOCK_FUA);
        if (err < 0)
            error_set_errno(error, -err, "cannot write");
        node_unref(node);
    }
    free(data);
    return err;
}

static int run_snapshot_list(char **arguments, struct error *error)
{
    struct block_snapshots list;
    struct node *node;
    int err = open_image(arguments[0], NODE_NO_DATA, false, &node, error);

    if (err < 0)
        return err;
    err = block_snapshots_list(node, &list, error);
    for (size_t i = 0; err == 0 && i < list.count; i++) {
        const struct block_snapshot *s = &list.items[i];
        json_t *line = json_pack(
            "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "id", s->id, "name", s->name,
            "vm-state-size", (json_int_t)s->vm_state_size, "date-sec", (json_int_t)s->date_seconds,
            "date-nsec", (json_int_t)s->date_nanoseconds, "vm-clock-nsec", (json_int_t)s->vm_clock,
            "icount", (json_int_t)s->icount, "disk-size", (json_int_t)s->disk_size);

        if (!line)
            err = error_set(error, EINVAL, "the name of snapshot %zu is not UTF-8", i);
        else if (json_dumpf(line, stdout, JSON_COMPACT) == 0)
            printf("\n");
        json_decref(line);
    }
    block_snapshots_fini(&list);
    node_unref(node);
    return err;
}

static int run_snapshot_create(char **arguments, struct error *error)
{
    struct node *node;
    int err = open_image(arguments[0], NODE_WRITABLE | NODE_NO_DATA, false, &node, error);

    if (err < 0)
        return err;
    err = block_snapshot_create(node, arguments[1], error);
    node_unref(node);
    return err;
}

static int change_snapshot(char **arguments,
                           int (*verb)(struct node *node,
                                       const struct block_snapshot_choice *choice,
                                       struct error *error),
                           struct error *error)
{
    struct block_snapshot_choice choice;
    struct node *node;
    int err = block_snapshot_choice_parse(arguments[1], &choice, error);

    if (err == 0)
        err = open_image(arguments[0], NODE_WRITABLE | NODE_NO_DATA, false, &node, error);
    if (err == 0) {
        err = verb(node, &choice, error);
        node_unref(node);
    }
    block_snapshot_choice_fini(&choice);
    return err;
}

static int run_snapshot_apply(char **arguments, struct error *error)
{
    return change_snapshot(arguments, block_snapshot_apply, error);
}

static int run_snapshot_delete(char **arguments, struct error *error)
{
    return change_snapshot(arguments, block_snapshot_delete, error);
}

static int run_load(char **arguments, struct error *error)
{
    uint64_t offset = strtoull(arguments[1], NULL, 0);
    FILE *in = fopen(arguments[2], "rb");
    struct node *node;
    int err = in ? open_image(arguments[0], NODE_WRITABLE, true, &node, error) : -errno;

    if (err == 0) {
        while (err == 0 && !feof(in)) {
            size_t n = fread(piece, 1, sizeof(piece), in);

            err = block_write(node, piece, n, offset, 0);
            offset += n;
        }
        if (err < 0)
            error_set_errno(error, -err, "cannot write");
        node_unref(node);
    }
    if (in)
        fclose(in);
    return err;
}

static int run_dump(char **arguments, struct error *error)
{
    FILE *out = fopen(arguments[1], "wb");
    struct node *node;
    int err = out ? open_image(arguments[0], 0, true, &node, error) : -errno;

    if (err == 0) {
        for (uint64_t at = 0; at < node->size && err == 0; at += sizeof(piece)) {
            size_t n = min_u64(sizeof(piece), node->size - at);

            err = block_read(node, piece, n, at);
            if (err == 0 && fwrite(piece, 1, n, out) != n)
                err = -EIO;
        }
        if (err < 0)
            error_set_errno(error, -err, "cannot read");
        node_unref(node);
    }
    if (out)
        fclose(out);
    return err;
}

static int change_keys(char **arguments, bool force, struct error *error)
{
    struct node *node;
    json_t *options;
    int err = options_parse(arguments[1], NULL, &options, error);

    if (err < 0)
        return err;
    err = open_image(arguments[0], NODE_WRITABLE | NODE_NO_DATA, true, &node, error);
    if (err == 0) {
        err = luks_amend(node, &secrets, options, force, error);
        node_unref(node);
    }
    json_decref(options);
    return err;
}

static int run_keys(char **arguments, struct error *error)
{
    return change_keys(arguments, false, error);
}

static int run_keys_force(char **arguments, struct error *error)
{
    return change_keys(arguments, true, error);
}

static int erase(char **arguments, bool discard, struct error *error)
{
    uint64_t offset = strtoull(arguments[1], NULL, 0), length = strtoull(arguments[2], NULL, 0);
    struct node *node;
    int err = open_image(arguments[0], NODE_WRITABLE | NODE_UNMAP, true, &node, error);

    if (err < 0)
        return err;
    err = discard ? block_discard(node, offset, length, 0)
                  : block_zero(node, offset, length, ZERO_MAY_UNMAP);
    if (err < 0)
        error_set_errno(error, -err, "cannot %s", discard ? "discard" : "zero");
    node_unref(node);
    return err;
}

/* Whole clusters of any size at a time. */
static int copy_compressed(struct node *node, FILE *source, struct error *error)
{
    const size_t room = 2 * 1024 * 1024;
    uint8_t *data = malloc(room);
    uint64_t offset = 0;
    int err = data ? 0 : -ENOMEM;

    while (err == 0) {
        size_t n = fread(data, 1, room, source);

        if (n == 0)
            break;
        err = block_write_compressed(node, data, n, offset);
        if (err < 0)
            error_set_errno(error, -err, "cannot write at offset %" PRIu64, offset);
        offset += n;
    }
    free(data);
    return err;
}

static int run_write_compressed(char **arguments, struct error *error)
{
    FILE *source = fopen(arguments[1], "rb");
    struct node *node;
    int err = source ? open_image(arguments[0], NODE_WRITABLE, true, &node, error) : -errno;

    if (err == 0) {
        err = copy_compressed(node, source, error);
        node_unref(node);
    }
    if (source)
        fclose(source);
    return err;
}

static int run_resize(char **arguments, struct error *error)
{
    struct block_resize resize = {.shrink = strcmp(arguments[3], "shrink") == 0};
    struct node *node;
    int err = size_parse(arguments[2], &resize.size);

    for (int i = 0; preallocation_words[i]; i++) {
        if (strcmp(arguments[3], preallocation_words[i]) == 0)
            resize.preallocation = (enum preallocation)i;
    }
    format = arguments[1];
    if (err == 0)
        err = open_image(arguments[0], NODE_WRITABLE, true, &node, error);
    if (err < 0)
        return err;
    err = block_resize(node, &resize, error);
    node_unref(node);
    return err;
}

static int run_zero(char **arguments, struct error *error)
{
    return erase(arguments, false, error);
}

static int run_discard(char **arguments, struct error *error)
{
    return erase(arguments, true, error);
}

static int run_amend(char **arguments, struct error *error)
{
    struct node *node;
    json_t *options;
    int err = options_parse(arguments[1], NULL, &options, error);

    if (err < 0)
        return err;
    err = open_image(arguments[0], NODE_WRITABLE, true, &node, error);
    if (err == 0) {
        err = block_amend(node, options, NULL, error);
        node_unref(node);
    }
    json_decref(options);
    return err;
}

static int run_backing(char **arguments, struct error *error)
{
    const char *name = arguments[1][0] ? arguments[1] : NULL;
    struct node *node;
    int err = open_image(arguments[0], NODE_WRITABLE, false, &node, error);

    if (err < 0)
        return err;
    err = block_change_backing(node, name, name ? arguments[2] : NULL, error);
    node_unref(node);
    return err;
}

static const struct command commands[] = {
    {"create", 2, run_create},
    {"measure", 1, run_measure},
    {"check", 1, run_check},
    {"repair", 2, run_repair},
    {"map", 1, run_map},
    {"write", 4, run_write},
    {"zero", 3, run_zero},
    {"discard", 3, run_discard},
    {"load", 3, run_load},
    {"dump", 2, run_dump},
    {"keys", 2, run_keys},
    {"keys-force", 2, run_keys_force},
    {"snapshot-list", 1, run_snapshot_list},
    {"snapshot-create", 2, run_snapshot_create},
    {"snapshot-apply", 2, run_snapshot_apply},
    {"snapshot-delete", 2, run_snapshot_delete},
    {"bitmap-list", 1, run_bitmap_list},
    {"bitmap-add", 4, run_bitmap_add},
    {"bitmap-remove", 2, run_bitmap_remove},
    {"bitmap-clear", 2, run_bitmap_clear},
    {"bitmap-enable", 2, run_bitmap_enable},
    {"bitmap-disable", 2, run_bitmap_disable},
    {"bitmap-merge", 3, run_bitmap_merge},
    {"write-compressed", 2, run_write_compressed},
    {"amend", 2, run_amend},
    {"backing", 3, run_backing},
    {"resize", 4, run_resize},
};

static int run_command(void *arg)
{
    const struct run *run = arg;
    struct error error = {.text = ""};
    int status = run->command->run(run->arguments, &error);

    if (status < 0)
        fprintf(stderr, "qcow2_tool: %s\n", error.text[0] ? error.text : strerror(-status));
    return status < 0 ? 1 : status;
}

static void add_secret_file(const char *id, const char *path)
{
    FILE *in = fopen(path, "rb");

    if (in) {
        secret_store_add(&secrets, id, piece, fread(piece, 1, SECRET_BYTES_MAX, in), NULL);
        fclose(in);
    }
}

/* Takes what stands before the command; what it returns is like argv. */
static char **take_options(char **argv)
{
    for (; argv[1] && argv[2] && strncmp(argv[1], "--", 2) == 0; argv += 2) {
        char *value = argv[2], *equals = strchr(value, '=');

        if (strcmp(argv[1], "--format") == 0) {
            format = value;
        } else if (strcmp(argv[1], "--open") == 0) {
            open_options = value;
        } else if (strcmp(argv[1], "--secret") == 0 && equals) {
            *equals = '\0';
            secret_store_add(&secrets, value, equals + 1, strlen(equals + 1), NULL);
        } else if (strcmp(argv[1], "--secret-file") == 0 && equals) {
            *equals = '\0';
            add_secret_file(value, equals + 1);
        }
    }
    return argv;
}

int main(int argc, char **argv)
{
    struct run run = {0};
    struct error error;
    char **rest;
    int status;

    secret_store_init(&secrets);
    rest = take_options(argv);
    argc -= (int)(rest - argv);
    argv = rest;
    run.arguments = argv + 2;
    for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(argv[1], commands[i].name) == 0 && argc == 2 + commands[i].arguments)
            run.command = &commands[i];
    }
    if (!run.command) {
        fprintf(stderr, "usage: qcow2_tool create|measure|check|repair|map|write|...\n");
        return 1;
    }
    if (reactor_init(&error) < 0) {
        fprintf(stderr, "qcow2_tool: %s\n", error.text);
        return 1;
    }
    status = reactor_run_coroutine(run_command, &run);
    reactor_fini();
    secret_store_fini(&secrets);
    return status;
}
