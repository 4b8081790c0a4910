/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An NBD load generator that is cheaper than any server: raw protocol with simple replies, one
 * thread, epoll.  Over TLS it is not, as both sides have the same bytes to encrypt or decrypt.
 *  Each turn of a connection is one large receive that ends any number of requests,
 * and one vectored send that starts as many new ones, so that the server is what gets measured.
 *
 * A connection owns `depth` slots; the index of a slot is the cookie of its request.  New requests
 * are queued only when the queue before them has left, so a slot may wait for its send; its time
 * runs from when it was queued.
 */
#include "bench/latency.h"
#include "bench/load_options.h"
#include "bench/session.h"

#include "base/bytes.h"
#include "nbd/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    RECEIVE_BYTES = 1 << 20,
    EVENTS = 64,
    STALL_MS = 20000, /* a server that says nothing for so long is taken for hung */
    IOV_LIMIT = 1024, /* what one sendmsg takes */
};

struct slot {
    uint64_t offset;
    uint64_t queued_ns;
    uint16_t command; /* NBD_CMD_* */
    bool busy;
};

struct connection {
    struct stream *stream;
    uint64_t next_block; /* of a sequential load */
    uint64_t since_flush;

    struct slot *slots;
    uint16_t *free_slots;
    unsigned free_count;

    uint8_t *headers;  /* room for `depth` requests */
    struct iovec *iov; /* the requests that are being sent */
    unsigned iov_at, iov_count;
    bool wants_out;

    uint8_t reply[NBD_SIMPLE_REPLY_BYTES]; /* one that came in pieces */
    unsigned reply_have;
    struct slot *reading; /* whose payload comes next, or NULL */
    uint32_t payload_left;
};

struct load {
    struct load_options options;
    struct export_info export;
    struct tls_credentials *credentials; /* NULL: plain text */
    struct connection *connections;
    int epoll_fd;
    uint8_t *receive_buffer;
    uint8_t *payload;     /* what every write carries, unless verifying */
    const uint8_t *image; /* of --verify, mapped */
    uint64_t blocks;      /* of the request size in the export */
    uint64_t random;

    uint64_t now_ns, start_ns, deadline_ns;
    uint64_t issued, done, flushes, errors;
    uint64_t in_flight; /* flushes included */
    struct latency latency;
};

/* splitmix64 */
static uint64_t load_random(struct load *load)
{
    uint64_t z = load->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static uint64_t load_next_offset(struct load *load, struct connection *c)
{
    uint64_t block;
    if (load->options.sequential) {
        block = c->next_block;
        c->next_block = block + 1 == load->blocks ? 0 : block + 1;
    } else {
        block = (uint64_t)(((unsigned __int128)load_random(load) * load->blocks) >> 64);
    }
    return block * load->options.size;
}

static uint16_t load_next_command(struct load *load)
{
    static const uint16_t commands[] = {
        [OP_READ] = NBD_CMD_READ,
        [OP_WRITE] = NBD_CMD_WRITE,
        [OP_ZERO] = NBD_CMD_WRITE_ZEROES,
        [OP_TRIM] = NBD_CMD_TRIM,
    };
    if (load->options.operation != OP_MIXED)
        return commands[load->options.operation];
    bool read = load_random(load) % 100 < load->options.read_percent;
    return read ? NBD_CMD_READ : NBD_CMD_WRITE;
}

static bool load_may_issue(const struct load *load)
{
    return (!load->options.ops || load->issued < load->options.ops) &&
           load->now_ns < load->deadline_ns;
}

/* ---- sending ---- */

static void connection_append(struct connection *c, const void *data, size_t length)
{
    struct iovec *last = c->iov_count ? &c->iov[c->iov_count - 1] : NULL;
    if (last && (const uint8_t *)last->iov_base + last->iov_len == data)
        last->iov_len += length;
    else
        c->iov[c->iov_count++] = (struct iovec){(void *)(uintptr_t)data, length};
}

static void connection_queue(struct load *load, struct connection *c, uint16_t command,
                             uint8_t *header)
{
    uint16_t index = c->free_slots[--c->free_count];
    bool flush = command == NBD_CMD_FLUSH;
    bool fua = load->options.fua && !flush && command != NBD_CMD_READ;
    uint64_t offset = flush ? 0 : load_next_offset(load, c);
    c->slots[index] = (struct slot){
        .offset = offset, .queued_ns = load->now_ns, .command = command, .busy = true};
    put_be32(header, NBD_REQUEST_MAGIC);
    put_be16(header + 4, fua ? NBD_CMD_FLAG_FUA : 0);
    put_be16(header + 6, command);
    put_be64(header + 8, index);
    put_be64(header + 16, offset);
    put_be32(header + 24, flush ? 0 : load->options.size);
    connection_append(c, header, NBD_REQUEST_BYTES);
    if (command == NBD_CMD_WRITE)
        connection_append(c, load->image ? load->image + offset : load->payload,
                          load->options.size);
    load->in_flight++;
    load->issued += !flush;
}

static void connection_refill(struct load *load, struct connection *c)
{
    uint8_t *header = c->headers;
    c->iov_at = c->iov_count = 0;
    while (c->free_count && load_may_issue(load)) {
        uint16_t command = load_next_command(load);
        if (load->options.flush_every && c->since_flush++ == load->options.flush_every) {
            c->since_flush = 0;
            command = NBD_CMD_FLUSH;
        }
        connection_queue(load, c, command, header);
        header += NBD_REQUEST_BYTES;
    }
}

static void connection_sent(struct connection *c, size_t length)
{
    while (c->iov_at < c->iov_count && length >= c->iov[c->iov_at].iov_len)
        length -= c->iov[c->iov_at++].iov_len;
    if (length) {
        struct iovec *first = &c->iov[c->iov_at];
        first->iov_base = (uint8_t *)first->iov_base + length;
        first->iov_len -= length;
    }
}

static void connection_send(struct load *load, struct connection *c)
{
    while (c->iov_at < c->iov_count) {
        unsigned count = c->iov_count - c->iov_at;
        ssize_t n = c->stream->ops->send(c->stream, c->iov + c->iov_at,
                                         (int)(count < IOV_LIMIT ? count : IOV_LIMIT), false);
        if (n == -EAGAIN)
            break;
        if (n < 0)
            die("cannot send requests: %s", strerror((int)-n));
        connection_sent(c, (size_t)n);
    }
    bool wants_out = c->iov_at < c->iov_count;
    if (wants_out == c->wants_out)
        return;
    c->wants_out = wants_out;
    struct epoll_event event = {.events = EPOLLIN | (wants_out ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(load->epoll_fd, EPOLL_CTL_MOD, c->stream->fd, &event);
}

/* ---- receiving ---- */

static void slot_finish(struct load *load, struct connection *c, struct slot *slot)
{
    if (slot->command == NBD_CMD_FLUSH) {
        load->flushes++;
    } else {
        load->done++;
        latency_add(&load->latency, load->now_ns - slot->queued_ns);
    }
    slot->busy = false;
    load->in_flight--;
    c->free_slots[c->free_count++] = (uint16_t)(slot - c->slots);
}

static void connection_reply(struct load *load, struct connection *c, const uint8_t *reply)
{
    uint32_t error = get_be32(reply + 4);
    uint64_t index = get_be64(reply + 8);
    if (get_be32(reply) != NBD_SIMPLE_REPLY_MAGIC)
        die("the server sent 0x%08x where a simple reply should begin", get_be32(reply));
    if (index >= load->options.depth || !c->slots[index].busy)
        die("the server answered request %" PRIu64 ", which is not in flight", index);
    struct slot *slot = &c->slots[index];
    if (error && !load->errors++)
        fprintf(stderr, "load: first error: command %u at offset %" PRIu64 ": server says %u\n",
                slot->command, slot->offset, error);
    if (slot->command == NBD_CMD_READ && !error) {
        c->reading = slot;
        c->payload_left = load->options.size;
    } else {
        slot_finish(load, c, slot);
    }
}

static size_t connection_payload(struct load *load, struct connection *c, const uint8_t *data,
                                 size_t length)
{
    size_t n = length < c->payload_left ? length : c->payload_left;
    uint64_t position = c->reading->offset + load->options.size - c->payload_left;
    if (load->image && memcmp(data, load->image + position, n) != 0)
        die("the %zu bytes read from offset %" PRIu64 " differ from '%s'", n, position,
            load->options.verify_file);
    c->payload_left -= (uint32_t)n;
    if (!c->payload_left) {
        slot_finish(load, c, c->reading);
        c->reading = NULL;
    }
    return n;
}

static size_t connection_header(struct load *load, struct connection *c, const uint8_t *data,
                                size_t length)
{
    if (!c->reply_have && length >= sizeof(c->reply)) {
        connection_reply(load, c, data);
        return sizeof(c->reply);
    }
    size_t missing = sizeof(c->reply) - c->reply_have;
    size_t n = length < missing ? length : missing;
    memcpy(c->reply + c->reply_have, data, n);
    c->reply_have += (unsigned)n;
    if (c->reply_have == sizeof(c->reply)) {
        c->reply_have = 0;
        connection_reply(load, c, c->reply);
    }
    return n;
}

static void connection_receive(struct load *load, struct connection *c)
{
    struct iovec room = {load->receive_buffer, RECEIVE_BYTES};
    ssize_t n = c->stream->ops->recv(c->stream, &room, 1);
    if (n == -EAGAIN)
        return;
    if (n < 0)
        die("cannot receive replies: %s", strerror((int)-n));
    if (n == 0)
        die("the server closed a connection with requests in flight");
    load->now_ns = (uint64_t)clock_ns();
    const uint8_t *data = load->receive_buffer;
    for (size_t left = (size_t)n; left;) {
        size_t used = c->reading ? connection_payload(load, c, data, left)
                                 : connection_header(load, c, data, left);
        data += used;
        left -= used;
    }
}

/* ---- the run ---- */

static void connection_turn(struct load *load, struct connection *c, uint32_t events)
{
    if (events & ~(uint32_t)EPOLLOUT) {
        do {
            connection_receive(load, c);
        } while (c->stream->ops->pending(c->stream));
    }
    if (c->iov_at == c->iov_count)
        connection_refill(load, c);
    connection_send(load, c);
}

static void load_run(struct load *load)
{
    load->start_ns = load->now_ns = (uint64_t)clock_ns();
    load->deadline_ns = UINT64_MAX;
    if (load->options.seconds > 0)
        load->deadline_ns = load->start_ns + (uint64_t)(load->options.seconds * (double)NS_PER_S);
    for (unsigned i = 0; i < load->options.connections; i++)
        connection_turn(load, &load->connections[i], EPOLLOUT);
    while (load->in_flight) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(load->epoll_fd, events, EVENTS, STALL_MS);
        if (n == 0)
            die("the server has not answered for %d s; %" PRIu64 " requests are in flight",
                STALL_MS / 1000, load->in_flight);
        for (int i = 0; i < n; i++)
            connection_turn(load, events[i].data.ptr, events[i].events);
    }
}

/* Keeps the connections open without a request; a server that drops one is counted as an error. */
static void load_idle(struct load *load)
{
    printf("ready=%u\n", load->options.connections);
    fflush(stdout);
    load->start_ns = (uint64_t)clock_ns();
    usleep((useconds_t)(load->options.seconds * 1e6));
    load->now_ns = (uint64_t)clock_ns();
    for (unsigned i = 0; i < load->options.connections; i++) {
        char byte;
        if (recv(load->connections[i].stream->fd, &byte, 1, MSG_DONTWAIT) >= 0 || errno != EAGAIN)
            load->errors++;
    }
}

static void load_report(const struct load *load)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                 (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    double seconds = (double)(load->now_ns - load->start_ns) / (double)NS_PER_S;
    double rate = seconds > 0 ? (double)load->done / seconds : 0;
    printf("ops=%" PRIu64 " seconds=%.6f ops_per_s=%.1f mb_per_s=%.2f p50_us=%.1f p99_us=%.1f "
           "errors=%" PRIu64 " flushes=%" PRIu64 " client_cpu_s=%.3f\n",
           load->done, seconds, rate, rate * load->options.size / 1e6,
           latency_percentile_us(&load->latency, 0.5), latency_percentile_us(&load->latency, 0.99),
           load->errors, load->flushes, cpu);
}

/* ---- set-up ---- */

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count, size);
    if (!p)
        die("out of memory for %zu times %zu bytes", count, size);
    return p;
}

static void load_check_export(const struct load *load)
{
    const struct load_options *o = &load->options;
    uint16_t flags = load->export.flags;
    if (load->export.size < o->size)
        die("the export has %" PRIu64 " bytes, less than one request of %u", load->export.size,
            o->size);
    if (o->operation != OP_READ && o->operation != OP_IDLE && (flags & NBD_FLAG_READ_ONLY))
        die("the export is read-only; only --op read and --op idle are possible");
    if (o->operation == OP_ZERO && !(flags & NBD_FLAG_SEND_WRITE_ZEROES))
        die("the export does not offer write-zeroes, which --op zero needs");
    if (o->operation == OP_TRIM && !(flags & NBD_FLAG_SEND_TRIM))
        die("the export does not offer trim, which --op trim needs");
    if (o->flush_every && !(flags & NBD_FLAG_SEND_FLUSH))
        die("the export does not offer flush, which --flush-every needs");
    if (o->fua && !(flags & NBD_FLAG_SEND_FUA))
        die("the export does not offer FUA, which --fua needs");
}

static void load_map_image(struct load *load)
{
    const char *path = load->options.verify_file;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        die("cannot open '%s', the file to verify with: %s", path, strerror(errno));
    if ((uint64_t)st.st_size < load->export.size)
        die("'%s' has %lld bytes, but the export has %" PRIu64, path, (long long)st.st_size,
            load->export.size);
    void *map = mmap(NULL, load->export.size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        die("cannot map '%s': %s", path, strerror(errno));
    load->image = map;
    close(fd);
}

static void connection_init(struct load *load, unsigned index)
{
    struct connection *c = &load->connections[index];
    unsigned depth = load->options.depth;
    c->stream = session_open(&load->options.address, load->options.export_name, load->credentials,
                             &load->export);
    if (load->options.operation == OP_IDLE)
        return;
    c->slots = allocate(depth, sizeof(*c->slots));
    c->free_slots = allocate(depth, sizeof(*c->free_slots));
    c->headers = allocate(depth, NBD_REQUEST_BYTES);
    c->iov = allocate(depth, 2 * sizeof(*c->iov));
    for (c->free_count = 0; c->free_count < depth; c->free_count++)
        c->free_slots[c->free_count] = (uint16_t)c->free_count;
    c->next_block = load->export.size / load->options.size * index / load->options.connections;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(load->epoll_fd, EPOLL_CTL_ADD, c->stream->fd, &event))
        die("cannot watch a connection: %s", strerror(errno));
}

static void load_init(struct load *load)
{
    struct load_options *o = &load->options;
    load->random = o->seed;
    load->credentials = session_credentials(o->tls_certificates, o->tls_psk, true);
    load->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    load->connections = allocate(o->connections, sizeof(*load->connections));
    load->receive_buffer = allocate(1, RECEIVE_BYTES);
    load->payload = allocate(1, o->size);
    for (uint32_t i = 0; i < o->size; i++)
        load->payload[i] = (uint8_t)load_random(load);
    for (unsigned i = 0; i < o->connections; i++)
        connection_init(load, i);
    load->blocks = load->export.size / o->size;
    load_check_export(load);
    if (o->verify_file)
        load_map_image(load);
}

static void load_close(struct load *load)
{
    uint8_t request[NBD_REQUEST_BYTES] = {0};
    put_be32(request, NBD_REQUEST_MAGIC);
    put_be16(request + 6, NBD_CMD_DISC);
    for (unsigned i = 0; i < load->options.connections; i++) {
        struct connection *c = &load->connections[i];
        struct iovec iov = {request, sizeof(request)};
        if (c->stream->ops->send(c->stream, &iov, 1, false) != (ssize_t)sizeof(request))
            load->errors++;
        c->stream->ops->close(c->stream);
        free(c->slots);
        free(c->free_slots);
        free(c->headers);
        free(c->iov);
    }
    if (load->image)
        munmap((void *)(uintptr_t)load->image, load->export.size);
    close(load->epoll_fd);
    tls_credentials_unref(load->credentials);
    free(load->connections);
    free(load->receive_buffer);
    free(load->payload);
    free(load->options.export_name);
}

int main(int argc, char **argv)
{
    struct load load = {0};
    load_options_parse(&load.options, argc, argv);
    load_init(&load);
    if (load.options.operation == OP_IDLE)
        load_idle(&load);
    else
        load_run(&load);
    load_report(&load);
    load_close(&load);
    return load.errors ? 1 : 0;
}
