/* SPDX-License-Identifier: BSD-3-Clause */
/* The simulated disk: it behaves as a file system does, by chance badly, and loses power as told.
 */
#include "base/colock.h"
#include "base/coroutine.h"
#include "base/io.h"
#include "base/sys.h"
#include "tests/support/fault.h"
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

#define PATH "/sim/disk"
#define SECTOR 512

static int setup(void **state)
{
    sim_disk_install(&(struct sim_disk_config){.seed = test_seed()});
    return 0;
}

static int teardown(void **state)
{
    sim_disk_remove();
    assert_ptr_equal(sys, &sys_posix);
    return 0;
}

static int sim_open(const char *path, int flags)
{
    return sys->openat(AT_FDCWD, path, flags, 0600);
}

static ssize_t put(int fd, const void *data, size_t length, uint64_t offset)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};

    return sys->pwritev(fd, &iov, 1, offset, 0);
}

static ssize_t get(int fd, void *data, size_t length, uint64_t offset)
{
    struct iovec iov = {.iov_base = data, .iov_len = length};

    return sys->preadv(fd, &iov, 1, offset, 0);
}

static void test_names(void **state)
{
    struct stat a, b;
    int fd, other, file;

    assert_int_equal(sim_open(PATH, O_RDWR), -ENOENT);
    fd = sim_open(PATH, O_RDWR | O_CREAT | O_EXCL);
    assert_true(fd >= 0);
    assert_int_equal(sim_open(PATH, O_RDWR | O_CREAT | O_EXCL), -EEXIST);
    other = sim_open("/sim/other", O_RDWR | O_CREAT);
    assert_int_equal(sys->fstat(fd, &a), 0);
    assert_int_equal(sys->fstat(other, &b), 0);
    assert_true(S_ISREG(a.st_mode) && a.st_dev == b.st_dev && a.st_ino != b.st_ino);
    assert_int_equal(sim_disk_open_count(), 2);

    /* Unlinked, it lives on while it is open. */
    assert_int_equal(put(fd, "abc", 3, 0), 3);
    assert_int_equal(sys->unlinkat(AT_FDCWD, PATH, 0), 0);
    assert_int_equal(sys->unlinkat(AT_FDCWD, PATH, 0), -ENOENT);
    assert_int_equal(sim_open(PATH, O_RDONLY), -ENOENT);
    assert_int_equal(sys->fstat(fd, &a), 0);
    assert_int_equal(a.st_size, 3);
    assert_int_equal(sys->close(fd), 0);
    assert_int_equal(sys->close(other), 0);
    assert_int_equal(sys->fstat(fd, &a), -EBADF);

    /* All other paths and descriptors are real. */
    file = sim_open("/dev/zero", O_RDONLY);
    assert_int_equal(sys->fstat(file, &a), 0);
    assert_true(S_ISCHR(a.st_mode));
    assert_int_equal(sys->close(file), 0);
}

static void test_content(void **state)
{
    uint8_t back[16];
    struct stat st;
    int fd, reader;

    sim_disk_create(PATH, "0123456789", 10);
    fd = sim_open(PATH, O_RDWR);
    reader = sim_open(PATH, O_RDONLY);
    assert_int_equal(get(reader, back, 16, 4), 6);
    assert_memory_equal(back, "456789", 6);
    assert_int_equal(get(reader, back, 16, 10), 0);
    assert_int_equal(get(reader, back, 16, UINT64_MAX), -EINVAL);
    assert_int_equal(put(reader, "x", 1, 0), -EBADF);
    assert_int_equal(sys->fallocate(reader, 0, 0, 1), -EBADF);
    assert_int_equal(put(fd, "xy", 2, 11), 2);
    assert_int_equal(get(reader, back, 16, 8), 5);
    assert_memory_equal(back, "89\0xy", 5);
    assert_int_equal(sys->ftruncate(fd, 3), 0);
    assert_int_equal(sys->ftruncate(fd, 6), 0);
    assert_int_equal(get(reader, back, 16, 0), 6);
    assert_memory_equal(back, "012\0\0\0", 6);
    assert_int_equal(sys->fstat(reader, &st), 0);
    assert_int_equal(st.st_size, 6);
    assert_int_equal(sys->close(reader), 0);
    assert_int_equal(sys->close(fd), 0);
    fd = sim_open(PATH, O_WRONLY | O_TRUNC);
    assert_int_equal(get(fd, back, 1, 0), -EBADF);
    assert_int_equal(sys->lseek(fd, 0, SEEK_END), 0);
    assert_int_equal(sys->close(fd), 0);
}

static void test_holes(void **state)
{
    static uint8_t ones[5 * 4096], back[4096];
    struct stat st;
    int fd;

    memset(ones, 1, sizeof(ones));
    sim_disk_create(PATH, NULL, 10 * 4096);
    fd = sim_open(PATH, O_RDWR);
    assert_int_equal(sys->lseek(fd, 0, SEEK_DATA), -ENXIO);
    assert_int_equal(sys->lseek(fd, 5, SEEK_HOLE), 5);
    assert_int_equal(put(fd, ones, sizeof(ones), 4096), sizeof(ones));
    assert_int_equal(sys->lseek(fd, 0, SEEK_DATA), 4096);
    assert_int_equal(sys->lseek(fd, 5000, SEEK_DATA), 5000);
    assert_int_equal(sys->lseek(fd, 4096, SEEK_HOLE), 6 * 4096);
    assert_int_equal(sys->lseek(fd, 10 * 4096, SEEK_HOLE), -ENXIO);

    /* A hole takes whole blocks; what sticks out is zeroed. */
    assert_int_equal(
        sys->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * 4096 - 1, 4098), 0);
    assert_int_equal(sys->lseek(fd, 4096, SEEK_HOLE), 2 * 4096);
    assert_int_equal(sys->lseek(fd, 2 * 4096, SEEK_DATA), 3 * 4096);
    assert_int_equal(get(fd, back, 3, 2 * 4096 - 2), 3);
    assert_memory_equal(back, "\1\0\0", 3);
    assert_int_equal(get(fd, back, 2, 3 * 4096), 2);
    assert_memory_equal(back, "\0\1", 2);
    assert_int_equal(sys->fstat(fd, &st), 0);
    assert_int_equal(st.st_blocks, 4 * 8);

    assert_int_equal(sys->fallocate(fd, FALLOC_FL_ZERO_RANGE, 5 * 4096, 7 * 4096), 0);
    assert_int_equal(sys->lseek(fd, 0, SEEK_END), 12 * 4096);
    assert_int_equal(get(fd, back, 1, 5 * 4096), 1);
    assert_int_equal(back[0], 0);
    assert_int_equal(sys->fallocate(fd, FALLOC_FL_KEEP_SIZE, 12 * 4096, 4096), 0);
    assert_int_equal(sys->lseek(fd, 0, SEEK_END), 12 * 4096);
    assert_int_equal(sys->fallocate(fd, 0, 12 * 4096, 4096), 0);
    assert_int_equal(sys->lseek(fd, 0, SEEK_END), 13 * 4096);
    assert_int_equal(sys->fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 1), -EOPNOTSUPP);
    assert_int_equal(sys->fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), -EOPNOTSUPP);
    assert_int_equal(sys->fallocate(fd, 0, 0, 0), -EINVAL);
    assert_int_equal(sys->close(fd), 0);
}

static void test_direct_alignment(void **state)
{
    uint8_t *block = aligned_alloc(4096, 4096);
    int fd;

    memset(block, 0, 4096);
    sim_disk_create(PATH, NULL, 5000);
    fd = sim_open(PATH, O_RDWR | O_DIRECT);
    assert_int_equal(put(fd, block, 512, 512), 512);
    assert_int_equal(put(fd, block, 512, 1), -EINVAL);
    assert_int_equal(put(fd, block + 1, 512, 0), -EINVAL);
    assert_int_equal(get(fd, block, 511, 0), -EINVAL);
    assert_int_equal(get(fd, block, 4096, 4096), 904);
    assert_int_equal(sys->close(fd), 0);
    free(block);
}

static int lock(int fd, short type, off_t start, off_t length)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};

    return sys->fcntl_lock(fd, F_OFD_SETLK, &l);
}

/* The type of lock that is in the way of an exclusive one. */
static short locked(int fd, off_t start, off_t length)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length};

    assert_int_equal(sys->fcntl_lock(fd, F_OFD_GETLK, &l), 0);
    return l.l_type;
}

static void test_locks(void **state)
{
    int a, b, reader;

    sim_disk_create(PATH, "x", 1);
    a = sim_open(PATH, O_RDWR);
    b = sim_open(PATH, O_RDWR);
    reader = sim_open(PATH, O_RDONLY);
    assert_int_equal(lock(a, F_RDLCK, 100, 5), 0);
    assert_int_equal(lock(b, F_RDLCK, 104, 1), 0);
    assert_int_equal(lock(b, F_WRLCK, 104, 1), -EAGAIN);
    assert_int_equal(lock(b, F_WRLCK, 105, 1), 0);
    assert_int_equal(locked(a, 0, 0), F_RDLCK);
    assert_int_equal(locked(a, 105, 1), F_WRLCK);
    assert_int_equal(locked(a, 106, 0), F_UNLCK);
    assert_int_equal(lock(reader, F_WRLCK, 0, 1), -EBADF);

    /* A hole in the middle leaves both ends. */
    assert_int_equal(lock(a, F_UNLCK, 102, 1), 0);
    assert_int_equal(locked(b, 102, 1), F_UNLCK);
    assert_int_equal(locked(b, 101, 1), F_RDLCK);
    assert_int_equal(locked(b, 103, 1), F_RDLCK);

    /* One's own lock is replaced; a close drops all. */
    assert_int_equal(lock(a, F_WRLCK, 100, 2), 0);
    assert_int_equal(lock(reader, F_RDLCK, 100, 1), -EAGAIN);
    assert_int_equal(sys->close(a), 0);
    assert_int_equal(locked(b, 100, 2), F_UNLCK);
    assert_int_equal(locked(reader, 0, 0), F_RDLCK);
    assert_int_equal(sys->close(b), 0);
    assert_int_equal(locked(reader, 0, 0), F_UNLCK);
    assert_int_equal(sys->close(reader), 0);
}

static void test_disk_full(void **state)
{
    static uint8_t data[4 * 4096];
    int fd;

    sim_disk_remove();
    sim_disk_install(&(struct sim_disk_config){.seed = 1, .capacity = 3 * 4096});
    sim_disk_create(PATH, "x", 1);
    fd = sim_open(PATH, O_RDWR);
    assert_int_equal(sys->fallocate(fd, 0, 0, 4 * 4096), -ENOSPC);
    assert_int_equal(put(fd, data, sizeof(data), 100), 3 * 4096 - 100);
    assert_int_equal(put(fd, data, sizeof(data), 3 * 4096), -ENOSPC);
    assert_int_equal(put(fd, data, 2 * 4096, 4096), 2 * 4096);
    assert_int_equal(sys->fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
    assert_int_equal(put(fd, data, 4096, 9 * 4096), 4096);
    assert_int_equal(sys->close(fd), 0);
}

/* ---- Chance ---- */

#define SOAK_SIZE 200000

struct soak {
    struct io_file file;
    uint8_t model[SOAK_SIZE];
    struct prng prng;
    size_t offset[20], length[20]; /* ranges that do not overlap, each of one coroutine */
    unsigned next;
};

static int soak_one(void *arg)
{
    struct soak *soak = arg;
    unsigned i = soak->next++;
    size_t offset = soak->offset[i], length = soak->length[i];
    uint8_t *back = malloc(length);
    struct iovec iov = {.iov_base = soak->model + offset, .iov_len = length};

    prng_fill(&soak->prng, soak->model + offset, length);
    assert_int_equal(io_writev(&soak->file, &iov, 1, offset), 0);
    iov.iov_base = back;
    assert_int_equal(io_readv(&soak->file, &iov, 1, offset), length);
    assert_memory_equal(back, soak->model + offset, length);
    free(back);
    return io_fdatasync(&soak->file);
}

static int soak_all(void *arg)
{
    struct soak *soak = arg;
    struct co_group group;
    int r;

    co_group_init(&group);
    for (int round = 0; round < 10; round++) {
        soak->next = 0;
        for (size_t i = 0; i < 20; i++) {
            soak->offset[i] = i * SOAK_SIZE / 20 + prng_below(&soak->prng, 1000);
            soak->length[i] = 1 + prng_below(&soak->prng, SOAK_SIZE / 20 - 1000);
            co_group_start(&group, soak_one, soak);
        }
        r = co_group_wait(&group);
        if (r < 0)
            return r;
    }
    return 0;
}

static int soak_run(void *arg)
{
    static struct soak soak;
    struct error error = {.text = ""};
    int fd = sim_open(PATH, O_RDWR);
    int r;

    memset(&soak, 0, sizeof(soak));
    soak.prng = prng_of(*(uint64_t *)arg);
    assert_int_equal(io_file_init(&soak.file, fd, false, &io_engine_sim, &error), 0);
    r = soak_all(&soak);
    io_file_fini(&soak.file);
    sys->close(fd);
    return r;
}

/* The content after a soak with this seed; allocated. */
static uint8_t *soak_content(uint64_t seed, unsigned percent)
{
    uint8_t *content;
    size_t size;

    sim_disk_remove();
    sim_disk_install(&(struct sim_disk_config){.seed = seed,
                                               .short_percent = percent,
                                               .eintr_percent = percent,
                                               .uncached_percent = percent});
    sim_disk_create(PATH, NULL, SOAK_SIZE);
    assert_int_equal(test_run(soak_run, &seed), 0);
    content = sim_disk_content(PATH, &size);
    assert_int_equal(size, SOAK_SIZE);
    return content;
}

static void test_chance(void **state)
{
    for (uint64_t seed = test_seed(); seed < test_seed() + 5; seed++) {
        uint8_t *first = soak_content(seed, 40), *again = soak_content(seed, 40);

        assert_memory_equal(first, again, SOAK_SIZE);
        free(first);
        free(again);
    }
}

/* Each kind of chance does happen, and as often in two runs of one seed. */
static void test_chance_happens(void **state)
{
    unsigned shorts = 0, interrupts = 0, uncached = 0, whole = 0;
    static uint8_t data[4096];
    struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
    int fd;

    sim_disk_remove();
    sim_disk_install(&(struct sim_disk_config){
        .seed = 7, .short_percent = 30, .eintr_percent = 30, .uncached_percent = 30});
    sim_disk_create(PATH, data, sizeof(data));
    fd = sim_open(PATH, O_RDWR);
    for (int i = 0; i < 500; i++) {
        ssize_t n = sys->preadv(fd, &iov, 1, 0, i % 2 ? RWF_NOWAIT : 0);

        interrupts += n == -EINTR;
        uncached += n == -EAGAIN;
        shorts += n > 0 && n < 4096;
        whole += n == 4096;
        assert_true(i % 2 || n != -EAGAIN);
    }
    assert_true(interrupts > 50 && uncached > 10 && shorts > 50 && whole > 50);
    sys->close(fd);
}

/* ---- Power cuts ---- */

/* How many of the sectors of `data` are all `byte`; none may be mixed. */
static unsigned count_sectors(const uint8_t *data, size_t size, uint8_t byte)
{
    unsigned count = 0;

    for (size_t at = 0; at < size; at += SECTOR) {
        count += data[at] == byte;
        for (size_t i = 1; i < SECTOR; i++)
            assert_int_equal(data[at + i], data[at]);
    }
    return count;
}

static void test_power_cut(void **state)
{
    static uint8_t ones[16 * SECTOR], twos[16 * SECTOR];
    unsigned none = 0, all = 0, torn = 0, kept;

    memset(ones, 1, sizeof(ones));
    memset(twos, 2, sizeof(twos));
    for (uint64_t seed = 0; seed < 60; seed++) {
        uint8_t *left;
        size_t size;
        int fd;

        sim_disk_create(PATH, NULL, sizeof(ones));
        fd = sim_open(PATH, O_RDWR);
        assert_int_equal(put(fd, ones, sizeof(ones), 0), sizeof(ones));
        assert_int_equal(sys->fdatasync(fd), 0);
        assert_int_equal(put(fd, twos, sizeof(twos), 0), sizeof(twos));
        sim_disk_power_cut(seed);
        assert_int_equal(put(fd, ones, 1, 0), -EIO);
        assert_int_equal(sys->fdatasync(fd), -EIO);
        assert_int_equal(sim_open(PATH, O_RDWR), -EIO);
        sim_disk_power_on();
        assert_int_equal(put(fd, ones, 1, 0), -EIO);
        assert_int_equal(sys->close(fd), 0);

        left = sim_disk_content(PATH, &size);
        assert_int_equal(size, sizeof(ones));
        kept = count_sectors(left, size, 2);
        assert_int_equal(kept + count_sectors(left, size, 1), 16);
        none += kept == 0;
        all += kept == 16;
        torn += kept > 0 && kept < 16;
        free(left);
    }
    assert_true(none > 5 && all > 5 && torn > 5);
}

/* What was not flushed can be lost in any order; sizes too. */
static void test_power_cut_order(void **state)
{
    unsigned only_first = 0, only_second = 0, longer = 0;
    uint8_t *left;
    size_t size;
    int fd;

    for (uint64_t seed = 0; seed < 60; seed++) {
        sim_disk_create(PATH, "--", 2);
        fd = sim_open(PATH, O_RDWR);
        assert_int_equal(put(fd, "1", 1, 0), 1);
        assert_int_equal(put(fd, "2", 1, 1), 1);
        assert_int_equal(sys->ftruncate(fd, 100), 0);
        sim_disk_power_cut(seed);
        sim_disk_power_on();
        sys->close(fd);
        left = sim_disk_content(PATH, &size);
        assert_true(size == 2 || size == 100);
        only_first += memcmp(left, "1-", 2) == 0;
        only_second += memcmp(left, "-2", 2) == 0;
        longer += size == 100;
        free(left);
    }
    assert_true(only_first > 3 && only_second > 3 && longer > 10 && longer < 50);
}

struct in_flight {
    struct io_file file;
    uint64_t seed;
    int result;
};

static int write_in_flight(void *arg)
{
    struct in_flight *w = arg;
    struct iovec iov = {.iov_base = (void *)(uintptr_t) "new", .iov_len = 3};

    w->result = io_writev(&w->file, &iov, 1, 0);
    return 0;
}

static int cut_in_flight(void *arg)
{
    struct in_flight *w = arg;
    struct error error = {.text = ""};
    struct co_group group;
    int fd = sim_open(PATH, O_RDWR);

    assert_int_equal(io_file_init(&w->file, fd, false, &io_engine_sim, &error), 0);
    w->file.nowait_write = false; /* so that the engine gets the write */
    co_group_init(&group);
    co_group_start(&group, write_in_flight, w);
    coroutine_yield(); /* the engine has the write now, and does it in the end of this turn */
    sim_disk_power_cut(w->seed);
    co_group_wait(&group);
    io_file_fini(&w->file);
    sys->close(fd);
    return 0;
}

/* A write that was on its way fails, and may have happened all the same. */
static void test_power_cut_in_flight(void **state)
{
    unsigned happened = 0;
    uint8_t *left;
    size_t size;

    for (uint64_t seed = 0; seed < 30; seed++) {
        struct in_flight w = {.seed = seed};

        sim_disk_create(PATH, "old", 3);
        assert_int_equal(test_run(cut_in_flight, &w), 0);
        assert_int_equal(w.result, -EIO);
        sim_disk_power_on();
        left = sim_disk_content(PATH, &size);
        assert_int_equal(size, 3);
        happened += memcmp(left, "new", 3) == 0;
        free(left);
    }
    assert_true(happened > 3 && happened < 27);
}

/* ---- With faults on top ---- */

static int write_and_flush(void *arg)
{
    struct io_file file;
    struct error error = {.text = ""};
    struct iovec iov = {.iov_base = arg, .iov_len = 5000};
    int fd = sim_open(PATH, O_RDWR), r;

    if (fd < 0)
        return fd;
    r = io_file_init(&file, fd, false, &io_engine_sim, &error);
    if (r == 0) {
        r = io_writev(&file, &iov, 1, 100);
        if (r == 0)
            r = io_fdatasync(&file);
        io_file_fini(&file);
    }
    sys->close(fd);
    return r;
}

/* Whatever call fails: what was reported as flushed survives the power cut. */
static void test_faults_and_power(void **state)
{
    struct fault_plan plan = {.calls = FAULT_FILE, .error = EIO, .nth = 1};
    uint8_t data[5000], *left;
    bool fired = true;
    size_t size;

    memset(data, 9, sizeof(data));
    for (; fired; plan.nth++) {
        int r;

        sim_disk_create(PATH, NULL, 10000);
        fault_install();
        fault_arm(&plan);
        r = test_run(write_and_flush, data);
        fired = fault_fired();
        fault_remove();
        assert_int_equal(r, fired ? -EIO : 0);
        sim_disk_power_cut(plan.nth);
        sim_disk_power_on();
        left = sim_disk_content(PATH, &size);
        assert_int_equal(size, 10000);
        if (r == 0)
            assert_memory_equal(left + 100, data, sizeof(data));
        free(left);
    }
    assert_true(plan.nth > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_content, setup, teardown),
        cmocka_unit_test_setup_teardown(test_holes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_direct_alignment, setup, teardown),
        cmocka_unit_test_setup_teardown(test_locks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_disk_full, setup, teardown),
        cmocka_unit_test_setup_teardown(test_chance, setup, teardown),
        cmocka_unit_test_setup_teardown(test_chance_happens, setup, teardown),
        cmocka_unit_test_setup_teardown(test_power_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(test_power_cut_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_power_cut_in_flight, setup, teardown),
        cmocka_unit_test_setup_teardown(test_faults_and_power, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
