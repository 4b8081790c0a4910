/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line of evnbd: what it may say, as a struct, and what must not go together. */
#ifndef EVNBD_DAEMON_ARGUMENTS_H
#define EVNBD_DAEMON_ARGUMENTS_H

#include "base/nbd_uri.h"
#include "daemon/cli.h"

enum arguments_action {
    ACTION_SERVE,
    ACTION_LIST,
    ACTION_LIST_PARTITIONS,
    ACTION_TLS_CHECK,
    ACTION_CONFIG_CHECK,
    ACTION_HELP, /* from here on: only prints, looks at nothing */
    ACTION_VERSION,
    ACTION_LIST_OPTIONS,
    ACTION_LIST_TRACE_POINTS,
    ACTION_LIST_OBJECTS,
};

enum cache_mode { CACHE_WRITEBACK, CACHE_WRITETHROUGH, CACHE_NONE, CACHE_DIRECTSYNC, CACHE_UNSAFE };
enum aio_mode { AIO_BEST, AIO_THREADS, AIO_NATIVE, AIO_IO_URING };
enum tls_use { TLS_USE_DEFAULT, TLS_USE_OFF, TLS_USE_ON, TLS_USE_REQUIRE };
enum detect_zeroes { DETECT_ZEROES_OFF, DETECT_ZEROES_ON, DETECT_ZEROES_UNMAP };

struct arguments {
    int action;                    /* enum arguments_action */
    const char *image;             /* path, or options */
    const char *config;            /* configuration file that names the images, or NULL */
    bool json;                     /* of ACTION_LIST */
    struct nbd_uri uri;            /* of ACTION_LIST; its strings are used below */
    const char *per_device;        /* the first option that says what or how to serve; NULL: none */
    const char *not_beside_config; /* the first option that --config does not go with; NULL: none */

    const char *port;   /* number or service name; NULL: the protocol's own */
    const char *bind;   /* host name or address; "": all; NULL: all of IPv4, or this machine */
    const char *socket; /* NULL: TCP */
    const char *selinux_label; /* of the socket, or NULL */
    uint64_t shared;           /* clients at a time; 0: no limit */
    bool persistent;
    const char *export_name;
    const char *description; /* or NULL */
    bool oldstyle;
    uint64_t handshake_limit; /* seconds; 0: none */
    uint64_t idle_timeout;    /* seconds; 0: none */
    struct cli_list allowed;  /* access rules; none: everybody */
    uint64_t address_limit;   /* clients of one address at a time; 0: no limit */

    int tls;                      /* enum tls_use; by default required if there are credentials */
    const char *tls_certificates; /* directory, or NULL */
    const char *tls_psk;          /* file, or NULL */
    const char *tls_username;     /* of a client with pre-shared keys, or NULL */
    bool tls_verify_peer;
    const char *tls_creds; /* id of an object, or NULL; the same below */
    const char *tls_authz;
    const char *tls_hostname; /* that the server's certificate has to be for */

    bool image_opts;            /* the image is key=value,... (json:{...} is known by itself) */
    const char *format;         /* NULL: probe */
    const char *key_secret;     /* id of the secret that unlocks the image, or NULL */
    const char *snapshot;       /* of the image, that is exported; NULL: the disk as it is */
    const char *backing_policy; /* which files images may name; NULL: any path */
    bool read_only;
    bool allow_writers;      /* raw: others may write to the image too */
    bool overlay;            /* writes go to a temporary image */
    uint64_t overlay_memory; /* bytes of memory to keep it in; 0: a file */
    uint64_t offset;
    const char *partition; /* that is exported, or "list"; NULL: the whole disk */
    int cache;             /* enum cache_mode */
    int aio;               /* enum aio_mode */
    int discard;           /* bool: discards reach the image */
    int detect_zeroes;     /* enum detect_zeroes */
    bool allocation_depth;
    struct cli_list bitmaps; /* names */

    struct cli_list objects; /* values of --object */

    bool fork;
    const char *pid_file; /* or NULL */
    bool verbose;
    struct cli_list traces; /* values of --trace */
};

/* Where a configuration file may say an option: `scopes` of the rows. */
enum { SCOPE_SERVER = 1, SCOPE_LISTENER = 2, SCOPE_EXPORT = 4 };

extern const struct cli arguments_cli;

/*
 * Turns argv (which is put in order) into *ret, whose strings point into argv; no side effects.
 * *ret_hint tells that pointing to --help is in place.  Returns 0 or negative errno with `error`.
 * arguments_release() in any case.
 */
int arguments_parse(struct arguments *ret, int argc, char **argv, bool *ret_hint,
                    struct error *error);

/* Refuses values and combinations that cannot be served. Looks at nothing but the struct. */
int arguments_check(const struct arguments *arguments, struct error *error);

/* What a part of a configuration file begins with: clients are not limited, the server stays. */
struct arguments arguments_of_config(void);

/*
 * The same as arguments_check() for the parts of a configuration file: the server, a listener, an
 * export with its server.
 */
int arguments_check_server(const struct arguments *arguments, struct error *error);
int arguments_check_listener(const struct arguments *arguments, struct error *error);
int arguments_check_export(const struct arguments *arguments, const struct arguments *server,
                           struct error *error);

/* Refuses what says where to listen, or to list, when sockets were passed to the process. */
int arguments_check_activated(const struct arguments *arguments, struct error *error);

void arguments_release(struct arguments *arguments);

#endif
