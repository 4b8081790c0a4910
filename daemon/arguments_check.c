/* SPDX-License-Identifier: BSD-3-Clause */
/* What the command line must not say: values and combinations, judged by the struct alone. */
#include "daemon/arguments.h"

#include "base/bytes.h"
#include "base/checked.h"
#include "blockcore/name_policy.h"
#include "blockcore/partition.h"
#include "blockcore/snapshot.h"
#include "daemon/image_name.h"
#include "nbd/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

/* Strings that go over the wire. */
static int check_string(const char *what, const char *text, struct error *error)
{
    char shown[80];
    size_t length = text ? strlen(text) : 0;

    if (length > NBD_STRING_MAX)
        return error_set(error, EINVAL, "%s '%s' too long: at most %d bytes can be sent", what,
                         error_escape(shown, sizeof(shown), text, length), NBD_STRING_MAX);
    if (text && !bytes_are_utf8(text, length))
        return error_set(error, EINVAL, "%s '%s' is not valid UTF-8", what,
                         error_escape(shown, sizeof(shown), text, length));
    return 0;
}

static int check_tcp(const struct arguments *a, struct error *error)
{
    size_t digits = a->port ? strspn(a->port, "0123456789") : 0;

    if (a->port && (!*a->port || (!a->port[digits] && (digits > 5 || atoi(a->port) > UINT16_MAX))))
        return error_set(error, EINVAL,
                         "Invalid port '%s': a number up to %d or a service name is needed",
                         a->port, UINT16_MAX);
    if (a->action == ACTION_LIST && a->bind && !*a->bind)
        return error_set(error, EINVAL,
                         "Invalid bind address '': the address or host name of a server is needed");
    return 0;
}

static int check_unix(const struct arguments *a, struct error *error)
{
    size_t room = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;

    if (a->socket[0] != '/')
        return error_set(error, EINVAL, "socket path must be absolute");
    if (strlen(a->socket) > room)
        return error_set(error, EINVAL, "socket path '%s' is too long: at most %zu bytes fit",
                         a->socket, room);
    return 0;
}

static int check_snapshot(const char *text, struct error *error)
{
    struct block_snapshot_choice choice;
    int err = block_snapshot_choice_parse(text, &choice, error);

    block_snapshot_choice_fini(&choice);
    if (err < 0)
        error_prefix(error, "Failed in parsing snapshot param `%s': ", text);
    return err;
}

static int check_tls_sources(const struct arguments *a, struct error *error)
{
    if (!!a->tls_certificates + !!a->tls_psk + !!a->tls_creds > 1)
        return error_set(error, EINVAL,
                         "--tls-creds, --tls-certificates and --tls-psk cannot be used together: "
                         "clients are either verified by certificates or by keys");
    if (a->tls_certificates && !a->tls_certificates[0])
        return error_set(error, EINVAL,
                         "--tls-certificates is empty: it is the directory of the certificates");
    if (a->tls_psk && !a->tls_psk[0])
        return error_set(error, EINVAL, "--tls-psk is empty: it is the file of the keys");
    if (a->tls_verify_peer && !a->tls_certificates)
        return error_set(error, EINVAL, "--tls-verify-peer needs --tls-certificates");
    return 0;
}

static bool has_credentials(const struct arguments *a)
{
    return a->tls_creds || a->tls_certificates || a->tls_psk;
}

/* What needs credentials, and which action it is for. */
static int check_tls_uses(const struct arguments *a, bool credentials, struct error *error)
{
    if (a->tls_authz && a->action == ACTION_LIST)
        return error_set(error, EINVAL, "TLS authorization is incompatible with export list");
    if (a->tls_authz && (!credentials || a->tls == TLS_USE_OFF))
        return error_set(error, EINVAL,
                         "--tls-authz is not permitted without --tls-creds, --tls-certificates or "
                         "--tls-psk");
    if (a->tls_hostname && !credentials)
        return error_set(error, EINVAL, "--tls-hostname is not permitted without --tls-creds");
    if (a->action == ACTION_TLS_CHECK && !credentials)
        return error_set(error, EINVAL,
                         "--tls-check needs something to check: --tls-creds, --tls-certificates or "
                         "--tls-psk");
    if (a->tls_hostname && a->action == ACTION_SERVE)
        return error_set(error, EINVAL, "TLS hostname is only supported with export list");
    return 0;
}

static int check_tls(const struct arguments *a, struct error *error)
{
    bool credentials = has_credentials(a);
    int err = check_tls_sources(a, error);

    if (err == 0)
        err = check_tls_uses(a, credentials, error);
    if (err < 0)
        return err;
    if (a->tls > TLS_USE_OFF && !credentials)
        return error_set(error, EINVAL,
                         "--tls needs something to prove who this server is: --tls-certificates, "
                         "--tls-psk or --tls-creds");
    if (a->oldstyle && credentials && a->tls != TLS_USE_OFF)
        return error_set(error, EINVAL, "--oldstyle has no TLS");
    return 0;
}

static int check_partition(const struct arguments *a, struct error *error)
{
    struct partition_choice choice;

    if (a->partition && a->offset > 0)
        return error_set(error, EINVAL, "Cannot request partition and offset together");
    if (!a->partition || a->action == ACTION_LIST_PARTITIONS)
        return 0;
    return partition_choice_parse(a->partition, &choice, error);
}

/* Direct I/O is what users of native asynchronous I/O expect, and it is not chosen for them. */
static int check_image(const struct arguments *a, struct error *error)
{
    bool direct = a->cache == CACHE_NONE || a->cache == CACHE_DIRECTSYNC;

    if (a->aio == AIO_NATIVE && !direct)
        return error_set(error, EINVAL,
                         "aio=native was specified, but it needs direct I/O, which was not: add "
                         "--cache=none or --cache=directsync");
    if (a->image_opts && a->format)
        return error_set(error, EINVAL,
                         "--image-opts and -f are mutually exclusive: the options say the format "
                         "(driver=...)");
    if (!*a->image)
        return error_set(error, EINVAL, "Failed to open '': the name of the image is empty");
    if (a->pid_file && !*a->pid_file)
        return error_set(error, EINVAL, "Could not create '': the name of the pid file is empty");
    if (a->key_secret && !a->format)
        return error_set(error, EINVAL,
                         "--key-secret needs the format of the image, which is not guessed then: "
                         "add --format=luks or --format=qcow2");
    if (a->backing_policy) {
        struct name_policy policy;
        int err = name_policy_parse(a->backing_policy, &policy, error);

        if (err < 0)
            return err;
    }
    if (a->snapshot) {
        int err = check_snapshot(a->snapshot, error);

        if (err < 0)
            return err;
    }
    return check_partition(a, error);
}

/* The oldstyle protocol is size and flags and nothing else. */
static int check_oldstyle(const struct arguments *a, struct error *error)
{
    if (a->oldstyle && *a->export_name)
        return error_set(
            error, EINVAL,
            "--oldstyle was given with the export name '%s', but the oldstyle protocol "
            "has no names: leave one of them out",
            a->export_name);
    return 0;
}

static int check_list(const struct arguments *a, struct error *error)
{
    if (a->per_device)
        return error_set(error, EINVAL,
                         "List mode is incompatible with per-device settings: leave out --%s",
                         a->per_device);
    if (a->fork)
        return error_set(error, EINVAL, "List mode is incompatible with forking");
    return 0;
}

static int check_config(const struct arguments *a, struct error *error)
{
    if (!a->not_beside_config)
        return 0;
    return error_set(error, EINVAL,
                     "--%s cannot be used with --config: what is served, and how, is for the file "
                     "to say",
                     a->not_beside_config);
}

int arguments_check_server(const struct arguments *arguments, struct error *error)
{
    return check_tls(arguments, error);
}

int arguments_check_listener(const struct arguments *arguments, struct error *error)
{
    if (arguments->socket && (arguments->port || arguments->bind))
        return error_set(error, EINVAL,
                         "a listener has either a socket or a port and an address to bind to");
    if (arguments->selinux_label && !arguments->socket)
        return error_set(error, EINVAL, "selinux-label is not permitted without socket");
    return arguments->socket ? check_unix(arguments, error) : check_tcp(arguments, error);
}

int arguments_check_export(const struct arguments *arguments, const struct arguments *server,
                           struct error *error)
{
    bool credentials = has_credentials(server) && server->tls != TLS_USE_OFF;
    int err = check_string("export name", arguments->export_name, error);

    if (err == 0)
        err = check_string("export description", arguments->description, error);
    if (err == 0 && !credentials && (arguments->tls_authz || arguments->tls == TLS_USE_REQUIRE))
        err = error_set(error, EINVAL, "TLS is wanted of clients, but [server] has no credentials");
    return err < 0 ? err : check_image(arguments, error);
}

int arguments_check_activated(const struct arguments *arguments, struct error *error)
{
    const struct {
        bool given;
        const char *option;
    } options[] = {
        {arguments->action == ACTION_LIST, "--list"},
        {arguments->socket, "--socket"},
        {arguments->bind, "--bind"},
        {arguments->port, "--port"},
        {arguments->selinux_label, "--selinux-label"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(options); i++)
        if (options[i].given)
            return error_set(error, EINVAL,
                             "%s cannot be used with socket activation: the sockets to serve were "
                             "passed to the process (LISTEN_FDS)",
                             options[i].option);
    return 0;
}

int arguments_check(const struct arguments *arguments, struct error *error)
{
    int err;

    if (arguments->config)
        return check_config(arguments, error);
    if (arguments->action == ACTION_LIST)
        err = check_list(arguments, error);
    else if (arguments->json)
        err = error_set(error, EINVAL, "JSON output is only supported with export list");
    else
        err = check_string("export name", arguments->export_name, error);
    if (err == 0)
        err = check_string("export description", arguments->description, error);
    if (err == 0)
        err = check_oldstyle(arguments, error);
    if (err == 0)
        err = arguments->socket ? check_unix(arguments, error) : check_tcp(arguments, error);
    if (err == 0 && arguments->selinux_label && !arguments->socket)
        err = error_set(error, EINVAL, "--selinux-label is not permitted without --socket");
    if (err == 0)
        err = check_tls(arguments, error);
    if (err == 0 && arguments->image)
        err = check_image(arguments, error);
    return err;
}
