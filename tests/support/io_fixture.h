/* SPDX-License-Identifier: BSD-3-Clause */
/* A file on the real disk with a model of its content, driven through base/io.h. */
#ifndef EVNBD_TESTS_IO_FIXTURE_H
#define EVNBD_TESTS_IO_FIXTURE_H

#include "base/io.h"
#include "tests/support/support.h"

#define IO_FIXTURE_SIZE (1024 * 1024)
#define IO_FIXTURE_VECTORS 7

struct io_fixture {
    const struct io_engine *engine;
    char *dir, *path;
    int fd;
    struct io_file file;
    uint8_t *model;
    size_t size;
    struct prng prng;
};

/* Makes the file, with random content. */
void io_fixture_init(struct io_fixture *f, const struct io_engine *engine);
void io_fixture_fini(struct io_fixture *f);

/* Opens the file with its engine; `flags` are added to O_RDWR. Returns 0 or negative errno. */
int io_fixture_open(struct io_fixture *f, int flags);
void io_fixture_close(struct io_fixture *f);

/* Starts the reactor, opens, runs fn(f) in a coroutine, closes. Returns the first error. */
int io_fixture_run(struct io_fixture *f, int flags, int (*fn)(void *arg));

/* Makes file and model shorter. */
void io_fixture_truncate(struct io_fixture *f, size_t size);

/* Whether the file holds what the model says. */
bool io_fixture_matches(const struct io_fixture *f);

/* Cuts `length` bytes at `data` into up to IO_FIXTURE_VECTORS vectors; returns how many. */
int io_fixture_cut(struct io_fixture *f, struct iovec *iov, void *data, size_t length);

/* In a coroutine: writes random bytes to the file, and to the model when that went well. */
int io_fixture_write(struct io_fixture *f, size_t offset, size_t length);

/* In a coroutine: reads. -EBADMSG when it is not what the model says, up to its end. */
int io_fixture_read(struct io_fixture *f, size_t offset, size_t length);

#endif
