/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qemu-img check.  One thing that it calls an error is none here: a copied bit whose cluster has
 * refcount 2 with a single reference left, a leak on the way of deleting a snapshot.  Such an image
 * must be without errors once qemu-img has repaired the leaks.
 */
#include "tests/crash/qemu_check.h"

#include "tests/support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { NO_ERRORS = 0, ERRORS = 2, LEAKS = 3 };

bool qemu_check_possible(void)
{
    return system("qemu-img --version >/dev/null 2>&1") == 0;
}

/* `repair` may be "". Runs it; *ret_only_copied: all errors are about copied bits. Returns its
 * status. */
static int run_check(const char *directory, const char *repair, const char *arguments, char *text,
                     size_t size, bool *ret_only_copied)
{
    char command[1024], line[512];
    FILE *pipe;
    int status;

    snprintf(command, sizeof(command), "cd '%s' && qemu-img check %s %s 2>&1", directory, repair,
             arguments);
    pipe = popen(command, "r");
    if (!pipe)
        test_die("cannot run qemu-img");
    text[0] = '\0';
    *ret_only_copied = true;
    while (fgets(line, sizeof(line), pipe)) {
        if (strncmp(line, "ERROR", 5) != 0)
            continue;
        *ret_only_copied &= strstr(line, "OFLAG_COPIED") != NULL;
        if (!text[0])
            snprintf(text, size, "%.*s", (int)strcspn(line, "\n"), line);
    }
    status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool qemu_check(const char *directory, const char *arguments, char *text, size_t size)
{
    bool only_copied;
    int status = run_check(directory, "", arguments, text, size, &only_copied);

    if (status == ERRORS && only_copied) {
        run_check(directory, "-r leaks", arguments, text, size, &only_copied);
        status = run_check(directory, "", arguments, text, size, &only_copied);
    }
    if (status != NO_ERRORS && status != LEAKS && !text[0])
        snprintf(text, size, "exit status %d", status);
    return status == NO_ERRORS || status == LEAKS;
}
