/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Workloads.  The model is what a reader of the disk must see; the history gets each operation
 * before it begins and when it has returned.  Operations that run at the same time touch different
 * sectors, so that the order of the values of each sector is known.
 */
#include "tests/crash/workload.h"

#include "base/checked.h"
#include "base/colock.h"
#include "blockcore/block.h"
#include "blockcore/snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANDOM_MAX 64
#define TOGETHER_MAX 4
#define RANDOM_PREFIX "random:"

struct run {
    const struct image_row *row;
    struct history *history;
    struct node *node;
    uint8_t *model; /* WORKLOAD_ROOM * row->bytes; zeroes behind the disk's end */
    uint64_t size;
    struct world world;
    unsigned names; /* given to snapshots so far */
    uint64_t hot;   /* where many operations go */
    struct prng prng;
};

/* One operation on its way. */
struct step {
    struct run *run;
    const struct operation *operation;
    uint64_t offset, length;
    uint64_t seed;
    struct error error;
};

enum {
    OP_TOGETHER = 1 << 0, /* it may run with others */
    OP_VERB = 1 << 1,     /* a verb that a format may lack; it may be refused */
};

struct operation {
    const char *name;
    int (*run)(struct step *step);
    unsigned flags;
    uint64_t length; /* bytes; 0: a cluster */
    unsigned arg;
};

static size_t begin_range(struct step *s, unsigned flags)
{
    uint64_t first = s->offset / SECTOR_SIZE;
    uint64_t end = div_round_up(s->offset + s->length, SECTOR_SIZE);

    if ((s->offset | s->length) % SECTOR_SIZE != 0)
        flags |= EVENT_PARTIAL;
    return history_began(s->run->history, flags, s->run->model, first, end - first);
}

static int op_write(struct step *s)
{
    struct run *r = s->run;
    struct prng prng = prng_of(s->seed);
    size_t event;
    int err;

    prng_fill(&prng, r->model + s->offset, s->length);
    event = begin_range(s, s->operation->arg & BLOCK_FUA ? EVENT_DURABLE : 0);
    err = block_write(r->node, r->model + s->offset, s->length, s->offset, s->operation->arg);
    history_returned(r->history, event, err < 0);
    return err;
}

static int op_zero(struct step *s)
{
    struct run *r = s->run;
    size_t event;
    int err;

    memset(r->model + s->offset, 0, s->length);
    event = begin_range(s, 0);
    err = block_zero(r->node, s->offset, s->length, s->operation->arg);
    history_returned(r->history, event, err < 0);
    return err;
}

/* Each sector may become zero or stay; what it is becomes known afterwards. */
static int op_trim(struct step *s)
{
    struct run *r = s->run;
    uint8_t *at = r->model + s->offset, *old = malloc(s->length);
    size_t event;
    int err;

    if (!old)
        return -ENOMEM;
    memcpy(old, at, s->length);
    memset(at, 0, s->length);
    event = begin_range(s, EVENT_NEVER | EVENT_PARTIAL);
    memcpy(at, old, s->length);
    free(old);
    err = block_discard(r->node, s->offset, s->length, 0);
    history_returned(r->history, event, err < 0);
    if (err == 0)
        err = block_read(r->node, at, s->length, s->offset);
    if (err == 0)
        history_returned(r->history, begin_range(s, 0), false);
    return err;
}

static int op_flush(struct step *s)
{
    struct run *r = s->run;
    size_t event = history_began(r->history, EVENT_FLUSH, r->model, 0, 0);
    int err = block_flush(r->node);

    history_returned(r->history, event, err < 0);
    return err;
}

static int op_close(struct step *s)
{
    struct run *r = s->run;
    size_t event = history_began(r->history, EVENT_FLUSH, r->model, 0, 0);

    node_unref(r->node);
    r->node = NULL;
    history_returned(r->history, event, false);
    return image_open(r->row, NODE_WRITABLE | NODE_UNMAP, NULL, &r->node, &s->error);
}

#define VERB_FLAGS (EVENT_FLUSH | EVENT_DURABLE)

/* A verb that was refused leaves all as it was. */
static int end_verb(struct step *s, size_t event, const struct world *old, int err)
{
    history_returned(s->run->history, event, err < 0);
    if (err < 0)
        s->run->world = *old;
    return 0;
}

static int op_snapshot_create(struct step *s)
{
    struct run *r = s->run;
    struct world old = r->world;
    char name[HISTORY_NAME_MAX];
    size_t event;

    if (old.count == SNAPSHOTS_MAX)
        return 0;
    snprintf(name, sizeof(name), "s%u", ++r->names);
    r->world.snapshots[r->world.count++] = history_save(r->history, name, r->model, r->size);
    event = history_began(r->history, VERB_FLAGS, r->model, 0, 0);
    history_changes_world(r->history, &r->world);
    return end_verb(s, event, &old, block_snapshot_create(r->node, name, &s->error));
}

static unsigned pick_snapshot(struct step *s)
{
    struct prng prng = prng_of(s->seed);

    return (unsigned)prng_below(&prng, s->run->world.count);
}

static int choose(struct run *r, unsigned victim, struct error *error,
                  int (*verb)(struct node *node, const struct block_snapshot_choice *choice,
                              struct error *error))
{
    char name[HISTORY_NAME_MAX];
    struct block_snapshot_choice choice = {.name = name};

    memcpy(name, r->world.snapshots[victim]->name, sizeof(name));
    return verb(r->node, &choice, error);
}

static int op_snapshot_delete(struct step *s)
{
    struct run *r = s->run;
    struct world old = r->world, new = r->world;
    unsigned victim = pick_snapshot(s);
    size_t event;
    int err;

    if (old.count == 0)
        return 0;
    for (unsigned i = victim + 1; i < old.count; i++)
        new.snapshots[i - 1] = old.snapshots[i];
    new.count--;
    event = history_began(r->history, VERB_FLAGS, r->model, 0, 0);
    history_changes_world(r->history, &new);
    err = choose(r, victim, &s->error, block_snapshot_delete);
    r->world = new;
    return end_verb(s, event, &old, err);
}

/* The disk becomes `size` bytes of `data`, as far as that goes. */
static size_t begin_disk(struct run *r, uint8_t *whole, const uint8_t *data, uint64_t size)
{
    size_t event;

    memset(whole, 0, WORKLOAD_ROOM * r->row->bytes);
    memcpy(whole, data, size);
    event = history_began(r->history, VERB_FLAGS, whole, 0,
                          WORKLOAD_ROOM * r->row->bytes / SECTOR_SIZE);
    history_resizes(r->history, size);
    return event;
}

static int op_snapshot_apply(struct step *s)
{
    struct run *r = s->run;
    unsigned chosen = pick_snapshot(s);
    const struct saved *saved = r->world.snapshots[chosen];
    uint8_t *whole = malloc(WORKLOAD_ROOM * r->row->bytes);
    size_t event;
    int err;

    if (!whole || r->world.count == 0) {
        free(whole);
        return 0;
    }
    event = begin_disk(r, whole, saved->data, saved->size);
    err = choose(r, chosen, &s->error, block_snapshot_apply);
    if (err == 0) {
        memcpy(r->model, whole, WORKLOAD_ROOM * r->row->bytes);
        r->size = saved->size;
    }
    free(whole);
    return end_verb(s, event, &r->world, err);
}

/* Those that may run together stand first, verbs last. */
static const struct operation operations[] = {
    {"write-512", op_write, OP_TOGETHER, 512, 0},
    {"write-4k", op_write, OP_TOGETHER, 4096, 0},
    {"write-cluster", op_write, OP_TOGETHER, 0, 0},
    {"write-unaligned", op_write, OP_TOGETHER, 1337, 0},
    {"write-fua", op_write, OP_TOGETHER, 4096, BLOCK_FUA},
    {"zero", op_zero, OP_TOGETHER, 0, 0},
    {"zero-unmap", op_zero, OP_TOGETHER, 0, ZERO_MAY_UNMAP},
    {"trim", op_trim, OP_TOGETHER, 0, 0},
    {"flush", op_flush, OP_TOGETHER, 0, 0},
    {"close", op_close, 0, 0, 0},
    {"snapshot-create", op_snapshot_create, OP_VERB, 0, 0},
    {"snapshot-delete", op_snapshot_delete, OP_VERB, 0, 0},
    {"snapshot-apply", op_snapshot_apply, OP_VERB, 0, 0},
};

/* The operations that images of this row have come first in the table; raw has no verbs. */
static unsigned operation_count(const struct image_row *row)
{
    unsigned n = ARRAY_SIZE(operations);

    if (strcmp(row->format, "raw") == 0) {
        while (operations[n - 1].flags & OP_VERB)
            n--;
    }
    return n;
}

static unsigned together_count(void)
{
    unsigned n = 0;

    while (operations[n].flags & OP_TOGETHER)
        n++;
    return n;
}

uint64_t workload_count(const struct image_row *row)
{
    uint64_t n = operation_count(row), all = 0;

    for (unsigned i = 0; i < WORKLOAD_SERIES_MAX; i++)
        all = (all + 1) * n;
    return all;
}

void workload_name(const struct image_row *row, uint64_t index, char *ret)
{
    uint64_t n = operation_count(row), series = n;
    unsigned length = 1;
    size_t at = 0;

    while (index >= series) {
        index -= series;
        series *= n;
        length++;
    }
    for (; length > 0; length--, index /= n)
        at += (size_t)snprintf(ret + at, WORKLOAD_NAME_MAX - at, "%s%s", at > 0 ? "," : "",
                               operations[index % n].name);
}

void workload_random_name(uint64_t seed, char *ret)
{
    snprintf(ret, WORKLOAD_NAME_MAX, RANDOM_PREFIX "%lu", seed);
}

static const struct operation *operation_find(const char *name, size_t length)
{
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
        if (strlen(operations[i].name) == length && strncmp(operations[i].name, name, length) == 0)
            return &operations[i];
    }
    return NULL;
}

/* Where it goes: often to the same few clusters, at their start or somewhere in them. */
static struct step step_of(struct run *r, const struct operation *operation)
{
    uint64_t cluster = r->row->cluster, length = operation->length ? operation->length : cluster;
    uint64_t offset = prng_percent(&r->prng, 60) ? r->hot : prng_below(&r->prng, r->size);
    bool unaligned = length % SECTOR_SIZE != 0;

    if (prng_percent(&r->prng, 30))
        offset += prng_below(&r->prng, 2 * cluster);
    offset =
        prng_percent(&r->prng, 50) ? align_down(offset, cluster) : align_down(offset, SECTOR_SIZE);
    if (unaligned)
        offset += prng_below(&r->prng, SECTOR_SIZE);
    length = min_u64(length, r->size);
    if (offset + length > r->size)
        offset = r->size - length;
    return (struct step){.run = r,
                         .operation = operation,
                         .offset = offset,
                         .length = length,
                         .seed = prng_next(&r->prng)};
}

static int run_step(void *arg)
{
    struct step *step = arg;

    return step->operation->run(step);
}

static int run_one(struct run *r, const struct operation *operation, struct error *error)
{
    struct step step = step_of(r, operation);
    int err = run_step(&step);

    if (err < 0)
        error_set_errno(error, -err, "%s at %lu failed: %s", operation->name, step.offset,
                        step.error.text);
    return err;
}

static int run_series(struct run *r, const char *name, struct error *error)
{
    int err = 0;

    while (*name && err == 0) {
        size_t length = strcspn(name, ",");
        const struct operation *operation = operation_find(name, length);

        if (!operation)
            return error_set(error, EINVAL, "'%s' is not a series of operations", name);
        err = run_one(r, operation, error);
        name += length + (name[length] == ',');
    }
    return err;
}

/* Whether two steps share a sector. */
static bool steps_meet(const struct step *a, const struct step *b)
{
    uint64_t a_end = align_up(a->offset + a->length, SECTOR_SIZE);
    uint64_t b_end = align_up(b->offset + b->length, SECTOR_SIZE);

    return align_down(a->offset, SECTOR_SIZE) < b_end && align_down(b->offset, SECTOR_SIZE) < a_end;
}

/* A few at the same time, with a flush among them or not. */
static int run_together(struct run *r, unsigned count, struct error *error)
{
    struct step steps[TOGETHER_MAX];
    struct co_group group;
    unsigned started = 0;
    int err;

    co_group_init(&group);
    for (unsigned i = 0; i < count; i++) {
        bool meets = false;

        steps[started] = step_of(r, &operations[prng_below(&r->prng, together_count())]);
        for (unsigned k = 0; k < started; k++)
            meets |= steps_meet(&steps[k], &steps[started]);
        if (!meets)
            started++;
    }
    for (unsigned i = 0; i < started; i++)
        co_group_start(&group, run_step, &steps[i]);
    err = co_group_wait(&group);
    return err < 0 ? error_set_errno(error, -err, "one of %u operations failed", started) : 0;
}

static int run_random(struct run *r, struct error *error)
{
    unsigned n = operation_count(r->row), left = 1 + (unsigned)prng_below(&r->prng, RANDOM_MAX);
    int err = 0;

    while (left > 0 && err == 0) {
        unsigned together = 1 + (unsigned)prng_below(&r->prng, min_u64(left, TOGETHER_MAX));

        if (together > 1)
            err = run_together(r, together, error);
        else
            err = run_one(r, &operations[prng_below(&r->prng, n)], error);
        left -= together;
        if (prng_percent(&r->prng, 20))
            r->hot = prng_below(&r->prng, r->size);
    }
    return err;
}

int workload_run(const struct image_row *row, const char *name, uint64_t seed, uint8_t *model,
                 struct history *history, struct error *error)
{
    bool random = strncmp(name, RANDOM_PREFIX, strlen(RANDOM_PREFIX)) == 0;
    struct run run = {.row = row, .history = history, .model = model, .size = row->bytes};
    int err = image_open(row, NODE_WRITABLE | NODE_UNMAP, NULL, &run.node, error);

    if (err < 0)
        return err;
    if (random)
        seed += strtoull(name + strlen(RANDOM_PREFIX), NULL, 10) * 7919;
    for (const char *c = name; *c && !random; c++)
        seed = seed * 31 + (unsigned char)*c;
    run.world = *history_world(history, 0, 0);
    run.names = run.world.count;
    run.prng = prng_of(seed);
    run.hot = prng_below(&run.prng, row->bytes);
    err = random ? run_random(&run, error) : run_series(&run, name, error);
    node_unref(run.node);
    return err;
}
