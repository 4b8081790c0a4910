/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of drivers; formats in the order in which they are probed. */
#include "blockcore/drivers.h"

const struct driver *const block_drivers[] = {
    &driver_qcow2, &driver_luks,  &driver_raw,   &driver_file, &driver_host_device,
    &driver_nbd,   &driver_delay, &driver_error, NULL,
};
