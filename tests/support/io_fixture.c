/* SPDX-License-Identifier: BSD-3-Clause */
/* A file on the real disk with a model of its content. */
#include "tests/support/io_fixture.h"

#include "base/reactor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void io_fixture_init(struct io_fixture *f, const struct io_engine *engine)
{
    *f = (struct io_fixture){
        .engine = engine, .size = IO_FIXTURE_SIZE, .prng = prng_of(test_seed())};
    f->dir = test_dir_make();
    f->path = test_path(f->dir, "disk");
    f->model = malloc(f->size);
    if (!f->model)
        test_die("out of memory");
    prng_fill(&f->prng, f->model, f->size);
    test_file_write(f->path, f->model, f->size);
}

void io_fixture_fini(struct io_fixture *f)
{
    free(f->model);
    free(f->path);
    test_dir_remove(f->dir);
}

int io_fixture_open(struct io_fixture *f, int flags)
{
    struct error error = {.text = ""};
    int r;

    f->fd = open(f->path, O_RDWR | O_CLOEXEC | flags);
    if (f->fd < 0)
        return -errno;
    r = io_file_init(&f->file, f->fd, flags & O_DIRECT, f->engine, &error);
    if (r < 0) {
        fprintf(stderr, "%s\n", error.text);
        close(f->fd);
    }
    return r;
}

void io_fixture_close(struct io_fixture *f)
{
    io_file_fini(&f->file);
    close(f->fd);
}

int io_fixture_run(struct io_fixture *f, int flags, int (*fn)(void *arg))
{
    struct error error = {.text = ""};
    int r = reactor_init(&error);

    if (r < 0)
        test_die("the reactor does not start: %s", error.text);
    r = io_fixture_open(f, flags);
    if (r == 0) {
        r = reactor_run_coroutine(fn, f);
        io_fixture_close(f);
    }
    reactor_fini();
    return r;
}

void io_fixture_truncate(struct io_fixture *f, size_t size)
{
    f->size = size;
    if (truncate(f->path, (off_t)size) < 0)
        test_die("cannot truncate %s: %s", f->path, strerror(errno));
}

bool io_fixture_matches(const struct io_fixture *f)
{
    size_t size;
    uint8_t *data = test_file_read(f->path, &size);
    bool same = size == f->size && memcmp(data, f->model, size) == 0;

    free(data);
    return same;
}

int io_fixture_cut(struct io_fixture *f, struct iovec *iov, void *data, size_t length)
{
    int n = 1 + (int)prng_below(&f->prng, IO_FIXTURE_VECTORS);
    size_t done = 0;

    for (int i = 0; i < n; i++) {
        size_t part = i == n - 1 ? length - done : prng_below(&f->prng, length - done + 1);

        iov[i] = (struct iovec){.iov_base = (uint8_t *)data + done, .iov_len = part};
        done += part;
    }
    return n;
}

int io_fixture_write(struct io_fixture *f, size_t offset, size_t length)
{
    struct iovec iov[IO_FIXTURE_VECTORS];
    uint8_t *data = malloc(length + 1);
    int r;

    if (!data)
        return -ENOMEM;
    prng_fill(&f->prng, data, length);
    r = io_writev(&f->file, iov, io_fixture_cut(f, iov, data, length), offset);
    if (r == 0)
        memcpy(f->model + offset, data, length);
    free(data);
    return r;
}

int io_fixture_read(struct io_fixture *f, size_t offset, size_t length)
{
    struct iovec iov[IO_FIXTURE_VECTORS];
    uint8_t *data = malloc(length + 1);
    size_t expected = offset < f->size ? min_u64(length, f->size - offset) : 0;
    ssize_t n;

    if (!data)
        return -ENOMEM;
    n = io_readv(&f->file, iov, io_fixture_cut(f, iov, data, length), offset);
    if (n >= 0 && ((size_t)n != expected || memcmp(data, f->model + offset, expected) != 0))
        n = -EBADMSG;
    free(data);
    return n < 0 ? (int)n : 0;
}
