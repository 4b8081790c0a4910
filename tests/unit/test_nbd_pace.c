/* SPDX-License-Identifier: BSD-3-Clause */
/* Shares of time. */
#include "nbd/pace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>

#include <cmocka.h>

#define MS INT64_C(1000000)

/* How much work of `step` is done between `from` and `to` by somebody who always has some. */
static int64_t work_done(struct nbd_pace *pace, int64_t from, int64_t to, int64_t step)
{
    int64_t now = from, done = 0;

    while (now < to) {
        int64_t wait = nbd_pace_wait(pace, now);

        now += wait;
        if (wait > 0)
            continue;
        now += step;
        nbd_pace_spend(pace, step);
        done += step;
    }
    return done;
}

static void test_share(void **state)
{
    struct nbd_pace pace = nbd_pace_of(5, 10 * MS, 7 * MS);
    int64_t done;

    assert_int_equal(nbd_pace_wait(&pace, 7 * MS), 0);
    /* At first what was saved up, and its share of the time. */
    done = work_done(&pace, 7 * MS, 1007 * MS, MS / 4);
    assert_in_range(done, 205 * MS, 212 * MS);
    done = work_done(&pace, 1007 * MS, 11007 * MS, MS);
    assert_in_range(done, 1995 * MS, 2005 * MS);
}

static void test_burst(void **state)
{
    struct nbd_pace pace = nbd_pace_of(5, 10 * MS, 0);
    int64_t wait;

    /* However long nothing was done. */
    assert_int_equal(nbd_pace_wait(&pace, INT64_MAX / 2), 0);
    nbd_pace_spend(&pace, 10 * MS);
    wait = nbd_pace_wait(&pace, INT64_MAX / 2);
    assert_in_range(wait, 1, 10);
    nbd_pace_spend(&pace, 20 * MS);
    wait = nbd_pace_wait(&pace, INT64_MAX / 2);
    assert_in_range(wait, 100 * MS, 100 * MS + 10);
    assert_int_equal(nbd_pace_wait(&pace, INT64_MAX / 2 + wait), 0);
}

/* Asked often, nothing is lost by rounding. */
static void test_small_steps(void **state)
{
    struct nbd_pace pace = nbd_pace_of(5, 100, 0);

    nbd_pace_spend(&pace, 120);
    for (int64_t now = 1; now < 100; now++)
        assert_true(nbd_pace_wait(&pace, now) > 0);
    assert_int_equal(nbd_pace_wait(&pace, 105), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_burst),
        cmocka_unit_test(test_small_steps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
