/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots: what does not depend on the format. See snapshot.h. */
#include "blockcore/snapshot.h"

#include "base/checked.h"
#include "base/options.h"
#include "base/sys.h"
#include "base/trace.h"
#include "blockcore/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHOICE_PREFIX "snapshot."
#define SECOND_NS 1000000000

/* What a verb has to do once the disk is its own. */
struct verb {
    const char *what; /* "create" */
    const char *name; /* create: of the new snapshot */
    const struct block_snapshot_choice *choice;
    int (*run)(struct node *node, const struct verb *verb, struct error *error);
};

static const struct option_row choice_rows[] = {
    {"snapshot.id", OPTION_STRING, offsetof(struct block_snapshot_choice, id), NULL,
     "number of the snapshot"},
    {"snapshot.name", OPTION_STRING, offsetof(struct block_snapshot_choice, name), NULL,
     "name of the snapshot"},
    {0},
};

static int refuse_format(const struct node *node, struct error *error)
{
    return error_set(error, ENOTSUP, "%s: images of format '%s' have no internal snapshots",
                     node_name(node), node->driver->name);
}

int block_snapshots_list(struct node *node, struct block_snapshots *ret, struct error *error)
{
    const struct block_snapshot_ops *ops = node->driver->snapshots;

    *ret = (struct block_snapshots){0};
    return ops ? ops->list(node, ret, error) : refuse_format(node, error);
}

void block_snapshots_fini(struct block_snapshots *snapshots)
{
    free(snapshots->items);
    free(snapshots->text);
    *snapshots = (struct block_snapshots){0};
}

int block_snapshot_choice_parse(const char *text, struct block_snapshot_choice *ret,
                                struct error *error)
{
    json_t *tree;
    int err;

    *ret = (struct block_snapshot_choice){0};
    if (strncmp(text, CHOICE_PREFIX, strlen(CHOICE_PREFIX)) != 0) {
        ret->any = strdup(text);
        return ret->any ? 0 : error_set(error, ENOMEM, "out of memory");
    }
    err = options_parse(text, NULL, &tree, error);
    if (err < 0)
        return err;
    err = options_take(tree, choice_rows, ret, "a choice of a snapshot", error);
    if (err == 0)
        err = options_finish(tree, choice_rows, "a choice of a snapshot", error);
    json_decref(tree);
    return err;
}

void block_snapshot_choice_fini(struct block_snapshot_choice *choice)
{
    options_release(choice_rows, choice);
    free(choice->any);
    choice->any = NULL;
}

/* First snapshot with this id and name, of which one may be NULL; else list->count. */
static size_t find(const struct block_snapshots *list, const char *id, const char *name)
{
    size_t i = 0;

    while (i < list->count && ((id && strcmp(list->items[i].id, id) != 0) ||
                               (name && strcmp(list->items[i].name, name) != 0)))
        i++;
    return i;
}

static int choose(const struct node *node, const struct block_snapshots *list,
                  const struct block_snapshot_choice *choice, size_t *ret, struct error *error)
{
    const char *said = choice->any ? choice->any : choice->name ? choice->name : choice->id;
    char shown[80];

    *ret = choice->any ? find(list, choice->any, NULL) : find(list, choice->id, choice->name);
    if (choice->any && *ret == list->count)
        *ret = find(list, NULL, choice->any);
    if (*ret < list->count && said)
        return 0;
    return error_set(error, ENOENT, "Can't find snapshot '%s': %s has %zu snapshots",
                     error_escape(shown, sizeof(shown), said ? said : "", said ? strlen(said) : 0),
                     node_name(node), list->count);
}

/* With the disk locked: nobody writes, and nothing is in flight. */
static int run_locked(struct node *node, const struct verb *verb, struct error *error)
{
    int err = block_flush(node);

    if (err < 0)
        return error_set_errno(error, -err, "flushing failed");
    err = verb->run(node, verb, error);
    engine_forget_decoded(node);
    if (err < 0)
        return err;
    err = block_flush(node);
    return err < 0 ? error_set_errno(error, -err, "flushing failed") : 0;
}

static int change(struct node *node, const struct verb *verb, struct error *error)
{
    struct range_lock lock;
    int err;

    if (!node->driver->snapshots)
        return refuse_format(node, error);
    if (!node_writable(node))
        return error_set(error, EROFS, "%s: to %s a snapshot, the image must be writable",
                         node_name(node), verb->what);
    range_lock_exclusive(&node->locks, &lock, 0, OFFSET_MAX);
    err = run_locked(node, verb, error);
    range_unlock(&node->locks, &lock);
    if (err < 0)
        error_prefix(error, "cannot %s the snapshot of %s: ", verb->what, node_name(node));
    return err;
}

/* Runs fn on the snapshot that is chosen. */
static int with_choice(struct node *node, const struct block_snapshot_choice *choice,
                       int (*fn)(struct node *node, size_t index, struct error *error),
                       struct error *error)
{
    struct block_snapshots list;
    size_t index = 0;
    int err = block_snapshots_list(node, &list, error);

    if (err == 0)
        err = choose(node, &list, choice, &index, error);
    block_snapshots_fini(&list);
    return err < 0 ? err : fn(node, index, error);
}

/* The number that an id is; 0 when it is none. */
static uint64_t id_number(const char *id)
{
    size_t digits = strspn(id, "0123456789");

    return digits > 0 && digits < 20 && !id[digits] ? strtoull(id, NULL, 10) : 0;
}

static int run_create(struct node *node, const struct verb *verb, struct error *error)
{
    int64_t now = sys->realtime_ns();
    struct block_snapshots list;
    uint64_t highest = 0;
    char id[24];
    int err = block_snapshots_list(node, &list, error);

    for (size_t i = 0; i < list.count; i++)
        highest = max_u64(highest, id_number(list.items[i].id));
    block_snapshots_fini(&list);
    if (err < 0)
        return err;
    snprintf(id, sizeof(id), "%" PRIu64, highest + 1);
    TRACE(block_snapshot, "%s create %s", node_name(node), id);
    return node->driver->snapshots->create(node,
                                           &(struct block_snapshot){
                                               .id = id,
                                               .name = verb->name,
                                               .date_seconds = (uint32_t)(now / SECOND_NS),
                                               .date_nanoseconds = (uint32_t)(now % SECOND_NS),
                                               .icount = BLOCK_SNAPSHOT_ICOUNT_NONE,
                                               .disk_size = node->size,
                                           },
                                           error);
}

int block_snapshot_create(struct node *node, const char *name, struct error *error)
{
    const struct verb verb = {.what = "create", .name = name, .run = run_create};

    if (strlen(name) > BLOCK_SNAPSHOT_NAME_MAX)
        return error_set(error, EINVAL,
                         "the name of a snapshot has %zu bytes, at most %d are possible",
                         strlen(name), BLOCK_SNAPSHOT_NAME_MAX);
    return change(node, &verb, error);
}

static int run_apply(struct node *node, const struct verb *verb, struct error *error)
{
    TRACE(block_snapshot, "%s apply", node_name(node));
    return with_choice(node, verb->choice, node->driver->snapshots->apply, error);
}

int block_snapshot_apply(struct node *node, const struct block_snapshot_choice *choice,
                         struct error *error)
{
    const struct verb verb = {.what = "apply", .choice = choice, .run = run_apply};

    return change(node, &verb, error);
}

static int run_delete(struct node *node, const struct verb *verb, struct error *error)
{
    TRACE(block_snapshot, "%s delete", node_name(node));
    return with_choice(node, verb->choice, node->driver->snapshots->remove, error);
}

int block_snapshot_delete(struct node *node, const struct block_snapshot_choice *choice,
                          struct error *error)
{
    const struct verb verb = {.what = "delete", .choice = choice, .run = run_delete};

    return change(node, &verb, error);
}

int block_snapshot_load(struct node *node, const struct block_snapshot_choice *choice,
                        struct error *error)
{
    if (!node->driver->snapshots)
        return refuse_format(node, error);
    if (node->flags & (NODE_WRITABLE | NODE_REPAIR))
        return error_set(error, EROFS, "%s: a snapshot can only be opened read-only",
                         node_name(node));
    return with_choice(node, choice, node->driver->snapshots->load, error);
}
