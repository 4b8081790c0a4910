/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line of the load generator. */
#ifndef EVNBD_BENCH_LOAD_OPTIONS_H
#define EVNBD_BENCH_LOAD_OPTIONS_H

#include "bench/client.h"

#include <stdbool.h>

enum operation { OP_READ, OP_WRITE, OP_MIXED, OP_ZERO, OP_TRIM, OP_IDLE };

struct load_options {
    struct address address;
    char *export_name;                      /* allocated */
    const char *verify_file;                /* or NULL */
    const char *tls_certificates, *tls_psk; /* directory, file; NULL */
    enum operation operation;
    uint32_t size;
    unsigned depth;
    unsigned connections;
    unsigned read_percent; /* of a mixed load */
    bool sequential;
    bool fua;
    double seconds;       /* 0: only `ops` ends the run */
    uint64_t ops;         /* 0: only `seconds` ends it */
    uint64_t flush_every; /* 0: never */
    uint64_t seed;
};

/* Ends the program with a message when the command line is wrong. */
void load_options_parse(struct load_options *options, int argc, char **argv);

#endif
