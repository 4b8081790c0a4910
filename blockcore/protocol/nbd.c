/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Protocol `nbd`: a disk that another server exports.
 *
 * node->size is what the server told, and is fixed: what lies behind reads as zeroes, and cannot be
 * written.  The smallest block that the server takes is the node's alignment, which the core keeps;
 * what is larger than the server takes is cut here.
 */
#include "blockcore/protocol/nbd.h"
#include "base/buffer.h"
#include "base/checked.h"
#include "base/iov.h"
#include "base/trace.h"
#include "blockcore/drivers.h"
#include "blockcore/node.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Commands without data have a length of 32 bits. */
#define RANGE_MAX GIB
/* Smaller pieces are taken for data: a server must not make one read a million questions. */
#define EXTENT_BYTES_MIN 4096

struct nbd {
    struct nbd_remote remote;
    /* A run of data that the server told of, and that nobody has zeroed since. */
    uint64_t data_start, data_end;
};

static const char *const nbd_names[] = {"nbd:", "nbds:", "nbd+unix:", "nbds+unix:", NULL};

static int set_name(struct node *node, struct nbd_remote *remote, struct error *error)
{
    char *name = nbd_options_name(&remote->options), shown[300];

    if (name)
        error_escape(shown, sizeof(shown), name, strlen(name));
    if (!name || asprintf(&remote->name, "'%s'", shown) < 0)
        remote->name = NULL;
    free(name);
    node->label = remote->name ? strdup(remote->name) : NULL;
    return node->label ? 0 : error_set(error, ENOMEM, "out of memory");
}

static int nbd_open(struct node *node, struct node_open *open, struct error *error)
{
    struct nbd *nbd = node->state;
    struct nbd_remote *remote = &nbd->remote;
    int err = nbd_options_take(&remote->options, open, error);

    if (err == 0)
        err = set_name(node, remote, error);
    if (err == 0)
        err = nbd_remote_open(remote, error);
    if (err < 0)
        return err;
    if ((open->flags & NODE_WRITABLE) && remote->info.read_only)
        return error_set(error, EROFS, "%s is a read-only export; use --read-only", remote->name);
    node->size = remote->info.size;
    node->request_alignment = (uint32_t)remote->info.min_block;
    nbd_remote_start(remote);
    return 0;
}

static void nbd_close_node(struct node *node)
{
    struct nbd *nbd = node->state;

    nbd_remote_close(&nbd->remote);
    nbd_options_fini(&nbd->remote.options);
    free(nbd->remote.name);
}

static void nbd_stop(struct node *node)
{
    struct nbd *nbd = node->state;

    nbd_remote_stop(&nbd->remote);
}

/* One command; an error is one that the core can pass on. */
static int run(struct node *node, struct nbd_command *command)
{
    struct nbd *nbd = node->state;
    int err = nbd_remote_run(&nbd->remote, command);

    TRACE(remote_command, "%s operation %d offset %" PRIu64 " length %" PRIu64 ": %d",
          node_name(node), command->operation, command->offset, command->length, err);
    switch (err) {
    case 0:
    case -ENOSPC:
    case -ENOMEM:
    case -EPERM:
    case -EROFS:
    case -ENOTCONN:
    case -EOPNOTSUPP:
        return err;
    default:
        return -EIO;
    }
}

/* As run(), for those who need not know that there is no server. */
static int run_or_fail(struct node *node, struct nbd_command *command)
{
    int err = run(node, command);

    return err == -ENOTCONN ? -EIO : err;
}

/* The command for all of its range, in pieces of at most `most` bytes. */
static int run_pieces(struct node *node, struct nbd_command command, uint64_t most)
{
    uint64_t left = command.length;

    while (left > 0) {
        int err;

        command.length = min_u64(left, most);
        err = run_or_fail(node, &command);
        if (err < 0)
            return err;
        command.offset += command.length;
        if (command.buffer)
            command.buffer = (uint8_t *)command.buffer + command.length;
        left -= command.length;
    }
    return 0;
}

static int transfer(struct node *node, enum nbd_operation operation, void *buffer, size_t length,
                    uint64_t offset)
{
    const struct nbd *nbd = node->state;
    const struct nbd_command command = {
        .operation = operation, .buffer = buffer, .offset = offset, .length = length};

    return run_pieces(node, command, nbd->remote.info.max_payload);
}

static int nbd_preadv(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    size_t length = iov_length(iov, iovcnt), inside = 0;
    void *buffer = iov[0].iov_base;
    int err;

    if (offset < node->size)
        inside = min_u64(length, node->size - offset);
    iov_fill(iov, iovcnt, inside, length - inside, 0);
    if (iovcnt == 1 || inside == 0)
        return transfer(node, NBD_OP_READ, buffer, inside, offset);
    buffer = buffer_get(inside);
    if (!buffer)
        return -ENOMEM;
    err = transfer(node, NBD_OP_READ, buffer, inside, offset);
    if (err == 0)
        iov_from_buffer(iov, iovcnt, 0, buffer, inside);
    buffer_put(buffer, inside);
    return err;
}

static int nbd_pwritev(struct node *node, const struct iovec *iov, int iovcnt, uint64_t offset)
{
    size_t length = iov_length(iov, iovcnt);
    void *buffer;
    int err;

    if (!range_within(offset, length, node->size))
        return -ENOSPC;
    if (iovcnt == 1)
        return transfer(node, NBD_OP_WRITE, iov[0].iov_base, length, offset);
    buffer = buffer_get(length);
    if (!buffer)
        return -ENOMEM;
    iov_to_buffer(buffer, iov, iovcnt, 0, length);
    err = transfer(node, NBD_OP_WRITE, buffer, length, offset);
    buffer_put(buffer, length);
    return err;
}

static void forget_data(struct nbd *nbd)
{
    nbd->data_start = nbd->data_end = 0;
}

static int nbd_zero(struct node *node, uint64_t offset, uint64_t length, unsigned flags)
{
    struct nbd *nbd = node->state;
    const struct nbd_export_info *info = &nbd->remote.info;
    const struct nbd_command command = {
        .operation = NBD_OP_ZERO, .offset = offset, .length = length, .flags = flags};
    int err;

    if (!range_within(offset, length, node->size))
        return -ENOSPC;
    if (!info->can_zero || ((flags & ZERO_FAST) && !info->can_fast_zero))
        return -EOPNOTSUPP;
    err = run_pieces(node, command, RANGE_MAX);
    forget_data(nbd);
    return err;
}

static int nbd_discard(struct node *node, uint64_t offset, uint64_t length)
{
    struct nbd *nbd = node->state;
    uint32_t align = node->request_alignment;
    uint64_t start = align_up(offset, align);
    uint64_t end = align_down(min_u64(offset + length, node->size), align);
    const struct nbd_command command = {
        .operation = NBD_OP_TRIM, .offset = start, .length = end - start};
    int err;

    if (!nbd->remote.info.can_trim || start >= end)
        return 0;
    err = run_pieces(node, command, RANGE_MAX);
    forget_data(nbd);
    return err;
}

/* That nobody could be asked does not mean that the next flush is worth nothing: -ENOTCONN. */
static int nbd_flush(struct node *node)
{
    struct nbd *nbd = node->state;
    struct nbd_command command = {.operation = NBD_OP_FLUSH};

    return nbd->remote.info.can_flush ? run(node, &command) : 0;
}

static int nbd_prefetch(struct node *node, uint64_t offset, uint64_t length)
{
    struct nbd *nbd = node->state;
    uint32_t align = node->request_alignment;
    uint64_t start = align_down(offset, align);
    uint64_t end = min_u64(align_up(offset + length, align), node->size);
    const struct nbd_command command = {
        .operation = NBD_OP_CACHE, .offset = start, .length = end - start};

    if (!nbd->remote.info.can_cache || start >= end)
        return 0;
    return run_pieces(node, command, nbd->remote.info.max_payload);
}

/* Asks the server. What it cannot tell is data: reading shows what it is. */
static void ask_status(struct node *node, uint64_t offset, struct extent *ret)
{
    struct nbd *nbd = node->state;
    uint32_t align = node->request_alignment;
    uint64_t start = align_down(offset, align);
    uint64_t length = min_u64(align_up(offset + ret->length, align), node->size) - start;
    struct nbd_command command = {
        .operation = NBD_OP_STATUS, .offset = start, .length = min_u64(length, RANGE_MAX)};
    uint64_t end;

    if (run(node, &command) < 0 || command.extent_length <= offset - start)
        return;
    end = start + command.extent_length;
    if (end - offset < EXTENT_BYTES_MIN && command.extent_length < command.length) {
        end = min_u64(align_up(end, EXTENT_BYTES_MIN), node->size);
        command.extent_zero = false;
    }
    ret->length = min_u64(ret->length, end - offset);
    if (command.extent_zero) {
        ret->kind = EXTENT_ZERO;
    } else {
        nbd->data_start = start;
        nbd->data_end = end;
    }
}

/* The last run of data is remembered: should others have zeroed it, it is still right. */
static int nbd_map(struct node *node, uint64_t offset, uint64_t length, struct extent *ret)
{
    const struct nbd *nbd = node->state;

    *ret = (struct extent){.kind = EXTENT_DATA, .length = length};
    if (offset >= node->size) {
        ret->kind = EXTENT_ZERO;
        return 0;
    }
    ret->length = min_u64(length, node->size - offset);
    if (offset >= nbd->data_start && offset < nbd->data_end) {
        ret->length = min_u64(ret->length, nbd->data_end - offset);
        return 0;
    }
    if (!nbd->remote.info.has_status)
        return 0;
    if (!coroutine_self())
        return -EAGAIN;
    ask_status(node, offset, ret);
    return 0;
}

const struct driver driver_nbd = {
    .name = "nbd",
    .kind = DRIVER_PROTOCOL,
    .state_size = sizeof(struct nbd),
    .options = nbd_option_rows,
    .names = nbd_names,
    .open = nbd_open,
    .close = nbd_close_node,
    .stop = nbd_stop,
    .map = nbd_map,
    .zero = nbd_zero,
    .discard = nbd_discard,
    .flush = nbd_flush,
    .preadv = nbd_preadv,
    .pwritev = nbd_pwritev,
    .prefetch = nbd_prefetch,
};
