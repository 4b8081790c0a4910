/* SPDX-License-Identifier: BSD-3-Clause */
/* I/O engines for tests: one in order, one in seeded random order. */
#include "tests/support/sim_engine.h"

#include "base/coroutine.h"
#include "base/reactor.h"
#include "tests/support/support.h"

#define BATCH_MAX 4

static struct sim_engine {
    struct reactor_source source;
    struct list ops;
    unsigned count;
} sync_engine, sim_engine;

static struct {
    bool on;
    struct list ops;
    unsigned count;
} held = {.ops = LIST_INIT(held.ops)};

static struct prng order;
static bool order_seeded;

static void nothing_to_submit(struct reactor_source *source)
{
}

static void engine_start(struct sim_engine *engine, bool (*reap)(struct reactor_source *source))
{
    *engine = (struct sim_engine){.source = {.submit = nothing_to_submit, .reap = reap}};
    list_init(&engine->ops);
    reactor_source_add(&engine->source);
}

static void engine_stop(struct sim_engine *engine)
{
    if (!list_empty(&engine->ops))
        test_die("an engine is stopped with operations under way");
    reactor_source_remove(&engine->source);
}

static bool sync_reap(struct reactor_source *source)
{
    struct sim_engine *engine = container_of(source, struct sim_engine, source);
    struct list *node;
    bool any = false;

    while ((node = list_pop(&engine->ops))) {
        coroutine_wake(list_entry(node, struct io_op, link)->waiter);
        any = true;
    }
    return any;
}

static int sync_start(struct error *error)
{
    engine_start(&sync_engine, sync_reap);
    return 0;
}

static void sync_stop(void)
{
    engine_stop(&sync_engine);
}

static void sync_submit(struct io_op *op)
{
    io_op_run(op);
    list_append(&sync_engine.ops, &op->link);
}

const struct io_engine io_engine_sync = {
    .name = "sync", .start = sync_start, .stop = sync_stop, .submit = sync_submit};

static struct io_op *take_one(struct sim_engine *engine)
{
    uint64_t skip = prng_below(&order, engine->count);
    struct list *node = engine->ops.next;

    while (skip-- > 0)
        node = node->next;
    list_remove(node);
    engine->count--;
    return list_entry(node, struct io_op, link);
}

static bool sim_reap(struct reactor_source *source)
{
    struct sim_engine *engine = container_of(source, struct sim_engine, source);
    uint64_t batch = 1 + prng_below(&order, BATCH_MAX);
    struct io_op *op;

    if (engine->count == 0)
        return false;
    for (; batch > 0 && engine->count > 0; batch--) {
        op = take_one(engine);
        io_op_run(op);
        coroutine_wake(op->waiter);
    }
    return true;
}

static int sim_start(struct error *error)
{
    if (!order_seeded)
        sim_engine_seed(test_seed());
    engine_start(&sim_engine, sim_reap);
    return 0;
}

static void sim_stop(void)
{
    engine_stop(&sim_engine);
}

static void sim_submit(struct io_op *op)
{
    if (held.on && op->kind == IO_FDATASYNC) {
        list_append(&held.ops, &op->link);
        held.count++;
        return;
    }
    list_append(&sim_engine.ops, &op->link);
    sim_engine.count++;
}

const struct io_engine io_engine_sim = {
    .name = "sim", .start = sim_start, .stop = sim_stop, .submit = sim_submit};

void sim_engine_seed(uint64_t seed)
{
    order = prng_of(seed);
    order_seeded = true;
}

void sim_engine_hold_syncs(bool hold)
{
    held.on = hold;
    if (hold)
        return;
    list_splice(&sim_engine.ops, &held.ops);
    sim_engine.count += held.count;
    held.count = 0;
}

unsigned sim_engine_held(void)
{
    return held.count;
}

void sim_engine_visit(void (*visit)(const struct io_op *op))
{
    if (sim_engine.count == 0)
        return;
    list_for_each(node, &sim_engine.ops) visit(list_entry(node, struct io_op, link));
}
