/* SPDX-License-Identifier: BSD-3-Clause */
/* Parsing of the load generator's command line; every mistake ends the program with a message. */
#include "bench/load_options.h"

#include "nbd/wire.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 4096, CONNECTIONS_MAX = 100000 };

static const char *const operation_names[] = {"read", "write", "mixed", "zero", "trim", "idle"};

static const char usage[] =
    "Usage: load (--uri URI | --unix PATH | --tcp HOST:PORT) [OPTION]...\n"
    "Loads an NBD server and prints one line of KEY=VALUE pairs.\n"
    "  --export NAME        export to ask for (default: the empty name)\n"
    "  --op OP              read, write, mixed, zero, trim or idle (default: read)\n"
    "  --size BYTES         of each request, K and M are understood (default: 4K)\n"
    "  --depth N            requests in flight for each connection (default: 1)\n"
    "  --connections N      (default: 1)\n"
    "  --pattern P          rand or seq (default: rand)\n"
    "  --read-percent N     share of reads in --op mixed (default: 70)\n"
    "  --flush-every N      a FLUSH after every N requests of a connection\n"
    "  --fua                set FUA on whatever changes data\n"
    "  --seconds S, --ops N when to stop: at the first of both (default: 5 seconds)\n"
    "  --seed N             of the random offsets (default: 1)\n"
    "  --verify FILE        reads must equal FILE, writes write what FILE has there\n"
    "  --tls-certificates DIR  over TLS, with the CA in DIR/ca-cert.pem\n"
    "  --tls-psk FILE       over TLS, with the only key in FILE\n";

static uint64_t parse_number(const char *option, const char *text, uint64_t minimum,
                             uint64_t maximum)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 10);
    unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : 0;
    if (errno || end == text || *text == '-' || end[shift != 0] || value > UINT64_MAX >> shift ||
        value << shift < minimum || value << shift > maximum)
        die("--%s takes a number from %" PRIu64 " to %" PRIu64 ", not '%s'", option, minimum,
            maximum, text);
    return value << shift;
}

static double parse_seconds(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value > 0 && value < 1e6))
        die("--seconds takes a positive number, not '%s'", text);
    return value;
}

static enum operation parse_operation(const char *text)
{
    for (unsigned i = 0; i < sizeof(operation_names) / sizeof(operation_names[0]); i++)
        if (strcmp(text, operation_names[i]) == 0)
            return (enum operation)i;
    die("--op takes read, write, mixed, zero, trim or idle, not '%s'", text);
}

static bool parse_sequential(const char *text)
{
    if (strcmp(text, "rand") != 0 && strcmp(text, "seq") != 0)
        die("--pattern takes rand or seq, not '%s'", text);
    return strcmp(text, "seq") == 0;
}

enum option_id {
    ID_URI = 256,
    ID_UNIX,
    ID_TCP,
    ID_EXPORT,
    ID_OP,
    ID_SIZE,
    ID_DEPTH,
    ID_CONNECTIONS,
    ID_PATTERN,
    ID_READ_PERCENT,
    ID_FLUSH_EVERY,
    ID_FUA,
    ID_SECONDS,
    ID_OPS,
    ID_SEED,
    ID_VERIFY,
    ID_TLS_CERTIFICATES,
    ID_TLS_PSK,
    ID_HELP,
};

static const struct option long_options[] = {
    {"uri", 1, NULL, ID_URI},
    {"unix", 1, NULL, ID_UNIX},
    {"tcp", 1, NULL, ID_TCP},
    {"export", 1, NULL, ID_EXPORT},
    {"op", 1, NULL, ID_OP},
    {"size", 1, NULL, ID_SIZE},
    {"depth", 1, NULL, ID_DEPTH},
    {"connections", 1, NULL, ID_CONNECTIONS},
    {"pattern", 1, NULL, ID_PATTERN},
    {"read-percent", 1, NULL, ID_READ_PERCENT},
    {"flush-every", 1, NULL, ID_FLUSH_EVERY},
    {"fua", 0, NULL, ID_FUA},
    {"seconds", 1, NULL, ID_SECONDS},
    {"ops", 1, NULL, ID_OPS},
    {"seed", 1, NULL, ID_SEED},
    {"verify", 1, NULL, ID_VERIFY},
    {"tls-certificates", 1, NULL, ID_TLS_CERTIFICATES},
    {"tls-psk", 1, NULL, ID_TLS_PSK},
    {"help", 0, NULL, ID_HELP},
    {0},
};

static bool options_set_number(struct load_options *o, int id, const char *name, const char *arg)
{
    switch (id) {
    case ID_SIZE:
        o->size = (uint32_t)parse_number(name, arg, 1, NBD_PAYLOAD_MAX);
        return true;
    case ID_DEPTH:
        o->depth = (unsigned)parse_number(name, arg, 1, DEPTH_MAX);
        return true;
    case ID_CONNECTIONS:
        o->connections = (unsigned)parse_number(name, arg, 1, CONNECTIONS_MAX);
        return true;
    case ID_READ_PERCENT:
        o->read_percent = (unsigned)parse_number(name, arg, 0, 100);
        return true;
    case ID_FLUSH_EVERY:
        o->flush_every = parse_number(name, arg, 1, UINT64_MAX);
        return true;
    case ID_OPS:
        o->ops = parse_number(name, arg, 1, UINT64_MAX);
        return true;
    case ID_SEED:
        o->seed = parse_number(name, arg, 0, UINT64_MAX);
        return true;
    case ID_SECONDS:
        o->seconds = parse_seconds(arg);
        return true;
    default:
        return false;
    }
}

static bool options_set_server(struct load_options *o, int id, const char *arg)
{
    switch (id) {
    case ID_URI:
        free(o->export_name);
        address_uri(&o->address, arg, &o->export_name);
        return true;
    case ID_UNIX:
        address_unix(&o->address, arg);
        return true;
    case ID_TCP:
        address_tcp(&o->address, arg);
        return true;
    case ID_TLS_CERTIFICATES:
        o->tls_certificates = arg;
        return true;
    case ID_TLS_PSK:
        o->tls_psk = arg;
        return true;
    case ID_EXPORT:
        free(o->export_name);
        o->export_name = strdup(arg);
        return true;
    default:
        return false;
    }
}

static void options_set(struct load_options *o, int id, const char *name, const char *arg)
{
    if (options_set_number(o, id, name, arg) || options_set_server(o, id, arg))
        return;
    switch (id) {
    case ID_OP:
        o->operation = parse_operation(arg);
        break;
    case ID_PATTERN:
        o->sequential = parse_sequential(arg);
        break;
    case ID_FUA:
        o->fua = true;
        break;
    case ID_VERIFY:
        o->verify_file = arg;
        break;
    case ID_HELP:
        fputs(usage, stdout);
        exit(0);
    default:
        fputs(usage, stderr);
        exit(1);
    }
}

void load_options_parse(struct load_options *o, int argc, char **argv)
{
    *o = (struct load_options){.export_name = strdup(""),
                               .size = 4096,
                               .depth = 1,
                               .connections = 1,
                               .read_percent = 70,
                               .seed = 1};
    int id, index = 0;
    while ((id = getopt_long(argc, argv, "", long_options, &index)) != -1)
        options_set(o, id, long_options[index].name, optarg);
    if (optind < argc)
        die("'%s' is not an option; see --help", argv[optind]);
    if (!o->address.length)
        die("one of --uri, --unix and --tcp must say where the server is");
    if (!o->export_name)
        die("out of memory");
    if (o->operation == OP_IDLE && !(o->seconds > 0))
        o->seconds = 5;
    if (!(o->seconds > 0) && !o->ops)
        o->seconds = 5;
}
