/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The simulators and injectors themselves: generator, engines, clock, faults, recorder.  The
 * simulated disk has its own file.
 */
#include "base/colock.h"
#include "base/coroutine.h"
#include "base/io.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "tests/support/fault.h"
#include "tests/support/recorder.h"
#include "tests/support/sim_clock.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_prng(void **state)
{
    struct prng a = prng_of(1), b = prng_of(1), c = prng_of(2);
    uint8_t bytes[19] = {0};
    unsigned hits = 0;

    for (int i = 0; i < 100; i++) {
        uint64_t n = prng_next(&a);

        assert_true(n == prng_next(&b) && n != prng_next(&c));
        assert_true(prng_below(&c, 10) < 10);
        hits += prng_percent(&c, 30);
    }
    assert_int_equal(prng_below(&a, 0), 0);
    assert_true(hits > 10 && hits < 60);
    prng_fill(&a, bytes, 18);
    assert_int_equal(bytes[18], 0);
}

static void test_directory(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "file");
    char *copy = strdup(dir);
    uint8_t *data;
    size_t size;

    test_file_write(path, "a\0b", 3);
    data = test_file_read(path, &size);
    assert_int_equal(size, 3);
    assert_memory_equal(data, "a\0b", 3);
    test_dir_remove(dir);
    assert_int_equal(access(copy, F_OK), -1);
    test_dir_remove(NULL);
    free(copy);
    free(path);
    free(data);
}

/* ---- Engines ---- */

#define WRITERS 30

struct order {
    const struct io_engine *engine;
    struct io_file file;
    unsigned next, done;
    unsigned finished[WRITERS]; /* numbers, as they finished */
};

static int order_one(void *arg)
{
    struct order *order = arg;
    unsigned i = order->next++;
    struct iovec iov = {.iov_base = &i, .iov_len = 1};
    int r = io_writev(&order->file, &iov, 1, i);

    order->finished[order->done++] = i;
    return r;
}

static int order_run(void *arg)
{
    struct order *order = arg;
    struct error error = {.text = ""};
    struct co_group group;
    int fd = sys->openat(AT_FDCWD, "/sim/order", O_RDWR, 0), r;

    assert_int_equal(io_file_init(&order->file, fd, false, order->engine, &error), 0);
    order->file.nowait_write = false;
    co_group_init(&group);
    for (unsigned i = 0; i < WRITERS; i++)
        co_group_start(&group, order_one, order);
    r = co_group_wait(&group);
    io_file_fini(&order->file);
    sys->close(fd);
    return r;
}

static struct order order_of(const struct io_engine *engine, uint64_t seed)
{
    struct order order = {.engine = engine};
    uint8_t *content;
    size_t size;

    sim_disk_install(&(struct sim_disk_config){.seed = seed});
    sim_disk_create("/sim/order", NULL, WRITERS);
    assert_int_equal(test_run(order_run, &order), 0);
    content = sim_disk_content("/sim/order", &size);
    for (unsigned i = 0; i < WRITERS; i++)
        assert_int_equal(content[i], i);
    free(content);
    sim_disk_remove();
    return order;
}

static void test_engine_order(void **state)
{
    struct order sync = order_of(&io_engine_sync, 1);
    struct order a = order_of(&io_engine_sim, 1), again = order_of(&io_engine_sim, 1);
    struct order b = order_of(&io_engine_sim, 2);

    for (unsigned i = 0; i < WRITERS; i++)
        assert_int_equal(sync.finished[i], i);
    assert_memory_equal(a.finished, again.finished, sizeof(a.finished));
    assert_memory_not_equal(a.finished, b.finished, sizeof(a.finished));
    assert_memory_not_equal(a.finished, sync.finished, sizeof(a.finished));
}

/* ---- Clock ---- */

#define HOUR INT64_C(3600000000000)

struct sleepers {
    unsigned count;
    int64_t slept[3];
    struct reactor_timer never;
};

static int sleep_long(void *arg)
{
    struct sleepers *s = arg;
    unsigned i = s->count++;
    int64_t start = sys->monotonic_ns();

    co_sleep(HOUR * (3 - (int64_t)i));
    s->slept[i] = sys->monotonic_ns() - start;
    return 0;
}

static int sleep_all(void *arg)
{
    int64_t start = sys->monotonic_ns(), wall = sys->realtime_ns();
    struct co_group group;
    int pipes[2];

    co_group_init(&group);
    for (int i = 0; i < 3; i++)
        co_group_start(&group, sleep_long, arg);
    co_group_wait(&group);
    assert_int_equal(sys->monotonic_ns() - start, 3 * HOUR);
    assert_int_equal(sys->realtime_ns() - wall, 3 * HOUR);

    /* What is ready is not overtaken by a time-out; what never comes is. */
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(co_wait_fd(pipes[0], REACTOR_READ, HOUR), -ETIMEDOUT);
    assert_int_equal(sys->monotonic_ns() - start, 4 * HOUR);
    assert_int_equal(write(pipes[1], "x", 1), 1);
    assert_int_equal(co_wait_fd(pipes[0], REACTOR_READ, HOUR), REACTOR_READ);
    assert_int_equal(sys->monotonic_ns() - start, 4 * HOUR);
    sim_clock_advance(5);
    assert_int_equal(sim_clock_now() - start, 4 * HOUR + 5);
    close(pipes[0]);
    close(pipes[1]);
    return 42;
}

static void test_clock(void **state)
{
    struct sleepers s = {.count = 0};

    sim_clock_install();
    assert_int_equal(sim_clock_run(sleep_all, &s), 42);
    assert_int_equal(s.slept[0], 3 * HOUR);
    assert_int_equal(s.slept[1], 2 * HOUR);
    assert_int_equal(s.slept[2], HOUR);
    sim_clock_remove();
    assert_ptr_equal(sys, &sys_posix);
}

/* ---- Faults ---- */

static void test_fault_files(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "file");
    struct iovec iov[2] = {{.iov_base = (char[]){"abc"}, .iov_len = 3},
                           {.iov_base = (char[]){"defg"}, .iov_len = 4}};
    struct stat st;
    int fd;

    fault_install();
    fault_arm(&(struct fault_plan){.calls = FAULT_OPENAT, .nth = 2, .error = EMFILE});
    fd = sys->openat(AT_FDCWD, path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_false(fault_fired());
    assert_int_equal(sys->openat(AT_FDCWD, path, O_RDONLY, 0), -EMFILE);
    assert_true(fault_fired());
    assert_int_equal(fault_count(), 2);
    assert_int_equal(sys->fstat(fd, &st), 0);
    assert_int_equal(fault_count(), 2);

    fault_arm(&(struct fault_plan){
        .calls = FAULT_FSTAT | FAULT_FDATASYNC, .nth = 2, .sticky = true, .error = EIO});
    assert_int_equal(sys->fdatasync(fd), 0);
    assert_int_equal(sys->fstat(fd, &st), -EIO);
    assert_int_equal(sys->fdatasync(fd), -EIO);

    fault_arm(&(struct fault_plan){.calls = FAULT_TRANSFER, .nth = 1});
    assert_int_equal(sys->pwritev(fd, iov, 2, 0, 0), 3);
    assert_int_equal(sys->pwritev(fd, iov, 2, 0, 0), 7);
    fault_arm(&(struct fault_plan){.calls = FAULT_TRANSFER, .nth = 1, .short_to = 5});
    assert_int_equal(sys->preadv(fd, iov, 2, 0, 0), 5);
    iov[0].iov_len = 1;
    fault_arm(&(struct fault_plan){.calls = FAULT_TRANSFER, .nth = 1});
    assert_int_equal(sys->preadv(fd, iov, 1, 0, 0), 1); /* one byte cannot be cut */
    assert_false(fault_fired());

    fault_arm(&(struct fault_plan){.calls = FAULT_UNLINKAT | FAULT_FTRUNCATE | FAULT_FALLOCATE |
                                            FAULT_LSEEK | FAULT_IOCTL | FAULT_LOCK,
                                   .nth = 1,
                                   .sticky = true,
                                   .error = EPERM});
    assert_int_equal(sys->unlinkat(AT_FDCWD, path, 0), -EPERM);
    assert_int_equal(sys->ftruncate(fd, 0), -EPERM);
    assert_int_equal(sys->fallocate(fd, 0, 0, 1), -EPERM);
    assert_int_equal(sys->lseek(fd, 0, SEEK_END), -EPERM);
    assert_int_equal(sys->ioctl(fd, 0, NULL), -EPERM);
    assert_int_equal(sys->fcntl_lock(fd, F_OFD_GETLK, NULL), -EPERM);
    assert_int_equal(fault_count(), 6);
    sys->close(fd);
    fault_remove();
    assert_ptr_equal(sys, &sys_posix);
    test_dir_remove(dir);
    free(path);
}

static void test_fault_sockets(void **state)
{
    char text[] = "hello", back[8];
    struct iovec out = {.iov_base = text, .iov_len = 5}, in = {.iov_base = back, .iov_len = 8};
    struct msghdr send = {.msg_iov = &out, .msg_iovlen = 1},
                  recv = {.msg_iov = &in, .msg_iovlen = 1};
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    fault_install();
    fault_arm(&(struct fault_plan){.calls = FAULT_SENDMSG, .nth = 1, .short_to = 4});
    assert_int_equal(sys->sendmsg(pair[0], &send, 0), 4);
    assert_int_equal(out.iov_len, 5);
    fault_arm(&(struct fault_plan){.calls = FAULT_NET, .nth = 2, .error = EINTR});
    assert_int_equal(sys->sendmsg(pair[0], &send, 0), 5);
    assert_int_equal(sys->recvmsg(pair[1], &recv, 0), -EINTR);
    fault_arm(&(struct fault_plan){.calls = FAULT_RECVMSG, .nth = 1, .short_to = 3});
    assert_int_equal(sys->recvmsg(pair[1], &recv, 0), 3);
    assert_memory_equal(back, "hel", 3);
    assert_ptr_equal(recv.msg_iov, &in);
    assert_int_equal(in.iov_len, 8);
    assert_int_equal(sys->recvmsg(pair[1], &recv, 0), 6);
    assert_memory_equal(back, "lhello", 6);
    fault_remove();
    close(pair[0]);
    close(pair[1]);
}

/* ---- Recorder ---- */

static int record_some(void *arg)
{
    char *path = arg;
    struct io_file file;
    struct error error = {.text = ""};
    struct iovec iov[2] = {{.iov_base = (char[]){"ab"}, .iov_len = 2},
                           {.iov_base = (char[]){"cd"}, .iov_len = 2}};
    int fd = sys->openat(AT_FDCWD, path, O_RDWR, 0);

    assert_int_equal(io_file_init(&file, fd, false, NULL, &error), 0);
    assert_ptr_equal(file.engine, &io_engine_threads);
    assert_int_equal(io_writev(&file, iov, 2, 2), 0);
    recorder_mark(1);
    assert_int_equal(io_fdatasync(&file), 0);
    assert_int_equal(io_writev(&file, iov, 1, 8), 0);
    assert_int_equal(io_fallocate(&file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 3), 0);
    assert_int_equal(sys->ftruncate(fd, 5), 0);
    recorder_mark(2);
    io_file_fini(&file);
    sys->close(fd);
    return 0;
}

static void expect_rebuilt(size_t count, const char *bytes, size_t size)
{
    struct content content = {.data = NULL};

    recorder_rebuild(&content, 0, count, 0);
    assert_int_equal(content.size, size);
    assert_memory_equal(content.data, bytes, size);
    content_fini(&content);
}

/* After every number of dropped changes the flushed bytes are there. Counts how often all were
 * lost. */
static void check_drops(const char *path, size_t count)
{
    unsigned nothing_left = 0, all_left = 0;
    size_t size;

    for (uint64_t seed = 1; seed <= 60; seed++) {
        uint8_t *left;

        recorder_rebuild_to(path, 0, count, seed);
        left = test_file_read(path, &size);
        assert_true(size == 8 || size == 10 || size == 5);
        assert_true(left[3] == 'b' && left[4] == 'c');
        nothing_left += size == 8 && memcmp(left, "01abcd67", 8) == 0;
        all_left += size == 5 && memcmp(left, "\0\0\0bc", 5) == 0;
        free(left);
    }
    assert_true(nothing_left > 0 && nothing_left < 60 && all_left > 0 && all_left < 60);
}

static void test_recorder(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "file"), *copy = test_path(dir, "copy");
    const struct record *record;

    test_file_write(path, "01234567", 8);
    recorder_install();
    assert_int_equal(recorder_file(path), -ENOENT);
    assert_int_equal(test_run(record_some, path), 0);
    assert_int_equal(recorder_file(path), 0);
    assert_int_equal(recorder_count(), 7);
    record = recorder_get(0);
    assert_int_equal(record->kind, RECORD_CHANGE);
    assert_int_equal(record->change->kind, CHANGE_WRITE);
    assert_int_equal(record->change->offset, 2);
    assert_memory_equal(record->change->data, "abcd", 4);
    assert_int_equal(recorder_get(1)->kind, RECORD_MARK);
    assert_int_equal(recorder_get(1)->mark, 1);
    assert_int_equal(recorder_get(2)->kind, RECORD_SYNC);
    assert_int_equal(recorder_get(6)->mark, 2);
    assert_null(recorder_get(7));

    expect_rebuilt(0, "01234567", 8);
    expect_rebuilt(1, "01abcd67", 8);
    expect_rebuilt(3, "01abcd67", 8);
    expect_rebuilt(4, "01abcd67ab", 10);
    expect_rebuilt(5, "\0\0\0bcd67ab", 10);
    expect_rebuilt(6, "\0\0\0bc", 5);
    expect_rebuilt(7, "\0\0\0bc", 5);
    check_drops(copy, 7);
    recorder_remove();
    assert_ptr_equal(sys, &sys_posix);
    test_dir_remove(dir);
    free(path);
    free(copy);
}

#define RECORDED_WRITES 100

struct recorded {
    struct io_file file;
    unsigned next;
};

static int record_one(void *arg)
{
    struct recorded *recorded = arg;
    unsigned i = recorded->next++;
    uint8_t byte[100];
    struct iovec iov = {.iov_base = byte, .iov_len = sizeof(byte)};
    int r;

    memset(byte, (int)i, sizeof(byte));
    r = io_writev(&recorded->file, &iov, 1, i * sizeof(byte) / 2);
    recorder_mark(i);
    return r;
}

static int record_many(void *arg)
{
    struct recorded recorded = {.next = 0};
    struct error error = {.text = ""};
    struct co_group group;
    int fd = sys->openat(AT_FDCWD, arg, O_RDWR | O_CREAT, 0600), r;

    assert_int_equal(io_file_init(&recorded.file, fd, false, &io_engine_threads, &error), 0);
    recorded.file.nowait_write = false;
    co_group_init(&group);
    for (unsigned i = 0; i < RECORDED_WRITES; i++)
        co_group_start(&group, record_one, &recorded);
    r = co_group_wait(&group);
    io_file_fini(&recorded.file);
    sys->close(fd);
    return r;
}

/* Overlapping writes from many threads: the order in the record is the one in the file. */
static void test_recorder_threads(void **state)
{
    char *dir = test_dir_make(), *path = test_path(dir, "file");
    struct content content = {.data = NULL};
    uint8_t *data;
    size_t size;

    recorder_install();
    assert_int_equal(test_run(record_many, path), 0);
    assert_int_equal(recorder_count(), 2 * RECORDED_WRITES);
    data = test_file_read(path, &size);
    recorder_rebuild(&content, 0, recorder_count(), 0);
    assert_int_equal(content.size, size);
    assert_memory_equal(content.data, data, size);
    content_fini(&content);
    recorder_remove();
    test_dir_remove(dir);
    free(path);
    free(data);
}

/* The three on top of each other. */
static void test_stack(void **state)
{
    struct content content = {.data = NULL};
    struct iovec iov = {.iov_base = (char[]){"xyz"}, .iov_len = 3};
    int fd;

    sim_disk_install(&(struct sim_disk_config){.seed = 1});
    recorder_install();
    fault_install();
    sim_disk_create("/sim/a", "12345", 5);
    fd = sys->openat(AT_FDCWD, "/sim/a", O_RDWR, 0);
    fault_arm(&(struct fault_plan){.calls = FAULT_PWRITEV, .nth = 1, .error = EIO});
    assert_int_equal(sys->pwritev(fd, &iov, 1, 0, 0), -EIO);
    assert_int_equal(recorder_count(), 0);
    assert_int_equal(sys->pwritev(fd, &iov, 1, 4, 0), 3);
    assert_int_equal(recorder_count(), 1);
    recorder_rebuild(&content, (unsigned)recorder_file("/sim/a"), 1, 0);
    assert_int_equal(content.size, 7);
    assert_memory_equal(content.data, "1234xyz", 7);
    content_fini(&content);
    sys->close(fd);
    fault_remove();
    recorder_remove();
    sim_disk_remove();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prng),         cmocka_unit_test(test_directory),
        cmocka_unit_test(test_engine_order), cmocka_unit_test(test_clock),
        cmocka_unit_test(test_fault_files),  cmocka_unit_test(test_fault_sockets),
        cmocka_unit_test(test_recorder),     cmocka_unit_test(test_recorder_threads),
        cmocka_unit_test(test_stack),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
