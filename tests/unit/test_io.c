/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * File I/O on every engine: threads, io_uring, and the two of the tests.  The faults are put into
 * the calls of the seam; io_uring goes around it, so there they meet what is tried without the
 * engine.
 */
#include "base/colock.h"
#include "base/io.h"
#include "base/reactor.h"
#include "tests/support/fault.h"
#include "tests/support/io_fixture.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int setup(void **state)
{
    static struct io_fixture fixture;

    io_fixture_init(&fixture, *state);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    io_fixture_fini(*state);
    return 0;
}

/* Skips where the engine, or O_DIRECT, is not to be had. */
static void check_result(int r)
{
    if (r == -ENOSYS || r == -EINVAL)
        test_skip("the engine or O_DIRECT is not to be had here: %s", strerror(-r));
    assert_int_equal(r, 0);
}

static void run(struct io_fixture *f, int flags, int (*fn)(void *arg))
{
    check_result(io_fixture_run(f, flags, fn));
}

static int random_transfers(void *arg)
{
    struct io_fixture *f = arg;

    for (int i = 0; i < 200; i++) {
        size_t align = prng_percent(&f->prng, 50) ? 4096 : 1;
        size_t offset = align_down(prng_below(&f->prng, f->size), align);
        size_t length = align_down(prng_below(&f->prng, min_u64(f->size - offset, 300000)), align);

        assert_int_equal(io_fixture_write(f, offset, length), 0);
        assert_int_equal(io_fixture_read(f, offset / 2, length), 0);
    }
    assert_int_equal(io_fdatasync(&f->file), 0);
    return 0;
}

static void test_random_transfers(void **state)
{
    run(*state, 0, random_transfers);
    assert_true(io_fixture_matches(*state));
}

static int end_of_file(void *arg)
{
    struct io_fixture *f = arg;
    uint8_t byte;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};

    assert_int_equal(io_fixture_read(f, f->size - 1000, 5000), 0);
    assert_int_equal(io_fixture_read(f, f->size - 1000, 1000), 0);
    assert_int_equal(io_readv(&f->file, &iov, 1, f->size), 0);
    assert_int_equal(io_readv(&f->file, &iov, 1, f->size + 12345678), 0);
    assert_int_equal(io_readv(&f->file, &iov, 1, OFFSET_MAX), -EINVAL);
    assert_int_equal(io_readv(&f->file, &iov, 1, UINT64_MAX), -EINVAL);
    assert_int_equal(io_writev(&f->file, &iov, 1, UINT64_MAX), -EINVAL);
    assert_int_equal(io_fallocate(&f->file, 0, UINT64_MAX, 2), -EINVAL);
    iov.iov_len = 0;
    assert_int_equal(io_readv(&f->file, &iov, 1, 0), 0);
    assert_int_equal(io_readv(&f->file, NULL, 0, 0), 0);
    assert_int_equal(io_writev(&f->file, NULL, 0, 0), 0);
    return 0;
}

static void test_end_of_file(void **state)
{
    struct io_fixture *f = *state;

    io_fixture_truncate(f, f->size - 777);
    run(f, 0, end_of_file);
}

/* Far more operations at once than the ring and the worker pool take. */
#define CROWD 1500
#define CROWD_PIECE 500

struct crowd_member {
    struct io_fixture *f;
    size_t offset;
};

static int crowd_member_run(void *arg)
{
    struct crowd_member *member = arg;
    uint8_t piece[CROWD_PIECE], back[CROWD_PIECE];
    struct iovec iov = {.iov_base = piece, .iov_len = CROWD_PIECE};
    int r;

    memset(piece, (int)(member->offset / CROWD_PIECE), sizeof(piece));
    r = io_writev(&member->f->file, &iov, 1, member->offset);
    if (r < 0)
        return r;
    iov.iov_base = back;
    assert_int_equal(io_readv(&member->f->file, &iov, 1, member->offset), CROWD_PIECE);
    assert_memory_equal(back, piece, CROWD_PIECE);
    memcpy(member->f->model + member->offset, piece, CROWD_PIECE);
    return io_fdatasync(&member->f->file);
}

static int crowd(void *arg)
{
    struct crowd_member *members = calloc(CROWD, sizeof(*members));
    struct co_group group;
    int r;

    co_group_init(&group);
    for (size_t i = 0; i < CROWD; i++) {
        members[i] = (struct crowd_member){.f = arg, .offset = i * CROWD_PIECE};
        co_group_start(&group, crowd_member_run, &members[i]);
    }
    r = co_group_wait(&group);
    free(members);
    return r;
}

static void test_crowd(void **state)
{
    run(*state, 0, crowd);
    assert_true(io_fixture_matches(*state));
}

static int allocate(void *arg)
{
    struct io_fixture *f = arg;
    int r = io_fallocate(&f->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 100000);

    if (r == -EOPNOTSUPP)
        print_message("the file system of %s cannot punch holes\n", f->path);
    else
        memset(f->model + 8192, 0, 100000);
    assert_true(r == 0 || r == -EOPNOTSUPP);
    assert_int_equal(io_fixture_read(f, 0, 200000), 0);
    assert_int_equal(io_fallocate(&f->file, FALLOC_FL_PUNCH_HOLE, 0, 4096), -EOPNOTSUPP);
    return 0;
}

static void test_fallocate(void **state)
{
    run(*state, 0, allocate);
    assert_true(io_fixture_matches(*state));
}

/* What is wrong with the descriptor comes back from every call. */
static int closed_descriptor(void *arg)
{
    struct io_fixture *f = arg;
    int good = f->file.fd;

    f->file.fd = open(f->path, O_PATH | O_CLOEXEC);
    assert_int_equal(io_fixture_read(f, 0, 100), -EBADF);
    assert_int_equal(io_fixture_write(f, 0, 100), -EBADF);
    assert_int_equal(io_fixture_write(f, 0, 4096), -EBADF);
    assert_int_equal(io_fdatasync(&f->file), -EBADF);
    assert_int_equal(io_fallocate(&f->file, 0, 0, 4096), -EBADF);
    close(f->file.fd);
    f->file.fd = good;
    return 0;
}

static void test_errors(void **state)
{
    run(*state, 0, closed_descriptor);
    assert_true(io_fixture_matches(*state));
}

static int direct_transfers(void *arg)
{
    struct io_fixture *f = arg;
    uint8_t *data = aligned_alloc(4096, 65536);
    struct iovec iov[2] = {{.iov_base = data, .iov_len = 4096},
                           {.iov_base = data + 4096, .iov_len = 61440}};

    memset(data, 0x5a, 65536);
    assert_int_equal(io_writev(&f->file, iov, 2, 131072), 0);
    memset(f->model + 131072, 0x5a, 65536);
    /* The file ends inside a sector; the read must not go on from there, where O_DIRECT refuses. */
    assert_int_equal(io_readv(&f->file, iov, 2, align_down(f->size, 4096) - 8192),
                     8192 + f->size % 4096);
    assert_memory_equal(data, f->model + align_down(f->size, 4096) - 8192, 8192 + f->size % 4096);
    free(data);
    return 0;
}

static void test_direct(void **state)
{
    struct io_fixture *f = *state;

    io_fixture_truncate(f, f->size - 777);
    run(f, O_DIRECT, direct_transfers);
    assert_true(io_fixture_matches(f));
}

/* One of everything; returns the first error. */
static int one_of_each(void *arg)
{
    struct io_fixture *f = arg;
    int r;

    if ((r = io_fixture_write(f, 1001, 5003)) < 0 || (r = io_fixture_write(f, 8192, 65536)) < 0 ||
        (r = io_fdatasync(&f->file)) < 0 || (r = io_fixture_read(f, 500, 70001)) < 0 ||
        (r = io_fallocate(&f->file, FALLOC_FL_KEEP_SIZE, 0, 4096)) < 0 ||
        (r = io_fixture_read(f, f->size - 50, 100)) < 0)
        return r;
    return 0;
}

/* Runs one_of_each with the plan for its 1st, 2nd, ... call until no call is left. */
static void hit_each(struct io_fixture *f, struct fault_plan plan)
{
    bool harmless = plan.error == 0 || plan.error == EINTR || plan.error == EAGAIN;
    struct error error = {.text = ""};
    bool fired;
    int r;

    fault_install();
    plan.nth = 0;
    do {
        plan.nth++;
        assert_int_equal(reactor_init(&error), 0);
        r = io_fixture_open(f, 0);
        fault_arm(&plan);
        if (r == 0) {
            r = reactor_run_coroutine(one_of_each, f);
            io_fixture_close(f);
        }
        fired = fault_fired();
        reactor_fini();
        if (r != -ENOSYS)
            assert_int_equal(r, fired && !harmless ? -plan.error : 0);
    } while (fired);
    fault_remove();
    if (r == -ENOSYS)
        test_skip("the engine is not to be had here");
    assert_true(plan.nth > 2);
    assert_true(io_fixture_matches(f));
}

static void test_interrupted_each(void **state)
{
    hit_each(*state, (struct fault_plan){.calls = FAULT_FILE, .error = EINTR});
}

static void test_short_each(void **state)
{
    hit_each(*state, (struct fault_plan){.calls = FAULT_TRANSFER});
    hit_each(*state, (struct fault_plan){.calls = FAULT_TRANSFER, .short_to = 1});
    hit_each(*state, (struct fault_plan){.calls = FAULT_TRANSFER, .short_to = 4096});
}

static void test_error_each(void **state)
{
    hit_each(*state, (struct fault_plan){.calls = FAULT_FILE, .error = EIO});
    hit_each(*state, (struct fault_plan){.calls = FAULT_PWRITEV, .error = ENOSPC});
}

static void test_would_wait_each(void **state)
{
    hit_each(*state, (struct fault_plan){.calls = FAULT_TRANSFER, .error = EAGAIN});
}

#define ON(engine, name)                                                                           \
    {                                                                                              \
#name " on " #engine, test_##name, setup, teardown, (void *)(uintptr_t)&io_engine_##engine \
    }
#define ON_EACH(name) ON(threads, name), ON(uring, name), ON(sync, name), ON(sim, name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_EACH(random_transfers), ON_EACH(end_of_file),     ON_EACH(crowd),
        ON_EACH(fallocate),        ON_EACH(errors),          ON_EACH(direct),
        ON_EACH(interrupted_each), ON_EACH(short_each),      ON_EACH(error_each),
        ON(sync, would_wait_each), ON(sim, would_wait_each),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
