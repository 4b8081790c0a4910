/* SPDX-License-Identifier: BSD-3-Clause */
/* What the programs of bench/ share: addresses, blocking I/O, time. */
#ifndef EVNBD_BENCH_CLIENT_H
#define EVNBD_BENCH_CLIENT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

struct address {
    struct sockaddr_storage storage;
    socklen_t length;
};

/* Prints "PROGRAM: message" and exits with status 1. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

void address_unix(struct address *address, const char *path);

/* `text` is HOST:PORT, where HOST may be an IPv6 address in brackets. */
void address_tcp(struct address *address, const char *text);

/*
 * nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, without percent escapes.
 * ret_export is allocated.
 */
void address_uri(struct address *address, const char *uri, char **ret_export);

/* No delay on TCP, a large send buffer on a Unix socket (where the system grants it). */
void socket_tune(int fd, const struct address *address);

#define NS_PER_S INT64_C(1000000000)

int64_t clock_ns(void); /* monotonic */
void sleep_until(int64_t ns);

/* A number above 0 and up to `maximum`, which the option --NAME takes. */
double parse_positive(const char *name, const char *text, double maximum);

void send_all(int fd, const void *data, size_t length);
void recv_all(int fd, void *data, size_t length);

#endif
