/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Start: image, export, listening socket, pid file, background, accept.  What fails undoes what was
 * done before it, so that a bad image never leaves a socket and a busy port never a pid file.
 *
 * Stop: the first signal, or the last client's leaving (unless --persistent), asks the server to
 * finish what is in flight; when it has, the loop ends, the image is flushed and closed.  A second
 * signal ends the process at once, unless it follows so soon that it belongs to the first:
 * supervisors and terminals send several.  SIGUSR1 is ignored.
 *
 * One `struct serve`, on the stack of serve_run(), owns everything.
 */
#include "daemon/serve.h"

#include "base/log.h"
#include "base/reactor.h"
#include "base/sys.h"
#include "daemon/disk_export.h"
#include "daemon/pid_file.h"
#include "daemon/security.h"
#include "daemon/selinux.h"
#include "nbd/server.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SECOND_NS INT64_C(1000000000)
#define DRAIN_LIMIT_NS (5 * SECOND_NS)
#define SAME_SIGNAL_NS (SECOND_NS / 5)
#define STATUS_PAUSE_NS SECOND_NS

struct serve {
    const struct arguments *arguments;
    const struct config *config;    /* NULL: one export, as the command line tells */
    const struct arguments *common; /* what holds for all exports: of one of these two */
    struct service *service;
    struct error *error;

    struct security security;
    struct nbd_exports exports;
    struct disk_exports disks;
    struct nbd_server *server;
    struct pid_file pid_file;

    bool served; /* clients could connect */
    bool stopping;
    int64_t stopping_ns; /* since when */

    unsigned clients; /* that finished their handshakes */
    struct reactor_timer status;
};

static const int stop_signals[] = {SIGTERM, SIGINT, SIGHUP};

static const char *what_is_served(const struct serve *serve)
{
    return serve->config ? serve->arguments->config : serve->arguments->image;
}

static const char *plural(unsigned count)
{
    return count == 1 ? "" : "s";
}

static void tell_status(struct reactor_timer *timer)
{
    const struct serve *serve = container_of(timer, struct serve, status);

    notify_status(&serve->service->notify, "Serving '%s' to %u client%s", what_is_served(serve),
                  serve->clients, plural(serve->clients));
}

/* Clients may come and go faster than anybody reads. */
static void on_clients_changed(void *arg, unsigned clients)
{
    struct serve *serve = arg;

    serve->clients = clients;
    if (notify_wanted(&serve->service->notify) && !serve->stopping && !serve->status.heap_index)
        reactor_timer_start(&serve->status, STATUS_PAUSE_NS, tell_status);
}

static void stop(struct serve *serve)
{
    if (serve->stopping)
        return;
    serve->stopping = true;
    serve->stopping_ns = sys->monotonic_ns();
    reactor_timer_stop(&serve->status);
    notify_stopping(&serve->service->notify, "Stopping: %u client%s to finish with", serve->clients,
                    plural(serve->clients));
    list_for_each(it, &serve->disks.list) node_stop(list_entry(it, struct disk_export, link)->node);
    nbd_server_stop(serve->server, DRAIN_LIMIT_NS);
}

static void on_signal(void *arg, int signum)
{
    struct serve *serve = arg;

    if (serve->stopping && sys->monotonic_ns() - serve->stopping_ns < SAME_SIGNAL_NS)
        return;
    if (serve->stopping) {
        pid_file_remove(&serve->pid_file);
        _exit(1);
    }
    log_info("signal %d: stopping", signum);
    stop(serve);
}

static void on_client_left(void *arg, unsigned remaining)
{
    struct serve *serve = arg;

    if (remaining > 0 || serve->common->persistent || serve->stopping)
        return;
    log_info("the last client left: exiting");
    stop(serve);
}

static void on_stopped(void *arg)
{
    reactor_stop();
}

/* In a coroutine. */
static int open_disks(void *arg)
{
    struct serve *serve = arg;

    if (!serve->config)
        return disk_exports_add(&serve->disks, serve->arguments, serve->error);
    list_for_each(it, &serve->config->exports)
    {
        const struct config_part *part = list_entry(it, struct config_part, link);
        int err = disk_exports_add(&serve->disks, &part->arguments, serve->error);

        if (err < 0) {
            error_prefix(serve->error, "%s: ", part->where);
            return err;
        }
    }
    return 0;
}

/* In a coroutine. */
static int close_disks(void *arg)
{
    struct serve *serve = arg;

    return disk_exports_close(&serve->disks, serve->served, serve->error);
}

/* Runs fn(serve) in a coroutine; its error has a text even when there is no memory to begin with.
 */
static int in_coroutine(struct serve *serve, int (*fn)(void *arg))
{
    int err = reactor_run_coroutine(fn, serve);

    if (err < 0 && !serve->error->text[0])
        error_set_errno(serve->error, -err, "Could not use '%s'", what_is_served(serve));
    return err;
}

/* As many as may be served at a time can wait to be accepted, at least. */
static int backlog(const struct arguments *arguments)
{
    if (arguments->persistent || arguments->shared == 0 || arguments->shared > SOMAXCONN)
        return SOMAXCONN;
    return (int)arguments->shared;
}

static int listen_passed(struct serve *serve)
{
    const struct activation *activation = &serve->service->activation;
    int err = 0;

    for (unsigned i = 0; i < activation->count && err == 0; i++)
        err = nbd_server_listen_passed(serve->server, activation->first + (int)i, serve->error);
    if (err < 0)
        error_prefix(serve->error, "Socket activation failed: ");
    return err;
}

/* Nothing but the listening socket is made with the label. */
static int listen_unix(struct serve *serve, const struct arguments *a)
{
    int err = a->selinux_label ? selinux_label_sockets(a->selinux_label, serve->error) : 0;

    if (err == 0)
        err = nbd_server_listen_unix(serve->server, a->socket, backlog(a), serve->error);
    if (err == 0 && a->selinux_label)
        err = selinux_label_sockets(NULL, serve->error);
    return err;
}

static int listen_at(struct serve *serve, const struct arguments *a)
{
    if (a->socket)
        return listen_unix(serve, a);
    return nbd_server_listen_tcp(serve->server, a->bind, a->port, backlog(a), serve->error);
}

/* Without a listener in the file, it is as without an option on the command line. */
static int listen_everywhere(struct serve *serve)
{
    if (serve->service->activation.count > 0)
        return listen_passed(serve);
    if (!serve->config || list_empty(&serve->config->listeners))
        return listen_at(serve, serve->common);
    list_for_each(it, &serve->config->listeners)
    {
        const struct config_part *part = list_entry(it, struct config_part, link);
        int err = listen_at(serve, &part->arguments);

        if (err < 0) {
            error_prefix(serve->error, "%s: ", part->where);
            return err;
        }
    }
    return 0;
}

static int start_listening(struct serve *serve)
{
    const struct arguments *a = serve->common;
    const struct nbd_server_config config = {
        .oldstyle = a->oldstyle,
        .tls = daemon_tls_table(&serve->security.tls),
        .connections_max = (unsigned)a->shared,
        .connections_of_one = (unsigned)a->address_limit,
        .handshake_limit_ns = (int64_t)a->handshake_limit * SECOND_NS,
        .idle_limit_ns = (int64_t)a->idle_timeout * SECOND_NS,
    };
    const struct nbd_server_events events = {.arg = serve,
                                             .clients_changed = on_clients_changed,
                                             .client_left = on_client_left,
                                             .stopped = on_stopped};

    serve->server = nbd_server_new(&config, &serve->exports, &events);
    if (!serve->server)
        return error_set(serve->error, ENOMEM, "Could not make the server: out of memory");
    return listen_everywhere(serve);
}

/* Every client takes a descriptor, and what the system lets a process have is little by default. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        log_warning("cannot raise the number of open files: %s", strerror(errno));
}

static int watch_signals(struct serve *serve)
{
    signal(SIGUSR1, SIG_IGN);
    for (size_t i = 0; i < ARRAY_SIZE(stop_signals); i++) {
        int err = reactor_signal(stop_signals[i], on_signal, serve);

        if (err < 0)
            return error_set_errno(serve->error, -err, "Could not watch signal %d",
                                   stop_signals[i]);
    }
    return 0;
}

static void tell_of(const struct disk_export *disk)
{
    disk_export_warn(disk);
    log_info("serving '%s' (%s, %" PRIu64 " bytes) as export '%s'", disk->arguments->image,
             disk->node->driver->name, disk->node->size, disk->nbd_export->name);
}

static int start(struct serve *serve)
{
    const struct arguments *a = serve->arguments;
    int err = security_open(&serve->security, serve->common, serve->error);

    if (err < 0)
        return err;
    err = in_coroutine(serve, open_disks);
    if (err == 0)
        err = watch_signals(serve);
    if (err == 0)
        err = start_listening(serve);
    if (err == 0 && a->pid_file)
        err = pid_file_create(&serve->pid_file, a->pid_file, serve->error);
    if (err < 0)
        return err;
    list_for_each(it, &serve->disks.list) tell_of(list_entry(it, struct disk_export, link));
    err = daemonize_ready(&serve->service->daemonize, a->verbose, serve->error);
    if (err == 0)
        notify_ready(&serve->service->notify, "Serving '%s'", what_is_served(serve));
    return err;
}

/* Without the loop a signal would end the process by its default, with that as the exit status. */
static void block_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    for (size_t i = 0; i < ARRAY_SIZE(stop_signals); i++)
        sigaddset(&set, stop_signals[i]);
    sigprocmask(SIG_BLOCK, &set, NULL);
}

static int finish(struct serve *serve)
{
    int err;

    nbd_server_free(serve->server);
    err = in_coroutine(serve, close_disks);
    security_close(&serve->security);
    pid_file_remove(&serve->pid_file);
    reactor_timer_stop(&serve->status);
    notify_close(&serve->service->notify);
    block_signals();
    reactor_fini();
    return err;
}

int serve_run(const struct arguments *arguments, const struct config *config,
              struct service *service, struct error *error)
{
    struct serve serve = {
        .arguments = arguments,
        .config = config,
        .common = config ? &config->server : arguments,
        .service = service,
        .error = error,
        .pid_file = {.fd = -1},
    };
    int start_err, end_err;

    start_err = reactor_init(error);
    if (start_err < 0)
        return start_err;
    raise_descriptor_limit();
    nbd_exports_init(&serve.exports);
    disk_exports_init(&serve.disks, serve.common, &serve.security, &serve.exports);
    start_err = start(&serve);
    if (start_err == 0) {
        serve.served = true;
        nbd_server_start(serve.server);
        reactor_run();
    } else {
        notify_status(&service->notify, "%s", error->text);
    }
    end_err = finish(&serve);
    return start_err < 0 ? start_err : end_err;
}
