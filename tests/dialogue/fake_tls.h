/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Something in the place of TLS: after a handshake of a few bytes every byte is inverted, so that
 * what was not meant to be inside, or outside, is noticed.
 *
 *   client: HELLO    server: WELCOME    then inverted bytes both ways
 */
#ifndef EVNBD_TESTS_FAKE_TLS_H
#define EVNBD_TESTS_FAKE_TLS_H

#include "nbd/tls.h"

#include <stdbool.h>
#include <stdint.h>

#define FAKE_HELLO "hello"
#define FAKE_WELCOME "welcome"

struct fake_tls {
    struct nbd_tls table;
    bool client;        /* this is the client's side */
    const char *alert;  /* by which every session ended; NULL: by none */
    const char *name;   /* of every client; NULL: nobody has one */
    bool no_memory;     /* start() fails */
    bool refuse;        /* the handshake fails when it is complete */
    unsigned holds;     /* times that what was received stays in a stream until it is asked again */
    bool truncated;     /* an end is one that somebody else may have made */
    unsigned writes;    /* times that a handshake wants to be called when it can write */
    unsigned laters;    /* times that it wants to be called a little later */
    unsigned steps;     /* calls of handshake() */
    unsigned turn_most; /* the most of them in one turn */
    unsigned alive;     /* streams */
    uint64_t turn;
    unsigned turn_steps;
};

void fake_tls_init(struct fake_tls *tls, bool required);

void fake_tls_invert(void *data, size_t length);

#endif
