/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/selinux.h"

#include "config.h"

#include <errno.h>

#ifdef HAVE_SELINUX

#include <selinux/selinux.h>

int selinux_label_sockets(const char *label, struct error *error)
{
    if (setsockcreatecon_raw(label) == 0)
        return 0;
    if (!label)
        return error_set_errno(error, errno, "Cannot clear SELinux socket create context");
    return error_set_errno(error, errno, "Cannot set SELinux socket create context to %s", label);
}

#else

int selinux_label_sockets(const char *label, struct error *error)
{
    return error_set(error, ENOTSUP,
                     "--selinux-label is not available: evnbd was built without libselinux");
}

#endif
