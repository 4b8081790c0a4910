/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Workloads.  The model is what a reader of the disk must see; the history gets each operation
 * before it begins and when it has returned.  Operations that run at the same time touch different
 * sectors, so that the order of the values of each sector is known.
 */
#include "tests/crash/workload.h"

#include "base/checked.h"
#include "base/colock.h"
#include "tests/crash/operation.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANDOM_MAX 64
#define TOGETHER_MAX 4 /* lanes */
#define LANE_MAX 3
#define RANDOM_PREFIX "random:"

/* The operations that a workload on such an image may have; `index` from 0; NULL: no more. */
static const struct operation *operation_of(const struct image_row *row, bool random,
                                            uint64_t index)
{
    bool raw = strcmp(row->format, "raw") == 0;
    unsigned without = raw ? OP_QCOW2 : 0;
    const struct operation *operation;

    if (random && !image_varies(row))
        without |= OP_WORKER;
    for (size_t i = 0; (operation = operation_get(i)); i++) {
        if (!(operation->flags & without) && index-- == 0)
            break;
    }
    return operation;
}

static unsigned operation_count(const struct image_row *row, bool random)
{
    unsigned n = 0;

    while (operation_of(row, random, n))
        n++;
    return n;
}

static unsigned together_count(void)
{
    unsigned n = 0;

    while (operation_get(n)->flags & OP_TOGETHER)
        n++;
    return n;
}

uint64_t workload_count(const struct image_row *row)
{
    uint64_t n = operation_count(row, false), all = 0;

    for (unsigned i = 0; i < WORKLOAD_SERIES_MAX; i++)
        all = (all + 1) * n;
    return all;
}

void workload_name(const struct image_row *row, uint64_t index, char *ret)
{
    uint64_t n = operation_count(row, false), series = n;
    unsigned length = 1;
    size_t at = 0;

    while (index >= series) {
        index -= series;
        series *= n;
        length++;
    }
    for (; length > 0; length--, index /= n)
        at += (size_t)snprintf(ret + at, WORKLOAD_NAME_MAX - at, "%s%s", at > 0 ? "," : "",
                               operation_of(row, false, index % n)->name);
}

void workload_random_name(uint64_t seed, char *ret)
{
    snprintf(ret, WORKLOAD_NAME_MAX, RANDOM_PREFIX "%lu", seed);
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

/* Steps that are done one after another. */
struct lane {
    struct step steps[LANE_MAX];
    unsigned count;
};

static int run_lane(void *arg)
{
    struct lane *lane = arg;
    int err = 0;

    for (unsigned i = 0; i < lane->count && err == 0; i++)
        err = run_step(&lane->steps[i]);
    return err;
}

static bool lanes_meet(const struct lane *lanes, unsigned count, const struct step *step)
{
    for (unsigned i = 0; i < count; i++) {
        for (unsigned k = 0; k < lanes[i].count; k++) {
            if (steps_meet(&lanes[i].steps[k], step))
                return true;
        }
    }
    return false;
}

/* A few lanes at the same time, with flushes among them or not. */
static int run_together(struct run *r, unsigned count, struct error *error)
{
    struct lane *lanes = calloc(count, sizeof(*lanes));
    struct co_group group;
    int err;

    if (!lanes)
        test_die("out of memory");
    co_group_init(&group);
    for (unsigned i = 0; i < count * LANE_MAX; i++) {
        struct lane *lane = &lanes[i % count];
        struct step step = step_of(r, operation_get(prng_below(&r->prng, together_count())));

        if (!lanes_meet(lanes, count, &step) && (i < count || prng_percent(&r->prng, 50)))
            lane->steps[lane->count++] = step;
    }
    for (unsigned i = 0; i < count; i++)
        co_group_start(&group, run_lane, &lanes[i]);
    err = co_group_wait(&group);
    free(lanes);
    return err < 0 ? error_set_errno(error, -err, "one of several operations failed") : 0;
}

static int run_random(struct run *r, struct error *error)
{
    unsigned n = operation_count(r->row, true),
             left = 1 + (unsigned)prng_below(&r->prng, RANDOM_MAX);
    int err = 0;

    while (left > 0 && err == 0) {
        unsigned together = 1 + (unsigned)prng_below(&r->prng, min_u64(left, TOGETHER_MAX));

        if (together > 1)
            err = run_together(r, together, error);
        else
            err = run_one(r, operation_of(r->row, true, prng_below(&r->prng, n)), error);
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
    run.names = max_u64(run.world.count, run.world.bitmap_count);
    run.prng = prng_of(seed);
    run.hot = prng_below(&run.prng, row->bytes);
    err = random ? run_random(&run, error) : run_series(&run, name, error);
    node_unref(run.node);
    return err;
}
