/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Small helpers for all tests.  The other headers here are the machinery behind the seam
 * (base/sys.h): fault.h, recorder.h, sim_disk.h, sim_engine.h, sim_clock.h.  Each puts its table
 * over the one in use when installed, so they stack; remove them in the opposite order.
 */
#ifndef EVNBD_TESTS_SUPPORT_H
#define EVNBD_TESTS_SUPPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Starts the reactor, runs fn(arg) in a coroutine until it returns, ends the reactor. */
int test_run(int (*fn)(void *arg), void *arg);

/* Aborts with the message; for what a test cannot go on without. */
__attribute__((noreturn, format(printf, 1, 2))) void test_die(const char *format, ...);

/* Skips the test of cmocka that runs, and says why: a format and its arguments, no full stop. */
#define test_skip(...)                                                                             \
    do {                                                                                           \
        print_message("skipped: ");                                                                \
        print_message(__VA_ARGS__);                                                                \
        print_message("\n");                                                                       \
        skip();                                                                                    \
    } while (0)

/* A new empty directory below $TMPDIR or /tmp; the path is allocated. */
char *test_dir_make(void);
/* Removes the directory with all that is in it, and frees the path. NULL is fine. */
void test_dir_remove(char *dir);
/* "DIR/NAME", allocated. */
char *test_path(const char *dir, const char *name);

/* Whole files. The read returns allocated bytes. They die on errors. */
void test_file_write(const char *path, const void *data, size_t size);
uint8_t *test_file_read(const char *path, size_t *ret_size);

/*
 * The seed of this run: EVNBD_TEST_SEED (decimal or 0x) or a fixed default.  Said once on stderr,
 * so that the log of a failed test tells how to have it again.
 */
uint64_t test_seed(void);

/* A seeded generator (splitmix64): same seed, same numbers. */
struct prng {
    uint64_t state;
};
struct prng prng_of(uint64_t seed);
uint64_t prng_next(struct prng *prng);
/* In [0, limit); limit 0 gives 0. */
uint64_t prng_below(struct prng *prng, uint64_t limit);
bool prng_percent(struct prng *prng, unsigned percent);
void prng_fill(struct prng *prng, void *data, size_t length);

#endif
