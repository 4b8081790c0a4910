/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hostile clients at a steady rate: each connects, says something wrong, and leaves, or stays and
 * says nothing.  Replies are not read; what a server does about them is its problem.
 *
 * All of it happens on one thread, and connections that stay are closed when their time is over, so
 * that a client that is measured beside this program loses little of its CPU to it.
 */
#include "bench/client.h"

#include "base/bytes.h"
#include "nbd/wire.h"

#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_MAX = 80 << 10, STAY_MAX = 1 << 16, CLIENT_FLAGS = 3 };

struct message {
    uint8_t data[MESSAGE_MAX];
    size_t length;
};

enum end { CLOSE, RESET, STAY };

/* What one kind of client says, and how it ends. */
struct kind {
    const char *name;
    void (*say)(struct message *m);
    enum end end;
};

/* ---- What they say ---- */

static void put(struct message *m, const void *data, size_t length)
{
    memcpy(m->data + m->length, data, length);
    m->length += length;
}

static void put_zeroes(struct message *m, size_t length)
{
    memset(m->data + m->length, 0, length);
    m->length += length;
}

static void put_number(struct message *m, uint32_t number)
{
    put_be32(m->data + m->length, number);
    m->length += 4;
}

static void put_option(struct message *m, uint32_t option, uint32_t length)
{
    put_be64(m->data + m->length, NBD_OPTION_MAGIC);
    m->length += 8;
    put_number(m, option);
    put_number(m, length);
}

static void say_nothing(struct message *m)
{
}

static void say_flags(struct message *m)
{
    put_number(m, CLIENT_FLAGS);
}

static void say_unknown_flags(struct message *m)
{
    put_number(m, UINT32_MAX);
}

static void say_http(struct message *m)
{
    static const char request[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    put(m, request, sizeof(request) - 1);
}

static void say_huge_option(struct message *m)
{
    say_flags(m);
    put_option(m, NBD_OPT_GO, UINT32_MAX);
}

static void say_unknown_options(struct message *m)
{
    say_flags(m);
    for (uint32_t i = 0; i < 20; i++) {
        put_option(m, 1000 + i, 100);
        put_zeroes(m, 100);
    }
}

static void say_lists(struct message *m)
{
    say_flags(m);
    for (int i = 0; i < 50; i++)
        put_option(m, NBD_OPT_LIST, 0);
}

/* A name of the greatest length, which nobody has. */
static void say_unknown_name(struct message *m)
{
    say_flags(m);
    put_option(m, NBD_OPT_GO, 4 + NBD_STRING_MAX + 2);
    put_number(m, NBD_STRING_MAX);
    memset(m->data + m->length, 'x', NBD_STRING_MAX);
    m->length += NBD_STRING_MAX;
    put_zeroes(m, 2);
}

static void say_wrapping_name(struct message *m)
{
    say_flags(m);
    put_option(m, NBD_OPT_GO, 6);
    put_number(m, UINT32_MAX - 5);
    put_zeroes(m, 2);
}

static void say_many_queries(struct message *m)
{
    uint32_t queries = 16000;
    say_flags(m);
    put_option(m, NBD_OPT_STRUCTURED_REPLY, 0);
    put_option(m, NBD_OPT_SET_META_CONTEXT, 8 + 4 * queries);
    put_number(m, 0);
    put_number(m, queries);
    put_zeroes(m, 4 * (size_t)queries);
}

static void say_half_an_option(struct message *m)
{
    say_flags(m);
    put_option(m, NBD_OPT_GO, 1000);
    put_zeroes(m, 500);
}

static void say_bad_request(struct message *m)
{
    say_flags(m);
    put_option(m, NBD_OPT_GO, 6);
    put_zeroes(m, 6);
    put_zeroes(m, NBD_REQUEST_BYTES);
}

static const struct kind kinds[] = {
    {"silent", say_nothing, STAY},
    {"leaves", say_nothing, CLOSE},
    {"resets", say_flags, RESET},
    {"flags", say_unknown_flags, CLOSE},
    {"http", say_http, CLOSE},
    {"huge-option", say_huge_option, CLOSE},
    {"unknown-options", say_unknown_options, CLOSE},
    {"lists", say_lists, RESET},
    {"unknown-name", say_unknown_name, CLOSE},
    {"wrapping-name", say_wrapping_name, STAY},
    {"many-queries", say_many_queries, CLOSE},
    {"half-an-option", say_half_an_option, STAY},
    {"bad-request", say_bad_request, CLOSE},
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

/* ---- How they come and go ---- */

struct staying {
    int fd;
    int64_t until_ns;
};

struct crowd {
    struct address address;
    unsigned rate;
    double seconds;
    double stay_seconds;
    struct message said[KINDS];
    struct staying staying[STAY_MAX]; /* a ring, in the order of their ends */
    size_t first, count;
    unsigned long made, failed;
};

static void leave(int fd, enum end end)
{
    const struct linger at_once = {.l_onoff = 1};
    if (end == RESET)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
}

static void stay(struct crowd *crowd, int fd)
{
    size_t last = (crowd->first + crowd->count) % STAY_MAX;
    if (crowd->count == STAY_MAX) {
        close(fd);
        return;
    }
    crowd->staying[last] =
        (struct staying){fd, clock_ns() + (int64_t)(crowd->stay_seconds * (double)NS_PER_S)};
    crowd->count++;
}

static void end_stays(struct crowd *crowd, int64_t now)
{
    while (crowd->count > 0 && crowd->staying[crowd->first].until_ns <= now) {
        close(crowd->staying[crowd->first].fd);
        crowd->first = (crowd->first + 1) % STAY_MAX;
        crowd->count--;
    }
}

/* One client. A server that does not take it at once has a full backlog: that is counted. */
static void come(struct crowd *crowd, unsigned number)
{
    const struct kind *kind = &kinds[number % KINDS];
    const struct message *m = &crowd->said[number % KINDS];
    int fd =
        socket(crowd->address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("cannot make a socket: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)&crowd->address.storage, crowd->address.length) < 0 &&
        errno != EINPROGRESS) {
        crowd->failed++;
        close(fd);
        return;
    }
    crowd->made++;
    /* What a connection that is not established yet cannot take is not said. */
    if (m->length > 0 && send(fd, m->data, m->length, MSG_NOSIGNAL) < 0 && errno != EAGAIN &&
        errno != EPIPE && errno != ECONNRESET && errno != ENOTCONN)
        die("cannot send: %s", strerror(errno));
    if (kind->end == STAY)
        stay(crowd, fd);
    else
        leave(fd, kind->end);
}

static double run(struct crowd *crowd)
{
    int64_t start = clock_ns(), end = start + (int64_t)(crowd->seconds * (double)NS_PER_S);
    for (unsigned number = 0;; number++) {
        int64_t due = start + number * NS_PER_S / crowd->rate;
        if (due >= end)
            break;
        if (due > clock_ns())
            sleep_until(due);
        end_stays(crowd, clock_ns());
        come(crowd, number);
    }
    end_stays(crowd, INT64_MAX);
    return (double)(clock_ns() - start) / (double)NS_PER_S;
}

/* ---- The command line ---- */

static const char usage[] =
    "Usage: hostile_clients (--unix PATH | --tcp HOST:PORT) [OPTION]...\n"
    "Bothers an NBD server with bad handshakes and prints one line of KEY=VALUE pairs.\n"
    "  --rate N          connections in a second (default: 1000)\n"
    "  --seconds S       for how long (default: 5)\n"
    "  --stay SECONDS    how long those stay that stall (default: 1)\n";

static void parse(struct crowd *crowd, int argc, char **argv)
{
    enum { UNIX = 256, TCP, RATE, SECONDS, STAY_SECONDS, HELP };
    static const struct option options[] = {
        {"unix", required_argument, NULL, UNIX},
        {"tcp", required_argument, NULL, TCP},
        {"rate", required_argument, NULL, RATE},
        {"seconds", required_argument, NULL, SECONDS},
        {"stay", required_argument, NULL, STAY_SECONDS},
        {"help", no_argument, NULL, HELP},
        {NULL, 0, NULL, 0},
    };
    int id;
    while ((id = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (id) {
        case UNIX:
            address_unix(&crowd->address, optarg);
            break;
        case TCP:
            address_tcp(&crowd->address, optarg);
            break;
        case RATE:
            crowd->rate = (unsigned)parse_positive("rate", optarg, 1e6);
            break;
        case SECONDS:
            crowd->seconds = parse_positive("seconds", optarg, 1e6);
            break;
        case STAY_SECONDS:
            crowd->stay_seconds = parse_positive("stay", optarg, 1e6);
            break;
        default:
            fputs(usage, id == HELP ? stdout : stderr);
            exit(id == HELP ? 0 : 1);
        }
    }
    if (crowd->address.length == 0 || optind < argc)
        die("one of --unix and --tcp must say where the server is, and nothing else; see --help");
    if (crowd->rate == 0)
        die("--rate takes at least 1");
}

int main(int argc, char **argv)
{
    static struct crowd crowd = {.rate = 1000, .seconds = 5, .stay_seconds = 1};
    struct timespec cpu;
    double took;
    parse(&crowd, argc, argv);
    for (unsigned i = 0; i < KINDS; i++)
        kinds[i].say(&crowd.said[i]);
    took = run(&crowd);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("made=%lu failed=%lu rate=%.1f cpu_percent=%.1f\n", crowd.made, crowd.failed,
           (double)crowd.made / took,
           100 * ((double)cpu.tv_sec + (double)cpu.tv_nsec / 1e9) / took);
    return 0;
}
