/* SPDX-License-Identifier: BSD-3-Clause */
/* Operations that change an image's size, its snapshots and its bitmaps. */
#include "tests/crash/operation.h"

#include "base/checked.h"
#include "blockcore/bitmap.h"
#include "blockcore/resize.h"
#include "blockcore/snapshot.h"
#include "tests/crash/workload.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERB_FLAGS (EVENT_FLUSH | EVENT_DURABLE | EVENT_SHARES)

/* A verb that was refused leaves all as it was. */
static int end_verb(struct step *s, size_t event, const struct world *old, int err)
{
    history_returned(s->run->history, event, err < 0);
    if (err < 0)
        s->run->world = *old;
    return 0;
}

int op_snapshot_create(struct step *s)
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

int op_snapshot_delete(struct step *s)
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

int op_snapshot_apply(struct step *s)
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
    history_changes_world(r->history, &r->world);
    err = choose(r, chosen, &s->error, block_snapshot_apply);
    if (err == 0) {
        memcpy(r->model, whole, WORKLOAD_ROOM * r->row->bytes);
        r->size = saved->size;
    }
    free(whole);
    return end_verb(s, event, &r->world, err);
}

/* Durable when it returns, which other changes need not be. */
static int resize(struct step *s, const struct block_resize *resize, size_t event)
{
    struct run *r = s->run;
    int err;

    history_resizes(r->history, resize->size);
    err = block_resize(r->node, resize, &s->error);
    history_returned(r->history, event, err < 0);
    if (err == 0)
        r->size = resize->size;
    return err;
}

int op_resize_grow(struct step *s)
{
    struct run *r = s->run;
    struct prng prng = prng_of(s->seed);
    uint64_t room = WORKLOAD_ROOM * r->row->bytes - r->size;
    uint64_t more = min_u64(room / SECTOR_SIZE, 3 * r->row->cluster / SECTOR_SIZE);
    struct block_resize to = {.size = r->size};

    if (more == 0)
        return 0;
    more = 1 + prng_below(&prng, more);
    to.size += more * SECTOR_SIZE;
    if (prng_percent(&prng, 30))
        to.preallocation = PREALLOCATION_METADATA + (unsigned)prng_below(&prng, 3);
    resize(s, &to, history_began(r->history, EVENT_DURABLE, r->model, r->size / SECTOR_SIZE, more));
    return 0;
}

/* Until it is done, a disk of the old size has all that it had. */
int op_resize_shrink(struct step *s)
{
    struct run *r = s->run;
    struct prng prng = prng_of(s->seed);
    uint64_t old = r->size, sectors = old / SECTOR_SIZE;
    uint64_t less = min_u64(sectors / 2, 3 * r->row->cluster / SECTOR_SIZE);
    struct block_resize to = {.shrink = true};

    if (less == 0)
        return 0;
    less = 1 + prng_below(&prng, less);
    to.size = old - less * SECTOR_SIZE;
    if (resize(s, &to, history_began(r->history, EVENT_DURABLE, r->model, 0, 0)) < 0)
        return 0;
    memset(r->model + to.size, 0, old - to.size);
    history_returned(
        r->history, history_began(r->history, EVENT_DURABLE, r->model, to.size / SECTOR_SIZE, less),
        false);
    return 0;
}

/* It is about to have these bitmaps. */
static size_t begin_bitmaps(struct run *r, const struct world *world)
{
    size_t event = history_began(r->history, EVENT_DURABLE, r->model, 0, 0);

    history_changes_world(r->history, world);
    r->world = *world;
    return event;
}

int op_bitmap_add(struct step *s)
{
    struct run *r = s->run;
    struct world old = r->world, new = old;
    struct prng prng = prng_of(s->seed);
    uint64_t granularity = BLOCK_BITMAP_GRANULARITY_MIN << prng_below(&prng, 8);
    char name[HISTORY_NAME_MAX];
    size_t event;

    if (old.bitmap_count == BITMAPS_MAX)
        return 0;
    snprintf(name, sizeof(name), "b%u", ++r->names);
    new.bitmaps[new.bitmap_count++] = history_save(r->history, name, r->model, r->size);
    event = begin_bitmaps(r, &new);
    return end_verb(s, event, &old, block_bitmap_add(r->node, name, granularity, true, &s->error));
}

static struct block_bitmap *pick_bitmap(struct step *s, unsigned *ret)
{
    struct prng prng = prng_of(s->seed);
    const struct world *world = &s->run->world;

    if (world->bitmap_count == 0)
        return NULL;
    *ret = (unsigned)prng_below(&prng, world->bitmap_count);
    return block_bitmap_get_named(s->run->node, world->bitmaps[*ret]->name);
}

int op_bitmap_clear(struct step *s)
{
    struct run *r = s->run;
    struct world old = r->world, new = old;
    unsigned i = 0;
    struct block_bitmap *bitmap = pick_bitmap(s, &i);
    size_t event;

    if (!bitmap)
        return 0;
    new.bitmaps[i] = history_save(r->history, bitmap->name, r->model, r->size);
    event = begin_bitmaps(r, &new);
    return end_verb(s, event, &old, block_bitmap_clear(bitmap, &s->error));
}

int op_bitmap_remove(struct step *s)
{
    struct run *r = s->run;
    struct world old = r->world, new = old;
    unsigned i = 0;
    struct block_bitmap *bitmap = pick_bitmap(s, &i);
    size_t event;

    if (!bitmap)
        return 0;
    new.bitmaps[i] = new.bitmaps[--new.bitmap_count];
    event = begin_bitmaps(r, &new);
    return end_verb(s, event, &old, block_bitmap_remove(bitmap, &s->error));
}
