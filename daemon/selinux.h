/* SPDX-License-Identifier: BSD-3-Clause */
/* The SELinux context that sockets are made with (--selinux-label). */
#ifndef EVNBD_DAEMON_SELINUX_H
#define EVNBD_DAEMON_SELINUX_H

#include "base/error.h"

/*
 * Sockets that this thread makes from now on get the context `label`, such as
 * "system_u:object_r:svirt_socket_t:s0:c1,c2"; NULL: the default of the policy again.  See
 * setsockcreatecon(3).  Returns 0, -ENOTSUP (built without libselinux), or the error of the kernel,
 * with a sentence: -EINVAL for what is no context, or where SELinux is not in use.
 */
int selinux_label_sockets(const char *label, struct error *error);

#endif
