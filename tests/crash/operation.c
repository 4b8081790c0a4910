/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading, writing and syncing, and the table of all operations. */
#include "tests/crash/operation.h"

#include "base/checked.h"
#include "blockcore/block.h"
#include "tests/crash/workload.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static size_t begin_range(struct step *s, unsigned flags)
{
    uint64_t first = s->offset / SECTOR_SIZE;
    uint64_t end = div_round_up(s->offset + s->length, SECTOR_SIZE);

    if ((s->offset | s->length) % SECTOR_SIZE != 0)
        flags |= EVENT_PARTIAL;
    return history_began(s->run->history, flags, s->run->model, first, end - first);
}

static int op_write(struct step *s)
{
    struct run *r = s->run;
    struct prng prng = prng_of(s->seed);
    size_t event;
    int err;

    prng_fill(&prng, r->model + s->offset, s->length);
    event = begin_range(s, s->operation->arg & BLOCK_FUA ? EVENT_DURABLE : 0);
    err = block_write(r->node, r->model + s->offset, s->length, s->offset, s->operation->arg);
    history_returned(r->history, event, err < 0);
    return err;
}

static int op_zero(struct step *s)
{
    struct run *r = s->run;
    size_t event;
    int err;

    memset(r->model + s->offset, 0, s->length);
    event = begin_range(s, 0);
    err = block_zero(r->node, s->offset, s->length, s->operation->arg);
    history_returned(r->history, event, err < 0);
    return err;
}

/* Each sector may become zero or stay; what it is becomes known afterwards. */
static int op_trim(struct step *s)
{
    struct run *r = s->run;
    uint8_t *at = r->model + s->offset, *old = malloc(s->length);
    size_t event;
    int err;

    if (!old)
        return -ENOMEM;
    memcpy(old, at, s->length);
    memset(at, 0, s->length);
    event = begin_range(s, EVENT_NEVER | EVENT_PARTIAL);
    memcpy(at, old, s->length);
    free(old);
    err = block_discard(r->node, s->offset, s->length, 0);
    history_returned(r->history, event, err < 0);
    if (err == 0)
        err = block_read(r->node, at, s->length, s->offset);
    if (err == 0)
        history_returned(r->history, begin_range(s, 0), false);
    return err;
}

static int op_flush(struct step *s)
{
    struct run *r = s->run;
    size_t event = history_began(r->history, EVENT_FLUSH, r->model, 0, 0);
    int err = block_flush(r->node);

    history_returned(r->history, event, err < 0);
    return err;
}

static int op_close(struct step *s)
{
    struct run *r = s->run;
    size_t event = history_began(r->history, EVENT_FLUSH, r->model, 0, 0);

    node_unref(r->node);
    r->node = NULL;
    history_returned(r->history, event, false);
    return image_open(r->row, NODE_WRITABLE | NODE_UNMAP, NULL, &r->node, &s->error);
}

/* Whole units, which get smaller. Nothing where the image cannot have them. */
static int op_write_compressed(struct step *s)
{
    struct run *r = s->run;
    uint64_t unit = r->node->compress_unit;
    struct prng prng = prng_of(s->seed);
    uint8_t word[24];
    size_t event;
    int err;

    if (unit == 0)
        return 0;
    s->offset = align_down(s->offset, unit);
    s->length = min_u64(unit, r->size - s->offset);
    prng_fill(&prng, word, sizeof(word));
    for (uint64_t i = 0; i < s->length; i++)
        r->model[s->offset + i] = word[i % sizeof(word)];
    event = begin_range(s, 0);
    err = block_write_compressed(r->node, r->model + s->offset, s->length, s->offset);
    history_returned(r->history, event, err < 0);
    return err;
}

/* Those that may run together stand first. */
static const struct operation operations[] = {
    {"write-512", op_write, OP_TOGETHER, 512, 0},
    {"write-4k", op_write, OP_TOGETHER, 4096, 0},
    {"write-cluster", op_write, OP_TOGETHER, 0, 0},
    {"write-unaligned", op_write, OP_TOGETHER, 1337, 0},
    {"write-fua", op_write, OP_TOGETHER, 4096, BLOCK_FUA},
    {"zero", op_zero, OP_TOGETHER, 0, 0},
    {"zero-unmap", op_zero, OP_TOGETHER, 0, ZERO_MAY_UNMAP},
    {"trim", op_trim, OP_TOGETHER, 0, 0},
    {"flush", op_flush, OP_TOGETHER, 0, 0},
    {"close", op_close, 0, 0, 0},
    {"write-compressed", op_write_compressed, OP_QCOW2 | OP_WORKER, 0, 0},
    {"resize-grow", op_resize_grow, 0, 0, 0},
    {"resize-shrink", op_resize_shrink, 0, 0, 0},
    {"snapshot-create", op_snapshot_create, OP_QCOW2, 0, 0},
    {"snapshot-delete", op_snapshot_delete, OP_QCOW2, 0, 0},
    {"snapshot-apply", op_snapshot_apply, OP_QCOW2, 0, 0},
    {"bitmap-add", op_bitmap_add, OP_QCOW2, 0, 0},
    {"bitmap-clear", op_bitmap_clear, OP_QCOW2, 0, 0},
    {"bitmap-remove", op_bitmap_remove, OP_QCOW2, 0, 0},
};

const struct operation *operation_get(size_t index)
{
    return index < ARRAY_SIZE(operations) ? &operations[index] : NULL;
}

const struct operation *operation_find(const char *name, size_t length)
{
    for (size_t i = 0; i < ARRAY_SIZE(operations); i++) {
        if (strlen(operations[i].name) == length && strncmp(operations[i].name, name, length) == 0)
            return &operations[i];
    }
    return NULL;
}
