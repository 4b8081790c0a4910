/* SPDX-License-Identifier: BSD-3-Clause */
/* The table cache: loading, eviction, failures, and the declared order as the recorder sees it. */
#include "base/reactor.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/table_cache.h"
#include "tests/support/fault.h"
#include "tests/support/recorder.h"
#include "tests/support/sim_clock.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TABLE 512
#define TABLES 40
#define PATH "/sim/tables"

static const struct driver *const drivers[] = {&driver_raw, &driver_file, NULL};

struct fixture {
    struct node *file;
    struct table_cache *counts, *links; /* links come after counts */
    int (*test)(struct fixture *f);
    bool simulated; /* time */
};

static int run(void *arg)
{
    struct fixture *f = arg;
    const struct block_context context = {.drivers = drivers, .engine = &io_engine_sync};
    json_t *tree = json_pack("{s:s, s:s}", "driver", "file", "filename", PATH);

    assert_int_equal(node_open_tree(&context, tree, NODE_WRITABLE, &f->file, NULL), 0);
    json_decref(tree);
    f->counts = table_cache_new(f->file, TABLE, 4, NULL);
    f->links = table_cache_new(f->file, TABLE, 4, f->counts);
    f->test(f);
    table_cache_free(f->links);
    table_cache_free(f->counts);
    node_unref(f->file);
    return 0;
}

static void play_in(int (*test)(struct fixture *f), bool simulated)
{
    const struct sim_disk_config config = {.seed = test_seed()};
    struct fixture f = {.test = test, .simulated = simulated};
    uint8_t *content = malloc(TABLES * TABLE);

    for (unsigned i = 0; i < TABLES; i++)
        memset(content + i * TABLE, (int)i + 1, TABLE);
    sim_disk_install(&config);
    sim_disk_create(PATH, content, TABLES * TABLE);
    recorder_install();
    fault_install();
    fault_arm(&(struct fault_plan){0});
    assert_int_equal(f.simulated ? sim_clock_run(run, &f) : test_run(run, &f), 0);
    fault_remove();
    recorder_remove();
    sim_disk_remove();
    free(content);
}

static void play(int (*test)(struct fixture *f))
{
    play_in(test, false);
}

static struct table *get(struct table_cache *cache, unsigned number)
{
    struct table *table;

    assert_int_equal(table_cache_get(cache, number * TABLE, &table), 0);
    return table;
}

static void change(struct table_cache *cache, unsigned number, uint8_t byte)
{
    struct table *table = get(cache, number);

    memset(table->data, byte, TABLE);
    table_cache_mark_dirty(cache, table);
    table_cache_put(cache, table);
}

static int run_loading(struct fixture *f)
{
    struct table *table, *again;

    assert_null(table_cache_peek(f->links, 3 * TABLE));
    table = get(f->links, 3);
    assert_int_equal(table->data[0], 4);
    assert_int_equal(table->data[TABLE - 1], 4);
    again = table_cache_peek(f->links, 3 * TABLE);
    assert_ptr_equal(again, table);
    table_cache_put(f->links, again);
    table_cache_put(f->links, table);
    /* A table that the file ends in is an error, not zeroes. */
    assert_int_equal(table_cache_get(f->links, TABLES * TABLE - 1, &table), -EIO);
    assert_int_equal(table_cache_get(f->links, UINT64_MAX - 100, &table), -EIO);
    /* A load that fails leaves nothing behind. */
    fault_arm(&(struct fault_plan){FAULT_PREADV, 1, false, EIO, 0});
    assert_int_equal(table_cache_get(f->links, 5 * TABLE, &table), -EIO);
    assert_null(table_cache_peek(f->links, 5 * TABLE));
    table = get(f->links, 5);
    assert_int_equal(table->data[0], 6);
    table_cache_put(f->links, table);
    return 0;
}

static int run_eviction(struct fixture *f)
{
    struct table *held = get(f->links, 0);

    for (unsigned i = 1; i < TABLES; i++)
        change(f->links, i, (uint8_t)(100 + i));
    assert_ptr_equal(table_cache_peek(f->links, 0), held); /* pinned: never evicted */
    table_cache_put(f->links, held);
    table_cache_put(f->links, held);
    assert_null(table_cache_peek(f->links, TABLE));
    assert_int_equal(table_cache_writeback(f->links), 0);
    for (unsigned i = 1; i < TABLES; i++) {
        struct table *table = get(f->counts, i); /* another cache sees what was written */

        assert_int_equal(table->data[7], 100 + i);
        table_cache_put(f->counts, table);
    }
    return 0;
}

/* Records from `from` on: which change or sync comes first after it. */
static size_t find(size_t from, enum record_kind kind, uint64_t offset)
{
    for (size_t i = from; i < recorder_count(); i++) {
        const struct record *r = recorder_get(i);

        if (r->kind == kind && (kind == RECORD_SYNC || r->change->offset == offset))
            return i;
    }
    return SIZE_MAX;
}

static int run_order(struct fixture *f)
{
    const uint64_t data_offset = 30 * TABLE;
    uint8_t byte = 0xdd;
    size_t data, counts, sync, links;

    change(f->links, 2, 0xaa); /* the link is dirty before the count is */
    assert_int_equal(block_write(f->file, &byte, 1, data_offset, 0), 0);
    change(f->counts, 1, 0xbb);
    assert_int_equal(table_cache_writeback(f->links), 0);
    data = find(0, RECORD_CHANGE, data_offset);
    counts = find(0, RECORD_CHANGE, 1 * TABLE);
    links = find(0, RECORD_CHANGE, 2 * TABLE);
    assert_true(data < recorder_count() && counts < recorder_count());
    sync = find(counts, RECORD_SYNC, 0);
    assert_true(data < sync && counts < sync && sync < links && links < recorder_count());
    assert_false(table_cache_is_dirty(f->links) || table_cache_is_dirty(f->counts));

    /* Nothing dirty: nothing written and nothing synced. */
    links = recorder_count();
    assert_int_equal(table_cache_writeback(f->links), 0);
    assert_int_equal(recorder_count(), links);
    return 0;
}

static int run_order_of_eviction(struct fixture *f)
{
    change(f->counts, 20, 0xbb);
    for (unsigned i = 0; i < 5; i++)
        change(f->links, i, 0xcc);
    assert_true(find(0, RECORD_CHANGE, 20 * TABLE) < find(0, RECORD_SYNC, 0));
    assert_true(find(0, RECORD_SYNC, 0) < find(0, RECORD_CHANGE, 0));
    assert_true(find(0, RECORD_CHANGE, 0) < recorder_count());
    return 0;
}

static int run_failures(struct fixture *f)
{
    change(f->links, 1, 0x11);
    change(f->links, 2, 0x22);
    change(f->counts, 3, 0x33);
    for (unsigned k = 1; k <= 3; k++) {
        fault_arm(&(struct fault_plan){FAULT_PWRITEV, k < 3 ? k : 2, true, ENOSPC, 0});
        assert_int_equal(table_cache_writeback(f->links), -ENOSPC);
        assert_true(table_cache_is_dirty(f->links));
    }
    fault_arm(&(struct fault_plan){0});
    assert_int_equal(table_cache_writeback(f->links), 0);
    assert_false(table_cache_is_dirty(f->links));
    /* When the sync fails nothing that comes after it may be written. */
    change(f->counts, 3, 0x44);
    change(f->links, 1, 0x55);
    fault_arm(&(struct fault_plan){FAULT_FDATASYNC, 1, false, EIO, 0});
    assert_int_equal(table_cache_writeback(f->links), -EIO);
    assert_true(table_cache_is_dirty(f->links));
    return 0;
}

static int run_new_and_drop(struct fixture *f)
{
    struct table *table;

    assert_int_equal(table_cache_get_new(f->links, 50 * TABLE, &table), 0);
    assert_int_equal(table->data[0], 0);
    assert_true(table_cache_is_dirty(f->links));
    table_cache_put(f->links, table);
    table_cache_drop(f->links, 50 * TABLE);
    assert_false(table_cache_is_dirty(f->links));
    assert_null(table_cache_peek(f->links, 50 * TABLE));
    table_cache_drop(f->links, 50 * TABLE);
    change(f->links, 7, 9);
    assert_int_equal(table_cache_get_new(f->links, 7 * TABLE, &table), 0);
    assert_int_equal(table->data[0], 0);
    table_cache_put(f->links, table);
    return 0;
}

static uint8_t on_disk(struct fixture *f, unsigned number)
{
    uint8_t byte;

    assert_int_equal(block_read(f->file, &byte, 1, number * TABLE), 0);
    return byte;
}

/* As change, while tables may be frozen. */
static void change_frozen(struct table_cache *cache, unsigned number, uint8_t byte)
{
    struct table *table;

    assert_int_equal(table_cache_get_for_change(cache, number * TABLE, &table), 0);
    memset(table->data, byte, TABLE);
    table_cache_mark_dirty(cache, table);
    table_cache_put(cache, table);
}

static int run_freezing(struct fixture *f)
{
    change(f->links, 1, 0x11);
    change(f->links, 2, 0x22);
    table_cache_freeze(f->links);
    assert_true(table_cache_is_frozen(f->links) && !table_cache_is_dirty(f->links));
    change_frozen(f->links, 2, 0x33);
    change_frozen(f->links, 2, 0x44);
    change_frozen(f->links, 3, 0x55);
    assert_int_equal(table_cache_settle(f->links), 0);
    assert_int_equal(table_cache_write_frozen(f->links), 0);
    assert_false(table_cache_is_frozen(f->links));
    /* What came later is dirty, and not on disk. */
    assert_int_equal(on_disk(f, 1), 0x11);
    assert_int_equal(on_disk(f, 2), 0x22);
    assert_int_equal(on_disk(f, 3), 4);
    table_cache_freeze(f->links);
    assert_int_equal(table_cache_write_frozen(f->links), 0);
    assert_int_equal(on_disk(f, 2), 0x44);
    assert_int_equal(on_disk(f, 3), 0x55);
    return 0;
}

/* More tables than there is room for: the frozen ones go, too, and are not written again. */
static int run_eviction_of_frozen(struct fixture *f)
{
    struct table *held[2] = {get(f->links, 10), get(f->links, 11)};
    size_t written;

    change(f->links, 1, 0x11);
    change(f->links, 2, 0x22);
    table_cache_freeze(f->links);
    change_frozen(f->links, 2, 0x33);
    table_cache_put(f->links, get(f->links, 12));
    table_cache_put(f->links, held[0]);
    table_cache_put(f->links, held[1]);
    assert_int_equal(on_disk(f, 1), 0x11);
    assert_int_equal(on_disk(f, 2), 0x33);
    written = recorder_count();
    assert_int_equal(table_cache_write_frozen(f->links), 0);
    assert_int_equal(recorder_count(), written);
    assert_false(table_cache_is_frozen(f->links) || table_cache_is_dirty(f->links));
    return 0;
}

static int run_thawing(struct fixture *f)
{
    change(f->links, 1, 0x11);
    change(f->links, 2, 0x22);
    table_cache_freeze(f->links);
    change_frozen(f->links, 2, 0x33);
    fault_arm(&(struct fault_plan){FAULT_PWRITEV, 1, true, EIO, 0});
    assert_int_equal(table_cache_write_frozen(f->links), -EIO);
    assert_int_equal(table_cache_writeback(f->links), -EIO);
    table_cache_thaw(f->links);
    fault_arm(&(struct fault_plan){0});
    assert_false(table_cache_is_frozen(f->links));
    change(f->links, 1, 0x44);
    assert_int_equal(table_cache_writeback(f->links), 0);
    assert_int_equal(on_disk(f, 1), 0x44);
    assert_int_equal(on_disk(f, 2), 0x33);
    return 0;
}

static void test_loading(void **state)
{
    play(run_loading);
}

static void test_eviction(void **state)
{
    play(run_eviction);
}

static void test_order(void **state)
{
    play(run_order);
}

static void test_order_of_eviction(void **state)
{
    play(run_order_of_eviction);
}

static void test_failures(void **state)
{
    play(run_failures);
}

static void test_freezing(void **state)
{
    play(run_freezing);
}

static void test_eviction_of_frozen(void **state)
{
    play(run_eviction_of_frozen);
}

static void test_thawing(void **state)
{
    play(run_thawing);
}

static void test_new_and_drop(void **state)
{
    play(run_new_and_drop);
}

/* Dropped when it was not used between two cleanings; not while it is dirty or pinned. */
static int cleaning(struct fixture *f)
{
    struct table *held;
    int64_t due;

    assert_false(reactor_next_timer(&due));
    table_cache_set_clean_interval(f->links, 10);
    assert_false(reactor_next_timer(&due)); /* nothing is cached */
    held = get(f->links, 1);
    table_cache_put(f->links, get(f->links, 2));
    change(f->links, 3, 0x33);
    assert_true(reactor_next_timer(&due));
    co_sleep(INT64_C(15) * 1000000000);
    assert_int_equal(table_cache_count(f->links), 3);
    table_cache_put(f->links, get(f->links, 2));
    co_sleep(INT64_C(10) * 1000000000);
    assert_int_equal(table_cache_count(f->links), 3);
    co_sleep(INT64_C(10) * 1000000000);
    assert_int_equal(table_cache_count(f->links), 2);
    assert_null(table_cache_peek(f->links, 2 * TABLE));
    table_cache_put(f->links, held);
    assert_int_equal(table_cache_writeback(f->links), 0);
    co_sleep(INT64_C(20) * 1000000000);
    assert_int_equal(table_cache_count(f->links), 0);
    assert_false(reactor_next_timer(&due));
    return 0;
}

static void drops_what_is_not_used(void **state)
{
    sim_clock_install();
    play_in(cleaning, true);
    sim_clock_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loading),  cmocka_unit_test(test_eviction),
        cmocka_unit_test(test_order),    cmocka_unit_test(test_order_of_eviction),
        cmocka_unit_test(test_failures), cmocka_unit_test(test_new_and_drop),
        cmocka_unit_test(test_freezing), cmocka_unit_test(test_eviction_of_frozen),
        cmocka_unit_test(test_thawing),  cmocka_unit_test(drops_what_is_not_used),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
