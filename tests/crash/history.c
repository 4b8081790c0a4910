/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Histories.  An event keeps the sectors that it changes as they are afterwards, so that the values
 * that a sector may have are those of some of the events that cover it.
 */
#include "tests/crash/history.h"

#include "base/checked.h"
#include "tests/support/recorder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct event {
    unsigned flags;                   /* EVENT_* */
    size_t began, returned;           /* numbers of records; SIZE_MAX: not yet */
    uint64_t began_tick, return_tick; /* the order of all that happened */
    uint64_t first, count;            /* sectors */
    uint8_t *data;
    uint64_t size;
    struct world world;
    bool refused;
};

struct history {
    struct event *events; /* the first is what the disk held at the start */
    size_t count, room;
    uint64_t ticks;
    struct saved **saved;
    size_t saved_count;
};

static void *check_memory(void *memory)
{
    if (!memory)
        test_die("out of memory");
    return memory;
}

static uint8_t *copy_bytes(const uint8_t *data, uint64_t length)
{
    return memcpy(check_memory(malloc(length + 1)), data, length);
}

struct history *history_new(const uint8_t *data, uint64_t size, const char *snapshot,
                            const char *bitmap)
{
    struct world world = {.count = snapshot ? 1 : 0, .bitmap_count = bitmap ? 1 : 0};
    struct history *h = check_memory(calloc(1, sizeof(*h)));
    size_t first = history_began(h, EVENT_DURABLE | EVENT_SIZE | EVENT_WORLD, data, 0,
                                 div_round_up(size, SECTOR_SIZE));

    if (snapshot)
        world.snapshots[0] = history_save(h, snapshot, data, size);
    if (bitmap)
        world.bitmaps[0] = history_save(h, bitmap, data, size);
    history_resizes(h, size);
    history_changes_world(h, &world);
    history_returned(h, first, false);
    h->events[first].began = h->events[first].returned = 0;
    return h;
}

void history_free(struct history *h)
{
    if (!h)
        return;
    for (size_t i = 0; i < h->count; i++)
        free(h->events[i].data);
    free(h->events);
    for (size_t i = 0; i < h->saved_count; i++) {
        free(h->saved[i]->data);
        free(h->saved[i]);
    }
    free(h->saved);
    free(h);
}

size_t history_began(struct history *h, unsigned flags, const uint8_t *disk, uint64_t first,
                     uint64_t count)
{
    struct event *e;

    if (h->count == h->room) {
        h->room = h->room ? h->room * 2 : 32;
        h->events = check_memory(reallocarray(h->events, h->room, sizeof(*h->events)));
    }
    e = &h->events[h->count];
    *e = (struct event){
        .flags = flags,
        .began = recorder_count(),
        .returned = SIZE_MAX,
        .began_tick = ++h->ticks,
        .return_tick = UINT64_MAX,
        .first = first,
        .count = count,
    };
    if (count > 0)
        e->data = copy_bytes(disk + first * SECTOR_SIZE, count * SECTOR_SIZE);
    return h->count++;
}

void history_resizes(struct history *h, uint64_t size)
{
    struct event *e = &h->events[h->count - 1];

    e->flags |= EVENT_SIZE;
    e->size = size;
}

void history_changes_world(struct history *h, const struct world *world)
{
    struct event *e = &h->events[h->count - 1];

    e->flags |= EVENT_WORLD;
    e->world = *world;
}

void history_returned(struct history *h, size_t event, bool error)
{
    struct event *e = &h->events[event];

    e->returned = recorder_count();
    e->return_tick = ++h->ticks;
    e->refused = error;
}

const struct saved *history_save(struct history *h, const char *name, const uint8_t *disk,
                                 uint64_t size)
{
    struct saved *s = check_memory(calloc(1, sizeof(*s)));

    snprintf(s->name, sizeof(s->name), "%s", name);
    s->size = size;
    s->data = copy_bytes(disk, size);
    h->saved = check_memory(reallocarray(h->saved, h->saved_count + 1, sizeof(struct saved *)));
    h->saved[h->saved_count++] = s;
    return s;
}

static bool has_returned(const struct event *e, size_t point)
{
    return e->returned <= point;
}

/* Whether it may have left something in the files. */
static bool has_begun(const struct event *e, size_t point)
{
    return !e->refused && (e->began < point || has_returned(e, point));
}

/* Changes that returned before this tick are durable. */
static uint64_t flushed_tick(const struct history *h, size_t point)
{
    uint64_t tick = 0;

    for (size_t i = 0; i < h->count; i++) {
        const struct event *e = &h->events[i];

        if ((e->flags & EVENT_FLUSH) && !e->refused && has_returned(e, point) &&
            e->began_tick > tick)
            tick = e->began_tick;
    }
    return tick;
}

static bool is_durable(const struct event *e, size_t point, uint64_t flushed)
{
    if ((e->flags & EVENT_NEVER) || e->refused || !has_returned(e, point))
        return false;
    return (e->flags & EVENT_DURABLE) || e->return_tick < flushed;
}

uint64_t history_promises(const struct history *h, size_t point)
{
    uint64_t began = 0, returned = 0;

    for (size_t i = 0; i < h->count; i++) {
        began += has_begun(&h->events[i], point);
        returned += has_returned(&h->events[i], point);
    }
    return began << 32 | returned;
}

/* The last durable event with one of the flags. */
static size_t last_durable(const struct history *h, size_t point, unsigned flag)
{
    uint64_t flushed = flushed_tick(h, point);
    size_t last = 0;

    for (size_t i = 0; i < h->count; i++) {
        if ((h->events[i].flags & flag) && is_durable(&h->events[i], point, flushed))
            last = i;
    }
    return last;
}

bool history_in_verb(const struct history *h, size_t point)
{
    for (size_t i = 0; i < h->count; i++) {
        const struct event *e = &h->events[i];

        if ((e->flags & EVENT_SHARES) && has_begun(e, point) && !has_returned(e, point))
            return true;
    }
    return false;
}

bool history_allows_size(const struct history *h, size_t point, uint64_t size)
{
    for (size_t i = last_durable(h, point, EVENT_SIZE); i < h->count; i++) {
        const struct event *e = &h->events[i];

        if ((e->flags & EVENT_SIZE) && has_begun(e, point) && e->size == size)
            return true;
    }
    return false;
}

const struct world *history_world(const struct history *h, size_t point, size_t index)
{
    for (size_t i = last_durable(h, point, EVENT_WORLD); i < h->count; i++) {
        const struct event *e = &h->events[i];

        if ((e->flags & EVENT_WORLD) && has_begun(e, point) && index-- == 0)
            return &e->world;
    }
    return NULL;
}

static const uint8_t *value_at(const struct event *e, uint64_t sector)
{
    bool covers = sector >= e->first && sector - e->first < e->count;

    return covers ? e->data + (sector - e->first) * SECTOR_SIZE : NULL;
}

/* Whether each byte is one of those that the sector may have there. */
static bool allows_bytes(const struct history *h, size_t point, size_t from, uint64_t sector,
                         const uint8_t *seen, size_t length)
{
    for (size_t k = 0; k < length; k++) {
        bool found = false;

        for (size_t i = from; i < h->count && !found; i++) {
            const uint8_t *value = value_at(&h->events[i], sector);

            found = value && has_begun(&h->events[i], point) && value[k] == seen[k];
        }
        if (!found)
            return false;
    }
    return true;
}

/* `from`: the last durable event of the sector. */
static bool allows_sector(const struct history *h, size_t point, bool garbage, size_t from,
                          uint64_t sector, const uint8_t *seen, size_t length)
{
    bool partial = false;

    for (size_t i = from; i < h->count; i++) {
        const struct event *e = &h->events[i];
        const uint8_t *value = value_at(e, sector);

        if (!value || !has_begun(e, point))
            continue;
        if ((garbage && i > from) || memcmp(seen, value, length) == 0)
            return true;
        partial |= e->flags & EVENT_PARTIAL;
    }
    return partial && allows_bytes(h, point, from, sector, seen, length);
}

bool history_allows(const struct history *h, size_t point, bool garbage, const uint8_t *seen,
                    uint64_t size, uint64_t *ret_sector)
{
    uint64_t sectors = div_round_up(size, SECTOR_SIZE), flushed = flushed_tick(h, point);
    uint32_t *last = check_memory(calloc(sectors + 1, sizeof(*last)));
    uint64_t s;

    for (size_t i = 0; i < h->count; i++) {
        const struct event *e = &h->events[i];

        if (!is_durable(e, point, flushed))
            continue;
        for (s = e->first; s < min_u64(e->first + e->count, sectors); s++)
            last[s] = (uint32_t)i;
    }
    for (s = 0; s < sectors; s++) {
        if (!allows_sector(h, point, garbage, last[s], s, seen + s * SECTOR_SIZE,
                           min_u64(SECTOR_SIZE, size - s * SECTOR_SIZE)))
            break;
    }
    free(last);
    *ret_sector = s;
    return s == sectors;
}
