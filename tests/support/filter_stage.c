/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/support/filter_stage.h"

#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "tests/support/sim_clock.h"
#include "tests/support/sim_engine.h"
#include "tests/support/support.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct block_context context = {.drivers = block_drivers, .engine = &io_engine_sync};

static char *dir;
static int64_t begin_ns;

struct play {
    const char *options;
    unsigned flags;
    void (*fn)(struct node *node);
    int result;
    struct error error;
};

uint8_t stage_byte(uint64_t offset)
{
    return (uint8_t)(offset * 31 + offset / 4096 + 1);
}

int stage_setup(void **state)
{
    uint8_t *data = malloc(STAGE_DISK_BYTES);

    dir = test_dir_make();
    if (!data || chdir(dir) < 0)
        return -1;
    for (size_t i = 0; i < STAGE_DISK_BYTES; i++)
        data[i] = stage_byte(i);
    test_file_write("disk.raw", data, STAGE_DISK_BYTES);
    free(data);
    sim_clock_install();
    return 0;
}

int stage_teardown(void **state)
{
    sim_clock_remove();
    if (chdir("/") < 0)
        return -1;
    test_dir_remove(dir);
    return 0;
}

static int run(void *arg)
{
    struct play *play = arg;
    bool guessed_raw;
    struct node *node;
    json_t *options;

    play->result = options_parse(play->options, "file", &options, &play->error);
    if (play->result < 0)
        return 0;
    play->result =
        node_open_options(&context, options, NULL, play->flags, &node, &guessed_raw, &play->error);
    json_decref(options);
    if (play->result < 0)
        return 0;
    begin_ns = sim_clock_now();
    if (play->fn)
        play->fn(node);
    node_unref(node);
    return 0;
}

void stage_play(const char *options, unsigned flags, void (*fn)(struct node *node))
{
    struct play play = {.options = options, .flags = flags, .fn = fn};

    sim_clock_run(run, &play);
    if (play.result < 0)
        test_die("\"%s\" is refused: %s", options, play.error.text);
}

void stage_refused(const char *options, unsigned flags, int error, const char *words)
{
    struct play play = {.options = options, .flags = flags};

    sim_clock_run(run, &play);
    if (play.result != -error || !strstr(play.error.text, words))
        test_die("\"%s\" ends with %d: \"%s\" instead of %d: \"%s\"", options, play.result,
                 play.error.text, -error, words);
}

int64_t stage_ms(void)
{
    return (sim_clock_now() - begin_ns) / 1000000;
}

int stage_read(struct node *node, uint64_t offset, size_t length)
{
    uint8_t *data = malloc(length);
    int err = block_read(node, data, length, offset);

    for (size_t i = 0; err == 0 && i < length; i++) {
        if (data[i] != stage_byte(offset + i))
            test_die("byte %zu is %#x, not %#x", (size_t)offset + i, data[i],
                     stage_byte(offset + i));
    }
    free(data);
    return err;
}

int stage_write(struct node *node, uint64_t offset, size_t length, uint8_t byte)
{
    uint8_t *data = malloc(length);
    int err;

    memset(data, byte, length);
    err = block_write(node, data, length, offset, 0);
    free(data);
    return err;
}
