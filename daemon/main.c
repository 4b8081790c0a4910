/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * evnbd: serves a disk image over NBD, or lists what a server offers.  The order is: parse, check,
 * then act; whatever fails says why through one struct error, and what is said is printed here and
 * nowhere else.
 */
#include "base/log.h"
#include "base/trace.h"
#include "daemon/arguments.h"
#include "daemon/daemonize.h"
#include "daemon/list.h"
#include "daemon/objects.h"
#include "daemon/partition_list.h"
#include "daemon/serve.h"
#include "daemon/tls_check.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const char *program_name(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;

    if (argc <= 0 || !*argv[0])
        return "evnbd";
    return slash && slash[1] ? slash + 1 : argv[0];
}

static void print_version(const char *program)
{
    printf("%s %s%s\n"
           "A server of disk images over the Network Block Device protocol.\n"
           "License BSD-3-Clause. There is no warranty, to the extent that the law permits.\n",
           program, EVNBD_VERSION, strcmp(program, "evnbd") ? " (evnbd)" : "");
}

/* Output that does not arrive is a failure. */
static int finish_output(struct error *error)
{
    errno = 0;
    if (fflush(stdout) != 0 || ferror(stdout))
        return error_set_errno(error, errno ? errno : EIO,
                               "Could not write to the standard output");
    return 0;
}

/* The actions that only print. */
static int inform(const struct arguments *arguments, const char *program, struct error *error)
{
    switch (arguments->action) {
    case ACTION_HELP:
        cli_print_help(&arguments_cli, program, stdout);
        break;
    case ACTION_VERSION:
        print_version(program);
        break;
    case ACTION_LIST_OBJECTS:
        objects_print_help(arguments->objects.items[arguments->objects.count - 1], stdout);
        break;
    case ACTION_LIST_OPTIONS:
        cli_print_options(&arguments_cli, stdout);
        break;
    default:
        trace_list(stdout);
        break;
    }
    return finish_output(error);
}

static int serve(const struct arguments *arguments, const struct config *config,
                 struct service *service, struct error *error)
{
    int err = 0;

    if (arguments->fork)
        err = daemonize_fork(&service->daemonize, error);
    return err == 0 ? serve_run(arguments, config, service, error) : err;
}

/* The command line, or the file that it names. */
static int serve_asked(const struct arguments *arguments, struct service *service,
                       struct error *error)
{
    struct config config;
    int err;

    if (!arguments->config)
        return serve(arguments, NULL, service, error);
    err = config_read(&config, arguments->config, error);
    if (err == 0)
        err = serve(arguments, &config, service, error);
    config_fini(&config);
    return err;
}

static int check_config(const struct arguments *arguments, struct error *error)
{
    struct config config;
    int err = config_read(&config, arguments->config, error);

    config_fini(&config);
    return err;
}

static void meet_manager(struct service *service)
{
    struct error error = {""};

    if (notify_open(&service->notify, &error) < 0)
        log_warning("%s", error.text);
}

static int act(const struct arguments *arguments, const char *program, struct error *error)
{
    struct service service = {0};
    int err;

    if (arguments->action >= ACTION_HELP)
        return inform(arguments, program, error);
    err = activation_take(&service.activation, error);
    if (err == 0 && service.activation.count > 0)
        err = arguments_check_activated(arguments, error);
    if (err == 0)
        err = arguments_check(arguments, error);
    for (size_t i = 0; i < arguments->traces.count && err == 0; i++)
        err = trace_configure(arguments->traces.items[i], error);
    if (err < 0)
        return err;
    signal(SIGPIPE, SIG_IGN);
    switch (arguments->action) {
    case ACTION_LIST:
        err = list_run(arguments, stdout, error);
        break;
    case ACTION_LIST_PARTITIONS:
        err = partition_list_run(arguments, stdout, error);
        break;
    case ACTION_CONFIG_CHECK:
        err = check_config(arguments, error);
        break;
    case ACTION_TLS_CHECK:
        err = tls_check_run(arguments, stdout, error);
        break;
    default:
        meet_manager(&service);
        return serve_asked(arguments, &service, error);
    }
    return err < 0 ? err : finish_output(error);
}

int main(int argc, char **argv)
{
    const char *program = program_name(argc, argv);
    struct arguments arguments;
    struct error error = {""};
    bool hint = false;
    int err;

    log_init(program, LOG_LEVEL_WARNING);
    err = daemonize_standard_fds(&error);
    if (err == 0) {
        err = arguments_parse(&arguments, argc, argv, &hint, &error);
        if (err == 0) {
            log_init(program, arguments.verbose ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING);
            err = act(&arguments, program, &error);
        }
        arguments_release(&arguments);
    }
    if (error.text[0])
        log_error("%s", error.text);
    if (hint)
        log_error("Try `%s --help' for more information.", program);
    return err < 0 ? 1 : 0;
}
