/* SPDX-License-Identifier: BSD-3-Clause */
/* Without libnbd: the driver's place, where it says why it does nothing. */
#include "blockcore/drivers.h"

#include <errno.h>

static const char *const nbd_names[] = {"nbd:", "nbds:", "nbd+unix:", "nbds+unix:", NULL};

static int nbd_open(struct node *node, struct node_open *open, struct error *error)
{
    return error_set(error, ENOTSUP,
                     "disks of other NBD servers cannot be opened: this program was built without "
                     "libnbd");
}

const struct driver driver_nbd = {
    .name = "nbd",
    .kind = DRIVER_PROTOCOL,
    .names = nbd_names,
    .open = nbd_open,
};
