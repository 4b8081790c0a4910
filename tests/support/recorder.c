/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The recorder.  Files are told apart by device and inode; what a file holds before its first
 * change is read through the table below.  Records and files are arrays that only grow.
 */
#include "tests/support/recorder.h"

#include "base/iov.h"
#include "base/sys.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define FILES_MAX 64
#define READ_SIZE (256 * KIB)

struct recorded_file {
    dev_t dev;
    ino_t ino;
    struct content before; /* before the first record */
};

static struct recorder {
    const struct sys *inner;
    struct sys table;
    pthread_mutex_t lock;
    struct record *records;
    size_t count, room;
    struct recorded_file files[FILES_MAX];
    unsigned file_count;
} recorder = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void record_add(struct record record)
{
    if (recorder.count == recorder.room) {
        recorder.room = recorder.room ? recorder.room * 2 : 256;
        recorder.records = reallocarray(recorder.records, recorder.room, sizeof(*recorder.records));
        if (!recorder.records)
            test_die("out of memory");
    }
    recorder.records[recorder.count++] = record;
}

static void read_before(struct content *content, int fd, uint64_t size)
{
    void *buffer = aligned_alloc(CONTENT_BLOCK, READ_SIZE);
    struct iovec iov = {.iov_base = buffer, .iov_len = READ_SIZE};
    ssize_t n = 0;

    content_init(content);
    for (uint64_t at = 0; at < size; at += (uint64_t)n) {
        int64_t next = recorder.inner->lseek(fd, at, SEEK_DATA);
        struct change *change;

        if (next == -ENXIO)
            break;
        at = next > 0 ? align_down((uint64_t)next, CONTENT_BLOCK) : at;
        n = recorder.inner->preadv(fd, &iov, 1, at, 0);
        if (n <= 0)
            test_die("recorder: cannot read descriptor %d at %zu: %zd", fd, (size_t)at, n);
        change = change_write(&iov, 1, at, (uint64_t)n);
        content_apply(content, change);
        free(change);
    }
    content->size = size;
    free(buffer);
}

/* The number of the file behind `fd`, which is about to change. */
static unsigned file_of(int fd)
{
    struct recorded_file *file;
    struct stat st;
    int r = recorder.inner->fstat(fd, &st);

    if (r < 0)
        test_die("recorder: fstat of descriptor %d failed: %d", fd, r);
    for (unsigned i = 0; i < recorder.file_count; i++) {
        if (recorder.files[i].dev == st.st_dev && recorder.files[i].ino == st.st_ino)
            return i;
    }
    if (recorder.file_count == FILES_MAX || (uint64_t)st.st_size > CONTENT_MAX)
        test_die("recorder: too many files, or a file that is too large");
    file = &recorder.files[recorder.file_count];
    file->dev = st.st_dev;
    file->ino = st.st_ino;
    read_before(&file->before, fd, (uint64_t)st.st_size);
    return recorder.file_count++;
}

static ssize_t recorder_pwritev(int fd, const struct iovec *iov, int iovcnt, uint64_t offset,
                                int flags)
{
    unsigned file;
    ssize_t n;

    pthread_mutex_lock(&recorder.lock);
    file = file_of(fd);
    n = recorder.inner->pwritev(fd, iov, iovcnt, offset, flags);
    if (n > 0)
        record_add((struct record){.kind = RECORD_CHANGE,
                                   .file = file,
                                   .change = change_write(iov, iovcnt, offset, (uint64_t)n)});
    pthread_mutex_unlock(&recorder.lock);
    return n;
}

static int recorder_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
    unsigned file;
    int r;

    pthread_mutex_lock(&recorder.lock);
    file = file_of(fd);
    r = recorder.inner->fallocate(fd, mode, offset, length);
    if (r == 0) {
        struct change *change = change_fallocate(mode, offset, length);

        if (!change)
            test_die("recorder: fallocate mode %#x is not known here", (unsigned)mode);
        record_add((struct record){.kind = RECORD_CHANGE, .file = file, .change = change});
    }
    pthread_mutex_unlock(&recorder.lock);
    return r;
}

static int recorder_ftruncate(int fd, uint64_t length)
{
    unsigned file;
    int r;

    pthread_mutex_lock(&recorder.lock);
    file = file_of(fd);
    r = recorder.inner->ftruncate(fd, length);
    if (r == 0)
        record_add(
            (struct record){.kind = RECORD_CHANGE, .file = file, .change = change_size(length)});
    pthread_mutex_unlock(&recorder.lock);
    return r;
}

static int recorder_fdatasync(int fd)
{
    unsigned file;
    int r;

    pthread_mutex_lock(&recorder.lock);
    file = file_of(fd);
    r = recorder.inner->fdatasync(fd);
    if (r == 0)
        record_add((struct record){.kind = RECORD_SYNC, .file = file});
    pthread_mutex_unlock(&recorder.lock);
    return r;
}

void recorder_install(void)
{
    if (recorder.inner)
        test_die("recorder_install: installed already");
    recorder.inner = sys;
    recorder.table = *sys;
    recorder.table.pwritev = recorder_pwritev;
    recorder.table.fallocate = recorder_fallocate;
    recorder.table.ftruncate = recorder_ftruncate;
    recorder.table.fdatasync = recorder_fdatasync;
    sys = &recorder.table;
}

void records_free(struct record *records, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(records[i].change);
    free(records);
}

struct record *recorder_take(size_t *ret_count)
{
    struct record *records = recorder.records;

    *ret_count = recorder.count;
    recorder.records = NULL;
    recorder.count = recorder.room = 0;
    return records;
}

void recorder_remove(void)
{
    size_t count;
    struct record *records = recorder_take(&count);

    if (sys != &recorder.table)
        test_die("recorder_remove: another table stands above");
    sys = recorder.inner;
    recorder.inner = NULL;
    records_free(records, count);
    for (unsigned i = 0; i < recorder.file_count; i++)
        content_fini(&recorder.files[i].before);
    recorder.file_count = 0;
}

void recorder_mark(uint64_t mark)
{
    pthread_mutex_lock(&recorder.lock);
    record_add((struct record){.kind = RECORD_MARK, .mark = mark});
    pthread_mutex_unlock(&recorder.lock);
}

size_t recorder_count(void)
{
    return recorder.count;
}

const struct record *recorder_get(size_t index)
{
    return index < recorder.count ? &recorder.records[index] : NULL;
}

int recorder_file(const char *path)
{
    struct stat st;
    int fd = recorder.inner->openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    int r = fd < 0 ? fd : recorder.inner->fstat(fd, &st);

    if (fd >= 0)
        recorder.inner->close(fd);
    if (r < 0)
        return r;
    for (unsigned i = 0; i < recorder.file_count; i++) {
        if (recorder.files[i].dev == st.st_dev && recorder.files[i].ino == st.st_ino)
            return (int)i;
    }
    return -ENOENT;
}

/* Number of records, of the first `count`, up to and with the file's last fdatasync. */
static size_t synced_until(unsigned file, size_t count)
{
    while (count > 0 && (recorder.records[count - 1].kind != RECORD_SYNC ||
                         recorder.records[count - 1].file != file))
        count--;
    return count;
}

void recorder_rebuild(struct content *ret, unsigned file, size_t count, uint64_t drop_seed)
{
    struct prng prng = prng_of(drop_seed);
    size_t safe;

    if (file >= recorder.file_count || count > recorder.count)
        test_die("recorder_rebuild: no such file or record");
    safe = drop_seed ? synced_until(file, count) : count;
    content_copy(ret, &recorder.files[file].before);
    for (size_t i = 0; i < count; i++) {
        const struct record *record = &recorder.records[i];

        if (record->kind != RECORD_CHANGE || record->file != file)
            continue;
        if (i < safe)
            content_apply(ret, record->change);
        else
            content_apply_torn(ret, record->change, &prng);
    }
}

void recorder_rebuild_to(const char *path, unsigned file, size_t count, uint64_t drop_seed)
{
    struct content content = {.data = NULL};

    recorder_rebuild(&content, file, count, drop_seed);
    content_save(&content, path);
    content_fini(&content);
}
