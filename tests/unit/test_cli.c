/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line of evnbd: rows to struct, messages, conflicts, help. */
#include "base/checked.h"
#include "daemon/arguments.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define WORDS_MAX 12

struct line {
    int argc;
    char *argv[WORDS_MAX + 2];
};

/* A line with the program's name before `words`, in memory of its own: getopt puts it in order. */
static struct line line_of(const char *const *words)
{
    struct line line = {.argc = 1, .argv = {strdup("evnbd")}};

    for (; *words; words++) {
        assert_true(line.argc <= WORDS_MAX);
        line.argv[line.argc++] = strdup(*words);
    }
    return line;
}

static void line_free(struct line *line)
{
    for (int i = 0; i < line->argc; i++)
        free(line->argv[i]);
}

/* Parses and checks, as main does. */
static int judge(struct line *line, struct arguments *ret, bool *ret_hint, struct error *error)
{
    int err = arguments_parse(ret, line->argc, line->argv, ret_hint, error);

    bool acts = ret->action == ACTION_SERVE || ret->action == ACTION_LIST ||
                ret->action == ACTION_TLS_CHECK;

    return err == 0 && acts ? arguments_check(ret, error) : err;
}

static void assert_text(const char *got, const char *wanted)
{
    if (wanted)
        assert_string_equal(got, wanted);
    else
        assert_null(got);
}

static void assert_same(const struct arguments *got, const struct arguments *wanted)
{
    assert_int_equal(got->action, wanted->action);
    assert_text(got->image, wanted->image);
    assert_int_equal(got->json, wanted->json);
    assert_text(got->port, wanted->port);
    assert_text(got->bind, wanted->bind);
    assert_text(got->socket, wanted->socket);
    assert_int_equal(got->shared, wanted->shared);
    assert_int_equal(got->persistent, wanted->persistent);
    assert_text(got->export_name, wanted->export_name);
    assert_text(got->description, wanted->description);
    assert_int_equal(got->oldstyle, wanted->oldstyle);
    assert_int_equal(got->handshake_limit, wanted->handshake_limit);
    assert_int_equal(got->idle_timeout, wanted->idle_timeout);
    assert_int_equal(got->address_limit, wanted->address_limit);
    assert_int_equal(got->allowed.count, wanted->allowed.count);
    assert_text(got->format, wanted->format);
    assert_text(got->key_secret, wanted->key_secret);
    assert_int_equal(got->image_opts, wanted->image_opts);
    assert_int_equal(got->overlay, wanted->overlay);
    assert_int_equal(got->overlay_memory, wanted->overlay_memory);
    assert_text(got->snapshot, wanted->snapshot);
    assert_int_equal(got->read_only, wanted->read_only);
    assert_int_equal(got->allow_writers, wanted->allow_writers);
    assert_int_equal(got->offset, wanted->offset);
    assert_int_equal(got->cache, wanted->cache);
    assert_int_equal(got->aio, wanted->aio);
    assert_int_equal(got->discard, wanted->discard);
    assert_int_equal(got->detect_zeroes, wanted->detect_zeroes);
    assert_int_equal(got->allocation_depth, wanted->allocation_depth);
    assert_int_equal(got->bitmaps.count, wanted->bitmaps.count);
    assert_text(got->tls_creds, wanted->tls_creds);
    assert_text(got->tls_authz, wanted->tls_authz);
    assert_text(got->tls_hostname, wanted->tls_hostname);
    assert_int_equal(got->objects.count, wanted->objects.count);
    assert_int_equal(got->fork, wanted->fork);
    assert_text(got->pid_file, wanted->pid_file);
    assert_int_equal(got->verbose, wanted->verbose);
    assert_int_equal(got->traces.count, wanted->traces.count);
}

/* A row's wanted arguments are these defaults, with members named again where they differ. */
#pragma GCC diagnostic ignored "-Woverride-init"
#define BASE .image = "disk", .export_name = "", .shared = 1, .handshake_limit = 10
#define LIST BASE, .image = NULL, .action = ACTION_LIST, .handshake_limit = 60

struct good_row {
    const char *name;
    const char *words[WORDS_MAX];
    struct arguments wanted;
};

static const struct good_row good_rows[] = {
    {"nothing but an image", {"disk"}, {BASE}},
    {"short options in one word",
     {"-rtv", "disk"},
     {BASE, .read_only = true, .persistent = true, .verbose = true}},
    {"attached value of a short option", {"-p10810", "disk"}, {BASE, .port = "10810"}},
    {"separate value of a short option", {"-p", "nbd", "disk"}, {BASE, .port = "nbd"}},
    {"attached value of a long option", {"--port=1", "disk"}, {BASE, .port = "1"}},
    {"separate value of a long option", {"--port", "1", "disk"}, {BASE, .port = "1"}},
    {"options after the image",
     {"disk", "-t", "--read-only"},
     {BASE, .persistent = true, .read_only = true}},
    {"two dashes end options", {"-t", "--", "disk"}, {BASE, .persistent = true}},
    {"an image that looks like an option", {"--", "-t"}, {BASE, .image = "-t"}},
    {"the documented example",
     {"--socket=/tmp/s", "--share=2", "disk"},
     {BASE, .socket = "/tmp/s", .shared = 2}},
    {"short prefixes",
     {"--so=/s", "--sh=2", "--pe", "--fork", "disk"},
     {BASE, .socket = "/s", .shared = 2, .persistent = true, .fork = true}},
    {"the last of two wins", {"-p1", "-p2", "disk"}, {BASE, .port = "2"}},
    {"a value that looks like an option", {"-x", "-t", "disk"}, {BASE, .export_name = "-t"}},
    {"an empty export name", {"-x", "", "disk"}, {BASE}},
    {"an empty description", {"-D", "", "disk"}, {BASE, .description = ""}},
    {"name and description",
     {"-x", "n", "-D", "d", "disk"},
     {BASE, .export_name = "n", .description = "d"}},
    {"a name that is not ASCII",
     {"-x", "\xc3\xa9t\xc3\xa9", "disk"},
     {BASE, .export_name = "\xc3\xa9t\xc3\xa9"}},
    {"addresses", {"-b", "::1", "disk"}, {BASE, .bind = "::1"}},
    {"every address", {"-b", "", "disk"}, {BASE, .bind = ""}},
    {"the last port", {"-p", "65535", "disk"}, {BASE, .port = "65535"}},
    {"clients without limit", {"-e", "0", "disk"}, {BASE, .shared = 0}},
    {"most clients", {"-e", "2147483647", "disk"}, {BASE, .shared = INT_MAX}},
    {"the secret of an encrypted image",
     {"--key-secret=s", "-f", "luks", "disk"},
     {BASE, .key_secret = "s", .format = "luks"}},
    {"a snapshot by any name",
     {"-l", "before", "disk"},
     {BASE, .snapshot = "before", .read_only = true}},
    {"a snapshot by its number",
     {"--load-snapshot=snapshot.id=1,snapshot.name=x", "disk"},
     {BASE, .snapshot = "snapshot.id=1,snapshot.name=x", .read_only = true}},
    {"options for the image",
     {"--image-o", "driver=raw,file.filename=x"},
     {BASE, .image_opts = true, .image = "driver=raw,file.filename=x"}},
    {"options that look like a protocol",
     {"--image-opts", "nbd:x"},
     {BASE, .image_opts = true, .image = "nbd:x"}},
    {"an image in JSON", {"json:{}"}, {BASE, .image = "json:{}"}},
    {"an overlay", {"-s", "disk"}, {BASE, .overlay = true}},
    {"an overlay, abbreviated", {"--snap", "disk"}, {BASE, .overlay = true}},
    {"an overlay in memory",
     {"--snapshot-memory=1M", "disk"},
     {BASE, .overlay = true, .overlay_memory = 1 << 20}},
    {"a hexadecimal offset", {"-o", "0x200", "disk"}, {BASE, .offset = 512}},
    {"an octal offset", {"-o", "01000", "disk"}, {BASE, .offset = 512}},
    {"the largest offset", {"-o", "9223372036854775807", "disk"}, {BASE, .offset = INT64_MAX}},
    {"no handshake limit", {"--handshake-limit=0", "disk"}, {BASE, .handshake_limit = 0}},
    {"idle timeout", {"--idle-timeout=60", "disk"}, {BASE, .idle_timeout = 60}},
    {"address limit", {"--address-limit", "32", "disk"}, {BASE, .address_limit = 32}},
    {"oldstyle", {"--oldstyle", "disk"}, {BASE, .oldstyle = true}},
    {"oldstyle with the empty name", {"--oldstyle", "-x", "", "disk"}, {BASE, .oldstyle = true}},
    {"the protocol of files", {"file:disk"}, {BASE}},
    {"a disk of another server", {"nbd://host/x"}, {BASE, .image = "nbd://host/x"}},
    {"the old form of that", {"nbd:unix:/s"}, {BASE, .image = "nbd:unix:/s"}},
    {"a file with a colon", {"file:a:b"}, {BASE, .image = "a:b"}},
    {"a path with a colon", {"./a:b"}, {BASE, .image = "./a:b"}},
    {"format", {"-f", "qcow2", "disk"}, {BASE, .format = "qcow2"}},
    {"shared writers", {"--allow-writers", "disk"}, {BASE, .allow_writers = true}},
    {"-n", {"-n", "disk"}, {BASE, .cache = CACHE_NONE}},
    {"cache off", {"--cache=off", "disk"}, {BASE, .cache = CACHE_NONE}},
    {"cache none", {"--cache=none", "disk"}, {BASE, .cache = CACHE_NONE}},
    {"cache writeback", {"--cache=writeback", "disk"}, {BASE, .cache = CACHE_WRITEBACK}},
    {"cache writethrough", {"--cache=writethrough", "disk"}, {BASE, .cache = CACHE_WRITETHROUGH}},
    {"cache directsync", {"--cache=directsync", "disk"}, {BASE, .cache = CACHE_DIRECTSYNC}},
    {"cache unsafe", {"--cache=unsafe", "disk"}, {BASE, .cache = CACHE_UNSAFE}},
    {"aio threads", {"--aio=threads", "disk"}, {BASE, .aio = AIO_THREADS}},
    {"aio io_uring", {"--aio", "io_uring", "disk"}, {BASE, .aio = AIO_IO_URING}},
    {"aio native before the cache mode",
     {"--aio=native", "--cache=none", "disk"},
     {BASE, .aio = AIO_NATIVE, .cache = CACHE_NONE}},
    {"aio native with directsync",
     {"--cache=directsync", "--aio=native", "disk"},
     {BASE, .aio = AIO_NATIVE, .cache = CACHE_DIRECTSYNC}},
    {"discard on", {"--discard=on", "disk"}, {BASE, .discard = true}},
    {"discard unmap", {"--discard=unmap", "disk"}, {BASE, .discard = true}},
    {"discard off", {"--discard=off", "disk"}, {BASE}},
    {"discard ignore", {"--discard=ignore", "disk"}, {BASE}},
    {"detect-zeroes on", {"--detect-zeroes=on", "disk"}, {BASE, .detect_zeroes = DETECT_ZEROES_ON}},
    {"detect-zeroes off", {"--detect-zeroes=off", "disk"}, {BASE}},
    {"detect-zeroes unmap",
     {"--discard=unmap", "--detect-zeroes=unmap", "disk"},
     {BASE, .discard = true, .detect_zeroes = DETECT_ZEROES_UNMAP}},
    {"list", {"-L"}, {LIST}},
    {"list, in full", {"--list"}, {LIST}},
    {"list as JSON", {"--json", "-L"}, {LIST, .json = true}},
    {"list at a port", {"-L", "-b", "::1", "-p", "nbd"}, {LIST, .bind = "::1", .port = "nbd"}},
    {"list at a socket", {"-Lk", "/s"}, {LIST, .socket = "/s"}},
    {"list for as long as it takes", {"-L", "--handshake-limit=0"}, {LIST, .handshake_limit = 0}},
    {"list for a while", {"--handshake-limit=10", "-L"}, {LIST, .handshake_limit = 10}},
    {"what says nothing about a list",
     {"-L", "-rtv", "-e2", "--detect-zeroes=on", "--pid-file=p"},
     {LIST, .read_only = true, .persistent = true, .verbose = true, .shared = 2,
      .detect_zeroes = DETECT_ZEROES_ON, .pid_file = "p"}},
    {"help about a list",
     {"-L", "-x", "n", "-h"},
     {BASE, .image = NULL, .export_name = "n", .action = ACTION_HELP}},
    {"allocation depth", {"-A", "disk"}, {BASE, .allocation_depth = true}},
    {"allocation depth, long", {"--allocation-depth", "disk"}, {BASE, .allocation_depth = true}},
    {"bitmaps add up",
     {"-B", "one", "--bitmap=two", "-Bthree", "disk"},
     {BASE, .bitmaps = {.count = 3}}},
    {"pid file", {"--pid-file=p", "disk"}, {BASE, .pid_file = "p"}},
    {"traces add up",
     {"-T", "nbd_*", "--trace=block_*", "-Tx", "disk"},
     {BASE, .traces = {.count = 3}}},
    {"help wins over what follows",
     {"-h", "--bogus"},
     {BASE, .image = NULL, .action = ACTION_HELP}},
    {"version", {"-V"}, {BASE, .image = NULL, .action = ACTION_VERSION}},
    {"the list of options",
     {"--list-options"},
     {BASE, .image = NULL, .action = ACTION_LIST_OPTIONS}},
    {"the list of types of objects",
     {"--object", "help", "--bogus"},
     {BASE, .image = NULL, .action = ACTION_LIST_OBJECTS, .objects = {.count = 1}}},
    {"the properties of a type",
     {"--object=secret,id=a", "--object=secret,help"},
     {BASE, .image = NULL, .action = ACTION_LIST_OBJECTS, .objects = {.count = 2}}},
    {"TLS by an object",
     {"--tls-creds=c", "--tls-authz=a", "disk"},
     {BASE, .tls_creds = "c", .tls_authz = "a"}},
    {"a list over TLS",
     {"-L", "--tls-creds=c", "--tls-hostname=h"},
     {LIST, .tls_creds = "c", .tls_hostname = "h"}},
    {"a look at TLS",
     {"--tls-check", "--tls-creds=c", "--tls-hostname=h", "disk"},
     {BASE, .image = NULL, .action = ACTION_TLS_CHECK, .tls_creds = "c", .tls_hostname = "h"}},
    {"objects and rules",
     {"--object=secret,id=a", "--object=secret,id=b", "--allow=uid=1", "disk"},
     {BASE, .objects = {.count = 2}, .allowed = {.count = 1}}},
    {"the list of trace points",
     {"-T", "help"},
     {BASE, .image = NULL, .action = ACTION_LIST_TRACE_POINTS, .traces = {.count = 1}}},
    {"a relative socket is fine for help",
     {"-k", "s", "--help"},
     {BASE, .image = NULL, .socket = "s", .action = ACTION_HELP}},
};

static void test_good(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(good_rows); i++) {
        const struct good_row *row = &good_rows[i];
        struct line line = line_of(row->words);
        struct arguments arguments;
        struct error error = {""};
        bool hint;
        int err = judge(&line, &arguments, &hint, &error);

        if (err != 0)
            print_error("%s: %s\n", row->name, error.text);
        assert_int_equal(err, 0);
        assert_string_equal(error.text, "");
        assert_same(&arguments, &row->wanted);
        arguments_release(&arguments);
        arguments_release(&arguments);
        assert_null(arguments.traces.items);
        line_free(&line);
    }
}

struct bad_row {
    const char *name;
    const char *words[WORDS_MAX];
    const char *says; /* start of the message */
    bool hint;
};

#define PER_DEVICE "List mode is incompatible with per-device settings"

static const struct bad_row bad_rows[] = {
    {"no image", {NULL}, "Invalid number of arguments", true},
    {"two images", {"a", "b"}, "Invalid number of arguments", true},
    {"empty image", {""}, "Failed to open ''", false},
    {"unknown long option", {"--bogus", "disk"}, "unrecognized option '--bogus'", true},
    {"unknown long option with a value",
     {"--bogus=1", "disk"},
     "unrecognized option '--bogus=1'",
     true},
    {"unknown long option after the image",
     {"disk", "--bogus"},
     "unrecognized option '--bogus'",
     true},
    {"unknown short option", {"-Z", "disk"}, "invalid option -- 'Z'", true},
    {"unknown short option in a group", {"-rZt", "disk"}, "invalid option -- 'Z'", true},
    {"a byte that is no character", {"-\xff", "disk"}, "invalid option -- '\\xff'", true},
    {"ambiguous prefix",
     {"--s=x", "disk"},
     "option '--s=x' is ambiguous; possibilities: '--socket' '--selinux-label' '--shared'",
     true},
    {"another ambiguous prefix",
     {"--bi=x", "disk"},
     "option '--bi=x' is ambiguous; possibilities: '--bind' '--bitmap'",
     true},
    {"value where none is taken",
     {"--fork=1", "disk"},
     "option '--fork' doesn't allow an argument",
     true},
    {"value of an abbreviation",
     {"--read=1", "disk"},
     "option '--read-only' doesn't allow an argument",
     true},
    {"missing value, short", {"-p"}, "option requires an argument -- 'p'", true},
    {"missing value, short in a group",
     {"disk", "-rp"},
     "option requires an argument -- 'p'",
     true},
    {"missing value, long", {"disk", "--port"}, "option '--port' requires an argument", true},
    {"missing value, abbreviated", {"disk", "--po"}, "option '--port' requires an argument", true},
    {"shared writers have no prefix",
     {"--share-r", "disk"},
     "unrecognized option '--share-r'",
     true},
    {"hidden options have no prefixes", {"--list-o"}, "unrecognized option '--list-o'", true},
    {"a list and an image", {"-L", "disk"}, "List mode is incompatible with a file name", false},
    {"a list and fork", {"-L", "--fork"}, "List mode is incompatible with forking", false},
    {"a list at a relative socket", {"-L", "-k", "s"}, "socket path must be absolute", false},
    {"a list at a bad port", {"-L", "-p", "65536"}, "Invalid port '65536'", false},
    {"JSON without a list",
     {"--json", "disk"},
     "JSON output is only supported with export list",
     false},
    {"a list and what names the option",
     {"-L", "-v", "-n", "-x", "n"},
     PER_DEVICE ": leave out --nocache",
     false},
    {"a list and a socket as QEMU once named it",
     {"-L", "nbd:unix:/run/s:exportname=x"},
     "List mode is incompatible with a file name, and 'nbd:unix:/run/s:exportname=x' is no URI of "
     "a "
     "server: that is nbd://HOST:PORT or nbd+unix:///?socket=PATH, here "
     "nbd+unix:///?socket=/run/s, or "
     "the option -k /run/s",
     false},
    {"a list and name", {"-L", "-x", "n"}, PER_DEVICE, false},
    {"a list and an empty name", {"-L", "-x", ""}, PER_DEVICE, false},
    {"a list and description", {"-L", "--description=d"}, PER_DEVICE, false},
    {"a list and a snapshot", {"-L", "-l", "1"}, PER_DEVICE, false},
    {"a list and the secret of an image", {"-L", "--key-secret=s"}, PER_DEVICE, false},
    {"the secret of an image whose format is not said",
     {"--key-secret=s", "disk"},
     "--key-secret needs the format of the image, which is not guessed then: add --format=luks or "
     "--format=qcow2",
     false},
    {"options for the image and a format",
     {"--image-opts", "-f", "raw", "driver=raw"},
     "--image-opts and -f are mutually exclusive",
     false},
    {"no options for the image", {"--image-opts", ""}, "Failed to open ''", false},
    {"an overlay in no memory",
     {"--snapshot-memory=0", "disk"},
     "Invalid size '0' of --snapshot-memory",
     false},
    {"an overlay in negative memory",
     {"--snapshot-memory=-1", "disk"},
     "Invalid size of --snapshot-memory: '-1'",
     false},
    {"an overlay in too much memory",
     {"--snapshot-memory=9999E", "disk"},
     "Invalid size of --snapshot-memory: '9999E'",
     false},
    {"an overlay in memory, abbreviated",
     {"--snapshot-mem=1M", "disk"},
     "unrecognized option '--snapshot-mem=1M'",
     true},
    {"a choice of a snapshot that is none",
     {"-l", "snapshot.nr=1", "disk"},
     "Failed in parsing snapshot param `snapshot.nr=1'",
     false},
    {"a list and offset", {"-L", "-o", "512"}, PER_DEVICE, false},
    {"a list and format", {"-L", "-f", "raw"}, PER_DEVICE, false},
    {"a list and -n", {"-L", "-n"}, PER_DEVICE, false},
    {"a list and cache", {"-L", "--cache=none"}, PER_DEVICE, false},
    {"a list and aio", {"-L", "--aio=threads"}, PER_DEVICE, false},
    {"a list and discard", {"-L", "--discard=on"}, PER_DEVICE, false},
    {"a list and allocation depth", {"-L", "-A"}, PER_DEVICE, false},
    {"a list and bitmap", {"-L", "-B", "b"}, PER_DEVICE, false},
    {"a list and shared writers", {"-L", "--allow-writers"}, PER_DEVICE, false},
    {"TLS authorization without TLS",
     {"--tls-authz=a", "disk"},
     "--tls-authz is not permitted without --tls-creds",
     false},
    {"TLS authorization with TLS off",
     {"--tls=off", "--tls-creds=c", "--tls-authz=a", "disk"},
     "--tls-authz is not permitted without --tls-creds",
     false},
    {"a look at no TLS", {"--tls-check"}, "--tls-check needs something to check", false},
    {"a list and TLS authorization",
     {"-L", "--tls-creds=c", "--tls-authz=a"},
     "TLS authorization is incompatible with export list",
     false},
    {"a host name without TLS",
     {"-L", "--tls-hostname=h"},
     "--tls-hostname is not permitted without --tls-creds",
     false},
    {"a host name for serving",
     {"--tls-creds=c", "--tls-hostname=h", "disk"},
     "TLS hostname is only supported with export list",
     false},
    {"two kinds of credentials",
     {"--tls-creds=c", "--tls-psk=f", "disk"},
     "--tls-creds, --tls-certificates and --tls-psk cannot be used together",
     false},
    {"oldstyle with credentials",
     {"--tls-creds=c", "--oldstyle", "disk"},
     "--oldstyle has no TLS",
     false},
    {"a list and access rules", {"-L", "--allow=uid=1"}, PER_DEVICE, false},
    {"a list and oldstyle", {"-L", "--oldstyle"}, PER_DEVICE, false},
    {"another protocol",
     {"ssh://host/x"},
     "Failed to open 'ssh://host/x': the protocol 'ssh'",
     false},
    {"a colon in a name", {"a:b"}, "Failed to open 'a:b': the protocol 'a' is not", false},
    {"a colon at the start", {":b"}, "Failed to open ':b': the protocol '' is not", false},
    {"another server's disk as a file",
     {"file:nbd:x"},
     "Failed to open 'file:nbd:x': the protocol 'file'",
     false},
    {"a file without a name", {"file:"}, "Failed to open ''", false},
    {"a name in the oldstyle protocol",
     {"--oldstyle", "-x", "n", "disk"},
     "--oldstyle was given with the export name 'n'",
     false},
    {"empty port", {"-p", "", "disk"}, "Invalid port ''", false},
    {"huge port", {"-p", "65536", "disk"}, "Invalid port '65536'", false},
    {"a port that would wrap", {"-p", "4294967297", "disk"}, "Invalid port '4294967297'", false},
    {"a list at an empty address", {"-L", "-b", ""}, "Invalid bind address ''", false},
    {"relative socket", {"-k", "s", "disk"}, "socket path must be absolute", false},
    {"empty socket", {"-k", "", "disk"}, "socket path must be absolute", false},
    {"clients: empty", {"-e", "", "disk"}, "Invalid shared device number ''", false},
    {"clients: negative", {"-e", "-1", "disk"}, "Invalid shared device number '-1'", false},
    {"clients: a word", {"-e", "two", "disk"}, "Invalid shared device number 'two'", false},
    {"clients: a suffix", {"-e", "1k", "disk"}, "Invalid shared device number '1k'", false},
    {"clients: half a number", {"-e", "0x", "disk"}, "Invalid shared device number '0x'", false},
    {"clients: too many",
     {"-e", "2147483648", "disk"},
     "Invalid shared device number '2147483648': a number of clients is needed, 0 for no limit; at "
     "most 2147483647",
     false},
    {"clients: beyond 64 bits",
     {"-e", "18446744073709551617", "disk"},
     "Invalid shared device number '18446744073709551617'",
     false},
    {"offset: empty", {"-o", "", "disk"}, "Invalid offset ''", false},
    {"offset: negative", {"-o", "-1", "disk"}, "Invalid offset '-1'", false},
    {"offset: a suffix", {"-o", "2M", "disk"}, "Invalid offset '2M'", false},
    {"offset: huge",
     {"-o", "9223372036854775808", "disk"},
     "Invalid offset '9223372036854775808'",
     false},
    {"handshake limit: empty", {"--handshake-limit=", "disk"}, "Invalid handshake limit ''", false},
    {"handshake limit: negative",
     {"--handshake-limit=-1", "disk"},
     "Invalid handshake limit '-1'",
     false},
    {"handshake limit: huge",
     {"--handshake-limit=2147483648", "disk"},
     "Invalid handshake limit '2147483648'",
     false},
    {"idle timeout: a word", {"--idle-timeout=x", "disk"}, "Invalid idle timeout 'x'", false},
    {"address limit: negative",
     {"--address-limit=-1", "disk"},
     "Invalid address limit '-1'",
     false},
    {"cache: unknown", {"--cache=x", "disk"}, "Invalid cache mode `x'", false},
    {"cache: empty", {"--cache=", "disk"}, "Invalid cache mode `'", false},
    {"cache: twice",
     {"--cache=none", "--cache=none", "disk"},
     "-n and --cache can only be specified once",
     false},
    {"cache: -n first",
     {"-n", "--cache=writeback", "disk"},
     "-n and --cache can only be specified once",
     false},
    {"cache: -n last",
     {"--cache=writeback", "-n", "disk"},
     "-n and --cache can only be specified once",
     false},
    {"cache: -n twice", {"-nn", "disk"}, "-n and --cache can only be specified once", false},
    {"aio: unknown", {"--aio=x", "disk"}, "Invalid aio mode 'x'", false},
    {"aio: twice",
     {"--aio=threads", "--aio=threads", "disk"},
     "--aio can only be specified once",
     false},
    {"aio: native without direct I/O", {"--aio=native", "disk"}, "aio=native was specified", false},
    {"aio: native with writeback",
     {"--aio=native", "--cache=writeback", "disk"},
     "aio=native was specified",
     false},
    {"discard: unknown", {"--discard=x", "disk"}, "Invalid discard mode `x'", false},
    {"discard: twice",
     {"--discard=on", "--discard=off", "disk"},
     "--discard can only be specified once",
     false},
    {"detect-zeroes: unknown",
     {"--detect-zeroes=x", "disk"},
     "Failed to parse detect_zeroes mode: invalid parameter value: 'x'",
     false},
    {"detect-zeroes: unmap alone",
     {"--detect-zeroes=unmap", "disk"},
     "setting detect-zeroes to unmap is not allowed",
     false},
    {"detect-zeroes: unmap too early",
     {"--detect-zeroes=unmap", "--discard=unmap", "disk"},
     "setting detect-zeroes to unmap is not allowed",
     false},
    {"detect-zeroes: unmap without unmapping",
     {"--discard=off", "--detect-zeroes=unmap", "disk"},
     "setting detect-zeroes to unmap is not allowed",
     false},
    {"a name that is not UTF-8",
     {"-x", "a\xff", "disk"},
     "export name 'a\\xff' is not valid UTF-8",
     false},
    {"a description that is not UTF-8",
     {"-D", "\xc3", "disk"},
     "export description '\\xc3' is not valid UTF-8",
     false},
    {"empty pid file", {"--pid-file=", "disk"}, "Could not create ''", false},
    {"the first error is told", {"--cache=x", "--bogus"}, "Invalid cache mode `x'", false},
};

static void test_bad(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(bad_rows); i++) {
        const struct bad_row *row = &bad_rows[i];
        struct line line = line_of(row->words);
        struct arguments arguments;
        struct error error = {""};
        bool hint;
        int err = judge(&line, &arguments, &hint, &error);

        if (err != -EINVAL || strncmp(error.text, row->says, strlen(row->says)) ||
            hint != row->hint)
            print_error("%s: %d '%s' instead of '%s'\n", row->name, err, error.text, row->says);
        assert_int_equal(err, -EINVAL);
        assert_int_equal(strncmp(error.text, row->says, strlen(row->says)), 0);
        assert_int_equal(hint, row->hint);
        arguments_release(&arguments);
        line_free(&line);
    }
}

/* Parses `option` with a value of `length` times 'a' after `start`. */
static int judge_long(const char *option, const char *start, size_t length, struct error *error)
{
    char *value = malloc(strlen(start) + length + 1);
    const char *words[] = {option, value, "disk", NULL};
    struct arguments arguments;
    struct line line;
    bool hint;
    int err;

    assert_non_null(value);
    strcpy(value, start);
    memset(value + strlen(start), 'a', length);
    value[strlen(start) + length] = '\0';
    line = line_of(words);
    err = judge(&line, &arguments, &hint, error);
    arguments_release(&arguments);
    line_free(&line);
    free(value);
    return err;
}

static void test_lengths(void **state)
{
    struct error error = {""};

    assert_int_equal(judge_long("-x", "", 4096, &error), 0);
    assert_int_equal(judge_long("-x", "", 4097, &error), -EINVAL);
    assert_non_null(strstr(error.text, "too long"));
    assert_int_equal(judge_long("-D", "", 4096, &error), 0);
    assert_int_equal(judge_long("-D", "", 4097, &error), -EINVAL);
    assert_non_null(strstr(error.text, "too long"));
    assert_int_equal(judge_long("-k", "/", 106, &error), 0);
    assert_int_equal(judge_long("-k", "/", 107, &error), -EINVAL);
    assert_non_null(strstr(error.text, "too long"));
    assert_int_equal(judge_long("-p", "", 100000, &error), 0);
}

/* A message without a struct to put it in, as library code calls it. */
static void test_no_error_wanted(void **state)
{
    const char *words[] = {"--bogus", NULL};
    struct line line = line_of(words);
    struct arguments arguments;
    bool hint;

    assert_int_equal(arguments_parse(&arguments, line.argc, line.argv, &hint, NULL), -EINVAL);
    arguments_release(&arguments);
    line_free(&line);
}

static void test_rows_consistent(void **state)
{
    const struct cli_row *rows = arguments_cli.rows;
    unsigned groups = 0;

    while (arguments_cli.groups[groups])
        groups++;
    for (const struct cli_row *row = rows; row->name; row++) {
        bool takes = row->kind != CLI_FLAG && row->kind != CLI_CONSTANT;

        assert_true(row->group < groups);
        assert_non_null(row->help);
        assert_int_equal(row->argument != NULL, takes);
        assert_int_equal(row->words != NULL, row->kind == CLI_WORD);
        if (row->kind == CLI_WORD || row->kind == CLI_NUMBER)
            assert_non_null(row->invalid);
        assert_int_equal(row->expected != NULL, row->kind == CLI_NUMBER || row->kind == CLI_SIZE);
        for (const struct cli_row *other = rows; other < row; other++) {
            assert_string_not_equal(row->name, other->name);
            assert_true(!row->letter || row->letter != other->letter);
        }
        for (const struct cli_later *later = arguments_cli.later; later->name; later++) {
            assert_string_not_equal(row->name, later->name);
            assert_true(!row->letter || row->letter != later->letter);
        }
    }
}

static char *printed(void (*print)(FILE *out))
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    print(out);
    fclose(out);
    return text;
}

static void print_help(FILE *out)
{
    cli_print_help(&arguments_cli, "prog", out);
}

static void print_options(FILE *out)
{
    cli_print_options(&arguments_cli, out);
}

static void test_help(void **state)
{
    char *text = printed(print_help);
    char *rest = text, *line;

    assert_int_equal(strncmp(text, "Usage: prog [OPTION]... FILE\n", 29), 0);
    for (const struct cli_row *row = arguments_cli.rows; row->name; row++) {
        char option[64];

        snprintf(option, sizeof(option), " --%s%s%s", row->name, row->argument ? "=" : "",
                 row->argument ? row->argument : "");
        assert_int_equal(strstr(text, option) != NULL, !row->hidden);
    }
    while ((line = strsep(&rest, "\n"))) {
        if (strlen(line) > 79)
            print_error("too wide: %s\n", line);
        assert_true(strlen(line) <= 79);
        assert_true(!*line || line[strlen(line) - 1] != ' ');
    }
    free(text);
}

static void test_list_options(void **state)
{
    char *text = printed(print_options);

    assert_non_null(strstr(text, "--port\t-p\tPORT\t\n"));
    assert_non_null(strstr(text, "--fork\t\t\t\n"));
    assert_non_null(strstr(text, "--aio\t\tMODE\tthreads,native,io_uring\n"));
    assert_null(strstr(text, "--list-options"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_no_error_wanted),
        cmocka_unit_test(test_rows_consistent),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_list_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
