/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * URIs of servers (RFC 3986 for the syntax).  The text is cut into pieces in a copy, and only then
 * each piece is decoded, so that an encoded delimiter is none.
 */
#include "base/nbd_uri.h"

#include "base/bytes.h"
#include "base/checked.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define SHOWN 200

static const struct scheme {
    const char *prefix;
    bool unix_socket, tls;
} schemes[] = {
    {"nbd://", false, false},
    {"nbds://", false, true},
    {"nbd+unix://", true, false},
    {"nbds+unix://", true, true},
};

static const struct query_key {
    const char *key;
    size_t offset; /* of the member that it sets */
} query_keys[] = {
    {"socket", offsetof(struct nbd_uri, address.socket)},
    {"tls-certificates", offsetof(struct nbd_uri, tls_certificates)},
    {"tls-psk-file", offsetof(struct nbd_uri, tls_psk_file)},
    {"tls-hostname", offsetof(struct nbd_uri, tls_hostname)},
};

static const struct scheme *scheme_of(const char *text)
{
    for (size_t i = 0; i < ARRAY_SIZE(schemes); i++)
        if (strncmp(text, schemes[i].prefix, strlen(schemes[i].prefix)) == 0)
            return &schemes[i];
    return NULL;
}

bool nbd_uri_is(const char *text)
{
    return scheme_of(text);
}

/* Cuts `text` at the first of the characters; returns what follows it, or NULL. */
static char *cut(char *text, const char *characters)
{
    char *at = strpbrk(text, characters);

    if (!at)
        return NULL;
    *at = '\0';
    return at + 1;
}

/* Decodes in place. */
static int decode(char *text, struct error *error)
{
    char *to = text;

    for (const char *from = text; *from; from++) {
        int high, low;

        if (*from != '%') {
            *to++ = *from;
            continue;
        }
        high = bytes_hex_digit((uint8_t)from[1]);
        low = high >= 0 ? bytes_hex_digit((uint8_t)from[2]) : -1;
        if (low < 0 || high + low == 0)
            return error_set(error, EINVAL,
                             "'%%' has to be followed by two hexadecimal digits that are not 00, "
                             "and is written %%25 itself");
        *to++ = (char)(high << 4 | low);
        from += 2;
    }
    *to = '\0';
    return 0;
}

/* A piece that may be left out, and is NULL then. */
static int take(const char **ret, char *text, struct error *error)
{
    int err = text ? decode(text, error) : 0;

    *ret = text && *text ? text : NULL;
    return err;
}

static int take_query(struct nbd_uri *uri, char *pair, struct error *error)
{
    char *value = cut(pair, "=");
    char shown[SHOWN];

    for (size_t i = 0; i < ARRAY_SIZE(query_keys); i++) {
        const char **member = (const char **)((char *)uri + query_keys[i].offset);

        if (strcmp(pair, query_keys[i].key) != 0)
            continue;
        if (*member)
            return error_set(error, EINVAL, "'%s' is there twice", query_keys[i].key);
        if (!value || !*value)
            return error_set(error, EINVAL, "'%s' needs a value, as in %s=VALUE", pair, pair);
        return take(member, value, error);
    }
    return error_set(error, EINVAL,
                     "the parameter '%s' is not known; known are socket, tls-certificates, "
                     "tls-psk-file and tls-hostname",
                     error_escape(shown, sizeof(shown), pair, strlen(pair)));
}

static int take_queries(struct nbd_uri *uri, char *query, struct error *error)
{
    int err = 0;

    while (query && err == 0) {
        char *next = cut(query, "&");

        if (*query)
            err = take_query(uri, query, error);
        query = next;
    }
    return err;
}

/* "HOST", "HOST:PORT", "[IPv6]", "[IPv6]:PORT". */
static int take_host(struct nbd_uri *uri, char *text, struct error *error)
{
    char *port = NULL, *host = text;
    int err;

    if (*text == '[') {
        char *behind = cut(++host, "]");

        if (!behind || (*behind && *behind != ':'))
            return error_set(error, EINVAL, "an IPv6 address is written as in [::1]:10809");
        port = *behind ? behind + 1 : NULL;
    } else {
        port = cut(text, ":");
        if (port && strchr(port, ':'))
            return error_set(error, EINVAL, "an IPv6 address is written as in [::1]:10809");
    }
    err = take(&uri->address.host, host, error);
    return err < 0 ? err : take(&uri->address.port, port, error);
}

static int take_authority(struct nbd_uri *uri, const struct scheme *scheme, char *text,
                          struct error *error)
{
    char *at = strrchr(text, '@');
    int err;

    if (at) {
        *at = '\0';
        err = take(&uri->user, text, error);
        if (err < 0)
            return err;
        text = at + 1;
    }
    if (!scheme->unix_socket)
        return take_host(uri, text, error);
    if (*text)
        return error_set(error, EINVAL,
                         "a Unix socket has no host: write %s/?socket=PATH, with three slashes",
                         scheme->prefix);
    return 0;
}

static int check_socket(const struct nbd_uri *uri, const struct scheme *scheme, struct error *error)
{
    if (scheme->unix_socket && !uri->address.socket)
        return error_set(error, EINVAL, "the socket is missing: write %s/?socket=PATH",
                         scheme->prefix);
    if (!scheme->unix_socket && uri->address.socket)
        return error_set(error, EINVAL, "'socket' goes with %s",
                         scheme->tls ? "nbds+unix:" : "nbd+unix:");
    return 0;
}

static int parse(struct nbd_uri *uri, const struct scheme *scheme, struct error *error)
{
    char *authority = uri->storage + strlen(scheme->prefix);
    char *query, *path;
    int err;

    if (strchr(authority, '#'))
        return error_set(error, EINVAL, "'#' has no meaning here, and is written %%23 in a name");
    query = cut(authority, "?");
    path = cut(authority, "/");
    err = take_authority(uri, scheme, authority, error);
    if (err == 0)
        err = take(&uri->export_name, path, error);
    if (err == 0)
        err = take_queries(uri, query, error);
    return err < 0 ? err : check_socket(uri, scheme, error);
}

int nbd_uri_parse(struct nbd_uri *ret, const char *text, struct error *error)
{
    const struct scheme *scheme = scheme_of(text);
    char shown[SHOWN];
    int err;

    *ret = (struct nbd_uri){0};
    if (!scheme)
        return error_set(error, EINVAL,
                         "Invalid URI '%s': it has to begin with nbd://, nbds://, nbd+unix:/// or "
                         "nbds+unix:///",
                         error_escape(shown, sizeof(shown), text, strlen(text)));
    ret->tls = scheme->tls;
    ret->storage = strdup(text);
    if (!ret->storage)
        return error_set(error, ENOMEM, "out of memory");
    err = parse(ret, scheme, error);
    if (err < 0) {
        error_prefix(error,
                     "Invalid URI '%s': ", error_escape(shown, sizeof(shown), text, strlen(text)));
        nbd_uri_fini(ret);
    }
    return err;
}

void nbd_uri_fini(struct nbd_uri *uri)
{
    free(uri->storage);
    *uri = (struct nbd_uri){0};
}
