/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of drivers; formats in the order in which they are probed. */
#include "blockcore/drivers.h"

const struct driver *const block_drivers[] = {
    &driver_qcow2,
    &driver_luks,
    &driver_raw,
    /* protocols */
    &driver_file,
    &driver_host_device,
    &driver_nbd,
    &driver_null_co,
    &driver_null_aio,
    /* filters */
    &driver_cache,
    &driver_copy_on_read,
    &driver_delay,
    &driver_detect_zeroes,
    &driver_error,
    &driver_partition,
    &driver_throttle,
    NULL,
};
