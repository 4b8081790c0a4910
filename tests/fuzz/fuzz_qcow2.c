/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: a qcow2 image, which is the input as it is, in memory.
 *
 * It is opened for reading, mapped, asked for its status and read: nothing of that may change it,
 * and what is read twice must be the same.  Then it is opened for writing, and written, zeroed,
 * discarded and flushed here and there: what a write put somewhere must be read back at once, and
 * enabled bitmaps must call it dirty, also when the image has been closed.  Bitmaps are added,
 * merged, cleared and removed.  Images that are encrypted the old way, with AES, are opened with a
 * key.  Where, is chosen by numbers drawn from the input.
 */
#include "base/bytes.h"
#include "base/checked.h"
#include "base/reactor.h"
#include "base/secret.h"
#include "blockcore/bitmap.h"
#include "blockcore/block.h"
#include "blockcore/drivers.h"
#include "blockcore/snapshot.h"
#include "tests/support/support.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (64 * MIB) /* then the disk is full */
#define PIECE_MAX (128 * KIB)
#define LOOKS 12
#define CHANGES 24
#define BITMAPS_LOOKED_AT 4
#define WRITES_KEPT 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The file that is open; one at a time. */
static struct memory {
    uint8_t *data;
    uint64_t size, room;
} memory;

static struct run {
    struct prng prng;
    struct node *node;
    uint8_t first[PIECE_MAX], second[PIECE_MAX];
    uint64_t written[WRITES_KEPT];
    unsigned written_count;
    bool bitmaps_changed; /* cleared or disabled: what was written need not be dirty any more */
} run;

static void require(bool condition)
{
    if (!condition)
        abort();
}

static int memory_open(struct node *node, struct node_open *open, struct error *error)
{
    node->size = memory.size;
    node->request_alignment = 1;
    node->identity = (struct node_identity){1, 1}; /* a regular file: it grows */
    return 0;
}

static int memory_preadv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    for (int i = 0; i < iovcnt; i++) {
        uint64_t there = offset < memory.size ? min_u64(iov[i].iov_len, memory.size - offset) : 0;

        if (there > 0)
            memcpy(iov[i].iov_base, memory.data + offset, there);
        memset((uint8_t *)iov[i].iov_base + there, 0, iov[i].iov_len - there);
        offset += iov[i].iov_len;
    }
    return 0;
}

static int memory_pwritev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    for (int i = 0; i < iovcnt; i++) {
        if (!range_within(offset, iov[i].iov_len, FILE_MAX))
            return -ENOSPC;
        if (offset + iov[i].iov_len > memory.room) {
            memory.room = (offset + iov[i].iov_len) * 2;
            memory.data = realloc(memory.data, memory.room);
            require(memory.data != NULL);
        }
        if (offset + iov[i].iov_len > memory.size) {
            memset(memory.data + memory.size, 0, memory.room - memory.size);
            memory.size = offset + iov[i].iov_len;
        }
        memcpy(memory.data + offset, iov[i].iov_base, iov[i].iov_len);
        offset += iov[i].iov_len;
    }
    node->size = memory.size;
    return 0;
}

static int memory_flush(struct node *node)
{
    return 0;
}

static const struct driver driver_memory = {
    .name = "memory",
    .kind = DRIVER_PROTOCOL,
    .open = memory_open,
    .preadv = memory_preadv,
    .preadv_nowait = memory_preadv,
    .pwritev = memory_pwritev,
    .flush = memory_flush,
};

static struct secret_store secrets;
static const struct driver *const drivers[] = {&driver_qcow2, &driver_memory, NULL};

static int open_node(unsigned flags)
{
    const struct block_context context = {.drivers = drivers, .secrets = &secrets};
    struct error error = {.text = ""};
    bool aes = memory.size >= 36 && get_be32(memory.data + 32) == 1;
    json_t *tree =
        json_pack("{s:s, s:n, s:{s:s}}", "driver", "qcow2", "backing", "file", "driver", "memory");
    int err;

    require(tree != NULL);
    if (aes)
        require(json_object_set_new(tree, "encrypt", json_pack("{s:s}", "key-secret", "s")) == 0);
    err = node_open_tree(&context, tree, flags, &run.node, &error);
    json_decref(tree);
    require((err < 0) == (error.text[0] != '\0'));
    return err;
}

/* A range within the disk: at its start, at its end, at a cluster's border, or anywhere. */
static uint64_t choose(uint64_t *ret_length)
{
    uint64_t size = run.node->size, cluster = run.node->cluster_size, offset;

    switch (prng_below(&run.prng, 4)) {
    case 0:
        offset = prng_below(&run.prng, min_u64(size, 32 * cluster));
        break;
    case 1:
        offset = size - 1 - prng_below(&run.prng, min_u64(size, cluster));
        break;
    case 2:
        offset = align_down(prng_below(&run.prng, min_u64(size, 64 * cluster)), cluster);
        break;
    default:
        offset = prng_below(&run.prng, size);
        break;
    }
    *ret_length = 1 + prng_below(&run.prng, min_u64(size - offset, PIECE_MAX));
    return offset;
}

static void check_map(uint64_t offset, uint64_t length)
{
    struct block_status status;
    struct extent e = {0};
    int err = run.node->driver->map(run.node, offset, length, &e);

    require(err == 0 || err == -EIO);
    if (err == 0) {
        require(e.length >= 1 && e.length <= length);
        require((e.kind == EXTENT_DATA || e.kind == EXTENT_ENCODED) == (e.child != NULL));
    }
    err = block_get_status(run.node, offset, length, &status);
    require(err == 0 || err == -EIO);
    require(err < 0 || (status.length >= 1 && status.length <= length));
}

static void look(void)
{
    uint64_t length, offset = choose(&length);
    int err, again;

    check_map(offset, length);
    err = block_read(run.node, run.first, length, offset);
    require(err == 0 || err == -EIO);
    again = block_read_nowait(run.node, run.second, length, offset);
    if (again == -EAGAIN)
        again = block_read(run.node, run.second, length, offset);
    require(again == err);
    require(err < 0 || memcmp(run.first, run.second, length) == 0);
}

/* All bitmaps, a few extents of each. */
static void look_at_bitmaps(void)
{
    struct block_bitmap *bitmap;

    for (size_t i = 0; i < BITMAPS_LOOKED_AT && (bitmap = block_bitmap_get(run.node, i)); i++) {
        struct block_bitmap_extent extent;
        uint64_t length, offset = choose(&length);

        for (unsigned k = 0; k < LOOKS && !bitmap->unusable && offset < bitmap->size; k++) {
            int err = block_bitmap_next(bitmap, offset, bitmap->size - offset, &extent);

            require(err == 0 || err == -EIO);
            if (err < 0)
                break;
            require(extent.length >= 1 && extent.length <= bitmap->size - offset);
            offset += extent.length;
        }
    }
}

/* In every enabled bitmap that can be used. */
static void require_dirty(uint64_t offset)
{
    struct block_bitmap *bitmap;

    for (size_t i = 0; i < BITMAPS_LOOKED_AT && (bitmap = block_bitmap_get(run.node, i)); i++) {
        struct block_bitmap_extent extent;

        if (bitmap->enabled && !bitmap->unusable &&
            block_bitmap_next(bitmap, offset, 1, &extent) == 0)
            require(extent.dirty);
    }
}

static void change_bitmaps(void)
{
    struct block_bitmap *bitmap = block_bitmap_get(run.node, prng_below(&run.prng, 3));
    struct block_bitmap *other = block_bitmap_get(run.node, 0);
    char name[2] = {(char)('a' + prng_below(&run.prng, 6)), 0};
    struct error error;

    run.bitmaps_changed = true;
    if (!bitmap || prng_percent(&run.prng, 30))
        block_bitmap_add(run.node, name, UINT64_C(512) << prng_below(&run.prng, 23),
                         prng_percent(&run.prng, 70), &error);
    else if (prng_percent(&run.prng, 30))
        block_bitmap_merge(other, bitmap, &error);
    else if (prng_percent(&run.prng, 30))
        block_bitmap_clear(bitmap, &error);
    else if (prng_percent(&run.prng, 30))
        block_bitmap_set_enabled(bitmap, !bitmap->enabled, &error);
    else
        block_bitmap_remove(bitmap, &error);
}

/* Within one cluster: others may share its storage in an image that is broken. */
static void write_somewhere(void)
{
    uint64_t length, offset = choose(&length), cluster = run.node->cluster_size;

    length = min_u64(length, align_down(offset, cluster) + cluster - offset);
    memset(run.first, (int)prng_next(&run.prng), length);
    if (block_write(run.node, run.first, length, offset, 0) < 0)
        return;
    require(block_read(run.node, run.second, length, offset) == 0);
    require(memcmp(run.first, run.second, length) == 0);
    require_dirty(offset);
    if (run.written_count < WRITES_KEPT && !run.bitmaps_changed)
        run.written[run.written_count++] = offset;
}

static void zero_somewhere(void)
{
    uint64_t length, offset = choose(&length), cluster = run.node->cluster_size;

    /* Whole clusters, whose storage does not matter then. */
    offset = align_down(offset, cluster);
    length = min_u64(align_up(length, cluster), run.node->size - offset);
    if (block_zero(run.node, offset, length, prng_percent(&run.prng, 50) ? ZERO_MAY_UNMAP : 0) < 0)
        return;
    length = min_u64(length, PIECE_MAX);
    require(block_read(run.node, run.first, length, offset) == 0);
    require(bytes_are_zero(run.first, length));
}

/* One of a few names: most exist after some time. */
static void change_snapshots(void)
{
    static char names[3][2] = {"1", "2", "x"};
    const struct block_snapshot_choice choice = {.any = names[prng_below(&run.prng, 3)]};
    struct error error = {.text = ""};
    int err;

    switch (prng_below(&run.prng, 3)) {
    case 0:
        err = block_snapshot_create(run.node, choice.any, &error);
        break;
    case 1:
        err = block_snapshot_apply(run.node, &choice, &error);
        break;
    default:
        err = block_snapshot_delete(run.node, &choice, &error);
        break;
    }
    require((err < 0) == (error.text[0] != '\0'));
}

static void change(void)
{
    uint64_t length, offset;

    if (prng_percent(&run.prng, 5)) {
        change_snapshots();
        return;
    }
    switch (prng_below(&run.prng, 7)) {
    case 0:
        zero_somewhere();
        break;
    case 1:
        offset = choose(&length);
        block_discard(run.node, offset, length, 0);
        break;
    case 2:
        block_flush(run.node);
        break;
    case 3:
        look();
        look_at_bitmaps();
        break;
    case 4:
        if (prng_percent(&run.prng, 50))
            change_bitmaps();
        break;
    default:
        write_somewhere();
        break;
    }
}

/* Closed and opened again: bitmaps still know. */
static void look_again(void)
{
    if (open_node(0) < 0)
        return;
    for (unsigned i = 0; i < run.written_count && !run.bitmaps_changed; i++)
        require_dirty(run.written[i]);
    if (run.node->size > 0)
        look_at_bitmaps();
    node_unref(run.node);
}

static int run_all(void *arg)
{
    if (open_node(0) == 0) {
        for (unsigned i = 0; i < LOOKS && run.node->size > 0; i++)
            look();
        if (run.node->size > 0)
            look_at_bitmaps();
        node_unref(run.node);
    }
    if (open_node(NODE_WRITABLE | NODE_UNMAP) == 0) {
        for (unsigned i = 0; i < CHANGES && run.node->size > 0; i++)
            change();
        node_unref(run.node);
        look_again();
    }
    return 0;
}

/* One reactor for all inputs: it costs more than most of them. */
static void start_once(void)
{
    static bool started;
    struct error error;

    if (!started) {
        require(reactor_init(&error) == 0);
        secret_store_init(&secrets);
        require(secret_store_add(&secrets, "s", "open sesame", 11, &error) == 0);
    }
    started = true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t seed = size;

    start_once();
    for (size_t i = 0; i < size; i++)
        seed = seed * 31 + data[i];
    run.prng = prng_of(seed);
    run.written_count = 0;
    run.bitmaps_changed = false;
    memory.data = malloc(size + 1);
    require(memory.data != NULL);
    memcpy(memory.data, data, size);
    memory.size = size;
    memory.room = size + 1;
    reactor_run_coroutine(run_all, NULL);
    free(memory.data);
    memory.data = NULL;
    return 0;
}
