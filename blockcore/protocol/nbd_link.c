/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One connection to a server, by libnbd; the only file that knows it.
 *
 * libnbd's asynchronous calls never wait, with one exception: to connect by TCP looks a name up, so
 * that is done in a worker.  Everything else runs on the loop's stack: commands are queued by their
 * coroutines and handed over together at the end of the turn, and what libnbd wants to know of its
 * socket is watched.  A callback of libnbd only notes what the answer was.
 *
 * However a connection ends, nothing of libnbd remains that knows of a command: the handle is
 * closed, which neither calls nor touches anything any more, and the commands are told -ENOTCONN.
 */
#include "base/checked.h"
#include "base/log.h"
#include "base/sys.h"
#include "base/trace.h"
#include "base/worker.h"
#include "blockcore/protocol/nbd.h"
#include "blockcore/protocol/nbd_trust.h"

#include <errno.h>
#include <libnbd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>

#define SECOND_NS INT64_C(1000000000)
#define DISCONNECT_NS (SECOND_NS / 2)
/* What a server that does not tell its limits takes. */
#define PAYLOAD_DEFAULT (32 * MIB)
/* Replies that are taken before others have their turn. */
#define REPLIES_PER_TURN 64

/* What libnbd said last, without the name of its function. */
static void note_error(struct nbd_link *link)
{
    const char *text = nbd_get_error(), *colon, *hint = "";

    if (!text)
        text = "the connection was closed";
    colon = strncmp(text, "nbd_", 4) == 0 ? strstr(text, ": ") : NULL;
    if (strstr(text, "certificate verification"))
        hint = "; perhaps the server's certificate is not of the CA that is trusted here, has "
               "expired, or is for another name";
    error_set(&link->why, EIO, "%s%s", colon ? colon + 2 : text, hint);
}

/* ---- Waiting for the link itself ---- */

static void end_wait(struct nbd_link *link, bool woken)
{
    struct coroutine *waiter = link->waiter;

    if (!waiter)
        return;
    link->waiter = NULL;
    link->wait_ended = woken;
    reactor_timer_stop(&link->wait_timer);
    coroutine_wake(waiter);
}

static void on_wait_timer(struct reactor_timer *timer)
{
    end_wait(container_of(timer, struct nbd_link, wait_timer), false);
}

bool nbd_link_wait(struct nbd_link *link, int64_t ns)
{
    link->waiter = coroutine_self();
    if (ns >= 0)
        reactor_timer_start(&link->wait_timer, ns, on_wait_timer);
    coroutine_suspend();
    return link->wait_ended;
}

void nbd_link_wake(struct nbd_link *link)
{
    end_wait(link, true);
}

void nbd_link_cancel(struct nbd_link *link)
{
    link->cancelled = true;
    nbd_link_wake(link);
}

/* ---- The end of commands and connections ---- */

static void end_command(struct nbd_command *command, int result)
{
    command->result = result;
    command->done = true;
    list_remove(&command->list);
    command->link->load--;
    if (command->waiter)
        coroutine_wake(command->waiter);
}

static void end_commands(struct list *commands)
{
    while (!list_empty(commands))
        end_command(list_entry(commands->next, struct nbd_command, list), -ENOTCONN);
}

static void close_handle(struct nbd_link *link)
{
    bool was_ready = link->ready;

    link->ready = link->condemned = false;
    reactor_fd_free(link->watch);
    link->watch = NULL;
    reactor_timer_stop(&link->timeout);
    reactor_defer_cancel(&link->issue);
    nbd_close(link->handle);
    link->handle = NULL;
    end_commands(&link->sent);
    end_commands(&link->queued);
    nbd_link_wake(link);
    if (was_ready)
        link->lost(link);
}

void nbd_link_drop(struct nbd_link *link, const char *why)
{
    if (!link->handle)
        return;
    error_set(&link->why, EIO, "%s", why);
    close_handle(link);
}

/* ---- The socket ---- */

static void on_socket(void *arg, unsigned events);

/* Does what the state that libnbd has come to asks for. */
static void update(struct nbd_link *link)
{
    struct nbd_handle *h = link->handle;
    int fd;

    if (nbd_aio_is_dead(h) || nbd_aio_is_closed(h) || link->condemned) {
        if (!link->why.text[0])
            error_set(&link->why, EIO, "the server ended it");
        close_handle(link);
        return;
    }
    if (!link->ready && nbd_aio_is_ready(h)) {
        nbd_link_wake(link);
        return;
    }
    fd = nbd_aio_get_fd(h);
    /* While it connects, another address may have a new socket of the same number. */
    if (fd != link->fd || !link->ready || !link->watch) {
        reactor_fd_free(link->watch);
        link->fd = fd;
        link->watch = reactor_fd_new(fd, nbd_aio_get_direction(h), on_socket, link);
        if (!link->watch)
            nbd_link_drop(link, "out of memory");
    } else {
        reactor_fd_set(link->watch, nbd_aio_get_direction(h));
    }
}

/* Told to read where there is nothing, libnbd waits for it and issues no commands meanwhile. */
static bool readable(int fd)
{
    struct pollfd pollfd = {.fd = fd, .events = POLLIN};

    return poll(&pollfd, 1, 0) > 0;
}

static void on_socket(void *arg, unsigned events)
{
    struct nbd_link *link = arg;

    for (int i = 0; i < REPLIES_PER_TURN; i++) {
        unsigned wanted = events & nbd_aio_get_direction(link->handle);
        uint64_t completed = link->completed;
        int r = 0;

        if (wanted & LIBNBD_AIO_DIRECTION_READ)
            r = nbd_aio_notify_read(link->handle);
        else if (wanted & LIBNBD_AIO_DIRECTION_WRITE)
            r = nbd_aio_notify_write(link->handle);
        if (r < 0)
            note_error(link);
        if (r < 0 || link->completed == completed || !readable(link->fd))
            break;
    }
    update(link);
}

/* ---- Commands ---- */

static void on_timeout(struct reactor_timer *timer);

static void watch_time(struct nbd_link *link)
{
    uint64_t limit = link->options->request_timeout;
    const struct nbd_command *first;
    int64_t left;

    if (limit == 0 || list_empty(&link->sent) || link->timeout.heap_index != 0)
        return;
    first = list_entry(link->sent.next, struct nbd_command, list);
    left = first->sent_ns + (int64_t)limit * SECOND_NS - sys->monotonic_ns();
    reactor_timer_start(&link->timeout, left > 0 ? left : 0, on_timeout);
}

static void on_timeout(struct reactor_timer *timer)
{
    struct nbd_link *link = container_of(timer, struct nbd_link, timeout);
    int64_t limit_ns = (int64_t)link->options->request_timeout * SECOND_NS;

    if (list_empty(&link->sent))
        return;
    if (sys->monotonic_ns() - list_entry(link->sent.next, struct nbd_command, list)->sent_ns >=
        limit_ns)
        nbd_link_drop(link, "the server left a request unanswered (request-timeout)");
    else
        watch_time(link);
}

/*
 * A part of what is read; within libnbd, which does not look whether the parts are the whole.  They
 * may not overlap.
 */
static int on_chunk(void *arg, const void *data, size_t length, uint64_t offset, unsigned status,
                    int *error)
{
    struct nbd_command *command = arg;

    (void)data;
    (void)offset;
    (void)error;
    if (status == LIBNBD_READ_DATA || status == LIBNBD_READ_HOLE)
        command->received += length;
    return 0;
}

/* The answer; within libnbd. */
static int on_completed(void *arg, int *error)
{
    struct nbd_command *command = arg;
    struct nbd_link *link = command->link;
    int err = -*error;

    link->completed++;
    if (err == -ESHUTDOWN || err == -ENOTCONN) { /* the server goes: that is for another one */
        link->condemned = true;
        err = -ENOTCONN;
    }
    if (err == 0 && command->operation == NBD_OP_READ && command->received != command->length)
        err = -EIO;
    end_command(command, err);
    return 1;
}

/* The extents of base:allocation: flags, of which 2 is "reads as zeroes"; within libnbd. */
static int on_extents(void *arg, const char *context, uint64_t offset, uint32_t *entries,
                      size_t count, int *error)
{
    struct nbd_command *command = arg;
    uint64_t length = 0;

    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || command->extent_length > 0 ||
        offset != command->offset || count < 2)
        return 0;
    command->extent_zero = entries[1] & LIBNBD_STATE_ZERO;
    for (size_t i = 0; i + 1 < count; i += 2) {
        if ((bool)(entries[i + 1] & LIBNBD_STATE_ZERO) != command->extent_zero)
            break;
        length += entries[i];
    }
    command->extent_length = min_u64(length, command->length);
    return 0;
}

static uint32_t zero_flags(const struct nbd_command *command)
{
    return (command->flags & ZERO_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
           (command->flags & ZERO_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
}

static int64_t hand_over(struct nbd_handle *h, struct nbd_command *c)
{
    const nbd_completion_callback completed = {.callback = on_completed, .user_data = c};
    const nbd_chunk_callback chunk = {.callback = on_chunk, .user_data = c};
    const nbd_extent_callback extents = {.callback = on_extents, .user_data = c};

    switch (c->operation) {
    case NBD_OP_READ:
        return nbd_aio_pread_structured(h, c->buffer, c->length, c->offset, chunk, completed, 0);
    case NBD_OP_WRITE:
        return nbd_aio_pwrite(h, c->buffer, c->length, c->offset, completed, 0);
    case NBD_OP_FLUSH:
        return nbd_aio_flush(h, completed, 0);
    case NBD_OP_TRIM:
        return nbd_aio_trim(h, c->length, c->offset, completed, 0);
    case NBD_OP_ZERO:
        return nbd_aio_zero(h, c->length, c->offset, completed, zero_flags(c));
    case NBD_OP_CACHE:
        return nbd_aio_cache(h, c->length, c->offset, completed, 0);
    default:
        return nbd_aio_block_status(h, c->length, c->offset, extents, completed, 0);
    }
}

/* On the loop's stack: gives libnbd what was queued in this turn. */
static void issue(struct reactor_deferred *deferred)
{
    struct nbd_link *link = container_of(deferred, struct nbd_link, issue);
    struct list *node;

    while ((node = list_pop(&link->queued))) {
        struct nbd_command *command = list_entry(node, struct nbd_command, list);
        int64_t cookie;

        list_append(&link->sent, node);
        command->sent_ns = sys->monotonic_ns();
        cookie = hand_over(link->handle, command);
        if (cookie < 0 && !command->done) {
            int err = nbd_get_errno();

            if (nbd_aio_is_dead(link->handle) || nbd_aio_is_closed(link->handle))
                note_error(link);
            else
                end_command(command, err ? -err : -EIO);
        }
    }
    watch_time(link);
    update(link);
}

int nbd_link_run(struct nbd_link *link, struct nbd_command *command)
{
    command->link = link;
    command->done = false;
    command->extent_length = command->received = 0;
    command->list = (struct list){0};
    command->waiter = coroutine_self();
    list_append(&link->queued, &command->list);
    link->load++;
    reactor_defer(&link->issue);
    coroutine_suspend();
    return command->result;
}

/* ---- Connecting ---- */

static int set_tls(struct nbd_handle *h, const struct nbd_options *o)
{
    if (!o->tls)
        return 0;
    if (nbd_set_tls(h, LIBNBD_TLS_REQUIRE) < 0)
        return -1;
    if (o->tls_psk_file && nbd_set_tls_psk_file(h, o->tls_psk_file) < 0)
        return -1;
    if (o->tls_certificates && nbd_set_tls_certificates(h, o->tls_certificates) < 0)
        return -1;
    if (o->tls_username && nbd_set_tls_username(h, o->tls_username) < 0)
        return -1;
    return nbd_set_tls_verify_peer(h, o->verify_peer);
}

struct connect_call {
    struct nbd_link *link;
    const struct nbd_options *options;
    struct nbd_handle *handle;
    struct nbd_trust trust;
    struct error error; /* of confirm_trust() */
};

/* In a worker, whose the handle is meanwhile: what libnbd says is kept by thread. */
static int start_connecting(void *arg)
{
    struct connect_call *call = arg;
    const struct nbd_options *o = call->options;
    struct nbd_handle *h = call->handle;
    int r = nbd_trust_look(&call->trust, o, &call->link->why);

    if (r < 0)
        return r;
    r = nbd_set_export_name(h, o->export_name);
    if (r == 0)
        r = nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION);
    if (r == 0)
        r = set_tls(h, o);
    if (r == 0)
        r = o->path ? nbd_aio_connect_unix(h, o->path) : nbd_aio_connect_tcp(h, o->host, o->port);
    if (r < 0)
        note_error(call->link);
    return r < 0 ? -EIO : 0;
}

/* In a worker. libnbd has read the certificates by now. */
static int confirm_trust(void *arg)
{
    struct connect_call *call = arg;

    return nbd_trust_confirm(&call->trust, call->options, &call->error);
}

static int confirm(struct nbd_link *link, struct connect_call *call, struct error *error)
{
    int err;

    if (!nbd_trust_needed(link->options))
        return 0;
    err = co_run_in_worker(confirm_trust, call);
    if (err < 0)
        return error_set(error, -err, "%s", call->error.text);
    return link->handle ? 0 : error_set(error, EIO, "%s", link->why.text);
}

/* A number that libnbd may not know. */
static uint32_t is_true(int answer)
{
    return answer > 0;
}

static void get_blocks(struct nbd_handle *h, struct nbd_export_info *info)
{
    int64_t minimum = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t maximum = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    info->min_block = minimum > 0 ? (uint64_t)minimum : 1;
    info->max_payload = maximum > 0 ? min_u64((uint64_t)maximum, PAYLOAD_DEFAULT) : PAYLOAD_DEFAULT;
    if (is_power_of_two(info->min_block))
        info->max_payload = align_down(info->max_payload, info->min_block);
}

static int get_info(struct nbd_link *link, struct error *error)
{
    struct nbd_handle *h = link->handle;
    struct nbd_export_info *info = &link->info;
    int64_t size = nbd_get_size(h);

    memset(info, 0, sizeof(*info));
    if (size < 0)
        return error_set(error, EINVAL, "the server does not tell a size below 2^63");
    info->size = (uint64_t)size;
    get_blocks(h, info);
    info->read_only = is_true(nbd_is_read_only(h));
    info->can_flush = is_true(nbd_can_flush(h));
    info->can_trim = is_true(nbd_can_trim(h));
    info->can_zero = is_true(nbd_can_zero(h));
    info->can_fast_zero = is_true(nbd_can_fast_zero(h));
    info->can_cache = is_true(nbd_can_cache(h));
    info->multi_conn = is_true(nbd_can_multi_conn(h));
    info->has_status = is_true(nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION));
    if (!is_power_of_two(info->min_block) || info->min_block > 64 * KIB || info->max_payload == 0)
        return error_set(error, EINVAL,
                         "the server wants blocks of %llu bytes at least and %llu at most; the "
                         "first has to be a power of two up to 65536, and not above the second",
                         (unsigned long long)info->min_block,
                         (unsigned long long)info->max_payload);
    if (!is_aligned(info->size, info->min_block))
        return error_set(error, EINVAL,
                         "the size of the export, %llu bytes, is no multiple of the smallest "
                         "block that the server takes, %llu bytes",
                         (unsigned long long)info->size, (unsigned long long)info->min_block);
    return 0;
}

/* A peer that is gone without a word is found; on a Unix socket these fail, and are not needed. */
static void set_keepalive(int fd)
{
    static const struct {
        int level, name, value;
    } settings[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1},          {IPPROTO_TCP, TCP_KEEPIDLE, 30},
        {IPPROTO_TCP, TCP_KEEPINTVL, 10},       {IPPROTO_TCP, TCP_KEEPCNT, 3},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, 60000},
    };

    for (size_t i = 0; i < ARRAY_SIZE(settings); i++)
        sys->setsockopt(fd, settings[i].level, settings[i].name, &settings[i].value, sizeof(int));
}

/* Waits until libnbd has done the handshake. */
static int negotiate(struct nbd_link *link, int64_t deadline_ns, struct error *error)
{
    update(link);
    while (link->handle && !nbd_aio_is_ready(link->handle)) {
        int64_t left = deadline_ns - sys->monotonic_ns();

        if (link->cancelled)
            return error_set(error, ECANCELED, "it is not wanted any more");
        if (!nbd_link_wait(link, left > 0 ? left : 0))
            nbd_link_drop(link, "the server did not finish the handshake in time");
    }
    return link->handle ? 0 : error_set(error, EIO, "%s", link->why.text);
}

int nbd_link_connect(struct nbd_link *link, int64_t deadline_ns, struct error *error)
{
    struct connect_call call = {.link = link, .options = link->options, .handle = nbd_create()};
    int err;

    if (!call.handle)
        return error_set(error, ENOMEM, "out of memory");
    link->why = (struct error){""};
    err = co_run_in_worker(start_connecting, &call);
    link->handle = call.handle;
    if (err < 0) {
        close_handle(link);
        return error_set(error, EIO, "%s", link->why.text);
    }
    link->fd = -1;
    err = negotiate(link, deadline_ns, error);
    if (err == 0)
        err = confirm(link, &call, error);
    if (err == 0)
        err = get_info(link, error);
    if (err < 0) {
        if (link->handle)
            close_handle(link);
        return err;
    }
    link->ready = true;
    link->completed = 0;
    set_keepalive(nbd_aio_get_fd(link->handle));
    update(link);
    return link->ready ? 0 : error_set(error, EIO, "%s", link->why.text);
}

void nbd_link_disconnect(struct nbd_link *link)
{
    int64_t deadline = sys->monotonic_ns() + DISCONNECT_NS;

    if (link->ready && nbd_aio_disconnect(link->handle, 0) == 0) {
        update(link);
        while (link->handle && sys->monotonic_ns() < deadline)
            if (!nbd_link_wait(link, deadline - sys->monotonic_ns()))
                break;
    }
    if (link->handle)
        close_handle(link);
}

void nbd_link_init(struct nbd_link *link, const struct nbd_options *options,
                   void (*lost)(struct nbd_link *link))
{
    link->options = options;
    link->lost = lost;
    link->issue.run = issue;
    list_init(&link->queued);
    list_init(&link->sent);
}
