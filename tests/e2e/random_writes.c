/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random writes, zeroes, trims, flushes and reads from several clients at depth, against a model.
 *
 *     random_writes URI MODEL CLIENTS DEPTH OPERATIONS SEED
 *
 * MODEL is a file with what the export holds at the start; it is mapped, and holds what the export
 * must hold at the end.  The disk is dealt out in strips of odd sizes, round robin: a client
 * touches only its own strips, but neighbors share clusters and blocks, so that the server has to
 * keep them apart.  Requests of one client that are in flight at the same time do not overlap
 * either, so at every moment the model says exactly what a read must return.  Only TRIM leaves a
 * choice, the old bytes or zeroes for each; what it chose is read back and becomes the model.
 *
 * One thread; each client is a libnbd handle, polled.  Exit status 0 when all agreed.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libnbd.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLIENTS_MAX 16
#define DEPTH_MAX 64
#define LENGTH_MAX (200 * 1024)
#define STRIP 33331 /* bytes; odd, so that borders fall into sectors and clusters */
#define HANG_MS 120000

enum kind { READ, WRITE, ZERO, TRIM, TRIM_READ, FLUSH };

static const char *const kind_names[] = {"read", "write",       "write-zeroes",
                                         "trim", "trim's read", "flush"};

struct request {
    struct client *client;
    bool busy;
    enum kind kind;
    uint64_t offset;
    size_t length;
    uint8_t *buffer;
    int error;
};

struct client {
    struct test *test;
    struct nbd_handle *nbd;
    unsigned index;
    unsigned in_flight;
    uint64_t started;
    struct request requests[DEPTH_MAX];
};

struct test {
    uint8_t *model;
    uint64_t size;
    unsigned clients, depth;
    uint64_t operations; /* of each client */
    uint64_t random;
    bool can_trim, can_zero;
    struct client client[CLIENTS_MAX];
};

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

/* xorshift64*: the same sequence everywhere for one seed. */
static uint64_t next_random(struct test *test)
{
    test->random ^= test->random >> 12;
    test->random ^= test->random << 25;
    test->random ^= test->random >> 27;
    return test->random * UINT64_C(2685821657736338717);
}

static uint64_t random_below(struct test *test, uint64_t limit)
{
    return (next_random(test) >> 11) % limit;
}

static void fill_random(struct test *test, uint8_t *buffer, size_t length)
{
    for (size_t i = 0; i < length; i += 8) {
        uint64_t word = next_random(test);

        memcpy(buffer + i, &word, length - i < 8 ? length - i : 8);
    }
}

static bool overlaps_one_in_flight(const struct client *client, uint64_t offset, size_t length)
{
    for (unsigned i = 0; i < client->test->depth; i++) {
        const struct request *other = &client->requests[i];

        if (other->busy && other->kind != FLUSH && offset < other->offset + other->length &&
            other->offset < offset + length)
            return true;
    }
    return false;
}

/* Finds a range within one strip of the client that nobody uses; false: none after a few tries. */
static bool choose_range(struct client *client, uint64_t *ret_offset, size_t *ret_length)
{
    struct test *test = client->test;
    uint64_t turn = (uint64_t)STRIP * test->clients;
    uint64_t turns = (test->size + turn - 1) / turn;

    for (unsigned tries = 0; tries < 16; tries++) {
        uint64_t first = random_below(test, turns) * turn + (uint64_t)client->index * STRIP;
        uint64_t offset = first + random_below(test, STRIP);
        uint64_t end = first + STRIP < test->size ? first + STRIP : test->size;
        /* One client has all strips, and so may cross their borders. */
        uint64_t room = test->clients > 1 ? end : test->size;

        if (offset >= room)
            continue;
        room -= offset;
        *ret_offset = offset;
        *ret_length = 1 + random_below(test, room < LENGTH_MAX ? room : LENGTH_MAX);
        if (random_below(test, 4) == 0) /* whole sectors are what guests send */
            *ret_length = (*ret_length + 511) / 512 * 512 <= room ? (*ret_length + 511) / 512 * 512
                                                                  : *ret_length;
        if (!overlaps_one_in_flight(client, *ret_offset, *ret_length))
            return true;
    }
    return false;
}

static enum kind choose_kind(struct test *test)
{
    unsigned dice = (unsigned)random_below(test, 100);

    if (dice < 45)
        return WRITE;
    if (dice < 60 && test->can_zero)
        return ZERO;
    if (dice < 70 && test->can_trim)
        return TRIM;
    return dice < 97 ? READ : FLUSH;
}

/* libnbd calls this when the reply is there; what was read is judged after polling. */
static int completed(void *opaque, int *error)
{
    struct request *request = opaque;

    request->error = *error;
    request->busy = false;
    return 1;
}

static void send_request(struct request *request)
{
    struct client *client = request->client;
    struct nbd_handle *nbd = client->nbd;
    nbd_completion_callback done = {.callback = completed, .user_data = request};
    uint32_t fua = random_below(client->test, 16) == 0 ? LIBNBD_CMD_FLAG_FUA : 0;
    uint32_t no_hole = random_below(client->test, 2) ? LIBNBD_CMD_FLAG_NO_HOLE : 0;
    int64_t cookie = -1;

    request->busy = true;
    client->in_flight++;
    switch (request->kind) {
    case READ:
    case TRIM_READ:
        cookie = nbd_aio_pread(nbd, request->buffer, request->length, request->offset, done, 0);
        break;
    case WRITE:
        cookie = nbd_aio_pwrite(nbd, request->buffer, request->length, request->offset, done, fua);
        break;
    case ZERO:
        cookie = nbd_aio_zero(nbd, request->length, request->offset, done, fua | no_hole);
        break;
    case TRIM:
        cookie = nbd_aio_trim(nbd, request->length, request->offset, done, fua);
        break;
    case FLUSH:
        cookie = nbd_aio_flush(nbd, done, 0);
        break;
    }
    if (cookie == -1)
        die("client %u: %s: %s", client->index, kind_names[request->kind], nbd_get_error());
}

static void start_one(struct client *client, struct request *request)
{
    struct test *test = client->test;

    request->kind = choose_kind(test);
    request->offset = request->length = 0;
    if (request->kind != FLUSH && !choose_range(client, &request->offset, &request->length))
        request->kind = FLUSH;
    if (request->kind == WRITE)
        fill_random(test, request->buffer, request->length);
    client->started++;
    send_request(request);
}

/* Whether the bytes read agree; after TRIM each may have become zero. */
static void check_read(const struct request *request)
{
    const uint8_t *wanted = request->client->test->model + request->offset;

    for (size_t i = 0; i < request->length; i++) {
        if (request->buffer[i] == wanted[i] || (request->kind == TRIM_READ && !request->buffer[i]))
            continue;
        die("client %u: a read of %zu bytes at %" PRIu64 " differs from byte %" PRIu64
            " on: %02x instead of %02x",
            request->client->index, request->length, request->offset, request->offset + i,
            request->buffer[i], wanted[i]);
    }
}

/* Judges a request that was answered, and brings the model up to date. */
static void finish_one(struct request *request)
{
    uint8_t *model = request->client->test->model + request->offset;

    if (request->error)
        die("client %u: %s of %zu bytes at %" PRIu64 " failed: %s", request->client->index,
            kind_names[request->kind], request->length, request->offset, strerror(request->error));
    request->client->in_flight--;
    switch (request->kind) {
    case READ:
        check_read(request);
        break;
    case TRIM_READ:
        check_read(request);
        memcpy(model, request->buffer, request->length);
        break;
    case WRITE:
        memcpy(model, request->buffer, request->length);
        break;
    case ZERO:
        memset(model, 0, request->length);
        break;
    case TRIM: /* the range stays taken until it is known what became of it */
        request->kind = TRIM_READ;
        send_request(request);
        break;
    case FLUSH:
        break;
    }
}

/* Finishes what was answered and starts what there is room for; false: the client is done. */
static bool step(struct client *client)
{
    struct test *test = client->test;

    for (unsigned i = 0; i < test->depth; i++) {
        struct request *request = &client->requests[i];

        if (!request->busy && request->client) {
            finish_one(request);
            if (!request->busy)
                request->client = NULL;
        }
        if (!request->client && client->started < test->operations) {
            request->client = client;
            start_one(client, request);
        }
    }
    return client->in_flight > 0;
}

static short poll_events(struct nbd_handle *nbd)
{
    unsigned direction = nbd_aio_get_direction(nbd);

    return (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                   (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

static void notify(struct client *client, short revents)
{
    unsigned direction = nbd_aio_get_direction(client->nbd);
    int r = 0;

    if ((revents & (POLLIN | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
        r = nbd_aio_notify_read(client->nbd);
    else if ((revents & POLLOUT) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        r = nbd_aio_notify_write(client->nbd);
    else if (revents & (POLLHUP | POLLERR))
        die("client %u: the server closed the connection", client->index);
    if (r == -1)
        die("client %u: %s", client->index, nbd_get_error());
}

static void run(struct test *test)
{
    struct pollfd fds[CLIENTS_MAX];

    for (;;) {
        bool busy = false;
        int ready;

        for (unsigned i = 0; i < test->clients; i++) {
            struct client *client = &test->client[i];

            busy |= step(client);
            fds[i].fd = client->in_flight ? nbd_aio_get_fd(client->nbd) : -1;
            fds[i].events = poll_events(client->nbd);
            fds[i].revents = 0;
        }
        if (!busy)
            return;
        ready = poll(fds, test->clients, HANG_MS);
        if (ready == 0)
            die("no reply within %d s", HANG_MS / 1000);
        if (ready < 0 && errno != EINTR)
            die("poll: %s", strerror(errno));
        for (unsigned i = 0; i < test->clients; i++)
            if (fds[i].revents)
                notify(&test->client[i], fds[i].revents);
    }
}

/* Reads everything once more, through another client than the one that wrote it. */
static void check_all(struct test *test)
{
    struct request request = {.client = &test->client[test->clients - 1], .kind = READ};

    request.buffer = malloc(1 << 20);
    if (!request.buffer)
        die("out of memory");
    while (request.offset < test->size) {
        uint64_t left = test->size - request.offset;

        request.length = left < 1 << 20 ? (size_t)left : 1 << 20;
        if (nbd_pread(request.client->nbd, request.buffer, request.length, request.offset, 0) == -1)
            die("the last read at %" PRIu64 ": %s", request.offset, nbd_get_error());
        check_read(&request);
        request.offset += request.length;
    }
    free(request.buffer);
}

static void connect_client(struct test *test, unsigned index, const char *uri)
{
    struct client *client = &test->client[index];

    client->test = test;
    client->index = index;
    client->nbd = nbd_create();
    if (!client->nbd || nbd_connect_uri(client->nbd, uri) == -1)
        die("client %u: %s", index, nbd_get_error());
    if ((uint64_t)nbd_get_size(client->nbd) != test->size)
        die("the export has %" PRId64 " bytes, the model %" PRIu64, nbd_get_size(client->nbd),
            test->size);
    test->can_trim = nbd_can_trim(client->nbd) == 1;
    test->can_zero = nbd_can_zero(client->nbd) == 1;
    for (unsigned i = 0; i < test->depth; i++) {
        client->requests[i].buffer = malloc(LENGTH_MAX + 512);
        if (!client->requests[i].buffer)
            die("out of memory");
    }
}

static void disconnect_client(struct client *client)
{
    if (nbd_flush(client->nbd, 0) == -1 || nbd_shutdown(client->nbd, 0) == -1)
        die("client %u: %s", client->index, nbd_get_error());
    nbd_close(client->nbd);
    for (unsigned i = 0; i < client->test->depth; i++)
        free(client->requests[i].buffer);
}

static void map_model(struct test *test, const char *path)
{
    int fd = open(path, O_RDWR);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0 || st.st_size == 0)
        die("cannot use the model '%s': %s", path, strerror(errno));
    test->size = (uint64_t)st.st_size;
    test->model = mmap(NULL, test->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (test->model == MAP_FAILED)
        die("cannot map the model '%s': %s", path, strerror(errno));
    close(fd);
}

static unsigned long number(const char *text, unsigned long max)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);

    if (!*text || *end || value == 0 || value > max)
        die("'%s' is not a number from 1 to %lu", text, max);
    return value;
}

int main(int argc, char **argv)
{
    static struct test test;

    if (argc != 7)
        die("usage: %s URI MODEL CLIENTS DEPTH OPERATIONS SEED", argv[0]);
    test.clients = (unsigned)number(argv[3], CLIENTS_MAX);
    test.depth = (unsigned)number(argv[4], DEPTH_MAX);
    test.operations = number(argv[5], 1000000000);
    test.random = number(argv[6], 1000000000);
    map_model(&test, argv[2]);
    for (unsigned i = 0; i < test.clients; i++)
        connect_client(&test, i, argv[1]);
    run(&test);
    check_all(&test);
    for (unsigned i = 0; i < test.clients; i++)
        disconnect_client(&test.client[i]);
    if (munmap(test.model, test.size) < 0)
        die("cannot write the model: %s", strerror(errno));
    return 0;
}
