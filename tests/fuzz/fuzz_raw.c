/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: a raw image with offset and size options, on the simulated disk, under a sequence of
 * operations of any range, with transfers cut short.  Each must end as its range demands, and every
 * read, and at the end the whole file, must equal a model.
 *
 * Input: the file's size, offset and size options (16 bits each, little-endian; size 0xffff: not
 * given), then operations of 6 bytes: what, a byte, offset and length (16 bits each).
 */
#include "base/bytes.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PATH "/sim/disk.raw"
#define NOT_GIVEN 0xffff

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct driver *const drivers[] = {&driver_raw, &driver_file, NULL};

struct run {
    struct byte_reader input;
    struct node *node;
    uint8_t *model; /* the file */
    uint32_t file_size, offset, size;
    uint8_t buffer[UINT16_MAX];
};

static void require(bool condition)
{
    if (!condition)
        abort();
}

static int open_node(struct run *run)
{
    const struct block_context context = {.drivers = drivers, .engine = &io_engine_sync};
    json_t *tree =
        json_pack("{s:s, s:i, s:s}", "driver", "raw", "offset", (int)run->offset, "filename", PATH);
    struct error error = {""};
    int err;

    require(tree != NULL);
    if (run->size != NOT_GIVEN)
        json_object_set_new(tree, "size", json_integer(run->size));
    err = node_open_tree(&context, tree, NODE_WRITABLE | NODE_UNMAP, &run->node, &error);
    json_decref(tree);
    require((err < 0) == (error.text[0] != '\0'));
    return err;
}

static void check_read(struct run *run, uint64_t offset, size_t length, bool nowait)
{
    bool fits = range_within(offset, length, run->node->size);
    int err = nowait ? block_read_nowait(run->node, run->buffer, length, offset)
                     : block_read(run->node, run->buffer, length, offset);

    if (nowait && err == -EAGAIN)
        return;
    require((err == 0) == fits);
    if (err == 0)
        require(memcmp(run->buffer, run->model + run->offset + offset, length) == 0);
}

static void check_status(struct run *run, uint64_t offset, size_t length)
{
    struct block_status status;

    if (length == 0 || !range_within(offset, length, run->node->size))
        return;
    require(block_get_status(run->node, offset, length, &status) == 0);
    require(status.length >= 1 && status.length <= length);
    if (status.flags & STATUS_ZERO)
        require(bytes_are_zero(run->model + run->offset + offset, status.length));
}

/* Changes of a range: the operation's result, and byte as what the range holds then. */
static void changed(struct run *run, int err, uint64_t offset, size_t length, uint8_t byte)
{
    require((err == 0) == range_within(offset, length, run->node->size));
    if (err == 0)
        memset(run->model + run->offset + offset, byte, length);
}

static void discarded(struct run *run, int err, uint64_t offset, size_t length)
{
    bool fits = range_within(offset, length, run->node->size);

    require((err == 0) == fits);
    /* What is there now is the driver's choice, byte for byte the old or zero. */
    if (!fits || block_read(run->node, run->buffer, length, offset) < 0)
        return;
    for (size_t i = 0; i < length; i++) {
        uint8_t *old = &run->model[run->offset + offset + i];

        require(run->buffer[i] == *old || run->buffer[i] == 0);
        *old = run->buffer[i];
    }
}

static void operate(struct run *run)
{
    uint8_t what = byte_reader_u8(&run->input);
    uint8_t byte = byte_reader_u8(&run->input);
    uint64_t offset = byte_reader_le16(&run->input);
    size_t length = byte_reader_le16(&run->input);
    unsigned fua = what & 0x80 ? BLOCK_FUA : 0;

    switch (what & 7) {
    case 0:
    case 1:
        check_read(run, offset, length, what & 1);
        break;
    case 2:
    case 3:
        memset(run->buffer, byte, length);
        changed(run, block_write(run->node, run->buffer, length, offset, fua), offset, length,
                byte);
        break;
    case 4:
        changed(run, block_zero(run->node, offset, length, fua | (byte & 1 ? ZERO_MAY_UNMAP : 0)),
                offset, length, 0);
        break;
    case 5:
        discarded(run, block_discard(run->node, offset, length, fua), offset, length);
        break;
    case 6:
        require(block_flush(run->node) == 0);
        break;
    default:
        check_status(run, offset, length);
        break;
    }
}

static int run_all(void *arg)
{
    struct run *run = arg;
    bool legal = run->offset <= run->file_size &&
                 (run->size == NOT_GIVEN || run->size <= run->file_size - run->offset);
    int err = open_node(run);

    require((err == 0) == legal);
    if (err < 0)
        return 0;
    require(run->node->size == (run->size == NOT_GIVEN ? run->file_size - run->offset : run->size));
    while (run->input.left > 0 && !run->input.failed)
        operate(run);
    node_unref(run->node);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct run run;
    struct sim_disk_config config = {.seed = size, .short_percent = 10, .eintr_percent = 10};
    uint8_t *seen;
    size_t seen_size;

    memset(&run, 0, sizeof(run));
    run.input = byte_reader_of(data, size);
    run.file_size = byte_reader_le16(&run.input);
    run.offset = byte_reader_le16(&run.input);
    run.size = byte_reader_le16(&run.input);
    run.model = malloc(run.file_size + 1);
    require(run.model != NULL);
    for (uint32_t i = 0; i < run.file_size; i++)
        run.model[i] = (uint8_t)(i * 7 + 1);
    sim_disk_install(&config);
    sim_disk_create(PATH, run.model, run.file_size);
    test_run(run_all, &run);
    seen = sim_disk_content(PATH, &seen_size);
    require(seen_size == run.file_size && memcmp(seen, run.model, seen_size) == 0);
    free(seen);
    sim_disk_remove();
    free(run.model);
    return 0;
}
