/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Credentials that follow their files.
 *
 * Looking whether files have changed costs a few system calls, which is nothing beside a handshake,
 * and needs no watch that could miss how an editor or a mount has replaced them.  They are read on
 * the loop, and what is long (a bundle of certificates) is parsed in a worker; sessions that begin
 * meanwhile wait for it, so that none goes by what has been revoked.
 */
#include "tls/credentials.h"

#include "base/checked.h"
#include "base/log.h"
#include "base/path.h"
#include "base/worker.h"
#include "tls/dates.h"
#include "tls/material.h"
#include "tls/priority.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is parsed on the loop: about 10 ms of it. */
#define AT_ONCE_BYTES (64 * 1024)

struct reload;

struct tls_credentials {
    unsigned references;
    struct tls_credentials_config config; /* owns its strings */
    struct secret password;               /* where config.key_password points */
    gnutls_priority_t priority;
    struct tls_file files[TLS_FILES];
    struct tls_material *material;
    bool made_from[TLS_FILES]; /* the files that were there for `material` */
    struct reload *reload;     /* NULL: none is under way */
};

/* A state of the files on its way to be `material`. */
struct reload {
    struct worker_job job;
    struct tls_credentials *credentials; /* with a reference */
    struct tls_file before[TLS_FILES];   /* with the stamps of the last state */
    struct tls_material *fresh;
    struct error error;
    int result; /* 0: `fresh`, else negative errno and `error` */
};

/* ---- Setting up ---- */

static bool copy_string(const char **ret, const char *text)
{
    *ret = text ? strdup(text) : NULL;
    return !text || *ret;
}

/* The process may change its directory before the files are read again. */
static bool copy_path(const char **ret, const char *path)
{
    *ret = path ? path_absolute(path) : NULL;
    return !path || *ret;
}

static bool copy_password(struct tls_credentials *c, const struct secret *password)
{
    if (!password)
        return true;
    c->password.data = malloc(password->length + 1);
    if (!c->password.data)
        return false;
    memcpy(c->password.data, password->data, password->length);
    c->password.data[password->length] = 0;
    c->password.length = password->length;
    c->config.key_password = &c->password;
    return true;
}

static bool copy_config(struct tls_credentials *c, const struct tls_credentials_config *config)
{
    bool good = true;

    c->config = *config;
    c->config.key_password = NULL;
    good &= copy_path(&c->config.dir, config->dir);
    good &= copy_path(&c->config.psk_file, config->psk_file);
    good &= copy_string(&c->config.priority, config->priority);
    good &= copy_string(&c->config.username, config->username);
    return good && copy_password(c, config->key_password);
}

static bool set_file(struct tls_file *files, int which, const char *dir, const char *name,
                     const char *label, bool needed)
{
    struct tls_file *file = &files[which];

    file->label = label;
    file->needed = needed;
    file->secret = which == TLS_FILE_KEY || which == TLS_FILE_PSK;
    if (!dir)
        return (file->path = strdup(name)) != NULL;
    if (asprintf(&file->path, "%s/%s", dir, name) < 0)
        file->path = NULL;
    return file->path != NULL;
}

static bool set_x509_files(struct tls_file *files, const struct tls_credentials_config *config)
{
    bool server = config->endpoint == TLS_SERVER, good = true;
    const char *dir = config->dir;

    good &=
        set_file(files, TLS_FILE_CA, dir, "ca-cert.pem", "the CA certificate", config->verify_peer);
    good &= set_file(files, TLS_FILE_CRL, dir, "ca-crl.pem", "the revocation list", false);
    good &= set_file(files, TLS_FILE_CERTIFICATE, dir,
                     server ? "server-cert.pem" : "client-cert.pem", "the certificate", server);
    good &= set_file(files, TLS_FILE_KEY, dir, server ? "server-key.pem" : "client-key.pem",
                     "the private key", server);
    return good;
}

bool tls_files_name(struct tls_file *files, const struct tls_credentials_config *config)
{
    static const char label[] = "the pre-shared keys";

    if (config->kind == TLS_X509)
        return set_x509_files(files, config);
    if (config->kind == TLS_ANON)
        return true;
    if (config->psk_file)
        return set_file(files, TLS_FILE_PSK, NULL, config->psk_file, label, true);
    return set_file(files, TLS_FILE_PSK, config->dir, "keys.psk", label, true);
}

static int check_config(const struct tls_credentials_config *config, struct error *error)
{
    if (config->kind == TLS_X509 && !config->dir)
        return error_set(error, EINVAL,
                         "TLS certificates need the directory that holds them ('dir')");
    if (config->kind == TLS_PSK && !config->dir && !config->psk_file)
        return error_set(error, EINVAL,
                         "TLS with pre-shared keys needs the directory of keys.psk ('dir')");
    return 0;
}

static int set_priority(struct tls_credentials *c, struct error *error)
{
    const char *text = c->config.priority ? c->config.priority : tls_priority(c->config.kind);
    const char *at = NULL;
    int r = gnutls_priority_init(&c->priority, text, &at);

    if (r == 0)
        return 0;
    c->priority = NULL;
    return error_set(error, EINVAL, "Unable to set TLS session priority '%s': %s at '%s'", text,
                     gnutls_strerror(r), at ? at : text);
}

static void warn_of_old_list(const struct tls_credentials *c, time_t overdue)
{
    char day[TLS_DATE_MAX];

    if (overdue == 0)
        return;
    log_warning("the revocation list '%s' should have been replaced by a newer one on %s; what it "
                "revokes stays revoked",
                c->files[TLS_FILE_CRL].path, tls_day(overdue, day));
}

static void take_material(struct tls_credentials *c, struct tls_material *material)
{
    warn_of_old_list(c, material->crl_overdue);
    tls_material_unref(c->material);
    c->material = material;
    for (int i = 0; i < TLS_FILES; i++)
        c->made_from[i] = tls_file_was_there(&c->files[i]);
}

static int set_up(struct tls_credentials *c, const struct tls_credentials_config *config,
                  struct error *error)
{
    struct tls_material *material;
    int err = check_config(config, error);

    if (err < 0)
        return err;
    if (!copy_config(c, config) || !tls_files_name(c->files, &c->config))
        return error_set_errno(error, ENOMEM, "Could not make TLS credentials");
    err = set_priority(c, error);
    if (err < 0)
        return err;
    err = tls_files_read(c->files, error);
    if (err == 0)
        err = tls_material_new(&c->config, c->files, &material, error);
    tls_files_drop(c->files);
    if (err == 0)
        take_material(c, material);
    return err;
}

int tls_credentials_new(const struct tls_credentials_config *config, struct tls_credentials **ret,
                        struct error *error)
{
    struct tls_credentials *c = calloc(1, sizeof(*c));
    int err;

    if (!c)
        return error_set_errno(error, ENOMEM, "Could not make TLS credentials");
    c->references = 1;
    gnutls_global_set_time_function(tls_now);
    err = set_up(c, config, error);
    if (err < 0)
        tls_credentials_unref(c);
    else
        *ret = c;
    return err;
}

struct tls_credentials *tls_credentials_ref(struct tls_credentials *credentials)
{
    credentials->references++;
    return credentials;
}

void tls_credentials_unref(struct tls_credentials *credentials)
{
    struct tls_credentials *c = credentials;

    if (!c || --c->references > 0)
        return;
    tls_material_unref(c->material);
    if (c->priority)
        gnutls_priority_deinit(c->priority);
    for (int i = 0; i < TLS_FILES; i++)
        free(c->files[i].path);
    free((void *)(uintptr_t)c->config.dir);
    free((void *)(uintptr_t)c->config.psk_file);
    free((void *)(uintptr_t)c->config.priority);
    free((void *)(uintptr_t)c->config.username);
    secret_wipe(c->password.data, c->password.length);
    free(c->password.data);
    free(c);
}

/* ---- Following the files ---- */

static bool files_changed(const struct tls_credentials *c)
{
    for (int i = 0; i < TLS_FILES; i++) {
        if (c->files[i].path && tls_file_changed(&c->files[i]))
            return true;
    }
    return false;
}

/*
 * A file that may be missing and was there makes the rest stricter (revoked certificates): without
 * it more would be let in, which a slip, or half of an update, should not do.
 */
static int check_none_vanished(const struct tls_credentials *c, struct error *error)
{
    for (int i = 0; i < TLS_FILES; i++) {
        const struct tls_file *file = &c->files[i];

        if (c->made_from[i] && !tls_file_was_there(file))
            return error_set(error, ENOENT, "%s '%s' has vanished; a restart would go without it",
                             file->label, file->path);
    }
    return 0;
}

static void parse(struct worker_job *job)
{
    struct reload *reload = container_of(job, struct reload, job);
    struct tls_credentials *c = reload->credentials;

    reload->result = tls_material_new(&c->config, c->files, &reload->fresh, &reload->error);
}

/*
 * Each change is tried once: all stamps were taken before, also of what was not come to.  What
 * failed for lack of descriptors or memory is tried again by the next session.
 */
static void end_reload(struct worker_job *job)
{
    struct reload *reload = container_of(job, struct reload, job);
    struct tls_credentials *c = reload->credentials;
    const char *where = c->config.psk_file ? c->config.psk_file : c->config.dir;

    tls_files_drop(c->files);
    if (tls_file_is_lack(reload->result))
        memcpy(c->files, reload->before, sizeof(c->files));
    if (reload->result < 0) {
        log_error("the TLS credentials in '%s' have changed and cannot be used, going on with "
                  "those from before: %s",
                  where, reload->error.text);
    } else {
        take_material(c, reload->fresh);
        log_info("the TLS credentials in '%s' have changed; new clients get the new ones", where);
    }
    c->reload = NULL;
    free(reload);
    tls_credentials_unref(c);
}

static size_t bytes_of(const struct tls_file *files)
{
    size_t sum = 0;

    for (int i = 0; i < TLS_FILES; i++)
        sum += files[i].length;
    return sum;
}

/* The client has nobody else to serve, and its loop need not be one that has workers. */
static bool takes_long(const struct tls_credentials *c)
{
    return c->config.endpoint == TLS_SERVER && bytes_of(c->files) > AT_ONCE_BYTES;
}

static void read_again(struct tls_credentials *c)
{
    struct reload *reload = calloc(1, sizeof(*reload));

    if (!reload)
        return;
    reload->job = (struct worker_job){.run = parse, .done = end_reload};
    reload->credentials = tls_credentials_ref(c);
    c->reload = reload;
    memcpy(reload->before, c->files, sizeof(reload->before));
    for (int i = 0; i < TLS_FILES; i++) {
        if (c->files[i].path)
            tls_file_restamp(&c->files[i]);
    }
    reload->result = tls_files_read(c->files, &reload->error);
    if (reload->result == 0)
        reload->result = check_none_vanished(c, &reload->error);
    if (reload->result == 0 && takes_long(c)) {
        worker_submit(&reload->job);
        return;
    }
    if (reload->result == 0)
        parse(&reload->job);
    end_reload(&reload->job);
}

struct tls_material *tls_credentials_material(struct tls_credentials *credentials)
{
    if (!credentials->reload && files_changed(credentials))
        read_again(credentials);
    return credentials->reload ? NULL : tls_material_ref(credentials->material);
}

const struct tls_credentials_config *
tls_credentials_config(const struct tls_credentials *credentials)
{
    return &credentials->config;
}

gnutls_priority_t tls_credentials_priority(const struct tls_credentials *credentials)
{
    return credentials->priority;
}

enum tls_kind tls_credentials_kind(const struct tls_credentials *credentials)
{
    return credentials->config.kind;
}

enum tls_endpoint tls_credentials_endpoint(const struct tls_credentials *credentials)
{
    return credentials->config.endpoint;
}
