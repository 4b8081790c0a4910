/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Options of the nbd driver, and the names that stand for them:
 *
 *     nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds: and nbds+unix: for TLS
 *     nbd:HOST:PORT[:exportname=EXPORT], nbd:unix:PATH[:exportname=EXPORT]
 */
#include "base/checked.h"
#include "base/options.h"
#include "base/path.h"
#include "blockcore/protocol/nbd.h"
#include "blockcore/protocol/nbd_trust.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define DEFAULT_PORT "10809"
#define EXPORT_NAME_MAX 4096
#define SECONDS_MAX ((uint64_t)365 * 86400)
#define SHOWN 200

enum { TYPE_NONE, TYPE_INET, TYPE_UNIX };

static const char *const type_words[] = {"", "inet", "unix", NULL};

#define ROW(name, type, member, words, help)                                                       \
    {                                                                                              \
        name, type, offsetof(struct nbd_options, member), words, help                              \
    }

const struct option_row nbd_option_rows[] = {
    ROW("filename", OPTION_STRING, filename, NULL, "the disk as a URI, instead of the others"),
    ROW("server.type", OPTION_ENUM, type, type_words, "inet or unix"),
    ROW("server.host", OPTION_STRING, host, NULL, "name or address of the server"),
    ROW("server.port", OPTION_STRING, port, NULL, "its TCP port"),
    ROW("server.path", OPTION_STRING, path, NULL, "its Unix socket"),
    ROW("host", OPTION_STRING, host, NULL, "the same as server.host"),
    ROW("port", OPTION_STRING, port, NULL, "the same as server.port"),
    ROW("path", OPTION_STRING, path, NULL, "the same as server.path"),
    ROW("export", OPTION_STRING, export_name, NULL, "name of the export"),
    ROW("tls-creds", OPTION_STRING, tls_creds, NULL, "id of the TLS credentials"),
    ROW("tls-hostname", OPTION_STRING, tls_hostname, NULL, "whom the certificate is for"),
    ROW("reconnect-delay", OPTION_NUMBER, reconnect_delay, NULL,
        "seconds that requests wait for a lost connection"),
    ROW("open-timeout", OPTION_NUMBER, open_timeout, NULL,
        "seconds for which the first connection is tried"),
    ROW("request-timeout", OPTION_NUMBER, request_timeout, NULL,
        "seconds after which a silent server counts as lost"),
    ROW("connections", OPTION_NUMBER, connections, NULL,
        "how many, where the server allows several"),
    {0},
};

static int out_of_memory(struct error *error)
{
    return error_set(error, ENOMEM, "out of memory");
}

/* Sets a member, in place of what it was; `text` NULL: it stays. */
static int set(char **member, const char *text, size_t length, struct error *error)
{
    if (!text)
        return 0;
    free(*member);
    *member = strndup(text, length);
    return *member ? 0 : out_of_memory(error);
}

static int set_string(char **member, const char *text, struct error *error)
{
    return set(member, text, text ? strlen(text) : 0, error);
}

/* ---- Names ---- */

static int take_uri(struct nbd_options *o, const struct nbd_uri *uri, struct error *error)
{
    int err = set_string(&o->path, uri->address.socket, error);

    if (err == 0 && !uri->address.socket)
        err = set_string(&o->host, uri->address.host ? uri->address.host : "localhost", error);
    if (err == 0)
        err = set_string(&o->port, uri->address.port, error);
    if (err == 0)
        err = set_string(&o->export_name, uri->export_name, error);
    if (err == 0)
        err = set_string(&o->tls_certificates, uri->tls_certificates, error);
    if (err == 0)
        err = set_string(&o->tls_psk_file, uri->tls_psk_file, error);
    if (err == 0)
        err = set_string(&o->tls_username, uri->user, error);
    if (err == 0)
        err = set_string(&o->tls_hostname, uri->tls_hostname, error);
    o->tls = uri->tls;
    if (err == 0 && !uri->tls && (uri->tls_certificates || uri->tls_psk_file || uri->tls_hostname))
        err = error_set(
            error, EINVAL,
            "Invalid URI '%s': what is said of TLS goes with nbds: and nbds+unix:", o->filename);
    return err;
}

/* "[ADDRESS]:PORT" or "HOST:PORT". */
static int take_host(struct nbd_options *o, const char *text, size_t length, struct error *error)
{
    const char *colon = memrchr(text, ':', length);
    size_t host = colon ? (size_t)(colon - text) : 0;

    if (host == 0 || host + 1 == length)
        return error_set(error, EINVAL,
                         "it is written nbd:HOST:PORT[:exportname=NAME] or "
                         "nbd:unix:PATH[:exportname=NAME], or as a URI, nbd://HOST:PORT/NAME");
    if (text[0] == '[' && text[host - 1] == ']') {
        if (set(&o->host, text + 1, host - 2, error) < 0)
            return -ENOMEM;
    } else if (memchr(text, ':', host)) {
        return error_set(error, EINVAL, "an IPv6 address is written as in nbd:[::1]:10809");
    } else if (set(&o->host, text, host, error) < 0) {
        return -ENOMEM;
    }
    return set(&o->port, colon + 1, length - host - 1, error);
}

static int take_old_form(struct nbd_options *o, const char *text, struct error *error)
{
    static const char unix_word[] = "unix:", export_word[] = ":exportname=";
    const char *export = strstr(text, export_word);
    size_t length = export ? (size_t)(export - text) : strlen(text);

    if (export && set_string(&o->export_name, export + strlen(export_word), error) < 0)
        return -ENOMEM;
    if (strncmp(text, unix_word, strlen(unix_word)) != 0)
        return take_host(o, text, length, error);
    if (length == strlen(unix_word))
        return error_set(error, EINVAL, "the path of the socket is missing");
    return set(&o->path, text + strlen(unix_word), length - strlen(unix_word), error);
}

int nbd_name_parse(struct nbd_options *options, const char *name, struct error *error)
{
    static const char prefix[] = "nbd:";
    char shown[SHOWN];
    struct nbd_uri uri;
    int err;

    if (nbd_uri_is(name) || strncmp(name, prefix, strlen(prefix)) != 0) {
        err = nbd_uri_parse(&uri, name, error);
        if (err == 0)
            err = take_uri(options, &uri, error);
        nbd_uri_fini(&uri);
        return err;
    }
    err = take_old_form(options, name + strlen(prefix), error);
    if (err < 0)
        error_prefix(error,
                     "Invalid name '%s': ", error_escape(shown, sizeof(shown), name, strlen(name)));
    return err;
}

/* ---- Checks ---- */

static int check_seconds(const char *key, uint64_t value, struct error *error)
{
    if (value <= SECONDS_MAX)
        return 0;
    return error_set(error, EINVAL,
                     "%s=%" PRIu64 " is more than a year: it is a number of seconds up to %" PRIu64,
                     key, value, SECONDS_MAX);
}

static int check_numbers(const struct nbd_options *o, struct error *error)
{
    int err = check_seconds("reconnect-delay", o->reconnect_delay, error);

    if (err == 0)
        err = check_seconds("open-timeout", o->open_timeout, error);
    if (err == 0)
        err = check_seconds("request-timeout", o->request_timeout, error);
    if (err == 0 && (o->connections == 0 || o->connections > NBD_CONNECTIONS_MAX))
        err = error_set(error, EINVAL, "connections=%" PRIu64 " has to be from 1 to %d",
                        o->connections, NBD_CONNECTIONS_MAX);
    return err;
}

static int check_address(struct nbd_options *o, struct error *error)
{
    if (o->path && o->host)
        return error_set(error, EINVAL,
                         "path and host may not be used at the same time: a server is at a Unix "
                         "socket or at an address");
    if (!o->path && !o->host)
        return error_set(error, EINVAL,
                         "one of path and host must be specified: server.type=unix,server.path="
                         "SOCKET, or server.type=inet,server.host=NAME,server.port=NUMBER");
    if ((o->type == TYPE_UNIX && !o->path) || (o->type == TYPE_INET && !o->host))
        return error_set(error, EINVAL, "server.type=%s needs server.%s", type_words[o->type],
                         o->type == TYPE_UNIX ? "path" : "host");
    if (o->path && strlen(o->path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
        return error_set(error, ENAMETOOLONG,
                         "the path of the socket '%s' has %zu bytes, it can have %zu", o->path,
                         strlen(o->path), sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1);
    if (strlen(o->export_name) > EXPORT_NAME_MAX)
        return error_set(error, ENAMETOOLONG,
                         "the name of the export has %zu bytes, it can have %d",
                         strlen(o->export_name), EXPORT_NAME_MAX);
    return 0;
}

/* ---- TLS ---- */

/* What libnbd cannot do is refused: silently doing less would be insecure. */
static int check_tls(const struct nbd_options *o, struct error *error)
{
    if (!o->tls)
        return o->tls_hostname ? error_set(error, EINVAL, "tls-hostname goes with tls-creds") : 0;
    if (!nbd_trust_needed(o))
        return 0;
    if (!o->tls_certificates)
        return error_set(error, EINVAL,
                         "TLS needs credentials, or the server could be anybody: tls-creds, or "
                         "tls-certificates=DIR or tls-psk-file=FILE in the URI");
    if (o->path)
        return error_set(error, ENOTSUP,
                         "the certificate of a server behind a Unix socket cannot be verified: use "
                         "TCP, pre-shared keys, or credentials with verify-peer=off");
    if (o->tls_hostname && strcmp(o->tls_hostname, o->host) != 0)
        return error_set(error, ENOTSUP,
                         "tls-hostname=%s is not supported: the certificate of the server has to "
                         "be for the host that is connected to, '%s'",
                         o->tls_hostname, o->host);
    return 0;
}

static int use_credentials(struct nbd_options *o, const struct block_tls *tls, struct error *error)
{
    static const char cannot[] = "the nbd driver cannot use the TLS credentials '%s': %s";

    if (tls->kind == BLOCK_TLS_ANON)
        return error_set(error, ENOTSUP, cannot, o->tls_creds,
                         "anonymous TLS is not supported; use tls-creds-psk or tls-creds-x509");
    if (tls->has_priority)
        return error_set(error, ENOTSUP, cannot, o->tls_creds, "'priority' is not supported");
    if (tls->has_key_password)
        return error_set(error, ENOTSUP, cannot, o->tls_creds,
                         "'passwordid' is not supported: the key must not be encrypted");
    o->verify_peer = tls->verify_peer;
    if (tls->kind == BLOCK_TLS_X509)
        return set_string(&o->tls_certificates, tls->dir, error);
    if (asprintf(&o->tls_psk_file, "%s/keys.psk", tls->dir) < 0) {
        o->tls_psk_file = NULL;
        return out_of_memory(error);
    }
    return set_string(&o->tls_username, tls->username ? tls->username : "qemu", error);
}

static int find_credentials(struct nbd_options *o, const struct block_context *context,
                            struct error *error)
{
    struct block_tls tls;
    int err;

    if (!o->tls_creds)
        return 0;
    if (o->tls_certificates || o->tls_psk_file)
        return error_set(error, EINVAL, "tls-creds and the TLS files of a URI are one too many");
    if (!context->find_tls)
        return error_set(error, EINVAL, "tls-creds=%s: there are no objects here", o->tls_creds);
    err = context->find_tls(context->find_tls_arg, o->tls_creds, &tls, error);
    if (err < 0)
        return err;
    o->tls = true;
    return use_credentials(o, &tls, error);
}

/* The process may change its directory before it connects again. */
static int make_absolute(char **path, struct error *error)
{
    char *absolute = *path ? path_absolute(*path) : NULL;

    if (*path && !absolute)
        return error_set(error, ENOENT, "cannot find out the current directory, for '%s'", *path);
    free(*path);
    *path = absolute;
    return 0;
}

static int take_tls(struct nbd_options *o, const struct block_context *context, struct error *error)
{
    int err = find_credentials(o, context, error);

    if (err == 0)
        err = check_tls(o, error);
    if (err == 0)
        err = make_absolute(&o->tls_certificates, error);
    return err < 0 ? err : make_absolute(&o->tls_psk_file, error);
}

/* ---- All together ---- */

static int take_name(struct nbd_options *o, struct error *error)
{
    if (!o->filename)
        return 0;
    if (o->host || o->port || o->path || o->export_name)
        return error_set(error, EINVAL,
                         "filename='%s' and options of the server may not be used at the same time",
                         o->filename);
    return nbd_name_parse(o, o->filename, error);
}

int nbd_options_take(struct nbd_options *options, struct node_open *open, struct error *error)
{
    struct nbd_options *o = options;
    int err;

    o->connections = NBD_CONNECTIONS_DEFAULT;
    o->verify_peer = true;
    err = options_take(open->options, nbd_option_rows, o, "driver 'nbd'", error);
    if (err == 0) /* before the server is asked for anything */
        err = options_finish(open->options, nbd_option_rows, "driver 'nbd'", error);
    if (err == 0)
        err = take_name(o, error);
    if (err == 0 && !o->port)
        err = set_string(&o->port, DEFAULT_PORT, error);
    if (err == 0 && !o->export_name)
        err = set_string(&o->export_name, "", error);
    if (err == 0)
        err = check_address(o, error);
    if (err == 0)
        err = check_numbers(o, error);
    return err < 0 ? err : take_tls(o, open->context, error);
}

void nbd_options_fini(struct nbd_options *options)
{
    options_release(nbd_option_rows, options);
    free(options->tls_certificates);
    free(options->tls_psk_file);
    free(options->tls_username);
}

char *nbd_options_name(const struct nbd_options *o)
{
    const char *s = o->tls ? "s" : "";
    char *name;
    int n;

    if (o->filename)
        return strdup(o->filename);
    if (o->path)
        n = asprintf(&name, "nbd%s+unix:///%s?socket=%s", s, o->export_name, o->path);
    else
        n = asprintf(&name, strchr(o->host, ':') ? "nbd%s://[%s]:%s/%s" : "nbd%s://%s:%s/%s", s,
                     o->host, o->port, o->export_name);
    return n < 0 ? NULL : name;
}
