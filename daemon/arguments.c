/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The option rows of evnbd and the conflicts between them.  An option that needs an earlier one on
 * the line is judged while parsing, everything else in arguments_check().
 */
#include "daemon/arguments.h"

#include "base/checked.h"
#include "daemon/image.h"
#include "daemon/image_name.h"
#include "daemon/list_uri.h"
#include "daemon/objects.h"
#include "nbd/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define NOT_GIVEN UINT64_MAX

enum group { GROUP_CONNECTION, GROUP_TLS, GROUP_SECURITY, GROUP_IMAGE, GROUP_LIST, GROUP_PROCESS };

static const char *const groups[] = {
    "Connections", "TLS", "Secrets and access", "Image", "Listing the exports of a server",
    "Process",     NULL};

static const struct cli_word cache_words[] = {
    {"none", CACHE_NONE},
    {"off", CACHE_NONE},
    {"writeback", CACHE_WRITEBACK},
    {"writethrough", CACHE_WRITETHROUGH},
    {"directsync", CACHE_DIRECTSYNC},
    {"unsafe", CACHE_UNSAFE},
    {NULL, 0},
};

static const struct cli_word aio_words[] = {
    {"threads", AIO_THREADS},
    {"native", AIO_NATIVE},
    {"io_uring", AIO_IO_URING},
    {NULL, 0},
};

static const struct cli_word discard_words[] = {
    {"ignore", false}, {"off", false}, {"unmap", true}, {"on", true}, {NULL, 0},
};

static const struct cli_word detect_zeroes_words[] = {
    {"off", DETECT_ZEROES_OFF},
    {"on", DETECT_ZEROES_ON},
    {"unmap", DETECT_ZEROES_UNMAP},
    {NULL, 0},
};

static const struct cli_word tls_words[] = {
    {"off", TLS_USE_OFF},
    {"on", TLS_USE_ON},
    {"require", TLS_USE_REQUIRE},
    {NULL, 0},
};

static void note_given(void *target, const struct cli_row *row)
{
    struct arguments *a = target;

    if (!a->not_beside_config && row->group != GROUP_PROCESS)
        a->not_beside_config = row->name;
}

static int end_of_parsing(void *target, const struct cli_row *row, struct error *error)
{
    return 1;
}

static int after_per_device(void *target, const struct cli_row *row, struct error *error)
{
    struct arguments *a = target;

    if (!a->per_device)
        a->per_device = row->name;
    return 0;
}

static int after_load_snapshot(void *target, const struct cli_row *row, struct error *error)
{
    struct arguments *a = target;

    a->read_only = true;
    return after_per_device(target, row, error);
}

static int after_snapshot_memory(void *target, const struct cli_row *row, struct error *error)
{
    struct arguments *a = target;

    if (a->overlay_memory == 0)
        return error_set(error, EINVAL,
                         "Invalid size '0' of --snapshot-memory: what is written needs some room, "
                         "and the tables of an empty overlay take 256k or more");
    a->overlay = true;
    return 0;
}

static int after_check_config(void *target, const struct cli_row *row, struct error *error)
{
    struct arguments *a = target;

    a->action = ACTION_CONFIG_CHECK;
    return 0;
}

static int after_detect_zeroes(void *target, const struct cli_row *row, struct error *error)
{
    const struct arguments *a = target;

    if (a->detect_zeroes == DETECT_ZEROES_UNMAP && !a->discard)
        return error_set(error, EINVAL,
                         "setting detect-zeroes to unmap is not allowed without setting discard "
                         "operation to unmap: put --discard=unmap before it");
    return 0;
}

static int after_trace(void *target, const struct cli_row *row, struct error *error)
{
    struct arguments *a = target;

    if (strcmp(a->traces.items[a->traces.count - 1], "help") != 0)
        return 0;
    a->action = ACTION_LIST_TRACE_POINTS;
    return 1;
}

static int after_object(void *target, const struct cli_row *row, struct error *error)
{
    struct arguments *a = target;

    if (!objects_help_wanted(a->objects.items[a->objects.count - 1]))
        return 0;
    a->action = ACTION_LIST_OBJECTS;
    return 1;
}

#define TARGET(member) .offset = offsetof(struct arguments, member)

static const struct cli_row rows[] = {
    {.name = "port",
     .scopes = SCOPE_LISTENER,
     .letter = 'p',
     .argument = "PORT",
     .kind = CLI_STRING,
     TARGET(port),
     .group = GROUP_CONNECTION,
     .help = "TCP port or service name (default " NBD_DEFAULT_PORT ")"},
    {.name = "bind",
     .scopes = SCOPE_LISTENER,
     .letter = 'b',
     .argument = "ADDRESS",
     .kind = CLI_STRING,
     TARGET(bind),
     .group = GROUP_CONNECTION,
     .help = "IPv4 or IPv6 address or host name to listen on (default 0.0.0.0); :: or an empty one "
             "for both families"},
    {.name = "socket",
     .scopes = SCOPE_LISTENER,
     .letter = 'k',
     .argument = "PATH",
     .kind = CLI_STRING,
     TARGET(socket),
     .group = GROUP_CONNECTION,
     .help = "listen on a Unix socket at this absolute path, not on TCP"},
    {.name = "selinux-label",
     .scopes = SCOPE_LISTENER,
     .argument = "LABEL",
     .kind = CLI_STRING,
     TARGET(selinux_label),
     .group = GROUP_CONNECTION,
     .help = "SELinux context of that socket"},
    {.name = "shared",
     .scopes = SCOPE_SERVER | SCOPE_EXPORT,
     .letter = 'e',
     .argument = "NUM",
     .kind = CLI_NUMBER,
     TARGET(shared),
     .max = INT32_MAX,
     .invalid = "Invalid shared device number '",
     .expected = "a number of clients is needed, 0 for no limit",
     .group = GROUP_CONNECTION,
     .help = "serve up to NUM clients at a time, 0 for no limit (default 1)"},
    {.name = "persistent",
     .letter = 't',
     .kind = CLI_FLAG,
     TARGET(persistent),
     .group = GROUP_CONNECTION,
     .help = "go on when the last client has left"},
    {.name = "export-name",
     .scopes = SCOPE_EXPORT,
     .letter = 'x',
     .argument = "NAME",
     .kind = CLI_STRING,
     TARGET(export_name),
     .after = after_per_device,
     .group = GROUP_CONNECTION,
     .help = "name by which clients ask for the export (default: the empty name)"},
    {.name = "description",
     .scopes = SCOPE_EXPORT,
     .letter = 'D',
     .argument = "TEXT",
     .kind = CLI_STRING,
     TARGET(description),
     .after = after_per_device,
     .group = GROUP_CONNECTION,
     .help = "text about the export, shown to clients that ask for it"},
    {.name = "handshake-limit",
     .scopes = SCOPE_SERVER,
     .exact = true,
     .argument = "SECONDS",
     .kind = CLI_NUMBER,
     TARGET(handshake_limit),
     .max = INT32_MAX,
     .invalid = "Invalid handshake limit '",
     .expected = "a number of seconds is needed, 0 for no limit",
     .group = GROUP_CONNECTION,
     .help = "time that a client has for its handshake, or a server to list its exports; 0 for no "
             "limit (default 10, or 60)"},
    {.name = "idle-timeout",
     .scopes = SCOPE_SERVER,
     .exact = true,
     .argument = "SECONDS",
     .kind = CLI_NUMBER,
     TARGET(idle_timeout),
     .max = INT32_MAX,
     .invalid = "Invalid idle timeout '",
     .expected = "a number of seconds is needed, 0 for no limit",
     .group = GROUP_CONNECTION,
     .help = "disconnect clients that ask for nothing for so long; 0 for never (default)"},
    {.name = "address-limit",
     .scopes = SCOPE_SERVER,
     .exact = true,
     .argument = "NUM",
     .kind = CLI_NUMBER,
     TARGET(address_limit),
     .max = INT32_MAX,
     .invalid = "Invalid address limit '",
     .expected = "a number of clients is needed, 0 for no limit",
     .group = GROUP_CONNECTION,
     .help = "serve up to NUM clients at a time from one address, or of one user of a Unix socket; "
             "0 for no limit (default)"},
    {.name = "oldstyle",
     .exact = true,
     .kind = CLI_FLAG,
     TARGET(oldstyle),
     .after = after_per_device,
     .group = GROUP_CONNECTION,
     .help = "speak the protocol of before 2011, without negotiation"},

    {.name = "tls",
     .scopes = SCOPE_SERVER | SCOPE_EXPORT,
     .exact = true,
     .argument = "MODE",
     .kind = CLI_WORD,
     TARGET(tls),
     .words = tls_words,
     .invalid = "Invalid TLS mode '",
     .once = "--tls",
     .after = after_per_device,
     .group = GROUP_TLS,
     .help = "off, on (clients choose) or require (default when there are certificates or keys)"},
    {.name = "tls-certificates",
     .scopes = SCOPE_SERVER,
     .exact = true,
     .argument = "DIR",
     .kind = CLI_STRING,
     TARGET(tls_certificates),
     .group = GROUP_TLS,
     .help =
         "directory with server-cert.pem and server-key.pem, and ca-cert.pem to verify clients; of "
         "a list: ca-cert.pem, and client-cert.pem and client-key.pem if they are needed"},
    {.name = "tls-psk",
     .scopes = SCOPE_SERVER,
     .exact = true,
     .argument = "FILE",
     .kind = CLI_STRING,
     TARGET(tls_psk),
     .group = GROUP_TLS,
     .help = "pre-shared keys of the clients, a line NAME:KEY for each; of a list: its own"},
    {.name = "tls-verify-peer",
     .scopes = SCOPE_SERVER,
     .exact = true,
     .kind = CLI_FLAG,
     TARGET(tls_verify_peer),
     .after = after_per_device,
     .group = GROUP_TLS,
     .help = "let in only clients with a certificate of the CA in ca-cert.pem"},

    {.name = "tls-creds",
     .scopes = SCOPE_SERVER,
     .argument = "ID",
     .kind = CLI_STRING,
     TARGET(tls_creds),
     .group = GROUP_TLS,
     .help = "require TLS with the credentials of this object (see --object)"},
    {.name = "tls-authz",
     .scopes = SCOPE_EXPORT,
     .argument = "ID",
     .kind = CLI_STRING,
     TARGET(tls_authz),
     .group = GROUP_TLS,
     .help = "let in only clients that this object allows (see --object)"},
    {.name = "tls-hostname",
     .argument = "NAME",
     .kind = CLI_STRING,
     TARGET(tls_hostname),
     .group = GROUP_TLS,
     .help = "name that the server's certificate has to be for"},
    {.name = "tls-check",
     .exact = true,
     .kind = CLI_CONSTANT,
     .constant = ACTION_TLS_CHECK,
     TARGET(action),
     .group = GROUP_TLS,
     .help = "serve nothing; look at the certificates or keys, and tell what is wrong with them"},

    {.name = "allow",
     .scopes = SCOPE_EXPORT,
     .exact = true,
     .argument = "RULE",
     .kind = CLI_LIST,
     TARGET(allowed),
     .after = after_per_device,
     .group = GROUP_SECURITY,
     .help = "let in only clients that meet a rule, such as uid=1000 or address=10.0.0.0/8; can be "
             "repeated (default: everybody)"},
    {.name = "object",
     .scopes = SCOPE_SERVER,
     .argument = "TYPE,id=ID,...",
     .kind = CLI_LIST,
     TARGET(objects),
     .suggest = objects_print_types,
     .after = after_object,
     .group = GROUP_SECURITY,
     .help = "make an object that other options name by its id: a secret or who is allowed; 'help' "
             "lists the types, 'TYPE,help' their properties; can be repeated"},

    {.name = "image",
     .scopes = SCOPE_EXPORT,
     .file_only = true,
     .hidden = true,
     .argument = "FILE",
     .kind = CLI_STRING,
     TARGET(image),
     .group = GROUP_IMAGE,
     .help = "what to serve"},
    {.name = "format",
     .scopes = SCOPE_EXPORT,
     .letter = 'f',
     .argument = "FORMAT",
     .kind = CLI_STRING,
     TARGET(format),
     .suggest = image_print_formats,
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "image format, such as raw or qcow2 (default: look at the image)"},
    {.name = "key-secret",
     .scopes = SCOPE_EXPORT,
     .exact = true,
     .argument = "ID",
     .kind = CLI_STRING,
     TARGET(key_secret),
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "secret (see --object) that unlocks the image, which is encrypted; with --format=luks "
             "or qcow2"},
    {.name = "image-opts",
     .scopes = SCOPE_EXPORT,
     .kind = CLI_FLAG,
     TARGET(image_opts),
     .group = GROUP_IMAGE,
     .help = "FILE is no name but options: driver=FORMAT,file.filename=PATH and more, or "
             "json:{...}"},
    {.name = "backing-policy",
     .scopes = SCOPE_EXPORT,
     .exact = true,
     .argument = "POLICY",
     .kind = CLI_STRING,
     TARGET(backing_policy),
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "which files images may name as their backing and data files: any, beneath (in the "
             "image's directory), none, or list=PATH[:PATH]... (default: paths to anywhere)"},
    {.name = "read-only",
     .scopes = SCOPE_EXPORT,
     .letter = 'r',
     .kind = CLI_FLAG,
     TARGET(read_only),
     .group = GROUP_IMAGE,
     .help = "do not let clients write"},
    {.name = "allow-writers",
     .scopes = SCOPE_EXPORT,
     .exact = true,
     .kind = CLI_FLAG,
     TARGET(allow_writers),
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "let other programs write to a raw image at the same time"},
    {.name = "snapshot",
     .scopes = SCOPE_EXPORT,
     .letter = 's',
     .kind = CLI_FLAG,
     TARGET(overlay),
     .group = GROUP_IMAGE,
     .help = "keep what clients write in a temporary file, which is lost at the end; the image is "
             "opened read-only"},
    {.name = "snapshot-memory",
     .scopes = SCOPE_EXPORT,
     .exact = true,
     .argument = "SIZE",
     .kind = CLI_SIZE,
     TARGET(overlay_memory),
     .invalid = "Invalid size of --snapshot-memory: '",
     .expected = "a number of bytes is needed, or one with a suffix such as 512M",
     .after = after_snapshot_memory,
     .group = GROUP_IMAGE,
     .help = "the same in memory, up to SIZE; then there is no space left"},
    {.name = "load-snapshot",
     .scopes = SCOPE_EXPORT,
     .letter = 'l',
     .argument = "SNAPSHOT",
     .kind = CLI_STRING,
     TARGET(snapshot),
     .after = after_load_snapshot,
     .group = GROUP_IMAGE,
     .help = "export an internal snapshot of the image, read-only: its ID or name, or "
             "snapshot.id=ID,snapshot.name=NAME"},
    {.name = "offset",
     .scopes = SCOPE_EXPORT,
     .letter = 'o',
     .argument = "OFFSET",
     .kind = CLI_NUMBER,
     TARGET(offset),
     .max = OFFSET_MAX,
     .invalid = "Invalid offset '",
     .expected = "a number of bytes is needed, without a suffix",
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "export what lies behind the first OFFSET bytes of the disk"},
    {.name = "partition",
     .scopes = SCOPE_EXPORT,
     .letter = 'P',
     .argument = "PARTITION",
     .kind = CLI_STRING,
     TARGET(partition),
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "export a partition of the disk: its number, label=NAME or uuid=UUID; 'list' prints "
             "the partitions"},
    {.name = "nocache",
     .letter = 'n',
     .kind = CLI_CONSTANT,
     .constant = CACHE_NONE,
     TARGET(cache),
     .once = "-n and --cache",
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "the same as --cache=none"},
    {.name = "cache",
     .scopes = SCOPE_EXPORT,
     .argument = "MODE",
     .kind = CLI_WORD,
     TARGET(cache),
     .words = cache_words,
     .invalid = "Invalid cache mode `",
     .once = "-n and --cache",
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "none, writeback (default), writethrough, directsync or unsafe"},
    {.name = "aio",
     .scopes = SCOPE_EXPORT,
     .argument = "MODE",
     .kind = CLI_WORD,
     TARGET(aio),
     .words = aio_words,
     .invalid = "Invalid aio mode '",
     .once = "--aio",
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "threads, native or io_uring (default: io_uring where it works, else threads)"},
    {.name = "discard",
     .scopes = SCOPE_EXPORT,
     .argument = "MODE",
     .kind = CLI_WORD,
     TARGET(discard),
     .words = discard_words,
     .invalid = "Invalid discard mode `",
     .once = "--discard",
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "what to do with space that clients trim: ignore (default) or unmap"},
    {.name = "detect-zeroes",
     .scopes = SCOPE_EXPORT,
     .argument = "MODE",
     .kind = CLI_WORD,
     TARGET(detect_zeroes),
     .words = detect_zeroes_words,
     .after = after_detect_zeroes,
     .group = GROUP_IMAGE,
     .invalid = "Failed to parse detect_zeroes mode: invalid parameter value: '",
     .help = "turn written zeroes into holes: off (default), on, or unmap (give back their space; "
             "after --discard=unmap)"},
    {.name = "allocation-depth",
     .scopes = SCOPE_EXPORT,
     .letter = 'A',
     .kind = CLI_FLAG,
     TARGET(allocation_depth),
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "let clients ask which image of the backing chain holds what, as metadata context "
             "qemu:allocation-depth"},
    {.name = "bitmap",
     .scopes = SCOPE_EXPORT,
     .letter = 'B',
     .argument = "NAME",
     .kind = CLI_LIST,
     TARGET(bitmaps),
     .after = after_per_device,
     .group = GROUP_IMAGE,
     .help = "let clients read this dirty bitmap, as metadata context qemu:dirty-bitmap:NAME; can "
             "be repeated"},

    {.name = "list",
     .letter = 'L',
     .kind = CLI_CONSTANT,
     .constant = ACTION_LIST,
     TARGET(action),
     .group = GROUP_LIST,
     .help =
         "ask the server at --bind and --port (default: this machine), at --socket, or at a URI, "
         "for its exports"},
    {.name = "json",
     .exact = true,
     .kind = CLI_FLAG,
     TARGET(json),
     .group = GROUP_LIST,
     .help = "print the list as JSON"},

    {.name = "config",
     .exact = true,
     .argument = "FILE",
     .kind = CLI_STRING,
     TARGET(config),
     .group = GROUP_PROCESS,
     .help = "serve what a configuration file tells, see evnbd.conf(5)"},
    {.name = "check-config",
     .exact = true,
     .argument = "FILE",
     .kind = CLI_STRING,
     TARGET(config),
     .after = after_check_config,
     .group = GROUP_PROCESS,
     .help = "serve nothing; tell what is wrong in a configuration file"},
    {.name = "fork",
     .kind = CLI_FLAG,
     TARGET(fork),
     .group = GROUP_PROCESS,
     .help = "serve in the background; return when clients can connect"},
    {.name = "pid-file",
     .argument = "PATH",
     .kind = CLI_STRING,
     TARGET(pid_file),
     .group = GROUP_PROCESS,
     .help = "file to write the process number to"},
    {.name = "trace",
     .letter = 'T',
     .argument = "SPEC",
     .kind = CLI_LIST,
     TARGET(traces),
     .after = after_trace,
     .group = GROUP_PROCESS,
     .help = "[[enable=]PATTERN][,events=FILE][,file=FILE]: print events; 'help' lists them"},
    {.name = "verbose",
     .letter = 'v',
     .kind = CLI_FLAG,
     TARGET(verbose),
     .group = GROUP_PROCESS,
     .help = "tell more; keep stderr open in the background"},
    {.name = "help",
     .letter = 'h',
     .kind = CLI_CONSTANT,
     .constant = ACTION_HELP,
     TARGET(action),
     .after = end_of_parsing,
     .group = GROUP_PROCESS,
     .help = "show this text"},
    {.name = "version",
     .letter = 'V',
     .kind = CLI_CONSTANT,
     .constant = ACTION_VERSION,
     TARGET(action),
     .after = end_of_parsing,
     .group = GROUP_PROCESS,
     .help = "show the version"},
    {.name = "list-options",
     .exact = true,
     .hidden = true,
     .kind = CLI_CONSTANT,
     .constant = ACTION_LIST_OPTIONS,
     TARGET(action),
     .after = end_of_parsing,
     .group = GROUP_PROCESS,
     .help = "list the options for shells and tests"},
    {.name = NULL},
};

/* Options of qemu-nbd that are no mistake, only not there yet. */
static const struct cli_later later[] = {
    {"connect", 'c'},
    {"disconnect", 'd'},
    {NULL, 0},
};

_Static_assert(ARRAY_SIZE(rows) + ARRAY_SIZE(later) <= CLI_ROWS_MAX,
               "the parser's tables hold every row");

const struct cli arguments_cli = {
    .synopsis = "[OPTION]... FILE\n--list [OPTION]... [URI]",
    .summary = "Serve a disk image to clients of the Network Block Device protocol, or list the "
               "exports of a server.",
    .rows = rows,
    .later = later,
    .later_of = "qemu-nbd",
    .groups = groups,
    .given = note_given,
};

/* What depends on the action, as far as the line did not say. */
static void set_defaults(struct arguments *a)
{
    if (a->handshake_limit == NOT_GIVEN)
        a->handshake_limit = a->action == ACTION_LIST ? 60 : 10;
}

int arguments_parse(struct arguments *ret, int argc, char **argv, bool *ret_hint,
                    struct error *error)
{
    int first, err;

    *ret = (struct arguments){.export_name = "", .shared = 1, .handshake_limit = NOT_GIVEN};
    err = cli_parse(&arguments_cli, ret, argc, argv, &first, ret_hint, error);
    set_defaults(ret);
    if (err == 0 && ret->action == ACTION_LIST && argc == first + 1 && nbd_uri_is(argv[first]))
        return list_uri_take(ret, argv[first], error);
    if (err == 0 && ret->action == ACTION_LIST && argc > first)
        return list_uri_refuse(argv[first], error);
    if (err < 0 || (ret->action != ACTION_SERVE && ret->action != ACTION_CONFIG_CHECK))
        return err;
    if (ret->partition && strcmp(ret->partition, "list") == 0)
        ret->action = ACTION_LIST_PARTITIONS;
    if (ret->config && argc == first)
        return 0;
    if (ret->config)
        return error_set(error, EINVAL,
                         "--config is incompatible with an image: the file names the images");
    if (argc - first != 1) {
        *ret_hint = true;
        return error_set(error, EINVAL,
                         "Invalid number of arguments: one image is needed, %d given",
                         argc - first);
    }
    if (ret->image_opts) {
        ret->image = argv[first];
        return 0;
    }
    return image_name_path(argv[first], &ret->image, error);
}

struct arguments arguments_of_config(void)
{
    return (struct arguments){.export_name = "", .persistent = true, .handshake_limit = 10};
}

void arguments_release(struct arguments *arguments)
{
    cli_release(&arguments_cli, arguments);
    nbd_uri_fini(&arguments->uri);
}
