/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Good clients at a steady rate: each connects, makes its handshake up to GO, inside of TLS if it
 * is given something for that, and leaves.
 *
 * They come from several processes in turns, so that one that waits for its server does not keep
 * the next from coming.
 */
#include "bench/session.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROCESSES = 16 };

struct newcomers {
    struct address address;
    struct tls_credentials *credentials;
    unsigned rate;
    double seconds;
};

static void visit(const struct newcomers *n)
{
    struct export_info info;
    struct stream *s = session_open(&n->address, "", n->credentials, &info);
    s->ops->shutdown(s);
    s->ops->close(s);
}

/* Every PROCESSES-th client. Those that are late come at once. Returns how many came. */
static unsigned long run_share(const struct newcomers *n, int64_t start, unsigned first)
{
    int64_t end = start + (int64_t)(n->seconds * (double)NS_PER_S);
    unsigned long made = 0;
    for (unsigned number = first;; number += PROCESSES) {
        int64_t due = start + number * NS_PER_S / n->rate;
        if (due >= end || clock_ns() >= end)
            return made;
        sleep_until(due);
        visit(n);
        made++;
    }
}

/* In processes of their own, which send how many clients came. */
static unsigned long run(const struct newcomers *n)
{
    int64_t start = clock_ns();
    unsigned long all = 0, made;
    int fds[2], status;
    if (pipe(fds) < 0)
        die("cannot make a pipe");
    for (unsigned i = 0; i < PROCESSES; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("cannot start a process");
        if (pid == 0) {
            made = run_share(n, start, i);
            _exit(write(fds[1], &made, sizeof(made)) != sizeof(made));
        }
    }
    close(fds[1]);
    while (read(fds[0], &made, sizeof(made)) == sizeof(made))
        all += made;
    while (wait(&status) > 0) {
        if (status != 0)
            die("a process has failed, as it says above");
    }
    return all;
}

static const char usage[] =
    "Usage: newcomers (--unix PATH | --tcp HOST:PORT) [OPTION]...\n"
    "Connects to an NBD server again and again and prints one line of KEY=VALUE pairs.\n"
    "  --tls-certificates DIR, --tls-psk FILE   in TLS\n"
    "  --rate N          connections in a second (default: 200)\n"
    "  --seconds S       for how long (default: 5)\n";

static void parse(struct newcomers *n, int argc, char **argv)
{
    enum { UNIX = 256, TCP, CERTIFICATES, PSK, RATE, SECONDS, HELP };
    static const struct option options[] = {
        {"unix", required_argument, NULL, UNIX},
        {"tcp", required_argument, NULL, TCP},
        {"tls-certificates", required_argument, NULL, CERTIFICATES},
        {"tls-psk", required_argument, NULL, PSK},
        {"rate", required_argument, NULL, RATE},
        {"seconds", required_argument, NULL, SECONDS},
        {"help", no_argument, NULL, HELP},
        {NULL, 0, NULL, 0},
    };
    int id;
    while ((id = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (id == UNIX)
            address_unix(&n->address, optarg);
        else if (id == TCP)
            address_tcp(&n->address, optarg);
        else if (id == CERTIFICATES)
            n->credentials = session_credentials(optarg, NULL, false);
        else if (id == PSK)
            n->credentials = session_credentials(NULL, optarg, false);
        else if (id == RATE)
            n->rate = (unsigned)parse_positive("rate", optarg, 1e6);
        else if (id == SECONDS)
            n->seconds = parse_positive("seconds", optarg, 1e6);
        else {
            fputs(usage, id == HELP ? stdout : stderr);
            exit(id == HELP ? 0 : 1);
        }
    }
    if (n->address.length == 0 || optind < argc || n->rate == 0)
        die("one of --unix and --tcp must say where the server is, and --rate at least 1; see "
            "--help");
}

int main(int argc, char **argv)
{
    struct newcomers n = {.rate = 200, .seconds = 5};
    struct rusage usage_of_all;
    int64_t start;
    unsigned long made;
    double took, cpu;
    parse(&n, argc, argv);
    start = clock_ns();
    made = run(&n);
    took = (double)(clock_ns() - start) / (double)NS_PER_S;
    getrusage(RUSAGE_CHILDREN, &usage_of_all);
    cpu = (double)(usage_of_all.ru_utime.tv_sec + usage_of_all.ru_stime.tv_sec) +
          (double)(usage_of_all.ru_utime.tv_usec + usage_of_all.ru_stime.tv_usec) / 1e6;
    printf("made=%lu rate=%.1f cpu_percent=%.1f\n", made, (double)made / took, 100 * cpu / took);
    tls_credentials_unref(n.credentials);
    return 0;
}
