/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The URI of a server as the argument of --list.  Where TLS comes from a URI there is no doubt
 * about it: one that says nbd: is not encrypted, and what is for TLS is refused beside it.
 */
#include "daemon/list_uri.h"

#include "base/checked.h"

#include <errno.h>
#include <string.h>

/* Takes one string over; both sources must not have one. */
static int take(const char **target, const char *value, const char *option, struct error *error)
{
    if (!value)
        return 0;
    if (*target)
        return error_set(error, EINVAL, "%s and the URI say the same thing; give it once", option);
    *target = value;
    return 0;
}

static int take_place(struct arguments *a, struct error *error)
{
    const struct nbd_address *address = &a->uri.address;

    if (a->socket || a->bind || a->port)
        return error_set(error, EINVAL,
                         "The URI says where the server is; --socket, --bind and --port cannot be "
                         "used with it");
    a->socket = address->socket;
    a->bind = address->host;
    a->port = address->port;
    return 0;
}

static int take_tls(struct arguments *a, struct error *error)
{
    const struct nbd_uri *uri = &a->uri;
    const struct {
        const char **target, *value, *option;
    } strings[] = {
        {&a->tls_certificates, uri->tls_certificates, "--tls-certificates"},
        {&a->tls_psk, uri->tls_psk_file, "--tls-psk"},
        {&a->tls_hostname, uri->tls_hostname, "--tls-hostname"},
        {&a->tls_username, uri->user, "the user name"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(strings); i++) {
        int err = take(strings[i].target, strings[i].value, strings[i].option, error);

        if (err < 0)
            return err;
    }
    return 0;
}

static int check(const struct arguments *a, struct error *error)
{
    bool credentials = a->tls_creds || a->tls_certificates || a->tls_psk;
    char shown[200];

    if (a->uri.export_name)
        return error_set(
            error, EINVAL, "A list is of all exports; leave the name '%s' out of the URI",
            error_escape(shown, sizeof(shown), a->uri.export_name, strlen(a->uri.export_name)));
    if (!a->uri.tls && credentials)
        return error_set(error, EINVAL,
                         "The URI asks for a connection without TLS, but there are credentials for "
                         "it: let the URI begin with nbds: or nbds+unix:");
    if (a->uri.tls && !credentials)
        return error_set(error, EINVAL,
                         "The URI asks for TLS, which needs credentials: --tls-creds, "
                         "--tls-certificates or --tls-psk, or tls-certificates=DIR or "
                         "tls-psk-file=FILE in the URI");
    if (a->tls_username && !a->tls_psk)
        return error_set(error, EINVAL,
                         "A user name in the URI is one of pre-shared keys: it needs --tls-psk, or "
                         "tls-psk-file=FILE in the URI");
    return 0;
}

int list_uri_take(struct arguments *arguments, const char *text, struct error *error)
{
    int err = nbd_uri_parse(&arguments->uri, text, error);

    if (err == 0)
        err = take_place(arguments, error);
    if (err == 0)
        err = take_tls(arguments, error);
    return err < 0 ? err : check(arguments, error);
}

int list_uri_refuse(const char *text, struct error *error)
{
    static const char unix_form[] = "nbd:unix:";
    char shown[200], hint[300] = "";
    const char *unix_path =
        strncmp(text, unix_form, strlen(unix_form)) == 0 ? text + strlen(unix_form) : NULL;

    error_escape(shown, sizeof(shown), text, strlen(text));
    if (unix_path) {
        int length = (int)min_u64(strcspn(unix_path, ":"), 100);

        snprintf(hint, sizeof(hint), ", here nbd+unix:///?socket=%.*s, or the option -k %.*s",
                 length, unix_path, length, unix_path);
    }
    return error_set(error, EINVAL,
                     "List mode is incompatible with a file name, and '%s' is no URI of a server: "
                     "that is nbd://HOST:PORT or nbd+unix:///?socket=PATH%s",
                     shown, hint);
}
