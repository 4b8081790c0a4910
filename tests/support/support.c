/* SPDX-License-Identifier: BSD-3-Clause */
/* Small helpers for all tests. */
#include "tests/support/support.h"

#include "base/reactor.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_SEED UINT64_C(0x65766e6264)

void test_die(const char *format, ...)
{
    va_list args;

    fputs("test support: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

int test_run(int (*fn)(void *arg), void *arg)
{
    struct error error = {.text = ""};
    int r;

    if (reactor_init(&error) < 0)
        test_die("the reactor does not start: %s", error.text);
    r = reactor_run_coroutine(fn, arg);
    reactor_fini();
    return r;
}

char *test_path(const char *dir, const char *name)
{
    char *path;

    if (asprintf(&path, "%s/%s", dir, name) < 0)
        test_die("out of memory");
    return path;
}

char *test_dir_make(void)
{
    const char *parent = getenv("TMPDIR");
    char *dir = test_path(parent && *parent ? parent : "/tmp", "evnbd-test-XXXXXX");

    if (!mkdtemp(dir))
        test_die("cannot make the directory %s: %s", dir, strerror(errno));
    return dir;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    return remove(path);
}

void test_dir_remove(char *dir)
{
    if (!dir)
        return;
    if (nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0)
        test_die("cannot remove the directory %s: %s", dir, strerror(errno));
    free(dir);
}

void test_file_write(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");

    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        test_die("cannot write %s: %s", path, strerror(errno));
}

uint8_t *test_file_read(const char *path, size_t *ret_size)
{
    FILE *file = fopen(path, "rb");
    struct stat st;
    uint8_t *data;

    if (!file || fstat(fileno(file), &st) != 0)
        test_die("cannot open %s: %s", path, strerror(errno));
    data = malloc((size_t)st.st_size + 1);
    if (!data || fread(data, 1, (size_t)st.st_size, file) != (size_t)st.st_size)
        test_die("cannot read %s", path);
    fclose(file);
    *ret_size = (size_t)st.st_size;
    return data;
}

uint64_t test_seed(void)
{
    static bool told;
    const char *text = getenv("EVNBD_TEST_SEED");
    uint64_t seed = text && *text ? strtoull(text, NULL, 0) : DEFAULT_SEED;

    if (!told)
        fprintf(stderr, "seed: EVNBD_TEST_SEED=%#" PRIx64 "\n", seed);
    told = true;
    return seed;
}

struct prng prng_of(uint64_t seed)
{
    return (struct prng){.state = seed};
}

uint64_t prng_next(struct prng *prng)
{
    uint64_t z = prng->state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t prng_below(struct prng *prng, uint64_t limit)
{
    return limit == 0 ? 0 : prng_next(prng) % limit;
}

bool prng_percent(struct prng *prng, unsigned percent)
{
    return prng_below(prng, 100) < percent;
}

void prng_fill(struct prng *prng, void *data, size_t length)
{
    uint8_t *p = data;
    uint64_t word;

    for (size_t done = 0; done < length; done += sizeof(word)) {
        word = prng_next(prng);
        memcpy(p + done, &word, length - done < sizeof(word) ? length - done : sizeof(word));
    }
}
