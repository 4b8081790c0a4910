/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The parent reads one byte from a pipe: it comes when the child serves; without it, the pipe ends
 * when the child does.  Until then the child has the parent's stderr, and reports its failure
 * itself, and stays in the parent's session, so that an interrupt from the terminal ends both.
 *
 * Processes and their standard streams have no part in the seam under files and sockets: what is
 * called here is called before anything is served.
 */
#include "daemon/daemonize.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int daemonize_standard_fds(struct error *error)
{
    static const int modes[] = {O_WRONLY, O_RDONLY, O_RDWR};

    for (int fd = 0; fd <= 2; fd++) {
        int opened;

        if (fcntl(fd, F_GETFD) >= 0)
            continue;
        opened = open("/dev/null", modes[fd]); /* the lowest free one, which is fd */
        if (opened < 0)
            return error_set_errno(error, errno, "Could not open /dev/null");
    }
    return 0;
}

/* The child has ended without a word through the pipe. */
static int report_child(pid_t child, struct error *error)
{
    int status;

    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return error_set_errno(error, errno, "Could not learn how the server process ended");
    if (WIFSIGNALED(status))
        return error_set(error, ECHILD, "The server process was ended by signal %d (%s)",
                         WTERMSIG(status), strsignal(WTERMSIG(status)));
    return -ECHILD;
}

static int wait_for_child(int fd, pid_t child, struct error *error)
{
    char byte;
    ssize_t n;

    do
        n = read(fd, &byte, 1);
    while (n < 0 && errno == EINTR);
    close(fd);
    return n == 1 ? 1 : report_child(child, error);
}

int daemonize_fork(struct daemonize *daemonize, struct error *error)
{
    int fds[2];
    pid_t child;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(error, errno, "Could not make a pipe to the server process");
    child = fork();
    if (child < 0) {
        int err = errno;

        close(fds[0]);
        close(fds[1]);
        return error_set_errno(error, err, "Could not start the server process");
    }
    if (child > 0) {
        close(fds[1]);
        return wait_for_child(fds[0], child, error);
    }
    close(fds[0]);
    *daemonize = (struct daemonize){.forked = true, .ready_fd = fds[1]};
    return 0;
}

static int leave_streams(bool keep_stderr, struct error *error)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    int last = keep_stderr ? 1 : 2;

    if (fd < 0)
        return error_set_errno(error, errno, "Could not open /dev/null");
    for (int i = 0; i <= last; i++) {
        if (dup2(fd, i) < 0) {
            int err = errno;

            close(fd);
            return error_set_errno(error, err, "Could not redirect the standard streams");
        }
    }
    close(fd);
    return 0;
}

int daemonize_ready(struct daemonize *daemonize, bool keep_stderr, struct error *error)
{
    ssize_t n;
    int err;

    if (!daemonize->forked)
        return 0;
    if (setsid() < 0)
        return error_set_errno(error, errno, "Could not start a session");
    if (chdir("/") < 0)
        return error_set_errno(error, errno, "Could not change to the root directory");
    err = leave_streams(keep_stderr, error);
    if (err < 0)
        return err;
    do
        n = write(daemonize->ready_fd, "", 1);
    while (n < 0 && errno == EINTR);
    err = n < 0 ? errno : 0;
    close(daemonize->ready_fd);
    daemonize->forked = false;
    return err ? error_set_errno(error, err, "The process that started the server is gone") : 0;
}
