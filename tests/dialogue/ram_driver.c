/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk in memory. The node's options carry the address of its struct as a number. */
#include "tests/dialogue/ram_driver.h"

#include "base/coroutine.h"
#include "base/iov.h"
#include "blockcore/drivers.h"
#include "tests/support/support.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct ram_state {
    uint64_t address; /* of the struct ram_disk */
};

struct ram_call {
    struct list link;
    struct coroutine *co;
};

static struct ram_disk *disk_of(const struct node *node)
{
    const struct ram_state *state = node->state;

    return (struct ram_disk *)(uintptr_t)state->address;
}

static const struct option_row ram_options[] = {
    {"disk", OPTION_NUMBER, offsetof(struct ram_state, address), NULL, "the address of the disk"},
    {0}};

static int ram_open(struct node *node, struct node_open *open, struct error *error)
{
    int r = options_take(open->options, ram_options, node->state, "ram", error);

    if (r < 0)
        return r;
    node->size = disk_of(node)->size;
    node->request_alignment = 1;
    return 0;
}

static void ram_close(struct node *node)
{
    (void)node;
}

static void wait_if_slow(struct ram_disk *disk)
{
    struct ram_call call = {.co = coroutine_self()};

    if (!disk->slow)
        return;
    list_append(&disk->waiting, &call.link);
    disk->waiting_count++;
    coroutine_suspend();
}

void ram_disk_release(struct ram_disk *disk, unsigned index)
{
    struct list *node = disk->waiting.next;

    if (index >= disk->waiting_count)
        test_die("only %u calls wait, not %u", disk->waiting_count, index + 1);
    while (index-- > 0)
        node = node->next;
    list_remove(node);
    disk->waiting_count--;
    coroutine_wake(list_entry(node, struct ram_call, link)->co);
}

void ram_disk_release_all(struct ram_disk *disk)
{
    while (disk->waiting_count > 0)
        ram_disk_release(disk, 0);
}

/* A first part of the range, in one unit; whether it is a hole. */
static bool find_hole(const struct ram_disk *disk, uint64_t offset, uint64_t length,
                      uint64_t *ret_length)
{
    uint64_t unit = disk->unit;

    *ret_length = length;
    if (!disk->layout || offset >= disk->size)
        return false;
    *ret_length = min_u64(length, unit - offset % unit);
    return disk->layout[offset / unit % strlen(disk->layout)] == 'h';
}

static void fill_pattern(const struct ram_disk *disk, uint8_t *out, uint64_t length,
                         uint64_t offset)
{
    while (length > 0) {
        uint64_t n;
        bool hole = find_hole(disk, offset, length, &n);

        memset(out, hole ? 0 : RAM_PATTERN, n);
        out += n;
        offset += n;
        length -= n;
    }
}

static bool is_bad(const struct ram_disk *disk, const struct iovec *iov, int iovcnt,
                   uint64_t offset)
{
    return disk->bad_length > 0 &&
           ranges_overlap(offset, iov_length(iov, iovcnt), disk->bad_offset, disk->bad_length);
}

static void copy_out(const struct ram_disk *disk, const struct iovec *iov, int iovcnt,
                     uint64_t offset)
{
    for (int i = 0; i < iovcnt; offset += iov[i++].iov_len) {
        uint64_t there = offset < disk->size ? disk->size - offset : 0;
        size_t n = min_u64(iov[i].iov_len, there);

        if (n > 0 && disk->data)
            memcpy(iov[i].iov_base, disk->data + offset, n);
        else if (n > 0)
            fill_pattern(disk, iov[i].iov_base, n, offset);
        memset((uint8_t *)iov[i].iov_base + n, 0, iov[i].iov_len - n);
    }
}

static int ram_preadv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct ram_disk *disk = disk_of(node);

    disk->reads++;
    wait_if_slow(disk);
    if (disk->read_error)
        return disk->read_error;
    if (is_bad(disk, iov, iovcnt, offset))
        return -EIO;
    copy_out(disk, iov, iovcnt, offset);
    return 0;
}

static int ram_preadv_nowait(struct node *node, const struct iovec *iov, int iovcnt,
                             uint64_t offset)
{
    struct ram_disk *disk = disk_of(node);

    if (disk->slow || disk->read_error || is_bad(disk, iov, iovcnt, offset))
        return -EAGAIN;
    disk->reads++;
    copy_out(disk, iov, iovcnt, offset);
    return 0;
}

static int ram_pwritev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    struct ram_disk *disk = disk_of(node);

    disk->writes++;
    disk->writer = coroutine_owner();
    wait_if_slow(disk);
    if (disk->write_error)
        return disk->write_error;
    disk->layout = NULL;
    for (int i = 0; i < iovcnt; offset += iov[i++].iov_len) {
        if (!range_within(offset, iov[i].iov_len, disk->size))
            return -ENOSPC;
        if (!disk->data)
            return -EIO;
        memcpy(disk->data + offset, iov[i].iov_base, iov[i].iov_len);
    }
    return 0;
}

static int ram_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    struct ram_disk *disk = disk_of(node);

    disk->maps++;
    *ret = (struct extent){.kind = EXTENT_DATA};
    if (find_hole(disk, offset, length, &ret->length))
        ret->kind = EXTENT_ZERO;
    return 0;
}

static int ram_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct ram_disk *disk = disk_of(node);

    disk->zeroes++;
    disk->zero_flags = flags;
    wait_if_slow(disk);
    if (disk->zero_error)
        return disk->zero_error;
    disk->changed += length;
    if (disk->data)
        memset(disk->data + offset, 0, length);
    return 0;
}

static int ram_discard(struct node *node, uint64_t offset, uint64_t length)
{
    struct ram_disk *disk = disk_of(node);

    disk->discards++;
    wait_if_slow(disk);
    disk->changed += length;
    if (disk->data)
        memset(disk->data + offset, 0, length);
    return 0;
}

static int ram_flush(struct node *node)
{
    struct ram_disk *disk = disk_of(node);

    disk->flushes++;
    wait_if_slow(disk);
    return disk->flush_error;
}

const struct driver driver_ram = {
    .name = "ram",
    .kind = DRIVER_PROTOCOL,
    .state_size = sizeof(struct ram_state),
    .options = ram_options,
    .open = ram_open,
    .close = ram_close,
    .map = ram_map,
    .zero = ram_zero,
    .discard = ram_discard,
    .flush = ram_flush,
    .preadv = ram_preadv,
    .pwritev = ram_pwritev,
    .preadv_nowait = ram_preadv_nowait,
};

static const struct magic ram_format_magics[] = {{512, 6, "RAMFMT"}, {0}};
static const struct driver driver_ram_format = {
    .name = "ramfmt", .kind = DRIVER_FORMAT, .magics = ram_format_magics};

const struct driver *const ram_drivers[] = {&driver_ram, &driver_raw, &driver_ram_format, NULL};

void ram_disk_init(struct ram_disk *disk, uint64_t size)
{
    *disk = (struct ram_disk){.size = size, .data = calloc(1, size ? size : 1)};
    if (!disk->data)
        test_die("out of memory for a disk of %llu bytes", (unsigned long long)size);
    list_init(&disk->waiting);
}

void ram_disk_init_pattern(struct ram_disk *disk, uint64_t size)
{
    *disk = (struct ram_disk){.size = size};
    list_init(&disk->waiting);
}

void ram_disk_set_layout(struct ram_disk *disk, const char *layout, uint64_t unit)
{
    disk->layout = layout;
    disk->unit = unit;
    for (uint64_t at = 0, n; disk->data && at < disk->size; at += n) {
        if (find_hole(disk, at, disk->size - at, &n))
            memset(disk->data + at, 0, n);
    }
}

void ram_disk_fini(struct ram_disk *disk)
{
    free(disk->data);
    disk->data = NULL;
}

struct node *ram_disk_open(struct ram_disk *disk, unsigned flags)
{
    static const struct block_context context = {.drivers = ram_drivers};
    json_t *tree = json_pack("{s:s, s:{s:s, s:I}}", "driver", "raw", "file", "driver", "ram",
                             "disk", (json_int_t)(uintptr_t)disk);
    struct node *node = NULL;
    struct error error = {0};

    if (!tree || node_open_tree(&context, tree, flags, &node, &error) < 0)
        test_die("cannot open the disk in memory: %s", error.text);
    json_decref(tree);
    return node;
}
