/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is decided before an engine is asked: what goes to the page cache without waiting, and which
 * engine a file gets.
 */
#include "base/io.h"
#include "base/iov.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "tests/support/fault.h"
#include "tests/support/io_fixture.h"
#include "tests/support/sim_clock.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static int setup(void **state)
{
    static struct io_fixture fixture;

    io_fixture_init(&fixture, &io_engine_sync);
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

/* Not in a coroutine, and on the simulated disk: everything is in its page cache. */
static void test_nowait(void **state)
{
    struct io_fixture *f = *state;
    struct error error = {.text = ""};
    struct iovec iov[IO_FIXTURE_VECTORS];
    uint8_t *data = malloc(8192);
    int fd;

    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    fault_install();
    sim_disk_create("/sim/disk", f->model, f->size);
    fd = sys->openat(AT_FDCWD, "/sim/disk", O_RDWR, 0);
    assert_int_equal(reactor_init(&error), 0);
    assert_int_equal(io_file_init(&f->file, fd, false, &io_engine_sync, &error), 0);

    assert_int_equal(io_readv_nowait(&f->file, iov, io_fixture_cut(f, iov, data, 8192), 4095),
                     8192);
    assert_memory_equal(data, f->model + 4095, 8192);
    assert_int_equal(io_readv_nowait(&f->file, iov, 0, 0), 0);
    iov[0] = (struct iovec){.iov_base = data, .iov_len = 8192};
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, f->size - 8191), -EAGAIN);
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, UINT64_MAX), -EINVAL);

    fault_arm(&(struct fault_plan){.calls = FAULT_PREADV, .nth = 1, .short_to = 5});
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, 3), 8192);
    assert_memory_equal(data, f->model + 3, 8192);
    fault_arm(&(struct fault_plan){.calls = FAULT_PREADV, .nth = 1, .error = EINTR});
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, 0), 8192);
    fault_arm(&(struct fault_plan){.calls = FAULT_PREADV, .nth = 1, .error = EIO});
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, 0), -EIO);
    fault_arm(&(struct fault_plan){.calls = FAULT_PREADV, .nth = 1, .error = EAGAIN});
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, 0), -EAGAIN);
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, 0), 8192);

    /* A file system that refuses is not asked again. */
    fault_arm(&(struct fault_plan){.calls = FAULT_PREADV, .nth = 1, .error = EOPNOTSUPP});
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, 0), -EAGAIN);
    assert_int_equal(io_readv_nowait(&f->file, iov, 1, 0), -EAGAIN);
    assert_int_equal(fault_count(), 1);

    io_file_fini(&f->file);
    sys->close(fd);
    reactor_fini();
    fault_remove();
    sim_disk_remove();
    free(data);
}

/* An engine that counts, and a disk whose writes take as long as the test says. */
static struct counting {
    unsigned starts, stops, submits;
    int start_result;
    int64_t write_ns;
    int nowait_result;
} counting;

static int counting_start(struct error *error)
{
    counting.starts++;
    return counting.start_result < 0 ? counting.start_result : io_engine_sync.start(error);
}

static void counting_stop(void)
{
    counting.stops++;
    io_engine_sync.stop();
}

static void counting_submit(struct io_op *op)
{
    counting.submits++;
    io_engine_sync.submit(op);
}

static const struct io_engine counting_engine = {
    .name = "counting", .start = counting_start, .stop = counting_stop, .submit = counting_submit};

static ssize_t slow_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags)
{
    if (flags & RWF_NOWAIT)
        return counting.nowait_result < 0 ? counting.nowait_result
                                          : (ssize_t)iov_length(iov, iovcnt);
    sim_clock_advance(counting.write_ns);
    return sys_posix.pwritev(fd, iov, iovcnt, offset, flags);
}

/* Whether a write of so many bytes goes to the engine. */
static bool goes_to_engine(struct io_fixture *f, size_t offset, size_t length)
{
    unsigned before = counting.submits;

    assert_int_equal(io_fixture_write(f, offset, length), 0);
    return counting.submits > before;
}

static int writes_in_place(void *arg)
{
    struct io_fixture *f = arg;

    /* The file system refuses RWF_NOWAIT: whole pages only, up to 256 KiB. */
    assert_false(goes_to_engine(f, 0, 4096));
    assert_false(goes_to_engine(f, 4096, 262144));
    assert_true(goes_to_engine(f, 0, 262144 + 4096));
    assert_true(goes_to_engine(f, 1, 4096));
    assert_true(goes_to_engine(f, 0, 4095));
    /* One that takes a millisecond is still quick; a slower one sends the next to the engine. */
    counting.write_ns = 1000000;
    assert_false(goes_to_engine(f, 0, 4096));
    assert_false(goes_to_engine(f, 0, 4096));
    counting.write_ns = 1000001;
    assert_false(goes_to_engine(f, 0, 4096));
    counting.write_ns = 0;
    assert_true(goes_to_engine(f, 0, 4096));
    sim_clock_advance(99999999);
    assert_true(goes_to_engine(f, 0, 4096));
    sim_clock_advance(1);
    assert_false(goes_to_engine(f, 0, 4096));
    return 0;
}

static int writes_with_nowait(void *arg)
{
    struct io_fixture *f = arg;

    counting.nowait_result = 0;
    assert_false(goes_to_engine(f, 1, 4097));
    assert_true(goes_to_engine(f, 0, 262144 + 1));
    counting.nowait_result = -EAGAIN;
    assert_true(goes_to_engine(f, 1, 4097));
    assert_true(goes_to_engine(f, 0, 4096));
    return 0;
}

static int writes_direct(void *arg)
{
    struct io_fixture *f = arg;
    void *data = aligned_alloc(4096, 4096);
    struct iovec iov = {.iov_base = data, .iov_len = 4096};

    memset(data, 1, 4096);
    assert_int_equal(io_writev(&f->file, &iov, 1, 0), 0);
    assert_int_equal(counting.submits, 1);
    assert_int_equal(io_readv(&f->file, &iov, 1, 0), 4096);
    assert_int_equal(counting.submits, 2);
    free(data);
    return 0;
}

static int run_slow(struct io_fixture *f, int flags, int nowait_result, int (*fn)(void *arg))
{
    struct sys table = sys_posix;
    int r;

    table.pwritev = slow_pwritev;
    sys = &table;
    sim_clock_install();
    counting = (struct counting){.nowait_result = nowait_result};
    f->engine = &counting_engine;
    r = io_fixture_run(f, flags, fn);
    sim_clock_remove();
    sys = &sys_posix;
    return r;
}

static void test_writes_in_place(void **state)
{
    check_result(run_slow(*state, 0, -EOPNOTSUPP, writes_in_place));
    assert_true(io_fixture_matches(*state));
}

static void test_writes_with_nowait(void **state)
{
    check_result(run_slow(*state, 0, 0, writes_with_nowait));
}

static void test_writes_direct(void **state)
{
    check_result(run_slow(*state, O_DIRECT, 0, writes_direct));
}

/* A write that moves nothing must not go on for ever. */
static ssize_t idle_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset, int flags)
{
    return 0;
}

static int write_nothing(void *arg)
{
    assert_int_equal(io_fixture_write(arg, 0, 4096), -EIO);
    return 0;
}

static void test_write_without_progress(void **state)
{
    struct io_fixture *f = *state;
    struct sys table = sys_posix;

    table.pwritev = idle_pwritev;
    sys = &table;
    f->engine = &io_engine_sync;
    assert_int_equal(io_fixture_run(f, 0, write_nothing), 0);
    sys = &sys_posix;
}

static void test_engine_lifetime(void **state)
{
    struct io_fixture *f = *state;
    struct io_file a, b;
    struct error error = {.text = ""};

    counting = (struct counting){.start_result = -EPERM};
    assert_int_equal(reactor_init(&error), 0);
    assert_int_equal(io_file_init(&a, f->fd, false, &counting_engine, &error), -EPERM);
    io_file_fini(&a);
    assert_int_equal(counting.stops, 0);
    counting = (struct counting){.start_result = 0};
    assert_int_equal(io_file_init(&a, f->fd, false, &counting_engine, &error), 0);
    assert_int_equal(io_file_init(&b, f->fd, true, &counting_engine, &error), 0);
    assert_int_equal(counting.starts, 1);
    assert_true(a.nowait_read && !b.nowait_read && b.direct);
    io_file_fini(&a);
    io_file_fini(&a);
    assert_int_equal(counting.stops, 0);
    io_file_fini(&b);
    assert_int_equal(counting.stops, 1);
    assert_int_equal(io_file_init(&a, f->fd, false, &counting_engine, &error), 0);
    assert_int_equal(counting.starts, 2);
    io_file_fini(&a);
    assert_int_equal(counting.stops, 2);
    reactor_fini();
}

/* With anything behind the seam, io_uring, which goes around it, is not chosen. */
static void test_default_engine(void **state)
{
    struct io_fixture *f = *state;
    struct error error = {.text = ""};
    struct io_file uring;
    bool have_uring;

    assert_int_equal(reactor_init(&error), 0);
    have_uring = io_file_init(&uring, f->fd, false, &io_engine_uring, &error) == 0;
    io_file_fini(&uring);
    if (!have_uring)
        assert_string_not_equal(error.text, "");
    f->engine = NULL;
    assert_int_equal(io_fixture_open(f, 0), 0);
    assert_ptr_equal(f->file.engine, have_uring ? &io_engine_uring : &io_engine_threads);
    io_fixture_close(f);
    fault_install();
    assert_int_equal(io_fixture_open(f, 0), 0);
    assert_ptr_equal(f->file.engine, &io_engine_threads);
    io_fixture_close(f);
    fault_remove();
    reactor_fini();
}

/* Makes io_uring_setup fail in this process, as the rules of containers do. */
static int forbid_uring(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = ARRAY_SIZE(filter), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
}

enum { CHILD_FINE, CHILD_CANNOT_FORBID, CHILD_WRONG };

static int some_transfers(void *arg)
{
    int r = io_fixture_write(arg, 1, 4096);

    return r < 0 ? r : io_fixture_read(arg, 0, IO_FIXTURE_SIZE);
}

static int without_uring(struct io_fixture *f)
{
    struct error error = {.text = ""};

    if (forbid_uring() < 0)
        return CHILD_CANNOT_FORBID;
    if (reactor_init(&error) < 0)
        return CHILD_WRONG;
    f->engine = &io_engine_uring;
    if (io_fixture_open(f, 0) != -ENOSYS)
        return CHILD_WRONG;
    f->engine = NULL;
    if (io_fixture_open(f, 0) != 0 || f->file.engine != &io_engine_threads)
        return CHILD_WRONG;
    if (reactor_run_coroutine(some_transfers, f) != 0)
        return CHILD_WRONG;
    io_fixture_close(f);
    reactor_fini();
    return CHILD_FINE;
}

static void test_uring_forbidden(void **state)
{
    pid_t child = fork();
    int status;

    assert_true(child >= 0);
    if (child == 0)
        _exit(without_uring(*state));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CHILD_CANNOT_FORBID)
        test_skip("io_uring cannot be forbidden to a process here");
    assert_int_equal(WEXITSTATUS(status), CHILD_FINE);
}

static int write_to_engine(void *arg)
{
    return io_fixture_write(arg, 1, 300001);
}

/* A ring belongs to the process that made it: in a child, operations fail instead of hanging. */
static void test_uring_after_fork(void **state)
{
    struct io_fixture *f = *state;
    struct error error = {.text = ""};
    pid_t child;
    int status;

    f->engine = &io_engine_uring;
    assert_int_equal(reactor_init(&error), 0);
    if (io_fixture_open(f, 0) < 0) {
        reactor_fini();
        test_skip("io_uring is not to be had here");
    }
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60); /* if it hangs */
        status = reactor_run_coroutine(write_to_engine, f);
        /* Before Linux 6.0 nobody minds; since, it is refused for good. */
        _exit(reactor_run_coroutine(write_to_engine, f) == status ? CHILD_FINE : CHILD_WRONG);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), CHILD_FINE);
    assert_int_equal(reactor_run_coroutine(write_to_engine, f), 0);
    assert_true(io_fixture_matches(f));
    io_fixture_close(f);
    reactor_fini();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nowait, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writes_in_place, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writes_with_nowait, setup, teardown),
        cmocka_unit_test_setup_teardown(test_writes_direct, setup, teardown),
        cmocka_unit_test_setup_teardown(test_write_without_progress, setup, teardown),
        cmocka_unit_test_setup_teardown(test_engine_lifetime, setup, teardown),
        cmocka_unit_test_setup_teardown(test_default_engine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_uring_forbidden, setup, teardown),
        cmocka_unit_test_setup_teardown(test_uring_after_fork, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
