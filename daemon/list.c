/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Asking a server for its exports, and telling people.  What the server says is text from outside:
 * bytes that a terminal could obey are printed as \xNN.
 */
#include "daemon/list.h"

#include "base/checked.h"
#include "base/log.h"
#include "base/reactor.h"
#include "daemon/objects.h"
#include "daemon/tls.h"
#include "nbd/inquiry.h"
#include "nbd/wire.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define SECOND_NS INT64_C(1000000000)

struct inquiry {
    struct nbd_address address;
    const struct nbd_tls *tls; /* NULL: plain */
    int64_t limit_ns;
    struct nbd_remote remote;
    struct error *error;
};

const char *list_flag_word(unsigned bit)
{
    static const char *const words[] = {
        NULL,    "readonly", "flush", "fua",       "rotational",           "trim", "zeroes", "df",
        "multi", "resize",   "cache", "fast-zero", "block-status-payload",
    };

    return bit < ARRAY_SIZE(words) ? words[bit] : NULL;
}

/* In a coroutine. */
static int inquire(void *arg)
{
    struct inquiry *inquiry = arg;

    return nbd_inquire(&inquiry->address, inquiry->tls, inquiry->limit_ns, &inquiry->remote,
                       inquiry->error);
}

static void print_text(FILE *out, const char *before, const struct nbd_text *text,
                       const char *after)
{
    char shown[4 * NBD_STRING_MAX + 1];

    fprintf(out, "%s%s%s", before, error_printable(shown, sizeof(shown), text->data, text->length),
            after);
}

static void print_flags(FILE *out, uint16_t flags)
{
    fprintf(out, "  flags: 0x%x (", flags);
    for (unsigned bit = 0; bit < 16; bit++)
        if (flags & 1U << bit && list_flag_word(bit))
            fprintf(out, " %s", list_flag_word(bit));
    fprintf(out, " )\n");
}

static void print_export(FILE *out, const struct nbd_remote *remote,
                         const struct nbd_remote_export *e)
{
    print_text(out, " export: '", &e->name, "'\n");
    if (e->description.length > 0)
        print_text(out, "  description: ", &e->description, "\n");
    if (e->flags & NBD_FLAG_HAS_FLAGS) {
        fprintf(out, "  size:  %" PRIu64 "\n", e->size);
        print_flags(out, e->flags);
    }
    if (e->block_min) {
        fprintf(out, "  min block: %" PRIu32 "\n", e->block_min);
        fprintf(out, "  opt block: %" PRIu32 "\n", e->block_preferred);
        fprintf(out, "  max block: %" PRIu32 "\n", e->block_max);
    }
    fprintf(out, "  transaction size: %s\n", remote->extended_headers ? "64-bit" : "32-bit");
    if (e->context_count > 0)
        fprintf(out, "  available meta contexts: %zu\n", e->context_count);
    for (size_t i = 0; i < e->context_count; i++)
        print_text(out, "   ", &e->contexts[i], "\n");
}

void list_print_text(const struct nbd_remote *remote, FILE *out)
{
    fprintf(out, "exports available: %zu\n", remote->export_count);
    for (size_t i = 0; i < remote->export_count; i++)
        print_export(out, remote, &remote->exports[i]);
}

/* What could not be learned is no part of the list, and no failure either. */
static void warn_about_problems(const struct nbd_remote *remote)
{
    for (size_t i = 0; i < remote->export_count; i++) {
        const struct nbd_remote_export *e = &remote->exports[i];
        char name[80];

        if (e->problem)
            log_warning("export '%s': %s",
                        error_escape(name, sizeof(name), e->name.data, e->name.length), e->problem);
    }
}

int list_run(const struct arguments *arguments, FILE *out, struct error *error)
{
    struct inquiry inquiry = {
        .address = {.socket = arguments->socket,
                    .host = arguments->bind,
                    .port = arguments->port ? arguments->port : NBD_DEFAULT_PORT},
        .limit_ns = (int64_t)arguments->handshake_limit * SECOND_NS,
        .error = error,
    };
    struct objects *objects = NULL;
    struct daemon_tls tls = {0};
    int err = reactor_init(error);

    if (err < 0)
        return err;
    err = objects_new(&arguments->objects, &objects, error);
    if (err == 0)
        err = daemon_tls_init(&tls, arguments, objects, error);
    inquiry.tls = daemon_tls_table(&tls);
    if (err == 0)
        err = reactor_run_coroutine(inquire, &inquiry);
    daemon_tls_fini(&tls);
    objects_free(objects);
    reactor_fini();
    if (err == -ENOMEM && !error->text[0])
        error_set(error, ENOMEM, "out of memory");
    if (err == 0 && arguments->json)
        err = list_print_json(&inquiry.remote, out, error);
    else if (err == 0)
        list_print_text(&inquiry.remote, out);
    if (err == 0)
        warn_about_problems(&inquiry.remote);
    nbd_remote_fini(&inquiry.remote);
    return err;
}
